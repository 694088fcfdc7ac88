package repo

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	nodeURL  = "http://127.0.0.1:1234/rpc/v1"
	nodeAddr = "/ip4/127.0.0.1/tcp/1234/http"
)

func TestChainNode(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "tok"), []byte("of-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, chain, file, envToken, envLotus string
		url, token, from                      string
	}{
		{name: "none"},
		{name: "a token without a chain", envToken: "of-env", file: "tok"},
		{name: "url", chain: nodeURL, url: nodeURL, from: "chain"},
		{name: "lotus' form", chain: "beside:" + nodeAddr, url: nodeURL, token: "beside", from: "chain"},
		{name: "file in the repo", chain: nodeURL, file: "tok", url: nodeURL, token: "of-file", from: "chain"},
		{name: "file elsewhere", chain: nodeURL, file: filepath.Join(dir, "tok"), url: nodeURL, token: "of-file", from: "chain"},
		{name: "environment before file", chain: nodeURL, file: "tok", envToken: "of-env", url: nodeURL, token: "of-env", from: "chain"},
		{name: "environment before address", chain: "beside:" + nodeAddr, envToken: " of-env\n", url: nodeURL, token: "of-env", from: "chain"},
		{name: "lotus' variable", envLotus: "of-lotus:" + nodeAddr, url: nodeURL, token: "of-lotus", from: EnvLotus},
		{name: "setting before variable", chain: nodeURL, envLotus: "of-lotus:/ip4/127.0.0.1/tcp/1/http", url: nodeURL, from: "chain"},
		{name: "no file to lotus' node", file: "tok", envLotus: nodeAddr, url: nodeURL, from: EnvLotus},
	} {
		c := DefaultConfig()
		c.Chain, c.ChainTokenFile = tt.chain, tt.file
		env := map[string]string{EnvChainToken: tt.envToken, EnvLotus: tt.envLotus}
		n, err := c.ChainNode(dir, func(key string) string { return env[key] })
		if err != nil || n.URL != tt.url || string(n.Token) != tt.token || n.From != tt.from {
			t.Errorf("%s: %s %q from %s, %v", tt.name, n.URL, string(n.Token), n.From, err)
		}
		if text := fmt.Sprintf("%+v %#v", n, n); tt.token != "" && strings.Contains(text, tt.token) {
			t.Errorf("%s: the token is printed", tt.name)
		}
	}
}

func TestChainNodeRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, perm := range map[string]os.FileMode{"wide": 0o644, "empty": 0o600} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, perm); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "words"), []byte("hunter2 hunter2"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		file, lotus string
		kind        error
	}{
		"wide":     {"wide", "", ErrPermissions},
		"missing":  {"missing", "", ErrConfig},
		"empty":    {"empty", "", ErrConfig},
		"words":    {"words", "", ErrConfig},
		"variable": {"", "hunter2:nowhere", ErrConfig},
	} {
		c := DefaultConfig()
		if tt.lotus == "" {
			c.Chain, c.ChainTokenFile = nodeURL, tt.file
		}
		_, err := c.ChainNode(dir, func(key string) string { return map[string]string{EnvLotus: tt.lotus}[key] })
		var e *Error
		if !errors.Is(err, tt.kind) || !errors.As(err, &e) || e.Remedy() == "" || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What is shown of the settings has no secret and can be read in again.
func TestChainIsRedacted(t *testing.T) {
	for _, chain := range []string{
		"hunter2:" + nodeAddr, "hunter2:" + nodeURL, "http://me:hunter2@127.0.0.1:1234/rpc/v1", "https://node.example/rpc/v1?token=hunter2",
	} {
		c := DefaultConfig()
		c.Chain = chain
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		text := string(c.Encode()) + fmt.Sprint(c.Show())
		if strings.Contains(text, "hunter2") || !strings.Contains(text, "redacted") && !strings.Contains(text, "xxxxx") {
			t.Errorf("%s shows as %s", chain, text)
		}
		if _, err := DefaultConfig().With(c.Show()); err != nil {
			t.Errorf("%s: what is shown cannot be read: %v", chain, err)
		}
	}
}

// A config.toml with a token in it is a secret.
func TestConfigWithATokenIsClosed(t *testing.T) {
	dir := newRepo(t)
	path := filepath.Join(dir, ConfigFile)
	if err := os.WriteFile(path, []byte("chain = \"hunter2:"+nodeAddr+"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadConfig(dir); !errors.Is(err, ErrPermissions) {
		t.Errorf("read: %v", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadConfig(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); !errors.Is(err, ErrPermissions) {
		t.Errorf("got %v", err)
	}
}
