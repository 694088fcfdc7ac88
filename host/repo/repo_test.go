package repo

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tallystick/tally/host/rpc"
)

// TestMain turns into the other process of TestSecondProcessIsNamed when asked.
func TestMain(m *testing.M) {
	if dir := os.Getenv("REPO_TEST_HOLD"); dir != "" {
		r, err := Open(dir)
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		fmt.Println("held")
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		_ = r.Close()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func newRepo(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "peer")
	if _, err := Init(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func open(t *testing.T, dir string) *Repo {
	t.Helper()
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func TestInit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "peer")
	id, err := Init(dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, perm := range map[string]fs.FileMode{
		".": 0o700, "config.toml": 0o644, "identity.key": 0o600, "keystore": 0o700, "keystore/rpc.key": 0o600,
		"datastore": 0o700, "token": 0o600, "version": 0o644, "repo.lock": 0o600,
	} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		} else if info.Mode().Perm() != perm {
			t.Errorf("%s has %o, want %o", name, info.Mode().Perm(), perm)
		}
	}
	before := snapshot(t, dir)
	if _, err := Init(dir); !errors.Is(err, ErrExists) {
		t.Errorf("second init: %v", err)
	}
	if after := snapshot(t, dir); after != before {
		t.Error("second init changed the repo")
	}
	r := open(t, dir)
	if r.PeerID() != id {
		t.Errorf("opened as %s, made as %s", r.PeerID(), id)
	}
}

func TestInitKeepsWhatAnInterruptedOneLeft(t *testing.T) {
	dir := newRepo(t)
	id := open(t, dir)
	_ = id.Close()
	if err := os.Remove(filepath.Join(dir, versionFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); !errors.Is(err, ErrNoRepo) {
		t.Errorf("opened half a repo: %v", err)
	}
	again, err := Init(dir)
	if err != nil {
		t.Fatal(err)
	}
	if again != id.PeerID() {
		t.Error("the identity was made anew")
	}
}

func TestInitLeavesOtherFoldersAlone(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "thesis.tex"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, dir)
	if _, err := Init(dir); !errors.Is(err, ErrNoRepo) {
		t.Errorf("got %v", err)
	}
	if snapshot(t, dir) != before {
		t.Error("the folder changed")
	}
}

// snapshot describes every file of dir but the lock, whose content is free.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() == lockFile {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(&b, path, info.Mode())
		if !d.IsDir() {
			data, err := os.ReadFile(path)
			fmt.Fprintf(&b, "%x\n", data)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestWiderPermissionsAreRefused(t *testing.T) {
	for name, mode := range map[string]fs.FileMode{
		"identity.key": 0o640, "token": 0o604, "keystore/rpc.key": 0o644, "keystore": 0o755,
		"datastore": 0o750, "config.toml": 0o666, ".": 0o777,
	} {
		t.Run(name, func(t *testing.T) {
			dir := newRepo(t)
			path := filepath.Join(dir, name)
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
			before := snapshot(t, dir)
			_, err := Open(dir)
			if !errors.Is(err, ErrPermissions) {
				t.Fatalf("got %v", err)
			}
			if snapshot(t, dir) != before {
				t.Error("a refused open changed the repo")
			}
			var e *Error
			errors.As(err, &e)
			if !strings.HasPrefix(e.Remedy(), "chmod ") || !strings.HasSuffix(e.Remedy(), path) {
				t.Errorf("remedy %q", e.Remedy())
			}
			if out, err := exec.Command("sh", "-c", e.Remedy()).CombinedOutput(); err != nil {
				t.Fatalf("the remedy fails: %s", out)
			}
			open(t, dir)
		})
	}
}

func TestSecondProcessIsNamed(t *testing.T) {
	dir := newRepo(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "REPO_TEST_HOLD="+dir)
	stdin, _ := cmd.StdinPipe()
	stdout, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stdin.Close(); _ = cmd.Wait() })
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "held\n" {
		t.Fatalf("%q, %v", line, err)
	}
	_, err := Open(dir)
	var e *Error
	if !errors.Is(err, ErrLocked) || !errors.As(err, &e) {
		t.Fatalf("got %v", err)
	}
	pid := fmt.Sprint(cmd.Process.Pid)
	if !strings.Contains(e.Error(), "process "+pid) || !strings.Contains(e.Remedy(), "kill "+pid) {
		t.Errorf("%q, %q: want pid %s", e, e.Remedy(), pid)
	}
	if got, held, err := Holder(dir); !held || fmt.Sprint(got) != pid || err != nil {
		t.Errorf("Holder: %d %v %v", got, held, err)
	}
	// A killed holder leaves no lock behind.
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	open(t, dir)
}

func TestHolderOfAFreeRepo(t *testing.T) {
	if pid, held, err := Holder(newRepo(t)); pid != 0 || held || err != nil {
		t.Errorf("%d %v %v", pid, held, err)
	}
}

func TestToken(t *testing.T) {
	dir := newRepo(t)
	r := open(t, dir)
	if _, _, err := Endpoint(dir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("endpoint of a peer that does not run: %v", err)
	}
	if err := r.WriteAPI("/unix/x"); err != nil {
		t.Fatal(err)
	}
	addr, token, err := Endpoint(dir)
	if err != nil || addr != "/unix/x" {
		t.Fatalf("%q, %v", addr, err)
	}
	if perms, err := rpc.VerifyToken(r.RPCKey(), token.Reveal()); err != nil || len(perms) != len(rpc.AllPerms) {
		t.Errorf("%v %v", perms, err)
	}
	_ = r.Close()

	// Removing the key voids every token; the next open makes both anew.
	if err := os.Remove(filepath.Join(dir, keystoreDir, rpcKeyFile)); err != nil {
		t.Fatal(err)
	}
	r = open(t, dir)
	if _, err := rpc.VerifyToken(r.RPCKey(), token.Reveal()); err == nil {
		t.Error("the old token is still good")
	}
	fresh, err := os.ReadFile(filepath.Join(dir, tokenFile))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rpc.VerifyToken(r.RPCKey(), strings.TrimSpace(string(fresh))); err != nil {
		t.Error(err)
	}
}

func TestOpenCleansUpAfterACrash(t *testing.T) {
	dir := newRepo(t)
	for _, name := range []string{tempPrefix + "1", "keystore/" + tempPrefix + "2", apiFile} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	open(t, dir)
	for _, name := range []string{tempPrefix + "1", "keystore/" + tempPrefix + "2", apiFile} {
		if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBadConfigChangesNothing(t *testing.T) {
	dir := newRepo(t)
	if err := os.WriteFile(filepath.Join(dir, ConfigFile), []byte("mode = \"fast\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, dir)
	_, err := Open(dir)
	if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), ConfigFile+":1") {
		t.Errorf("got %v", err)
	}
	if snapshot(t, dir) != before {
		t.Error("a refused open changed the repo")
	}
	if _, held, _ := Holder(dir); held {
		t.Error("the lock is still held")
	}
}

func TestNewerLayoutIsRefused(t *testing.T) {
	dir := newRepo(t)
	if err := os.WriteFile(filepath.Join(dir, versionFile), []byte("2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); !errors.Is(err, ErrVersion) {
		t.Errorf("got %v", err)
	}
}

func TestDamagedIdentity(t *testing.T) {
	dir := newRepo(t)
	if err := os.WriteFile(filepath.Join(dir, identityFile), []byte("hunter2"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v", err)
	}
	if err := os.Remove(filepath.Join(dir, identityFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil {
		t.Error("a repo without its identity opened")
	}
}

func TestSocketPathOfADeepRepo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("deep", 30))
	if _, err := Init(dir); err != nil {
		t.Fatal(err)
	}
	r := open(t, dir)
	path, err := r.SocketPath()
	if err != nil {
		t.Fatal(err)
	}
	if len(path) > maxSocketPath {
		t.Errorf("%s is too long", path)
	}
	again, _ := r.SocketPath()
	if again != path {
		t.Error("asking twice gives two paths")
	}
	info, err := os.Stat(filepath.Dir(path))
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	_ = r.Close()
	if _, err := os.Stat(filepath.Dir(path)); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the temporary folder stays")
	}
}

func TestPathOrder(t *testing.T) {
	t.Setenv(EnvPath, "/env")
	if got, _ := Path("/flag"); got != "/flag" {
		t.Error(got)
	}
	if got, _ := Path(""); got != "/env" {
		t.Error(got)
	}
	t.Setenv(EnvPath, "")
	t.Setenv("HOME", "/home/me")
	if got, _ := Path(""); got != "/home/me/.tally" {
		t.Error(got)
	}
}

// Nothing of a repo that is printed by accident shows a secret.
func TestSecretsDoNotPrint(t *testing.T) {
	dir := newRepo(t)
	r := open(t, dir)
	key := r.RPCKey().Reveal()
	data, _ := json.Marshal(r.RPCKey())
	for _, text := range []string{fmt.Sprintf("%v %+v %#v %s %q %x", r.RPCKey(), r.RPCKey(), r.RPCKey(), r.RPCKey(), r.RPCKey(), r.RPCKey()), string(data), fmt.Sprintf("%+v", struct{ K rpc.Secret }{r.RPCKey()})} {
		if strings.Contains(text, key) || strings.Contains(text, fmt.Sprintf("%x", key)) {
			t.Errorf("shown: %s", text)
		}
	}
}
