package paystream

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// ErrReceipt: a receipt that its payee has not signed.
var ErrReceipt = errors.New("paystream: receipt is not signed by the payee")

// Receipt is a payee's statement that it had received Total on a socket at Time,
// which anybody can check who has it: no secret is needed. Nonce is the payer's,
// so that a receipt answers one question. A later receipt of a socket includes
// all earlier ones.
type Receipt struct {
	Payee     peer.ID
	Socket    SocketID
	Nonce     [16]byte
	Total     tally.Amount
	Time      int64 // Unix seconds
	Signature []byte
}

// receiptDomain keeps a receipt's bytes apart from everything else that an
// identity key signs.
const receiptDomain = "tally paystream receipt 1\x00"

// Message returns the bytes that are signed.
func (r *Receipt) Message() []byte {
	b := make([]byte, 0, len(receiptDomain)+2+len(r.Payee)+16+16+8+8)
	b = append(b, receiptDomain...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(r.Payee)))
	b = append(b, r.Payee...)
	b = append(b, r.Socket[:]...)
	b = append(b, r.Nonce[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(r.Total))
	return binary.BigEndian.AppendUint64(b, uint64(r.Time))
}

// Verify checks the signature with the key that the payee's peer id contains.
func (r *Receipt) Verify() error {
	key, err := r.Payee.ExtractPublicKey()
	if err != nil {
		return fmt.Errorf("%w: peer id %s holds no key: %w", ErrReceipt, r.Payee, err)
	}
	return r.VerifyWith(key)
}

// VerifyWith checks the signature with the payee's key, for peer ids that are
// only a hash of theirs.
func (r *Receipt) VerifyWith(key crypto.PubKey) error {
	if !r.Payee.MatchesPublicKey(key) {
		return ErrReceipt
	}
	ok, err := key.Verify(r.Message(), r.Signature)
	if err != nil || !ok {
		return ErrReceipt
	}
	return nil
}

// Receipt asks the payee for its signed statement of what it has received. The
// peer id that signs is that of the socket's other end.
func (c *Conn) Receipt(ctx context.Context) (Receipt, error) {
	nonce := c.e.entropy.id()
	r := &Receipt{}
	c.mu.Lock()
	if len(c.wanted) >= maxProposals {
		c.mu.Unlock()
		return Receipt{}, ErrBusy
	}
	c.wanted[nonce] = r
	c.tellAt, c.told = 0, 0
	c.mu.Unlock()
	c.kick()
	err := c.wait(ctx, func() bool { return r.Signature != nil })
	c.mu.Lock()
	delete(c.wanted, nonce)
	c.mu.Unlock()
	if err != nil {
		return Receipt{}, err
	}
	return *r, r.Verify()
}

// sign answers requests for receipts.
func (c *Conn) sign(p *Packet) {
	for _, nonce := range c.requests {
		if c.e.cfg.Sign == nil {
			break
		}
		r := Receipt{Payee: c.e.cfg.Self, Socket: c.ident.id, Nonce: nonce, Total: c.sock.received, Time: time.Now().Unix()}
		sig, err := c.e.cfg.Sign(r.Message())
		if err != nil || len(sig) > maxSignature {
			break
		}
		p.Receipts = append(p.Receipts, ReceiptFrame{Nonce: nonce, Total: r.Total, Time: uint64(r.Time), Signature: sig})
	}
	c.requests = c.requests[:0]
}
