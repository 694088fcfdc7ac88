package durable

import (
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// MaxKeyBytes bounds a key: long enough for two peer ids, a channel address and
// a few words, and short enough for the index columns of SQL engines.
const MaxKeyBytes = 1024

// ErrKey is returned by Commit for a batch that holds an illegal key. Nothing
// of the batch was written and the store goes on.
var ErrKey = errors.New("durable: illegal key")

// CheckKey reports whether key is legal. A key is a rooted path that
// path.Clean leaves as it is, because that is what the datastores of go-datastore
// make of a key, silently: it begins with '/', it does not end with '/', and no
// segment is empty, "." or "..". Other bytes are kept as they are. Raw binary
// can hold a '/' or be a lone '.', so write ids with [KeyID] and numbers with
// [KeyUint]; ASCII letters, digits, '-' and '_' are safe on every engine.
func CheckKey(key string) error {
	if len(key) < 2 || key[0] != '/' || len(key) > MaxKeyBytes {
		return fmt.Errorf("%w: %q", ErrKey, key)
	}
	for rest, more := key[1:], true; more; {
		var seg string
		seg, rest, more = strings.Cut(rest, "/")
		if seg == "" || seg == "." || seg == ".." {
			return fmt.Errorf("%w: %q", ErrKey, key)
		}
	}
	return nil
}

// keyEncoding is base32 with the extended hex alphabet in lower case and no
// padding: its digits are in ASCII order, so encoded ids sort as the raw ones.
var keyEncoding = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)

// KeyID writes raw bytes as a key segment. The order is kept: KeyID(a) < KeyID(b)
// exactly where a sorts before b.
func KeyID(raw []byte) string { return keyEncoding.EncodeToString(raw) }

// ParseKeyID reads what KeyID wrote, and nothing else.
func ParseKeyID(s string) ([]byte, error) {
	raw, err := keyEncoding.DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("%w: segment %q: %w", ErrKey, s, err)
	}
	// The decoder skips line ends and ignores spare bits; a second spelling of
	// one id would be a second record of it.
	if keyEncoding.EncodeToString(raw) != s {
		return nil, fmt.Errorf("%w: segment %q is not canonical", ErrKey, s)
	}
	return raw, nil
}

// KeyUint writes n as a key segment of 13 characters; the order is kept.
func KeyUint(n uint64) string {
	var raw [8]byte
	binary.BigEndian.PutUint64(raw[:], n)
	return KeyID(raw[:])
}

// ParseKeyUint reads what KeyUint wrote.
func ParseKeyUint(s string) (uint64, error) {
	raw, err := ParseKeyID(s)
	if err != nil {
		return 0, err
	}
	if len(raw) != 8 {
		return 0, fmt.Errorf("%w: segment %q is no number", ErrKey, s)
	}
	return binary.BigEndian.Uint64(raw), nil
}
