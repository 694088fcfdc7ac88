package hold

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/crypto/blake2b"
	"golang.org/x/crypto/cryptobyte"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/payments"
)

// The second form: the payer buys a voucher of the holder's own channel to the payee,
// and mails it. Nobody keeps anything for the payee then: the payer has paid, and what
// the payee needs is in the mail.
//
//	payee, online        holder                       payer                        chain
//	  ├── guard ──────────▶│
//	  │◀─ settle height ───┤                             │                            │
//	  ├── submit ──────────┼─────────────────────────────┼──────────────────────────▶│ MinSettleHeight
//	  ├── statement ──────▶│ lane totals, room           │                            │
//	 (goes)                │◀───────────── statement? ───┤                            │
//	                       ├── statement ───────────────▶│◀──── channel, final ───────┤
//	                       │◀───────────────────── buy ──┤ guard, room, time: checked
//	                       ├── voucher under hash h, T ─▶│ checked, saved
//	                       │◀────────── part under h ────┤
//	                       ├── preimage of h ───────────▶│ bought
//	 (comes)                                             │
//	  │◀──────────────────── voucher, preimage: mail ────┤ mailed
//	  ├── submit until T ────────────────────────────────┼──────────────────────────▶│
//
// The holder chooses h, so that it is paid exactly when the payer can use the voucher.
// It cannot take the voucher's money back: until T + M it cannot collect the channel,
// and the payee takes no other voucher over the room that it has promised.

var (
	// ErrNoGuard: the chain does not show that the channel stays open long enough.
	ErrNoGuard = errors.New("hold: the holder could settle and collect before the payee is back")
	// ErrLaneRoom: the channel has too little room for the voucher.
	ErrLaneRoom = errors.New("hold: the channel has no room for it")
	// ErrChannel: the channel settles, is gone, or there is none.
	ErrChannel = errors.New("hold: no open channel from the holder to the payee")
	// ErrVoucher: the voucher is not the one that is bought.
	ErrVoucher = errors.New("hold: not the voucher that was agreed")
	// ErrMail: the text is not a mail for us.
	ErrMail = errors.New("hold: not a mail for us")
	// ErrNoChannels: the node has no chain, and the second form needs one.
	ErrNoChannels = errors.New("hold: vouchers are bought and sold on a chain, and this node has none")
)

// ChainTimes are what vouchers go by, in epochs.
type ChainTimes struct {
	// Inclusion is how long a message may take to be mined.
	Inclusion int64
	// Margin is how much longer than a voucher its channel has to stay open.
	Margin int64
	// Furthest is how far ahead a guard may keep a channel open.
	Furthest int64
	// EpochMS is the time between two epochs.
	EpochMS int64
}

// longest is how long room can be kept: the guard goes beyond it by the margin.
func (t *ChainTimes) longest() int64 { return t.Furthest - t.Margin }

// Least is what a voucher that is sold now has left at the least: the payee has to get
// it, and then to submit it.
func (t *ChainTimes) Least() int64 { return 2*t.Inclusion + 1 }

// ChannelView is any channel as the chain shows it. Where head and finality differ,
// it has what promises less.
type ChannelView struct {
	// Height is that of the head, Final that of finality.
	Height, Final int64
	// From is the key address of the channel's payer.
	From            string
	Balance, ToSend tally.Amount
	MinSettle       int64
	Settling, Gone  bool
	// Used: a voucher of the lane that was asked for is on the chain. Redeemed is
	// what the lane paid, final.
	Used     bool
	Redeemed tally.Amount
}

// Voucher is a channel voucher as far as it is looked at here. Raw is all of it, and
// Signer the key address that signed Raw.
type Voucher struct {
	Channel     string
	Lane, Nonce uint64
	Amount      tally.Amount
	Hash        tally.Hashlock
	Locked      bool
	// Expires is its last epoch, MinSettle the height that it keeps the channel
	// open for; 0 for none.
	Expires, MinSettle int64
	Signer             string
	Raw                []byte
}

// maxVoucher bounds the bytes of a voucher.
const maxVoucher = 300

// Purchase is a voucher that a payer buys. It never changes.
type Purchase struct {
	// ID is 16 random bytes of the payer, and the part id of its packet.
	ID                   ID
	Payer, Holder, Payee peer.ID
	// Channel is the holder's to the payee.
	Channel string
	Amount  tally.Amount
	// Deadline is the last epoch in which the payee can redeem it.
	Deadline int64
}

// Validate reports what no party would mean.
func (p *Purchase) Validate() error {
	for _, id := range [...]peer.ID{p.Payer, p.Holder, p.Payee} {
		if len(id) == 0 || len(id) > maxPeerID {
			return wrapTerms(fmt.Sprintf("peer id of %d bytes", len(id)))
		}
	}
	switch {
	case p.Payer == p.Holder || p.Payee == p.Holder || p.Payer == p.Payee:
		return wrapTerms("payer, holder and payee are three nodes")
	case p.Amount == 0 || p.Amount >= payments.MaxTotal:
		return wrapTerms(fmt.Sprintf("amount %d is not between 1 and 2^62", p.Amount))
	case p.Channel == "" || len(p.Channel) > maxChannelText:
		return wrapTerms("no channel")
	case p.Deadline <= 0 || p.Deadline > maxEpoch:
		return wrapTerms("no deadline")
	}
	return nil
}

// mailLane is the first lane of vouchers that are bought.
const mailLane = uint64(1) << 62

// Lane is the voucher's, and nobody else's: a holder that gave two payers vouchers of
// one lane would be paid twice and pay once.
func (p *Purchase) Lane() uint64 {
	b := append([]byte("tally mail lane 1\x00"), byte(len(p.Payer)))
	b = append(append(b, p.Payer...), p.ID[:]...)
	sum := blake2b.Sum256(b)
	return mailLane | binary.BigEndian.Uint64(sum[:])>>2
}

// voucher is what the holder has to sign.
func (p *Purchase) voucher(h tally.Hashlock) Voucher {
	return Voucher{Channel: p.Channel, Lane: p.Lane(), Nonce: 1, Amount: p.Amount, Locked: true, Hash: h, Expires: p.Deadline}
}

// checkVoucher compares what came with what was agreed: ErrVoucher.
func (p *Purchase) checkVoucher(v *Voucher, h tally.Hashlock) error {
	want := p.voucher(h)
	if v.Channel != want.Channel || v.Lane != want.Lane || v.Nonce != want.Nonce || v.Amount != want.Amount || v.Locked != want.Locked ||
		v.Hash != want.Hash || v.Expires != want.Expires || v.MinSettle != 0 {
		return fmt.Errorf("%w: lane %d, nonce %d, %d units until %d, want lane %d, nonce 1, %d units until %d, under its hash and nothing else",
			ErrVoucher, v.Lane, v.Nonce, v.Amount, v.Expires, want.Lane, want.Amount, want.Expires)
	}
	return nil
}

// Fits reports whether the payee is sure to have the money if it redeems the voucher by
// the deadline: the chain keeps the channel open for longer, and the statement leaves
// room of which we have used spent. ErrStatement, ErrStale, ErrChannel, ErrNoGuard,
// ErrLaneRoom, ErrTerms. Whose word the statement is, Verify says before.
func (p *Purchase) Fits(t *ChainTimes, st *LaneStatement, v *ChannelView, spent tally.Amount) error {
	switch need := p.Deadline + t.Margin; {
	case st.Payee != p.Payee || st.Holder != p.Holder || st.Channel != p.Channel:
		return fmt.Errorf("%w: it is about another payee, holder or channel", ErrStatement)
	case p.Deadline > st.Until:
		return fmt.Errorf("%w: until epoch %d, asked for is %d; give less time, or ask the payee for a newer one", ErrStale, st.Until, p.Deadline)
	case v.Gone || v.Settling:
		return fmt.Errorf("%w: channel %s settles, or is gone", ErrChannel, p.Channel)
	case p.Deadline < v.Height+t.Least():
		return wrapTerms(fmt.Sprintf("until epoch %d; the payee needs %d from %d on", p.Deadline, t.Least(), v.Height))
	case v.MinSettle < need:
		return fmt.Errorf("%w: the chain shows a settle height of %d, the deadline %d needs %d; the payee has to submit a guard while it is online, or give less time",
			ErrNoGuard, v.MinSettle, p.Deadline, need)
	case v.Used:
		return fmt.Errorf("%w: lane %d is in use", ErrVoucher, p.Lane())
	}
	free := v.Balance.SaturatingSub(max(st.Total, v.ToSend))
	if left := st.Room.SaturatingSub(spent); p.Amount > min(free, left) {
		return fmt.Errorf("%w: %d units are free beside the payee's vouchers, %d of the %d that it has promised; %d are asked for",
			ErrLaneRoom, free, left, st.Room, p.Amount)
	}
	return nil
}

const (
	// MaxMailText bounds the text of a mail.
	MaxMailText = 900
	mailPrefix  = "tallymail1"
)

// Mail is what the payer sends to the payee: all that is needed to redeem. It is worth
// nothing to anybody else, for only the payee can submit a voucher of its channel.
type Mail struct {
	Realm string
	ID    ID
	// Payer says who bought it, Serial over which statement.
	Payer    peer.ID
	Serial   uint64
	Voucher  []byte
	Preimage tally.Preimage
}

// String returns the text of a mail.
//
//	tallymail1 ‖ base32hex(realm ‖ id 16 ‖ payer ‖ serial 8 ‖ voucher ‖ preimage 32 ‖ check 4)
func (m *Mail) String() string {
	var b cryptobyte.Builder
	addShort(&b, []byte(m.Realm))
	b.AddBytes(m.ID[:])
	addShort(&b, []byte(m.Payer))
	b.AddUint64(m.Serial)
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(m.Voucher) })
	b.AddBytes(m.Preimage[:])
	return writeText(mailPrefix, b.BytesOrPanic())
}

// ParseMail reads exactly what String writes. ErrMail.
func ParseMail(text string) (Mail, error) {
	bad := func(what string) (Mail, error) { return Mail{}, fmt.Errorf("%w: %s", ErrMail, what) }
	if len(text) > MaxMailText {
		return bad(fmt.Sprintf("longer than %d", MaxMailText))
	}
	body, err := readText(mailPrefix, text)
	if err != nil {
		return bad(err.Error())
	}
	r := reader{String: body}
	m := Mail{Realm: r.short(), ID: r.id(), Payer: peer.ID(r.short()), Serial: r.uint(), Voucher: r.long(), Preimage: r.digest()}
	if r.bad || !r.Empty() || m.Realm == "" || len(m.Realm) > maxRealm || !goodPeer(m.Payer) || len(m.Voucher) == 0 || len(m.Voucher) > maxVoucher {
		return bad("not canonical")
	}
	return m, nil
}

// long reads a voucher.
func (r *reader) long() []byte {
	var v cryptobyte.String
	r.bad = !r.ReadUint16LengthPrefixed(&v) || len(v) > maxVoucher || r.bad
	if r.bad {
		return nil
	}
	return append([]byte(nil), v...)
}
