package swap

import (
	"context"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
)

// Hello returns our handshake for p: terms, first statement, and what p may need
// to recover what it lost.
func (b *Book) Hello(ctx context.Context, p peer.ID) (*Handshake, error) {
	if err := b.usable(); err != nil {
		return nil, err
	}
	payout, err := b.payoutFor(ctx, p)
	if err != nil {
		return nil, err
	}
	s, a, err := b.lock(p)
	if err != nil {
		return nil, err
	}
	h := &Handshake{
		Realm: b.cfg.Realm,
		Terms: Terms{
			PaymentThreshold: b.policy.PaymentThreshold, DisconnectThreshold: b.policy.DisconnectThreshold,
			Mode: b.policy.Mode, Native: true,
		},
		Payout: payout,
		Totals: a.ledger.Totals(0, 0),
	}
	hasCheques := a.ledger.sentSerial|a.ledger.receivedSerial != 0
	s.mu.Unlock()
	if !hasCheques {
		return h, nil
	}
	for _, get := range [...]struct {
		shelf shelf
		into  **Cheque
	}{{shelfChequeSent, &h.ChequeSent}, {shelfChequeReceived, &h.ChequeReceived}} {
		if *get.into, err = b.getCheque(get.shelf, p); err != nil {
			return nil, err
		}
	}
	if h.AckGiven, err = b.getAck(shelfAckGiven, p); err != nil {
		return nil, err
	}
	if h.AckReceived, err = b.lastAck(p); err != nil {
		return nil, err
	}
	return h, nil
}

// BeginSession takes the peer's handshake. It adopts what the peer proves,
// books what the peer accepted, and goes on with an open settlement; nothing is
// issued before that. native tells our own protocol from the seed's.
//
// ErrNetwork where realm or asset differ; an error means no session.
func (b *Book) BeginSession(ctx context.Context, p peer.ID, h *Handshake, native bool) error {
	if err := b.usable(); err != nil {
		return err
	}
	terms := h.Terms
	terms.Native = native
	if native {
		if max(h.Totals.Served, h.Totals.Consumed) > maxLedgerAmount {
			return fmt.Errorf("%w: totals of the handshake: %w", ErrMalformed, tally.ErrOverflow)
		}
		if h.Realm != b.cfg.Realm {
			return fmt.Errorf("%w: the peer keeps tabs in %q on %q, we in %q on %q",
				ErrNetwork, h.Asset, h.Network, b.cfg.Realm.Asset, b.cfg.Realm.Network)
		}
		if err := b.bindPayout(ctx, p, h); err != nil {
			return err
		}
		if err := b.recover(ctx, p, h); err != nil {
			return err
		}
	} else {
		terms.Mode = ModeUnset
	}
	fx, err := b.startSession(p, h, &terms)
	if err != nil {
		return err
	}
	if hasSave(fx) {
		if err := b.flushPeer(ctx, p, func(*Ledger) bool { return true }); err != nil {
			b.EndSession(p)
			return err
		}
	}
	b.stats.sessions.Add(1)
	b.cfg.Notify(Notice{Kind: NoticeSession, Peer: p, Amount: terms.PaymentThreshold})
	b.carryOut(ctx, p, fx)
	if !native {
		return nil
	}
	if err := b.firstStatement(ctx, p, h); err != nil {
		b.EndSession(p)
		return err
	}
	return nil
}

// startSession makes the session ready in one step.
func (b *Book) startSession(p peer.ID, h *Handshake, terms *Terms) ([]Effect, error) {
	s, a, err := b.lock(p)
	if err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	b.expirePeer(s, p) // reservations of an older session
	ev := Event{Kind: EvSession, Terms: terms}
	fx, err := b.apply(s, a, b.now(), &ev)
	if err != nil {
		return nil, err
	}
	a.session = &session{native: terms.Native, payout: h.Payout.Address}
	if terms.Native {
		a.session.told, a.session.heard = h.Totals, true
	}
	s.watched[p] = a
	b.wakeIf(a, fx)
	return fx, nil
}

// firstStatement compares the totals of the handshakes and answers them.
func (b *Book) firstStatement(ctx context.Context, p peer.ID, h *Handshake) error {
	if err := b.receiveStatement(ctx, p, &Statement{h.Totals}); err != nil {
		return err
	}
	if h.Totals.Served|h.Totals.Consumed != 0 || !b.nothingWith(p) { // two new peers have nothing to compare
		b.sendStatement(ctx, p)
	}
	return nil
}

func (b *Book) nothingWith(p peer.ID) bool {
	s, a, err := b.lock(p)
	if err != nil {
		return true
	}
	defer s.mu.Unlock()
	return a.ledger.served|a.ledger.consumed == 0
}

// EndSession notes that the last session with p is gone.
func (b *Book) EndSession(p peer.ID) {
	s, a, err := b.lock(p)
	if err != nil {
		return
	}
	ev := Event{Kind: EvSessionEnd}
	_, _ = b.apply(s, a, b.now(), &ev) // has no error
	b.expirePeer(s, p)
	a.session = nil
	if !a.timeMatters() {
		delete(s.watched, p)
	}
	if !a.stored && a.idle() && a.ledger.Empty() {
		delete(s.accounts, p) // nothing to remember: flapping identities cost no memory
	}
	s.mu.Unlock()
	b.cfg.Notify(Notice{Kind: NoticeSessionEnd, Peer: p})
}

// Receive takes a message of a session. An error says why it changed nothing;
// where m is a cheque, the caller tells the peer with RefusalFor.
func (b *Book) Receive(ctx context.Context, p peer.ID, m Message) error {
	switch m := m.(type) {
	case *Cheque:
		err := b.receiveCheque(ctx, p, m)
		if err != nil {
			b.denyCheque(p, m.Serial, err)
		}
		return err
	case *Ack:
		return ignoreStale(b.receiveAck(p, m))
	case *Refusal:
		return ignoreStale(b.receiveRefusal(p, m))
	case *Statement:
		return b.receiveStatement(ctx, p, m)
	case *KarmaCheque:
		return b.receiveKarma(p, m)
	default:
		return fmt.Errorf("%w: %T after the handshake", ErrMalformed, m)
	}
}

// ignoreStale: an answer to an older cheque than the last is late, not wrong.
func ignoreStale(err error) error {
	if errors.Is(err, ErrStale) {
		return nil
	}
	return err
}

// RefusalFor maps an error of Receive or BeginSession to what the peer is told.
func RefusalFor(err error) RefusalCode {
	for _, m := range [...]struct {
		err  error
		code RefusalCode
	}{
		{ErrSignature, RefusalSignature},
		{ErrBeneficiary, RefusalBeneficiary},
		{ErrNetwork, RefusalNetwork},
		{ErrStale, RefusalStale},
		{ErrLowerCumulative, RefusalStale},
		{ErrUnbacked, RefusalUnbacked},
		{ErrUncovered, RefusalUncovered},
		{ErrBacking, RefusalBacking},
		{ErrPayout, RefusalPayout},
		{ErrMalformed, RefusalMalformed},
		{tally.ErrOverflow, RefusalMalformed},
	} {
		if errors.Is(err, m.err) {
			return m.code
		}
	}
	return RefusalInternal
}

// denyCheque counts a cheque that was not credited.
func (b *Book) denyCheque(p peer.ID, serial uint64, cause error) {
	b.stats.chequesDenied.Add(1)
	b.log.Warn("cheque refused", "peer", p, "serial", serial, "err", cause)
}

// sendRefusal answers a cheque that came in a handshake.
func (b *Book) sendRefusal(ctx context.Context, p peer.ID, serial uint64, cause error) {
	b.denyCheque(p, serial, cause)
	r := &Refusal{Serial: serial, Code: RefusalFor(cause)}
	if err := b.send(ctx, p, r); err != nil {
		b.log.Debug("refusal could not be sent", "peer", p, "err", err)
	}
}

func (b *Book) receiveStatement(ctx context.Context, p peer.ID, m *Statement) error {
	s, a, err := b.lock(p)
	if err != nil {
		return err
	}
	if a.session != nil {
		a.session.told, a.session.heard = m.Totals, true
	}
	wasSkewed := a.ledger.flags&flagSkewed != 0
	s.mu.Unlock()
	if ps, ok := b.cfg.Settler.(PayoutSettler); ok && m.Uncovered != 0 {
		b.spawn(func() { ps.TopUp(b.ctx, p) }) // ends with b.ctx at the latest
	}
	ev := Event{Kind: EvStatement, Totals: &m.Totals}
	var skew tally.Balance
	fx, err := b.transact(p, &ev, nil)
	if err != nil {
		return err
	}
	s, a, err = b.lock(p)
	if err != nil {
		return err
	}
	skewed := a.ledger.flags&flagSkewed != 0
	skew = a.ledger.skew
	s.mu.Unlock()
	if skewed && !wasSkewed {
		b.log.Warn("books differ; no new credit until the peer pays or `tally peers resolve` is run", "peer", p, "skew", skew)
		b.cfg.Notify(Notice{Kind: NoticeSkew, Peer: p, Detail: fmt.Sprintf("we claim %d units more than the peer admits", skew)})
	}
	b.carryOut(ctx, p, fx)
	return nil
}

// sendStatement tells the peer our totals. Where another caller is telling
// already, that one tells again.
func (b *Book) sendStatement(ctx context.Context, p peer.ID) {
	s, a, err := b.lock(p)
	if err != nil {
		return
	}
	defer s.mu.Unlock()
	sess := a.session
	if sess == nil || !sess.native {
		return
	}
	if sess.telling {
		sess.tellAgain = true
		return
	}
	sess.telling, sess.tellAgain = true, true
	for sess.tellAgain && a.session == sess { // a session keeps its account in memory
		sess.tellAgain = false
		m := &Statement{a.ledger.Totals(sess.told.Served, sess.told.Consumed)}
		sess.said = m.Totals
		ev := Event{Kind: EvTold}
		_, _ = b.apply(s, a, b.now(), &ev) // has no error
		s.mu.Unlock()
		err := b.send(ctx, p, m)
		s.mu.Lock()
		if err != nil {
			b.log.Debug("statement could not be sent; the next session tells again", "peer", p, "err", err)
			break
		}
	}
	sess.telling = false
}

// carryOut does the effects of a session's events, in order. A send that fails
// is not an error of the event: the next session or tick repeats it.
func (b *Book) carryOut(ctx context.Context, p peer.ID, fx []Effect) {
	for i := range fx {
		var err error
		switch fx[i].Kind {
		case FxIssue:
			b.issueSoon(p, fx[i])
		case FxSendCheque:
			err = b.resend(ctx, p, fx[i].Serial)
			if errors.Is(err, ErrStale) {
				b.issueFailed(p, fx[i].Serial, err)
			}
		case FxSendStatement:
			b.sendStatement(ctx, p)
		case FxDisconnect:
			b.disconnect(p)
		case FxFlush:
			b.kick()
		}
		if err != nil {
			b.log.Debug("message could not be sent", "peer", p, "effect", fx[i].Kind, "err", err)
		}
	}
}

func (b *Book) disconnect(p peer.ID) {
	b.stats.blocked.Add(1)
	b.log.Warn("peer stayed at the disconnect threshold without paying and is disconnected for a time", "peer", p)
	b.cfg.Notify(Notice{Kind: NoticeBlocked, Peer: p})
	if c := b.courier.Load(); c != nil {
		if err := (*c).Disconnect(p); err != nil {
			b.log.Debug("disconnect", "peer", p, "err", err)
		}
	}
}

// recover takes over what the peer's handshake proves. Every proof is a
// signature: our own for what we forgot, the peer's for what it accepted.
func (b *Book) recover(ctx context.Context, p peer.ID, h *Handshake) error {
	if c := h.ChequeReceived; c != nil {
		if err := b.adoptSent(ctx, p, c); err != nil {
			return fmt.Errorf("last cheque that the peer received: %w", err)
		}
	}
	if a := h.AckReceived; a != nil {
		if err := b.adoptReceived(p, a, h.ChequeSent); err != nil {
			return fmt.Errorf("last ack that the peer received: %w", err)
		}
	}
	if a := h.AckGiven; a != nil {
		if err := ignoreStale(b.receiveAck(p, a)); err != nil {
			return fmt.Errorf("last ack that the peer gave: %w", err)
		}
	}
	if c := h.ChequeSent; c != nil {
		err := b.receiveCheque(ctx, p, c)
		var backing *BackingError
		switch {
		case errors.Is(err, ErrStale), errors.Is(err, ErrLowerCumulative), errors.Is(err, ErrUnbacked),
			errors.Is(err, ErrUncovered), errors.As(err, &backing):
			b.sendRefusal(ctx, p, c.Serial, err)
		case err != nil:
			return fmt.Errorf("last cheque that the peer sent: %w", err)
		}
	}
	return nil
}

// adoptSent takes over a cheque of ours that we no longer have.
func (b *Book) adoptSent(ctx context.Context, p peer.ID, c *Cheque) error {
	if err := c.Validate(b.self, p); err != nil {
		return err
	}
	s, a, err := b.lock(p)
	if err != nil {
		return err
	}
	l := &a.ledger
	known := c.Serial < l.sentSerial || c.Serial == l.sentSerial && l.settle != settleIntent
	s.mu.Unlock()
	if known {
		return nil
	}
	if err := b.verifyOwn(c.SigningBytes(b.cfg.Realm), c.Signature); err != nil {
		return err
	}
	if s, ok := b.cfg.Settler.(PayoutSettler); ok && len(c.Backing) != 0 {
		// First the voucher: a crash after it leaves nothing that the next session
		// would not take over again.
		if err := s.Restore(ctx, p, Claim{Cumulative: c.Cumulative}, c.Backing); err != nil {
			return fmt.Errorf("take over the backing of cheque %d: %w", c.Serial, err)
		}
	}
	ev := Event{
		Kind: EvAdoptSent, Serial: c.Serial, Cumulative: c.Cumulative,
		Totals: &Totals{Served: c.Served, Consumed: c.Consumed},
	}
	_, err = b.transact(p, &ev, func(_, _ *Ledger, batch *durable.Batch) error {
		b.putCheque(batch, shelfChequeSent, p, c)
		return nil
	})
	if err == nil {
		b.log.Warn("peer proved a cheque of ours that this store has lost; taken over", "peer", p, "serial", c.Serial, "cumulative", c.Cumulative)
	}
	return ignoreStale(err)
}

// adoptReceived takes over an ack of ours that we no longer have, with the
// cheque that it was for.
func (b *Book) adoptReceived(p peer.ID, ack *Ack, c *Cheque) error {
	if err := ack.Validate(b.self, p); err != nil {
		return err
	}
	s, a, err := b.lock(p)
	if err != nil {
		return err
	}
	known := ack.Serial <= a.ledger.receivedSerial
	s.mu.Unlock()
	if known {
		return nil
	}
	if err := b.verifyOwn(ack.SigningBytes(b.cfg.Realm), ack.Signature); err != nil {
		return err
	}
	ev := Event{
		Kind: EvAdoptReceived, Serial: ack.Serial, Cumulative: ack.Credited,
		Totals: &Totals{Served: ack.Served, Consumed: ack.Consumed},
	}
	_, err = b.transact(p, &ev, func(_, _ *Ledger, batch *durable.Batch) error {
		b.putAck(batch, shelfAckGiven, p, ack)
		if c != nil && c.Serial == ack.Serial && c.Hash(b.cfg.Realm) == ack.ChequeHash && b.verify(p, c.SigningBytes(b.cfg.Realm), c.Signature) == nil {
			b.putCheque(batch, shelfChequeReceived, p, c)
		}
		return nil
	})
	if err == nil {
		b.log.Warn("peer proved an ack of ours that this store has lost; taken over", "peer", p, "serial", ack.Serial, "credited", ack.Credited)
	}
	return ignoreStale(err)
}

func (b *Book) verifyOwn(text, sig []byte) error {
	ok, err := b.cfg.Key.GetPublic().Verify(text, sig)
	if err != nil || !ok {
		return ErrSignature
	}
	return nil
}

// Unblock lifts a block of ours before its time; the debt stays.
func (b *Book) Unblock(p peer.ID) error {
	_, err := b.transact(p, &Event{Kind: EvUnblock}, nil)
	return err
}

// Resolve takes the peer's last told figures for an open difference between the
// books. ErrNoSession where the peer told none yet, ErrInFlight while work is
// under way.
func (b *Book) Resolve(ctx context.Context, p peer.ID) error {
	if err := b.usable(); err != nil {
		return err
	}
	s, a, err := b.lock(p)
	if err != nil {
		return err
	}
	if a.session == nil || !a.session.heard {
		s.mu.Unlock()
		return ErrNoSession
	}
	told := a.session.told
	s.mu.Unlock()
	ev := Event{Kind: EvResolve, Totals: &told}
	fx, err := b.transact(p, &ev, nil)
	if err != nil {
		return err
	}
	b.carryOut(ctx, p, fx)
	return nil
}
