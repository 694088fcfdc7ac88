package hold

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// onChain gives the town a ledger before anybody starts.
func onChain(t *testing.T, f func(t *testing.T, w *town)) {
	t.Helper()
	inTown(t, func(t *testing.T, w *town) {
		w.ledger = newLedger()
		f(t, w)
	})
}

func (w *town) room(room tally.Amount) RoomRequest {
	return RoomRequest{Holder: w.who["holder"].id, Payer: w.who["payer"].id, Room: room, Time: time.Hour}
}

func (w *town) order(amount tally.Amount) BuyRequest {
	return BuyRequest{Holder: w.who["holder"].id, Payee: w.who["payee"].id, Amount: amount, Time: 50 * time.Minute, MaxPrice: 100}
}

// leave ends a life that does not come back.
func (l *life) leave() {
	if disk := l.kill(); disk != nil {
		disk.Close()
	}
}

func (l *life) purchase(id ID) Bought {
	l.town.t.Helper()
	list, err := l.Bought(l.town.t.Context())
	if err != nil {
		l.town.t.Fatal(err)
	}
	for _, r := range list {
		if r.ID == id {
			return r
		}
	}
	l.town.t.Fatal("no such purchase")
	return Bought{}
}

// TestBuyAndMail is the whole story: the payee promises room and goes, the payer buys,
// the payee comes and has the money, and the payer sees the chain pay it.
func TestBuyAndMail(t *testing.T) {
	onChain(t, func(t *testing.T, w *town) {
		holder, payee := w.start("holder", nil), w.start("payee", nil)
		st, err := payee.Room(t.Context(), w.room(300))
		if err != nil || !st.Given || st.Total != 0 || st.Guard != st.Until+20 || w.ledger.minSettle != st.Guard || w.ledger.kept != 300 {
			t.Fatalf("%+v %v", st, err)
		}
		disk := payee.kill()
		payer := w.start("payer", nil)
		got, err := payer.Buy(t.Context(), w.order(200))
		if err != nil || got.Status != BuyBought || got.Price != 2+1 || !got.Preimage.Opens(got.Hash) {
			t.Fatalf("%+v %v", got, err)
		}
		w.balances(-200, 200, 0)
		if _, err := payer.Buy(t.Context(), w.order(101)); !errors.Is(err, ErrLaneRoom) {
			t.Fatal("more than the room was bought", err)
		}
		synctest.Wait()
		if got := payer.purchase(got.ID); got.Status != BuyBought {
			t.Fatal("delivered to nobody", got.Status)
		}
		// The holder settles. It cannot collect before the deadline and the margin.
		w.ledger.mu.Lock()
		w.ledger.settling, w.ledger.kept = true, 0 // the payee's process is gone
		w.ledger.mu.Unlock()
		time.Sleep(40 * time.Minute)   // bubble
		payee = w.start("payee", disk) // which keeps 300 again, and is mailed at once
		synctest.Wait()
		mails, err := payee.Mails(t.Context())
		if err != nil || len(mails) != 1 || mails[0].Amount != 200 || mails[0].Payer != payer.id || mails[0].Drew != 200 {
			t.Fatal(mails, err)
		}
		if got := payer.purchase(got.ID); got.Status != BuyMailed {
			t.Fatal(got.Status)
		}
		if w.ledger.kept != 100 || w.ledger.total != 200 {
			t.Fatal(w.ledger.kept, w.ledger.total)
		}
		// By hand it comes to the same.
		m, ok := payer.MailOf(&got)
		if !ok {
			t.Fatal("no mail")
		}
		again, err := ParseMail(m.String())
		if err != nil {
			t.Fatal(err)
		}
		if r, err := payee.TakeMail(t.Context(), &again); err != nil || r.ID != got.ID || w.ledger.total != 200 {
			t.Fatal(r, err)
		}
		w.ledger.redeem(got.Lane(), 200)
		w.ledger.down(true)
		time.Sleep(lookEpochs * 3 / 2 * time.Second) // bubble: an epoch lasts a second, and a look fails
		if got := payer.purchase(got.ID); got.Status != BuyMailed {
			t.Fatal(got.Status)
		}
		w.ledger.down(false)
		time.Sleep(lookEpochs * 3 / 2 * time.Second) // bubble: it is looked at again
		if got := payer.purchase(got.ID); got.Status != BuyRedeemed {
			t.Fatal(got.Status)
		}
		sales, err := holder.Sales(t.Context())
		if err != nil || len(sales) != 1 || sales[0].State != SaleSettled {
			t.Fatal(sales, err)
		}
		time.Sleep(25 * time.Hour) // bubble: what was promised is over
		if w.ledger.kept != 0 {
			t.Fatal("room is kept for ever", w.ledger.kept)
		}
	})
}

// TestBuyExpires: a payee that does not come has let the money lapse, and the payer
// hears that.
func TestBuyExpires(t *testing.T) {
	onChain(t, func(t *testing.T, w *town) {
		w.start("holder", nil)
		payee := w.start("payee", nil)
		if _, err := payee.Room(t.Context(), w.room(300)); err != nil {
			t.Fatal(err)
		}
		payee.leave()
		payer := w.start("payer", nil)
		got, err := payer.Buy(t.Context(), w.order(200))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(62 * time.Minute) // bubble
		if got := payer.purchase(got.ID); got.Status != BuyExpired {
			t.Fatal(got.Status)
		}
	})
}

// TestRefusedToBuy: what the chain does not show, or the payee did not say, is refused
// before anything is paid, and so is a voucher that was not agreed.
func TestRefusedToBuy(t *testing.T) {
	for name, x := range map[string]struct {
		before func(w *town, st *LaneStatement, q *BuyRequest)
		want   error
	}{
		"no guard": {func(w *town, _ *LaneStatement, _ *BuyRequest) { w.ledger.minSettle = 0 }, ErrNoGuard},
		"guard ends too soon": {func(w *town, _ *LaneStatement, q *BuyRequest) {
			w.ledger.minSettle = w.ledger.height() + int64(q.Time/time.Second) + 19
		}, ErrNoGuard},
		"deadline too late": {func(_ *town, _ *LaneStatement, q *BuyRequest) { q.Time = time.Hour + time.Second }, ErrStale},
		"no time":           {func(_ *town, _ *LaneStatement, q *BuyRequest) { q.Time = 10 * time.Second }, ErrTerms},
		"stale":             {func(_ *town, _ *LaneStatement, _ *BuyRequest) { time.Sleep(30 * time.Minute) }, ErrStale}, // bubble
		"forged":            {func(_ *town, st *LaneStatement, _ *BuyRequest) { st.Room++ }, ErrStatement},
		"foreign payer": {func(w *town, st *LaneStatement, _ *BuyRequest) {
			st.Payer = identityOf(w.t, 9).id
			w.sign(st)
		}, ErrStatement},
		"for whoever comes": {func(w *town, st *LaneStatement, _ *BuyRequest) {
			st.Payer = ""
			w.sign(st)
		}, ErrStatement},
		"another network": {func(w *town, st *LaneStatement, _ *BuyRequest) {
			st.Realm = "other/karma"
			w.sign(st)
		}, ErrStatement},
		"another holder": {func(w *town, st *LaneStatement, _ *BuyRequest) {
			st.Holder = identityOf(w.t, 9).id
			w.sign(st)
		}, ErrStatement},
		"no room promised": {func(_ *town, _ *LaneStatement, q *BuyRequest) { q.Amount = 301 }, ErrLaneRoom},
		"no room by the totals": {func(w *town, st *LaneStatement, _ *BuyRequest) {
			st.Total = 801
			w.sign(st)
		}, ErrLaneRoom},
		"no room on the chain": {func(w *town, _ *LaneStatement, _ *BuyRequest) { w.ledger.toSend = 801 }, ErrLaneRoom},
		"settles":              {func(w *town, _ *LaneStatement, _ *BuyRequest) { w.ledger.settling = true }, ErrChannel},
		"is gone":              {func(w *town, _ *LaneStatement, _ *BuyRequest) { w.ledger.gone = true }, ErrChannel},
		"too dear":             {func(_ *town, _ *LaneStatement, q *BuyRequest) { q.MaxPrice = 2 }, ErrPrice},
		"no room on the tab": {func(w *town, _ *LaneStatement, _ *BuyRequest) {
			w.mu.Lock()
			w.tabRoom = &Room{Credit: 199}
			w.mu.Unlock()
		}, ErrNoRoom},
		"the holder has spent it": {func(w *town, _ *LaneStatement, _ *BuyRequest) { w.ledger.used = 801 }, ErrLaneRoom},
		"signed by somebody":      {func(w *town, _ *LaneStatement, _ *BuyRequest) { w.ledger.forge = func(v *Voucher) { v.Signer = "me" } }, ErrVoucher},
		"less":                    {func(w *town, _ *LaneStatement, _ *BuyRequest) { w.ledger.forge = func(v *Voucher) { v.Amount-- } }, ErrVoucher},
		"another lane":            {func(w *town, _ *LaneStatement, _ *BuyRequest) { w.ledger.forge = func(v *Voucher) { v.Lane++ } }, ErrVoucher},
		"another hash":            {func(w *town, _ *LaneStatement, _ *BuyRequest) { w.ledger.forge = func(v *Voucher) { v.Hash[0]++ } }, ErrVoucher},
		"ends sooner":             {func(w *town, _ *LaneStatement, _ *BuyRequest) { w.ledger.forge = func(v *Voucher) { v.Expires-- } }, ErrVoucher},
		"another channel":         {func(w *town, _ *LaneStatement, _ *BuyRequest) { w.ledger.forge = func(v *Voucher) { v.Channel = "x" } }, ErrVoucher},
		"settles meanwhile": {func(w *town, _ *LaneStatement, _ *BuyRequest) {
			w.ledger.forge = func(*Voucher) { w.ledger.settling = true }
		}, ErrChannel},
	} {
		t.Run(name, func(t *testing.T) {
			onChain(t, func(t *testing.T, w *town) {
				w.start("holder", nil)
				payee := w.start("payee", nil)
				st, err := payee.Room(t.Context(), w.room(300))
				if err != nil {
					t.Fatal(err)
				}
				payer := w.start("payer", nil)
				q := w.order(200)
				q.Statement = &st.LaneStatement
				x.before(w, q.Statement, &q)
				if _, err := payer.Buy(t.Context(), q); !errors.Is(err, x.want) {
					t.Fatalf("%v, want %v", err, x.want)
				}
				w.balances(0, 0, 0)
				list, err := payer.Bought(t.Context())
				if err != nil || len(list) != 0 {
					t.Fatal(list, err)
				}
			})
		})
	}
}

// sign makes a statement the payee's again.
func (w *town) sign(st *LaneStatement) {
	w.t.Helper()
	var err error
	if st.Signature, err = w.who["payee"].priv.Sign(st.SigningBytes()); err != nil {
		w.t.Fatal(err)
	}
}

// TestSharedStatement: one that is for whoever comes is taken where that is allowed.
func TestSharedStatement(t *testing.T) {
	onChain(t, func(t *testing.T, w *town) {
		w.start("holder", nil)
		payee, payer := w.start("payee", nil), w.start("payer", nil)
		q := w.room(300)
		q.Payer = ""
		if _, err := payee.Room(t.Context(), q); err != nil {
			t.Fatal(err)
		}
		o := w.order(100)
		if _, err := payer.Buy(t.Context(), o); !errors.Is(err, ErrStatement) {
			t.Fatal(err)
		}
		o.Shared = true
		got, err := payer.Buy(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := payer.purchase(got.ID); got.Status != BuyMailed {
			t.Fatal(got.Status)
		}
	})
}

// TestRoomIsKeptApart: what is promised to one payer is promised to nobody else, and the
// lanes' totals count.
func TestRoomIsKeptApart(t *testing.T) {
	onChain(t, func(t *testing.T, w *town) {
		w.start("holder", nil)
		payee := w.start("payee", nil)
		w.ledger.total = 300
		first, err := payee.Room(t.Context(), w.room(400))
		if err != nil || first.Total != 300 {
			t.Fatal(first, err)
		}
		q := w.room(301)
		q.Payer = identityOf(t, 9).id
		if _, err := payee.Room(t.Context(), q); !errors.Is(err, ErrLaneRoom) || w.ledger.kept != 400 {
			t.Fatal(err, w.ledger.kept)
		}
		q.Room = 300
		second, err := payee.Room(t.Context(), q)
		if err != nil || second.Serial != first.Serial+1 || w.ledger.kept != 700 {
			t.Fatal(second, err, w.ledger.kept)
		}
		// A start keeps it again, before anybody can give a voucher.
		disk := payee.kill()
		defer disk.Close()
		w.ledger.kept = 0
		if err := KeepRoom(t.Context(), disk.Store, payee.id, channelsOf{w.ledger, w, payee.id}, slog.Default()); err != nil || w.ledger.kept != 700 {
			t.Fatal(w.ledger.kept, err)
		}
	})
}

// TestMailRefused: what is not the payee's to take it does not take.
func TestMailRefused(t *testing.T) {
	for name, x := range map[string]struct {
		spoil func(m *Mail)
		want  error
	}{
		"another network":   {func(m *Mail) { m.Realm = "other/karma" }, ErrMail},
		"another payer":     {func(m *Mail) { m.Payer = m.Payer[:len(m.Payer)-1] + "x" }, ErrMail},
		"another id":        {func(m *Mail) { m.ID[0]++ }, ErrVoucher},
		"another statement": {func(m *Mail) { m.Serial++ }, ErrMail},
		"another preimage":  {func(m *Mail) { m.Preimage[0]++ }, ErrMail},
		"no voucher":        {func(m *Mail) { m.Voucher = []byte("{") }, ErrVoucher},
		"another signer": {func(m *Mail) {
			m.Voucher = []byte(strings.Replace(string(m.Voucher), `"Signer":"holder"`, `"Signer":"me"`, 1))
		}, ErrMail},
	} {
		t.Run(name, func(t *testing.T) {
			onChain(t, func(t *testing.T, w *town) {
				w.start("holder", nil)
				payee := w.start("payee", nil)
				st, err := payee.Room(t.Context(), w.room(300))
				if err != nil {
					t.Fatal(err)
				}
				p := Purchase{ID: ID{7}, Payer: w.who["payer"].id, Holder: w.who["holder"].id, Payee: payee.id, Channel: theChannel, Amount: 100, Deadline: st.Until}
				secret := tally.Preimage{5}
				v := p.voucher(secret.Hashlock())
				raw, err := channelsOf{w.ledger, w, p.Holder}.Sign(t.Context(), &v)
				if err != nil {
					t.Fatal(err)
				}
				m := &Mail{Realm: "test/karma", ID: p.ID, Payer: p.Payer, Serial: st.Serial, Voucher: raw, Preimage: secret}
				good := *m
				x.spoil(m)
				if _, err := payee.TakeMail(t.Context(), m); !errors.Is(err, x.want) || w.ledger.total != 0 {
					t.Fatalf("%v, want %v", err, x.want)
				}
				if _, err := payee.TakeMail(t.Context(), &good); err != nil || w.ledger.total != 100 {
					t.Fatal(err)
				}
			})
		})
	}
}

// TestBuyCrashMatrix stops payer or holder at each commit and each call to the carrier
// of one purchase. Goal: in the end the payer has paid exactly if it has the preimage,
// and the holder has the money exactly then.
func TestBuyCrashMatrix(t *testing.T) {
	paid, free := 0, 0
	for side := range 2 {
		for _, call := range [...]bool{false, true} {
			for at := 1; at <= 3; at++ {
				for _, after := range [...]bool{false, true} {
					p := crashPoint{side: side, call: call, at: at, after: after}
					t.Run(p.String(), func(t *testing.T) {
						onChain(t, func(t *testing.T, w *town) {
							lives := [2]*life{w.start("payer", nil), w.start("holder", nil)}
							payee := w.start("payee", nil)
							if _, err := payee.Room(t.Context(), w.room(300)); err != nil {
								t.Fatal(err)
							}
							synctest.Wait()
							payee.leave()
							lives[side].arm(&p, lives[side].store.Commits())
							ctx, cancel := contextOf(t, 10*time.Second)
							defer cancel()
							_, _ = lives[0].Buy(ctx, w.order(200))
							time.Sleep(15 * time.Second) // bubble
							w.start(names[side], lives[side].kill())
							time.Sleep(20 * time.Minute) // bubble: late hold and all
							payer, err := w.at(w.who["payer"].id)
							if err != nil {
								t.Fatal(err)
							}
							list, err := payer.Bought(t.Context())
							if err != nil || len(list) > 1 {
								t.Fatal(list, err)
							}
							if len(list) == 1 && list[0].Status == BuyBought {
								paid++
								w.balances(-200, 200, 0)
								return
							}
							free++
							if len(list) == 1 && list[0].Status != BuyRefunded {
								t.Fatal(list[0].Status)
							}
							w.balances(0, 0, 0)
						})
					})
				}
			}
		}
	}
	if paid < 3 || free < 3 {
		t.Errorf("%d paid and %d free: the matrix does not reach both", paid, free)
	}
}

// TestTakeCrash stops the payee at the save of a mail, before or after it. Coming again
// the mail is taken once.
func TestTakeCrash(t *testing.T) {
	for _, after := range [...]bool{false, true} {
		onChain(t, func(t *testing.T, w *town) {
			w.start("holder", nil)
			payee := w.start("payee", nil)
			if _, err := payee.Room(t.Context(), w.room(300)); err != nil {
				t.Fatal(err)
			}
			payer := w.start("payer", nil)
			payee.arm(&crashPoint{at: 1, after: after}, payee.store.Commits())
			got, err := payer.Buy(t.Context(), w.order(200))
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute) // bubble
			w.start("payee", payee.kill())
			synctest.Wait()
			if got := payer.purchase(got.ID); got.Status != BuyMailed || w.ledger.total != 200 {
				t.Fatal(got.Status, w.ledger.total)
			}
		})
	}
}

// TestTimesOfRoom: without a time of its own room is kept for a day or as long as a guard
// can, and a purchase is good for as long as the room.
func TestTimesOfRoom(t *testing.T) {
	onChain(t, func(t *testing.T, w *town) {
		w.start("holder", nil)
		payee, payer := w.start("payee", nil), w.start("payer", nil)
		q := w.room(100)
		q.Time = 0
		st, err := payee.Room(t.Context(), q)
		if err != nil || st.Until != w.ledger.height()+86400 {
			t.Fatal(st, err)
		}
		w.ledger.times.Furthest = 5020
		if st, err = payee.Room(t.Context(), q); err != nil || st.Until != w.ledger.height()+5000 {
			t.Fatal(st, err)
		}
		o := w.order(50)
		o.Time, o.Statement = 0, &st.LaneStatement
		if got, err := payer.Buy(t.Context(), o); err != nil || got.Deadline != st.Until {
			t.Fatal(got, err)
		}
		q.Time = 5001 * time.Second
		if _, err := payee.Room(t.Context(), q); !errors.Is(err, ErrTerms) || !strings.Contains(err.Error(), "1h23m20s") {
			t.Fatal(err)
		}
	})
}

// TestLanesOfPurchases: a lane is of one payer and one purchase, and none of the slots'.
func TestLanesOfPurchases(t *testing.T) {
	lanes := make(map[uint64]bool)
	for i := range byte(50) {
		for _, payer := range [...]peer.ID{"a", "b"} {
			p := Purchase{ID: ID{i}, Payer: payer}
			if l := p.Lane(); lanes[l] || l < mailLane || l > 1<<63-1 {
				t.Fatal(fmt.Sprint(payer, i, l))
			} else {
				lanes[l] = true
			}
		}
	}
}

func contextOf(t *testing.T, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), d)
}

func FuzzParseStatement(f *testing.F) {
	f.Add(statementPrefix + "00")
	f.Add((&LaneStatement{Realm: "r", Payee: "p", Holder: "h", Channel: "c", Serial: 1, Room: 1, Until: 1, Signature: []byte{1}}).String())
	f.Fuzz(func(t *testing.T, text string) {
		if s, err := ParseStatement(text); err == nil && s.String() != text {
			t.Fatalf("%q is written %q", text, s.String())
		}
	})
}

func FuzzParseMail(f *testing.F) {
	f.Add(mailPrefix + "00")
	f.Add((&Mail{Realm: "r", Payer: "p", Serial: 1, Voucher: []byte{1}}).String())
	f.Fuzz(func(t *testing.T, text string) {
		if m, err := ParseMail(text); err == nil && m.String() != text {
			t.Fatalf("%q is written %q", text, m.String())
		}
	})
}

// TestVectorsOfMail: those are the texts of docs/protocol/hold.md.
func TestVectorsOfMail(t *testing.T) {
	payee, holder, payer := identityOf(t, 1), identityOf(t, 2), identityOf(t, 3)
	p := Purchase{ID: ID{0xf0, 0xf1}, Payer: payer.id, Holder: holder.id, Payee: payee.id, Channel: theChannel, Amount: 100, Deadline: 700}
	st := &LaneStatement{
		Realm: "test/karma", Payee: payee.id, Holder: holder.id, Payer: payer.id, Channel: theChannel, Serial: 3, Total: 400, Room: 300, Until: 700,
	}
	var err error
	if st.Signature, err = payee.priv.Sign(st.SigningBytes()); err != nil {
		t.Fatal(err)
	}
	m := &Mail{Realm: "test/karma", ID: p.ID, Payer: payer.id, Serial: 3, Voucher: []byte{1, 2, 3}, Preimage: tally.Preimage{5, 1}}
	for name, got := range map[string]string{
		"lane.number": fmt.Sprint(p.Lane()), "statement.text": st.String(), "mail.text": m.String(),
	} {
		if want := vector(t, name); got != want {
			t.Errorf("%s %s", name, got)
		}
	}
	if got, err := ParseStatement(vector(t, "statement.text")); err != nil || got.Verify("test/karma") != nil || got.Room != 300 || got.For(payer.id, false) != nil {
		t.Error(got, err)
	}
	if got, err := ParseMail(vector(t, "mail.text")); err != nil || got.Serial != 3 || got.Payer != payer.id {
		t.Error(got, err)
	}
}
