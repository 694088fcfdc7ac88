package actor

import (
	"errors"
	"fmt"
	"slices"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
)

// State is a payment channel on the chain. From and To are the addresses that
// the chain stores. A nil big.Int counts as 0.
type State struct {
	From, To address.Address
	// ToSend is what Collect will pay To, in attoFIL.
	// Invariant: 0 ≤ ToSend ≤ the channel's balance.
	ToSend big.Int
	// SettlingAt is the epoch from which Collect works; 0 while not settling.
	SettlingAt abi.ChainEpoch
	// MinSettleHeight is the least SettlingAt that vouchers have asked for.
	MinSettleHeight abi.ChainEpoch
	// Lanes in rising order of Lane.
	Lanes []Lane
}

// Lane is one lane that a voucher was submitted on. After a merge the lanes'
// Redeemed add up to more than ToSend, because a merged lane keeps its own.
type Lane struct {
	Lane     uint64
	Redeemed big.Int
	Nonce    uint64
}

// Lane returns lane id; false if no voucher was ever submitted on it.
func (st *State) Lane(id uint64) (Lane, bool) {
	i, ok := st.find(id)
	if !ok {
		return Lane{}, false
	}
	return st.Lanes[i], true
}

// Clone returns a copy that shares nothing with st.
func (st *State) Clone() *State {
	c := *st
	c.ToSend = value(st.ToSend)
	c.Lanes = slices.Clone(st.Lanes)
	for i := range c.Lanes {
		c.Lanes[i].Redeemed = value(c.Lanes[i].Redeemed)
	}
	return &c
}

// Check returns the first invariant that st breaks, given the channel's balance.
func (st *State) Check(balance big.Int) error {
	switch {
	case st.From == address.Undef || st.To == address.Undef:
		return errors.New("paych/actor: a party has no address")
	case st.ToSend.LessThan(big.Zero()):
		return fmt.Errorf("paych/actor: ToSend %v is negative", st.ToSend)
	case st.ToSend.GreaterThan(balance):
		return fmt.Errorf("paych/actor: ToSend %v above balance %v", st.ToSend, balance)
	case st.SettlingAt != 0 && st.SettlingAt < st.MinSettleHeight:
		return fmt.Errorf("paych/actor: SettlingAt %d below MinSettleHeight %d", st.SettlingAt, st.MinSettleHeight)
	case st.MinSettleHeight < 0:
		return fmt.Errorf("paych/actor: MinSettleHeight %d is negative", st.MinSettleHeight)
	}
	for i, l := range st.Lanes {
		switch {
		case l.Lane > MaxLane:
			return fmt.Errorf("paych/actor: lane %d above %d", l.Lane, MaxLane)
		case i > 0 && l.Lane <= st.Lanes[i-1].Lane:
			return fmt.Errorf("paych/actor: lane %d after lane %d", l.Lane, st.Lanes[i-1].Lane)
		case l.Redeemed.LessThan(big.Zero()):
			return fmt.Errorf("paych/actor: lane %d redeemed %v", l.Lane, l.Redeemed)
		}
	}
	return nil
}

// find returns where lane id is, or where it belongs.
func (st *State) find(id uint64) (int, bool) {
	return slices.BinarySearchFunc(st.Lanes, id, func(l Lane, id uint64) int {
		switch {
		case l.Lane < id:
			return -1
		case l.Lane > id:
			return 1
		}
		return 0
	})
}

// value returns a copy of i that is never nil.
func value(i big.Int) big.Int { return big.Add(i, big.Zero()) }
