package wallet

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/ipfs/go-cid"
)

// Chain is what a key belongs to.
type Chain struct {
	// Network is the chain's name, for people.
	Network string
	// Genesis is the cid of its first block, which decides.
	Genesis cid.Cid
}

func (c Chain) String() string {
	if !c.Genesis.Defined() {
		return "no chain"
	}
	return fmt.Sprintf("%s (%s)", c.Network, c.Genesis)
}

// genesis is the cid as it is written, empty where there is none.
func (c Chain) genesis() string {
	if !c.Genesis.Defined() {
		return ""
	}
	return c.Genesis.String()
}

// Secret is a private key as text: what `lotus wallet export` prints and `lotus
// wallet import` takes, with the chain it belongs to beside it, which Lotus
// passes over. It is printed redacted by every verb; Reveal is the explicit way
// to show it.
type Secret struct{ text string }

// maxSecret bounds the text of a key. Lotus writes 160 characters, the chain
// adds less than as many again.
const maxSecret = 2048

// NewSecret wraps the text of an exported key; Import reads it.
func NewSecret(text string) Secret { return Secret{strings.TrimSpace(text)} }

// Reveal returns the text.
func (s Secret) Reveal() string { return s.text }

const redacted = "<private key>"

// String hides the key.
func (s Secret) String() string { return redacted }

// Format hides the key from every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue hides the key from structured logs.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText hides the key from JSON and its like.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// keyInfo is what the text is the hex of, in JSON. Type and PrivateKey are
// Lotus', the others ours.
type keyInfo struct {
	Type       string
	PrivateKey []byte
	Network    string `json:",omitempty"`
	Genesis    string `json:",omitempty"`
}

// lotusType is Lotus' name of a secp256k1 key.
const lotusType = "secp256k1"

func seal(k *key, c Chain) (Secret, error) {
	data, err := json.Marshal(keyInfo{Type: lotusType, PrivateKey: k.priv.Bytes(), Network: c.Network, Genesis: c.genesis()})
	if err != nil {
		return Secret{}, fmt.Errorf("paych/wallet: export: %w", err)
	}
	return Secret{hex.EncodeToString(data)}, nil
}

// open reads the text. Errors do not quote it: a slip of a character must not
// put a key into a log.
func (s Secret) open() (keyInfo, error) {
	if len(s.text) > maxSecret {
		return keyInfo{}, fmt.Errorf("paych/wallet: import: %d characters, at most %d", len(s.text), maxSecret)
	}
	data, err := hex.DecodeString(s.text)
	if err != nil {
		return keyInfo{}, fmt.Errorf("paych/wallet: import: not hex")
	}
	var info keyInfo
	if json.Unmarshal(data, &info) != nil {
		return keyInfo{}, fmt.Errorf("paych/wallet: import: not an exported key")
	}
	if info.Type != lotusType {
		return keyInfo{}, fmt.Errorf("paych/wallet: import: the key is not %s", lotusType)
	}
	return info, nil
}
