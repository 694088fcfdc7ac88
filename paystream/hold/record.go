package hold

import (
	"fmt"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/crypto/cryptobyte"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paystream/payments"
)

// recordVersion is the version of all kinds of record.
const recordVersion byte = 1

// Where the tables lie.
const (
	keyPrefix     = "/hold/"
	heldPrefix    = keyPrefix + "held/"
	sentPrefix    = keyPrefix + "sent/"
	receiptPrefix = keyPrefix + "receipt/"
	givenPrefix   = keyPrefix + "given/"
	boughtPrefix  = keyPrefix + "bought/"
	salePrefix    = keyPrefix + "sale/"
	statedPrefix  = keyPrefix + "stated/" // to us, by payees
	roomPrefix    = keyPrefix + "room/"   // by us
	takenPrefix   = keyPrefix + "taken/"
)

func heldKey(id ID) string                 { return heldPrefix + durable.KeyID(id[:]) }
func sentKey(id ID) string                 { return sentPrefix + durable.KeyID(id[:]) }
func receiptKey(id payments.PartID) string { return receiptPrefix + durable.KeyID(id[:]) }
func givenKey(h tally.Hashlock) string     { return givenPrefix + durable.KeyID(h[:]) }

// saveRecord is the effect that puts a record, or with none takes it away.
func saveRecord(key string, rec []byte) Effect {
	if rec != nil {
		rec = durable.Seal(nil, key, recordVersion, rec)
	}
	return Effect{Kind: FxSave, Key: key, Record: rec}
}

// reader takes a record apart. After the first missing byte all it gives is zero.
type reader struct {
	cryptobyte.String
	bad bool
}

func (r *reader) byte() (v byte) {
	r.bad = !r.ReadUint8(&v) || r.bad
	return v
}

func (r *reader) uint() (v uint64) {
	r.bad = !r.ReadUint64(&v) || r.bad
	return v
}

// time is a number of milliseconds that leaves room for sums.
func (r *reader) time() int64 {
	v := r.uint()
	if v > uint64(maxTime) {
		r.bad = true
		return 0
	}
	return int64(v)
}

func (r *reader) digest() (v [32]byte) {
	r.bad = !r.CopyBytes(v[:]) || r.bad
	return v
}

func (r *reader) id() (v [16]byte) {
	r.bad = !r.CopyBytes(v[:]) || r.bad
	return v
}

func (r *reader) short() string {
	var v cryptobyte.String
	r.bad = !r.ReadUint8LengthPrefixed(&v) || r.bad
	return string(v)
}

func (r *reader) peer() peer.ID {
	p := peer.ID(r.short())
	r.bad = r.bad || p == "" || len(p) > maxPeerID
	return p
}

// flags reads a byte of n flags.
func (r *reader) flags(n int) byte {
	b := r.byte()
	r.bad = r.bad || b>>n != 0
	return b
}

func (r *reader) end(what string) error {
	if r.bad || !r.Empty() {
		return fmt.Errorf("%w: %s; restore a backup", ErrRecord, what)
	}
	return nil
}

func flagsOf(list ...bool) (b byte) {
	for i, f := range list {
		if f {
			b |= 1 << i
		}
	}
	return b
}

func addUints(b *cryptobyte.Builder, list ...uint64) {
	for _, n := range list {
		b.AddUint64(n)
	}
}

func (t *Terms) add(b *cryptobyte.Builder) {
	for _, p := range [...]peer.ID{t.Payer, t.Holder, t.Payee} {
		addShort(b, []byte(p))
	}
	b.AddBytes(t.Hash[:])
	addUints(b, uint64(t.Amount), uint64(t.Expires), uint64(t.Until))
	b.AddUint8(flagsOf(t.Poll))
	addShort(b, t.Box)
}

func (r *reader) terms(id ID) Terms {
	t := Terms{ID: id, Payer: r.peer(), Holder: r.peer(), Payee: r.peer(), Hash: r.digest(), Amount: tally.Amount(r.uint())}
	t.Expires, t.Until = r.time(), r.time()
	t.Poll = r.flags(1) == 1
	if box := r.short(); box != "" {
		t.Box = []byte(box)
	}
	r.bad = r.bad || t.Validate() != nil
	return t
}

func (h *Held) record() []byte {
	var b cryptobyte.Builder
	h.Terms.add(&b)
	b.AddUint8(byte(h.State))
	b.AddUint8(flagsOf(h.Released, h.Stop, h.Done))
	addUints(&b, uint64(h.Price), uint64(h.Changed), uint64(h.Offers))
	b.AddBytes(h.Out[:])
	b.AddBytes(h.Preimage[:])
	return b.BytesOrPanic()
}

// Restore takes a row of an earlier run, before the first Step.
func (h *Holder) Restore(id ID, rec []byte) error {
	d := reader{String: rec}
	r := &Held{Terms: d.terms(id), State: State(d.byte())}
	flags := d.flags(3)
	r.Released, r.Stop, r.Done = flags&1 != 0, flags&2 != 0, flags&4 != 0
	r.Price, r.Changed, r.Offers = tally.Amount(d.uint()), d.time(), int(d.time())
	r.Out, r.Preimage = d.id(), d.digest()
	paid := r.State == StateClaimed || r.State == StateSettled
	d.bad = d.bad || r.State < StateDraft || r.State > StateExpired || r.Holder != h.self || r.Offers > MaxOffers ||
		paid != (r.Preimage != tally.Preimage{}) || paid && !r.Preimage.Opens(r.Hash) ||
		(r.State == StateOffered) != (r.Out != payments.PartID{}) || r.Done && r.State.Live() || h.rows[id] != nil ||
		h.outs[r.Out] != nil
	if err := d.end("hold " + id.String()); err != nil {
		return err
	}
	h.add(r)
	return nil
}

func (s *Sent) record() []byte {
	var b cryptobyte.Builder
	s.Terms.add(&b)
	b.AddUint8(byte(s.Status))
	b.AddUint8(byte(s.Failure))
	b.AddUint8(flagsOf(s.Promised, s.Cancel))
	addUints(&b, uint64(s.Price), uint64(s.Created), uint64(s.Changed), uint64(s.Certain))
	b.AddBytes(s.Preimage[:])
	addShort(&b, []byte(s.Memo))
	return b.BytesOrPanic()
}

// Restore takes a row of an earlier run.
func (p *Payer) Restore(id ID, rec []byte) error {
	d := reader{String: rec}
	r := &Sent{Terms: d.terms(id), Status: Status(d.byte()), Failure: payments.FailCode(d.byte())}
	flags := d.flags(2)
	r.Promised, r.Cancel = flags&1 != 0, flags&2 != 0
	r.Price, r.Created, r.Changed, r.Certain = tally.Amount(d.uint()), d.time(), d.time(), d.time()
	r.Preimage, r.Memo = d.digest(), d.short()
	d.bad = d.bad || r.Status < StatusParking || r.Status > StatusFailed || p.rows[id] != nil ||
		(r.Status == StatusComplete || !r.Promised) && !r.Preimage.Opens(r.Hash) || r.Promised == (len(r.Box) > 0) ||
		len(r.Memo) > MaxMemo || !utf8.ValidString(r.Memo)
	if _, twice := p.hashes[r.Hash]; twice && r.Promised {
		d.bad = true
	}
	if err := d.end("hold " + id.String()); err != nil {
		return err
	}
	p.add(r)
	return nil
}

func (r *Receipt) record() []byte {
	var b cryptobyte.Builder
	b.AddUint8(byte(r.State))
	b.AddBytes(r.Hold[:])
	addShort(&b, []byte(r.Holder))
	b.AddBytes(r.Hash[:])
	addUints(&b, uint64(r.Amount), uint64(r.Sealed), uint64(r.At), uint64(r.Expires))
	b.AddBytes(r.Preimage[:])
	addShort(&b, []byte(r.Memo))
	return b.BytesOrPanic()
}

// RestoreReceipt takes a row of an earlier run, after the promises.
func (p *Payee) RestoreReceipt(id payments.PartID, rec []byte) error {
	d := reader{String: rec}
	r := &Receipt{PartID: id, State: ReceiptState(d.byte()), Hold: d.id(), Holder: d.peer(), Hash: d.digest()}
	r.Amount, r.Sealed, r.At, r.Expires = tally.Amount(d.uint()), tally.Amount(d.uint()), d.time(), d.time()
	r.Preimage, r.Memo = d.digest(), d.short()
	d.bad = d.bad || r.State < ReceiptClaiming || r.State > ReceiptUnsure || r.Sealed == 0 || r.Amount < r.Sealed ||
		!r.Preimage.Opens(r.Hash) || len(p.receipts) >= MaxReceipts || len(r.Memo) > MaxMemo
	if g := p.given[r.Hash]; g != nil && g.Used != r.Hold {
		d.bad = true
	}
	if err := d.end("receipt " + id.String()); err != nil {
		return err
	}
	p.receipts[id] = r
	return nil
}

func (g *Given) record() []byte {
	b := cryptobyte.NewBuilder(g.body())
	addShort(b, g.Signature)
	b.AddBytes(g.Preimage[:])
	b.AddBytes(g.Used[:])
	return b.BytesOrPanic()
}

// RestoreGiven takes a promise of an earlier run.
func (p *Payee) RestoreGiven(h tally.Hashlock, rec []byte) error {
	d := reader{String: rec}
	g := &Given{Promise: d.promise()}
	g.Preimage, g.Used = d.digest(), d.id()
	d.bad = d.bad || g.Validate() != nil || g.Hash != h || !g.Preimage.Opens(h) || len(p.given) >= MaxPromises
	if err := d.end("promise " + h.String()); err != nil {
		return err
	}
	p.given[h] = g
	return nil
}

func (r *reader) promise() Promise {
	p := Promise{Realm: r.short(), Payee: peer.ID(r.short()), Payer: peer.ID(r.short()), Hash: r.digest()}
	p.Amount, p.Expires, p.Signature = tally.Amount(r.uint()), r.time(), []byte(r.short())
	return p
}
