package durable

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"unsafe"
)

// SealOverhead is what Seal adds to a payload: the version byte and the
// checksum.
const SealOverhead = 1 + 4

var (
	// ErrDamaged is returned where a record does not match its checksum: it was
	// altered on disk or copied from another key. The text names the key. The
	// caller must not go on with a default in its place. Open returns it for a
	// damaged journal and names the place there.
	ErrDamaged = errors.New("durable: damaged on disk")

	// ErrNewerSchema is returned for a record or a store that a newer program
	// wrote. The text names both versions.
	ErrNewerSchema = errors.New("durable: newer schema")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Seal appends the record of payload at key to dst:
//
//	version (1) | payload | CRC32C over key, version, payload (4, big endian)
//
// The key is under the checksum, so a record that ends up at another key is
// seen by Unseal.
func Seal(dst []byte, key string, version byte, payload []byte) []byte {
	start := len(dst)
	dst = append(dst, version)
	dst = append(dst, payload...)
	return binary.BigEndian.AppendUint32(dst, checksum(key, dst[start:]))
}

// Unseal returns version and payload of the record found at key. The payload
// points into rec. maxVersion is the newest version the caller can read.
// The error wraps ErrDamaged or ErrNewerSchema; the checksum comes first, so
// that damage is never taken for a newer version.
func Unseal(key string, maxVersion byte, rec []byte) (version byte, payload []byte, err error) {
	if len(rec) < SealOverhead {
		return 0, nil, fmt.Errorf("%w at %q: %d bytes, want at least %d", ErrDamaged, key, len(rec), SealOverhead)
	}
	body, tail := rec[:len(rec)-4], rec[len(rec)-4:]
	if got, want := checksum(key, body), binary.BigEndian.Uint32(tail); got != want {
		return 0, nil, fmt.Errorf("%w at %q: checksum %08x, record says %08x; restore it from a backup", ErrDamaged, key, got, want)
	}
	if body[0] > maxVersion {
		return 0, nil, fmt.Errorf("%w: record %q has version %d, this program reads up to %d; run the newer program", ErrNewerSchema, key, body[0], maxVersion)
	}
	return body[0], body[1:], nil
}

// checksum is CRC32C over key and body. The key is read in place: a copy would
// be the one allocation of the commit path, because crc32 lets its argument
// escape.
func checksum(key string, body []byte) uint32 {
	sum := crc32.Update(0, castagnoli, unsafe.Slice(unsafe.StringData(key), len(key)))
	return crc32.Update(sum, castagnoli, body)
}
