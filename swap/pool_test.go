package swap

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// signCheque is a cheque of the peer with the test key of that seed.
func signCheque(t testing.TB, n *node, seed uint16, serial uint64, sum tally.Amount) *Cheque {
	t.Helper()
	c := &Cheque{Issuer: testPeer(seed), Beneficiary: n.id, Serial: serial, Cumulative: sum}
	var err error
	if c.Signature, err = testKey(seed).Sign(c.SigningBytes(n.Realm())); err != nil {
		t.Fatal(err)
	}
	return c
}

// The credit of all strangers together has an end; who paid is no stranger.
func TestStrangersShareCredit(t *testing.T) {
	for _, pay := range []string{"cheque", "karma cheque"} {
		t.Run(pay, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNode(t, 0)
				for i := range uint16(100) { // 100 × the threshold in all
					if err := reserved(t, n, testPeer(1+i), Serve, 100).Commit(100); err != nil {
						t.Fatal(err)
					}
				}
				const late = 500
				p := testPeer(late)
				_, err := n.TryReserve(t.Context(), p, "store", Serve, 1)
				var refused *RefusedError
				if !errors.As(err, &refused) || !errors.Is(err, ErrStranger) || refused.Limit != 100 {
					t.Fatalf("with the credit used up: %v", err)
				}
				if room, err := n.Headroom(p, Serve); err != nil || room != 0 {
					t.Errorf("headroom %d, %v", room, err)
				}
				n.check()
				if pay == "cheque" {
					err = n.Receive(t.Context(), p, signCheque(t, n, late, 1, 100))
				} else {
					err = n.Receive(t.Context(), p, &KarmaCheque{Beneficiary: []byte(n.id), Amount: 100})
				}
				if err != nil {
					t.Fatal(err)
				}
				// It has prepaid one threshold, and has its own credit beyond.
				if err := reserved(t, n, p, Serve, 200).Commit(200); err != nil {
					t.Error(err)
				}
				if got := n.row(&node{id: p}); got.Stranger || got.Balance != 100 {
					t.Errorf("%+v", got)
				}
				if got := n.Stats(); got.StrangersCredit != 10_000 || got.Exposure != 10_100 {
					t.Errorf("%+v", got)
				}
				// One of the strangers pays, and makes room for others.
				if err := n.Receive(t.Context(), testPeer(1), signCheque(t, n, 1, 1, 50)); err != nil {
					t.Fatal(err)
				}
				if err := reserved(t, n, testPeer(501), Serve, 100).Commit(100); err != nil {
					t.Error(err)
				}
				n.check()
				n.stop()
				n.check()
				if _, err := n.TryReserve(t.Context(), testPeer(502), "store", Serve, 1); !errors.Is(err, ErrStranger) {
					t.Errorf("a restart gave new credit: %v", err)
				}
			})
		})
	}
}

// A peer may prepay at most one threshold beyond its debt.
func TestPrepayIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, 0)
		if err := n.Receive(t.Context(), testPeer(1), signCheque(t, n, 1, 1, 1_000_000)); err != nil {
			t.Fatal(err)
		}
		if r := n.row(&node{id: testPeer(1)}); r.PrepaidByPeer != 100 || r.HeadroomServe != 225 {
			t.Errorf("prepaid %d, headroom %d", r.PrepaidByPeer, r.HeadroomServe)
		}
		n.check()
	})
}

func TestExposureOfAllPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, 0, withPolicy(Policy{MaxExposureTotal: 1000, StrangersExposure: 1 << 40}))
		served := tally.Amount(0)
		for i := range uint16(12) {
			h, err := n.TryReserve(t.Context(), testPeer(1+i), "store", Serve, 100)
			if err != nil {
				if !errors.Is(err, ErrExposure) || served != 1000 {
					t.Errorf("after %d: %v", served, err)
				}
				continue
			}
			served += 100
			_ = h.Commit(100)
		}
		if got := n.Stats().Exposure; got != 1000 {
			t.Errorf("exposure %d", got)
		}
		n.check()
	})
}

// Ten thousand new identities that come, ask and go leave nothing in memory; the
// records of those that took something have a bound.
func TestNewIdentities(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, 0)
		h := &Handshake{Realm: n.Realm(), Terms: Terms{PaymentThreshold: 100, Mode: ModeMock, Native: true}}
		most := 0
		for i := range uint16(10_000) {
			p := testPeer(i + 1)
			switch i % 4 {
			case 0: // ends before its handshake
				if _, err := n.Hello(t.Context(), p); err != nil {
					t.Fatal(err)
				}
			case 1: // comes and goes
				if err := n.BeginSession(t.Context(), p, h, true); err != nil {
					t.Fatal(err)
				}
				n.EndSession(p)
			case 2: // comes, asks for service and goes
				if err := n.BeginSession(t.Context(), p, h, true); err != nil {
					t.Fatal(err)
				}
				hold, err := n.TryReserve(t.Context(), p, "store", Serve, 1)
				if err != nil {
					t.Fatal(err)
				}
				_ = hold.Release()
				n.EndSession(p)
			case 3: // sends what pays nothing
				for _, m := range []Message{&Statement{}, signCheque(t, n, i+1, 1, 0), &KarmaCheque{Beneficiary: []byte(n.id)}} {
					_ = n.Receive(t.Context(), p, m)
				}
			}
			if i%50 == 0 {
				time.Sleep(tickEvery / 4) // bubble: 200 identities a second
				most = max(most, n.Stats().Accounts)
			}
		}
		// All of a minute, until each shard was looked through once.
		if bound := 200 * shardCount; most > bound {
			t.Errorf("%d accounts in memory, bound %d", most, bound)
		}
		time.Sleep(2 * shardCount * tickEvery) // bubble
		if got := n.Stats().Accounts; got != 0 {
			t.Errorf("%d accounts stay in memory", got)
		}
		if rows, err := n.Rows(t.Context()); err != nil || len(rows) != 0 {
			t.Errorf("%d records on disk, %v", len(rows), err)
		}
		n.check()
	})
}

// The records of strangers have a bound of their own; beyond it only who pays is
// served.
func TestMaxStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, 0)
		_ = n.Debit(testPeer(1), "store", 1)
		time.Sleep(time.Second) // bubble
		n.records.Add(maxStrangers - 1)
		if _, err := n.TryReserve(t.Context(), testPeer(2), "store", Serve, 1); !errors.Is(err, ErrStranger) {
			t.Errorf("one record too many: %v", err)
		}
		_ = reserved(t, n, testPeer(1), Serve, 1).Release() // has its record
		if err := n.Receive(t.Context(), testPeer(2), signCheque(t, n, 2, 1, 10)); err != nil {
			t.Fatal(err)
		}
		_ = reserved(t, n, testPeer(2), Serve, 1).Release() // has paid
		n.records.Add(1 - maxStrangers)
		n.check()
	})
}

// Whatever happens to the tabs of many peers, the shared sums stay theirs.
func TestPoolNeverDrifts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, 0)
		serial, paid := map[uint16]uint64{}, map[uint16]tally.Amount{}
		var open []Hold
		seed := uint64(7)
		rnd := func(m uint64) uint64 { // xorshift: the same run each time
			seed ^= seed << 13
			seed ^= seed >> 7
			seed ^= seed << 17
			return seed % m
		}
		for range 4000 {
			i := uint16(1 + rnd(40))
			p := testPeer(i)
			switch rnd(10) {
			case 0, 1:
				if h, err := n.TryReserve(t.Context(), p, "store", Serve, tally.Amount(rnd(60))); err == nil {
					open = append(open, h)
				}
			case 2, 3:
				if len(open) > 0 {
					k := int(rnd(uint64(len(open))))
					h := open[k]
					open = append(open[:k], open[k+1:]...)
					_ = []func(tally.Amount) error{h.Commit, func(tally.Amount) error { return h.Release() }, func(tally.Amount) error { return h.Lost() }}[rnd(3)](tally.Amount(rnd(70)))
				}
			case 4:
				_ = n.Debit(p, "store", tally.Amount(rnd(50)))
			case 5:
				serial[i]++
				paid[i] += tally.Amount(rnd(80))
				_ = n.Receive(t.Context(), p, signCheque(t, n, i, serial[i], paid[i]))
			case 6:
				_ = n.Receive(t.Context(), p, &KarmaCheque{Beneficiary: []byte(n.id), Amount: uint32(1 + rnd(30))})
			case 7:
				l := n.tab(p)
				_ = n.Receive(t.Context(), p, &Statement{Totals{Consumed: l.served + tally.Amount(rnd(30)) - min(15, l.served), SeenServed: l.served, AtRest: true}})
			case 8:
				if rnd(2) == 0 {
					call(t, n, p)
				} else {
					n.EndSession(p)
				}
			case 9:
				time.Sleep(time.Duration(rnd(40)) * time.Second) // bubble
				if rnd(30) == 0 {
					n.stop()
					open = nil
				}
			}
			if rnd(20) == 0 {
				n.check()
				if t.Failed() {
					t.FailNow()
				}
			}
		}
		n.check()
	})
}

// Names of services cannot make a record grow.
func TestServicesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, 0)
		p := testPeer(1)
		long := string(make([]byte, 1<<17))
		for i := range 100 {
			_ = n.Credit(p, fmt.Sprintf("service %d", i), 1)
			_ = n.Debit(p, long, 1)
			if i%30 == 0 {
				time.Sleep(time.Second) // bubble
			}
		}
		n.stop()
		r := n.row(&node{id: p})
		if len(r.Services) > maxServices+1 {
			t.Errorf("%d services", len(r.Services))
		}
		var served, consumed tally.Amount
		for _, s := range r.Services {
			served += s.Served
			consumed += s.Consumed
			if len(s.Service) > maxNameLen {
				t.Errorf("a name of %d bytes", len(s.Service))
			}
		}
		if served != 100 || consumed != 100 {
			t.Errorf("services add up to %d and %d", served, consumed)
		}
	})
}

// The list of all tabs brings none of them into memory.
func TestRowsStayOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, 0)
		for i := range uint16(50) {
			_ = n.Debit(testPeer(1+i), "store", tally.Amount(1+i))
		}
		n.stop()
		rows, err := n.Rows(t.Context())
		if err != nil || len(rows) != 50 {
			t.Fatalf("%d rows, %v", len(rows), err)
		}
		var last peer.ID
		for _, r := range rows {
			if r.Peer <= last || r.Balance == 0 || r.Services[0].Served == 0 {
				t.Errorf("row %+v", r)
			}
			last = r.Peer
		}
		if ok, err := n.Known(testPeer(1)); !ok || err != nil {
			t.Error("a peer with a record is not known", err)
		}
		if ok, err := n.Known(testPeer(99)); ok || err != nil {
			t.Error("a peer without a record is known", err)
		}
		if got := n.Stats().Accounts; got != 0 {
			t.Errorf("%d accounts in memory", got)
		}
	})
}
