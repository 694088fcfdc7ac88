package swap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
)

// Versions of the records, one byte in front of each.
const (
	ledgerVersion  byte = 1
	chequeVersion  byte = 1
	ackVersion     byte = 1
	serviceVersion byte = 1
	runVersion     byte = 1
)

// ledgerPayload is the length of a ledger record without its frame.
const ledgerPayload = ledgerWords*8 + 2

// ledgerWords is the number of 64-bit fields of a ledger record.
const ledgerWords = 20

// shelf names the kinds of record below a book's prefix. One letter keeps a
// million keys short.
type shelf byte

const (
	shelfLedger         shelf = 'l'
	shelfChequeSent     shelf = 's'
	shelfChequeReceived shelf = 'r'
	shelfAckGiven       shelf = 'g'
	shelfAckReceived    shelf = 'a'
	shelfServices       shelf = 'v'
	shelfEvidence       shelf = 'e'
)

// keys builds the datastore keys of one book.
type keys struct{ root string }

// newKeys gives each asset its own records.
func newKeys(asset string) keys {
	return keys{root: "/swap/" + durable.KeyID([]byte(asset)) + "/"}
}

func (k keys) prefix(s shelf) string { return k.root + string(rune(s)) + "/" }

func (k keys) of(s shelf, p peer.ID) string { return k.prefix(s) + durable.KeyID([]byte(p)) }

func (k keys) run() string { return k.root + "run" }

// peerOf reads the peer id back out of the key of a ledger.
func (k keys) peerOf(key string) (peer.ID, error) {
	raw, err := durable.ParseKeyID(key[len(k.prefix(shelfLedger)):])
	if err != nil {
		return "", err
	}
	return peer.ID(raw), nil
}

// stamp is what a ledger record carries beside the ledger.
type stamp struct {
	// run is the book's run number in which the books last agreed, or 0.
	run uint64
	// usedAt is the wall-clock time of the last use, in Unix seconds; it only
	// decides the age at which a stranger's record is dropped.
	usedAt int64
}

// appendLedger encodes a ledger record. Work in flight is saved as unanswered:
// after a crash nobody will commit it, and the peer may have booked it.
func appendLedger(dst []byte, l *Ledger, now Instant, s stamp) []byte {
	var left int64
	if l.blockedUntil > now {
		left = int64(l.blockedUntil - now)
	}
	for _, n := range [...]uint64{
		uint64(l.owed), uint64(l.prepaidByPeer), uint64(l.prepaidToPeer),
		uint64(min(l.unanswered+l.reserved, maxLedgerAmount)),
		uint64(l.served), uint64(l.consumed), uint64(l.received), uint64(l.covered), uint64(l.accepted),
		uint64(l.paid), uint64(l.issued), l.sentSerial, l.receivedSerial,
		uint64(l.forgiven), uint64(l.skew), uint64(l.peerPayment), uint64(l.peerDisconnect),
		uint64(left), s.run, uint64(s.usedAt),
	} {
		dst = binary.BigEndian.AppendUint64(dst, n)
	}
	return append(dst, byte(l.settle)|byte(l.peerMode)<<4, byte(l.flags&keptFlags))
}

// keptFlags are those that mean something without a session.
const keptFlags = flagSkewed | flagUnclean | flagUntold | flagKarmaSent

var errRecord = errors.New("swap: damaged ledger record")

// parseLedger decodes a record and checks the invariants of what it finds: the
// same facts that held when it was written.
// unix is the wall clock: a block went on while the record lay on disk. Where the
// clock was set back, it counts as if no time had passed.
func parseLedger(payload []byte, policy *Policy, now Instant, unix int64) (Ledger, stamp, error) {
	if len(payload) != ledgerPayload {
		return Ledger{}, stamp{}, fmt.Errorf("%w: %d bytes, want %d", errRecord, len(payload), ledgerPayload)
	}
	var n [ledgerWords]uint64
	for i := range n {
		n[i] = binary.BigEndian.Uint64(payload[8*i:])
	}
	tail := payload[len(payload)-2:]
	l := Ledger{
		policy:        policy,
		owed:          tally.Balance(n[0]),
		prepaidByPeer: tally.Amount(n[1]), prepaidToPeer: tally.Amount(n[2]),
		unanswered: tally.Amount(n[3]),
		served:     tally.Amount(n[4]), consumed: tally.Amount(n[5]),
		received: tally.Amount(n[6]), covered: tally.Amount(n[7]), accepted: tally.Amount(n[8]),
		paid: tally.Amount(n[9]), issued: tally.Amount(n[10]),
		sentSerial: n[11], receivedSerial: n[12],
		forgiven: tally.Amount(n[13]), skew: tally.Balance(n[14]),
		peerPayment: tally.Amount(n[15]), peerDisconnect: tally.Amount(n[16]),
		settle: settleState(tail[0] & 0xf), peerMode: Mode(tail[0] >> 4),
		flags: ledgerFlags(tail[1]) & keptFlags,
	}
	st := stamp{run: n[18], usedAt: int64(n[19])}
	left := time.Duration(min(n[17], uint64(maxBlock)))
	if lain := max(0, unix-st.usedAt); lain < int64(left/time.Second) {
		l.blockedUntil = now.Add(left - time.Duration(lain)*time.Second)
	}
	l.peerPayment = min(l.peerPayment, policy.MaxPeerThreshold) // the bounds may have changed since
	if max(l.prepaidByPeer, l.prepaidToPeer, l.unanswered, l.accepted, l.issued, l.forgiven) > maxLedgerAmount {
		return Ledger{}, stamp{}, fmt.Errorf("%w: an amount is over %d", errRecord, maxLedgerAmount)
	}
	if err := l.Check(); err != nil {
		return Ledger{}, stamp{}, fmt.Errorf("%w: %w", errRecord, err)
	}
	return l, st, nil
}

// runRecord counts the runs of a book, so that a record tells whether the last
// stop before it was a clean one.
type runRecord struct {
	run         uint64
	lastUnclean uint64 // the run after the last unclean stop
	open        bool
}

func (r runRecord) encode(key string) []byte {
	b := binary.BigEndian.AppendUint64(nil, r.run)
	b = binary.BigEndian.AppendUint64(b, r.lastUnclean)
	var open byte
	if r.open {
		open = 1
	}
	return durable.Seal(nil, key, runVersion, append(b, open))
}

func parseRun(payload []byte) (runRecord, error) {
	if len(payload) != 17 {
		return runRecord{}, fmt.Errorf("%w: run record of %d bytes", errRecord, len(payload))
	}
	return runRecord{
		run:         binary.BigEndian.Uint64(payload),
		lastUnclean: binary.BigEndian.Uint64(payload[8:]),
		open:        payload[16] != 0,
	}, nil
}

// appendBytes and its reader frame the variable fields of cheques and acks.
func appendBytes(dst, b []byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(b)))
	return append(dst, b...)
}

// fieldReader reads fixed and length-prefixed fields; the first error stays.
type fieldReader struct {
	b   []byte
	err error
}

func (r *fieldReader) uint64() uint64 {
	b := r.take(8)
	if r.err != nil {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

func (r *fieldReader) bytes() []byte {
	b := r.take(2)
	if r.err != nil {
		return nil
	}
	return append([]byte(nil), r.take(int(binary.BigEndian.Uint16(b)))...)
}

func (r *fieldReader) take(n int) []byte {
	if r.err != nil || len(r.b) < n {
		r.err = errRecord
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *fieldReader) end() error {
	if r.err == nil && len(r.b) != 0 {
		r.err = errRecord
	}
	return r.err
}

// encodeCheque returns the stored form of a cheque.
func encodeCheque(c *Cheque) []byte {
	var b []byte
	for _, n := range [...]uint64{
		c.Serial, uint64(c.Cumulative), uint64(c.Served), uint64(c.Consumed), uint64(c.Balance), uint64(c.Date),
	} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	for _, f := range [...][]byte{[]byte(c.Issuer), []byte(c.Beneficiary), c.Backing, c.Signature} {
		b = appendBytes(b, f)
	}
	return b
}

func decodeCheque(payload []byte) (*Cheque, error) {
	r := fieldReader{b: payload}
	c := &Cheque{
		Serial: r.uint64(), Cumulative: tally.Amount(r.uint64()),
		Served: tally.Amount(r.uint64()), Consumed: tally.Amount(r.uint64()),
		Balance: tally.Balance(r.uint64()), Date: int64(r.uint64()),
		Issuer: peer.ID(r.bytes()), Beneficiary: peer.ID(r.bytes()),
		Backing: r.bytes(), Signature: r.bytes(),
	}
	return c, r.end()
}

func encodeAck(a *Ack) []byte {
	var b []byte
	for _, n := range [...]uint64{
		a.Serial, uint64(a.Credited), uint64(a.Served), uint64(a.Consumed), uint64(a.Balance),
	} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	b = append(b, a.ChequeHash[:]...)
	for _, f := range [...][]byte{[]byte(a.Issuer), []byte(a.Beneficiary), a.Signature} {
		b = appendBytes(b, f)
	}
	return b
}

func decodeAck(payload []byte) (*Ack, error) {
	r := fieldReader{b: payload}
	a := &Ack{
		Serial: r.uint64(), Credited: tally.Amount(r.uint64()),
		Served: tally.Amount(r.uint64()), Consumed: tally.Amount(r.uint64()),
		Balance: tally.Balance(r.uint64()),
	}
	copy(a.ChequeHash[:], r.take(32))
	a.Issuer, a.Beneficiary, a.Signature = peer.ID(r.bytes()), peer.ID(r.bytes()), r.bytes()
	return a, r.end()
}

// maxServices bounds the services that are counted apart for one peer. Later
// ones are counted together under the empty name.
const maxServices = 16

// serviceTotals is what one service moved with one peer.
type serviceTotals struct {
	name             string
	served, consumed tally.Amount
}

func encodeServices(list []serviceTotals) []byte {
	var b []byte
	for _, s := range list {
		b = appendBytes(b, []byte(s.name))
		b = binary.BigEndian.AppendUint64(b, uint64(s.served))
		b = binary.BigEndian.AppendUint64(b, uint64(s.consumed))
	}
	return b
}

func decodeServices(payload []byte) ([]serviceTotals, error) {
	r := fieldReader{b: payload}
	var list []serviceTotals
	for len(r.b) > 0 && r.err == nil {
		list = append(list, serviceTotals{
			name: string(r.bytes()), served: tally.Amount(r.uint64()), consumed: tally.Amount(r.uint64()),
		})
	}
	return list, r.end()
}

// addServices merges deltas into stored totals.
func addServices(list, deltas []serviceTotals) []serviceTotals {
	for _, d := range deltas {
		list = addService(list, d.name, d.served, d.consumed)
	}
	return list
}

// addService counts for one service, or for the nameless rest where maxServices
// are counted apart already.
func addService(list []serviceTotals, name string, served, consumed tally.Amount) []serviceTotals {
	for {
		for i := range list {
			if list[i].name == name {
				list[i].served = list[i].served.SaturatingAdd(served)
				list[i].consumed = list[i].consumed.SaturatingAdd(consumed)
				return list
			}
		}
		if len(list) < maxServices || name == "" {
			return append(list, serviceTotals{name: name, served: served, consumed: consumed})
		}
		name = ""
	}
}
