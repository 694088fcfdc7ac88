package paych

import (
	"slices"
	"time"

	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
)

// Cover is what the payee would have of a lane if it submitted its best vouchers
// now: what is redeemed, and what the best voucher adds to it where the channel
// can pay that beside the best of all other lanes. Like a voucher's amount it is
// the lane's total, in attoFIL.
type Cover struct {
	// Deep is on the state of the chain at its finality, Head on the newest.
	Deep, Head big.Int
	// Redeemed is the part of Head that is on the chain already.
	Redeemed big.Int
	// DeepHeight and HeadHeight are the epochs of these states.
	DeepHeight, HeadHeight abi.ChainEpoch
	// HeadAge is how long ago the chain last told of a head. Where that is many
	// epochs the chain is out of reach, and nothing here is news.
	HeadAge time.Duration
}

// coverage is the cover of all lanes together at one view.
type coverage struct{ sum big.Int }

// covers reports whether the view can pay what all lanes still bring.
func (s *coverage) covers(v *View) bool {
	return !v.over() && big.Add(v.ToSend, s.sum).LessThanEqual(v.Balance)
}

// over reports whether a message that is sent at the view comes too late for a
// voucher.
func (v *View) over() bool { return v.SettlingAt != 0 && v.Height+1 >= v.SettlingAt }

// firm is how much more than v has the lane's best voucher brings. One that the
// chain refuses again and again brings nothing.
func (l *Lane) firm(v *LaneView, at abi.ChainEpoch) big.Int {
	if b := l.best(v, at); b != nil && b.refused < maxRefused {
		return big.Sub(b.Amount, v.Redeemed)
	}
	return big.Zero()
}

// cover is the Cover of a lane.
func (c *Channel) cover(id uint64) Cover {
	l := c.peek(id)
	cov := Cover{
		Deep: l.Deep.Redeemed, Head: l.Head.Redeemed, Redeemed: l.Head.Redeemed,
		DeepHeight: c.Deep.Height, HeadHeight: c.Head.Height,
	}
	if c.Phase == PhaseCollected {
		if f := c.Final; f != nil {
			cov.Head, cov.Redeemed, cov.HeadHeight = f.lane(id), f.lane(id), f.Height
		}
		if c.Buried {
			cov.Deep, cov.DeepHeight = cov.Head, cov.HeadHeight
			return cov
		}
	} else if c.firmHead.covers(&c.Head) {
		cov.Head = big.Add(cov.Head, l.firmHead)
	}
	if c.firmDeep.covers(&c.Deep) {
		cov.Deep = big.Add(cov.Deep, l.firmDeep)
	}
	return cov
}

// covered is the cover of all lanes.
func (c *Channel) covered() Cover {
	cov := Cover{Deep: c.Deep.ToSend, Head: c.Head.ToSend, Redeemed: c.Head.ToSend, DeepHeight: c.Deep.Height, HeadHeight: c.Head.Height}
	if c.firmHead.covers(&c.Head) {
		cov.Head = big.Add(cov.Head, c.firmHead.sum)
	}
	if c.firmDeep.covers(&c.Deep) {
		cov.Deep = big.Add(cov.Deep, c.firmDeep.sum)
	}
	return cov
}

// below reports whether either state pays less than that of other.
func (v *Cover) below(other *Cover) bool {
	return v.Head.LessThan(other.Head) || v.Deep.LessThan(other.Deep)
}

// LaneFinal is what a lane had redeemed when its channel was collected. Amounts
// are attoFIL.
type LaneFinal struct {
	Lane     uint64
	Redeemed big.Int
	// Nonce of the last voucher that the chain took; 0 where an older version saved
	// the result.
	Nonce uint64
}

func (f *Final) clone() Final {
	cp := *f
	cp.Lanes = slices.Clone(f.Lanes)
	return cp
}

// lane returns what a lane had redeemed.
func (f *Final) lane(id uint64) big.Int {
	for i := range f.Lanes {
		if f.Lanes[i].Lane == id {
			return f.Lanes[i].Redeemed
		}
	}
	return big.Zero()
}
