package swap

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable/durabletest"
)

// rest lets two nodes come to rest: acks are asked for again, statements told.
func rest() {
	time.Sleep(45 * time.Second) // bubble
	synctest.Wait()
}

// whole compares two books after a loss, and shows that they go on to settle.
func whole(t *testing.T, w *wire, client, server *node) {
	t.Helper()
	rest()
	agree(t, w.a, w.b)
	w.a.check()
	w.b.check()
	before := server.row(client).Received
	mustServe(t, client, server, 20, 12)
	rest()
	agree(t, w.a, w.b)
	if got := server.row(client).Received; got < before+200 {
		t.Errorf("after the loss %d more units were paid, before it %d", got-before, before)
	}
	for _, n := range []*node{w.a, w.b} {
		l := n.tab(w.other(n).id)
		policy := n.Policy()
		if l.forgiven > policy.Slack()+l.received/100 {
			t.Errorf("%s forgave %d", n.name, l.forgiven)
		}
		if list, err := n.Evidence(context.Background(), w.other(n).id); err != nil || len(list) != 0 {
			t.Errorf("%s takes an honest peer for a liar: %d cheques, %v", n.name, len(list), err)
		}
	}
}

// A side whose disk is empty learns from the other what it paid and what it was
// paid. Units since the last checkpoint are within what is forgiven here.
func TestRecoverLostStore(t *testing.T) {
	for _, mode := range []Mode{ModeMock, ModeHard} {
		for _, extra := range []int{0, 1} {
			for _, who := range []string{"debtor", "creditor"} {
				t.Run(fmt.Sprintf("%v/%s/%d units open", mode, who, 20*extra), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						a, b := newNodes(t, mode)
						w := wireUp(t, a, b)
						mustServe(t, a, b, 20, 15+extra)
						rest()
						w.hangUp()
						lost := map[string]*node{"debtor": a, "creditor": b}[who]
						lost.restore(durabletest.NewMemCrash())
						w.dial()
						rest()
						if got := lost.row(w.other(lost)); got.Paid+got.Received != 300 {
							t.Errorf("%s knows of %d paid and %d received, of 300", who, got.Paid, got.Received)
						}
						whole(t, w, a, b)
					})
				})
			}
		}
	}
}

// newNodes opens two nodes in one mode.
func newNodes(t testing.TB, mode Mode) (a, b *node) {
	if mode == ModeHard {
		return newNode(t, 0, hard(&vault{})), newNode(t, 1, hard(&vault{}))
	}
	return newNode(t, 0), newNode(t, 1)
}

// A backup taken at each step of one settlement, restored after k more: it must
// neither pay twice nor sign a second cheque with a serial that it used.
func TestRecoverOldBackup(t *testing.T) {
	for _, mode := range []Mode{ModeMock, ModeHard} {
		for _, who := range []string{"debtor", "creditor"} {
			for _, more := range []int{0, 5, 15} {
				t.Run(fmt.Sprintf("%v/%s/%d requests later", mode, who, more), func(t *testing.T) {
					for point := 1; ; point++ { // commits of the settlement
						done := false
						synctest.Test(t, func(t *testing.T) { done = backupAt(t, mode, who, point, more) })
						if done || t.Failed() {
							break
						}
					}
				})
			}
		}
	}
}

// backupAt takes the backup after the given commit of the second settlement. It
// reports true where the settlement has fewer commits.
func backupAt(t *testing.T, mode Mode, who string, point, more int) (done bool) {
	a, b := newNodes(t, mode)
	w := wireUp(t, a, b)
	lost := map[string]*node{"debtor": a, "creditor": b}[who]
	mustServe(t, a, b, 20, 9)
	rest()
	var backup *durabletest.Crash
	begin := lost.disk.Commits()
	take := func(n *node) {
		if n == lost && backup == nil && n.disk.Commits() >= begin+point {
			backup = n.disk.Clone()
		}
	}
	w.ask(func(from *node, _ Message) (bool, error) { take(from); return true, nil })
	w.onReceive = func(to *node, _ Message) bool { take(to); return true }
	mustServe(t, a, b, 20, 1)
	synctest.Wait()
	take(lost)
	if backup == nil {
		return true
	}
	w.ask(nil)
	mustServe(t, a, b, 20, more)
	rest()
	if more%5 != 0 {
		t.Fatal("the test wants settled books")
	}
	w.hangUp()
	lost.restore(backup)
	w.dial()
	whole(t, w, a, b)
	return false
}

// The write-behind may save an intent before its cheque is signed. Restored from
// there, a peer that holds the cheque proves it, and it is not signed again.
func TestRecoverBackupAtIntent(t *testing.T) {
	for _, mode := range []Mode{ModeMock, ModeHard} {
		t.Run(mode.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hang := make(chan struct{})
				slow := &vault{}
				var backup *durabletest.Crash
				a := newNode(t, 0, func(c *Config) { c.Policy.Mode, c.Settler = mode, slow })
				b := newNode(t, 1, func(c *Config) { c.Policy.Mode, c.Settler = mode, &vault{} })
				slow.before = func(peer.ID, tally.Amount) error { <-hang; return nil }
				w := wireUp(t, a, b)
				mustServe(t, a, b, 20, 5)
				time.Sleep(time.Second) // bubble
				backup = a.disk.Clone()
				if l, _ := a.onDisk(b.id); l.settle != settleIntent {
					t.Fatalf("the backup is not of an intent: %s", describe(&l))
				}
				close(hang)
				time.Sleep(5 * time.Second) // bubble: another date would be another text
				w.hangUp()
				a.restore(backup)
				w.dial()
				whole(t, w, a, b)
				serials := map[uint64]string{}
				for _, c := range messages[*Cheque](w, a) {
					if old, ok := serials[c.Serial]; ok && old != string(c.Signature) {
						t.Errorf("cheque %d was signed twice", c.Serial)
					}
					serials[c.Serial] = string(c.Signature)
				}
			})
		})
	}
}

// Two cheques with one serial are kept; the higher counts; the operator is told.
func TestEquivocation(t *testing.T) {
	for _, first := range []tally.Amount{60, 90} {
		t.Run(fmt.Sprint(first), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := newNode(t, 0), newNode(t, 1)
				wireUp(t, a, b)
				if err := b.Debit(a.id, "store", 100); err != nil {
					t.Fatal(err)
				}
				sign := func(sum tally.Amount) *Cheque {
					c := &Cheque{Issuer: a.id, Beneficiary: b.id, Serial: 1, Cumulative: sum}
					var err error
					if c.Signature, err = a.key.Sign(c.SigningBytes(b.Realm())); err != nil {
						t.Fatal(err)
					}
					return c
				}
				for _, sum := range []tally.Amount{first, 150 - first, first} {
					if err := b.Receive(t.Context(), a.id, sign(sum)); err != nil {
						t.Errorf("cheque over %d: %v", sum, err)
					}
				}
				if got := b.row(a); got.Received != 90 || got.Balance != 10 {
					t.Errorf("received %d, balance %d", got.Received, got.Balance)
				}
				list, err := b.Evidence(t.Context(), a.id)
				if err != nil || len(list) != 2 {
					t.Fatalf("%d cheques kept, %v", len(list), err)
				}
				for i := range list {
					if err := b.verify(a.id, list[i].SigningBytes(b.Realm()), list[i].Signature); err != nil {
						t.Errorf("evidence %d proves nothing: %v", i, err)
					}
				}
				if list[0].Cumulative == list[1].Cumulative || list[0].Serial != list[1].Serial {
					t.Errorf("evidence %+v", list)
				}
				if b.noticed(NoticeEvidence) == 0 {
					t.Error("the operator was not told")
				}
				b.check()
			})
		})
	}
}

// A skew in each direction, on each side: closed where that is allowed, flagged
// where it is not, and resolved by the operator.
func TestStatementsCloseSkew(t *testing.T) {
	for _, tc := range []struct {
		name               string
		served, consumed   tally.Amount // the server's count, the client's count
		after              tally.Amount // both, once closed
		forgiven, resolved tally.Amount
		flagged            bool
	}{
		{"equal", 50, 50, 50, 0, 0, false},
		{"the client missed some", 60, 50, 50, 10, 0, false},
		{"the client missed W", 75, 50, 50, 25, 0, false},
		{"the client missed more", 76, 50, 0, 0, 50, true},
		{"the server missed some", 50, 60, 60, 0, 0, false},
		{"the server missed up to the threshold", 10, 99, 99, 0, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := newNode(t, 0), newNode(t, 1)
				w := wireUp(t, a, b)
				if err := errors.Join(b.Debit(a.id, "store", tc.served), a.Credit(b.id, "store", tc.consumed)); err != nil {
					t.Fatal(err)
				}
				rest()
				a.check()
				b.check()
				l := b.tab(a.id)
				if l.forgiven != tc.forgiven || l.flags&flagSkewed != 0 != tc.flagged {
					t.Errorf("%s, forgiven %d, flags %b", describe(&l), l.forgiven, l.flags)
				}
				if !tc.flagged {
					agree(t, a, b)
					if l.served != tc.after {
						t.Errorf("closed at %d, want %d", l.served, tc.after)
					}
					return
				}
				if b.noticed(NoticeSkew) != 1 {
					t.Errorf("told the operator %d times", b.noticed(NoticeSkew))
				}
				if _, err := b.TryReserve(t.Context(), a.id, "store", Serve, 1); !errors.Is(err, ErrSkew) {
					t.Errorf("new credit while the books differ: %v", err)
				}
				b.stop() // the flag is on the record
				w.redial()
				rest()
				if _, err := b.TryReserve(t.Context(), a.id, "store", Serve, 1); !errors.Is(err, ErrSkew) {
					t.Errorf("a restart forgot that the books differ: %v", err)
				}
				if err := b.Resolve(t.Context(), a.id); err != nil {
					t.Fatal(err)
				}
				rest()
				agree(t, a, b)
				if l := b.tab(a.id); l.served != tc.resolved || l.flags&flagSkewed != 0 {
					t.Errorf("resolved at %s", describe(&l))
				}
				mustServe(t, a, b, 20, 8)
				rest()
				agree(t, a, b)
			})
		})
	}
}

// After an unclean stop the debtor takes the creditor's figure within W/2; after
// a clean one it does not.
func TestUncleanStopAllowance(t *testing.T) {
	for _, unclean := range []bool{false, true} {
		t.Run(fmt.Sprintf("unclean=%v", unclean), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := newNode(t, 0), newNode(t, 1)
				w := wireUp(t, a, b)
				mustServe(t, a, b, 20, 2)
				rest()
				w.hangUp()
				if unclean {
					a.die()
					a.revive()
				} else {
					a.stop()
				}
				if err := b.Debit(a.id, "store", 12); err != nil { // what a has forgotten
					t.Fatal(err)
				}
				w.dial()
				rest()
				agree(t, a, b)
				want, forgiven := tally.Amount(40), tally.Amount(12)
				if unclean {
					want, forgiven = 52, 0
				}
				if la, lb := a.tab(b.id), b.tab(a.id); la.consumed != want || lb.forgiven != forgiven {
					t.Errorf("closed at %d with %d forgiven, want %d and %d", la.consumed, lb.forgiven, want, forgiven)
				}
				// The allowance is good for one time.
				w.hangUp()
				a.stop()
				if err := b.Debit(a.id, "store", 5); err != nil {
					t.Fatal(err)
				}
				w.dial()
				rest()
				if la := a.tab(b.id); la.consumed != want {
					t.Errorf("the allowance was taken twice: %d", la.consumed)
				}
			})
		})
	}
}

func TestResolveNeedsFigures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newNode(t, 0), newNode(t, 1)
		if err := a.Resolve(t.Context(), b.id); !errors.Is(err, ErrNoSession) {
			t.Errorf("without a session: %v", err)
		}
		wireUp(t, a, b)
		h := reserved(t, a, b.id, Serve, 1)
		if err := a.Resolve(t.Context(), b.id); !errors.Is(err, ErrInFlight) {
			t.Errorf("with work in flight: %v", err)
		}
		_ = h.Release()
	})
}

// A handshake that proves nothing, or too much, begins no session and changes
// no tab.
func TestHostileHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newNode(t, 0), newNode(t, 1)
		w := wireUp(t, a, b)
		mustServe(t, a, b, 20, 7)
		rest()
		w.hangUp()
		good, err := b.Hello(t.Context(), a.id)
		if err != nil {
			t.Fatal(err)
		}
		before := a.tab(b.id)
		sent := *good.ChequeReceived
		ack := *good.AckGiven
		for name, tc := range map[string]struct {
			change func(h *Handshake)
			want   error
		}{
			"other network":     {func(h *Handshake) { h.Network = "x" }, ErrNetwork},
			"other asset":       {func(h *Handshake) { h.Asset = "x" }, ErrNetwork},
			"totals":            {func(h *Handshake) { h.Totals.Served = tally.MaxAmount }, ErrMalformed},
			"our cheque forged": {func(h *Handshake) { c := sent; c.Serial = 9; c.Cumulative = 5000; h.ChequeReceived = &c }, ErrSignature},
			"our cheque turned": {func(h *Handshake) {
				c := sent
				c.Issuer, c.Beneficiary = c.Beneficiary, c.Issuer
				h.ChequeReceived = &c
			}, ErrBeneficiary},
			"our ack forged":    {func(h *Handshake) { x := ack; x.Issuer, x.Beneficiary, x.Serial = a.id, b.id, 9; h.AckReceived = &x }, ErrSignature},
			"its ack forged":    {func(h *Handshake) { x := ack; x.Credited = 90; h.AckGiven = &x }, ErrSignature},
			"its cheque forged": {func(h *Handshake) { h.ChequeSent = &Cheque{Issuer: b.id, Beneficiary: a.id, Serial: 1, Cumulative: 50} }, ErrSignature},
			"its cheque over 0": {func(h *Handshake) { h.ChequeSent = &Cheque{Issuer: b.id, Beneficiary: a.id, Serial: 1} }, ErrMalformed},
		} {
			h := *good
			tc.change(&h)
			if err := a.BeginSession(t.Context(), b.id, &h, true); !errors.Is(err, tc.want) {
				t.Errorf("%s: %v, want %v", name, err, tc.want)
			}
			if after := a.tab(b.id); after != before {
				t.Errorf("%s changed the tab: %s", name, describe(&after))
			}
			if r := a.row(b); r.Connected {
				t.Errorf("%s left a session", name)
			}
		}
		a.check()
		w.dial()
		mustServe(t, a, b, 20, 7)
	})
}

// An ack that cannot be sent takes nothing back: the cheque is credited, and is
// not refused; its sender asks again.
func TestAckCannotBeSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newNode(t, 0), newNode(t, 1)
		w := wireUp(t, a, b)
		fails := 2
		w.ask(func(_ *node, m Message) (bool, error) {
			if _, ack := m.(*Ack); ack && fails > 0 {
				fails--
				return false, errors.New("i/o timeout")
			}
			return true, nil
		})
		mustServe(t, a, b, 20, 5)
		synctest.Wait()
		if got := b.row(a).Received; got != 100 || len(messages[*Refusal](w, b)) != 0 {
			t.Errorf("received %d, %d refusals", got, len(messages[*Refusal](w, b)))
		}
		rest()
		agree(t, a, b)
		if got := a.row(b); got.Paid != 100 || fails != 0 {
			t.Errorf("paid %d", got.Paid)
		}
	})
}
