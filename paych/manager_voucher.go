package paych

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/crypto"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally"
)

// PaychVoucherCreate implements PaymentChannelManagerAPI. On an inbound channel
// it makes a refund: a voucher of the payee over a lower amount.
func (m *Manager) PaychVoucherCreate(ctx context.Context, pch address.Address, amt big.Int, lane uint64) (*VoucherCreateResult, error) {
	return m.PaychVoucherCreateSpec(ctx, pch, VoucherSpec{Lane: lane, Amount: amt})
}

// PaychVoucherCreateSpec is PaychVoucherCreate with hash lock, time locks and
// MinSettleHeight. The voucher is on disk before it is returned. With spec.Again it
// returns what an earlier call was given, also after a restart.
func (m *Manager) PaychVoucherCreateSpec(ctx context.Context, pch address.Address, spec VoucherSpec) (*VoucherCreateResult, error) {
	a, err := m.account(ctx, pch)
	if err != nil {
		return nil, err
	}
	if _, err := m.now(ctx); err != nil {
		return nil, err
	}
	if spec.Amount.Int != nil {
		spec.Amount = big.NewFromGo(spec.Amount.Int) // the caller's may change
	}
	if spec.Again {
		// Two such calls at one time give one voucher.
		select {
		case a.again <- struct{}{}:
			defer func() { <-a.again }()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	fx, err := m.draft(ctx, a, evDraft{Spec: spec})
	var short *ShortfallError
	if errors.As(err, &short) {
		return &VoucherCreateResult{Shortfall: short.Shortfall}, nil
	}
	draft := fx.Voucher
	switch {
	case spec.Again && errors.Is(err, ErrAmount):
		return m.recall(ctx, a, spec, err)
	case err != nil:
		return nil, err
	case fx.Kind == FxAnswer: // we have it
		if err := m.save(a); err != nil {
			return nil, err
		}
		return &VoucherCreateResult{Voucher: clone(draft), Shortfall: big.Zero()}, nil
	}
	signed, err := Sign(ctx, m.wallet, a.ch.Control(), draft)
	a.mu.Lock()
	if err != nil {
		defer a.mu.Unlock()
		_, _ = m.step(a, evUnsigned{Lane: draft.Lane, Nonce: draft.Nonce}) // never fails
		return nil, err
	}
	_, err = m.step(a, evSigned{Voucher: signed})
	a.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if err := m.save(a); err != nil {
		return nil, err
	}
	return &VoucherCreateResult{Voucher: clone(signed), Shortfall: big.Zero()}, nil
}

// draft takes nonce and funds of a voucher, or finds one that was given.
func (m *Manager) draft(ctx context.Context, a *account, ev evDraft) (Effect, error) {
	try := func() (Effect, error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.broken != nil {
			return Effect{}, a.broken
		}
		ev.Owner = tagOf(ctx) == a.ch.Tag
		return m.step(a, ev)
	}
	fx, err := try()
	// The chain may hold more by now: money may have come from elsewhere.
	if errors.Is(err, ErrShortfall) && m.peekAhead(ctx, a) == nil {
		fx, err = try()
	}
	return fx, err
}

// recall finds a voucher that we gave in the history, where the chain has seen it
// and the lane keeps it no longer. It returns cause where it is not there.
func (m *Manager) recall(ctx context.Context, a *account, spec VoucherSpec, cause error) (*VoucherCreateResult, error) {
	if err := m.save(a); err != nil {
		return nil, err
	}
	entries, err := history(ctx, m.store, a.ch.ID)
	if err != nil {
		return nil, err
	}
	var best *SignedVoucher
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.ch.peek(spec.Lane)
	for i := range entries {
		e := &entries[i]
		if e.origin == OriginGiven && spec.says(e.voucher) && l.stands(e.voucher) && (best == nil || best.Nonce < e.voucher.Nonce) {
			best = e.voucher
		}
	}
	// Only what the lane still stands at: an older total is no answer.
	if best == nil || len(best.SecretHash) == 0 && best.Amount.LessThan(l.Agreed) {
		return nil, cause
	}
	return &VoucherCreateResult{Voucher: best, Shortfall: big.Zero()}, nil
}

// clone returns a voucher that shares nothing with sv, without Extra and Merges,
// which we neither make nor keep.
func clone(sv *SignedVoucher) *SignedVoucher {
	cp := *sv
	cp.SecretHash = slices.Clone(sv.SecretHash)
	cp.Amount = big.NewFromGo(sv.Amount.Int)
	if sv.Signature != nil {
		cp.Signature = &crypto.Signature{Type: sv.Signature.Type, Data: slices.Clone(sv.Signature.Data)}
	}
	return &cp
}

// PaychVoucherCheckValid implements PaymentChannelManagerAPI: all that can be
// known before a voucher is submitted, and our own policy. A voucher that we hold
// is valid.
func (m *Manager) PaychVoucherCheckValid(ctx context.Context, ch address.Address, sv *SignedVoucher) error {
	a, err := m.account(ctx, ch)
	if err != nil {
		return err
	}
	if a.ch.Direction == PCHOutbound && sv != nil {
		if signer, err := Signer(sv); err == nil && signer == a.ch.From {
			return m.checkOwn(ctx, a, sv)
		}
	}
	err = m.check(ctx, a, sv, nil, big.Zero())
	if err == nil {
		err = verifyOther(a, sv)
	}
	if errors.Is(err, errHeld) {
		return nil
	}
	return err
}

// checkOwn checks a voucher of ours as its payee would.
func (m *Manager) checkOwn(ctx context.Context, a *account, sv *SignedVoucher) error {
	now, err := m.now(ctx)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.ch.checkForm(sv); err != nil {
		return err
	}
	l := a.ch.peek(sv.Lane)
	if l.holds(sv) {
		return nil
	}
	return a.ch.checkVoucher(now, l, sv, nil, big.Zero())
}

// check is CheckVoucher. A voucher that is over the balance is checked again where the
// chain may show more by now.
func (m *Manager) check(ctx context.Context, a *account, sv *SignedVoucher, under *PointLock, draws big.Int) error {
	now, err := m.now(ctx)
	if err != nil {
		return err
	}
	look := func() error {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.ch.checkDraw(now, sv, under, draws)
	}
	err = look()
	if errors.Is(err, ErrOverBalance) && m.peekAhead(ctx, a) == nil {
		err = look()
	}
	return err
}

// verifyOther reports whether the other side of the channel signed a voucher.
func verifyOther(a *account, sv *SignedVoucher) error {
	signer := a.ch.From
	if a.ch.Direction == PCHOutbound {
		signer = a.ch.To
	}
	if err := Verify(sv, signer); err != nil {
		return fmt.Errorf("%w: %w", ErrSigner, err)
	}
	return nil
}

// PaychVoucherCheckSpendable implements PaymentChannelManagerAPI. proof may hold
// the secret where secret does not.
func (m *Manager) PaychVoucherCheckSpendable(ctx context.Context, ch address.Address, sv *SignedVoucher, secret, proof []byte) (bool, error) {
	a, err := m.account(ctx, ch)
	if err != nil {
		return false, err
	}
	if sv == nil {
		return false, ErrChannel
	}
	err = m.evaluate(ctx, a, sv, a.secretOf(sv, secret, proof))
	if errors.Is(err, ErrNotSpendable) || errors.Is(err, ErrCollected) {
		return false, nil
	}
	return err == nil, err
}

// secretOf is the secret for a voucher: the one given, else the proof where that
// opens the lock, else the one that we know.
func (a *account) secretOf(sv *SignedVoucher, secret, proof []byte) []byte {
	if len(secret) != 0 || len(sv.SecretHash) != tally.HashlockSize {
		return secret
	}
	if p := opening(sv, proof); p != nil {
		return proof
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if l := a.ch.Lanes[sv.Lane]; l != nil {
		if cl := l.find(sv.Nonce); cl != nil && cl.Secret != nil && cl.Secret.Opens(tally.Hashlock(sv.SecretHash)) {
			return cl.Secret[:]
		}
	}
	return nil
}

// opening returns proof as the preimage of the voucher's lock, or nil.
func opening(sv *SignedVoucher, proof []byte) *tally.Preimage {
	if len(sv.SecretHash) != tally.HashlockSize || len(proof) != tally.HashlockSize {
		return nil
	}
	p := tally.Preimage(proof)
	if !p.Opens(tally.Hashlock(sv.SecretHash)) {
		return nil
	}
	return &p
}

// PaychVoucherAdd implements PaymentChannelManagerAPI. proof is the secret of a
// hash lock; without it the voucher is kept, but counts for nothing until
// PaychVoucherSecret. On an outbound channel it takes a refund of the payee.
func (m *Manager) PaychVoucherAdd(ctx context.Context, ch address.Address, sv *SignedVoucher, proof []byte, minDelta big.Int) (big.Int, error) {
	return m.addVoucher(ctx, ch, sv, proof, minDelta, big.Zero())
}

func (m *Manager) addVoucher(ctx context.Context, ch address.Address, sv *SignedVoucher, proof []byte, minDelta, draws big.Int) (big.Int, error) {
	a, err := m.account(ctx, ch)
	if err != nil {
		return big.Zero(), err
	}
	err = m.check(ctx, a, sv, nil, draws)
	if err == nil {
		err = verifyOther(a, sv)
	}
	if err != nil && !errors.Is(err, errHeld) {
		return big.Zero(), err
	}
	secret := opening(sv, proof)
	if len(proof) != 0 && len(sv.SecretHash) != 0 && secret == nil {
		return big.Zero(), ErrSecret
	}
	fx, err := m.do(a, evReceive{Voucher: clone(sv), Secret: secret, MinDelta: minDelta, Owner: tagOf(ctx) == a.ch.Tag, Draws: draws})
	var low *DeltaError
	if errors.As(err, &low) {
		return low.Delta, err
	}
	if err != nil {
		return big.Zero(), err
	}
	return fx.Amount, nil
}

// PaychVoucherImport takes back a voucher of the channel that we signed or took and
// lost, as when a store was restored from a backup and the other side shows what
// came after. One of our own counts from then on as if it had never been lost: V
// has it, and the lane goes on above its nonce. One of the other side is taken as
// PaychVoucherAdd takes it. A voucher that we hold, or that a later one or the
// chain has made worthless, changes nothing and is no error. ErrSigner where
// neither side signed it; ErrChannel, ErrCollected, ErrTooMany and what else
// PaychVoucherAdd says of its form.
func (m *Manager) PaychVoucherImport(ctx context.Context, ch address.Address, sv *SignedVoucher) error {
	a, err := m.account(ctx, ch)
	if err != nil {
		return err
	}
	a.mu.Lock()
	err = a.ch.checkForm(sv)
	a.mu.Unlock()
	if err != nil {
		return err
	}
	signer, err := Signer(sv)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSigner, err)
	}
	if signer != a.ch.Control() {
		_, err := m.PaychVoucherAdd(ctx, ch, sv, nil, big.Zero())
		return err
	}
	_, err = m.do(a, evImport{Voucher: clone(sv)})
	return err
}

// PaychVoucherSecret opens the locks of a channel that secret is the preimage of, or the
// secret of the point of, and returns what the vouchers held are worth more by it. A lock
// under a point is completed by it: its signature is on disk before it is submitted.
func (m *Manager) PaychVoucherSecret(ctx context.Context, ch address.Address, secret tally.Preimage) (big.Int, error) {
	a, err := m.account(ctx, ch)
	if err != nil {
		return big.Zero(), err
	}
	ev, err := a.completed(secret)
	if err != nil {
		return big.Zero(), err
	}
	fx, err := m.do(a, ev)
	if err != nil {
		return big.Zero(), err
	}
	return fx.Amount, nil
}

// PaychVoucherList implements PaymentChannelManagerAPI: the vouchers that can
// still bring something, and the last that were created or accepted, oldest
// first. Those of locks under points are there once they are completed.
func (m *Manager) PaychVoucherList(ctx context.Context, ch address.Address) ([]*SignedVoucher, error) {
	records, err := m.PaychVoucherRecords(ctx, ch)
	if err != nil {
		return nil, err
	}
	list := make([]*SignedVoucher, 0, len(records))
	for i := range records {
		if sv := records[i].Voucher; sv.Signature != nil {
			list = append(list, sv)
		}
	}
	return list, nil
}

// VoucherRecord is a voucher with what is known of it.
type VoucherRecord struct {
	// Voucher has no signature where that was given encrypted under a point, and is not
	// completed here.
	Voucher *SignedVoucher
	Origin  Origin
	// Epoch of the head when it was created or accepted; 0 where the history no
	// longer has it.
	Epoch abi.ChainEpoch
	// Live: it can still be submitted, and no later voucher makes it worthless.
	Live bool
	// Opened: its hash lock, or the point that it is under, has a known secret.
	Opened bool
	// Redeemed: the chain has this voucher or a later one of its lane.
	Redeemed bool
}

// PaychVoucherRecords is PaychVoucherList with the state of each.
func (m *Manager) PaychVoucherRecords(ctx context.Context, ch address.Address) ([]VoucherRecord, error) {
	a, err := m.account(ctx, ch)
	if err != nil {
		return nil, err
	}
	if err := m.save(a); err != nil {
		return nil, err
	}
	entries, err := history(ctx, m.store, a.ch.ID)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(entries, func(x, y entry) int {
		if x.serial < y.serial {
			return -1
		}
		return 1
	})
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.ch
	var list []VoucherRecord
	seen := func(sv *SignedVoucher) bool {
		return slices.ContainsFunc(entries, func(e entry) bool {
			return sameVoucher(e.voucher, sv) || e.voucher.Signature == nil && sameBody(e.voucher, sv)
		})
	}
	for _, id := range slices.Sorted(maps.Keys(c.Lanes)) {
		l := c.Lanes[id]
		for i := range l.Claims {
			if sv := l.Claims[i].Voucher; sv != nil && !seen(sv) {
				origin := OriginGiven
				if c.Direction == PCHInbound {
					origin = OriginReceived
				}
				list = append(list, a.record(sv, origin, 0))
			}
		}
		if l.Refund != nil && !seen(l.Refund) {
			list = append(list, a.record(l.Refund, OriginRefund, 0))
		}
	}
	for i := range entries {
		list = append(list, a.record(entries[i].voucher, entries[i].origin, entries[i].epoch))
	}
	return list, nil
}

// record is called with a.mu held.
func (a *account) record(sv *SignedVoucher, origin Origin, epoch abi.ChainEpoch) VoucherRecord {
	r := VoucherRecord{Voucher: clone(sv), Origin: origin, Epoch: epoch}
	l := a.ch.Lanes[sv.Lane]
	if l == nil {
		return r
	}
	r.Live = l.holds(sv)
	if cl := l.pointed(sv); cl != nil && sv.Signature == nil {
		r.Voucher, r.Live = clone(cl.Voucher), true
	}
	if cl := l.find(sv.Nonce); cl != nil && r.Live {
		r.Opened = cl.Secret != nil
	}
	r.Redeemed = l.Head.Known && l.Head.Nonce >= sv.Nonce
	r.Live = r.Live && !r.Redeemed
	return r
}

// PaychVoucherSubmit implements PaymentChannelManagerAPI. ErrOwnVoucher for one
// that we signed: only the other side can submit it. ErrNotSpendable where the
// chain would refuse it; nothing is sent then.
func (m *Manager) PaychVoucherSubmit(ctx context.Context, ch address.Address, sv *SignedVoucher, secret, proof []byte) (cid.Cid, error) {
	a, err := m.account(ctx, ch)
	if err != nil {
		return cid.Undef, err
	}
	if sv == nil || sv.Amount.Int == nil {
		return cid.Undef, ErrChannel
	}
	signer, err := Signer(sv)
	switch {
	case err != nil:
		return cid.Undef, fmt.Errorf("%w: %w", ErrSigner, err)
	case signer == a.ch.Control():
		return cid.Undef, ErrOwnVoucher
	case len(sv.Merges) != 0:
		return cid.Undef, ErrMerges
	case sv.Extra != nil:
		return cid.Undef, ErrExtra
	}
	if _, err := m.now(ctx); err != nil {
		return cid.Undef, err
	}
	sv = clone(sv)
	secret = slices.Clone(a.secretOf(sv, secret, proof))
	key := sendKey{kind: messageSubmit, lane: sv.Lane}
	a.mu.Lock()
	o := a.sending[key]
	a.mu.Unlock()
	if o == nil {
		if err := m.evaluate(ctx, a, sv, secret); err != nil {
			return cid.Undef, err
		}
		a.mu.Lock()
		if o = a.sending[key]; o == nil {
			if _, err := m.step(a, evSubmit{Lane: sv.Lane, Nonce: sv.Nonce}); err != nil {
				a.mu.Unlock()
				return cid.Undef, err
			}
			o = &outgoing{key: key, voucher: sv, secret: secret}
			m.start(a, o)
		}
		a.mu.Unlock()
	}
	a.mu.Lock()
	nonce := uint64(0)
	if o.voucher != nil {
		nonce = o.voucher.Nonce
	} else if o.msg != nil {
		nonce = o.msg.voucherNonce
	}
	a.mu.Unlock()
	if nonce != sv.Nonce {
		return cid.Undef, fmt.Errorf("%w: nonce %d of lane %d is on its way", ErrUnderWay, nonce, sv.Lane)
	}
	return o.wait(ctx)
}

// PaychAllocateLane implements PaymentChannelManagerAPI.
func (m *Manager) PaychAllocateLane(ctx context.Context, ch address.Address) (uint64, error) {
	a, err := m.account(ctx, ch)
	if err != nil {
		return 0, err
	}
	fx, err := m.do(a, evAllocateLane{})
	return fx.Lane, err
}
