package swapnet

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/libp2p/go-libp2p/p2p/transport/websocket"

	"github.com/tallystick/tally/swap"
)

// TestInterop runs a stock js-libp2p peer (interop/js/swap) against a service,
// over TCP and over WebSocket. It needs node, npm and the npm registry, so it
// runs only when asked.
func TestInterop(t *testing.T) {
	if os.Getenv("TALLY_INTEROP") == "" {
		t.Skip("set TALLY_INTEROP=1")
	}
	dir := installJS(t)
	h, err := libp2p.New(
		libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/0/ws"),
		libp2p.Transport(tcp.NewTCPTransport), libp2p.Transport(websocket.New),
		libp2p.Security(noise.ID, noise.New), libp2p.DisableRelay(), libp2p.DisableMetrics(),
	)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	b := newNode(t, h, Limits{})
	var last swap.KarmaCheque
	b.onMsg = func(_ peer.ID, m swap.Message) error {
		last = *m.(*swap.KarmaCheque)
		return nil
	}
	for _, ws := range []bool{false, true} {
		addr := addrOf(t, h, ws)
		t.Run(fmt.Sprintf("ws=%v/cheques", ws), func(t *testing.T) {
			got := runJS(t, dir, addr, "--threshold", "77", "--cheques", "7", "--amount", "300")
			b.want(t, seed77)
			for range 7 {
				b.want(t, "karma 300")
			}
			b.want(t, "end")
			b.wantEnd(t, StatusOK)
			if got["threshold"] != "100" || got["sent"] != float64(7) || got["end"] != "eof" {
				t.Fatal(got)
			}
			if !last.For(h.ID()) || last.Date == 0 {
				t.Fatalf("%+v", last)
			}
		})
		for bad, status := range map[string]Status{"oversize": StatusOversize, "garbage": StatusGarbage, "truncated": StatusTruncated} {
			t.Run(fmt.Sprintf("ws=%v/%s", ws, bad), func(t *testing.T) {
				got := runJS(t, dir, addr, "--threshold", "77", "--cheques", "1", "--bad", bad)
				b.want(t, seed77, "karma 1", "end")
				b.wantEnd(t, status)
				if end, _ := got["end"].(string); !strings.Contains(end, "reset") {
					t.Fatal(got)
				}
			})
		}
	}
}

// installJS copies the client to a directory of the test and installs what it
// needs.
func installJS(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"client.mjs", "package.json"} {
		b, err := os.ReadFile(filepath.Join("../../interop/js/swap", name))
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

func addrOf(t *testing.T, h host.Host, ws bool) string {
	t.Helper()
	for _, a := range h.Addrs() {
		if slices.Contains(strings.Split(a.String(), "/"), "ws") == ws {
			return fmt.Sprintf("%s/p2p/%s", a, h.ID())
		}
	}
	t.Fatal("no address")
	return ""
}

// runJS runs the client and returns what it printed, all lines in one.
func runJS(t *testing.T, dir, addr string, args ...string) map[string]any {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", append([]string{"client.mjs", addr}, args...)...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("client: %v\n%s%s", err, out, stderr.Bytes())
	}
	got := make(map[string]any)
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		if err := json.Unmarshal(lines.Bytes(), &got); err != nil {
			t.Fatalf("%q: %v", lines.Text(), err)
		}
	}
	return got
}
