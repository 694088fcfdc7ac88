package locker

import (
	"context"
	"errors"
	"fmt"

	"github.com/filecoin-project/go-state-types/big"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paystream/lock"
)

func batched(k lock.EffectKind) bool {
	switch k {
	case lock.FxSave, lock.FxForget, lock.FxFulfilled, lock.FxFailed, lock.FxEnded, lock.FxLost:
		return true
	}
	return false
}

// save writes all that waits for it in one batch, with the carrier's records.
func (l *line) save(jobs []*job) error {
	var b durable.Batch
	if !l.saved {
		key := lineKey(l.ch)
		b.Put(key, durable.Seal(nil, key, lineVersion, l.record()))
	}
	var told []func()
	add := func(record func(*durable.Batch), saved func()) {
		if record != nil {
			record(&b)
		}
		if saved != nil {
			told = append(told, saved)
		}
	}
	lanes := make(map[uint64]bool)
	for _, j := range jobs {
		add(j.record, nil)
		j.record = nil
		for len(j.fx) > 0 && batched(j.fx[0].Kind) {
			e := &j.fx[0]
			switch e.Kind {
			case lock.FxSave, lock.FxForget:
				lanes[e.Lane] = true
			case lock.FxFulfilled:
				preimage := e.Preimage
				add(l.k.carrier.Decided(l.peer, e.ID, &preimage, nil))
			case lock.FxFailed:
				add(l.k.carrier.Decided(l.peer, e.ID, nil, e.Err))
			case lock.FxEnded:
				var paid *tally.Preimage
				if e.Preimage != (tally.Preimage{}) {
					preimage := e.Preimage
					paid = &preimage
				}
				add(l.k.carrier.Ended(l.peer, e.ID, paid, e.Err))
			case lock.FxLost:
				l.k.log.Error("a lock was not taken by the chain in time", "peer", l.peer, "channel", l.ch, "lock", e.ID)
				add(l.k.carrier.Ended(l.peer, e.ID, nil, ErrLost))
			}
			j.fx = j.fx[1:]
		}
	}
	for lane := range lanes {
		key := slotKey(l.ch, lane)
		b.Put(key, durable.Seal(nil, key, lock.RecordVersion, l.slots.Record(lane)))
	}
	if err := l.k.store.Commit(context.WithoutCancel(l.k.ctx), &b); err != nil {
		return fmt.Errorf("save locks of channel %s: %w", l.ch, err)
	}
	l.saved = true
	for _, saved := range told {
		saved()
	}
	return nil
}

// quick does what does not wait, and says whether e was of that kind.
func (l *line) quick(e *lock.Effect) bool {
	switch e.Kind {
	case lock.FxSend:
		if e.Voucher.Nonce != 0 && e.Voucher.Raw == "" {
			return false // it has to be looked up
		}
		l.send(e)
	case lock.FxTaken:
		list := l.slots.Locks()
		l.mu.Lock()
		l.list = list // who is told may ask for it at once
		l.mu.Unlock()
		for _, x := range list {
			if x.ID == e.ID {
				l.k.carrier.Taken(l.peer, x)
			}
		}
	case lock.FxConflict:
		l.k.log.Warn("a slot takes no new lock: one side has lost what it knew of it", "peer", l.peer, "channel", l.ch, "lane", e.Lane)
	case lock.FxSubmit:
		l.submit(*e)
	default:
		return false
	}
	return true
}

func (l *line) send(e *lock.Effect) {
	m := &Msg{Channel: l.ch, Send: e.Send, ID: e.ID, Preimage: e.Preimage}
	if e.Voucher.Raw != "" {
		m.Voucher = []byte(e.Voucher.Raw)
	}
	if e.Guard.Raw != "" {
		m.Guard = []byte(e.Guard.Raw)
	}
	if e.Send == lock.SendLock {
		for _, x := range l.slots.Locks() {
			if x.ID == e.ID {
				m.Amount = x.Amount
			}
		}
	}
	l.k.wire.Send(l.peer, m)
}

// slow does what waits for disk or signature. The event is what the core has to be
// told of it.
func (l *line) slow(e *lock.Effect) (*lock.Event, error) {
	ctx := l.ctx(context.WithoutCancel(l.k.ctx))
	switch e.Kind {
	case lock.FxKeep:
		err := l.keep(ctx, &e.Voucher)
		if l.role == lock.Payer && (errors.Is(err, paych.ErrAmount) || errors.Is(err, paych.ErrNonce)) {
			return nil, nil // nothing is left that the CANCEL is against
		}
		if err != nil && l.role == lock.Payee && e.ID != 0 && l.k.terms.KindOf(&e.Voucher) != lock.KindPlain {
			return &lock.Event{Kind: lock.EvFailed, ID: e.ID, Voucher: e.Voucher}, err
		}
		return nil, err
	case lock.FxSecret:
		_, err := l.k.paych.PaychVoucherSecret(ctx, l.ch, e.Preimage)
		return nil, err
	case lock.FxSign:
		v := e.Voucher
		raw, err := l.sign(ctx, &v)
		if err != nil {
			if l.role == lock.Payer && l.k.terms.KindOf(&v) != lock.KindPlain {
				return &lock.Event{Kind: lock.EvFailed, ID: e.ID, Voucher: v, Crowded: errors.Is(err, paych.ErrTooMany)}, err
			}
			return nil, err
		}
		v.Raw = string(raw)
		return &lock.Event{Kind: lock.EvSigned, ID: e.ID, Voucher: v}, nil
	case lock.FxSend:
		sv, err := l.k.paych.PaychVoucherAt(ctx, l.ch, e.Voucher.Lane, e.Voucher.Nonce)
		if err != nil || sv == nil {
			return nil, err // the chain has it
		}
		raw, err := paych.EncodeVoucher(sv)
		if err != nil {
			return nil, err
		}
		found := *e
		found.Voucher.Raw = string(raw)
		l.send(&found)
		return nil, nil
	}
	return nil, fmt.Errorf("locker: effect %d", e.Kind)
}

// keep puts a voucher into the channel's account.
func (l *line) keep(ctx context.Context, v *lock.Voucher) error {
	if v.Point != 0 {
		p, err := paych.DecodePointLock([]byte(v.Raw))
		switch {
		case err != nil:
			return err
		case l.role == lock.Payer:
			return l.k.paych.PaychPointLockImport(ctx, l.ch, p)
		}
		return l.k.paych.PaychPointLockAdd(ctx, l.ch, pointTerms(v), p)
	}
	sv, err := paych.DecodeVoucher([]byte(v.Raw))
	if err != nil {
		return err
	}
	if l.k.terms.KindOf(v) == lock.KindPlain || l.role == lock.Payer {
		return l.k.paych.PaychVoucherImport(ctx, l.ch, sv)
	}
	_, err = l.k.paych.PaychVoucherAdd(ctx, l.ch, sv, nil, big.Zero())
	return err
}

// sign returns the voucher's bytes, the same however often it is asked for.
func (l *line) sign(ctx context.Context, v *lock.Voucher) ([]byte, error) {
	if v.Point != 0 {
		p, err := l.k.paych.PaychPointLockCreate(ctx, l.ch, pointTerms(v))
		if err != nil {
			return nil, fmt.Errorf("locker: lock under a point on lane %d of channel %s: %w", v.Lane, l.ch, err)
		}
		return paych.EncodePointLock(p)
	}
	r, err := l.k.paych.PaychVoucherCreateSpec(ctx, l.ch, spec(v))
	if err != nil {
		return nil, fmt.Errorf("locker: sign on lane %d of channel %s: %w", v.Lane, l.ch, err)
	}
	if r.Voucher == nil {
		return nil, fmt.Errorf("%w: %v attoFIL are missing", ErrFunds, r.Shortfall)
	}
	return paych.EncodeVoucher(r.Voucher)
}

// submit sends a voucher to the chain, beside the line. It is due again in the next
// epoch where that fails.
func (l *line) submit(e lock.Effect) {
	l.mu.Lock()
	busy := l.submitting[e.Lane]
	l.submitting[e.Lane] = true
	l.mu.Unlock()
	if busy {
		return
	}
	l.k.mu.Lock()
	defer l.k.mu.Unlock()
	if l.k.closed {
		return
	}
	l.k.tasks.Go(func() { // ends when it is published, or with Close
		err := l.publish(&e)
		l.mu.Lock()
		delete(l.submitting, e.Lane)
		l.mu.Unlock()
		if err != nil && l.k.ctx.Err() == nil && !errors.Is(err, paych.ErrUnderWay) {
			l.k.log.Warn("voucher of a lock not submitted, will be tried again", "channel", l.ch, "lane", e.Lane, "err", err)
		}
	})
}

func (l *line) publish(e *lock.Effect) error {
	ctx := l.ctx(l.k.ctx)
	if e.Voucher.Point != 0 {
		// It is completed, and that saved, before it goes; it was so when the secret was
		// shown, unless that failed.
		if _, err := l.k.paych.PaychVoucherSecret(ctx, l.ch, e.Preimage); err != nil {
			return err
		}
	}
	sv, err := l.k.paych.PaychVoucherAt(ctx, l.ch, e.Voucher.Lane, e.Voucher.Nonce)
	if err != nil || sv == nil {
		return err
	}
	var secret []byte
	if e.Preimage != (tally.Preimage{}) && e.Voucher.Point == 0 {
		secret = e.Preimage[:]
	}
	_, err = l.k.paych.PaychVoucherSubmit(ctx, l.ch, sv, secret, nil)
	return err
}
