package repo

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/host/rpc"
)

// The names in a repo.
const (
	ConfigFile   = "config.toml"
	identityFile = "identity.key"
	keystoreDir  = "keystore"
	datastoreDir = "datastore"
	lockFile     = "repo.lock"
	apiFile      = "api"
	tokenFile    = "token"
	versionFile  = "version"
	socketFile   = "rpc.sock"
	rpcKeyFile   = "rpc.key" // in keystore
	walletDir    = "wallet"  // in keystore
)

// EnvPath is the environment variable that names the repo.
const EnvPath = "TALLY_PATH"

// layout is the version of the folder that this program writes.
const layout = 1

// maxSocketPath is the longest path of a unix socket on all systems (104 bytes
// with its end on macOS, 108 on Linux).
const maxSocketPath = 103

// Path returns the repo that is meant: flag, else TALLY_PATH, else ~/.tally.
func Path(flag string) (string, error) {
	for _, dir := range []string{flag, os.Getenv(EnvPath)} {
		if dir != "" {
			return filepath.Abs(dir)
		}
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fail(ErrNoRepo, "name it: --repo DIR or "+EnvPath, "no home folder for the default repo: %v", err)
	}
	return filepath.Join(home, ".tally"), nil
}

// Init makes a repo in dir with a new identity, and returns who the peer is. A
// repo that is there already is left as it is (ErrExists). A config.toml that
// lies there, and what an interrupted Init left, are kept.
func Init(dir string) (peer.ID, error) {
	if isDevnet(dir) {
		return "", ofDevnet(dir)
	}
	if _, err := os.Stat(filepath.Join(dir, versionFile)); err == nil {
		return "", fail(ErrExists, "use it: tally start, or choose another folder with --repo", "%s is a repo already", dir)
	}
	ours := []string{ConfigFile, identityFile, keystoreDir, datastoreDir, lockFile, tokenFile, devnetDir}
	if err := onlyOurs(dir, ours); err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, dirPerm); err != nil {
		return "", noWrite(dir, err)
	}
	if err := os.Chmod(dir, dirPerm); err != nil { // MkdirAll leaves a folder that was there
		return "", noWrite(dir, err)
	}
	lock, err := takeLock(dir)
	if err != nil {
		return "", err
	}
	defer func() { _ = lock.Close() }()
	id, err := fill(dir)
	if err != nil {
		return "", noWrite(dir, err)
	}
	return id, nil
}

// fill writes what is missing, the version last: its presence says that all the
// rest is there.
func fill(dir string) (peer.ID, error) {
	for _, sub := range []string{keystoreDir, datastoreDir} {
		if err := os.MkdirAll(filepath.Join(dir, sub), dirPerm); err != nil {
			return "", err
		}
	}
	config := filepath.Join(dir, ConfigFile)
	if _, err := os.Stat(config); errors.Is(err, fs.ErrNotExist) {
		if err := writeFile(config, Template(), plainPerm); err != nil {
			return "", err
		}
	} else if _, err := ReadConfig(dir); err != nil {
		return "", err
	}
	key, err := readIdentity(dir)
	if errors.Is(err, fs.ErrNotExist) {
		key, err = newIdentity(dir)
	}
	if err != nil {
		return "", err
	}
	if _, err := tokens(dir); err != nil {
		return "", err
	}
	if err := writeFile(filepath.Join(dir, versionFile), []byte(strconv.Itoa(layout)+"\n"), plainPerm); err != nil {
		return "", err
	}
	return peer.IDFromPrivateKey(key)
}

// onlyOurs refuses to make a repo of a folder that is used for something else.
func onlyOurs(dir string, ours []string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return noWrite(dir, err)
	}
	for _, e := range entries {
		if !slices.Contains(ours, e.Name()) && !strings.HasPrefix(e.Name(), tempPrefix) {
			return fail(ErrNoRepo, "choose a new or empty folder with --repo", "%s has other files in it, such as %s", dir, e.Name())
		}
	}
	return nil
}

func noWrite(dir string, err error) error {
	var known *Error
	if errors.As(err, &known) {
		return err
	}
	return fail(ErrNoRepo, "choose a folder that you may write with --repo", "cannot make a repo in %s: %v", dir, err)
}

func newIdentity(dir string) (crypto.PrivKey, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, err
	}
	data, err := crypto.MarshalPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, writeFile(filepath.Join(dir, identityFile), data, secretPerm)
}

func readIdentity(dir string) (crypto.PrivKey, error) {
	path := filepath.Join(dir, identityFile)
	data, err := readSecret(path)
	if err != nil {
		return nil, err
	}
	key, err := crypto.UnmarshalPrivateKey(data)
	if err != nil { // the library's words could quote the key
		return nil, fail(ErrNoRepo, "restore it from a backup; without it the peer is another one", "%s is damaged", path)
	}
	return key, nil
}

// tokens returns the key that signs tokens, and makes key and token file where
// they are missing or do not fit. Who wants all tokens void removes
// keystore/rpc.key and starts the peer again.
func tokens(dir string) (rpc.Secret, error) {
	key, err := rpcKey(filepath.Join(dir, keystoreDir, rpcKeyFile))
	if err != nil {
		return rpc.Secret{}, err
	}
	path := filepath.Join(dir, tokenFile)
	text, err := readSecret(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return rpc.Secret{}, err
	default:
		if _, err := rpc.VerifyToken(key, strings.TrimSpace(string(text))); err == nil {
			return key, nil
		}
	}
	token, err := rpc.IssueToken(key, time.Now(), rpc.AllPerms...)
	if err != nil {
		return rpc.Secret{}, fail(ErrNoRepo, "remove it; the next start makes a new one", "%s is damaged", rpcKeyFile)
	}
	return key, writeFile(path, []byte(token.Reveal()+"\n"), secretPerm)
}

func rpcKey(path string) (rpc.Secret, error) {
	raw, err := readSecret(path)
	if errors.Is(err, fs.ErrNotExist) {
		var fresh [32]byte
		if _, err := rand.Read(fresh[:]); err != nil {
			return rpc.Secret{}, err
		}
		text := hex.EncodeToString(fresh[:])
		return rpc.NewSecret(text), writeFile(path, []byte(text+"\n"), secretPerm)
	}
	if err != nil {
		return rpc.Secret{}, err
	}
	return rpc.NewSecret(strings.TrimSpace(string(raw))), nil
}

// ReadConfig reads the settings of the repo in dir, which need not be locked.
func ReadConfig(dir string) (Config, error) {
	path := filepath.Join(dir, ConfigFile)
	data, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(dir, versionFile)); err == nil {
			return DefaultConfig(), nil // who deletes it wants the defaults
		}
		return Config{}, notRepo(dir)
	}
	if err != nil {
		return Config{}, err
	}
	c, err := ParseConfig(path, data)
	if err != nil {
		return Config{}, err
	}
	if err := checkConfigMode(path, c); err != nil {
		return Config{}, err
	}
	return c, nil
}

func notRepo(dir string) error {
	return fail(ErrNoRepo, "make one: tally init, or name another with --repo", "there is no repo in %s", dir)
}

// CheckLayout reports whether dir is a repo that this program can use.
func CheckLayout(dir string) error {
	data, err := readFile(filepath.Join(dir, versionFile))
	if errors.Is(err, fs.ErrNotExist) {
		return notRepo(dir)
	}
	if err != nil {
		return err
	}
	if isDevnetVersion(data) {
		return ofDevnet(dir)
	}
	v, err := strconv.Atoi(strings.TrimSpace(string(data)))
	switch {
	case err != nil || v < 1:
		return fail(ErrVersion, "restore it from a backup", "%s in %s is damaged", versionFile, dir)
	case v > layout:
		return fail(ErrVersion, "use the newer tally", "the repo in %s has layout %d, newer than %d of this program", dir, v, layout)
	}
	return nil
}

// CheckPermissions returns a problem for each file that others on this machine
// could read or replace.
func CheckPermissions(dir string) []error {
	var problems []error
	check := func(path string, most fs.FileMode) {
		if err := checkPath(path, most); err != nil {
			problems = append(problems, err)
		}
	}
	check(dir, 0o755) // what matters inside is closed itself; none may put a file in
	check(filepath.Join(dir, ConfigFile), plainPerm)
	check(filepath.Join(dir, identityFile), secretPerm)
	check(filepath.Join(dir, tokenFile), secretPerm)
	check(filepath.Join(dir, datastoreDir), dirPerm)
	keys := filepath.Join(dir, keystoreDir)
	check(keys, dirPerm)
	_ = filepath.WalkDir(keys, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			problems = append(problems, err)
		case d.IsDir():
			check(path, dirPerm)
		default:
			check(path, secretPerm)
		}
		return nil
	})
	return problems
}

// Endpoint returns where the peer of the repo in dir answers and the token that
// it takes. ErrNotRunning where no peer runs, as far as the file tells.
func Endpoint(dir string) (addr string, token rpc.Secret, err error) {
	if err := CheckLayout(dir); err != nil {
		return "", rpc.Secret{}, err
	}
	return endpoint(dir, "tally start", "no peer runs on %s", dir)
}

// endpoint reads the files that a running server wrote.
func endpoint(dir, remedy, format string, args ...any) (addr string, token rpc.Secret, err error) {
	data, err := readFile(filepath.Join(dir, apiFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", rpc.Secret{}, fail(ErrNotRunning, remedy, format, args...)
	}
	if err != nil {
		return "", rpc.Secret{}, err
	}
	text, err := readSecret(filepath.Join(dir, tokenFile))
	if err != nil {
		return "", rpc.Secret{}, err
	}
	return strings.TrimSpace(string(data)), rpc.NewSecret(strings.TrimSpace(string(text))), nil
}

// Repo is an open repo: its lock is ours until Close.
type Repo struct {
	dir      string
	config   Config
	identity crypto.PrivKey
	id       peer.ID
	rpcKey   rpc.Secret
	lock     *flock.Flock
	// tempDir holds the socket where dir is too deep for one.
	tempDir string
}

// Open takes the lock of the repo in dir and reads it. On error nothing is
// held and nothing was changed.
func Open(dir string) (*Repo, error) {
	if err := CheckLayout(dir); err != nil {
		return nil, err
	}
	if problems := CheckPermissions(dir); len(problems) > 0 {
		return nil, problems[0]
	}
	lock, err := takeLock(dir)
	if err != nil {
		return nil, err
	}
	r := &Repo{dir: dir, lock: lock}
	if err := r.load(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return r, nil
}

func (r *Repo) load() (err error) {
	if r.config, err = ReadConfig(r.dir); err != nil {
		return err
	}
	if r.identity, err = readIdentity(r.dir); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fail(ErrNoRepo, "restore it from a backup; without it the peer is another one", "%s is missing", filepath.Join(r.dir, identityFile))
		}
		return err
	}
	if r.id, err = peer.IDFromPrivateKey(r.identity); err != nil {
		return err
	}
	// Only what a crash left is cleaned up, and only under the lock.
	if err := removeTemps(r.dir, filepath.Join(r.dir, keystoreDir)); err != nil {
		return err
	}
	if err := r.RemoveAPI(); err != nil { // of a peer that was killed
		return err
	}
	r.rpcKey, err = tokens(r.dir)
	return err
}

// removeTemps removes the files that a crash left half written.
func removeTemps(dirs ...string) error {
	for _, dir := range dirs {
		left, err := filepath.Glob(filepath.Join(dir, tempPrefix+"*"))
		if err != nil {
			return err
		}
		for _, path := range left {
			_ = os.Remove(path) // the next start tries again
		}
	}
	return nil
}

// takeLock takes the lock of a repo and writes our pid into it.
func takeLock(dir string) (*flock.Flock, error) {
	path := filepath.Join(dir, lockFile)
	lock := flock.New(path, flock.SetPermissions(secretPerm))
	// A moment of patience: who asks whether the lock is free holds it
	// meanwhile.
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	held, err := lock.TryLockContext(ctx, 20*time.Millisecond)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if !held {
		return nil, locked(dir)
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(os.Getpid())+"\n"), secretPerm); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

func locked(dir string) error {
	remedy := "stop that process, or name another repo with --repo"
	if pid := lockPID(dir); pid > 0 {
		return fail(ErrLocked, fmt.Sprintf("stop it: kill %d, or name another repo with --repo", pid), "the repo in %s is in use by process %d", dir, pid)
	}
	return fail(ErrLocked, remedy, "the repo in %s is in use by another process", dir)
}

func lockPID(dir string) int {
	data, err := readFile(filepath.Join(dir, lockFile))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	return pid
}

// Holder reports whether a process uses the repo in dir, and which (0 if it did
// not say).
func Holder(dir string) (pid int, held bool, err error) {
	path := filepath.Join(dir, lockFile)
	if _, err := os.Stat(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return 0, false, err
	}
	lock := flock.New(path, flock.SetFlag(os.O_RDONLY))
	free, err := lock.TryRLock()
	if err != nil {
		return 0, false, err
	}
	if free {
		return 0, false, lock.Close()
	}
	return lockPID(dir), true, nil
}

// Dir returns the folder.
func (r *Repo) Dir() string { return r.dir }

// Config returns the settings as they were when the repo was opened.
func (r *Repo) Config() Config { return r.config }

// SetConfig replaces the settings in force, for flags that overrule the file.
// The file stays as it is.
func (r *Repo) SetConfig(c Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	r.config = c
	return nil
}

// Identity returns the peer's key.
func (r *Repo) Identity() crypto.PrivKey { return r.identity }

// PeerID returns who the peer is.
func (r *Repo) PeerID() peer.ID { return r.id }

// RPCKey returns the key that signs tokens.
func (r *Repo) RPCKey() rpc.Secret { return r.rpcKey }

// DatastoreDir returns the folder of the books and messages.
func (r *Repo) DatastoreDir() string { return filepath.Join(r.dir, datastoreDir) }

// WalletDir returns the folder of the keys of the chain.
func (r *Repo) WalletDir() string { return filepath.Join(r.dir, keystoreDir, walletDir) }

// DevnetDir returns the folder of the embedded chain of a throw-away peer.
func (r *Repo) DevnetDir() string { return filepath.Join(r.dir, devnetDir) }

// SocketPath returns where the unix socket of the peer goes. A path that is too
// long for a socket is replaced by one in a private temporary folder; clients
// find it through <repo>/api either way.
func (r *Repo) SocketPath() (string, error) {
	path := filepath.Join(r.dir, socketFile)
	if len(path) <= maxSocketPath {
		return path, nil
	}
	if r.tempDir == "" {
		dir, err := os.MkdirTemp("", "tally-") // 0700, with a random name
		if err != nil {
			return "", err
		}
		r.tempDir = dir
	}
	return filepath.Join(r.tempDir, socketFile), nil
}

// WriteAPI tells clients where the peer answers.
func (r *Repo) WriteAPI(addr string) error {
	return writeFile(filepath.Join(r.dir, apiFile), []byte(addr+"\n"), plainPerm)
}

// RemoveAPI tells clients that no peer runs.
func (r *Repo) RemoveAPI() error { return removeAPI(r.dir) }

func removeAPI(dir string) error {
	err := os.Remove(filepath.Join(dir, apiFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Close gives the repo free.
func (r *Repo) Close() error {
	err := r.RemoveAPI()
	if r.tempDir != "" {
		err = errors.Join(err, os.RemoveAll(r.tempDir))
	}
	return errors.Join(err, r.lock.Close())
}
