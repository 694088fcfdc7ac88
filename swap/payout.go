package swap

import (
	"context"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
)

// Limits of a payout binding.
const (
	// MaxPayoutAddress bounds an address as text, bytes. A delegated Filecoin
	// address has up to 110.
	MaxPayoutAddress = 128
	// MaxPayoutProof bounds the signature of an address' key, bytes: a BLS
	// signature has 96 and one for its type.
	MaxPayoutProof = 100
	// MaxPayoutConsent bounds the signature of the identity key over a binding
	// (RSA-4096 is 512).
	MaxPayoutConsent = 512
)

const payoutDomain = "tally/swap/1 payout\x00"

// ErrPayout: a payout address that is not the peer's, or not the one that it had.
var ErrPayout = errors.New("swap: payout address is not bound to the peer")

// Payout ties a peer to the address that it is paid at and pays from: each signs
// the other, so that nobody claims the channel of another.
type Payout struct {
	// Address as text; empty without a chain.
	Address string
	// Proof is the signature of the address' key over PayoutText.
	Proof []byte
	// Consent is the signature of the peer's identity key over the same.
	Consent []byte
	// Channel is the address of the channel that backs the teller's cheques to
	// the reader; empty while there is none. Origin is the cumulative that was
	// credited when it was bound.
	Channel string
	Origin  tally.Amount
}

// PayoutText is what identity key and address both sign:
//
//	"tally/swap/1 payout\0" | realm | u16 len, peer id | u16 len, address
//
// laid out like a cheque's text. The realm binds it to one chain.
func PayoutText(r Realm, p peer.ID, address string) []byte {
	return appendParties(payoutDomain, r, p, peer.ID(address))
}

// Validate checks the sizes.
func (o *Payout) Validate() error {
	if len(o.Address) > MaxPayoutAddress || len(o.Channel) > MaxPayoutAddress || len(o.Proof) > MaxPayoutProof || len(o.Consent) > MaxPayoutConsent {
		return fmt.Errorf("%w: a payout address or its proof is too long", ErrMalformed)
	}
	if o.Origin > maxLedgerAmount {
		return fmt.Errorf("%w: origin of a channel: %w", ErrMalformed, tally.ErrOverflow)
	}
	return nil
}

// payoutFor returns our own payout binding, signed.
func (b *Book) payoutFor(ctx context.Context, p peer.ID) (Payout, error) {
	s, ok := b.cfg.Settler.(PayoutSettler)
	if !ok || b.policy.Mode != ModeHard {
		return Payout{Address: b.cfg.PayoutAddress}, nil
	}
	text := func(address string) []byte { return PayoutText(b.cfg.Realm, b.self, address) }
	o, err := s.Payout(ctx, p, text)
	if err != nil {
		return Payout{}, fmt.Errorf("swap: payout address: %w", err)
	}
	if o.Consent, err = b.cfg.Key.Sign(text(o.Address)); err != nil {
		return Payout{}, fmt.Errorf("swap: sign payout address: %w", err)
	}
	return o, nil
}

// bindPayout takes the peer's binding where both settle on a chain.
func (b *Book) bindPayout(ctx context.Context, p peer.ID, h *Handshake) error {
	s, ok := b.cfg.Settler.(PayoutSettler)
	if !ok || b.policy.Mode != ModeHard || h.Mode != ModeHard {
		return nil
	}
	if h.Payout.Address == "" {
		return fmt.Errorf("%w: mode hard without an address", ErrPayout)
	}
	text := PayoutText(b.cfg.Realm, p, h.Payout.Address)
	if err := b.verify(p, text, h.Payout.Consent); err != nil {
		return fmt.Errorf("%w: consent of the peer: %w", ErrPayout, err)
	}
	if err := s.BindPeer(ctx, p, h.Payout, text); err != nil {
		return fmt.Errorf("%w: %w", ErrPayout, err)
	}
	return nil
}

// Retry tells the book that what a settlement with p waited for is there.
func (b *Book) Retry(p peer.ID) error { return b.settlerEvent(p, &Event{Kind: EvRetry}) }

// Cover tells the book what the chain would pay of p's cheques now. It is called
// on each change; the settler itself is asked, so that an older call that comes
// late does no harm.
func (b *Book) Cover(p peer.ID) error {
	s, ok := b.cfg.Settler.(PayoutSettler)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(b.ctx, saveWithin)
	defer cancel()
	st, ok := s.Standing(ctx, p)
	if !ok {
		return nil
	}
	before := b.coverOf(p)
	if err := b.settlerEvent(p, &Event{Kind: EvCover, Covered: st.Covered}); err != nil {
		return err
	}
	if after := b.coverOf(p); after < before {
		b.log.Warn("cheques of the peer lost cover on the chain; no new credit until it tops up its channel",
			"peer", p, "covered", after, "before", before)
		b.cfg.Notify(Notice{Kind: NoticeUncovered, Peer: p, Amount: before - after})
	}
	return nil
}

func (b *Book) coverOf(p peer.ID) (covered tally.Amount) {
	_ = b.look(p, func(a *account) { covered = a.ledger.covered }) // an account that cannot be read has no cover
	return covered
}

// Final sets what a closed channel paid with all that was paid before it, in
// units: dir Serve for the peer's cheques to us, Consume for ours. It is called
// once the chain cannot take it back, and may be repeated until the next channel
// of that direction is bound.
func (b *Book) Final(p peer.ID, dir Direction, total tally.Amount) error {
	if err := b.settlerEvent(p, &Event{Kind: EvFinal, Dir: dir, Cumulative: total}); err != nil {
		return err
	}
	b.log.Info("channel is closed; the books have what it paid", "peer", p, "direction", dir, "total", total)
	b.cfg.Notify(Notice{Kind: NoticeFinal, Peer: p, Amount: total, Detail: dir.String()})
	return nil
}

// settlerEvent books what the chain did, and carries on.
func (b *Book) settlerEvent(p peer.ID, ev *Event) error {
	fx, err := b.transact(p, ev, func(_, _ *Ledger, _ *durable.Batch) error { return nil })
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(b.ctx, saveWithin)
	defer cancel()
	b.carryOut(ctx, p, fx)
	return nil
}
