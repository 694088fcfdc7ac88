// Package spsp reads and writes payment pointers and the document that one
// resolves to (application/spsp4+json), which is how a payer learns an address
// and a secret, and whether the other side pushes, asks or pays out.
//
//	$host             →  https://host/.well-known/pay
//	$host/path        →  https://host/path
//
//	{"destination": "…", "shared_secret": "base64, 32 bytes",
//	 "balance": {"current": "0", "minimum": "…", "maximum": "…"}}
//
//	no balance                 the client decides what to send (push)
//	maximum > current          the server asks for the rest (invoice)
//	minimum < current          the server pays out down to it (voucher)
//
// The figures are the server's, in its units; a limit left out is none.
package spsp

import (
	"errors"
	"net/netip"
	"strings"
)

// maxPointer bounds a payment pointer, in bytes: a host of 253 and a path.
const maxPointer = 1024

// ErrPointer: not a payment pointer.
var ErrPointer = errors.New("spsp: not a payment pointer: want $host or $host/path, without port, user, query and fragment")

// Pointer is a payment pointer, in its plain form: the host in lower case, no
// slash at the end.
type Pointer struct {
	Host string
	Path string // empty, or from the slash on
}

// ParsePointer reads "$host" or "$host/path".
func ParsePointer(s string) (Pointer, error) {
	rest, ok := strings.CutPrefix(s, "$")
	if !ok || len(s) > maxPointer {
		return Pointer{}, ErrPointer
	}
	host, path, _ := strings.Cut(rest, "/")
	p := Pointer{Host: strings.ToLower(host)}
	if !isHost(p.Host) {
		return Pointer{}, ErrPointer
	}
	if path = strings.TrimSuffix(path, "/"); path != "" {
		p.Path = "/" + path
	}
	for segment := range strings.SplitSeq(path, "/") {
		if !isSegment(segment) || segment == "" && path != "" {
			return Pointer{}, ErrPointer
		}
	}
	return p, nil
}

// String returns the pointer.
func (p Pointer) String() string { return "$" + p.Host + p.Path }

// URL returns where the pointer's document is.
func (p Pointer) URL() string {
	if p.Path == "" {
		return "https://" + p.Host + "/.well-known/pay"
	}
	return "https://" + p.Host + p.Path
}

// isHost reports whether s is a name of the DNS. An address is none, so that a
// pointer cannot name a machine of the resolver's own network by number.
func isHost(s string) bool {
	if len(s) == 0 || len(s) > 253 {
		return false
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return false
	}
	numeric := false
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		numeric = true
		for i := range len(label) {
			switch c := label[i]; {
			case '0' <= c && c <= '9':
			case 'a' <= c && c <= 'z', c == '-':
				numeric = false
			default:
				return false
			}
		}
	}
	return !numeric // the last label: 127.1 is an address to some resolvers
}

// isSegment reports whether s may stand in a path as it is: unreserved and
// sub-delimiters of RFC 3986, ":" and "@", and whole percent codes. A segment of
// dots only would climb.
func isSegment(s string) bool {
	if s == "." || s == ".." {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte("-._~!$&'()*+,;=:@", c) >= 0:
		case c == '%' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2]):
			if code := strings.ToLower(s[i+1 : i+3]); code == "2e" || code == "2f" || code == "5c" || code < "20" {
				return false // a dot, slash, backslash or control character in disguise
			}
			i += 2
		default:
			return false
		}
	}
	return true
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}
