package hold

import (
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/crypto/blake2b"
	"golang.org/x/crypto/cryptobyte"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paystream/payments"
)

// Records of vouchers that are bought and sold.

func boughtKey(id ID) string { return boughtPrefix + durable.KeyID(id[:]) }
func saleKey(id ID) string   { return salePrefix + durable.KeyID(id[:]) }
func takenKey(id ID) string  { return takenPrefix + durable.KeyID(id[:]) }

func statedOurs(serial uint64) string { return roomPrefix + durable.KeyUint(serial) }

// statedKey is of a digest: two peer ids are too long for a key.
func statedKey(k stated) string {
	sum := k.digest()
	return statedPrefix + durable.KeyID(sum[:])
}

func (k stated) digest() [32]byte {
	var b cryptobyte.Builder
	addShort(&b, []byte(k.payee))
	addShort(&b, []byte(k.payer))
	return blake2b.Sum256(b.BytesOrPanic())
}

func (p *Purchase) add(b *cryptobyte.Builder) {
	for _, id := range [...]peer.ID{p.Payer, p.Holder, p.Payee} {
		addShort(b, []byte(id))
	}
	addShort(b, []byte(p.Channel))
	addUints(b, uint64(p.Amount), uint64(p.Deadline))
}

func (r *reader) purchase(id ID) Purchase {
	p := Purchase{ID: id, Payer: r.peer(), Holder: r.peer(), Payee: r.peer(), Channel: r.short()}
	p.Amount, p.Deadline = tally.Amount(r.uint()), r.time()
	r.bad = r.bad || p.Validate() != nil
	return p
}

func addLong(b *cryptobyte.Builder, v []byte) {
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(v) })
}

func (b *Bought) record() []byte {
	var w cryptobyte.Builder
	b.add(&w)
	w.AddUint8(byte(b.Status))
	w.AddUint8(byte(b.Failure))
	addUints(&w, b.Serial, uint64(b.Room), uint64(b.Price), uint64(b.Created), uint64(b.Changed), uint64(b.Until), uint64(b.Ends))
	w.AddBytes(b.Hash[:])
	w.AddBytes(b.Preimage[:])
	addLong(&w, b.Voucher)
	return w.BytesOrPanic()
}

// Restore takes a row of an earlier run, before the first Step.
func (b *Buyer) Restore(id ID, rec []byte) error {
	d := reader{String: rec}
	r := &Bought{Purchase: d.purchase(id), Status: BuyStatus(d.byte()), Failure: payments.FailCode(d.byte())}
	r.Serial, r.Room, r.Price = d.uint(), tally.Amount(d.uint()), tally.Amount(d.uint())
	r.Created, r.Changed, r.Until, r.Ends = d.time(), d.time(), d.time(), d.time()
	r.Hash, r.Preimage, r.Voucher = d.digest(), d.digest(), d.long()
	d.bad = d.bad || r.Status < BuyPaying || r.Status > BuyUnsure || b.rows[id] != nil || len(r.Voucher) == 0 || len(b.rows) >= MaxBought ||
		r.Status.paid() != (r.Preimage != tally.Preimage{}) || r.Status.paid() && !r.Preimage.Opens(r.Hash)
	if err := d.end("purchase " + id.String()); err != nil {
		return err
	}
	b.rows[id] = r
	return nil
}

func (s *Sale) record() []byte {
	var w cryptobyte.Builder
	s.add(&w)
	w.AddUint8(byte(s.State))
	addUints(&w, uint64(s.Price), uint64(s.Changed), uint64(s.Until))
	w.AddBytes(s.Preimage[:])
	return w.BytesOrPanic()
}

// Restore takes a row of an earlier run, before the first Step.
func (s *Seller) Restore(id ID, rec []byte) error {
	d := reader{String: rec}
	r := &Sale{Purchase: d.purchase(id), State: SaleState(d.byte())}
	r.Price, r.Changed, r.Until, r.Preimage = tally.Amount(d.uint()), d.time(), d.time(), d.digest()
	d.bad = d.bad || r.State < SaleOffered || r.State > SaleSettled || r.Holder != s.self || r.Preimage == tally.Preimage{} || s.rows[id] != nil
	if err := d.end("sale " + id.String()); err != nil {
		return err
	}
	s.rows[id] = r
	return nil
}

func (s *statement) record() []byte {
	b := cryptobyte.NewBuilder(s.body())
	addShort(b, s.Signature)
	b.AddUint64(uint64(s.ends))
	return b.BytesOrPanic()
}

// RestoreStatement takes a payee's statement of an earlier run.
func (s *Seller) RestoreStatement(key [32]byte, rec []byte) error {
	d := reader{String: rec}
	st := &statement{LaneStatement: d.statement()}
	st.ends = d.time()
	k := stated{st.Payee, st.Payer}
	d.bad = d.bad || st.Validate() != nil || k.digest() != key || st.Holder != s.self
	if err := d.end("lane statement"); err != nil {
		return err
	}
	s.statements[k] = st
	return nil
}

func (s *Stated) record() []byte {
	b := cryptobyte.NewBuilder(s.body())
	addShort(b, s.Signature)
	addUints(b, uint64(s.Used), uint64(s.Ends))
	return b.BytesOrPanic()
}

// RestoreStated takes a statement of ours of an earlier run.
func (t *Taker) RestoreStated(serial uint64, rec []byte) error {
	d := reader{String: rec}
	s := &Stated{LaneStatement: d.statement()}
	s.Used, s.Ends = tally.Amount(d.uint()), d.time()
	d.bad = d.bad || s.LaneStatement.Validate() != nil || s.Serial != serial || s.Payee != t.self || s.Used > s.Room || t.stated[serial] != nil
	if err := d.end("lane statement of ours"); err != nil {
		return err
	}
	t.stated[serial], t.serial = s, max(t.serial, serial)
	return nil
}

func (t *Taken) record() []byte {
	var w cryptobyte.Builder
	t.add(&w)
	addUints(&w, t.Serial, uint64(t.At), uint64(t.Until), uint64(t.Drew))
	addLong(&w, t.Voucher)
	return w.BytesOrPanic()
}

// RestoreTaken takes a mail of an earlier run.
func (t *Taker) RestoreTaken(id ID, rec []byte) error {
	d := reader{String: rec}
	r := &Taken{Purchase: d.purchase(id)}
	r.Serial, r.At, r.Until, r.Drew, r.Voucher = d.uint(), d.time(), d.time(), tally.Amount(d.uint()), d.long()
	d.bad = d.bad || r.Payee != t.self || t.taken[id] != nil || len(t.taken) >= MaxTaken || len(r.Voucher) == 0
	if err := d.end("mail " + id.String()); err != nil {
		return err
	}
	t.taken[id] = r
	return nil
}
