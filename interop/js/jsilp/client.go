// Package jsilp runs the stock Interledger client of client.mjs, for tests behind the
// build tag interop.
package jsilp

import (
	"bufio"
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

//go:embed client.mjs package.json
var files embed.FS

// Client is a running JavaScript client.
type Client struct {
	t      *testing.T
	cmd    *exec.Cmd
	in     io.WriteCloser
	lines  *bufio.Scanner
	stderr *bytes.Buffer
}

// Start runs the client in a folder that Install made, for at most a minute.
func Start(t *testing.T, dir string, args ...string) *Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	c := &Client{t: t, stderr: new(bytes.Buffer)}
	c.cmd = exec.CommandContext(ctx, "node", append([]string{"client.mjs"}, args...)...)
	c.cmd.Dir = dir
	c.cmd.Stderr = c.stderr
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	c.lines = bufio.NewScanner(out)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return c
}

// Next returns the next line.
func (c *Client) Next() map[string]any {
	c.t.Helper()
	got := make(map[string]any)
	if !c.lines.Scan() {
		_ = c.cmd.Wait()
		c.t.Fatalf("client ended: %s", c.stderr)
	}
	if err := json.Unmarshal(c.lines.Bytes(), &got); err != nil {
		c.t.Fatalf("%q: %v", c.lines.Text(), err)
	}
	return got
}

// End returns all lines that are left, in one.
func (c *Client) End() map[string]any {
	c.t.Helper()
	got := make(map[string]any)
	for c.lines.Scan() {
		if err := json.Unmarshal(c.lines.Bytes(), &got); err != nil {
			c.t.Fatalf("%q: %v", c.lines.Text(), err)
		}
	}
	if err := c.cmd.Wait(); err != nil {
		c.t.Fatalf("client: %v\n%s", err, c.stderr)
	}
	return got
}

// Stop ends a receiver's input, and returns what it prints then.
func (c *Client) Stop() map[string]any {
	c.t.Helper()
	_ = c.in.Close()
	return c.End()
}

// Install puts the client and the stock packages in a folder of its own, from the npm
// registry.
func Install(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("npm"); err != nil {
		t.Skip("node and npm are not installed")
	}
	dir := t.TempDir()
	for _, name := range []string{"client.mjs", "package.json"} {
		b, err := files.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("npm install: %v\n%s", err, out)
	}
	return dir
}
