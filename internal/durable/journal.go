package durable

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/wal"
)

// Pebble ends the replay of its last journal, and of its manifest, at the first
// chunk that does not match its checksum, takes what follows for a tail that was
// never synced, and deletes it. A bit that flips in the middle would so take
// every later record with it, acknowledged or not, without a word. (Chunks that
// carry the synced offset, FormatWALSyncChunks, were made against this, but a
// new store's first journal has none, the scan for them begins at the next block
// of 32 KiB, and the offset does not count full blocks.)
//
// checkLogs tells the two apart before Pebble opens the store, by what it knows
// of the writer: one record is written at a time, and the next one only after
// its sync. So the record under way at a power loss is the last one, and
// whatever does not match before the begin of another record was synced once and
// is damaged. Damage within the last record cannot be told from a tear.

const (
	// logBlockBytes is the block of Pebble's log files; no chunk crosses its end.
	logBlockBytes = 32 << 10

	// Chunk headers: checksum (4), length (2), encoding (1); a journal adds the
	// number of its file (4), because files are used again; newer ones add the
	// synced offset (8).
	plainHeaderBytes = 7
	reuseHeaderBytes = 11
	syncHeaderBytes  = 19
)

// checkLogs returns ErrDamaged with the place where the last journal or the
// manifest of the store in dir is damaged before its last record.
func checkLogs(fsys vfs.FS, dir string) error {
	names, err := fsys.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a new store
	}
	if err != nil {
		return err
	}
	var journal, manifest string
	var number uint32
	for _, name := range names {
		// Older journals were closed; Pebble is strict with their ends.
		if num, _, ok := wal.ParseLogFilename(name); ok && (journal == "" || uint32(num) > number) {
			journal, number = name, uint32(num)
		}
		// The current manifest is the newest; numbers have at least 6 digits.
		if strings.HasPrefix(name, "MANIFEST-") && (len(name) > len(manifest) || len(name) == len(manifest) && name > manifest) {
			manifest = name
		}
	}
	if journal != "" {
		err = checkLog(fsys, filepath.Join(dir, journal), &logWalk{journal: true, number: number, bad: -1})
	}
	if manifest != "" && err == nil {
		err = checkLog(fsys, filepath.Join(dir, manifest), &logWalk{bad: -1})
	}
	return err
}

func checkLog(fsys vfs.FS, name string, w *logWalk) (err error) {
	f, err := fsys.Open(name, vfs.SequentialReadsOption)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf := make([]byte, logBlockBytes)
	for base := int64(0); ; base += logBlockBytes {
		n, err := io.ReadFull(f, buf)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("read %s: %w", name, err)
		}
		if next := w.block(buf[:n], base); next >= 0 {
			return fmt.Errorf("%w: %s at byte %d, before the record at byte %d", ErrDamaged, name, w.bad, next)
		}
		if err != nil {
			return nil
		}
	}
}

// logWalk goes through one log file.
type logWalk struct {
	journal bool
	number  uint32 // of the journal
	bad     int64  // where the first chunk that does not match begins; -1: none
}

// block goes through one block that begins at byte base of the file. It returns
// the place of a record that begins after a bad place, or -1.
func (w *logWalk) block(b []byte, base int64) int64 {
	for i := 0; i < len(b); {
		size, start, valid := w.chunk(b[i:])
		switch {
		case valid && start && w.bad >= 0:
			return base + int64(i)
		case valid:
			i += size
			continue
		case len(b)-i < syncHeaderBytes && zero(b[i:]):
			return -1 // the padding at the end of a block
		case w.bad < 0:
			w.bad = base + int64(i)
		}
		// Look for the next chunk. Where the length seems sound, go by it: the
		// payload comes from callers, and its bytes may look like a chunk.
		if size > 0 {
			rest := b[i+size:]
			if _, _, valid := w.chunk(rest); valid || zero(rest[:min(len(rest), plainHeaderBytes)]) {
				i += size
				continue
			}
		}
		i++
	}
	return -1
}

// chunk reads the chunk at the begin of b. size is 0 where it cannot be one;
// start says that a record begins with it; valid, that its checksum matches.
func (w *logWalk) chunk(b []byte) (size int, start, valid bool) {
	if len(b) < plainHeaderBytes {
		return 0, false, false
	}
	// Encodings are full, first, middle, last, in this order for each of the
	// three headers.
	encoding := b[6]
	header := 0
	switch {
	case encoding >= 1 && encoding <= 4 && !w.journal:
		header = plainHeaderBytes
	case encoding >= 5 && encoding <= 8 && w.journal:
		header = reuseHeaderBytes
	case encoding >= 9 && encoding <= 12 && w.journal:
		header = syncHeaderBytes
	default:
		return 0, false, false
	}
	size = header + int(binary.LittleEndian.Uint16(b[4:]))
	if size > len(b) || w.journal && binary.LittleEndian.Uint32(b[7:]) != w.number {
		return 0, false, false
	}
	start = encoding%4 == 1 || encoding%4 == 2
	return size, start, binary.LittleEndian.Uint32(b) == logChecksum(b[6:size])
}

// logChecksum is CRC32C, turned as LevelDB and Pebble do so that data that holds
// its own checksum does not match by chance.
func logChecksum(b []byte) uint32 {
	sum := checksum("", b)
	return (sum>>15 | sum<<17) + 0xa282ead8
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
