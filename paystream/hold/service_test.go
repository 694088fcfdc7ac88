package hold

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paystream/payments/paymentstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// town has a payer, a holder and a payee, whose lives come and go, on a net that
// stays.
type town struct {
	t   *testing.T
	net *paymentstest.Net
	who map[string]identity

	// mu guards the fields below.
	mu    sync.Mutex
	lives map[peer.ID]*life
	all   []*life
	tabs  map[[2]peer.ID]tally.Amount // price charged, payer to holder
	lie   func(t *Terms)              // what a holder says of its holds
	// tabRoom is what the payer's tab has; nil: enough.
	tabRoom *Room
	ledger  *ledger // nil: no chain
}

// life is one node from its start to its end.
type life struct {
	*Service
	town    *town
	name    string
	id      peer.ID
	carrier *paymentstest.Node
	store   *durabletest.Crash
}

var names = [...]string{"payer", "holder", "payee"}

func inTown(t *testing.T, f func(t *testing.T, w *town)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &town{
			t: t, net: paymentstest.NewNet(), who: make(map[string]identity), lives: make(map[peer.ID]*life),
			tabs: make(map[[2]peer.ID]tally.Amount),
		}
		for i, name := range names {
			w.who[name] = identityOf(t, byte(i+1))
		}
		w.net.SetEdge(w.who["payer"].id, w.who["holder"].id, paymentstest.Edge{Room: 1000})
		w.net.SetEdge(w.who["holder"].id, w.who["payee"].id, paymentstest.Edge{Room: 1000})
		defer func() {
			for _, l := range w.all {
				if disk := l.kill(); disk != nil {
					disk.Close()
				}
			}
			w.net.Close()
		}()
		f(t, w)
	})
}

// start begins a life on what a disk has, and connects it with whoever runs.
func (w *town) start(name string, store *durabletest.Crash) *life {
	w.t.Helper()
	if store == nil {
		store = durabletest.NewMemCrash()
	}
	who := w.who[name]
	l := &life{town: w, name: name, id: who.id, store: store, carrier: w.net.Join(who.id)}
	var err error
	var channels Channels
	if w.ledger != nil {
		channels = channelsOf{w.ledger, w, who.id}
	}
	l.Service, err = Open(w.t.Context(), Config{
		Self: who.id, Channels: channels, Realm: "test/karma", Key: who.key, Sign: who.priv.Sign, Store: store.Store,
		Policy:  Policy{Offer: name == "holder", PriceBase: 2, PricePPM: 1000},
		Carrier: l.carrier, Wire: wireOf{w, who.id}, Meter: meterOf{w, who.id}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	l.Start()
	w.mu.Lock()
	var others []*life
	for _, o := range w.lives {
		others = append(others, o)
	}
	w.lives[who.id] = l
	w.all = append(w.all, l)
	w.mu.Unlock()
	for _, o := range others {
		o.Online(l.id)
		l.Online(o.id)
	}
	return l
}

// kill ends a life as kill −9 does and returns its disk. A second one is nothing.
func (l *life) kill() *durabletest.Crash {
	l.town.mu.Lock()
	running := l.town.lives[l.id] == l
	if running {
		delete(l.town.lives, l.id)
	}
	l.town.mu.Unlock()
	if !running {
		return nil
	}
	l.carrier.Stop()
	_ = l.Close()
	clone := l.store.Clone()
	l.store.Close()
	return clone
}

func (w *town) at(p peer.ID) (*life, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if l := w.lives[p]; l != nil {
		return l, nil
	}
	return nil, errors.New("not connected")
}

// wireOf asks the life of a peer directly.
type wireOf struct {
	w    *town
	self peer.ID
}

func (x wireOf) Park(ctx context.Context, t *Terms, price tally.Amount, quote bool) (Reply, error) {
	l, err := x.w.at(t.Holder)
	if err != nil {
		return Reply{}, err
	}
	return l.Park(ctx, x.self, t, price, quote)
}

func (x wireOf) List(ctx context.Context, holder peer.ID, after ID) ([]Terms, bool, error) {
	l, err := x.w.at(holder)
	if err != nil {
		return nil, false, err
	}
	list, more, err := l.ListFor(ctx, x.self, after)
	if x.w.lie != nil {
		for i := range list {
			x.w.lie(&list[i])
		}
	}
	return list, more, err
}

func (x wireOf) Release(ctx context.Context, holder peer.ID, id ID) error {
	l, err := x.w.at(holder)
	if err != nil {
		return err
	}
	return l.Release(ctx, x.self, id)
}

func (x wireOf) Cancel(ctx context.Context, party peer.ID, id ID) error {
	l, err := x.w.at(party)
	if err != nil {
		return err
	}
	_, err = l.Service.Cancel(ctx, x.self, id)
	return err
}

func (x wireOf) Poll(_ context.Context, payee peer.ID, _ int) error {
	l, err := x.w.at(payee)
	if err == nil {
		l.Collect(x.self)
	}
	return err
}

// meterOf books prices in the town's tabs, on the holder's side.
type meterOf struct {
	w    *town
	self peer.ID
}

type booking struct {
	m    meterOf
	from peer.ID
	max  tally.Amount
}

func (m meterOf) Serve(_ context.Context, payer peer.ID, price tally.Amount) (Booking, error) {
	if price > 100 {
		return nil, errors.New("above the threshold")
	}
	return booking{m, payer, price}, nil
}

func (m meterOf) Consume(context.Context, peer.ID, tally.Amount) (Booking, error) {
	return booking{}, nil
}

func (m meterOf) Room(peer.ID) (Room, error) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if m.w.tabRoom != nil {
		return *m.w.tabRoom, nil
	}
	return Room{Credit: 1000}, nil
}

func (b booking) Commit(price tally.Amount) error {
	if b.m.w != nil {
		b.m.w.mu.Lock()
		defer b.m.w.mu.Unlock()
		b.m.w.tabs[[2]peer.ID{b.from, b.m.self}] += price
	}
	return nil
}

func (booking) Release() {}

func (w *town) request(amount tally.Amount) PayRequest {
	return PayRequest{Holder: w.who["holder"].id, Payee: w.who["payee"].id, Amount: amount, MaxPrice: 100, Memo: "two coffees"}
}

// balances checks what the net has booked.
func (w *town) balances(payer, holder, payee tally.Balance) {
	w.t.Helper()
	for i, want := range [...]tally.Balance{payer, holder, payee} {
		if got := w.net.Balance(w.who[names[i]].id); got != want {
			w.t.Errorf("%s has gained %d, want %d", names[i], got, want)
		}
	}
	if held, kept := w.net.InFlight(); held != 0 || kept != 0 {
		w.t.Errorf("%d parts hold room, %d are not forgotten", held, kept)
	}
}

// TestNoRoomCostsNothing: what does not fit is refused before its price is charged.
func TestNoRoomCostsNothing(t *testing.T) {
	inTown(t, func(t *testing.T, w *town) {
		payer, holder := w.start("payer", nil), w.start("holder", nil)
		w.tabRoom = &Room{Credit: 99}
		_, err := payer.Pay(t.Context(), w.request(100))
		var none *RoomError
		if !errors.As(err, &none) || !errors.Is(err, ErrNoRoom) || none.Room != 99 {
			t.Fatal(err)
		}
		list, err := holder.Held(t.Context())
		if err != nil || len(list) != 0 || len(w.tabs) != 0 {
			t.Fatal("the holder has heard of it", list, w.tabs, err)
		}
		if _, err := payer.Pay(t.Context(), w.request(99)); err != nil {
			t.Fatal(err)
		}
	})
}

// TestPayeeOffline is the whole story: the payer pays and goes offline, the payee
// comes and is paid, the payer learns it when it is back.
func TestPayeeOffline(t *testing.T) {
	inTown(t, func(t *testing.T, w *town) {
		payer, holder := w.start("payer", nil), w.start("holder", nil)
		got, err := payer.Pay(t.Context(), w.request(100))
		if err != nil || got.Status != StatusHeld || got.Price != 2+3 {
			t.Fatal(got, err)
		}
		if w.tabs[[2]peer.ID{payer.id, holder.id}] != 5 {
			t.Fatal("the price is not on the tab", w.tabs)
		}
		synctest.Wait()
		disk := payer.kill()
		time.Sleep(3 * time.Hour) // bubble: nobody is there but the holder
		payee := w.start("payee", nil)
		time.Sleep(time.Minute) // bubble: it is paid
		list, err := payee.Receipts(t.Context())
		if err != nil || len(list) != 1 || list[0].Amount != 100 || list[0].State != ReceiptReceived || list[0].Memo != "two coffees" {
			t.Fatal(list, err)
		}
		payer = w.start("payer", disk)
		row, err := payer.Wait(t.Context(), got.ID)
		if err != nil || row.Status != StatusComplete || !row.Preimage.Opens(row.Hash) {
			t.Fatal(row, err)
		}
		synctest.Wait()
		w.balances(-100, 0, 100)
		held, err := holder.Held(t.Context())
		if err != nil || len(held) != 1 || held[0].State != StateSettled || !held[0].Done {
			t.Fatal(held, err)
		}
		time.Sleep(2 * Kept) // bubble: it is old
		if held, err := holder.Held(t.Context()); err != nil || len(held) != 0 {
			t.Fatal("finished holds are kept for ever", held, err)
		}
	})
}

// TestPoll: a payee that is online and did not ask is polled, at once and every so
// often.
func TestPoll(t *testing.T) {
	inTown(t, func(t *testing.T, w *town) {
		payer, _, payee := w.start("payer", nil), w.start("holder", nil), w.start("payee", nil)
		w.net.SetEdge(w.who["holder"].id, w.who["payee"].id, paymentstest.Edge{Dead: true})
		got, err := payer.Pay(t.Context(), w.request(100))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // bubble: the first offer came back
		if row, err := payer.await(t.Context(), got.ID, func(*Sent) bool { return true }); err != nil || row.Status != StatusHeld {
			t.Fatal(row, err)
		}
		w.net.SetEdge(w.who["holder"].id, w.who["payee"].id, paymentstest.Edge{Room: 100})
		if row, err := payer.Wait(t.Context(), got.ID); err != nil || row.Status != StatusComplete {
			t.Fatal(row, err)
		}
		list, err := payee.Receipts(t.Context())
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		if waited := list[0].At - got.Created; waited < 1000*60 || waited > 4*60*1000 {
			t.Fatalf("polled after %d ms", waited)
		}
	})
}

// TestExpiryReturnsTheFunds, without a message to anybody but the two.
func TestExpiryReturnsTheFunds(t *testing.T) {
	inTown(t, func(t *testing.T, w *town) {
		payer, holder := w.start("payer", nil), w.start("holder", nil)
		q := w.request(100)
		q.Time = time.Hour
		got, err := payer.Pay(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		row, err := payer.Wait(t.Context(), got.ID)
		if err != nil || row.Status != StatusFailed || row.Changed < got.Expires || row.Changed > got.Expires+2000 {
			t.Fatal(row, err)
		}
		synctest.Wait()
		w.balances(0, 0, 0)
		if held, err := holder.Held(t.Context()); err != nil || held[0].State != StateExpired || !held[0].Done {
			t.Fatal(held, err)
		}
		// Who comes after it finds nothing.
		payee := w.start("payee", nil)
		time.Sleep(time.Hour) // bubble: nothing happens
		if list, err := payee.Receipts(t.Context()); err != nil || len(list) != 0 {
			t.Fatal(list, err)
		}
	})
}

func TestPayerCancels(t *testing.T) {
	inTown(t, func(t *testing.T, w *town) {
		payer, holder := w.start("payer", nil), w.start("holder", nil)
		got, err := payer.Pay(t.Context(), w.request(100))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := payer.CancelOurs(t.Context(), got.ID); err != nil {
			t.Fatal(err)
		}
		row, err := payer.Wait(t.Context(), got.ID)
		if err != nil || row.Status != StatusFailed || !row.Cancel {
			t.Fatal(row, err)
		}
		synctest.Wait()
		w.balances(0, 0, 0)
		if held, err := holder.Held(t.Context()); err != nil || held[0].State != StateCancelled {
			t.Fatal(held, err)
		}
		if err := payer.CancelOurs(t.Context(), got.ID); err != nil {
			t.Fatal("a second cancel", err)
		}
		if err := payer.CancelOurs(t.Context(), ID{1}); !errors.Is(err, ErrNoHold) {
			t.Fatal(err)
		}
		if _, err := holder.Cancel(t.Context(), w.who["payee"].id, ID{1}); !errors.Is(err, ErrNoHold) {
			t.Fatal(err)
		}
	})
}

// TestOfferedLessThanSealed: a holder that would keep a part of it gets nothing, and
// the payer has its money back.
func TestOfferedLessThanSealed(t *testing.T) {
	inTown(t, func(t *testing.T, w *town) {
		payer, holder := w.start("payer", nil), w.start("holder", nil)
		got, err := payer.Pay(t.Context(), w.request(100))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		// The holder lies in its list, and then in its offer.
		w.lie = func(t *Terms) { t.Amount-- }
		payee := w.start("payee", nil)
		row, err := payer.Wait(t.Context(), got.ID)
		if err != nil || row.Status != StatusFailed {
			t.Fatal(row, err)
		}
		synctest.Wait()
		if list, _ := payee.Receipts(t.Context()); len(list) != 0 {
			t.Fatal("the payee showed its preimage", list)
		}
		w.balances(0, 0, 0)
		if held, err := holder.Held(t.Context()); err != nil || held[0].State != StateCancelled {
			t.Fatal(held, err)
		}
	})
}

func TestPriceLimits(t *testing.T) {
	inTown(t, func(t *testing.T, w *town) {
		payer := w.start("payer", nil)
		q := w.request(100)
		if _, err := payer.Pay(t.Context(), q); err == nil {
			t.Fatal("parked at a holder that is not there")
		}
		holder := w.start("holder", nil)
		if price, err := payer.Quote(t.Context(), q); err != nil || price != 5 {
			t.Fatal(price, err)
		}
		q.MaxPrice = 4
		if _, err := payer.Pay(t.Context(), q); !errors.Is(err, ErrPrice) {
			t.Fatal(err)
		}
		q.MaxPrice, q.Time = 1000, 7*24*time.Hour
		q.Amount = 900 // 900 × 168 h × 0.1 % = 152
		if _, err := payer.Pay(t.Context(), q); !errors.Is(err, ErrNoCredit) {
			t.Fatal(err)
		}
		q.Time = 8 * 24 * time.Hour
		if _, err := payer.Pay(t.Context(), q); !errors.Is(err, ErrTerms) {
			t.Fatal(err)
		}
		if len(w.tabs) != 0 {
			t.Fatal("charged for nothing", w.tabs)
		}
		// One that holds nothing for others.
		q = w.request(100)
		q.Holder, q.Payee = w.who["payee"].id, w.who["holder"].id
		w.start("payee", nil)
		if _, err := payer.Pay(t.Context(), q); !errors.Is(err, ErrTerms) {
			t.Fatal(err)
		}
		// Parking again changes nothing and costs nothing.
		got, err := payer.Pay(t.Context(), w.request(100))
		if err != nil {
			t.Fatal(err)
		}
		reply, err := holder.Park(t.Context(), payer.id, &got.Terms, 100, false)
		if err != nil || reply.Charged || reply.Price != got.Price {
			t.Fatal(reply, err)
		}
		other := got.Terms
		other.Amount++
		if _, err := holder.Park(t.Context(), payer.id, &other, 100, false); !errors.Is(err, ErrConflict) {
			t.Fatal(err)
		}
		if _, err := holder.Park(t.Context(), w.who["payee"].id, &got.Terms, 100, false); !errors.Is(err, ErrNoHold) {
			t.Fatal("parked for another", err)
		}
		if sum := w.tabs[[2]peer.ID{payer.id, holder.id}]; sum != 5 {
			t.Fatal("charged", sum)
		}
	})
}

// TestPromise: the payee chose the hash, for one payer, and the preimage proves the
// payment. It is paid once.
func TestPromise(t *testing.T) {
	inTown(t, func(t *testing.T, w *town) {
		payee := w.start("payee", nil)
		p, err := payee.Promise(t.Context(), w.who["payer"].id, 100, 48*time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		disk := payee.kill()
		payer, _ := w.start("payer", nil), w.start("holder", nil)
		parsed, err := ParsePromise(p.String())
		if err != nil {
			t.Fatal(err)
		}
		q := PayRequest{Holder: w.who["holder"].id, Promise: &parsed, MaxPrice: 10}
		got, err := payer.Pay(t.Context(), q)
		if err != nil || !got.Promised || got.Amount != 100 || got.Preimage != (tally.Preimage{}) {
			t.Fatal(got, err)
		}
		synctest.Wait()
		// Reuse is refused while the first is not decided, and after.
		if _, err := payer.Pay(t.Context(), q); !errors.Is(err, ErrTerms) {
			t.Fatal("a hash was paid twice", err)
		}
		payee = w.start("payee", disk)
		row, err := payer.Wait(t.Context(), got.ID)
		if err != nil || row.Status != StatusComplete || !row.Preimage.Opens(p.Hash) {
			t.Fatal(row, err)
		}
		if _, err := payer.Pay(t.Context(), q); !errors.Is(err, ErrTerms) {
			t.Fatal("a hash was paid twice", err)
		}
		synctest.Wait()
		w.balances(-100, 0, 100)
		if list, err := payee.Receipts(t.Context()); err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		for name, change := range map[string]func(q *PayRequest){
			"less":         func(q *PayRequest) { q.Amount = 99 },
			"another":      func(q *PayRequest) { q.Payee = w.who["holder"].id },
			"memo":         func(q *PayRequest) { q.Memo = "m" },
			"longer":       func(q *PayRequest) { q.Time = 49 * time.Hour },
			"short return": func(q *PayRequest) { q.Return = time.Minute },
		} {
			bad := q
			change(&bad)
			if _, err := payer.Pay(t.Context(), bad); !errors.Is(err, ErrTerms) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// TestClosed: who waits hears of it, and nothing is lost.
func TestClosed(t *testing.T) {
	inTown(t, func(t *testing.T, w *town) {
		payer := w.start("payer", nil)
		w.start("holder", nil)
		got, err := payer.Pay(t.Context(), w.request(100))
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { // ends with the service
			_, err := payer.Wait(t.Context(), got.ID)
			done <- err
		}()
		synctest.Wait()
		disk := payer.kill()
		if err := <-done; !errors.Is(err, ErrClosed) {
			t.Fatal(err)
		}
		if _, err := payer.Sent(t.Context()); !errors.Is(err, ErrClosed) {
			t.Fatal(err)
		}
		payer = w.start("payer", disk)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if row, err := payer.Wait(ctx, got.ID); !errors.Is(err, context.DeadlineExceeded) || row.Status != StatusHeld {
			t.Fatal(row, err)
		}
	})
}
