package locker

import (
	"context"
	"errors"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/filecoin-project/go-state-types/big"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paych/devnet"
	"github.com/tallystick/tally/paych/lotus"
	"github.com/tallystick/tally/paystream/lock"
)

// The same over the embedded chain and the client of a real node: the payer vanishes
// with a shown preimage, the payee is paid by the chain, and the payer learns what
// for when it is back. Before that one lock is paid by message, one is given up, and one
// left to its end. Blocks are made by command, each when both have seen the last.
func TestPayerVanishesOnDevnet(t *testing.T) { bothKinds(t, payerVanishesOnDevnet) }

func payerVanishesOnDevnet(t *testing.T, points bool) {
	const token = "0123456789abcdef0123456789abcdef"
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	store := durabletest.NewMem()
	chain, err := devnet.Open(ctx, store, devnet.Config{BlockTime: devnet.Manual, SettleDelay: 48, Finality: 1})
	ok(err)
	server, err := devnet.NewServer(chain, token)
	ok(err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	ok(err)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }() // ends with Shutdown
	defer func() {
		stop, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := errors.Join(server.Shutdown(stop), <-served, chain.Close(), store.Close()); err != nil {
			t.Error(err)
		}
	}()

	r := &rig{t: t, points: points}
	r.payer, r.payee = r.side("payer"), r.side("payee")
	for _, s := range [...]*side{r.payer, r.payee} {
		client, err := lotus.Open(ctx, lotus.Config{URL: "http://" + listener.Addr().String() + devnet.Path, Token: token, Wallet: s.wallet, Poll: 2 * time.Millisecond})
		ok(err)
		defer client.Close()
		s.link, s.every = client, 5*time.Millisecond
		_, err = client.Dev().DevFaucet(ctx, s.key, big.NewInt(1<<60))
		ok(err)
	}
	ok(chain.Mine(ctx, 3))

	// Blocks go on while somebody waits, each after the last was seen.
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	seen := func(s *side) bool {
		if s.locker == nil {
			return true
		}
		s.locker.mu.Lock()
		lines := s.locker.all()
		s.locker.mu.Unlock()
		for _, l := range lines {
			l.mu.Lock()
			behind := l.now < int64(chain.Head()) || len(l.submitting) > 0
			l.mu.Unlock()
			if behind {
				return false
			}
		}
		return true
	}
	until := func(what string, blocks int, done func() bool) {
		t.Helper()
		for range blocks {
			for !seen(r.payer) || !seen(r.payee) {
				select {
				case <-tick.C:
				case <-ctx.Done():
					t.Fatalf("%s: a block was not seen", what)
				}
			}
			if done() {
				return
			}
			ok(chain.Mine(ctx, 1))
		}
		t.Fatalf("%s did not come in %d blocks", what, blocks)
	}

	// The channel is opened while blocks are made.
	opened := make(chan struct{})
	mined := make(chan struct{})
	go func() { // ends with opened
		defer close(mined)
		for {
			select {
			case <-opened:
				return
			case <-tick.C:
				_ = chain.Mine(ctx, 1)
			}
		}
	}()
	r.begin(ctx)
	close(opened)
	<-mined
	defer func() {
		r.mu.Lock()
		r.up = false
		wires := r.wires
		r.mu.Unlock()
		r.payer.end()
		r.payee.end()
		for _, pipe := range wires {
			close(pipe)
		}
		r.tasks.Wait()
	}()

	before, err := r.payee.link.Balance(ctx, r.payee.key)
	ok(err)
	r.payee.decide = func(s *side, l lock.Lock) {
		switch l.ID {
		case 1, 2:
			fulfils(s, l)
		case 3:
			gives(s, l)
		}
	}
	terms := r.payer.locker.Terms()
	for id := uint64(2); id <= 4; id++ {
		ok(r.offer(id, 10*tally.Amount(id), int64(chain.Head())+terms.Least()+terms.Skew+4))
	}
	until("the end of three locks", 60, func() bool {
		return r.payer.outcome(2) == "paid" && r.payee.outcome(2) == "paid" && r.payer.outcome(3) == "failed" && r.payer.outcome(4) == "failed"
	})
	r.mu.Lock()
	r.onSend = func(from *side, _ int) (bool, bool) { return false, from == r.payer } // the fulfil is lost
	r.mu.Unlock()
	ok(r.offer(1, 700, int64(chain.Head())+terms.Least()+terms.Skew+4))
	for open := true; open; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("the payee does not show the preimage")
		}
		list := r.payee.locker.List()
		open = !slices.ContainsFunc(list, func(row Row) bool { return row.ID == 1 && row.Phase == lock.Opened })
	}
	r.payer.close()
	until("the claim", 40, func() bool { return r.payee.outcome(1) == "paid" })

	r.payer.open()
	until("the preimage at the payer", 10, func() bool { return r.payer.outcome(1) == "paid" })
	_, err = r.payee.manager.PaychSettle(ctx, r.ch)
	ok(err)
	until("the end of the channel", 120, func() bool {
		info, err := r.payee.manager.PaychInfo(ctx, r.ch)
		return err == nil && info.Buried && info.Final != nil
	})
	after, err := r.payee.link.Balance(ctx, r.payee.key)
	ok(err)
	if got := big.Sub(after, before); !got.Equals(atto(720)) {
		t.Errorf("the payee got %v attoFIL", got)
	}
	ok(chain.Check(ctx))
}
