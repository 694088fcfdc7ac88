package payments_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paystream/payments"
	"github.com/tallystick/tally/paystream/payments/paymentstest"
	"github.com/tallystick/tally/paystream/payments/route"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ways is a router that knows some ways by heart, sends at most most over each,
// and leaves out those that failed until they rest for a while.
type ways struct {
	vias [][]peer.ID
	most tally.Amount
	fee  tally.Amount // of each peer on the way
	used map[int]int
	bad  map[int]time.Time
}

func (w *ways) index(l *payments.Leg) int {
	return slices.IndexFunc(w.vias, func(v []peer.ID) bool { return slices.Equal(v, l.Via) })
}

func (w *ways) Plan(now time.Time, r *payments.Request) (legs []payments.Leg, err error) {
	left, fees := r.Amount, tally.Amount(0)
	for i, via := range w.vias {
		if left == 0 || w.used[i] > 0 || now.Before(w.bad[i]) {
			continue
		}
		n := min(left, w.most)
		legs = append(legs, payments.Leg{Via: via, Amount: n, Fee: w.fee * tally.Amount(len(via))})
		fees += legs[len(legs)-1].Fee
		left -= n
	}
	if left > 0 || len(legs) > r.MaxParts || fees > r.MaxFee {
		return nil, &payments.Error{Code: payments.CodeNoRoute, Reason: "no way", Remedy: "open one"}
	}
	return legs, nil
}

func (w *ways) Sent(_ time.Time, _ peer.ID, l *payments.Leg) { w.used[w.index(l)]++ }
func (w *ways) Done(_ time.Time, _ peer.ID, l *payments.Leg) { w.used[w.index(l)]-- }
func (w *ways) Failed(now time.Time, _ peer.ID, l *payments.Leg, _ payments.Failure) {
	w.used[w.index(l)]--
	w.bad[w.index(l)] = now.Add(time.Hour)
}

// node is one life of a payer or payee.
type node struct {
	*payments.Service
	id      peer.ID
	carrier *paymentstest.Node
	store   *durabletest.Crash
}

// world is a diamond: A reaches D over B and over C, each way carries 60 of a
// payment of 100 and takes a fee of 1.
type world struct {
	t   *testing.T
	net *paymentstest.Net
	ids map[string]peer.ID
	key map[string]crypto.PrivKey
	all []*node
	// mu guards traded, which is what all nodes told of signatures.
	mu     sync.Mutex
	traded []payments.Trade
	// router, where set, is that of all nodes that start.
	router payments.Router
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, net: paymentstest.NewNet(), ids: make(map[string]peer.ID), key: make(map[string]crypto.PrivKey)}
	for i, name := range []string{"A", "B", "C", "D", "E"} {
		key, err := crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(append(make([]byte, 31), byte(i))))
		if err != nil {
			t.Fatal(err)
		}
		w.key[name] = key
		w.ids[name], _ = peer.IDFromPrivateKey(key)
	}
	for _, e := range []string{"AB", "AC", "BD", "CD"} {
		w.edge(e, paymentstest.Edge{Room: 61, Fee: 1})
	}
	return w
}

func (w *world) edge(e string, edge paymentstest.Edge) {
	w.net.SetEdge(w.ids[e[:1]], w.ids[e[1:]], edge)
}

// start begins a life of a node on what its disk has.
func (w *world) start(name string, store *durabletest.Crash) *node {
	w.t.Helper()
	if store == nil {
		store = durabletest.NewMemCrash()
	}
	router := w.router
	if router == nil {
		router = &ways{
			vias: [][]peer.ID{{w.ids["B"]}, {w.ids["C"]}, {w.ids["E"]}}, most: 60, fee: 1,
			used: make(map[int]int), bad: make(map[int]time.Time),
		}
	}
	n := &node{id: w.ids[name], carrier: w.net.Join(w.ids[name]), store: store}
	var err error
	n.Service, err = payments.Open(w.t.Context(), payments.Config{
		Self: n.id, Realm: "test/karma", Store: store.Store, Carrier: n.carrier, Sign: w.key[name].Sign,
		Logger: slog.New(slog.DiscardHandler),
		Router: router, Curve: &paymentstest.Curve{Key32: [32]byte{7}}, Traded: w.tell,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	n.Start()
	w.all = append(w.all, n)
	return n
}

func (w *world) tell(tr payments.Trade) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.traded = append(w.traded, tr)
}

func (w *world) trades() []payments.Trade {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.traded)
}

// stop ends a life as a kill does, and returns the disk.
func (n *node) stop() *durabletest.Crash {
	n.carrier.Stop()
	_ = n.Close()
	clone := n.store.Clone()
	n.store.Close()
	return clone
}

func (w *world) close() {
	for _, n := range w.all {
		n.carrier.Stop()
		_ = n.Close()
		n.store.Close()
	}
	w.net.Close()
	synctest.Wait()
}

func bubble(t *testing.T, f func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		f(t, w)
	})
}

func (n *node) invoice(t *testing.T, q payments.InvoiceRequest) payments.Invoice {
	t.Helper()
	i, err := n.NewInvoice(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	// As the payer gets it.
	if i, err = payments.ParseInvoice(i.Reveal()); err != nil {
		t.Fatal(err)
	}
	return i
}

// settled looks that the sums are right: paid whole and with its fees, or nothing.
func (w *world) settled(paid tally.Balance, fees tally.Balance) {
	w.t.Helper()
	a, d := w.net.Balance(w.ids["A"]), w.net.Balance(w.ids["D"])
	if d != paid || a != -paid-fees {
		w.t.Fatalf("the payer has %d, the payee %d; want %d and %d", a, d, -paid-fees, paid)
	}
	if held, _ := w.net.InFlight(); held != 0 {
		w.t.Fatalf("%d parts hold room", held)
	}
}

// TestDiamond: more than any one way carries arrives in two parts, whole.
func TestDiamond(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, d := w.start("A", nil), w.start("D", nil)
		i := d.invoice(t, payments.InvoiceRequest{Amount: 100})
		r, err := a.Pay(t.Context(), payments.PayRequest{Invoice: i})
		if err != nil || r.Status != payments.StatusComplete || len(r.Parts) != 2 || !r.Preimage.Opens(i.Hash) || r.Sent != 102 {
			t.Fatalf("%+v, %v", r, err)
		}
		v, err := d.WaitInvoice(t.Context(), i.Hash)
		if err != nil || v.Status != payments.InvoicePaid || v.Received != 100 {
			t.Fatalf("%+v, %v", v, err)
		}
		time.Sleep(time.Second) // bubble: the other part is answered
		w.settled(100, 2)
		if _, kept := w.net.InFlight(); kept != 0 {
			t.Fatalf("%d parts are not forgotten", kept)
		}
		// Paying again pays nothing.
		again, err := a.Pay(t.Context(), payments.PayRequest{Invoice: i})
		if err != nil || again.Preimage != r.Preimage || len(again.Parts) != 2 {
			t.Fatalf("%+v, %v", again, err)
		}
		w.settled(100, 2)
		if _, err := a.Pay(t.Context(), payments.PayRequest{Invoice: i, Amount: 120}); !errors.Is(err, payments.ErrConflict) {
			t.Fatal(err)
		}
	})
}

// TestPartsShareASave: what pay splits is on disk with one sync, and only then leaves.
func TestPartsShareASave(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.net.Delay = time.Second // so that nothing comes back meanwhile
		a, d := w.start("A", nil), w.start("D", nil)
		i := d.invoice(t, payments.InvoiceRequest{Amount: 100})
		before := a.store.Commits()
		go func() { // ends with the payment
			_, _ = a.Pay(t.Context(), payments.PayRequest{Invoice: i})
		}()
		time.Sleep(100 * time.Millisecond) // bubble: both have left
		if _, kept := w.net.InFlight(); kept != 2 || a.store.Commits() != before+1 {
			t.Fatalf("%d parts left after %d saves", kept, a.store.Commits()-before)
		}
		if v, err := a.WaitPayment(t.Context(), i.Hash); err != nil || v.Status != payments.StatusComplete {
			t.Fatalf("%+v, %v", v, err)
		}
		time.Sleep(5 * time.Second) // bubble: the other part is answered
		w.settled(100, 2)
	})
}

// TestOneDeadPath: with one way dead the payment arrives over a third, or fails
// whole, by its deadline, with nothing taken.
func TestOneDeadPath(t *testing.T) {
	for _, third := range []bool{true, false} {
		t.Run(fmt.Sprintf("third=%t", third), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				a, d := w.start("A", nil), w.start("D", nil)
				w.edge("CD", paymentstest.Edge{Dead: true})
				if third {
					w.edge("AE", paymentstest.Edge{Room: 100})
					w.edge("ED", paymentstest.Edge{Room: 100, Fee: 1})
				}
				i := d.invoice(t, payments.InvoiceRequest{Amount: 100})
				began := time.Now()
				r, err := a.Pay(t.Context(), payments.PayRequest{Invoice: i, Deadline: 30 * time.Second})
				took := time.Since(began)
				if third {
					if err != nil || len(r.Parts) != 3 || took > time.Second {
						t.Fatalf("%+v, %v, after %v", r, err, took)
					}
					time.Sleep(time.Second) // bubble: the other part is answered
					w.settled(100, 2)
					return
				}
				// The part over B waits for its 60 s; nothing is claimed.
				if !errors.Is(err, payments.ErrFailed) || r.Status != payments.StatusFailed || took < 59*time.Second || took > 61*time.Second {
					t.Fatalf("%+v, %v, after %v", r, err, took)
				}
				w.settled(0, 0)
				if r.Parts[0].Failure.Code != payments.FailTimeout || r.Parts[1].Failure.Code != payments.FailHop {
					t.Fatalf("%+v", r.Parts)
				}
				// It can be paid when the way is back: the next group.
				w.edge("CD", paymentstest.Edge{Room: 61, Fee: 1})
				b := w.start("A", a.stop())
				if r, err = b.Pay(t.Context(), payments.PayRequest{Invoice: i}); err != nil || r.Group < 2 {
					t.Fatalf("%+v, %v", r, err)
				}
			})
		})
	}
}

// TestPayFindsItsWay: the router of package route, which knows capacities alone,
// splits and learns from what comes back.
func TestPayFindsItsWay(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		g := route.NewGraph()
		for _, e := range []string{"AB", "AC", "AE", "BD", "CD", "ED"} {
			edge := route.Edge{From: w.ids[e[:1]], To: w.ids[e[1:]], Capacity: 100}
			if e[0] != 'A' {
				edge.FeeBase = 1
			}
			if err := g.Set(edge); err != nil {
				t.Fatal(err)
			}
		}
		w.edge("BD", paymentstest.Edge{Room: 20, Fee: 1})
		w.edge("CD", paymentstest.Edge{Dead: true})
		w.edge("AE", paymentstest.Edge{Room: 100})
		w.edge("ED", paymentstest.Edge{Room: 95, Fee: 1})
		w.router = route.NewFinder(w.ids["A"], g)
		a, d := w.start("A", nil), w.start("D", nil)
		i := d.invoice(t, payments.InvoiceRequest{Amount: 90})
		began := time.Now()
		r, err := a.Pay(t.Context(), payments.PayRequest{Invoice: i})
		if err != nil || time.Since(began) > 10*time.Second {
			t.Fatalf("%+v, %v, after %v", r, err, time.Since(began))
		}
		time.Sleep(time.Second) // bubble: the other parts are answered
		if got := w.net.Balance(w.ids["D"]); got != 90 {
			t.Fatalf("%d arrived; %+v", got, r.Parts)
		}
		if held, kept := w.net.InFlight(); held+kept != 0 {
			t.Fatal(held, kept)
		}
	})
}

// TestPayWaitsForABusyHop: where the only way rests because a hop was busy, pay tries it
// again, a few times and within its deadline, and the payment is pending until then.
func TestPayWaitsForABusyHop(t *testing.T) {
	for name, tt := range map[string]struct {
		busy           int
		deadline, took time.Duration
		parts          int
		paid           tally.Balance
	}{
		"twice":        {2, 30 * time.Second, 2 * route.BusyRest, 3, 100},
		"for ever":     {99, 30 * time.Second, 3 * route.BusyRest, 4, 0},
		"until it may": {1, route.BusyRest - time.Millisecond, 0, 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				g := route.NewGraph()
				for _, e := range []string{"AB", "BD"} {
					if err := g.Set(route.Edge{From: w.ids[e[:1]], To: w.ids[e[1:]], Capacity: 100}); err != nil {
						t.Fatal(err)
					}
				}
				w.edge("AB", paymentstest.Edge{Room: 100})
				w.edge("BD", paymentstest.Edge{Room: 100, Busy: tt.busy})
				w.router = route.NewFinder(w.ids["A"], g)
				a, d := w.start("A", nil), w.start("D", nil)
				i := d.invoice(t, payments.InvoiceRequest{Amount: 100})
				began := time.Now()
				if tt.took > 0 {
					time.AfterFunc(route.BusyRest/2, func() {
						list, err := a.Payments(context.Background())
						v, _, err2 := a.Payment(context.Background(), i.Hash)
						if err != nil || err2 != nil || len(list) != 1 || list[0].Status != payments.StatusPending || v.Status != payments.StatusPending {
							t.Errorf("while the hop rests: %+v, %+v, %v, %v", list, v, err, err2)
						}
					})
				}
				r, err := a.Pay(t.Context(), payments.PayRequest{Invoice: i, Deadline: tt.deadline})
				if took := time.Since(began).Truncate(time.Second); took != tt.took || len(r.Parts) != tt.parts {
					t.Fatalf("%d parts, %v, after %v", len(r.Parts), err, took)
				}
				if tt.paid > 0 && err != nil || tt.paid == 0 && !(errors.Is(err, payments.ErrFailed) && errors.Is(err, payments.ErrNoRoute)) {
					t.Fatal(err)
				}
				time.Sleep(time.Second) // bubble: the payee hears of it
				w.settled(tt.paid, 0)
			})
		})
	}
}

// TestPayNeverHangs: a payee that is away is waited for until the part is decided,
// and the caller who does not wait that long hears when it is certain.
func TestPayNeverHangs(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, d := w.start("A", nil), w.start("D", nil)
		i := d.invoice(t, payments.InvoiceRequest{Amount: 50})
		d.carrier.Stop()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		began := time.Now()
		r, err := a.Pay(ctx, payments.PayRequest{Invoice: i, Deadline: 10 * time.Second})
		if !errors.Is(err, payments.ErrPending) || !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 5*time.Second {
			t.Fatal(err)
		}
		certain := time.UnixMilli(r.CertainBy)
		if want := began.Add(payments.ExpiresAfter(2) + paymentstest.LateHold); certain.Sub(want).Abs() > time.Second {
			t.Fatalf("certain by %v, want %v", certain, want)
		}
		// To ask again joins what is under way.
		r, err = a.Pay(t.Context(), payments.PayRequest{Invoice: i})
		if !errors.Is(err, payments.ErrFailed) || len(r.Parts) != 1 || time.Now().After(certain.Add(time.Second)) {
			t.Fatalf("%+v, %v at %v", r, err, time.Now())
		}
		w.settled(0, 0)
	})
}

// TestWaiters: waitpayment and waitpartialpay, and the low-level commands.
func TestWaiters(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, d := w.start("A", nil), w.start("D", nil)
		i := d.invoice(t, payments.InvoiceRequest{Amount: 100, Memo: "tea"})
		send := func(n uint64, amount tally.Amount, via string) payments.Reply {
			reply, err := a.SendPart(t.Context(), payments.SendPart{
				Hash: i.Hash, Dest: i.Payee, Secret: i.Secret, Intended: 100, Number: n, Amount: amount, Fee: 1, Via: []peer.ID{w.ids[via]},
			})
			if err != nil {
				t.Fatal(err)
			}
			return reply
		}
		first := send(1, 40, "B")
		time.Sleep(time.Second) // bubble: it waits at the payee
		lines, err := d.PartialInvoices(t.Context(), nil)
		if err != nil || len(lines) != 1 || lines[0].Amount != 40 || lines[0].Total != 100 || lines[0].From != w.ids["B"] {
			t.Fatalf("%+v, %v", lines, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.WaitPart(ctx, first.ID); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		woken := make(chan payments.PaymentView, 1)
		go func() { // ends with the payment
			v, err := a.WaitPayment(t.Context(), i.Hash)
			if err == nil {
				woken <- v
			}
		}()
		second := send(2, 60, "C")
		if v := <-woken; v.Status != payments.StatusComplete {
			t.Fatalf("%+v", v)
		}
		for _, id := range []uint64{first.ID, second.ID} {
			if part, err := a.WaitPart(t.Context(), id); err != nil || part.Status != payments.PartComplete {
				t.Fatalf("%+v, %v", part, err)
			}
		}
		if got := send(3, 10, "B"); got.Outcome != payments.OutcomeComplete || !got.Preimage.Opens(i.Hash) {
			t.Fatalf("%+v", got)
		}
		list, err := d.Invoices(t.Context())
		if err != nil || len(list) != 1 || list[0].Memo != "tea" || list[0].PaidAt == 0 {
			t.Fatalf("%+v, %v", list, err)
		}
		if _, err := a.WaitPart(t.Context(), 99); !errors.Is(err, payments.ErrNotFound) {
			t.Fatal(err)
		}
	})
}

// TestHoldInvoiceIsDecidedByItsOperator, over a restart of the payee.
func TestHoldInvoiceIsDecidedByItsOperator(t *testing.T) {
	for _, settle := range []bool{true, false} {
		bubble(t, func(t *testing.T, w *world) {
			a, d := w.start("A", nil), w.start("D", nil)
			preimage := tally.Preimage{42}
			i := d.invoice(t, payments.InvoiceRequest{Amount: 100, Hold: true, Hash: preimage.Hashlock()})
			paid := make(chan error, 1)
			go func() { // ends with the payment
				_, err := a.Pay(t.Context(), payments.PayRequest{Invoice: i})
				paid <- err
			}()
			if v, err := d.WaitInvoice(t.Context(), i.Hash); err != nil || v.Status != payments.InvoiceHeld {
				t.Fatalf("%+v, %v", v, err)
			}
			d = w.start("D", d.stop())
			if settle {
				if err := d.Settle(t.Context(), i.Hash, preimage); err != nil {
					t.Fatal(err)
				}
				if err := <-paid; err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second) // bubble: the other part is answered
				w.settled(100, 2)
				return
			}
			if err := d.Cancel(t.Context(), i.Hash); err != nil {
				t.Fatal(err)
			}
			if err := <-paid; !errors.Is(err, payments.ErrFailed) {
				t.Fatal(err)
			}
			w.settled(0, 0)
		})
	}
}

// TestStoreFails: what cannot be saved is not sent, and every call says why.
func TestStoreFails(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, d := w.start("A", nil), w.start("D", nil)
		i := d.invoice(t, payments.InvoiceRequest{Amount: 50})
		a.store.FailAt(a.store.Commits()+1, errors.New("disk full"))
		if _, err := a.Pay(t.Context(), payments.PayRequest{Invoice: i}); err == nil {
			t.Fatal("paid without a disk")
		}
		if a.carrier.Calls() != 0 {
			t.Fatal("a part left that is not on disk")
		}
		if _, err := a.Payments(t.Context()); !errors.Is(err, payments.ErrStopped) {
			t.Fatal(err)
		}
	})
}

// TestAssemblyDeadlineOverARestart: the payee is killed while a part waits and is
// away for 20 of its 60 s. The rest is claimed if it arrives 1 ms before the end of
// them, counted from the first part; 1 ms after it all has gone back.
func TestAssemblyDeadlineOverARestart(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprintf("late=%t", late), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				a, d := w.start("A", nil), w.start("D", nil)
				i := d.invoice(t, payments.InvoiceRequest{Amount: 100})
				send := func(n uint64, amount tally.Amount, via string) payments.Reply {
					reply, err := a.SendPart(t.Context(), payments.SendPart{
						Hash: i.Hash, Dest: i.Payee, Secret: i.Secret, Intended: 100, Number: n, Amount: amount, Fee: 1, Via: []peer.ID{w.ids[via]},
					})
					if err != nil {
						t.Fatal(err)
					}
					return reply
				}
				arrives := time.Now().Add(w.net.Delay)
				first := send(1, 40, "B")
				time.Sleep(10 * time.Second) // bubble: it waits at the payee
				stopped := d.stop()
				time.Sleep(20 * time.Second) // bubble: the payee is away
				d = w.start("D", stopped)
				lines, err := d.PartialInvoices(t.Context(), &i.Hash)
				if err != nil || len(lines) != 1 || lines[0].Deadline != arrives.Add(time.Minute).UnixMilli() {
					t.Fatalf("%+v, %v", lines, err)
				}
				at, want := arrives.Add(time.Minute-time.Millisecond), payments.PartComplete
				if late {
					at, want = arrives.Add(time.Minute+time.Millisecond), payments.PartFailed
				}
				time.Sleep(time.Until(at.Add(-w.net.Delay))) // bubble: so that it arrives then
				second := send(2, 60, "C")
				part, err := a.WaitPart(t.Context(), first.ID)
				if err != nil || part.Status != want {
					t.Fatalf("%+v, %v", part, err)
				}
				if part, err = a.WaitPart(t.Context(), second.ID); err != nil || part.Status != want {
					t.Fatalf("%+v, %v", part, err)
				}
				if late {
					w.settled(0, 0)
				} else {
					w.settled(100, 2)
				}
			})
		})
	}
}

// TestTwoPayersOfOneInvoice: both pay it at once. The parts of whoever completes the
// sum decide, all that waits then is claimed, and nobody is charged what it did not
// send, or without the preimage.
func TestTwoPayersOfOneInvoice(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.edge("EC", paymentstest.Edge{Room: 61, Fee: 1})
		a, e, d := w.start("A", nil), w.start("E", nil), w.start("D", nil)
		i := d.invoice(t, payments.InvoiceRequest{Amount: 100})
		var of []tally.Balance
		for _, payer := range []struct {
			n   *node
			via string
		}{{a, "B"}, {e, "C"}} {
			_, err := payer.n.SendPart(t.Context(), payments.SendPart{
				Hash: i.Hash, Dest: i.Payee, Secret: i.Secret, Intended: 100, Number: 1, Amount: 60, Fee: 1, Via: []peer.ID{w.ids[payer.via]},
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range []*node{a, e} {
			v, err := n.WaitPayment(t.Context(), i.Hash)
			if err != nil || v.Status != payments.StatusComplete || !v.Preimage.Opens(i.Hash) || v.Claimed != 60 {
				t.Fatalf("%+v, %v", v, err)
			}
			of = append(of, w.net.Balance(n.id))
		}
		v, err := d.WaitInvoice(t.Context(), i.Hash)
		if err != nil || v.Received != 120 || !slices.Equal(of, []tally.Balance{-61, -61}) || w.net.Balance(d.id) != 120 {
			t.Fatalf("received %+v, %v; the payers have %v", v, err, of)
		}
	})
}
