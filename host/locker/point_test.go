package locker

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/filecoin-project/go-state-types/abi"

	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/actor"
	"github.com/tallystick/tally/paystream/lock"
)

// inPoints is inRig with locks under points.
func inPoints(t *testing.T, fn func(t *testing.T, r *rig)) {
	t.Helper()
	inRig(t, func(r *rig) {
		r.points = true
		fn(r.t, r)
	})
}

// A LOCK under a point whose signature cannot be completed is no lock, and nor is one of
// another voucher, key or point: none is taken, and each is the neighbour's lie.
func TestHollowLocks(t *testing.T) {
	inPoints(t, func(t *testing.T, r *rig) {
		ctx := context.Background()
		r.onSend = func(from *side, _ int) (bool, bool) { return false, from != r.payer }
		if err := r.offer(1, 700, r.head()+26); err != nil {
			t.Fatal(err)
		}
		if err := r.offer(2, 70, r.head()+26); err != nil {
			t.Fatal(err)
		}
		r.pass(1)
		own := func(lane uint64) *paych.PointLock {
			l, err := r.payer.manager.PaychPointLockAt(ctx, r.ch, lane, 1)
			if err != nil || l == nil {
				t.Fatalf("no LOCK of lane %d: %v", lane, err)
			}
			return l
		}
		good, other := own(1), own(2)
		raw := func(l *paych.PointLock, change func(*paych.PointLock)) []byte {
			cp := *l
			change(&cp)
			b, err := paych.EncodePointLock(&cp)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		open, err := paych.Sign(ctx, r.payer.wallet, r.payer.key, &good.Voucher)
		if err != nil {
			t.Fatal(err)
		}
		inTheOpen, err := paych.EncodeVoucher(open)
		if err != nil {
			t.Fatal(err)
		}
		for name, x := range map[string]struct {
			voucher []byte
			want    error
		}{
			"hollow":          {raw(good, func(l *paych.PointLock) { l.Adaptor = other.Adaptor }), ErrSigner},
			"another point":   {raw(good, func(l *paych.PointLock) { l.Point = other.Point }), ErrSigner},
			"another key":     {raw(good, func(l *paych.PointLock) { l.Payer = other.Point }), ErrSigner},
			"another amount":  {raw(good, func(l *paych.PointLock) { l.Voucher.Amount = atto(701) }), ErrSigner},
			"another lane":    {raw(good, func(l *paych.PointLock) { l.Voucher.Lane = 3 }), ErrSigner},
			"another channel": {raw(good, func(l *paych.PointLock) { l.Voucher.ChannelAddr = r.payer.key }), ErrSigner},
			"and a hash":      {raw(good, func(l *paych.PointLock) { l.Voucher.SecretHash = bytes.Repeat([]byte{1}, 32) }), ErrVoucher},
			"cut off":         {raw(good, func(*paych.PointLock) {})[:200], ErrVoucher},
		} {
			err := r.payee.locker.Receive(r.payer.id, &Msg{Channel: r.ch, Send: lock.SendLock, ID: 1, Amount: 700, Voucher: x.voucher})
			if !errors.Is(err, x.want) {
				t.Errorf("%s: %v", name, err)
			}
		}
		// One signed in the open has an end and no hash, and nothing tells what opens it;
		// and a lock is neither an UNLOCK nor a guard.
		for name, m := range map[string]*Msg{
			"in the open": {Channel: r.ch, Send: lock.SendLock, ID: 1, Amount: 700, Voucher: inTheOpen},
			"as UNLOCK":   {Channel: r.ch, Send: lock.SendUnlock, ID: 1, Voucher: raw(good, func(*paych.PointLock) {})},
			"as guard":    {Channel: r.ch, Send: lock.SendLock, ID: 1, Amount: 700, Voucher: raw(good, func(*paych.PointLock) {}), Guard: raw(other, func(*paych.PointLock) {})},
		} {
			if err := r.payee.locker.Receive(r.payer.id, m); err != nil && !errors.Is(err, ErrVoucher) {
				t.Errorf("%s: %v", name, err)
			}
		}
		synctest.Wait()
		if list := r.payee.locker.List(); len(list) != 0 {
			t.Fatalf("taken: %+v", list)
		}
		sent := &Msg{Channel: r.ch, Send: lock.SendLock, ID: 1, Amount: 700, Voucher: raw(good, func(*paych.PointLock) {})}
		if err := r.payee.locker.Receive(r.payer.id, sent); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if list := r.payee.locker.List(); len(list) != 1 || list[0].Point != good.Point[0] || list[0].Hash != [32]byte(good.Point[1:]) {
			t.Fatalf("%+v", list)
		}
		// Another secret opens nothing.
		if err := r.payee.locker.Fulfil(ctx, r.payer.id, 1, pre(2), false, nil); !errors.Is(err, lock.ErrPreimage) {
			t.Errorf("opened by another secret: %v", err)
		}
	})
}

// A node whose wallet cannot sign under points says so before anything is on disk, and
// takes point locks all the same.
func TestPlainWallet(t *testing.T) {
	inPoints(t, func(t *testing.T, r *rig) {
		again := func(s *side) {
			r.hangUp()
			s.close()
			s.plain = true
			s.open()
			r.dial()
		}
		again(r.payee)
		r.payee.decide = fulfils
		if err := r.offer(1, 70, r.head()+26); err != nil {
			t.Fatal(err)
		}
		r.pass(2)
		r.expect(r.payer, map[uint64]string{1: "paid"})
		again(r.payer)
		commits := r.payer.disk.Commits()
		if err := r.offer(2, 70, r.head()+26); !errors.Is(err, paych.ErrPointWallet) || errors.Is(err, ErrPending) {
			t.Errorf("got %v", err)
		}
		if n := r.payer.disk.Commits(); n != commits {
			t.Errorf("%d commits of an offer that is refused", n-commits)
		}
	})
}

// A payer whose store is older than a LOCK under a point is shown it by nobody but who
// holds it, and takes it back: its money is bound, and the slot takes no new lock.
func TestShownPointLock(t *testing.T) {
	inPoints(t, func(t *testing.T, r *rig) {
		ctx := context.Background()
		if err := r.offer(1, 700, r.head()+26); err != nil {
			t.Fatal(err)
		}
		r.pass(1)
		held, err := r.payee.manager.PaychPointLockAt(ctx, r.ch, 1, 1)
		if err != nil || held == nil {
			t.Fatal(err)
		}
		// The next of the lane, which the payer signed before its store was lost.
		later, err := paych.SignPointLock(ctx, r.payer.wallet, &paych.PointTerms{
			Channel: r.ch, From: r.payer.key, Lane: 2, Nonce: 1, Base: atto(0), Amount: atto(300), Until: held.Voucher.TimeLockMax, Point: held.Point,
		})
		if err != nil {
			t.Fatal(err)
		}
		raw, err := paych.EncodePointLock(later)
		if err != nil {
			t.Fatal(err)
		}
		bad := bytes.Clone(raw)
		copy(bad[1+2*35+2:], held.Adaptor[:])
		show := func(b []byte) error {
			return r.payer.locker.Receive(r.payee.id, &Msg{Channel: r.ch, Send: lock.SendShow, ID: 1, Voucher: b})
		}
		if err := show(bad); !errors.Is(err, ErrSigner) {
			t.Errorf("a hollow one: %v", err)
		}
		if err := show(raw); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		info, err := r.payer.manager.PaychInfo(ctx, r.ch)
		if err != nil || !info.Funds.Free().Equals(atto(deposit-1000)) {
			t.Errorf("free %v %v", info.Funds.Free(), err)
		}
		if err := r.offer(3, 5, r.head()+26); err != nil {
			t.Fatal(err)
		}
		for _, row := range r.payer.locker.List() {
			if row.ID == 3 && row.Lane != 3 {
				t.Errorf("lock 3 is on lane %d", row.Lane)
			}
		}
	})
}

// What the line submits is the completed voucher, saved before, and no secret beside it:
// that would show it to everybody, and not to the payer alone.
func TestClaimShowsNoSecret(t *testing.T) {
	inPoints(t, func(t *testing.T, r *rig) {
		ctx := context.Background()
		r.onSend = func(from *side, _ int) (bool, bool) { return false, from == r.payer } // the fulfil is lost
		if err := r.offer(1, 700, r.head()+26); err != nil {
			t.Fatal(err)
		}
		r.pass(1)
		l := r.payee.locker.lines[r.ch]
		first, x := r.condition(1)
		claim := &lock.Effect{
			Kind: lock.FxSubmit, Lane: 1, ID: 1, Preimage: pre(1),
			Voucher: lock.Voucher{Lane: 1, Nonce: 1, Amount: 700, Hash: x, Point: first, Expires: r.payee.locker.List()[0].Expires},
		}
		// The account has not heard of the secret: it is completed on the way.
		if err := l.publish(claim); err != nil {
			t.Fatal(err)
		}
		r.pass(1)
		calls, err := r.chain.Calls(ctx, r.ch, 0, abi.ChainEpoch(r.head()))
		if err != nil {
			t.Fatal(err)
		}
		claims := 0
		for i := range calls {
			m, _ := actor.DecodeMsg(calls[i].Method, calls[i].Params)
			if m.Update == nil {
				continue
			}
			claims++
			if !calls[i].ExitCode.IsSuccess() || len(m.Update.Secret) != 0 {
				t.Errorf("exit %d, %d bytes of a secret", calls[i].ExitCode, len(m.Update.Secret))
			}
		}
		if claims != 1 {
			t.Errorf("%d claims", claims)
		}
		r.pass(4)
		r.expect(r.payer, map[uint64]string{1: "paid"})
	})
}
