package swap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
)

// sampleLedger is a ledger with a different value in each field that is kept.
func sampleLedger(policy *Policy) Ledger {
	l := NewLedger(policy)
	l.served, l.consumed, l.received, l.paid = 1000, 200, 300, 100
	l.owed = 600
	l.prepaidToPeer = 0
	l.unanswered, l.covered, l.accepted, l.issued = 7, 250, 320, 150
	l.sentSerial, l.receivedSerial = 11, 12
	l.forgiven, l.skew = 13, -14
	l.peerPayment, l.peerDisconnect = 90, 115
	l.settle, l.peerMode = settlePending, ModeHard
	l.flags = flagSkewed | flagUntold
	return l
}

func TestLedgerRecord(t *testing.T) {
	policy := DefaultPolicy()
	const now, unix = Instant(time.Hour), int64(1_700_000_000)
	want := sampleLedger(&policy)
	want.blockedUntil = now.Add(30 * time.Second)
	st := stamp{run: 3, usedAt: unix}
	got, gotStamp, err := parseLedger(appendLedger(nil, &want, now, st), &policy, now, unix)
	if err != nil || got != want || gotStamp != st {
		t.Errorf("%+v, %+v, %v\nwant %+v", got, gotStamp, err, want)
	}

	// What is in flight is saved as unanswered; what is only of the session or
	// of this run is not saved.
	live := want
	live.reserved, live.shadow, live.dirty = 5, 6, 7
	live.refusedAt, live.retryAt, live.toldAt = 1, 2, 3
	live.flags |= flagReady | flagNative
	live.attempts = 4
	want.unanswered += 5
	if got, _, err = parseLedger(appendLedger(nil, &live, now, st), &policy, now, unix); err != nil || got != want {
		t.Errorf("%+v, %v\nwant %+v", got, err, want)
	}

	// A block goes on while the record lies, and never begins again.
	for lain, left := range map[int64]time.Duration{-3600: 30 * time.Second, 0: 30 * time.Second, 10: 20 * time.Second, 30: 0, 1 << 40: 0} {
		got, _, err := parseLedger(appendLedger(nil, &live, now, st), &policy, now, unix+lain)
		if err != nil || got.blockedUntil.Sub(now) != left {
			t.Errorf("after %d s %v are left, want %v, %v", lain, got.blockedUntil.Sub(now), left, err)
		}
	}

	// The bounds may have changed since.
	strict := Policy{MaxPeerThreshold: 50}.Complete()
	if got, _, err = parseLedger(appendLedger(nil, &live, now, st), &strict, now, unix); err != nil || got.peerPayment != 50 {
		t.Errorf("threshold %d under a bound of 50, %v", got.peerPayment, err)
	}
}

func TestLedgerRecordDamaged(t *testing.T) {
	policy := DefaultPolicy()
	l := sampleLedger(&policy)
	for name, change := range map[string]func(l *Ledger){
		"conservation": func(l *Ledger) { l.owed++ },
		"cover":        func(l *Ledger) { l.covered = l.received + 1 },
		"issued":       func(l *Ledger) { l.issued = l.paid - 1 },
		"accepted":     func(l *Ledger) { l.accepted = l.received - 1 },
		"huge":         func(l *Ledger) { l.accepted = maxLedgerAmount + 1 },
		"unanswered":   func(l *Ledger) { l.forgiven = tally.MaxAmount },
		"settle state": func(l *Ledger) { l.settle = settleRefused + 1 },
	} {
		bad := l
		change(&bad)
		if _, _, err := parseLedger(appendLedger(nil, &bad, 1, stamp{}), &policy, 1, 0); !errors.Is(err, errRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := appendLedger(nil, &l, 1, stamp{})
	for _, bad := range [][]byte{nil, good[1:], append(good, 0)} {
		if _, _, err := parseLedger(bad, &policy, 1, 0); !errors.Is(err, errRecord) {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
}

// All records of a book, in one form for the fuzzer: the first byte picks the
// kind. What decodes has to encode to what decodes to the same.
func FuzzDecodeRecords(f *testing.F) {
	policy := DefaultPolicy()
	l := sampleLedger(&policy)
	cheque := &Cheque{Issuer: "issuer", Beneficiary: "beneficiary", Serial: 1, Cumulative: 2, Served: 3, Consumed: 4, Balance: -5, Date: 6, Backing: []byte("b"), Signature: []byte("s")}
	ack := &Ack{Issuer: "issuer", Beneficiary: "beneficiary", ChequeHash: [32]byte{1}, Serial: 1, Credited: 2, Served: 3, Consumed: 4, Balance: -5, Signature: []byte("s")}
	_, run, err := durable.Unseal("/r", runVersion, runRecord{run: 3, lastUnclean: 2, open: true}.encode("/r"))
	if err != nil {
		f.Fatal(err)
	}
	for kind, seed := range [][]byte{
		appendLedger(nil, &l, 1, stamp{run: 1, usedAt: 2}),
		encodeCheque(cheque),
		encodeAck(ack),
		encodeServices([]serviceTotals{{"store", 1, 2}, {"", 3, 4}}),
		run,
	} {
		f.Add(append([]byte{byte(kind)}, seed...))
		f.Add(append([]byte{byte(kind)}, seed[:len(seed)/2]...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 {
			return
		}
		kind, payload := b[0]%5, b[1:]
		decode := func(p []byte) (any, []byte, error) {
			switch kind {
			case 0:
				l, st, err := parseLedger(p, &policy, 1, 0)
				if err != nil {
					return nil, nil, err
				}
				if err := l.Check(); err != nil {
					t.Errorf("taken, and not whole: %v", err)
				}
				// The wall clock of the record counts once.
				return l, appendLedger(nil, &l, 1, stamp{run: st.run, usedAt: max(0, st.usedAt)}), nil
			case 1:
				c, err := decodeCheque(p)
				if err != nil {
					return nil, nil, err
				}
				return *c, encodeCheque(c), nil
			case 2:
				a, err := decodeAck(p)
				if err != nil {
					return nil, nil, err
				}
				return *a, encodeAck(a), nil
			case 3:
				list, err := decodeServices(p)
				return list, encodeServices(list), err
			default:
				r, err := parseRun(p)
				if err != nil {
					return nil, nil, err
				}
				rec := r.encode("/r")
				return r, rec[1 : len(rec)-4], nil
			}
		}
		first, again, err := decode(payload)
		if err != nil {
			if !errors.Is(err, errRecord) {
				t.Errorf("an error without a name: %v", err)
			}
			return
		}
		second, _, err := decode(again)
		if err != nil || fmt.Sprint(first) != fmt.Sprint(second) {
			t.Errorf("%+v\nbecame %+v, %v", first, second, err)
		}
		if kind != 0 && kind != 4 && !bytes.Equal(payload, again) {
			t.Errorf("two encodings of one record:\n%x\n%x", payload, again)
		}
	})
}

// damage flips a bit of the record at key.
func damage(t *testing.T, disk *durabletest.Crash, key string) {
	t.Helper()
	rec, err := disk.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	rec[len(rec)/2] ^= 0x10
	var b durable.Batch
	b.Put(key, rec)
	if err := disk.Commit(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
}

// A damaged record is found at Open, and named.
func TestDamageAtOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, 0)
		p := testPeer(1)
		_ = n.Debit(p, "store", 10)
		n.stop()
		for _, key := range []string{n.keys.of(shelfLedger, p), n.keys.run()} {
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			broken := n.disk.Clone()
			damage(t, broken, key)
			_, err := Open(t.Context(), broken.Store, n.cfg)
			if !errors.Is(err, durable.ErrDamaged) || !strings.Contains(fmt.Sprint(err), key) {
				t.Errorf("%s: %v", key, err)
			}

			var b durable.Batch
			b.Put(key, durable.Seal(nil, key, 200, nil))
			if err := broken.Commit(t.Context(), &b); err != nil {
				t.Fatal(err)
			}
			if _, err = Open(t.Context(), broken.Store, n.cfg); !errors.Is(err, durable.ErrNewerSchema) || !strings.Contains(fmt.Sprint(err), key) {
				t.Errorf("a newer %s: %v", key, err)
			}
			_ = broken.Close()
		}
	})
}

// A record that is damaged while the book is open is an error of that peer's tab
// alone, and never taken for an empty one. Counts per service begin afresh: they
// are not money.
func TestDamageWhileOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newNode(t, 0), newNode(t, 1)
		w := wireUp(t, a, b)
		mustServe(t, a, b, 20, 6)
		w.hangUp()
		time.Sleep(20 * time.Minute) // bubble: out of memory
		damage(t, b.disk, b.keys.of(shelfServices, a.id))
		w.dial()
		mustServe(t, a, b, 20, 1)
		time.Sleep(time.Second) // bubble
		if r := b.row(a); len(r.Services) != 1 || r.Services[0].Served != 20 || r.Served != 140 {
			t.Errorf("services %+v of %d", r.Services, r.Served)
		}
		w.hangUp()
		time.Sleep(20 * time.Minute) // bubble: out of memory
		damage(t, b.disk, b.keys.of(shelfLedger, a.id))
		for name, do := range map[string]func() error{
			"debit":   func() error { return b.Debit(a.id, "store", 1) },
			"reserve": func() error { _, err := b.TryReserve(t.Context(), a.id, "store", Serve, 1); return err },
			"row":     func() error { _, err := b.Row(a.id); return err },
			"hello":   func() error { _, err := b.Hello(t.Context(), a.id); return err },
		} {
			if err := do(); !errors.Is(err, durable.ErrDamaged) {
				t.Errorf("%s on a damaged record: %v", name, err)
			}
		}
		_ = reserved(t, b, testPeer(9), Serve, 1).Release() // others go on
	})
}

// Each asset has its own records in one store.
func TestAssetsApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, 0)
		cfg := n.cfg
		cfg.Realm.Asset = "karma2"
		other, err := Open(context.Background(), n.disk.Store, cfg)
		if err != nil {
			t.Fatal(err)
		}
		_ = n.Debit(testPeer(1), "store", 10)
		_ = other.Debit(testPeer(1), "store", 3)
		time.Sleep(time.Second) // bubble
		n.check()
		if err := other.Check(t.Context()); err != nil {
			t.Error(err)
		}
		if rows, err := other.Rows(t.Context()); err != nil || len(rows) != 1 || rows[0].Balance != 3 {
			t.Errorf("%+v, %v", rows, err)
		}
		if err := other.Close(); err != nil {
			t.Error(err)
		}
	})
}
