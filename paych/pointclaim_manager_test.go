package paych_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/actor"
	"github.com/tallystick/tally/paych/adaptor"
	"github.com/tallystick/tally/paych/paychtest"
)

// secretOf is a secret with its point.
func secretOf(n byte) (tally.Preimage, adaptor.Point) {
	y := adaptor.Secret{31: n, 0: 1}
	p, err := y.Point()
	if err != nil {
		panic(err)
	}
	return tally.Preimage(y), p
}

func termsOf(y adaptor.Point, lane, nonce uint64, base, amount int64, until abi.ChainEpoch) paych.PointTerms {
	return paych.PointTerms{Lane: lane, Nonce: nonce, Base: atto(base), Amount: atto(amount), Until: until, Point: y}
}

func encoded(t testing.TB, l *paych.PointLock) []byte {
	t.Helper()
	raw, err := paych.EncodePointLock(l)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// inSlots is a town with an owned channel whose slots both sides know.
func inSlots(t *testing.T, amount int64, fn func(w *town, own context.Context, ch address.Address)) {
	t.Helper()
	inTown(t, func(w *town) {
		ch := w.open(amount)
		const tag = "locks"
		for _, n := range [...]*node{w.payer, w.payee} {
			if _, err := n.PaychInfo(w.ctx, ch); err != nil {
				t.Fatal(err)
			}
			if err := n.PaychOwn(w.ctx, ch, tag); err != nil {
				t.Fatal(err)
			}
		}
		fn(w, paych.WithTag(w.ctx, tag), ch)
	})
}

// locks has a point lock given and taken.
func (w *town) locks(own context.Context, ch address.Address, terms paych.PointTerms) *paych.PointLock {
	w.t.Helper()
	l, err := w.payer.PaychPointLockCreate(own, ch, terms)
	if err == nil {
		err = w.payee.PaychPointLockAdd(own, ch, terms, l)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

// Giving: the same terms have the same bytes, over a restart too, and nothing else is
// ever signed under their nonce.
func TestPointLockIsGivenOnce(t *testing.T) {
	inSlots(t, 100, func(w *town, own context.Context, ch address.Address) {
		p := w.payer
		_, y := secretOf(1)
		_, other := secretOf(2)
		until := w.head() + 30
		terms := termsOf(y, 1, 5, 0, 40, until)
		first, err := p.PaychPointLockCreate(own, ch, terms)
		if err != nil {
			t.Fatal(err)
		}
		p.funds(ch, 100, 40, 0, 60)
		check := terms
		check.Channel, check.From = ch, p.key
		if err := first.Check(&check); err != nil {
			t.Fatal(err)
		}
		signed := p.wallet.Under()
		for _, restart := range [...]bool{false, true} {
			if restart {
				p.down()
				p.start()
			}
			again, err := p.PaychPointLockCreate(own, ch, terms)
			if err != nil || !bytes.Equal(encoded(t, again), encoded(t, first)) {
				t.Fatalf("restart %v: another lock, %v", restart, err)
			}
			// Split in another way it is the same voucher.
			again, err = p.PaychPointLockCreate(own, ch, termsOf(y, 1, 5, 10, 30, until))
			if err != nil || !bytes.Equal(encoded(t, again), encoded(t, first)) {
				t.Fatalf("restart %v: another lock, %v", restart, err)
			}
			before := p.state(ch)
			for name, x := range map[string]paych.PointTerms{
				"amount": termsOf(y, 1, 5, 0, 41, until),
				"end":    termsOf(y, 1, 5, 0, 40, until+1),
				"point":  termsOf(other, 1, 5, 0, 40, until),
				"below":  termsOf(y, 1, 4, 0, 40, until),
			} {
				if _, err := p.PaychPointLockCreate(own, ch, x); !errors.Is(err, paych.ErrNonce) {
					t.Errorf("restart %v, another %s: %v", restart, name, err)
				}
			}
			hash := preimage(1).Hashlock()
			for name, spec := range map[string]paych.VoucherSpec{
				"plain":     {Lane: 1, Nonce: 5, Amount: atto(40)},
				"until":     {Lane: 1, Nonce: 5, Amount: atto(40), TimeLockMax: until, Again: true, Beside: true},
				"hash lock": {Lane: 1, Nonce: 5, Amount: atto(40), TimeLockMax: until, Lock: &hash, Again: true},
			} {
				if r, err := p.PaychVoucherCreateSpec(own, ch, spec); !errors.Is(err, paych.ErrNonce) {
					t.Errorf("restart %v, %s: %+v %v", restart, name, r, err)
				}
			}
			if after := p.state(ch); after != before {
				t.Errorf("a refusal changed\n%s to\n%s", before, after)
			}
		}
		if n := p.wallet.Under(); n != signed {
			t.Errorf("signed %d times more", n-signed)
		}
		// What is given is no voucher of anybody's yet.
		if list, err := p.PaychVoucherList(w.ctx, ch); err != nil || len(list) != 0 {
			t.Errorf("%v %v", list, err)
		}
		if sv, err := p.PaychVoucherAt(w.ctx, ch, 1, 5); err != nil || sv != nil {
			t.Errorf("%v %v", sv, err)
		}
		if l, err := p.PaychPointLockAt(w.ctx, ch, 1, 5); err != nil || !bytes.Equal(encoded(t, l), encoded(t, first)) {
			t.Error(err)
		}
		rows, err := p.PaychVoucherRecords(w.ctx, ch)
		if err != nil || len(rows) != 1 || !rows[0].Live || rows[0].Opened || rows[0].Voucher.Signature != nil || rows[0].Origin != paych.OriginGiven {
			t.Errorf("%+v %v", rows, err)
		}
	})
}

func TestPointLockRefusals(t *testing.T) {
	inSlots(t, 100, func(w *town, own context.Context, ch address.Address) {
		p, q := w.payer, w.payee
		secret, y := secretOf(1)
		until := w.head() + 30
		good := termsOf(y, 1, 1, 0, 40, until)
		if _, err := p.PaychReserveFunds(w.ctx, ch, atto(50)); err != nil {
			t.Fatal(err)
		}
		var short *paych.ShortfallError
		if _, err := p.PaychPointLockCreate(own, ch, termsOf(y, 1, 1, 0, 60, until)); !errors.As(err, &short) || !short.Shortfall.Equals(atto(10)) {
			t.Errorf("a lock took what is reserved: %v", err)
		}
		for name, x := range map[string]struct {
			n     *node
			ctx   context.Context
			terms paych.PointTerms
			want  error
		}{
			"no amount":     {p, own, termsOf(y, 1, 1, 40, 0, until), paych.ErrPointLock},
			"no end":        {p, own, termsOf(y, 1, 1, 0, 40, 0), paych.ErrPointLock},
			"no nonce":      {p, own, termsOf(y, 1, 0, 0, 40, until), paych.ErrPointLock},
			"no point":      {p, own, termsOf(adaptor.Point{}, 1, 1, 0, 40, until), paych.ErrPointLock},
			"not a point":   {p, own, termsOf(adaptor.Point{0: 2, 32: 5}, 1, 1, 0, 40, until), paych.ErrPointLock},
			"over":          {p, own, termsOf(y, 1, 1, 0, 40, w.head()), paych.ErrTimeLock},
			"lane 0":        {p, own, termsOf(y, 0, 1, 0, 40, until), paych.ErrLock},
			"without a tag": {p, w.ctx, good, paych.ErrOwned},
			"by the payee":  {q, own, good, paych.ErrInbound},
		} {
			before := x.n.state(ch)
			if _, err := x.n.PaychPointLockCreate(x.ctx, ch, x.terms); !errors.Is(err, x.want) {
				t.Errorf("%s: %v", name, err)
			}
			if after := x.n.state(ch); after != before {
				t.Errorf("%s changed\n%s to\n%s", name, before, after)
			}
		}
		// A wallet that is down gives none, and the nonce stays used.
		down := errors.New("the wallet is down")
		p.wallet.Fail(down)
		if _, err := p.PaychPointLockCreate(own, ch, good); !errors.Is(err, down) {
			t.Error(err)
		}
		p.wallet.Fail(nil)
		p.funds(ch, 100, 0, 50, 50)
		if _, err := p.PaychPointLockCreate(own, ch, good); !errors.Is(err, paych.ErrNonce) {
			t.Errorf("a nonce that was tried: %v", err)
		}
		good.Nonce = 3
		l, err := p.PaychPointLockCreate(own, ch, good)
		if err != nil {
			t.Fatal(err)
		}

		// Taking: exactly what was agreed, and nothing that cannot be completed.
		hollow := *l
		hollow.Adaptor = func() adaptor.Signature {
			other, err := p.PaychPointLockCreate(own, ch, termsOf(y, 2, 1, 0, 5, until))
			if err != nil {
				t.Fatal(err)
			}
			return other.Adaptor
		}()
		_, z := secretOf(2)
		another := *l
		another.Point = z
		for name, x := range map[string]struct {
			n     *node
			ctx   context.Context
			terms paych.PointTerms
			lock  *paych.PointLock
			want  error
		}{
			"hollow":            {q, own, good, &hollow, paych.ErrSignature},
			"none":              {q, own, good, nil, paych.ErrPointLock},
			"of another amount": {q, own, termsOf(y, 1, 3, 0, 41, until), l, paych.ErrPointLock},
			"of another nonce":  {q, own, termsOf(y, 1, 5, 0, 40, until), l, paych.ErrPointLock},
			"of another end":    {q, own, termsOf(y, 1, 3, 0, 40, until+1), l, paych.ErrPointLock},
			"of another point":  {q, own, termsOf(z, 1, 3, 0, 40, until), l, paych.ErrPointLock},
			"under another":     {q, own, termsOf(z, 1, 3, 0, 40, until), &another, paych.ErrSignature},
			"without a tag":     {q, w.ctx, good, l, paych.ErrOwned},
			"by the payer":      {p, own, good, l, paych.ErrOutbound},
		} {
			before := x.n.state(ch)
			if err := x.n.PaychPointLockAdd(x.ctx, ch, x.terms, x.lock); !errors.Is(err, x.want) {
				t.Errorf("%s: %v", name, err)
			}
			if after := x.n.state(ch); after != before {
				t.Errorf("%s changed\n%s to\n%s", name, before, after)
			}
		}
		if err := p.PaychPointLockImport(own, ch, &hollow); !errors.Is(err, paych.ErrSignature) {
			t.Errorf("a hollow lock taken back: %v", err)
		}
		if err := p.PaychPointLockImport(own, ch, nil); !errors.Is(err, paych.ErrPointLock) {
			t.Errorf("no lock taken back: %v", err)
		}
		if err := q.PaychPointLockImport(own, ch, l); !errors.Is(err, paych.ErrInbound) {
			t.Errorf("taken back by the payee: %v", err)
		}
		for range 2 {
			if err := q.PaychPointLockAdd(own, ch, good, l); err != nil {
				t.Fatal(err)
			}
		}
		// A lock that is not completed cannot be submitted, and another secret does not.
		if _, err := q.PaychVoucherSubmit(own, ch, &l.Voucher, secret[:], nil); !errors.Is(err, paych.ErrSigner) {
			t.Errorf("submitted: %v", err)
		}
		wrong, _ := secretOf(2)
		if d, err := q.PaychVoucherSecret(w.ctx, ch, wrong); err != nil || d.Sign() != 0 {
			t.Errorf("opened by another secret: %v %v", d, err)
		}
		if d, err := q.PaychVoucherSecret(w.ctx, ch, tally.Preimage{}); err != nil || d.Sign() != 0 {
			t.Errorf("opened by no secret: %v %v", d, err)
		}
		if d, err := q.PaychVoucherSecret(w.ctx, ch, secret); err != nil || !d.Equals(atto(40)) {
			t.Errorf("opened: %v %v", d, err)
		}
	})
}

// A wallet that cannot sign under points gives no point locks, and takes them.
func TestPointLockWithoutPointWallet(t *testing.T) {
	inSlots(t, 100, func(w *town, own context.Context, ch address.Address) {
		p, q := w.payer, w.payee
		_, y := secretOf(1)
		terms := termsOf(y, 1, 1, 0, 40, w.head()+30)
		l, err := p.PaychPointLockCreate(own, ch, terms)
		if err != nil || p.PaychPointLocks() != nil {
			t.Fatal(err)
		}
		for _, n := range [...]*node{p, q} {
			n.down()
			m, err := paych.Open(w.ctx, n.store, w.chain, paychtest.Plain{Wallet: n.wallet}, n.cfg)
			if err != nil {
				t.Fatal(err)
			}
			n.Manager = m
		}
		if _, err := p.PaychPointLockCreate(own, ch, termsOf(y, 2, 1, 0, 40, w.head()+30)); !errors.Is(err, paych.ErrPointWallet) || !errors.Is(p.PaychPointLocks(), paych.ErrPointWallet) {
			t.Errorf("got %v", err)
		}
		if err := q.PaychPointLockAdd(own, ch, terms, l); err != nil {
			t.Error(err)
		}
	})
}

// The payee vanishes with its payer after the secret is known, or the channel settles: the
// watcher submits the completed voucher by itself, and the payer finds the secret in its
// signature, also when it was away, and also when the voucher shows no secret.
func TestPointLockOnTheChain(t *testing.T) {
	for _, settles := range [...]bool{false, true} {
		for _, away := range [...]bool{false, true} {
			t.Run(fmt.Sprintf("settles %v away %v", settles, away), func(t *testing.T) {
				inSlots(t, 100, func(w *town, own context.Context, ch address.Address) {
					p, q := w.payer, w.payee
					secret, y := secretOf(1)
					terms := termsOf(y, 1, 1, 0, 40, w.head()+30)
					w.locks(own, ch, terms)
					if cov, err := q.PaychCover(w.ctx, ch, 1); err != nil || cov.Head.Sign() != 0 {
						t.Errorf("covered before the secret: %+v %v", cov, err)
					}
					q.down()
					q.start()
					if _, err := q.PaychVoucherSecret(w.ctx, ch, secret); err != nil {
						t.Fatal(err)
					}
					if cov, err := q.PaychCover(w.ctx, ch, 1); err != nil || !cov.Head.Equals(atto(40)) {
						t.Errorf("covered: %+v %v", cov, err)
					}
					rows, err := q.PaychVoucherRecords(w.ctx, ch)
					if err != nil || len(rows) != 1 || !rows[0].Opened || !rows[0].Live || rows[0].Voucher.Signature == nil {
						t.Errorf("%+v %v", rows, err)
					}
					q.down()
					q.start()
					if away {
						p.down()
					}
					if settles {
						q.settle(ch)
					}
					w.pass(34)
					if away {
						p.start()
						w.pass(2)
					}
					found, err := p.PaychSecretOfPoint(w.ctx, ch, y)
					if err != nil || found == nil || *found != secret {
						t.Fatalf("the payer has %v %v", found, err)
					}
					calls, err := w.chain.Calls(w.ctx, ch, 0, w.head())
					if err != nil {
						t.Fatal(err)
					}
					for i := range calls {
						if bytes.Contains(calls[i].Params, secret[:]) {
							t.Error("the secret itself is on the chain")
						}
						if m, _ := actor.DecodeMsg(calls[i].Method, calls[i].Params); m.Update != nil && len(m.Update.Secret) != 0 {
							t.Errorf("%d bytes as the voucher's secret", len(m.Update.Secret))
						}
					}
					for _, hash := range [...]tally.Hashlock{tally.Hashlock(y[1:]), {}} {
						if got, err := p.PaychSecretOf(w.ctx, ch, hash); err != nil || got != nil {
							t.Errorf("a point's secret for a hash: %v %v", got, err)
						}
					}
					if !settles {
						q.settle(ch)
					}
					w.pass(50)
					w.paid(ch, 40)
				})
			})
		}
	}
}

// The payee gives a point lock up: its refund stands over it, and where the lock is
// submitted all the same, the payer answers.
func TestPointLockCancelled(t *testing.T) {
	inSlots(t, 100, func(w *town, own context.Context, ch address.Address) {
		p, q := w.payer, w.payee
		secret, y := secretOf(1)
		terms := termsOf(y, 1, 1, 0, 40, w.head()+30)
		l := w.locks(own, ch, terms)
		r, err := q.PaychVoucherCreateSpec(own, ch, paych.VoucherSpec{Lane: 1, Nonce: 2, Amount: atto(0), Again: true})
		if err != nil || r.Voucher == nil {
			t.Fatal(err)
		}
		if _, err := p.PaychVoucherAdd(own, ch, r.Voucher, nil, atto(0)); err != nil {
			t.Fatal(err)
		}
		if _, err := q.PaychVoucherSecret(w.ctx, ch, secret); err != nil {
			t.Fatal(err)
		}
		if sv, err := q.PaychVoucherAt(w.ctx, ch, 1, 1); err != nil || sv != nil {
			t.Errorf("a lock that was given up is completed: %v %v", sv, err)
		}
		// It is submitted all the same, by who kept a copy.
		y2 := adaptor.Secret(secret)
		stale, err := l.Complete(&y2)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := q.PaychVoucherSubmit(own, ch, stale, nil, nil); err != nil {
			t.Fatal(err)
		}
		w.pass(10)
		q.settle(ch)
		w.pass(60)
		w.paid(ch, 0)
	})
}

// A lock that nobody opens gives its money back when the chain is final beyond its end.
func TestPointLockRunsOut(t *testing.T) {
	inSlots(t, 100, func(w *town, own context.Context, ch address.Address) {
		p := w.payer
		_, y := secretOf(1)
		until := w.head() + 10
		if _, err := p.PaychPointLockCreate(own, ch, termsOf(y, 1, 1, 0, 40, until)); err != nil {
			t.Fatal(err)
		}
		for w.head() <= until+1 {
			p.funds(ch, 100, 40, 0, 60)
			w.pass(1)
		}
		w.pass(3)
		p.funds(ch, 100, 0, 0, 100)
	})
}

// copyOf is a store with the same records.
func copyOf(ctx context.Context, t *testing.T, s *durable.Store) *durable.Store {
	t.Helper()
	all, err := durabletest.Records(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	cp := durabletest.NewMem()
	var b durable.Batch
	for key, rec := range all {
		b.Put(key, []byte(rec))
	}
	if err := cp.Commit(ctx, &b); err != nil {
		t.Fatal(err)
	}
	return cp
}

// A payer whose store is older than a lock that it gave is shown it: its money is bound
// again, and the chain's signature is read by it.
func TestPointLockImport(t *testing.T) {
	inSlots(t, 100, func(w *town, own context.Context, ch address.Address) {
		p, q := w.payer, w.payee
		secret, y := secretOf(1)
		terms := termsOf(y, 1, 1, 0, 40, w.head()+30)
		old := copyOf(w.ctx, t, p.store)
		l := w.locks(own, ch, terms)
		p.stop()
		p.store = old
		p.start()
		p.funds(ch, 100, 0, 0, 100)
		if err := p.PaychPointLockImport(own, ch, l); err != nil {
			t.Fatal(err)
		}
		p.funds(ch, 100, 40, 0, 60)
		before := p.state(ch)
		if err := p.PaychPointLockImport(own, ch, l); err != nil {
			t.Fatal(err)
		}
		if after := p.state(ch); after != before {
			t.Errorf("the same again changed\n%s to\n%s", before, after)
		}
		if _, err := p.PaychVoucherCreateSpec(own, ch, paych.VoucherSpec{Lane: 1, Nonce: 1, Amount: atto(40)}); !errors.Is(err, paych.ErrNonce) {
			t.Error(err)
		}
		p.down()
		p.start()
		if again, err := p.PaychPointLockCreate(own, ch, terms); err != nil || !bytes.Equal(encoded(t, again), encoded(t, l)) {
			t.Error(err)
		}
		if _, err := q.PaychVoucherSecret(w.ctx, ch, secret); err != nil {
			t.Fatal(err)
		}
		w.pass(34)
		if found, err := p.PaychSecretOfPoint(w.ctx, ch, y); err != nil || found == nil || *found != secret {
			t.Errorf("%v %v", found, err)
		}
	})
}

// The crash matrix of point locks in the account: a lock that is paid, one that is given
// up, and one that is taken from the chain, with a stop of either side at each commit and
// each message.
func TestPointLockCrashMatrix(t *testing.T) { crashMatrix(t, (*crashRun).pointLife) }

// lock gives a point lock, again after a stop, and the payee takes it.
func (r *crashRun) lock(t paych.PointTerms) *paych.PointLock {
	p, q := r.payer, r.payee
	var l *paych.PointLock
	r.step(p, func(ctx context.Context) (err error) {
		l, err = p.PaychPointLockCreate(ctx, r.ch, t)
		if errors.Is(err, paych.ErrNonce) {
			// The stop came between taking the nonce and the signature. Nobody has it.
			t.Nonce++
			l, err = p.PaychPointLockCreate(ctx, r.ch, t)
		}
		return err
	})
	raw := string(encoded(r.t, l))
	name := fmt.Sprint(l.Voucher.Lane, "/", l.Voucher.Nonce)
	if had, ok := r.given[name]; ok && had != raw {
		r.t.Errorf("two locks have nonce %s", name)
	}
	r.given[name] = raw
	r.step(q, func(ctx context.Context) error { return q.PaychPointLockAdd(ctx, r.ch, t, l) })
	// It is asked for again, and it is the same.
	r.step(p, func(ctx context.Context) error {
		again, err := p.PaychPointLockCreate(ctx, r.ch, t)
		if err == nil && string(encoded(r.t, again)) != raw {
			return errors.New("another lock under one nonce")
		}
		return err
	})
	return l
}

func (r *crashRun) pointLife() {
	t, p, q := r.t, r.payer, r.payee
	r.tag = "peer"
	r.step(p, func(ctx context.Context) error {
		id, err := p.PaychCreateSpec(ctx, paych.CreateSpec{From: p.key, To: q.key, Amount: atto(100), Tag: r.tag, Owned: true})
		if err == nil {
			r.ch, err = p.PaychWaitReady(ctx, id)
		}
		return err
	})
	r.step(q, func(ctx context.Context) error { return q.PaychOwn(ctx, r.ch, r.tag) })
	until := abi.ChainEpoch(60)
	var secrets [4]tally.Preimage
	var points [4]adaptor.Point
	for i := range secrets {
		secrets[i], points[i] = secretOf(byte(i + 1))
	}
	opens := func(i int) {
		r.step(q, func(ctx context.Context) error {
			_, err := q.PaychVoucherSecret(ctx, r.ch, secrets[i])
			return err
		})
	}
	paid := r.lock(termsOf(points[1], 1, 1, 0, 20, until))
	opens(1)
	r.voucher(paych.VoucherSpec{Lane: 1, Nonce: paid.Voucher.Nonce + 3, Amount: atto(20)}, p, q) // the unlock
	r.lock(termsOf(points[2], 2, 1, 0, 30, until))
	r.voucher(paych.VoucherSpec{Lane: 2, Nonce: 5, Amount: atto(0)}, q, p) // the cancel
	r.lock(termsOf(points[3], 3, 1, 0, 40, until))
	opens(3)
	for h, err := r.chain.Head(t.Context()); err == nil && h <= until+4; h, err = r.chain.Head(t.Context()) {
		r.pass(1)
	}
	r.step(p, func(ctx context.Context) error {
		found, err := p.PaychSecretOfPoint(ctx, r.ch, points[3])
		if err == nil && (found == nil || *found != secrets[3]) {
			return fmt.Errorf("the payer has %v of what the chain shows", found)
		}
		return err
	})
	r.step(p, func(ctx context.Context) error {
		_, err := p.PaychSettle(ctx, r.ch)
		return err
	})
	r.pass(70)
	r.settled(p)
	r.settled(q)
	for _, n := range []*mortal{p, q} {
		if info := r.status(n); info.Final == nil || !info.Final.ToSend.Equals(atto(60)) {
			t.Errorf("%s: %v, final %+v", n.name, info.Phase, info.Final)
		}
	}
}

// waitingWallet signs under a point when it is let.
type waitingWallet struct {
	*paychtest.Wallet
	let chan struct{}
}

func (w *waitingWallet) SignUnder(ctx context.Context, a address.Address, msg []byte, y adaptor.Point) (adaptor.Signature, adaptor.Point, error) {
	<-w.let
	return w.Wallet.SignUnder(ctx, a, msg, y)
}

// Two calls at one time have one lock. And a stop between the taking of a nonce and its
// signature leaves the nonce used, where anything of the lane was saved meanwhile: what
// was being signed then may be anywhere, and is never signed again.
func TestPointLockUnderWay(t *testing.T) {
	inSlots(t, 100, func(w *town, own context.Context, ch address.Address) {
		p, q := w.payer, w.payee
		_, y := secretOf(1)
		terms := termsOf(y, 1, 1, 0, 40, w.head()+30)
		p.down()
		slow := &waitingWallet{Wallet: p.wallet, let: make(chan struct{})}
		m, err := paych.Open(w.ctx, p.store, w.chain, slow, p.cfg)
		if err != nil {
			t.Fatal(err)
		}
		p.Manager = m
		type answer struct {
			l   *paych.PointLock
			err error
		}
		answers := make(chan answer, 2)
		for range 2 {
			go func() { // ends with the answer
				l, err := p.PaychPointLockCreate(own, ch, terms)
				answers <- answer{l, err}
			}()
		}
		synctest.Wait()
		p.funds(ch, 100, 40, 0, 60)
		// The lane is saved while its lock is being signed.
		r, err := q.PaychVoucherCreateSpec(own, ch, paych.VoucherSpec{Lane: 1, Nonce: 2, Amount: atto(0)})
		if err == nil {
			_, err = p.PaychVoucherAdd(own, ch, r.Voucher, nil, atto(0))
		}
		if err != nil {
			t.Fatal(err)
		}
		crashed := copyOf(w.ctx, t, p.store)
		close(slow.let)
		first, second := <-answers, <-answers
		if first.err != nil || second.err != nil || !bytes.Equal(encoded(t, first.l), encoded(t, second.l)) || p.wallet.Under() != 1 {
			t.Errorf("%v, %v, signed %d times", first.err, second.err, p.wallet.Under())
		}
		p.stop()
		p.store = crashed
		p.start()
		for _, nonce := range [...]uint64{1, 2} {
			terms.Nonce = nonce
			if l, err := p.PaychPointLockCreate(own, ch, terms); !errors.Is(err, paych.ErrNonce) {
				t.Errorf("nonce %d is signed again: %v %v", nonce, l, err)
			}
		}
	})
}
