package actor

import (
	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
)

// State is a payment channel on the chain. From and To are the addresses that
// the chain stores.
type State struct {
	From, To address.Address
	// ToSend is what Collect will pay To, in attoFIL.
	ToSend big.Int
	// SettlingAt is the epoch from which Collect works; 0 while not settling.
	SettlingAt abi.ChainEpoch
	// MinSettleHeight is the least SettlingAt that vouchers have asked for.
	MinSettleHeight abi.ChainEpoch
	// Lanes in rising order of Lane.
	Lanes []Lane
}

// Lane is one lane that a voucher was submitted on.
type Lane struct {
	Lane     uint64
	Redeemed big.Int
	Nonce    uint64
}
