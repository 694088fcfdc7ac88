package paystream

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// Bounds of a URI.
const (
	// MaxURI bounds the whole: peer id, token, secret, and some parameters.
	MaxURI      = 1024
	maxParams   = 16
	uriScheme   = "tally:"
	secretChars = 43 // 32 bytes in base64 without padding
)

// URI is what one hands to somebody who shall open a socket: where, with which
// token and which secret. Kind and Amount are for people to read; what the bearer
// may do is sealed in the token.
//
//	tally:<peer id>/<token>?kind=gift&amount=1000#<secret>
//
// The secret is in the fragment, which no HTTP client sends to a server.
type URI struct {
	Peer   peer.ID
	Token  Token
	Secret Secret
	Use    Use          // 0: not said
	Amount tally.Amount // 0: not said
}

var uriEncoding = base64.RawURLEncoding.Strict()

// Reveal returns the URI with its secret: whoever reads it can spend it.
func (u URI) Reveal() string { return u.text(uriEncoding.EncodeToString(u.Secret[:])) }

// String returns the URI without its secret.
func (u URI) String() string { return u.text("redacted") }

// GoString hides the secret from %#v.
func (u URI) GoString() string { return u.String() }

func (u URI) text(fragment string) string {
	var b strings.Builder
	b.WriteString(uriScheme)
	b.WriteString(u.Peer.String())
	b.WriteByte('/')
	b.WriteString(uriEncoding.EncodeToString(u.Token[:]))
	sep := byte('?')
	if u.Use != 0 {
		b.WriteByte(sep)
		b.WriteString("kind=")
		b.WriteString(u.Use.String())
		sep = '&'
	}
	if u.Amount != 0 {
		b.WriteByte(sep)
		b.WriteString("amount=")
		b.WriteString(strconv.FormatUint(uint64(u.Amount), 10))
	}
	b.WriteByte('#')
	b.WriteString(fragment)
	return b.String()
}

// ParseURI reads a URI. Parameters that it does not know are ignored; a second one
// of those it knows is refused. Errors never quote the text: it holds a secret.
func ParseURI(s string) (URI, error) {
	if len(s) > MaxURI {
		return URI{}, fmt.Errorf("%w: longer than %d", ErrURI, MaxURI)
	}
	rest, ok := strings.CutPrefix(s, uriScheme)
	if !ok {
		return URI{}, fmt.Errorf("%w: want the scheme tally", ErrURI)
	}
	rest, fragment, ok := strings.Cut(rest, "#")
	if !ok || len(fragment) != secretChars {
		return URI{}, fmt.Errorf("%w: the secret behind # is missing or cut off", ErrURI)
	}
	var u URI
	if n, err := uriEncoding.Decode(u.Secret[:], []byte(fragment)); err != nil || n != len(u.Secret) {
		return URI{}, fmt.Errorf("%w: damaged secret", ErrURI)
	}
	path, query, hasQuery := strings.Cut(rest, "?")
	id, token, ok := strings.Cut(path, "/")
	if !ok || len(token) != uriEncoding.EncodedLen(TokenSize) {
		return URI{}, fmt.Errorf("%w: want tally:<peer id>/<token>", ErrURI)
	}
	if n, err := uriEncoding.Decode(u.Token[:], []byte(token)); err != nil || n != TokenSize {
		return URI{}, fmt.Errorf("%w: damaged token", ErrURI)
	}
	var err error
	if u.Peer, err = peer.Decode(id); err != nil || len(u.Peer) > maxPeerID {
		return URI{}, fmt.Errorf("%w: damaged peer id", ErrURI)
	}
	if !hasQuery {
		return u, nil
	}
	params := strings.Split(query, "&")
	if len(params) > maxParams {
		return URI{}, fmt.Errorf("%w: more than %d parameters", ErrURI, maxParams)
	}
	var kind, amount bool
	for _, p := range params {
		key, value, _ := strings.Cut(p, "=")
		switch key {
		case "kind":
			if kind {
				return URI{}, fmt.Errorf("%w: kind twice", ErrURI)
			}
			kind = true
			if u.Use, err = ParseUse(value); err != nil {
				return URI{}, err
			}
		case "amount":
			n, err := strconv.ParseUint(value, 10, 63)
			if amount || err != nil || strconv.FormatUint(n, 10) != value {
				return URI{}, fmt.Errorf("%w: amount", ErrURI)
			}
			amount, u.Amount = true, tally.Amount(n)
		}
	}
	return u, nil
}
