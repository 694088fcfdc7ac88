package paych

import (
	"context"
	"fmt"

	"github.com/filecoin-project/go-address"

	"github.com/tallystick/tally/paych/adaptor"
)

// PointWallet is a wallet that can sign under a point. One that cannot, such as a
// remote node's, gives no point locks.
type PointWallet interface {
	// SignUnder signs the BLAKE2b-256 digest of msg with the key of a, encrypted
	// under y, and returns the public key of a.
	SignUnder(ctx context.Context, a address.Address, msg []byte, y adaptor.Point) (adaptor.Signature, adaptor.Point, error)
}

// SignPointLock gives the point lock of t. It is called once for a nonce of a slot:
// the result is saved before it leaves, and what is sent again is the same bytes.
func SignPointLock(ctx context.Context, w PointWallet, t *PointTerms) (*PointLock, error) {
	sv, err := t.Voucher()
	if err != nil {
		return nil, err
	}
	msg, err := SigningBytes(sv)
	if err != nil {
		return nil, err
	}
	sig, payer, err := w.SignUnder(ctx, t.From, msg, t.Point)
	if err != nil {
		return nil, fmt.Errorf("paych: sign point lock with %s: %w", t.From, err)
	}
	l := &PointLock{Voucher: *sv, Payer: payer, Point: t.Point, Adaptor: sig}
	// What does not verify would cost a nonce at the payee and look like an attack.
	if err := l.Check(t); err != nil {
		return nil, fmt.Errorf("paych: wallet signed a point lock for %s: %w", t.From, err)
	}
	return l, nil
}
