package btp

import (
	"crypto/sha256"
	"errors"
	"log/slog"
)

// ErrAuth: the first frame is no authentication: a message with the entries auth
// and auth_token, each once.
var ErrAuth = errors.New("btp: first frame does not authenticate: want a message with auth and auth_token")

// Auth is what a client says first.
type Auth struct {
	RequestID uint32
	Username  string // may be empty
	Token     Token
}

// Token is what a client proves itself with. It prints redacted.
type Token string

// String hides the token.
func (Token) String() string { return "<token>" }

// GoString hides the token from %#v.
func (t Token) GoString() string { return t.String() }

// LogValue hides the token from structured logs.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// TokenHash is what a server keeps of a token: its SHA-256. Tokens are drawn, not
// chosen, so that a hash without salt or cost gives none away.
type TokenHash [sha256.Size]byte

// Hash returns what a server keeps of the token.
func (t Token) Hash() TokenHash { return sha256.Sum256([]byte(t)) }

// Frame returns the frame that says it.
func (a Auth) Frame() *Frame {
	return &Frame{Type: TypeMessage, RequestID: a.RequestID, Entries: []Entry{
		{Name: "auth", ContentType: Octets},
		{Name: "auth_username", ContentType: Text, Data: []byte(a.Username)},
		{Name: "auth_token", ContentType: Text, Data: []byte(a.Token)},
	}}
}

// AuthOf reads the first frame of a client, in which auth comes first.
func AuthOf(f *Frame) (Auth, error) {
	a := Auth{RequestID: f.RequestID}
	if f.Type != TypeMessage || len(f.Entries) == 0 || f.Entries[0].Name != "auth" {
		return a, ErrAuth
	}
	tokens, names := 0, 0
	for _, e := range f.Entries[1:] {
		switch e.Name {
		case "auth":
			return a, ErrAuth
		case "auth_token":
			a.Token = Token(e.Data)
			tokens++
		case "auth_username":
			a.Username = string(e.Data)
			names++
		}
	}
	if tokens != 1 || names > 1 {
		return a, ErrAuth
	}
	return a, nil
}
