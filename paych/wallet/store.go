package wallet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/filecoin-project/go-address"
)

var (
	// ErrOtherChain: a key belongs to another chain than the one at hand.
	ErrOtherChain = errors.New("paych/wallet: key of another chain")
	// ErrPermissions: others than the owner may read a key or replace it. The
	// operator has to take the right away, and to think about who used it.
	ErrPermissions = errors.New("paych/wallet: others have access")
	// ErrDamaged: a key file is not what was written. Restore it from a backup.
	ErrDamaged = errors.New("paych/wallet: damaged key file")
)

const (
	fileVersion = 1
	fileSuffix  = ".key"
	tempPrefix  = ".new-"
	// maxFile bounds what is read of a key file, in bytes; ours take 300.
	maxFile = 4096
	// tempAge is how long a temporary file may be another process's business.
	// Writing a key takes milliseconds.
	tempAge = 10 * time.Minute
)

// Store is a wallet in a directory.
type Store struct {
	ring
	dir   string
	chain Chain
}

// file is one key on disk.
type file struct {
	Version          int
	Address          string
	Network, Genesis string
	PrivateKey       []byte
}

// Open opens the keys in dir for a chain, and makes dir if there is none. It
// opens all or nothing: ErrOtherChain, ErrPermissions, ErrDamaged name the file.
func Open(dir string, chain Chain) (*Store, error) {
	if !chain.Genesis.Defined() || chain.Network == "" {
		return nil, errors.New("paych/wallet: open: no chain")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("paych/wallet: open: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("paych/wallet: open: %w", err)
	}
	// Who may write to the directory may put another key in the place of ours.
	if !private(info, 0o022) {
		return nil, fmt.Errorf("%w: %s has mode %#o, want 0700", ErrPermissions, dir, info.Mode().Perm())
	}
	s := &Store{ring: ring{keys: make(map[address.Address]*key)}, dir: dir, chain: chain}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("paych/wallet: open: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch {
		case strings.HasPrefix(e.Name(), tempPrefix):
			removeOld(path)
		case strings.HasSuffix(e.Name(), fileSuffix):
			k, err := s.read(path)
			if err != nil {
				return nil, err
			}
			s.keys[k.addr] = k
		}
	}
	return s, nil
}

// Chain returns the chain that the keys belong to.
func (s *Store) Chain() Chain { return s.chain }

// String names the wallet and nothing in it.
func (s *Store) String() string { return "wallet in " + s.dir }

// New makes a key and returns its address once it is on disk.
func (s *Store) New(ctx context.Context) (address.Address, error) {
	k, err := generate()
	if err != nil {
		return address.Undef, err
	}
	return s.add(ctx, k)
}

// Import takes a key in and returns its address once it is on disk. A key that
// is here already is no error; one exported for another chain is: ErrOtherChain.
func (s *Store) Import(ctx context.Context, secret Secret) (address.Address, error) {
	info, err := secret.open()
	if err != nil {
		return address.Undef, err
	}
	if info.Genesis != "" && info.Genesis != s.chain.genesis() {
		return address.Undef, fmt.Errorf("%w: it is of %s (%s), this is %s", ErrOtherChain, info.Network, info.Genesis, s.chain)
	}
	k, err := newKey(info.PrivateKey)
	if err != nil {
		return address.Undef, err
	}
	return s.add(ctx, k)
}

// Export returns the key of a. ErrNoKey.
func (s *Store) Export(_ context.Context, a address.Address) (Secret, error) {
	k, err := s.get(a)
	if err != nil {
		return Secret{}, err
	}
	return seal(k, s.chain)
}

// add puts a key on disk, then into memory.
func (s *Store) add(ctx context.Context, k *key) (address.Address, error) {
	if err := ctx.Err(); err != nil {
		return address.Undef, err
	}
	if _, err := s.get(k.addr); err == nil {
		return k.addr, nil
	}
	path := filepath.Join(s.dir, fileName(k.addr))
	err := s.write(path, k)
	if errors.Is(err, fs.ErrExist) {
		// Another process was faster; it has to be the same key of our chain.
		_, err = s.read(path)
	}
	if err != nil {
		return address.Undef, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[k.addr] = k
	return k.addr, nil
}

// fileName of a key. Addresses print with t where a program says so; files are
// always of one name.
func fileName(a address.Address) string { return canonical(a) + fileSuffix }

func canonical(a address.Address) string { return "f" + a.String()[1:] }

// write makes the file of a key whole or not at all, and never in place of
// another: the bytes are on disk under a name nobody reads before they get their
// own.
func (s *Store) write(path string, k *key) (err error) {
	data, err := json.Marshal(file{
		Version: fileVersion, Address: canonical(k.addr),
		Network: s.chain.Network, Genesis: s.chain.genesis(), PrivateKey: k.priv.Bytes(),
	})
	if err != nil {
		return fmt.Errorf("paych/wallet: write %s: %w", path, err)
	}
	f, err := os.CreateTemp(s.dir, tempPrefix) // 0600
	if err != nil {
		return fmt.Errorf("paych/wallet: write %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, err = f.Write(append(data, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("paych/wallet: write %s: %w", path, err)
	}
	// A link, other than a rename, fails where the name is taken.
	if err := os.Link(f.Name(), path); err != nil {
		return fmt.Errorf("paych/wallet: write %s: %w", path, err)
	}
	return syncDir(s.dir)
}

// read reads the file of a key and checks everything in it.
func (s *Store) read(path string) (*key, error) {
	damaged := func(why string, args ...any) error {
		return fmt.Errorf("%w: %s: %s", ErrDamaged, path, fmt.Sprintf(why, args...))
	}
	// A link could point to where another program writes.
	if link, err := os.Lstat(path); err != nil {
		return nil, fmt.Errorf("paych/wallet: read %s: %w", path, err)
	} else if !link.Mode().IsRegular() {
		return nil, damaged("not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("paych/wallet: read %s: %w", path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("paych/wallet: read %s: %w", path, err)
	}
	if !private(info, 0o077) {
		return nil, fmt.Errorf("%w: %s has mode %#o, want 0600", ErrPermissions, path, info.Mode().Perm())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("paych/wallet: read %s: %w", path, err)
	}
	var v file
	switch {
	case len(data) > maxFile:
		return nil, damaged("longer than %d bytes", maxFile)
	case json.Unmarshal(data, &v) != nil: // whose error may quote the file
		return nil, damaged("not a key")
	case v.Version > fileVersion:
		return nil, fmt.Errorf("paych/wallet: read %s: version %d is newer than this program, which knows %d", path, v.Version, fileVersion)
	case v.Version != fileVersion:
		return nil, damaged("version %d", v.Version)
	}
	// The genesis decides; two development chains may have one name.
	if v.Genesis != s.chain.genesis() {
		return nil, fmt.Errorf("%w: %s is of %s (%s), this is %s", ErrOtherChain, path, v.Network, v.Genesis, s.chain)
	}
	k, err := newKey(v.PrivateKey)
	if err != nil {
		return nil, damaged("no private key")
	}
	// The address is the key's checksum, in the file and in its name.
	if want := canonical(k.addr); v.Address != want || filepath.Base(path) != want+fileSuffix {
		return nil, damaged("the key in it is that of %s", want)
	}
	return k, nil
}

// private reports whether nobody but the owner has the rights in mask. Windows
// keeps them elsewhere.
func private(info fs.FileInfo, mask fs.FileMode) bool {
	return runtime.GOOS == "windows" || info.Mode().Perm()&mask == 0
}

// removeOld removes what a crash left: a key that nobody was told of.
func removeOld(path string) {
	if info, err := os.Lstat(path); err == nil && time.Since(info.ModTime()) > tempAge {
		_ = os.Remove(path) // the next start tries again
	}
}

// syncDir makes the names in dir durable.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil // has no such call
	}
	d, err := os.Open(dir)
	if err == nil {
		err = errors.Join(d.Sync(), d.Close())
	}
	if err != nil {
		return fmt.Errorf("paych/wallet: sync %s: %w", dir, err)
	}
	return nil
}
