package repo

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/gofrs/flock"

	"github.com/tallystick/tally/host/rpc"
)

const (
	devnetDir = "devnet" // in the repo of a peer
	// devnetVersion is in the version file of the folder of a devnet, where a
	// peer's has a number: each is refused as the other.
	devnetVersion = "devnet 1"
	// listenFile has the address at which the devnet answered last, so that it
	// does at the next start.
	listenFile = "listen"
)

// ErrOtherRepo: the folder is a peer's and a devnet was asked for, or the
// reverse.
var ErrOtherRepo = errors.New("repo: of another kind")

// Devnet is the open folder of an embedded chain: its lock is ours until Close.
//
//	datastore/  0700  the chain
//	token       0600  the bearer token of its JSON-RPC
//	api               where it answers; gone when it stops
//	listen            where it answered last
//	repo.lock         held while a process uses the folder; has its pid
//	version           that it is a devnet
type Devnet struct {
	dir   string
	token rpc.Secret
	lock  *flock.Flock
}

// DevnetPath returns the folder of the devnet that is meant: flag, else
// TALLY_PATH, else ~/.tally-devnet.
func DevnetPath(flag string) (string, error) {
	dir, err := Path(flag)
	if err == nil && flag == "" && os.Getenv(EnvPath) == "" {
		dir += "-devnet"
	}
	return dir, err
}

// FindDevnet is DevnetPath for who wants to talk to a devnet: that of a
// throw-away peer (tally start --dev) is found by the name of the peer's repo.
func FindDevnet(flag string) (string, error) {
	dir, err := DevnetPath(flag)
	if err != nil || isDevnet(dir) {
		return dir, err
	}
	peer, err := Path(flag)
	if err != nil {
		return "", err
	}
	if inner := filepath.Join(peer, devnetDir); isDevnet(inner) {
		return inner, nil
	}
	return dir, nil
}

func isDevnet(dir string) bool {
	data, err := readFile(filepath.Join(dir, versionFile))
	return err == nil && isDevnetVersion(data)
}

func isDevnetVersion(data []byte) bool { return strings.HasPrefix(string(data), "devnet ") }

func ofDevnet(dir string) error {
	return fail(ErrOtherRepo, "name the repo of a peer with --repo; its chain is set with --chain", "%s is the folder of a devnet, not of a peer", dir)
}

// OpenDevnet takes the lock of the folder of a devnet, and makes the folder
// where it is missing. On error nothing is held.
func OpenDevnet(dir string) (*Devnet, error) {
	ours := []string{datastoreDir, tokenFile, lockFile, apiFile, listenFile, versionFile}
	fresh := false
	switch data, err := readFile(filepath.Join(dir, versionFile)); {
	case errors.Is(err, fs.ErrNotExist):
		fresh = true
		if err := onlyOurs(dir, ours); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	case !isDevnetVersion(data):
		return nil, fail(ErrOtherRepo, "give the devnet a folder of its own: --repo "+shellQuote(dir+"-devnet"), "%s is the repo of a peer", dir)
	case strings.TrimSpace(string(data)) != devnetVersion:
		return nil, fail(ErrVersion, "use the newer tally", "the devnet in %s has another layout than this program knows", dir)
	}
	if err := os.MkdirAll(filepath.Join(dir, datastoreDir), dirPerm); err != nil {
		return nil, noWrite(dir, err)
	}
	if fresh { // as Init does
		if err := os.Chmod(dir, dirPerm); err != nil {
			return nil, noWrite(dir, err)
		}
	}
	for path, most := range map[string]fs.FileMode{"": 0o755, tokenFile: secretPerm, datastoreDir: dirPerm} {
		if err := checkPath(filepath.Join(dir, path), most); err != nil {
			return nil, err
		}
	}
	lock, err := takeLock(dir)
	if err != nil {
		return nil, err
	}
	d := &Devnet{dir: dir, lock: lock}
	if err := d.load(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return d, nil
}

func (d *Devnet) load() error {
	if err := removeTemps(d.dir); err != nil {
		return err
	}
	if err := d.RemoveAPI(); err != nil { // of a devnet that was killed
		return err
	}
	path := filepath.Join(d.dir, tokenFile)
	text, err := readSecret(path)
	if errors.Is(err, fs.ErrNotExist) {
		var raw [32]byte
		_, _ = rand.Read(raw[:]) // never fails
		text = []byte(hex.EncodeToString(raw[:]))
		err = writeFile(path, append(text, '\n'), secretPerm)
	}
	if err != nil {
		return err
	}
	d.token = rpc.NewSecret(strings.TrimSpace(string(text)))
	return writeFile(filepath.Join(d.dir, versionFile), []byte(devnetVersion+"\n"), plainPerm)
}

// Dir returns the folder.
func (d *Devnet) Dir() string { return d.dir }

// DatastoreDir returns the folder of the chain.
func (d *Devnet) DatastoreDir() string { return filepath.Join(d.dir, datastoreDir) }

// TokenFile returns the path of the token.
func (d *Devnet) TokenFile() string { return filepath.Join(d.dir, tokenFile) }

// Token returns the bearer token of the chain's JSON-RPC, the same for the life
// of the folder.
func (d *Devnet) Token() rpc.Secret { return d.token }

// LastListen returns where the devnet answered last, empty where it never did.
func (d *Devnet) LastListen() (string, error) {
	data, err := readFile(filepath.Join(d.dir, listenFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(data)), err
}

// WriteAPI tells clients where the devnet answers.
func (d *Devnet) WriteAPI(api, listen string) error {
	if err := writeFile(filepath.Join(d.dir, listenFile), []byte(listen+"\n"), plainPerm); err != nil {
		return err
	}
	return writeFile(filepath.Join(d.dir, apiFile), []byte(api+"\n"), plainPerm)
}

// RemoveAPI tells clients that no devnet runs.
func (d *Devnet) RemoveAPI() error { return removeAPI(d.dir) }

// Close gives the folder free.
func (d *Devnet) Close() error { return errors.Join(d.RemoveAPI(), d.lock.Close()) }

// DevnetEndpoint returns where the devnet of a folder answers and the token that
// it takes. ErrNotRunning where none runs, as far as the file tells.
func DevnetEndpoint(dir string) (addr string, token rpc.Secret, err error) {
	if !isDevnet(dir) {
		return "", rpc.Secret{}, fail(ErrNoRepo, "start one: tally devnet, or name its folder with --repo", "there is no devnet in %s", dir)
	}
	return endpoint(dir, "tally devnet --repo "+shellQuote(dir), "no devnet runs on %s", dir)
}
