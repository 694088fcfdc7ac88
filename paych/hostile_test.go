package paych_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/filecoin-project/go-address"
	filbig "github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/crypto"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/actor"
)

// A voucher whose time runs out is worth something only while it can be submitted:
// it is, before that, whether it has a lock or not.
func TestPlainVoucherIsClaimedBeforeItExpires(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		expires := w.head() + 30
		q.takes(ch, p.giveSpec(ch, paych.VoucherSpec{Lane: 1, Amount: atto(50), TimeLockMax: expires}), 50)
		w.pass(40)
		if got, _ := w.onChain(ch); got != 50 {
			t.Errorf("to send %d", got)
		}
	})
}

// An amount of megabytes is refused before anything is reckoned with it.
func TestHugeAmount(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		huge := filbig.Exp(atto(2), atto(1<<23))
		sv := &paych.SignedVoucher{ChannelAddr: ch, Nonce: 1, Amount: huge, Signature: &crypto.Signature{Type: crypto.SigTypeSecp256k1, Data: make([]byte, 65)}}
		for _, n := range []*node{p, q} {
			before := n.state(ch)
			if _, err := n.PaychVoucherAdd(w.ctx, ch, sv, nil, atto(0)); !errors.Is(err, paych.ErrOverBalance) || len(err.Error()) > 200 {
				t.Error("added")
			}
			if err := n.PaychVoucherImport(w.ctx, ch, sv); !errors.Is(err, paych.ErrOverBalance) {
				t.Error("imported")
			}
			if after := n.state(ch); after != before {
				t.Errorf("%s to %s", before, after)
			}
		}
		if _, err := paych.EncodeVoucher(sv); err == nil {
			t.Error("encoded")
		}
	})
}

// Calls with one tag at one time get one message or one error, also while the
// create begins or fails.
func TestTagAtOneTime(t *testing.T) {
	inTown(t, func(w *town) {
		p := w.payer
		for name, c := range map[string]struct {
			amount int64
			want   error
		}{"made": {1, nil}, "refused": {fund * 2, paych.ErrBalance}} {
			for i := range 100 {
				ctx := paych.WithTag(w.ctx, fmt.Sprint(name, i))
				type result struct {
					id  cid.Cid
					err error
				}
				results := make(chan result, 4)
				for range cap(results) {
					go func() {
						id, err := p.PaychCreate(ctx, p.key, w.payee.key, atto(c.amount))
						results <- result{id, err}
					}()
				}
				first := <-results
				for range cap(results) - 1 {
					if r := <-results; r.id != first.id {
						t.Fatalf("%s: %v and %v", name, first, r)
					}
				}
				if !errors.Is(first.err, c.want) || first.id.Defined() == (c.want != nil) {
					t.Fatalf("%s: %v", name, first)
				}
			}
		}
	})
}

// A payee whose account cannot pay for gas hears of it, and submits once it can.
func TestPayeeWithoutMoneyForGas(t *testing.T) {
	var told noted
	inTownWith(t, paych.Config{Notify: told.note}, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		q.takes(ch, p.give(ch, 30, 0), 30)
		w.chain.OnPrepare(func(m *paych.Message) error {
			if m.From == q.key {
				return paych.ErrBalance
			}
			return nil
		})
		p.settle(ch)
		w.pass(12)
		if !told.has(func(n paych.Notice) bool {
			return n.Kind == paych.NoticeFailed && n.Channel == ch && errors.Is(n.Err, paych.ErrBalance)
		}) {
			t.Errorf("%+v", told.list)
		}
		w.chain.OnPrepare(nil)
		w.pass(50)
		w.paid(ch, 30)
	})
}

// Many lanes at once are all submitted in time, beside one whose
// messages fail.
func TestAllLanesAreSubmittedInTime(t *testing.T) {
	inTown(t, func(w *town) {
		const lanes = 512
		p, q := w.payer, w.payee
		ch := w.open(lanes)
		for lane := range uint64(lanes) {
			q.takes(ch, p.give(ch, 1, lane), 1)
		}
		w.chain.OnPrepare(func(m *paych.Message) error {
			if m.Method != actor.MethodUpdateChannelState {
				return nil
			}
			if msg, exit := actor.DecodeMsg(m.Method, m.Params); exit.IsSuccess() && msg.Update.Sv.Lane == 0 {
				return errors.New("this one fails")
			}
			return nil
		})
		p.settle(ch)
		w.pass(10)
		if got, _ := w.onChain(ch); got != lanes-1 {
			t.Errorf("to send %d", got)
		}
		w.chain.OnPrepare(nil)
		w.pass(60)
		w.paid(ch, lanes)
	})
}

// Whoever names channels does not fill the memory: those without a voucher make
// room for each other, and are there again when they are named again.
func TestNamedChannelsAreBounded(t *testing.T) {
	inTown(t, func(w *town) {
		const bound = 1024
		p, q := w.payer, w.payee
		kept := w.open(10)
		q.takes(kept, p.give(kept, 5, 0), 5)
		var all []address.Address
		var ids []cid.Cid
		for range bound + 100 {
			id, err := p.PaychCreate(w.ctx, p.key, q.key, atto(1))
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
		for _, id := range ids {
			all = append(all, p.ready(id))
		}
		for _, ch := range all {
			if _, err := q.PaychStatus(w.ctx, ch); err != nil {
				t.Fatal(err)
			}
		}
		if list, err := q.PaychList(w.ctx); err != nil || len(list) > bound+1 || list[0] != kept {
			t.Errorf("%d channels, %v", len(list), err)
		}
		q.takes(all[0], p.give(all[0], 1, 0), 1)
		q.takes(kept, p.give(kept, 6, 0), 1)
		q.down()
		q.start()
		if list, err := q.PaychList(w.ctx); err != nil || len(list) != 2 {
			t.Errorf("%d channels, %v", len(list), err)
		}
	})
}

// gate holds calls up while it is shut.
type gate struct{ open chan struct{} }

func (g *gate) pass() { <-g.open }

// slowWallet signs behind a gate.
type slowWallet struct {
	paych.LocalWallet
	gate
}

func (s *slowWallet) Sign(ctx context.Context, a address.Address, msg []byte) (*crypto.Signature, error) {
	s.pass()
	return s.LocalWallet.Sign(ctx, a, msg)
}

// A chain or a wallet that hangs holds up nobody who does not need it.
func TestNothingWaitsForAHangingChainOrWallet(t *testing.T) {
	inTown(t, func(w *town) {
		p := w.payer
		ch, other := w.open(100), w.open(100)
		answers := func() {
			t.Helper()
			for _, a := range []address.Address{ch, other} {
				if _, err := p.PaychStatus(w.ctx, a); err != nil {
					t.Error(err)
				}
				if _, err := p.PaychInfo(w.ctx, a); err != nil {
					t.Error(err)
				}
				if _, err := p.PaychVoucherList(w.ctx, a); err != nil {
					t.Error(err)
				}
			}
			if _, err := p.PaychPending(w.ctx); err != nil {
				t.Error(err)
			}
			if _, err := p.PaychList(w.ctx); err != nil {
				t.Error(err)
			}
			if _, err := p.PaychLookup(w.ctx, p.key, w.payee.key); err != nil {
				t.Error(err)
			}
		}
		// The node hangs while a message is made, and while it is published.
		for _, where := range []string{"prepare", "publish"} {
			g := gate{make(chan struct{})}
			if where == "prepare" {
				w.chain.OnPrepare(func(*paych.Message) error { g.pass(); return nil })
			} else {
				w.chain.OnPrepare(nil)
				w.chain.OnPublish(func(int, *paych.SignedMessage) (bool, error) { g.pass(); return true, nil })
			}
			done := make(chan error, 1)
			go func() {
				_, err := p.PaychAddFunds(w.ctx, ch, atto(1))
				done <- err
			}()
			w.pass(1)
			answers()
			p.give(other, map[string]int64{"prepare": 1, "publish": 2}[where], 0)
			p.give(ch, map[string]int64{"prepare": 1, "publish": 2}[where], 0)
			if _, err := p.PaychReserveFunds(w.ctx, ch, atto(1)); err != nil {
				t.Error(err)
			}
			close(g.open)
			if err := <-done; err != nil {
				t.Error(err)
			}
			w.pass(5)
		}
		w.chain.OnPublish(nil)
		// The wallet hangs.
		p.down()
		slow := &slowWallet{LocalWallet: p.wallet, gate: gate{make(chan struct{})}}
		m, err := paych.Open(w.ctx, p.store, w.chain, slow, p.cfg)
		if err != nil {
			t.Fatal(err)
		}
		p.Manager = m
		done := make(chan error, 1)
		go func() {
			_, err := p.PaychVoucherCreate(w.ctx, ch, atto(9), 3)
			done <- err
		}()
		w.pass(1)
		answers()
		if _, err := p.PaychAddFunds(w.ctx, ch, atto(1)); err != nil {
			t.Error(err)
		}
		close(slow.open)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
