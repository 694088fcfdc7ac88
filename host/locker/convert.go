package locker

import (
	"errors"
	"fmt"

	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host/settler"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/adaptor"
	"github.com/tallystick/tally/paystream/lock"
)

// ErrVoucher: bytes that are no voucher of a slot.
var ErrVoucher = errors.New("locker: not a voucher of a slot")

// decode reads a voucher of the neighbour. All of it is remote input; its signature
// is checked by who knows whose it has to be.
func decode(raw []byte) (*paych.SignedVoucher, lock.Voucher, error) {
	sv, err := paych.DecodeVoucher(raw)
	if err != nil {
		return nil, lock.Voucher{}, fmt.Errorf("%w: %w", ErrVoucher, err)
	}
	v, err := fromVoucher(sv)
	v.Raw = string(raw)
	return sv, v, err
}

// decodePoint reads a lock under a point, and what it is as a voucher of a slot. All of it
// is remote input; whether it can be completed, its Check says.
func decodePoint(raw []byte) (*paych.PointLock, lock.Voucher, error) {
	p, err := paych.DecodePointLock(raw)
	if err != nil {
		return nil, lock.Voucher{}, fmt.Errorf("%w: %w", ErrVoucher, err)
	}
	v, err := fromVoucher(&p.Voucher)
	if err != nil {
		return nil, v, err
	}
	if v.Locked {
		return nil, v, fmt.Errorf("%w: under a point and a hash", ErrVoucher)
	}
	v.Raw = string(raw)
	v.Point, v.Hash, err = lock.PointOf(p.Point)
	return p, v, err
}

// pointOf is the point of a lock.
func pointOf(first byte, x tally.Hashlock) (y adaptor.Point) {
	y[0] = first
	copy(y[1:], x[:])
	return y
}

// opensPoint implements lock.Terms.OpensPoint.
func opensPoint(y [33]byte, secret tally.Preimage) bool {
	s := adaptor.Secret(secret)
	return s.Opens(y)
}

// pointTerms are those of a slot's lock under a point. What the slot has paid before and
// what the lock adds, the core has compared: their sum is what is signed.
func pointTerms(v *lock.Voucher) paych.PointTerms {
	return paych.PointTerms{
		Lane: v.Lane, Nonce: v.Nonce, Base: big.Zero(), Amount: atto(v.Amount), Until: abi.ChainEpoch(v.Expires), Point: pointOf(v.Point, v.Hash),
	}
}

// fromVoucher gives a voucher in units. A part of a unit is nobody's payment.
func fromVoucher(sv *paych.SignedVoucher) (lock.Voucher, error) {
	v := lock.Voucher{
		Lane: sv.Lane, Nonce: sv.Nonce, From: int64(sv.TimeLockMin), Expires: int64(sv.TimeLockMax), MinSettle: int64(sv.MinSettleHeight),
	}
	switch {
	case sv.Extra != nil || len(sv.Merges) != 0:
		return v, fmt.Errorf("%w: it has a call or merges lanes", ErrVoucher)
	case len(sv.SecretHash) != 0 && len(sv.SecretHash) != tally.HashlockSize:
		return v, fmt.Errorf("%w: a hash of %d bytes", ErrVoucher, len(sv.SecretHash))
	}
	var err error
	if v.Amount, err = units(sv.Amount); err != nil {
		return v, err
	}
	if len(sv.SecretHash) != 0 {
		v.Locked, v.Hash = true, tally.Hashlock(sv.SecretHash)
	}
	return v, nil
}

// maxUnitBits bounds an amount before it is divided.
const maxUnitBits = 128

func units(atto big.Int) (tally.Amount, error) {
	if atto.Int == nil || atto.Sign() < 0 || atto.BitLen() > maxUnitBits {
		return 0, fmt.Errorf("%w: amount out of range", ErrVoucher)
	}
	per := big.NewInt(settler.AttoPerUnit)
	n := big.Div(atto, per)
	if !big.Mul(n, per).Equals(atto) || !n.IsUint64() {
		return 0, fmt.Errorf("%w: %v attoFIL are no whole units", ErrVoucher, atto)
	}
	return tally.Amount(n.Uint64()), nil
}

// atto is exact.
func atto(n tally.Amount) big.Int {
	return big.Mul(big.NewIntUnsigned(uint64(n)), big.NewInt(settler.AttoPerUnit))
}

// spec is what paych has to sign.
func spec(v *lock.Voucher) paych.VoucherSpec {
	s := paych.VoucherSpec{
		Lane: v.Lane, Nonce: v.Nonce, Amount: atto(v.Amount),
		TimeLockMax: abi.ChainEpoch(v.Expires), MinSettleHeight: abi.ChainEpoch(v.MinSettle),
		Beside: true, Again: true,
	}
	if v.Locked {
		hash := v.Hash
		s.Lock = &hash
	}
	return s
}

// viewOf is the chain's view in units. A lane of the tab may have parts of a unit,
// and is none of ours.
func viewOf(at *paych.ViewAt, slots uint64) lock.View {
	v := lock.View{Height: int64(at.Height), SettlingAt: int64(at.SettlingAt), MinSettle: int64(at.MinSettle), Gone: at.Gone}
	for _, l := range at.Lanes {
		if l.Lane < 1 || l.Lane > slots+1 {
			continue
		}
		n := big.Div(l.Redeemed, big.NewInt(settler.AttoPerUnit))
		redeemed := ^tally.Amount(0)
		if n.IsUint64() {
			redeemed = tally.Amount(n.Uint64())
		}
		v.Lanes = append(v.Lanes, lock.LaneView{Lane: l.Lane, Nonce: l.Nonce, Redeemed: redeemed})
	}
	return v
}
