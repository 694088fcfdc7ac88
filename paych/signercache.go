package paych

import (
	"sync"

	"github.com/filecoin-project/go-address"
	"golang.org/x/crypto/blake2b"
)

// signerCacheSize bounds the cache, about 20 KiB: a row for each first byte of a name.
const signerCacheSize = 256

// signerCache remembers who signed what, as recovered lately. A voucher that comes in
// is looked at by more than one: who it comes to, who keeps it, who asks later; each
// recovery costs as much as two signatures. A name is the digest of message and
// signature together, so that nothing but the same bytes finds it.
type signerCache struct {
	mu   sync.Mutex
	rows [signerCacheSize]signerRow
}

type signerRow struct {
	name   [blake2b.Size256]byte
	signer address.Address
}

// signers is the cache of this process. What is in it does not depend on who put it
// there.
var signers signerCache

// signerName is the name of a signature, of SignatureSize bytes, over a digest.
func signerName(digest [blake2b.Size256]byte, sig []byte) [blake2b.Size256]byte {
	var b [blake2b.Size256 + SignatureSize]byte
	copy(b[copy(b[:], digest[:]):], sig)
	return blake2b.Sum256(b[:])
}

func (c *signerCache) get(name [blake2b.Size256]byte) (address.Address, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &c.rows[name[0]]
	return r.signer, r.name == name && r.signer != address.Undef
}

func (c *signerCache) put(name [blake2b.Size256]byte, signer address.Address) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rows[name[0]] = signerRow{name, signer}
}
