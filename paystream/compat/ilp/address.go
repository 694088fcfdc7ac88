package ilp

import (
	"errors"
	"fmt"
	"strings"
)

// MaxAddress is the longest address, in bytes (RFC 0015).
const MaxAddress = 1023

// ErrAddress: not an ILP address. It has an allocation scheme and at least one
// segment more, of letters, digits, "_", "~" and "-", with dots between them.
var ErrAddress = errors.New("ilp: not an address: want scheme.segment…, of letters, digits, _ ~ -, at most 1023 bytes")

// Address names an account of Interledger, for example test.tally.alice. Only
// ParseAddress and Join make valid ones.
type Address string

// schemes are the allocation schemes of RFC 0015.
var schemes = [...]string{"g", "private", "example", "peer", "self", "local", "test", "test1", "test2", "test3"}

// ParseAddress returns s as an address, or ErrAddress.
func ParseAddress(s string) (Address, error) {
	a := Address(s)
	if err := a.Validate(); err != nil {
		return "", err
	}
	return a, nil
}

// Validate returns ErrAddress where a is none.
func (a Address) Validate() error {
	if len(a) > MaxAddress {
		return ErrAddress
	}
	scheme, rest, ok := strings.Cut(string(a), ".")
	if !ok || !isScheme(scheme) {
		return ErrAddress
	}
	empty := true // whether the segment has no character yet
	for i := range len(rest) {
		switch c := rest[i]; {
		case c == '.':
			if empty {
				return ErrAddress
			}
			empty = true
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '~', c == '-':
			empty = false
		default:
			return ErrAddress
		}
	}
	if empty {
		return ErrAddress
	}
	return nil
}

// Join returns a with one more segment, or ErrAddress where the result is none.
func (a Address) Join(segment string) (Address, error) {
	if strings.Contains(segment, ".") {
		return "", fmt.Errorf("%w: a dot in segment %q", ErrAddress, segment)
	}
	return ParseAddress(string(a) + "." + segment)
}

// Under returns what follows base in a, without its dot, and whether a lies
// under base. An address lies under itself, with nothing left.
func (a Address) Under(base Address) (string, bool) {
	rest, ok := strings.CutPrefix(string(a), string(base))
	switch {
	case !ok:
		return "", false
	case rest == "":
		return "", true
	}
	return strings.CutPrefix(rest, ".")
}

func isScheme(s string) bool {
	for _, scheme := range schemes {
		if s == scheme {
			return true
		}
	}
	return false
}
