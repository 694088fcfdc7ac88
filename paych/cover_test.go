package paych_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/exitcode"

	"github.com/tallystick/tally/paych"
)

// covers checks the cover of a lane.
func (n *node) covers(ch address.Address, lane uint64, deep, head int64) {
	n.t.Helper()
	cov, err := n.PaychCover(n.w.ctx, ch, lane)
	if err != nil {
		n.t.Fatal(err)
	}
	if !cov.Deep.Equals(atto(deep)) || !cov.Head.Equals(atto(head)) {
		n.t.Errorf("cover %v deep, %v at the head, want %d %d", cov.Deep, cov.Head, deep, head)
	}
}

// noted collects notices.
type noted struct {
	mu   sync.Mutex
	list []paych.Notice
}

func (n *noted) note(x paych.Notice) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = append(n.list, x)
}

func (n *noted) has(is func(paych.Notice) bool) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.ContainsFunc(n.list, is)
}

func TestCover(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		q.covers(ch, 0, 0, 0)
		q.takes(ch, p.give(ch, 30, 0), 30)
		q.takes(ch, p.give(ch, 20, 1), 20)
		q.covers(ch, 0, 30, 30)
		q.covers(ch, 1, 20, 20)
		q.covers(ch, 2, 0, 0)
		secret := preimage(1)
		lock := secret.Hashlock()
		q.takes(ch, p.giveSpec(ch, paych.VoucherSpec{Lane: 1, Amount: atto(45), Lock: &lock}), 0)
		q.covers(ch, 1, 20, 20) // nothing without the secret
		if _, err := q.PaychVoucherSecret(w.ctx, ch, secret); err != nil {
			t.Fatal(err)
		}
		q.covers(ch, 1, 45, 45)
		q.takes(ch, p.give(ch, 50, 0), 20)
		p.takes(ch, q.give(ch, 10, 0), 0)
		q.covers(ch, 0, 10, 10) // what the refund left
		for range 2 {
			cov, err := q.PaychCover(w.ctx, ch, 0)
			if err != nil || cov.HeadHeight != w.head() || cov.DeepHeight != w.head()-2 || cov.HeadAge < 0 {
				t.Errorf("%+v %v", cov, err)
			}
			w.pass(1)
		}
		if _, err := p.PaychCover(w.ctx, ch, 0); !errors.Is(err, paych.ErrOutbound) {
			t.Error(err)
		}
		q.settle(ch)
		w.pass(60)
		w.paid(ch, 55)
		q.covers(ch, 0, 10, 10)
		q.covers(ch, 1, 45, 45)
		for _, n := range []*node{p, q} {
			n.down() // the result is on disk
			n.start()
			info, err := n.PaychInfo(w.ctx, ch)
			want := []paych.LaneFinal{{Lane: 0, Redeemed: atto(10), Nonce: 3}, {Lane: 1, Redeemed: atto(45), Nonce: 2}}
			if err != nil || fmt.Sprint(info.Final.Lanes) != fmt.Sprint(want) {
				t.Errorf("%+v %v, want %v", info.Final, err, want)
			}
		}
	})
}

// A channel that is a moment old has no cover at finality.
func TestCoverOfAYoungChannel(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		top, err := p.PaychAddFunds(w.ctx, ch, atto(100))
		if err != nil {
			t.Fatal(err)
		}
		w.pass(1)
		q.refuses(ch, q.w.payer.sign(paych.SignedVoucher{ChannelAddr: ch, Nonce: 1, Amount: atto(150)}), paych.ErrOverBalance)
		p.ready(top)
		q.takes(ch, p.give(ch, 150, 0), 150)
		q.covers(ch, 0, 150, 150)
	})
}

// The other side may act on a head that we were not told of yet: what it pays for with
// the funds that came with it is good, and what we pay.
func TestVoucherAheadOfTheNews(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		q.takes(ch, p.give(ch, 30, 0), 30)
		w.chain.Mute(true)
		top, err := p.PaychAddFunds(w.ctx, ch, atto(100))
		if err != nil {
			t.Fatal(err)
		}
		p.ready(top)
		q.takes(ch, p.give(ch, 150, 0), 120)
		q.refuses(ch, p.sign(paych.SignedVoucher{ChannelAddr: ch, Lane: 1, Nonce: 1, Amount: atto(51)}), paych.ErrOverBalance)
	})
}

// The cover answers from memory while that is as fresh as the watcher keeps it, and
// not from what is older.
func TestCoverWithoutTheChain(t *testing.T) {
	inTownWith(t, paych.Config{WatchEvery: 20}, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		q.takes(ch, p.give(ch, 30, 0), 30)
		away := errors.New("no route to the node")
		w.chain.Down(away)
		w.pass(10)
		q.covers(ch, 0, 30, 30)
		w.pass(20)
		if cov, err := q.PaychCover(w.ctx, ch, 0); !errors.Is(err, away) {
			t.Errorf("%+v %v", cov, err)
		}
		w.chain.Down(nil)
		q.covers(ch, 0, 30, 30)
	})
}

// What a reorganisation or the end of settling takes from the cover is told.
func TestNoticeWhenCoverFalls(t *testing.T) {
	fell := func(head int64) func(paych.Notice) bool {
		return func(n paych.Notice) bool {
			return n.Kind == paych.NoticeCover && n.Cover != nil && n.Cover.Head.Equals(atto(head))
		}
	}
	t.Run("reorganisation", func(t *testing.T) {
		var told noted
		inTownWith(t, paych.Config{Notify: told.note}, func(w *town) {
			p, q := w.payer, w.payee
			ch := w.open(100)
			w.pass(10)
			id, err := p.PaychAddFunds(w.ctx, ch, atto(100))
			if err != nil {
				t.Fatal(err)
			}
			p.ready(id)
			q.takes(ch, p.give(ch, 150, 0), 150)
			w.chain.Revert(6) // deeper than what was taken for final
			w.chain.DropPool()
			w.pass(0)
			if told.list == nil || !told.has(fell(0)) {
				t.Errorf("%+v", told.list)
			}
			q.covers(ch, 0, 0, 0)
		})
	})
	t.Run("bounce", func(t *testing.T) {
		var told noted
		inTownWith(t, paych.Config{Notify: told.note}, func(w *town) {
			p, q := w.payer, w.payee
			ch := w.open(100)
			q.takes(ch, p.give(ch, 30, 0), 30)
			bad := exitcode.ErrIllegalArgument
			w.chain.FailNext(exitcode.Ok, bad, bad, bad, bad) // the first is Settle
			p.settle(ch)
			w.pass(20)
			if !told.has(fell(0)) {
				t.Errorf("%+v", told.list)
			}
			w.pass(40)
		})
	})
	t.Run("time is out", func(t *testing.T) {
		var told noted
		inTownWith(t, paych.Config{Notify: told.note}, func(w *town) {
			p, q := w.payer, w.payee
			ch := w.open(100)
			q.takes(ch, p.give(ch, 30, 0), 30)
			q.down()
			p.settle(ch)
			w.pass(60)
			if told.has(fell(0)) {
				t.Errorf("%+v", told.list)
			}
		})
	})
}

// A voucher that is asked for again is the same to the last bit: at once, after a
// restart, and after the chain has it.
func TestVoucherAgain(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		id, err := p.PaychCreateSpec(w.ctx, paych.CreateSpec{From: p.key, To: q.key, Amount: atto(100), Tag: "peer", Owned: true})
		if err != nil {
			t.Fatal(err)
		}
		ch := p.ready(id)
		ctx := paych.WithTag(w.ctx, "peer")
		ask := func(amount int64) (string, error) {
			r, err := p.PaychVoucherCreateSpec(ctx, ch, paych.VoucherSpec{Amount: atto(amount), Again: true})
			if err != nil {
				return "", err
			}
			if r.Voucher == nil {
				return "", fmt.Errorf("%w: %v", paych.ErrShortfall, r.Shortfall)
			}
			return paych.FormatVoucher(r.Voucher)
		}
		texts := make(chan string, 8)
		for range cap(texts) {
			go func() {
				text, err := ask(30)
				if err != nil {
					t.Error(err)
				}
				texts <- text
			}()
		}
		first := <-texts
		for range cap(texts) - 1 {
			if next := <-texts; next != first {
				t.Error("two vouchers")
			}
		}
		same := func() {
			t.Helper()
			before := p.state(ch)
			if again, err := ask(30); err != nil || again != first {
				t.Errorf("%v %v", again, err)
			}
			if after := p.state(ch); after != before {
				t.Errorf("asking again changed\n%s to\n%s", before, after)
			}
		}
		same()
		p.down()
		p.start()
		same()
		sv, err := paych.ParseVoucher(first)
		if err != nil {
			t.Fatal(err)
		}
		q.takes(ch, sv, 30)
		q.submit(ch, sv)
		w.pass(8)
		same() // the chain has it for good, and the lane forgot it
		if _, err := p.PaychVoucherCreateSpec(w.ctx, ch, paych.VoucherSpec{Amount: atto(30), Again: true}); !errors.Is(err, paych.ErrOwned) {
			t.Error(err)
		}
		if _, err := ask(29); !errors.Is(err, paych.ErrAmount) {
			t.Error(err)
		}
		if _, err := ask(101); !errors.Is(err, paych.ErrShortfall) {
			t.Error(err)
		}
		if next, err := ask(50); err != nil || next == first {
			t.Errorf("%v %v", next, err)
		}
		if _, err := ask(30); !errors.Is(err, paych.ErrAmount) {
			t.Errorf("an older total: %v", err)
		}
		p.settle(ch)
		if again, err := ask(50); err != nil || again == "" {
			t.Errorf("while settling: %v %v", again, err)
		}
	})
}
