package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Perm is what a token allows. There is no order among them: a token names
// each one that it grants, as in Lotus.
type Perm string

// The permissions of methods.
const (
	PermRead  Perm = "read"  // look
	PermWrite Perm = "write" // change state that costs at most credit
	PermSign  Perm = "sign"  // make the peer sign a payment
	PermAdmin Perm = "admin" // change who is served, or stop the peer
)

// AllPerms is what the token file of a repo grants.
var AllPerms = []Perm{PermRead, PermWrite, PermSign, PermAdmin}

// Secret is text that must not be seen: a token or a key. It prints redacted
// everywhere; Reveal is the one way to its content.
type Secret struct{ text string }

// NewSecret wraps text.
func NewSecret(text string) Secret { return Secret{text} }

// Reveal returns the text itself.
func (s Secret) Reveal() string { return s.text }

// Empty reports whether there is nothing to hide.
func (s Secret) Empty() bool { return s.text == "" }

const redacted = "[redacted]"

// String redacts.
func (s Secret) String() string { return redacted }

// GoString redacts.
func (s Secret) GoString() string { return redacted }

// Format redacts under every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue redacts.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText redacts, in JSON and TOML alike.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// minSecretBytes is the size of an HMAC-SHA256 key that is as hard to guess as
// the tag (RFC 2104 §3).
const minSecretBytes = 32

var errWeakSecret = fmt.Errorf("rpc: the token key has fewer than %d bytes", minSecretBytes)

// claims is the payload of a token. The key is that of Lotus.
type claims struct {
	Allow []Perm `json:"Allow"`
	jwt.RegisteredClaims
}

// IssueToken signs a bearer token that grants perms, with no end.
func IssueToken(key Secret, now time.Time, perms ...Perm) (Secret, error) {
	if len(key.text) < minSecretBytes {
		return Secret{}, errWeakSecret
	}
	for _, p := range perms {
		if !slices.Contains(AllPerms, p) {
			return Secret{}, fmt.Errorf("rpc: no permission %q", p)
		}
	}
	c := claims{Allow: perms, RegisteredClaims: jwt.RegisteredClaims{IssuedAt: jwt.NewNumericDate(now)}}
	text, err := jwt.NewWithClaims(jwt.SigningMethodHS256, c).SignedString([]byte(key.text))
	if err != nil {
		return Secret{}, fmt.Errorf("rpc: sign token: %w", err)
	}
	return Secret{text}, nil
}

// VerifyToken returns what a token grants. Only HS256 is taken, whatever the
// token says of itself ("none" is a known attack), and the tag is compared in
// constant time.
func VerifyToken(key Secret, token string) ([]Perm, error) {
	if len(key.text) < minSecretBytes {
		return nil, errWeakSecret
	}
	var c claims
	_, err := jwt.ParseWithClaims(token, &c,
		func(*jwt.Token) (any, error) { return []byte(key.text), nil },
		jwt.WithValidMethods([]string{jwt.SigningMethodHS256.Alg()}),
		jwt.WithStrictDecoding(),
	)
	if err != nil {
		return nil, errors.New("rpc: the token is not ours") // the cause would help only a forger
	}
	return c.Allow, nil
}

type permKey struct{}

func withPerms(ctx context.Context, perms []Perm) context.Context {
	return context.WithValue(ctx, permKey{}, perms)
}

// allowed reports whether the caller's token grants p. A context without a
// token grants nothing.
func allowed(ctx context.Context, p Perm) bool {
	perms, _ := ctx.Value(permKey{}).([]Perm)
	return slices.Contains(perms, p)
}
