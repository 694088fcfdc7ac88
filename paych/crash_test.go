package paych_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/filecoin-project/go-address"
	filbig "github.com/filecoin-project/go-state-types/big"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/paychtest"
)

// Goal: a payer and a payee, either of them stopped at any point, end as if
// nobody had been: every message that was signed is mined once, every voucher
// that was given counts, no nonce is used twice, and the books agree with the
// chain. Method: one script of a channel's whole life; it is run for each commit
// of a side with a power loss before and after it, and for each call of Publish
// with a stop before and after the message left. After a stop the side is started
// on what the disk kept, and does its step again as its user would: by looking
// first at what is there.

// mortal is a node that may be stopped.
type mortal struct {
	r      *crashRun
	name   string
	wallet *paychtest.Wallet
	key    address.Address
	crash  *durabletest.Crash
	next   atomic.Pointer[durabletest.Crash] // what a stop at Publish left
	*paych.Manager
	ctx    context.Context
	cancel context.CancelFunc
	downs  int
}

type crashRun struct {
	t            *testing.T
	chain        *paychtest.Chain
	payer, payee *mortal
	attempts     int // of Publish
	// dies decides at an attempt to publish: 0 lives, 1 stops before, 2 after.
	dies func(who *mortal, attempt int) int

	tag     string // that every step is with
	ch      address.Address
	given   map[string]string // lane and nonce to voucher
	started time.Time
}

var errStopped = errors.New("stopped")

func (r *crashRun) mortal(name string) *mortal {
	n := &mortal{r: r, name: name, wallet: paychtest.NewWallet(name), crash: durabletest.NewMemCrash()}
	n.key = n.wallet.MustNew()
	r.chain.Fund(n.key, fund)
	n.open()
	return n
}

func (n *mortal) open() {
	n.ctx, n.cancel = context.WithCancel(n.r.t.Context())
	for {
		m, err := paych.Open(n.ctx, n.crash.Store, n.r.chain, n.wallet, paych.Config{
			Logger: slog.New(slog.DiscardHandler),
		})
		if err == nil {
			n.Manager = m
			return
		}
		if n.crash.Failed() == nil {
			n.r.t.Fatal(err)
		}
		n.revive()
	}
}

// dead reports whether the node has to be started again.
func (n *mortal) dead() bool { return n.crash.Failed() != nil || n.next.Load() != nil }

// revive gives the store what the disk kept.
func (n *mortal) revive() {
	n.downs++
	old := n.crash
	if next := n.next.Swap(nil); next != nil {
		n.crash = next
	} else {
		n.crash = old.Clone()
	}
	_ = old.Close()
}

// mend starts the nodes that were stopped.
func (r *crashRun) mend() {
	synctest.Wait()
	for _, n := range []*mortal{r.payer, r.payee} {
		for n.dead() {
			n.cancel()
			_ = n.Close()
			n.revive()
			n.open()
			synctest.Wait()
		}
	}
}

// step does one thing, again after each stop.
func (r *crashRun) step(n *mortal, fn func(ctx context.Context) error) {
	r.t.Helper()
	for range 5 {
		r.mend()
		ctx, cancel := context.WithTimeout(paych.WithTag(n.ctx, r.tag), 100*time.Second)
		err := fn(ctx)
		cancel()
		synctest.Wait()
		if n.dead() {
			continue
		}
		if err != nil {
			r.t.Fatalf("%s: %v", n.name, err)
		}
		return
	}
	r.t.Fatalf("%s does not get on", n.name)
}

func (r *crashRun) pass(epochs int) {
	for range epochs {
		time.Sleep(time.Second) // bubble
		r.mend()
	}
}

// settled waits until a node has nothing under way.
func (r *crashRun) settled(n *mortal) {
	r.t.Helper()
	for range 60 {
		r.mend()
		if list, err := n.PaychPending(n.ctx); err == nil && len(list) == 0 {
			return
		}
		r.pass(1)
	}
	list, _ := n.PaychPending(n.ctx)
	r.t.Fatalf("%s still has %+v", n.name, list)
}

// voucher makes one, or finds the one that was made before a stop.
func (r *crashRun) voucher(spec paych.VoucherSpec, from, to *mortal) *paych.SignedVoucher {
	var sv *paych.SignedVoucher
	spec.Again = true
	r.step(from, func(ctx context.Context) error {
		res, err := from.PaychVoucherCreateSpec(ctx, r.ch, spec)
		if err == nil && res.Voucher == nil {
			return fmt.Errorf("lacks %v", res.Shortfall)
		}
		if err == nil {
			sv = res.Voucher
		}
		return err
	})
	text, err := paych.FormatVoucher(sv)
	if err != nil {
		r.t.Fatal(err)
	}
	name := fmt.Sprint(sv.Lane, "/", sv.Nonce)
	if had, ok := r.given[name]; ok && had != text {
		r.t.Errorf("two vouchers have nonce %s", name)
	}
	r.given[name] = text
	r.step(to, func(ctx context.Context) error {
		_, err := to.PaychVoucherAdd(ctx, r.ch, sv, nil, filbig.Zero())
		return err
	})
	return sv
}

func (r *crashRun) status(n *mortal) *paych.ChannelInfo {
	r.t.Helper()
	info, err := n.PaychInfo(n.ctx, r.ch)
	if err != nil {
		r.t.Fatal(err)
	}
	return info
}

func (r *crashRun) play() {
	t, p, q := r.t, r.payer, r.payee
	var id cid.Cid
	r.step(p, func(ctx context.Context) (err error) {
		id, err = p.PaychCreateSpec(ctx, paych.CreateSpec{From: p.key, To: q.key, Amount: atto(100), Tag: "peer"})
		return err
	})
	r.step(p, func(ctx context.Context) (err error) {
		r.ch, err = p.PaychWaitReady(ctx, id)
		return err
	})
	r.step(p, func(ctx context.Context) error {
		if f := r.status(p).Funds; f.Reserved.Sign() > 0 {
			return nil // before the stop
		}
		_, err := p.PaychReserveFunds(ctx, r.ch, atto(60))
		return err
	})
	r.step(p, func(ctx context.Context) error {
		if f := r.status(p); f.PendingAmt.Sign() > 0 || f.Funds.Reserved.GreaterThan(atto(60)) {
			return nil
		}
		id, err := p.PaychReserveFunds(ctx, r.ch, atto(90))
		if err == nil && !id.Defined() {
			return errors.New("no top-up")
		}
		return err
	})
	r.voucher(paych.VoucherSpec{Lane: 0, Amount: atto(20)}, p, q)
	r.voucher(paych.VoucherSpec{Lane: 1, Amount: atto(5)}, p, q)
	r.settled(p)
	if f := r.status(p).Funds; !f.Confirmed.Equals(atto(150)) || !f.Redeemed.Equals(atto(25)) || !f.Reserved.Equals(atto(125)) {
		t.Errorf("C %v V %v R %v after the top-up", f.Confirmed, f.Redeemed, f.Reserved)
	}
	r.step(p, func(ctx context.Context) error {
		if r.status(p).Funds.Reserved.LessThan(atto(125)) {
			return nil
		}
		return p.PaychReleaseFunds(ctx, r.ch, atto(25))
	})
	secret := preimage(1)
	lock := secret.Hashlock()
	r.voucher(paych.VoucherSpec{Lane: 2, Amount: atto(30), Lock: &lock}, p, q)
	r.step(q, func(ctx context.Context) error {
		_, err := q.PaychVoucherSecret(ctx, r.ch, secret)
		return err
	})
	r.voucher(paych.VoucherSpec{Lane: 0, Amount: atto(50)}, p, q)
	r.voucher(paych.VoucherSpec{Lane: 0, Amount: atto(40)}, q, p) // a refund
	if f := r.status(p).Funds; !f.Redeemed.Equals(atto(85)) || !f.Reserved.Equals(atto(40)) {
		t.Errorf("V %v R %v after the refund", f.Redeemed, f.Reserved)
	}
	if got := r.status(q).VoucherReedeemedAmt; !got.Equals(atto(75)) {
		t.Errorf("the payee counts %v", got)
	}
	r.step(p, func(ctx context.Context) error {
		_, err := p.PaychSettle(ctx, r.ch)
		return err
	})
	r.pass(70)
	r.settled(p)
	r.settled(q)
}

func (r *crashRun) judge() {
	t := r.t
	for _, n := range []*mortal{r.payer, r.payee} {
		info := r.status(n)
		if info.Phase != paych.PhaseCollected || info.Final == nil || !info.Final.ToSend.Equals(atto(75)) || !info.Final.Rest.Equals(atto(75)) {
			t.Errorf("%s: %v, final %+v", n.name, info.Phase, info.Final)
		}
		if list, err := n.PaychList(n.ctx); err != nil || len(list) != 1 {
			t.Errorf("%s: channels %v, %v", n.name, list, err)
		}
	}
	for key, want := range map[address.Address]int64{r.payer.key: fund - 75, r.payee.key: fund + 75} {
		if got, err := r.chain.Balance(t.Context(), key); err != nil || !got.Equals(atto(want)) {
			t.Errorf("%s has %v, want %d", key, got, want)
		}
	}
	mined := r.chain.Receipts()
	for _, x := range r.chain.Published() {
		if mined[x.Cid] != 1 {
			t.Errorf("message %s, method %d, was mined %d times", x.Cid, x.Kind, mined[x.Cid])
		}
	}
}

// life is the script of a channel's whole life.
func (r *crashRun) life() {
	r.play()
	if !r.t.Failed() {
		r.judge()
	}
}

// crashRunOf plays a script; arm prepares the stop. It returns how many commits
// the two sides made and how often Publish was called.
func crashRunOf(t *testing.T, script func(r *crashRun), arm func(r *crashRun)) (payer, payee, attempts int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		r := &crashRun{t: t, chain: paychtest.NewChain(paychtest.DefaultParams()), given: make(map[string]string), started: time.Now()}
		go r.chain.Run(ctx) // ends with ctx
		r.payer, r.payee = r.mortal("payer"), r.mortal("payee")
		var mu sync.Mutex // the hook is called by both sides
		r.chain.OnPublish(func(_ int, m *paych.SignedMessage) (bool, error) {
			mu.Lock()
			defer mu.Unlock()
			who := r.payer
			if m.From == r.payee.key {
				who = r.payee
			}
			if who.dead() {
				return false, errStopped
			}
			r.attempts++
			if r.dies == nil {
				return true, nil
			}
			switch r.dies(who, r.attempts) {
			case 1:
				who.next.Store(who.crash.Clone())
				who.cancel()
				return false, errStopped
			case 2:
				who.next.Store(who.crash.Clone())
				who.cancel()
				return true, errStopped
			}
			return true, nil
		})
		if arm != nil {
			arm(r)
		}
		defer func() {
			for _, n := range []*mortal{r.payer, r.payee} {
				n.cancel()
				_ = n.Close()
				_ = n.crash.Close()
				if next := n.next.Load(); next != nil {
					_ = next.Close()
				}
			}
			cancel()
			synctest.Wait()
		}()
		script(r)
		payer, payee, attempts = r.payer.crash.Commits(), r.payee.crash.Commits(), r.attempts
	})
	return payer, payee, attempts
}

func TestCrashMatrix(t *testing.T) { crashMatrix(t, (*crashRun).life) }

// crashMatrix plays a script once for each stop.
func crashMatrix(t *testing.T, script func(r *crashRun)) {
	t.Helper()
	payer, payee, attempts := crashRunOf(t, script, nil)
	t.Logf("%d commits of the payer, %d of the payee, %d messages", payer, payee, attempts)
	if t.Failed() {
		return
	}
	for _, side := range []struct {
		name    string
		commits int
		pick    func(*crashRun) *mortal
	}{
		{"payer", payer, func(r *crashRun) *mortal { return r.payer }},
		{"payee", payee, func(r *crashRun) *mortal { return r.payee }},
	} {
		// The first commit binds the store to the chain; it is made before the
		// stop can be set.
		for n := 2; n <= side.commits; n++ {
			t.Run(fmt.Sprintf("%s before commit %d", side.name, n), func(t *testing.T) {
				crashRunOf(t, script, func(r *crashRun) { side.pick(r).crash.CrashBefore(n) })
			})
			t.Run(fmt.Sprintf("%s after commit %d", side.name, n), func(t *testing.T) {
				crashRunOf(t, script, func(r *crashRun) { side.pick(r).crash.CrashAfter(n) })
			})
		}
	}
	for n := 1; n <= attempts; n++ {
		for how := 1; how <= 2; how++ {
			t.Run(fmt.Sprintf("publish %d stop %d", n, how), func(t *testing.T) {
				crashRunOf(t, script, func(r *crashRun) {
					r.dies = func(_ *mortal, attempt int) int {
						if attempt == n {
							return how
						}
						return 0
					}
				})
			})
		}
	}
}
