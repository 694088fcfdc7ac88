package swap

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
)

// Settle settles the exact debt to p now, whatever the threshold. It returns
// when the settlement has begun; a Notice and `balances` tell its end.
// ErrNothingOwed, ErrNoSession, ErrSoft and ErrPeerMode say why none begins.
func (b *Book) Settle(_ context.Context, p peer.ID) error { return b.pay(p, 0) }

// pay begins a settlement of the debt, and of units ahead of service.
func (b *Book) pay(p peer.ID, ahead tally.Amount) error {
	if err := b.usable(); err != nil {
		return err
	}
	s, a, err := b.lock(p)
	if err != nil {
		return err
	}
	ev := Event{Kind: EvSettle, Units: ahead}
	fx, err := b.apply(s, a, b.now(), &ev)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	b.afterBooking(p, fx)
	return nil
}

// settleSoon starts a settlement where that can help a refused caller.
func (b *Book) settleSoon(p peer.ID) {
	if err := b.Settle(b.ctx, p); err != nil {
		b.log.Debug("no settlement for a refused reservation", "peer", p, "err", err)
	}
}

// issueSoon issues a cheque beside the message path. One goroutine of a peer
// does it at a time, however often its session comes and goes; working ones are
// bounded by maxSettling.
func (b *Book) issueSoon(p peer.ID, fx Effect) {
	s, a, err := b.lock(p)
	if err != nil {
		return
	}
	busy := a.issuing
	a.issuing = true
	s.mu.Unlock()
	if busy {
		return // it looks for the intent of the moment when it is done
	}
	ok := b.spawn(func() { // ends when the cheque is handed over, or with b.ctx
		out, err := b.prepare(p, fx.Serial, fx.Cumulative)
		b.issuingDone(p, fx.Serial)
		if err == nil {
			err = b.sendCheques(p, out)
		}
		if err != nil {
			b.issueFailed(p, fx.Serial, err)
		}
	})
	if !ok {
		b.issuingDone(p, fx.Serial)
	}
}

// issuingDone lets the next intent be issued, and issues it where it came
// meanwhile.
func (b *Book) issuingDone(p peer.ID, serial uint64) {
	s, a, err := b.lock(p)
	if err != nil {
		return
	}
	a.issuing = false
	l := &a.ledger
	next := Effect{Kind: FxIssue, Serial: l.sentSerial, Cumulative: l.issued}
	again := l.settle == settleIntent && l.sentSerial != serial
	s.mu.Unlock()
	if again {
		b.issueSoon(p, next)
	}
}

// prepare takes one intent as far as a saved cheque: save the intent, have it
// backed, sign, save the cheque. Each save is synced before the next step; a
// crash anywhere leaves an intent or a cheque that the next session goes on
// with. It returns what is to be sent.
func (b *Book) prepare(p peer.ID, serial uint64, cumulative tally.Amount) ([]Message, error) {
	select {
	case b.settling <- struct{}{}:
		defer func() { <-b.settling }()
	case <-b.ctx.Done():
		return nil, ErrClosed
	}
	ctx, cancel := context.WithTimeout(b.ctx, saveWithin)
	defer cancel()
	if _, stateless := b.cfg.Settler.(StatelessSettler); !stateless {
		if err := b.flushPeer(ctx, p, func(*Ledger) bool { return true }); err != nil {
			return nil, err
		}
	}
	claim := Claim{Cumulative: cumulative}
	if err := b.look(p, func(a *account) { claim.Credited = a.ledger.paid }); err != nil {
		return nil, err
	}
	backing, err := b.cfg.Settler.Issue(ctx, p, claim)
	if err != nil {
		return nil, fmt.Errorf("back cheque %d: %w", serial, err)
	}
	var out []Message
	ev := Event{Kind: EvIssued, Serial: serial}
	fx, err := b.transact(p, &ev, func(before, after *Ledger, batch *durable.Batch) error {
		if after.flags&flagNative == 0 {
			out = karmaCheques(p, b.unix(), after.paid-before.paid)
			return nil
		}
		c, err := b.newCheque(p, after, serial, cumulative, backing)
		if err != nil {
			return err
		}
		b.putCheque(batch, shelfChequeSent, p, c)
		out = []Message{c}
		return nil
	})
	switch {
	case errors.Is(err, ErrUnexpected):
		return nil, nil // the settlement went another way meanwhile
	case err != nil:
		return nil, err
	case !hasSend(fx):
		return nil, nil
	}
	b.stats.chequesSent.Add(1)
	b.cfg.Notify(Notice{Kind: NoticeChequeSent, Peer: p, Serial: serial, Amount: cumulative})
	return out, nil
}

// sendCheques hands saved cheques to the session.
func (b *Book) sendCheques(p peer.ID, list []Message) error {
	ctx, cancel := context.WithTimeout(b.ctx, saveWithin)
	defer cancel()
	for _, m := range list {
		if err := b.send(ctx, p, m); err != nil {
			return err
		}
	}
	return nil
}

func hasSend(fx []Effect) bool {
	for i := range fx {
		if fx[i].Kind == FxSendCheque {
			return true
		}
	}
	return false
}

// newCheque signs a cheque over the books as they are.
func (b *Book) newCheque(p peer.ID, l *Ledger, serial uint64, cumulative tally.Amount, backing Backing) (*Cheque, error) {
	c := &Cheque{
		Issuer: b.self, Beneficiary: p, Serial: serial, Cumulative: cumulative,
		Served: l.served, Consumed: l.consumed, Balance: l.Balance(),
		Date: b.unix(), Backing: backing,
	}
	sig, err := b.cfg.Key.Sign(c.SigningBytes(b.cfg.Realm))
	if err != nil {
		return nil, fmt.Errorf("sign cheque %d: %w", serial, err)
	}
	c.Signature = sig
	return c, nil
}

// karmaCheques splits an amount into cheques of the seed's protocol, whose
// amount is a uint32. The ledger's bound keeps the number below 2^28, and
// MaxDebt keeps it at one in practice.
func karmaCheques(p peer.ID, unix int64, amount tally.Amount) []Message {
	date := uint32(min(max(unix, 0), math.MaxUint32)) // advisory; it stands still in 2106
	var out []Message
	for amount > 0 {
		part := min(amount, math.MaxUint32)
		amount -= part
		out = append(out, &KarmaCheque{Beneficiary: []byte(p), Date: date, Amount: uint32(part)})
	}
	return out
}

// issueFailed backs off and keeps the reason for the operator.
func (b *Book) issueFailed(p peer.ID, serial uint64, cause error) {
	s, a, err := b.lock(p)
	if err != nil {
		return
	}
	ev := Event{Kind: EvIssueFailed, Serial: serial}
	_, err = b.apply(s, a, b.now(), &ev)
	if err == nil && a.session != nil {
		a.session.reason = cause.Error()
	}
	s.mu.Unlock()
	if b.ctx.Err() == nil {
		b.log.Warn("cheque is not on its way; it will be tried again", "peer", p, "serial", serial, "err", cause)
	}
}

// resend sends the saved cheque again, the same bytes.
func (b *Book) resend(ctx context.Context, p peer.ID, serial uint64) error {
	c, err := b.getCheque(shelfChequeSent, p)
	if err != nil {
		return err
	}
	if c == nil || c.Serial != serial {
		return fmt.Errorf("%w: cheque %d is not in the store", ErrStale, serial)
	}
	return b.send(ctx, p, c)
}

func (b *Book) send(ctx context.Context, p peer.ID, m Message) error {
	c := b.courier.Load()
	if c == nil {
		return ErrNoSession
	}
	return (*c).Send(ctx, p, m)
}

// receiveCheque verifies, lets the settler check the backing, saves and credits
// in one batch, and only then acks. An ack that cannot be sent is no error: the
// peer sends its cheque again.
func (b *Book) receiveCheque(ctx context.Context, p peer.ID, c *Cheque) error {
	if err := c.Validate(p, b.self); err != nil {
		return err
	}
	if c.Cumulative == 0 {
		// It pays nothing, and would cost us three records for each identity.
		return fmt.Errorf("%w: cheque over 0", ErrMalformed)
	}
	if err := b.verify(p, c.SigningBytes(b.cfg.Realm), c.Signature); err != nil {
		return err
	}
	again, err := b.equivocates(p, c)
	if err != nil {
		return err
	}
	covered, err := b.acceptBacking(ctx, p, c)
	if err != nil {
		return err
	}
	var ack *Ack
	var credited tally.Amount
	ev := Event{
		Kind: EvCheque, Serial: c.Serial, Cumulative: c.Cumulative, Covered: covered, Again: again,
		Totals: &Totals{Served: c.Served, Consumed: c.Consumed},
	}
	_, err = b.transact(p, &ev, func(before, after *Ledger, batch *durable.Batch) error {
		var err error
		if ack, err = b.newAck(p, c, after); err != nil {
			return err
		}
		credited = after.received - before.received
		b.putCheque(batch, shelfChequeReceived, p, c)
		b.putAck(batch, shelfAckGiven, p, ack)
		return nil
	})
	switch {
	case errors.Is(err, ErrDuplicate):
		return b.ackAgain(ctx, p, c)
	case err != nil:
		return err
	}
	b.stats.chequesReceived.Add(1)
	b.cfg.Notify(Notice{Kind: NoticeChequeReceived, Peer: p, Serial: c.Serial, Amount: credited})
	b.sendAck(ctx, p, ack)
	if b.policy.Mode == ModeHard {
		return b.Cover(p) // the chain may have moved since the settler was asked
	}
	return nil
}

func (b *Book) sendAck(ctx context.Context, p peer.ID, ack *Ack) {
	if err := b.send(ctx, p, ack); err != nil {
		b.log.Debug("ack could not be sent; the peer will ask again", "peer", p, "serial", ack.Serial, "err", err)
	}
}

// newAck signs an ack over the books after the credit.
func (b *Book) newAck(p peer.ID, c *Cheque, l *Ledger) (*Ack, error) {
	a := &Ack{
		Issuer: b.self, Beneficiary: p, ChequeHash: c.Hash(b.cfg.Realm), Serial: c.Serial,
		Credited: min(l.received, c.Cumulative), Served: l.served, Consumed: l.consumed, Balance: l.Balance(),
	}
	sig, err := b.cfg.Key.Sign(a.SigningBytes(b.cfg.Realm))
	if err != nil {
		return nil, fmt.Errorf("sign ack %d: %w", c.Serial, err)
	}
	a.Signature = sig
	return a, nil
}

// ackAgain answers a duplicate with the ack of the first time.
func (b *Book) ackAgain(ctx context.Context, p peer.ID, c *Cheque) error {
	ack, err := b.getAck(shelfAckGiven, p)
	if err != nil {
		return err
	}
	if ack == nil || ack.Serial != c.Serial {
		return fmt.Errorf("%w: no ack of cheque %d in the store", ErrStale, c.Serial)
	}
	b.sendAck(ctx, p, ack)
	return nil
}

// acceptBacking asks the settler what the cheque is worth. Of one that we hold
// already the answer is not needed: it is acked again whatever became of its
// channel, and the settler only gets what it may have lost.
func (b *Book) acceptBacking(ctx context.Context, p peer.ID, c *Cheque) (tally.Amount, error) {
	claim := Claim{Cumulative: c.Cumulative}
	var last uint64
	if err := b.look(p, func(a *account) { claim.Credited, last = a.ledger.received, a.ledger.receivedSerial }); err != nil {
		return 0, err
	}
	if b.policy.Mode == ModeHard && len(c.Backing) == 0 {
		return 0, ErrUnbacked
	}
	covered, err := b.cfg.Settler.Accept(ctx, p, claim, c.Backing)
	if err == nil {
		return covered, nil
	}
	if c.Serial == last {
		held, getErr := b.getCheque(shelfChequeReceived, p)
		if getErr != nil {
			return 0, getErr
		}
		if held != nil && held.Hash(b.cfg.Realm) == c.Hash(b.cfg.Realm) {
			b.log.Debug("backing of a cheque that we hold", "peer", p, "serial", c.Serial, "err", err)
			return 0, nil
		}
	}
	return 0, &BackingError{fmt.Errorf("cheque %d: %w", c.Serial, err)}
}

// equivocates keeps two different cheques with one serial as evidence. It
// returns true where the new one names more and so counts, and ErrStale for a
// serial below the last.
func (b *Book) equivocates(p peer.ID, c *Cheque) (higher bool, err error) {
	s, a, err := b.lock(p)
	if err != nil {
		return false, err
	}
	last := a.ledger.receivedSerial
	s.mu.Unlock()
	if c.Serial < last {
		return false, ErrStale // before the settler is asked about an old voucher
	}
	if c.Serial != last {
		return false, nil
	}
	first, err := b.getCheque(shelfChequeReceived, p)
	if err != nil || first == nil || first.Serial != c.Serial || first.Hash(b.cfg.Realm) == c.Hash(b.cfg.Realm) {
		return false, err
	}
	b.keepEvidence(p, first, c)
	return c.Cumulative > first.Cumulative, nil
}

// maxEvidence bounds the kept pairs of one peer: one proves the lie, the rest
// would only fill the disk.
const maxEvidence = 4

func (b *Book) keepEvidence(p peer.ID, first, second *Cheque) {
	var batch durable.Batch
	for i, c := range [...]*Cheque{first, second} {
		slot := (second.Serial%maxEvidence)*2 + uint64(i)
		key := b.keys.of(shelfEvidence, p) + "/" + durable.KeyUint(slot)
		batch.Put(key, durable.Seal(nil, key, chequeVersion, encodeCheque(c)))
	}
	if err := b.store.Commit(b.ctx, &batch); err != nil {
		b.log.Error("evidence could not be kept", "peer", p, "err", err)
	}
	b.log.Warn("peer signed two cheques with one serial; the higher counts", "peer", p, "serial", second.Serial,
		"first", first.Cumulative, "second", second.Cumulative)
	b.cfg.Notify(Notice{Kind: NoticeEvidence, Peer: p, Serial: second.Serial, Amount: max(first.Cumulative, second.Cumulative)})
}

// receiveAck books what the peer credited.
func (b *Book) receiveAck(p peer.ID, a *Ack) error {
	if err := a.Validate(p, b.self); err != nil {
		return err
	}
	if err := b.verify(p, a.SigningBytes(b.cfg.Realm), a.Signature); err != nil {
		return err
	}
	sent, err := b.getCheque(shelfChequeSent, p)
	if err != nil {
		return err
	}
	if sent == nil || sent.Serial != a.Serial || sent.Hash(b.cfg.Realm) != a.ChequeHash {
		return fmt.Errorf("%w: ack of another cheque than our last", ErrStale)
	}
	ev := Event{Kind: EvAck, Serial: a.Serial, Cumulative: a.Credited}
	fx, err := b.promote(p, &ev, a)
	if err != nil {
		return err
	}
	b.stats.chequesAcked.Add(1)
	b.setReason(p, "")
	b.cfg.Notify(Notice{Kind: NoticeChequeAcked, Peer: p, Serial: a.Serial, Amount: a.Credited})
	b.afterBooking(p, fx)
	return nil
}

// promote books an ack. It goes to disk with the account's next record, which is
// at most flushEvery away, and nobody waits for that: nothing leaves on the
// strength of an ack, and the peer gives a lost one again in its handshake. So a
// cheque costs the debtor one sync, its own.
func (b *Book) promote(p peer.ID, ev *Event, ack *Ack) ([]Effect, error) {
	if err := b.usable(); err != nil {
		return nil, err
	}
	s, a, err := b.lock(p)
	if err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	fx, err := b.apply(s, a, b.now(), ev)
	if err != nil {
		return nil, err
	}
	a.ack = ack
	b.markDirty(s, a)
	b.wakeIf(a, fx)
	return fx, nil
}

// lastAck returns the last ack that we got from p, nil where there is none.
func (b *Book) lastAck(p peer.ID) (*Ack, error) {
	var unsaved *Ack
	if err := b.look(p, func(a *account) { unsaved = a.ack }); err != nil || unsaved != nil {
		return unsaved, err
	}
	return b.getAck(shelfAckReceived, p)
}

// receiveRefusal keeps the reason and backs off.
func (b *Book) receiveRefusal(p peer.ID, r *Refusal) error {
	remote := &RemoteError{Code: r.Code, Detail: r.Detail}
	b.setReason(p, remote.Error())
	if r.Serial == 0 {
		b.log.Info("peer refused a message", "peer", p, "err", remote)
		return nil
	}
	ev := Event{Kind: EvRefused, Serial: r.Serial}
	if _, err := b.transact(p, &ev, nil); err != nil {
		return err
	}
	b.stats.chequesRefused.Add(1)
	b.log.Warn("peer refused our cheque", "peer", p, "serial", r.Serial, "err", remote)
	b.cfg.Notify(Notice{Kind: NoticeChequeRefused, Peer: p, Serial: r.Serial, Detail: remote.Error()})
	return nil
}

// receiveKarma credits an unsigned cheque of the seed's protocol.
func (b *Book) receiveKarma(p peer.ID, c *KarmaCheque) error {
	if !c.For(b.self, b.cfg.PayoutAddress) {
		b.stats.chequesForOthers.Add(1)
		return ErrBeneficiary
	}
	if c.Amount == 0 {
		return fmt.Errorf("%w: cheque over 0", ErrMalformed)
	}
	ev := Event{Kind: EvKarma, Units: tally.Amount(c.Amount)}
	var credited tally.Amount
	_, err := b.transact(p, &ev, func(before, after *Ledger, _ *durable.Batch) error {
		credited = after.received - before.received
		return nil
	})
	if err != nil {
		return err
	}
	b.stats.chequesReceived.Add(1)
	b.cfg.Notify(Notice{Kind: NoticeChequeReceived, Peer: p, Amount: credited})
	return nil
}

func (b *Book) setReason(p peer.ID, reason string) {
	s, a, err := b.lock(p)
	if err != nil {
		return
	}
	if a.session != nil {
		a.session.reason = reason
	}
	s.mu.Unlock()
}

// verify checks a signature of p's identity key.
func (b *Book) verify(p peer.ID, text, sig []byte) error {
	key, err := b.cfg.KeyOf(p)
	if err != nil {
		return fmt.Errorf("%w: no public key of %s: %w", ErrSignature, p, err)
	}
	ok, err := key.Verify(text, sig)
	if err != nil || !ok {
		return ErrSignature
	}
	return nil
}

func (b *Book) putCheque(batch *durable.Batch, s shelf, p peer.ID, c *Cheque) {
	key := b.keys.of(s, p)
	batch.Put(key, durable.Seal(nil, key, chequeVersion, encodeCheque(c)))
}

func (b *Book) putAck(batch *durable.Batch, s shelf, p peer.ID, a *Ack) {
	key := b.keys.of(s, p)
	batch.Put(key, durable.Seal(nil, key, ackVersion, encodeAck(a)))
}

// getCheque returns nil where there is none.
func (b *Book) getCheque(s shelf, p peer.ID) (*Cheque, error) {
	return getRecord(b, b.keys.of(s, p), chequeVersion, decodeCheque)
}

// getAck returns nil where there is none.
func (b *Book) getAck(s shelf, p peer.ID) (*Ack, error) {
	return getRecord(b, b.keys.of(s, p), ackVersion, decodeAck)
}

func getRecord[T any](b *Book, key string, version byte, decode func([]byte) (*T, error)) (*T, error) {
	rec, err := b.store.Get(b.ctx, key)
	if errors.Is(err, durable.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	_, payload, err := durable.Unseal(key, version, rec)
	if err != nil {
		return nil, err
	}
	v, err := decode(payload)
	if err != nil {
		return nil, fmt.Errorf("record %s: %w", key, err)
	}
	return v, nil
}
