package repo

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestDevnetKeepsTokenAndPlace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "net")
	if _, _, err := DevnetEndpoint(dir); !errors.Is(err, ErrNoRepo) {
		t.Errorf("endpoint of no devnet: %v", err)
	}
	d, err := OpenDevnet(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDevnet(dir); !errors.Is(err, ErrLocked) {
		t.Errorf("second open: %v", err)
	}
	if err := d.WriteAPI("/ip4/127.0.0.1/tcp/1/http", "127.0.0.1:1"); err != nil {
		t.Fatal(err)
	}
	token := d.Token()
	if api, got, err := DevnetEndpoint(dir); err != nil || api != "/ip4/127.0.0.1/tcp/1/http" || got != token {
		t.Errorf("endpoint %s, %v", api, err)
	}
	if info, err := os.Stat(d.TokenFile()); err != nil || info.Mode().Perm() != secretPerm {
		t.Errorf("token file: %v %v", info, err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := DevnetEndpoint(dir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("endpoint of a stopped devnet: %v", err)
	}
	if d, err = OpenDevnet(dir); err != nil {
		t.Fatal(err)
	}
	if at, err := d.LastListen(); at != "127.0.0.1:1" || err != nil || d.Token() != token {
		t.Errorf("after a restart at %q, %v; or with another token", at, err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, tokenFile), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDevnet(dir); !errors.Is(err, ErrPermissions) {
		t.Errorf("with a token for all: %v", err)
	}
}

// The folder of a peer is no devnet's, and the reverse; neither is changed.
func TestDevnetAndPeerAreApart(t *testing.T) {
	peer := newRepo(t)
	before := snapshot(t, peer)
	if _, err := OpenDevnet(peer); !errors.Is(err, ErrOtherRepo) {
		t.Errorf("devnet on a peer's repo: %v", err)
	}
	if snapshot(t, peer) != before {
		t.Error("the repo changed")
	}
	net := filepath.Join(t.TempDir(), "net")
	d, err := OpenDevnet(net)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	before = snapshot(t, net)
	if _, err := Init(net); !errors.Is(err, ErrOtherRepo) {
		t.Errorf("init on a devnet: %v", err)
	}
	if _, err := Open(net); !errors.Is(err, ErrOtherRepo) {
		t.Errorf("open of a devnet: %v", err)
	}
	if snapshot(t, net) != before {
		t.Error("the devnet changed")
	}
	// Half a peer, or anything else, is none either.
	half := t.TempDir()
	if err := os.WriteFile(filepath.Join(half, identityFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDevnet(half); !errors.Is(err, ErrNoRepo) {
		t.Errorf("devnet beside a key: %v", err)
	}
}

func TestFindDevnet(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv(EnvPath, "")
	at := func(f func(string) (string, error), flag string) string {
		t.Helper()
		dir, err := f(flag)
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}
	alone, inner := filepath.Join(home, ".tally-devnet"), filepath.Join(home, ".tally", devnetDir)
	if got := at(DevnetPath, ""); got != alone {
		t.Errorf("default %s", got)
	}
	d, err := OpenDevnet(inner)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	for _, flag := range []string{"", filepath.Join(home, ".tally"), inner} {
		if got := at(FindDevnet, flag); got != inner {
			t.Errorf("%q found %s", flag, got)
		}
	}
	if got := at(DevnetPath, filepath.Join(home, ".tally")); got != filepath.Join(home, ".tally") {
		t.Errorf("a devnet would start in %s", got)
	}
	if d, err = OpenDevnet(alone); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if got := at(FindDevnet, ""); got != alone {
		t.Errorf("found %s", got)
	}
}
