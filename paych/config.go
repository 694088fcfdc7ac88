package paych

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/filecoin-project/go-state-types/abi"
)

// Config is what may be decided about a manager. The zero value is the default.
type Config struct {
	// SubmitMargin is how many epochs a message may take to be mined; default 20,
	// at most an eighth of the chain's SettleDelay.
	SubmitMargin abi.ChainEpoch
	// MaxSettleExtension bounds what a voucher's MinSettleHeight may add to the
	// chain's SettleDelay, in epochs; default SettleDelay.
	MaxSettleExtension abi.ChainEpoch
	// SlotLanes is the number of lock slots of an owned channel; default 64.
	SlotLanes uint64
	// NoAutoCollect leaves settled channels to PaychCollect.
	NoAutoCollect bool
	// WatchEvery is how often a quiet channel is looked at, in epochs; default a
	// 64th of SettleDelay, at least 1. A channel that settles or holds time locks
	// is looked at in each epoch.
	WatchEvery abi.ChainEpoch
	// CallTimeout bounds one call to the chain; default 1 min. Waiting for a
	// receipt is not bounded.
	CallTimeout time.Duration
	// Logger; default slog.Default().
	Logger *slog.Logger
	// Notify is told what happens without a call, one thing after the other. It may
	// call the manager. Close waits for it.
	Notify func(Notice)
}

// Validate fills in the defaults for a chain and reports what cannot be.
func (c *Config) Validate(p Params) error {
	if p.SettleDelay <= 0 || p.Finality < 0 {
		return fmt.Errorf("paych: chain with a settle delay of %d and a finality of %d", p.SettleDelay, p.Finality)
	}
	if c.SubmitMargin < 0 || c.MaxSettleExtension < 0 || c.WatchEvery < 0 || c.CallTimeout < 0 {
		return errors.New("paych: a duration of the config is below 0")
	}
	if c.SubmitMargin == 0 {
		c.SubmitMargin = min(20, p.SettleDelay/8)
	}
	if c.SubmitMargin >= p.SettleDelay {
		return fmt.Errorf("paych: a submit margin of %d epochs leaves nothing of a settle delay of %d", c.SubmitMargin, p.SettleDelay)
	}
	if c.MaxSettleExtension == 0 {
		c.MaxSettleExtension = p.SettleDelay
	}
	if c.SlotLanes == 0 {
		c.SlotLanes = 64
	}
	if c.WatchEvery == 0 {
		c.WatchEvery = max(1, p.SettleDelay/64)
	}
	if c.CallTimeout == 0 {
		c.CallTimeout = time.Minute
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Notify == nil {
		c.Notify = func(Notice) {}
	}
	return nil
}
