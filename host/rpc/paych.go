package rpc

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paych"
)

const (
	// maxChainWaits bounds the calls that wait for the chain, a receipt or the
	// top-up before theirs: with those that wait for events they leave room in
	// maxCalls for the calls that work.
	maxChainWaits = 20
	// tagPrefix begins every tag that came over the RPC, so that no caller takes
	// one that a part of the peer made its own channel with.
	tagPrefix = "rpc/"
	// maxTagBytes bounds a tag.
	maxTagBytes = 128
	// maxWalletRows bounds the balances that one call asks the chain for.
	maxWalletRows = 256
)

// channels is the part of the peer that these methods work on.
func (a *api) channels() (*Channels, error) { return a.node.Channels() }

// waitPlace takes a place among the calls that wait for the chain.
func (a *api) waitPlace() (release func(), err error) {
	select {
	case a.chainWaits <- struct{}{}:
		return func() { <-a.chainWaits }, nil
	default:
		return nil, NewError(CodeBusy, "%d calls wait for the chain", cap(a.chainWaits))
	}
}

// send runs a call that sends a message, in such a place: it waits for the node,
// and one that brings funds for the top-up before it.
func (a *api) send(fn func() (cid.Cid, error)) (cid.Cid, error) {
	release, err := a.waitPlace()
	if err != nil {
		return cid.Undef, err
	}
	defer release()
	return fn()
}

// onChannels is call for a method that works on the payment channels.
func onChannels[T any](ctx context.Context, a *api, method string, fn func(context.Context, *Channels) (T, error)) (T, error) {
	return call(ctx, a, method, func(ctx context.Context) (T, error) {
		c, err := a.channels()
		if err != nil {
			var zero T
			return zero, err
		}
		return fn(ctx, c)
	})
}

// onChannel is onChannels for one channel.
func onChannel[T any](ctx context.Context, a *api, method, channel string, fn func(context.Context, *Channels, address.Address) (T, error)) (T, error) {
	return onChannels(ctx, a, method, func(ctx context.Context, c *Channels) (T, error) {
		ch, err := parseAddress(channel)
		if err != nil {
			var zero T
			return zero, err
		}
		return fn(ctx, c, ch)
	})
}

// maxAddressChars is above that of every kind of address.
const maxAddressChars = 128

func parseAddress(s string) (address.Address, error) {
	if s == "" || len(s) > maxAddressChars {
		return address.Undef, badAddress(s)
	}
	a, err := address.NewFromString(s)
	if err != nil || a == address.Undef {
		return address.Undef, badAddress(s)
	}
	return a, nil
}

func badAddress(s string) error {
	return NewError(CodeBadArgument, "%q is not an address of the chain", clip(s)).
		WithRemedy("use an address such as f1… for an account, or f2… for a channel")
}

func parseCid(s string) (cid.Cid, error) {
	if len(s) <= maxAddressChars {
		if c, err := cid.Decode(s); err == nil && c.Defined() {
			return c, nil
		}
	}
	return cid.Undef, NewError(CodeBadArgument, "%q is not the cid of a message", clip(s)).WithRemedy("use a cid that `tally channel pending` prints, such as bafy2bza…")
}

// parseHex32 reads what is 32 bytes in hex; nothing is nothing.
func parseHex32(what, s string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	if len(s) != 2*tally.HashlockSize {
		// The text itself may be a secret with a slip in it.
		return nil, NewError(CodeBadArgument, "the %s has %d characters: want 32 bytes in hex, which are 64", what, len(s))
	}
	b, err := hex.DecodeString(s)
	if err != nil {
		return nil, NewError(CodeBadArgument, "the %s is not hex", what)
	}
	return b, nil
}

// row shows one channel.
func (c *Channels) row(ctx context.Context, ch address.Address) (ChannelRow, error) {
	info, err := c.Manager.PaychInfo(ctx, ch)
	if err != nil {
		return ChannelRow{}, err
	}
	now, err := c.Chain.Head(ctx)
	if err != nil {
		return ChannelRow{}, fmt.Errorf("head of the chain: %w", err)
	}
	return channelRow(info, now, c.Chain.Params().Epoch, time.Now()), nil
}

// sent shows the message that a call made. Where the call failed although its
// message is made, the error names it.
func (c *Channels) sent(ctx context.Context, id cid.Cid, err error) (MessageRow, error) {
	if err != nil {
		return MessageRow{}, sentError(id, err)
	}
	m, err := c.Manager.PaychStatusByMsg(ctx, id)
	if err != nil {
		return MessageRow{}, err
	}
	return messageRow(m, time.Now()), nil
}

func (a *api) PaychCreate(ctx context.Context, from, to, amount, tag string) (MessageRow, error) {
	return onChannels(ctx, a, "PaychCreate", func(ctx context.Context, c *Channels) (MessageRow, error) {
		spec, err := createSpec(from, to, amount)
		if err != nil {
			return MessageRow{}, err
		}
		if len(tag) > maxTagBytes {
			return MessageRow{}, NewError(CodeBadArgument, "the tag has %d bytes, over %d", len(tag), maxTagBytes)
		}
		if tag != "" {
			spec.Tag = tagPrefix + tag
		}
		id, err := a.send(func() (cid.Cid, error) { return c.Manager.PaychCreateSpec(ctx, spec) })
		return c.sent(ctx, id, err)
	})
}

func createSpec(from, to, amount string) (spec paych.CreateSpec, err error) {
	if spec.From, err = parseAddress(from); err != nil {
		return spec, err
	}
	if spec.To, err = parseAddress(to); err != nil {
		return spec, err
	}
	spec.Amount, err = parseAtto(amount)
	return spec, err
}

func (a *api) PaychAddFunds(ctx context.Context, channel, amount string) (MessageRow, error) {
	return onChannel(ctx, a, "PaychAddFunds", channel, func(ctx context.Context, c *Channels, ch address.Address) (MessageRow, error) {
		amt, err := parseAtto(amount)
		if err != nil {
			return MessageRow{}, err
		}
		id, err := a.send(func() (cid.Cid, error) { return c.Manager.PaychAddFunds(ctx, ch, amt) })
		return c.sent(ctx, id, err)
	})
}

func (a *api) PaychReserveFunds(ctx context.Context, channel, amount string) (Reservation, error) {
	return onChannel(ctx, a, "PaychReserveFunds", channel, func(ctx context.Context, c *Channels, ch address.Address) (Reservation, error) {
		amt, err := parseAtto(amount)
		if err != nil {
			return Reservation{}, err
		}
		if err := c.disowned(ctx, ch); err != nil {
			return Reservation{}, err
		}
		id, err := a.send(func() (cid.Cid, error) { return c.Manager.PaychReserveFunds(ctx, ch, amt) })
		r := Reservation{Channel: ch.String(), Amount: digits(amt)}
		if err == nil && !id.Defined() {
			return r, nil
		}
		m, err := c.sent(ctx, id, err)
		if err != nil {
			return Reservation{}, err
		}
		r.Message = &m
		return r, nil
	})
}

// disowned refuses a channel whose reservations are another part's: to change
// them from outside would take from under it what it counts on.
func (c *Channels) disowned(ctx context.Context, ch address.Address) error {
	info, err := c.Manager.PaychInfo(ctx, ch)
	if err == nil && info.Owned {
		err = fmt.Errorf("%w: the funds of %s, by %q", paych.ErrOwned, ch, info.Tag)
	}
	return err
}

func (a *api) PaychReleaseFunds(ctx context.Context, channel, amount string) (ChannelRow, error) {
	return onChannel(ctx, a, "PaychReleaseFunds", channel, func(ctx context.Context, c *Channels, ch address.Address) (ChannelRow, error) {
		amt, err := parseAtto(amount)
		if err != nil {
			return ChannelRow{}, err
		}
		if err := c.disowned(ctx, ch); err != nil {
			return ChannelRow{}, err
		}
		if err := c.Manager.PaychReleaseFunds(ctx, ch, amt); err != nil {
			return ChannelRow{}, err
		}
		return c.row(ctx, ch)
	})
}

func (a *api) PaychStatus(ctx context.Context, channel string) (ChannelRow, error) {
	return onChannel(ctx, a, "PaychStatus", channel, func(ctx context.Context, c *Channels, ch address.Address) (ChannelRow, error) {
		return c.row(ctx, ch)
	})
}

func (a *api) PaychInfo(ctx context.Context) ([]ChannelRow, error) {
	return onChannels(ctx, a, "PaychInfo", func(ctx context.Context, c *Channels) ([]ChannelRow, error) {
		all, err := c.Manager.PaychInfos(ctx)
		if err != nil {
			return nil, err
		}
		now, err := c.Chain.Head(ctx)
		if err != nil {
			return nil, fmt.Errorf("head of the chain: %w", err)
		}
		rows := make([]ChannelRow, len(all))
		for i := range all {
			rows[i] = channelRow(&all[i], now, c.Chain.Params().Epoch, time.Now())
		}
		return rows, nil
	})
}

func (a *api) PaychLookup(ctx context.Context, from, to string) (ChannelRow, error) {
	return onChannels(ctx, a, "PaychLookup", func(ctx context.Context, c *Channels) (ChannelRow, error) {
		f, err := parseAddress(from)
		if err != nil {
			return ChannelRow{}, err
		}
		t, err := parseAddress(to)
		if err != nil {
			return ChannelRow{}, err
		}
		ch, err := c.Manager.PaychLookup(ctx, f, t)
		if err != nil {
			return ChannelRow{}, err
		}
		return c.row(ctx, ch)
	})
}

func (a *api) PaychList(ctx context.Context) ([]string, error) {
	return onChannels(ctx, a, "PaychList", func(ctx context.Context, c *Channels) ([]string, error) {
		all, err := c.Manager.PaychList(ctx)
		texts := make([]string, len(all))
		for i, ch := range all {
			texts[i] = ch.String()
		}
		return texts, err
	})
}

func (a *api) PaychSettle(ctx context.Context, channel string) (MessageRow, error) {
	return onChannel(ctx, a, "PaychSettle", channel, func(ctx context.Context, c *Channels, ch address.Address) (MessageRow, error) {
		id, err := a.send(func() (cid.Cid, error) { return c.Manager.PaychSettle(ctx, ch) })
		return c.sent(ctx, id, err)
	})
}

func (a *api) PaychCollect(ctx context.Context, channel string) (MessageRow, error) {
	return onChannel(ctx, a, "PaychCollect", channel, func(ctx context.Context, c *Channels, ch address.Address) (MessageRow, error) {
		id, err := a.send(func() (cid.Cid, error) { return c.Manager.PaychCollect(ctx, ch) })
		return c.sent(ctx, id, err)
	})
}

func (a *api) PaychAllocateLane(ctx context.Context, channel string) (Lane, error) {
	return onChannel(ctx, a, "PaychAllocateLane", channel, func(ctx context.Context, c *Channels, ch address.Address) (Lane, error) {
		lane, err := c.Manager.PaychAllocateLane(ctx, ch)
		return Lane{Channel: ch.String(), Lane: lane}, err
	})
}

// onVoucher is onChannel for one voucher, given as its text.
func onVoucher[T any](ctx context.Context, a *api, method, channel, text, secret string, fn func(context.Context, *Channels, address.Address, *paych.SignedVoucher, []byte) (T, error)) (T, error) {
	return onChannel(ctx, a, method, channel, func(ctx context.Context, c *Channels, ch address.Address) (T, error) {
		var zero T
		sv, err := paych.ParseVoucher(text)
		if err != nil {
			return zero, err
		}
		s, err := parseHex32("secret", secret)
		if err != nil {
			return zero, err
		}
		return fn(ctx, c, ch, sv, s)
	})
}

func (a *api) PaychVoucherCheckValid(ctx context.Context, channel, voucher string) (VoucherInfo, error) {
	return onVoucher(ctx, a, "PaychVoucherCheckValid", channel, voucher, "", func(ctx context.Context, c *Channels, ch address.Address, sv *paych.SignedVoucher, _ []byte) (VoucherInfo, error) {
		if err := c.Manager.PaychVoucherCheckValid(ctx, ch, sv); err != nil {
			return VoucherInfo{}, err
		}
		return voucherInfo(sv)
	})
}

func (a *api) PaychVoucherCheckSpendable(ctx context.Context, channel, voucher, secret string) (Spendable, error) {
	return onVoucher(ctx, a, "PaychVoucherCheckSpendable", channel, voucher, secret, func(ctx context.Context, c *Channels, ch address.Address, sv *paych.SignedVoucher, s []byte) (Spendable, error) {
		ok, err := c.Manager.PaychVoucherCheckSpendable(ctx, ch, sv, s, nil)
		return Spendable{ok}, err
	})
}

func (a *api) PaychVoucherCreate(ctx context.Context, channel, amount string, lane uint64) (VoucherResult, error) {
	return onChannel(ctx, a, "PaychVoucherCreate", channel, func(ctx context.Context, c *Channels, ch address.Address) (VoucherResult, error) {
		return c.createVoucher(ctx, ch, VoucherSpec{Amount: amount, Lane: lane})
	})
}

func (a *api) PaychVoucherCreateSpec(ctx context.Context, channel string, spec VoucherSpec) (VoucherResult, error) {
	return onChannel(ctx, a, "PaychVoucherCreateSpec", channel, func(ctx context.Context, c *Channels, ch address.Address) (VoucherResult, error) {
		return c.createVoucher(ctx, ch, spec)
	})
}

func (c *Channels) createVoucher(ctx context.Context, ch address.Address, s VoucherSpec) (VoucherResult, error) {
	spec := paych.VoucherSpec{
		Lane: s.Lane, TimeLockMin: abi.ChainEpoch(s.TimeLockMin), TimeLockMax: abi.ChainEpoch(s.TimeLockMax),
		MinSettleHeight: abi.ChainEpoch(s.MinSettleHeight),
	}
	if s.TimeLockMin < 0 || s.TimeLockMax < 0 || s.MinSettleHeight < 0 {
		return VoucherResult{}, NewError(CodeBadArgument, "an epoch below 0")
	}
	var err error
	if spec.Amount, err = parseAtto(s.Amount); err != nil {
		return VoucherResult{}, err
	}
	hash, err := parseHex32("secret_hash", s.SecretHash)
	if err != nil {
		return VoucherResult{}, err
	}
	if hash != nil {
		lock := tally.Hashlock(hash)
		spec.Lock = &lock
	}
	r, err := c.Manager.PaychVoucherCreateSpec(ctx, ch, spec)
	if err != nil {
		return VoucherResult{}, err
	}
	out := VoucherResult{Shortfall: digits(r.Shortfall)}
	if r.Voucher != nil {
		info, err := voucherInfo(r.Voucher)
		if err != nil {
			return VoucherResult{}, err
		}
		out.Voucher = &info
	}
	return out, nil
}

func (a *api) PaychVoucherAdd(ctx context.Context, channel, voucher, secret, minDelta string) (VoucherAdded, error) {
	return onVoucher(ctx, a, "PaychVoucherAdd", channel, voucher, secret, func(ctx context.Context, c *Channels, ch address.Address, sv *paych.SignedVoucher, s []byte) (VoucherAdded, error) {
		least, err := parseAtto(minDelta)
		if err != nil {
			return VoucherAdded{}, err
		}
		delta, err := c.Manager.PaychVoucherAdd(ctx, ch, sv, s, least)
		return VoucherAdded{Channel: ch.String(), Delta: digits(delta)}, err
	})
}

func (a *api) PaychVoucherSecret(ctx context.Context, channel, secret string) (VoucherAdded, error) {
	return onChannel(ctx, a, "PaychVoucherSecret", channel, func(ctx context.Context, c *Channels, ch address.Address) (VoucherAdded, error) {
		s, err := parseHex32("secret", secret)
		if err != nil {
			return VoucherAdded{}, err
		}
		if s == nil {
			return VoucherAdded{}, paych.ErrSecret
		}
		delta, err := c.Manager.PaychVoucherSecret(ctx, ch, tally.Preimage(s))
		return VoucherAdded{Channel: ch.String(), Delta: digits(delta)}, err
	})
}

func (a *api) PaychVoucherList(ctx context.Context, channel string) ([]string, error) {
	return onChannel(ctx, a, "PaychVoucherList", channel, func(ctx context.Context, c *Channels, ch address.Address) ([]string, error) {
		all, err := c.Manager.PaychVoucherList(ctx, ch)
		if err != nil {
			return nil, err
		}
		texts := make([]string, len(all))
		for i, sv := range all {
			if texts[i], err = paych.FormatVoucher(sv); err != nil {
				return nil, err
			}
		}
		return texts, nil
	})
}

func (a *api) PaychVoucherRecords(ctx context.Context, channel string) ([]VoucherRow, error) {
	return onChannel(ctx, a, "PaychVoucherRecords", channel, func(ctx context.Context, c *Channels, ch address.Address) ([]VoucherRow, error) {
		all, err := c.Manager.PaychVoucherRecords(ctx, ch)
		if err != nil {
			return nil, err
		}
		rows := make([]VoucherRow, len(all))
		for i := range all {
			if rows[i], err = voucherRow(&all[i]); err != nil {
				return nil, err
			}
		}
		return rows, nil
	})
}

func (a *api) PaychVoucherSubmit(ctx context.Context, channel, voucher, secret string) (MessageRow, error) {
	return onVoucher(ctx, a, "PaychVoucherSubmit", channel, voucher, secret, func(ctx context.Context, c *Channels, ch address.Address, sv *paych.SignedVoucher, s []byte) (MessageRow, error) {
		id, err := a.send(func() (cid.Cid, error) { return c.Manager.PaychVoucherSubmit(ctx, ch, sv, s, nil) })
		return c.sent(ctx, id, err)
	})
}

func (a *api) PaychStatusByMsg(ctx context.Context, message string) (MessageRow, error) {
	return onChannels(ctx, a, "PaychStatusByMsg", func(ctx context.Context, c *Channels) (MessageRow, error) {
		id, err := parseCid(message)
		if err != nil {
			return MessageRow{}, err
		}
		return c.sent(ctx, id, nil)
	})
}

func (a *api) PaychPending(ctx context.Context) ([]MessageRow, error) {
	return onChannels(ctx, a, "PaychPending", func(ctx context.Context, c *Channels) ([]MessageRow, error) {
		all, err := c.Manager.PaychPending(ctx)
		rows := make([]MessageRow, len(all))
		for i := range all {
			rows[i] = messageRow(&all[i], time.Now())
		}
		return rows, err
	})
}

func (a *api) PaychWaitReady(ctx context.Context, message string, timeoutMS int) (MessageWait, error) {
	return onChannels(ctx, a, "PaychWaitReady", func(ctx context.Context, c *Channels) (MessageWait, error) {
		id, err := parseCid(message)
		if err != nil {
			return MessageWait{}, err
		}
		wait, err := pollTime(timeoutMS)
		if err != nil {
			return MessageWait{}, err
		}
		release, err := a.waitPlace()
		if err != nil {
			return MessageWait{}, err
		}
		defer release()
		waiting, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		defer context.AfterFunc(a.stop, cancel)()
		_, err = c.Manager.PaychWaitReady(waiting, id)
		over := waiting.Err() != nil && errors.Is(err, waiting.Err())
		if err != nil && (!over || ctx.Err() != nil) {
			return MessageWait{}, err
		}
		m, err := c.sent(ctx, id, nil)
		return MessageWait{Done: !over, Message: m}, err
	})
}

// pollTime checks how long a caller wants to wait.
func pollTime(ms int) (time.Duration, error) {
	if ms < 0 || int64(ms) > maxPoll.Milliseconds() {
		return 0, NewError(CodeBadArgument, "timeout %d ms: want 0 to %d", ms, maxPoll.Milliseconds())
	}
	return time.Duration(ms) * time.Millisecond, nil
}

func (c *Channels) walletRow(ctx context.Context, a address.Address) (WalletRow, error) {
	balance, err := c.Chain.Balance(ctx, a)
	if err != nil {
		return WalletRow{}, fmt.Errorf("balance of %s: %w", a, err)
	}
	return WalletRow{Address: a.String(), Balance: digits(balance)}, nil
}

func (a *api) WalletNew(ctx context.Context) (WalletRow, error) {
	return onChannels(ctx, a, "WalletNew", func(ctx context.Context, c *Channels) (WalletRow, error) {
		key, err := c.Wallet.New(ctx)
		if err != nil {
			return WalletRow{}, fmt.Errorf("new key: %w", err)
		}
		return WalletRow{Address: key.String(), Balance: "0"}, nil
	})
}

func (a *api) WalletList(ctx context.Context) ([]WalletRow, error) {
	return onChannels(ctx, a, "WalletList", func(ctx context.Context, c *Channels) ([]WalletRow, error) {
		keys, err := c.Wallet.List(ctx)
		if err != nil {
			return nil, fmt.Errorf("list keys: %w", err)
		}
		if len(keys) > maxWalletRows {
			return nil, NewError(CodeTooMany, "the wallet has %d keys, over the %d that are listed with their balances", len(keys), maxWalletRows).
				WithRemedy("ask for one: tally wallet balance ADDRESS")
		}
		rows := make([]WalletRow, len(keys))
		for i, key := range keys {
			if rows[i], err = c.walletRow(ctx, key); err != nil {
				return nil, err
			}
		}
		return rows, nil
	})
}

func (a *api) WalletBalance(ctx context.Context, account string) (WalletRow, error) {
	return onChannels(ctx, a, "WalletBalance", func(ctx context.Context, c *Channels) (WalletRow, error) {
		acct, err := parseAddress(account)
		if err != nil {
			return WalletRow{}, err
		}
		return c.walletRow(ctx, acct)
	})
}
