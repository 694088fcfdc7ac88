package durable_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tallystick/tally/internal/durable"
)

// copyStore copies the files of a store that is open: what a power loss leaves on
// a disk that lost nothing.
func copyStore(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// theFile returns the one file of dir that matches pattern.
func theFile(t *testing.T, dir, pattern string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(names) != 1 {
		t.Fatalf("%s: %v, %v", pattern, names, err)
	}
	return names[0]
}

// flip changes one byte of a file.
func flip(t *testing.T, name string, at int64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var one [1]byte
	if _, err := f.ReadAt(one[:], at); err != nil {
		t.Fatal(err)
	}
	one[0] ^= 0x10
	if _, err := f.WriteAt(one[:], at); err != nil {
		t.Fatal(err)
	}
}

const damageRecords = 400

// numbered opens a store in a real folder with damageRecords records, each
// synced alone, and returns the journal's size after each.
func numbered(t *testing.T) (dir string, s *durable.Store, sizes []int64) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "store")
	s, err := durable.Open(dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	log := ""
	for i := range damageRecords {
		key := fmt.Sprintf("/n/%04d", i)
		commit(t, s, key, string(durable.Seal(nil, key, 1, make([]byte, 180))))
		if log == "" {
			log = theFile(t, dir, "*.log")
		}
		info, err := os.Stat(log)
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, info.Size())
	}
	return dir, s, sizes
}

// checkPrefix fails unless the store holds whole records 0 to n-1 and nothing
// else, and returns n.
func checkPrefix(t *testing.T, s *durable.Store) (n int) {
	t.Helper()
	all := records(t, s)
	for i := range len(all) {
		key := fmt.Sprintf("/n/%04d", i)
		if _, _, err := durable.Unseal(key, 1, []byte(all[key])); err != nil {
			t.Fatalf("%d records, but %v", len(all), err)
		}
	}
	return len(all)
}

// A journal cut off at any place opens with all records before the cut.
func TestTornTail(t *testing.T) {
	dir, s, sizes := numbered(t)
	defer s.Close()
	for _, keep := range []int{damageRecords, damageRecords - 1, damageRecords / 2, 1} {
		for _, torn := range []int64{0, 1, 7, 100} {
			cp := copyStore(t, dir)
			size := sizes[keep-1]
			if err := os.Truncate(theFile(t, cp, "*.log"), size-torn); err != nil {
				t.Fatal(err)
			}
			after, err := durable.Open(cp, quiet)
			if err != nil {
				t.Fatalf("%d records, %d bytes torn: %v", keep, torn, err)
			}
			want := keep
			if torn > 0 {
				want--
			}
			if got := checkPrefix(t, after); got != want {
				t.Errorf("%d records, %d bytes torn: %d are left", keep, torn, got)
			}
			if err := after.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// A flipped bit anywhere before the last record is found when the store is opened,
// and the error says where. The second store has a journal of the newer format.
func TestDamagedJournal(t *testing.T) {
	dir, s, sizes := numbered(t)
	defer s.Close()
	t.Run("first", func(t *testing.T) { damagedJournal(t, dir, 0, sizes[damageRecords-2]) })

	cp := copyStore(t, dir)
	again, err := durable.Open(cp, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	for i := range 20 {
		commit(t, again, fmt.Sprintf("/n/%04d", i), strings.Repeat("x", 5_000))
	}
	info, err := os.Stat(theFile(t, cp, "*.log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Run("later", func(t *testing.T) { damagedJournal(t, cp, 0, info.Size()-2*5_100) })
}

func damagedJournal(t *testing.T, dir string, first, last int64) {
	for at := first; at < last; at += 1009 {
		cp := copyStore(t, dir)
		log := theFile(t, cp, "*.log")
		flip(t, log, at)
		after, err := durable.Open(cp, quiet)
		if err == nil {
			t.Errorf("byte %d flipped: opened with %d records", at, len(records(t, after)))
			after.Close()
			continue
		}
		if !errors.Is(err, durable.ErrDamaged) || !strings.Contains(err.Error(), cp) || !strings.Contains(err.Error(), "backup") {
			t.Errorf("byte %d flipped: %v", at, err)
		}
		if at == first {
			t.Logf("the error reads: %v", err)
		}
	}
}

// A flipped bit in a table is found by the reader, with its place, and the store
// takes no more writes. No record is ever read wrong.
func TestDamagedTable(t *testing.T) {
	dir, s, _ := numbered(t)
	if err := s.Close(); err != nil { // flushes the journal into a table
		t.Fatal(err)
	}
	info, err := os.Stat(theFile(t, dir, "*.sst"))
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	const places = 16
	for i := range int64(places) {
		cp := copyStore(t, dir)
		table := theFile(t, cp, "*.sst")
		flip(t, table, info.Size()*i/places)
		after, err := durable.Open(cp, quiet)
		if err != nil {
			found++
			if !errors.Is(err, durable.ErrDamaged) {
				t.Errorf("place %d: %v", i, err)
			}
			continue
		}
		n := 0
		err = after.Scan(t.Context(), "/n/", "", func(key string, rec []byte) error {
			n++
			if _, _, err := durable.Unseal(key, 1, rec); err != nil {
				t.Errorf("place %d: a damaged block was read: %v", i, err)
			}
			return nil
		})
		switch {
		case err == nil && n != damageRecords:
			t.Errorf("place %d: %d records and no error", i, n)
		case err != nil:
			found++
			if !errors.Is(err, durable.ErrDamaged) {
				t.Errorf("place %d: %v", i, err)
			}
			failed := after.Commit(t.Context(), put("/n/new", "x"))
			if !errors.Is(failed, durable.ErrFailed) || !errors.Is(failed, durable.ErrDamaged) || !strings.Contains(failed.Error(), filepath.Base(table)) {
				t.Errorf("place %d: commit after %v: %v", i, err, failed)
			}
			if i == 1 {
				t.Logf("the scan says: %v", err)
				t.Logf("the commit says: %v", failed)
			}
		}
		if err := after.Close(); err != nil {
			t.Errorf("place %d: close: %v", i, err)
		}
	}
	if found < places/2 {
		t.Errorf("damage was found at %d of %d places", found, places)
	}
}

// The manifest lists the tables; to drop its end would drop tables whose journals
// are gone.
func TestDamagedManifest(t *testing.T) {
	const flushes = 6
	dir := filepath.Join(t.TempDir(), "store")
	s, err := durable.Open(dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range flushes {
		key := fmt.Sprintf("/n/%04d", i)
		commit(t, s, key, string(durable.Seal(nil, key, 1, nil)))
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	name := filepath.Base(theFile(t, dir, "MANIFEST-*"))
	info, err := os.Stat(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	for at := int64(0); at < info.Size(); at += 7 {
		cp := copyStore(t, dir)
		flip(t, filepath.Join(cp, name), at)
		after, err := durable.Open(cp, quiet)
		if err != nil {
			continue
		}
		if n := checkPrefix(t, after); n != flushes {
			t.Errorf("byte %d of %d flipped: %d records are left", at, info.Size(), n)
		}
		if err := after.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestOpenRefusesNewerSchema(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	for _, tc := range []struct {
		name string
		rec  []byte
		want error
	}{
		{"newer", durable.Seal(nil, durable.SchemaKey, durable.Schema+1, nil), durable.ErrNewerSchema},
		{"damaged", []byte{durable.Schema, 0, 0, 0, 0}, durable.ErrDamaged},
		{"ours", durable.Seal(nil, durable.SchemaKey, durable.Schema, nil), nil},
	} {
		s, err := durable.Open(dir, quiet)
		if err != nil {
			t.Fatal(err)
		}
		commit(t, s, durable.SchemaKey, string(tc.rec))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s, err = durable.Open(dir, quiet)
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", tc.name, err)
		}
		if err == nil {
			s.Close()
			continue
		}
		if !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v lacks the folder", tc.name, err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

// Two processes on one store would each undo what the other wrote.
func TestOpenRefusesSecondOwner(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s, err := durable.Open(dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if second, err := durable.Open(dir, quiet); err == nil {
		second.Close()
		t.Error("opened twice")
	}
}
