package bridge

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/paystream/compat/ilp"
)

// scheme is where our addresses lie: Interledger's space for networks of their own,
// none of whose addresses mean anything elsewhere.
const scheme = "private.tally"

// MaxName bounds a client's name, which is a segment of its address.
const MaxName = 32

// Kinds of address under a node's, each one segment.
const (
	KindClient = "c"
	KindStream = "s"
	KindPSK2   = "p"
)

// ErrName: not the name of a client.
var ErrName = fmt.Errorf("bridge: name of a client: want 1 to %d of a-z, 0-9, _ and -", MaxName)

// networkOf returns the address of a network. A name that cannot stand in an address
// is there by its hash.
func networkOf(name string) ilp.Address {
	base := ilp.Address(scheme)
	if a, err := base.Join(name); err == nil {
		return a
	}
	sum := sha256.Sum256([]byte(name))
	return base + ilp.Address(".~"+hex.EncodeToString(sum[:8]))
}

// CheckName returns ErrName where name is no client's.
func CheckName(name string) error {
	if name == "" || len(name) > MaxName {
		return ErrName
	}
	for i := range len(name) {
		if c := name[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			return ErrName
		}
	}
	return nil
}

// AddressOf returns the address of a node: private.tally.<network>.<peer id>.
func AddressOf(network string, node peer.ID) (ilp.Address, error) {
	return networkOf(network).Join(node.String())
}

// split takes an address of a network apart: the node's peer id, and what follows
// the node's address.
func split(to ilp.Address, network string) (node peer.ID, rest string, ok bool) {
	rest, ok = to.Under(networkOf(network))
	if !ok {
		return "", "", false
	}
	id, rest, _ := strings.Cut(rest, ".")
	node, err := peer.Decode(id)
	// One node has one address: no other way to write its id leads to it.
	if err != nil || node.String() != id {
		return "", "", false
	}
	return node, rest, true
}

// Party is who sends or gets a packet at this node: a client by its name, or the
// bearers of a token together.
type Party struct {
	Client string
	Token  TokenID
}

// kindOf returns the kind of what follows a node's address, and its next segment.
func kindOf(rest string) (kind, segment string) {
	kind, rest, _ = strings.Cut(rest, ".")
	segment, _, _ = strings.Cut(rest, ".")
	return kind, segment
}
