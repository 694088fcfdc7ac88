package repo

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	secretPerm fs.FileMode = 0o600
	dirPerm    fs.FileMode = 0o700
	plainPerm  fs.FileMode = 0o644
	// maxFile bounds what is read of any file of the repo that is not data.
	maxFile = 1 << 20
	// tempPrefix begins the names of files not yet renamed; a crash leaves
	// them, and the next Open removes them.
	tempPrefix = ".write-"
)

// writeFile replaces path by data, whole or not at all.
func writeFile(path string, data []byte, perm fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, tempPrefix+"*") // 0600 from the beginning
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(data); err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes renames and new names in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readFile reads a file of the repo.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return readAll(f)
}

// readSecret reads a file that nobody else may read. It checks the open file,
// so that the file checked is the file read.
func readSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := checkMode(path, info, secretPerm); err != nil {
		return nil, err
	}
	return readAll(f)
}

func readAll(f *os.File) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s is over %d bytes", f.Name(), maxFile)
	}
	return data, nil
}

// checkMode refuses permissions wider than most.
func checkMode(path string, info fs.FileInfo, most fs.FileMode) error {
	mode := info.Mode().Perm()
	if mode&^most == 0 {
		return nil
	}
	return fail(ErrPermissions, fmt.Sprintf("chmod %o %s", most, shellQuote(path)),
		"%s has permissions %04o, wider than %04o: others on this machine could use it", path, mode, most)
}

// checkPath is checkMode for a file that may be missing.
func checkPath(path string, most fs.FileMode) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return checkMode(path, info, most)
}

// shellQuote makes a path safe to paste.
func shellQuote(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool {
		return !strings.ContainsRune("/._-+=:@,", r) && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
