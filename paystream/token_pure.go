package paystream

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/crypto/blake2b"
)

// Errors of tokens and their URIs.
var (
	// ErrToken: not a token of this server. One answer for a forged, a damaged
	// and a foreign one.
	ErrToken = errors.New("paystream: not a token of this server")
	// ErrTokenExpired: the token's time is over; ask whoever gave it for a new one.
	ErrTokenExpired = errors.New("paystream: token expired; ask for a new one")
	// ErrURI: not a tally: URI.
	ErrURI = errors.New("paystream: not a tally: URI")
)

// Use is what a token is for. It is shown to people, and decides nothing: the
// limits do.
type Use uint8

// The uses of the table in docs/protocol/paystream.md.
const (
	UsePush Use = iota + 1
	UseInvoice
	UseVoucher
	UseGift
	UseJob
	UseAccount
	UseMandate
	UsePrepaid
)

var useNames = [...]string{"", "push", "invoice", "voucher", "gift", "job", "account", "mandate", "prepaid"}

// String is the use's name in URIs.
func (u Use) String() string {
	if int(u) >= len(useNames) || u == 0 {
		return "?"
	}
	return useNames[u]
}

// ParseUse reads a use's name.
func ParseUse(s string) (Use, error) {
	for i, name := range useNames {
		if i > 0 && name == s {
			return Use(i), nil
		}
	}
	return 0, fmt.Errorf("%w: unknown kind", ErrURI)
}

// Grant is what a token gives its bearer, sealed so that only the server can read
// or make it: limits of the server's balance with all bearers together.
type Grant struct {
	Use      Use
	Min, Max Limit
	// Refunds and SingleUse as in Terms; a single-use token binds to the first
	// socket that moves money.
	Refunds, SingleUse bool
	// Expires is when the token ends, in Unix seconds; 0: never, for accounts.
	Expires int64
	// Period starts the limits of a mandate anew, in seconds; 0: never.
	Period uint32
}

// Validate reports a grant that no server gives.
func (g Grant) Validate() error {
	if g.Use < UsePush || g.Use > UsePrepaid || g.Expires < 0 {
		return ErrToken
	}
	return Terms{Min: g.Min, Max: g.Max, Refunds: g.Refunds}.Validate()
}

const (
	grantSize = 1 + 1 + 2*9 + 8 + 4
	// TokenSize is the length of a token: 32 random bytes in clear, the sealed
	// grant, and its tag.
	TokenSize = 32 + grantSize + tagSize
)

// Token is what a server hands out so that it has to remember nothing: it names
// the secret and the grant. It is no secret itself; without the socket's secret it
// opens nothing.
type Token [TokenSize]byte

// TokenID names what all sockets of one token share.
type TokenID [16]byte

// String returns the id in hex.
func (id TokenID) String() string { return hex.EncodeToString(id[:]) }

// ID returns the token's id.
func (t *Token) ID() TokenID {
	sum := blake2b.Sum256(t[:])
	return TokenID(sum[:16])
}

// ServerKey makes and reads the tokens of one server, and the secrets of their
// sockets.
type ServerKey [32]byte

// String hides the key.
func (k ServerKey) String() string { return "<server key>" }

// GoString hides the key from %#v.
func (k ServerKey) GoString() string { return k.String() }

// LogValue hides the key from structured logs.
func (k ServerKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

// derive returns HKDF-SHA256(server key, label ‖ data).
func (k *ServerKey) derive(label string, data []byte) ([]byte, error) {
	return hkdf.Key(sha256.New, k[:], nil, label+string(data), 32)
}

// Secret returns the secret of a token's sockets.
func (k *ServerKey) Secret(t *Token) (Secret, error) {
	raw, err := k.derive("psk", t[:])
	if err != nil {
		return Secret{}, err
	}
	return Secret(raw), nil
}

func (k *ServerKey) sealer(random []byte) (cipher.AEAD, error) {
	raw, err := k.derive("seal", random)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(raw)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// zeroNonce is for keys that encrypt one message in their life: each token has
// random bytes of its own in its key.
var zeroNonce [12]byte

// Issue makes a token with 32 random bytes, which nobody has used.
func (k *ServerKey) Issue(random [32]byte, g Grant) (Token, error) {
	if err := g.Validate(); err != nil {
		return Token{}, err
	}
	aead, err := k.sealer(random[:])
	if err != nil {
		return Token{}, err
	}
	plain := make([]byte, 0, grantSize)
	var flags byte
	if g.Refunds {
		flags |= 1
	}
	if g.SingleUse {
		flags |= 2
	}
	plain = append(plain, byte(g.Use), flags)
	plain = appendLimit(appendLimit(plain, g.Min), g.Max)
	plain = binary.BigEndian.AppendUint64(plain, uint64(g.Expires))
	plain = binary.BigEndian.AppendUint32(plain, g.Period)
	var t Token
	copy(t[:], random[:])
	aead.Seal(t[:32], zeroNonce[:], plain, random[:])
	return t, nil
}

// Grant reads a token.
func (k *ServerKey) Grant(t *Token, now time.Time) (Grant, error) {
	aead, err := k.sealer(t[:32])
	if err != nil {
		return Grant{}, err
	}
	plain, err := aead.Open(nil, zeroNonce[:], t[32:], t[:32])
	if err != nil {
		return Grant{}, ErrToken
	}
	g := Grant{Use: Use(plain[0]), Refunds: plain[1]&1 != 0, SingleUse: plain[1]&2 != 0}
	if g.Min, err = parseLimit(plain[2:11]); err != nil {
		return Grant{}, ErrToken
	}
	if g.Max, err = parseLimit(plain[11:20]); err != nil {
		return Grant{}, ErrToken
	}
	g.Expires = int64(binary.BigEndian.Uint64(plain[20:]))
	g.Period = binary.BigEndian.Uint32(plain[28:])
	if err := g.Validate(); err != nil {
		return Grant{}, ErrToken
	}
	if g.Expires != 0 && now.Unix() >= g.Expires {
		return Grant{}, ErrTokenExpired
	}
	return g, nil
}
