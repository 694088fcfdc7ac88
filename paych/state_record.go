package paych

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/exitcode"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally"
)

// Versions of the records. A record is what is written here between the version
// and the checksum of package durable; numbers are big-endian.
const (
	channelVersion = 3 // 1 had no lanes in the final result, 2 no nonces of them
	laneVersion    = 2 // 1 knew no claims under points, and is written where there are none
	messageVersion = 2 // 1 knew no replacements
	historyVersion = 1
	chainVersion   = 1
)

var errRecord = errors.New("paych: malformed record")

// writer appends fields to a record.
type writer struct{ b []byte }

func (w *writer) u8(n uint8)   { w.b = append(w.b, n) }
func (w *writer) u64(n uint64) { w.b = binary.BigEndian.AppendUint64(w.b, n) }
func (w *writer) epoch(e abi.ChainEpoch) {
	w.u64(uint64(e))
}

func (w *writer) flag(f bool) {
	if f {
		w.u8(1)
	} else {
		w.u8(0)
	}
}

// bytes are behind a length of four bytes.
func (w *writer) bytes(b []byte) {
	w.b = binary.BigEndian.AppendUint32(w.b, uint32(len(b)))
	w.b = append(w.b, b...)
}

// amount is never negative.
func (w *writer) amount(x big.Int) {
	if x.Int == nil {
		w.bytes(nil)
		return
	}
	w.bytes(x.Int.Bytes())
}

// Write implements io.Writer, for what encodes itself.
func (w *writer) Write(p []byte) (int, error) {
	w.b = append(w.b, p...)
	return len(p), nil
}

// voucher is bytes of what EncodeVoucher gives, without a copy of it.
func (w *writer) voucher(sv *SignedVoucher) error {
	start := len(w.b)
	w.bytes(nil)
	if sv == nil {
		return nil
	}
	if err := sv.MarshalCBOR(w); err != nil {
		return fmt.Errorf("%w: encode: %w", ErrVoucherFormat, err)
	}
	size := len(w.b) - start - 4
	if size > MaxVoucherSize {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrVoucherFormat, size, MaxVoucherSize)
	}
	binary.BigEndian.PutUint32(w.b[start:], uint32(size))
	return nil
}

// pointLock is bytes of what EncodePointLock gives; none of them for nil.
func (w *writer) pointLock(l *PointLock) error {
	if l == nil {
		w.bytes(nil)
		return nil
	}
	raw, err := EncodePointLock(l)
	w.bytes(raw)
	return err
}

// reader takes fields from a record; after the first error all are zero.
type reader struct {
	b   []byte
	err error
}

func (r *reader) take(n int) []byte {
	if r.err != nil || n > len(r.b) {
		r.err = errors.Join(r.err, errRecord)
		return make([]byte, min(n, 8))
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) u8() uint8   { return r.take(1)[0] }
func (r *reader) u64() uint64 { return binary.BigEndian.Uint64(r.take(8)) }
func (r *reader) flag() bool  { return r.u8() != 0 }
func (r *reader) epoch() abi.ChainEpoch {
	return abi.ChainEpoch(r.u64())
}

func (r *reader) bytes() []byte {
	n := binary.BigEndian.Uint32(r.take(4))
	if r.err != nil || uint64(n) > uint64(len(r.b)) {
		r.err = errors.Join(r.err, errRecord)
		return nil
	}
	return r.take(int(n))
}

func (r *reader) amount() big.Int { return big.PositiveFromUnsignedBytes(r.bytes()) }

func (r *reader) address() address.Address {
	b := r.bytes()
	if r.err != nil || len(b) == 0 {
		return address.Undef
	}
	a, err := address.NewFromBytes(b)
	if err != nil {
		r.err = fmt.Errorf("%w: %w", errRecord, err)
	}
	return a
}

func (r *reader) cid() cid.Cid {
	b := r.bytes()
	if r.err != nil || len(b) == 0 {
		return cid.Undef
	}
	c, err := cid.Cast(b)
	if err != nil {
		r.err = fmt.Errorf("%w: %w", errRecord, err)
	}
	return c
}

func (r *reader) voucher() *SignedVoucher {
	b := r.bytes()
	if r.err != nil || len(b) == 0 {
		return nil
	}
	sv, err := DecodeVoucher(b)
	if err != nil {
		r.err = fmt.Errorf("%w: %w", errRecord, err)
	}
	return sv
}

func (r *reader) pointLock() *PointLock {
	b := r.bytes()
	if r.err != nil || len(b) == 0 {
		return nil
	}
	l, err := DecodePointLock(b)
	if err != nil {
		r.err = fmt.Errorf("%w: %w", errRecord, err)
	}
	return l
}

// end reports the first error, or that something is left.
func (r *reader) end() error {
	if r.err == nil && len(r.b) != 0 {
		return fmt.Errorf("%w: %d bytes too many", errRecord, len(r.b))
	}
	return r.err
}

func (w *writer) view(v *View) {
	w.epoch(v.Height)
	w.amount(v.Balance)
	w.amount(v.ToSend)
	w.epoch(v.SettlingAt)
	w.epoch(v.MinSettling)
}

func (r *reader) view() View {
	return View{Height: r.epoch(), Balance: r.amount(), ToSend: r.amount(), SettlingAt: r.epoch(), MinSettling: r.epoch()}
}

// encodeChannel is the channel without its lanes.
func encodeChannel(c *Channel) []byte {
	w := writer{b: make([]byte, 0, 512)}
	w.u64(c.ID)
	w.bytes(c.Addr.Bytes())
	w.bytes(c.From.Bytes())
	w.bytes(c.To.Bytes())
	w.u8(uint8(c.Direction))
	w.u8(uint8(c.Phase))
	w.bytes([]byte(c.Tag))
	w.flag(c.Owned)
	w.amount(c.Amount)
	for _, id := range [...]cid.Cid{c.Created, c.Settled, c.Collected} {
		w.bytes(id.Bytes())
	}
	w.flag(c.Buried)
	w.amount(c.Reserved)
	w.u64(c.NextLane)
	w.u64(c.Vouchers)
	w.view(&c.Head)
	w.view(&c.Deep)
	// A top-up that is not saved yet is no fact: its callers got no answer.
	t := c.TopUp
	w.flag(t != nil && t.Sent)
	if t != nil && t.Sent {
		for _, x := range [...]big.Int{t.Amount, t.Before, t.Reserve, t.Held} {
			w.amount(x)
		}
	}
	w.flag(c.Final != nil)
	if f := c.Final; f != nil {
		w.epoch(f.Height)
		w.amount(f.ToSend)
		w.amount(f.Rest)
		w.u64(uint64(len(f.Lanes)))
		for _, l := range f.Lanes {
			w.u64(l.Lane)
			w.amount(l.Redeemed)
			w.u64(l.Nonce)
		}
	}
	return w.b
}

func decodeChannel(version byte, b []byte, rules *Rules) (*Channel, error) {
	r := reader{b: b}
	c := NewChannel(r.u64(), PCHUndef, address.Undef, address.Undef, big.Zero(), rules)
	c.Addr, c.From, c.To = r.address(), r.address(), r.address()
	c.Direction, c.Phase = PCHDir(r.u8()), Phase(r.u8())
	c.Tag, c.Owned = string(r.bytes()), r.flag()
	c.Amount = r.amount()
	c.Created, c.Settled, c.Collected = r.cid(), r.cid(), r.cid()
	c.Buried = r.flag()
	c.Reserved = r.amount()
	c.NextLane, c.Vouchers = r.u64(), r.u64()
	c.Head, c.Deep = r.view(), r.view()
	if r.flag() {
		c.TopUp = &TopUp{Sent: true, Amount: r.amount(), Before: r.amount(), Reserve: r.amount(), Held: r.amount()}
	}
	if r.flag() {
		c.Final = &Final{Height: r.epoch(), ToSend: r.amount(), Rest: r.amount()}
		if version > 1 {
			for n := r.u64(); n > 0 && r.err == nil; n-- {
				l := LaneFinal{Lane: r.u64(), Redeemed: r.amount()}
				if version > 2 {
					l.Nonce = r.u64()
				}
				c.Final.Lanes = append(c.Final.Lanes, l)
			}
		}
	}
	if r.err == nil && (int(c.Phase) >= len(phaseNames) || c.Direction != PCHInbound && c.Direction != PCHOutbound) {
		return nil, fmt.Errorf("%w: phase %d, direction %d", errRecord, c.Phase, c.Direction)
	}
	return c, r.end()
}

// encodeLane is a lane with its vouchers, and the version of the record. One that is not
// signed yet is left out: it never left, because the save that it waits for comes first.
// What nobody asked a point of, an older version reads.
func encodeLane(l *Lane) (byte, []byte, error) {
	version := byte(1)
	for i := range l.Claims {
		if l.Claims[i].Under != nil {
			version = laneVersion
		}
	}
	w := writer{b: make([]byte, 0, 768)}
	w.u64(l.ID)
	w.u64(l.Nonce)
	w.amount(l.Agreed)
	for _, v := range [...]*LaneView{&l.Head, &l.Deep} {
		w.flag(v.Known)
		w.u64(v.Nonce)
		w.amount(v.Redeemed)
	}
	if err := w.voucher(l.Refund); err != nil {
		return 0, nil, err
	}
	n := 0
	for i := range l.Claims {
		if l.Claims[i].Voucher != nil {
			n++
		}
	}
	w.u64(uint64(n))
	for i := range l.Claims {
		cl := &l.Claims[i]
		if cl.Voucher == nil {
			continue
		}
		w.amount(cl.Amount)
		w.flag(cl.Secret != nil)
		if cl.Secret != nil {
			w.b = append(w.b, cl.Secret[:]...)
		}
		if err := w.voucher(cl.Voucher); err != nil {
			return 0, nil, err
		}
		if version > 1 {
			if err := w.pointLock(cl.Under); err != nil {
				return 0, nil, err
			}
		}
	}
	return version, w.b, nil
}

func decodeLane(version byte, b []byte) (*Lane, error) {
	r := reader{b: b}
	l := newLane(r.u64())
	l.Nonce, l.Agreed = r.u64(), r.amount()
	for _, v := range [...]*LaneView{&l.Head, &l.Deep} {
		*v = LaneView{Known: r.flag(), Nonce: r.u64(), Redeemed: r.amount()}
	}
	l.Refund = r.voucher()
	n := r.u64()
	if n > maxClaims {
		return nil, fmt.Errorf("%w: %d claims", errRecord, n)
	}
	for range n {
		amount := r.amount()
		var secret *tally.Preimage
		if r.flag() {
			secret = new(tally.Preimage)
			copy(secret[:], r.take(len(secret)))
		}
		sv := r.voucher()
		if r.err != nil {
			return nil, r.err
		}
		if sv == nil {
			return nil, fmt.Errorf("%w: claim without voucher", errRecord)
		}
		var under *PointLock
		if version > 1 {
			under = r.pointLock()
		}
		if r.err != nil {
			return nil, r.err
		}
		if under != nil && (!sameBody(&under.Voucher, sv) || secret != nil && !under.opened(secret)) {
			return nil, fmt.Errorf("%w: voucher or secret of another lock", errRecord)
		}
		if under == nil && sv.Signature == nil {
			return nil, fmt.Errorf("%w: claim without a signature", errRecord)
		}
		cl := claimOf(sv, under)
		cl.Amount, cl.Secret, cl.Voucher = amount, secret, sv
		l.Claims = append(l.Claims, cl)
	}
	return l, r.end()
}

// encodeMessage is one message to the chain. The signed bytes stay until its
// receipt.
func encodeMessage(m *message) []byte {
	w := writer{b: make([]byte, 0, 256+len(m.signed.Raw))}
	w.u8(uint8(m.kind))
	w.u8(uint8(m.state))
	w.u64(m.channel)
	w.u64(m.lane)
	w.u64(m.voucherNonce)
	w.amount(m.value)
	w.bytes(m.signed.Cid.Bytes())
	w.bytes(m.signed.From.Bytes())
	w.u64(m.signed.Nonce)
	w.bytes(m.signed.Raw)
	w.u64(uint64(m.since))
	w.bytes(m.mined.Bytes())
	w.epoch(m.height)
	w.u64(uint64(m.exit))
	w.u64(uint64(len(m.before)))
	for _, id := range m.before {
		w.bytes(id.Bytes())
	}
	return w.b
}

func decodeMessage(version byte, b []byte) (*message, error) {
	r := reader{b: b}
	m := &message{
		kind: messageKind(r.u8()), state: messageState(r.u8()),
		channel: r.u64(), lane: r.u64(), voucherNonce: r.u64(), value: r.amount(),
	}
	m.signed = SignedMessage{Cid: r.cid(), From: r.address(), Nonce: r.u64(), Raw: append([]byte(nil), r.bytes()...)}
	m.since = int64(r.u64())
	m.mined, m.height = r.cid(), r.epoch()
	m.exit = exitcode.ExitCode(r.u64())
	if version > 1 {
		for n := r.u64(); n > 0 && r.err == nil; n-- {
			m.before = append(m.before, r.cid())
		}
	}
	if r.err == nil && (int(m.kind) >= len(messageKinds) || int(m.state) >= len(messageStates)) {
		return nil, fmt.Errorf("%w: message kind %d, state %d", errRecord, m.kind, m.state)
	}
	return m, r.end()
}
