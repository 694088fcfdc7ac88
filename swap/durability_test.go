package swap

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
)

// killChildEnv makes the test binary the child of TestKill; its value is the
// folder of the store.
const killChildEnv = "SWAP_KILL_CHILD"

const (
	killSelf = 1
	killPeer = 2
)

// printer is a courier that prints each ack that leaves.
type printer struct{}

func (printer) Send(_ context.Context, _ peer.ID, m Message) error {
	if ack, ok := m.(*Ack); ok {
		fmt.Printf("acked %d %d ok\n", ack.Serial, ack.Credited)
	}
	return nil
}

func (printer) Disconnect(peer.ID) error { return nil }

func killConfig() Config {
	return Config{Key: testKey(killSelf), Realm: Realm{Network: "test", Asset: "karma"}, Logger: quiet}
}

// killChild serves a peer that pays, and prints what it served and acked, until
// it is killed.
func killChild(dir string) {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	ctx := context.Background()
	store, err := durable.Open(dir)
	fail(err)
	b, err := Open(ctx, store, killConfig())
	fail(err)
	b.Bind(printer{})
	p := testPeer(killPeer)
	row, err := b.Row(p)
	fail(err)
	serial := uint64(0)
	if row.LastChequeReceived != nil {
		serial = row.LastChequeReceived.Serial
	}
	served, received := row.Served, row.Received
	var wg sync.WaitGroup
	wg.Go(func() { // books of another peer keep the disk busy, until the kill
		for i := 0; ; i++ {
			_ = b.Debit(testPeer(uint16(10+i%50)), "noise", 1)
			time.Sleep(time.Millisecond) // fake clock: the child only lives to be killed
		}
	})
	for i := 0; ; i++ {
		units := tally.Amount(1 + i%9)
		h, err := b.TryReserve(ctx, p, "store", Serve, units)
		if err == nil {
			fail(h.Commit(units))
			served += units
			fmt.Printf("served %d ok\n", served)
			continue
		}
		// It is at its threshold, and pays.
		serial++
		c := &Cheque{Issuer: p, Beneficiary: b.Self(), Serial: serial, Cumulative: max(served, received)}
		c.Signature, err = testKey(killPeer).Sign(c.SigningBytes(b.Realm()))
		fail(err)
		fail(b.Receive(ctx, p, c))
	}
}

// TestKill kills a process that keeps a book on disk with SIGKILL, at a point no
// hook chose. What it acked has to be credited for good, and of what it served
// less than W units may be gone.
func TestKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	rounds := 5
	if testing.Short() {
		rounds = 2
	}
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for round := range rounds {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), killChildEnv+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var served, credited tally.Amount
		var serial uint64
		stop, n := 50+rng.IntN(400), 0
		for lines := bufio.NewScanner(out); lines.Scan(); {
			// A line that the kill cut short says nothing.
			line, ok := strings.CutSuffix(lines.Text(), " ok")
			if !ok {
				continue
			}
			if _, err := fmt.Sscanf(line, "served %d", &served); err != nil {
				if _, err := fmt.Sscanf(line, "acked %d %d", &serial, &credited); err != nil {
					t.Fatalf("line %q: %v", line, err)
				}
			}
			if n++; n == stop {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() != -1 {
			t.Fatalf("the child ended by itself: %v", err)
		}

		store, err := durable.Open(dir, durable.WithLogger(quiet))
		if err != nil {
			t.Fatalf("round %d, seed %d: %v", round, seed, err)
		}
		b, err := Open(t.Context(), store, killConfig())
		if err != nil {
			t.Fatalf("round %d, seed %d: %v", round, seed, err)
		}
		if err := b.Check(t.Context()); err != nil {
			t.Errorf("round %d, seed %d: %v", round, seed, err)
		}
		r, err := b.Row(testPeer(killPeer))
		if err != nil {
			t.Fatal(err)
		}
		policy := b.Policy()
		if r.Received < credited || r.LastChequeReceived == nil || r.LastChequeReceived.Serial < serial {
			t.Errorf("round %d, seed %d: acked %d up to %d, on disk %+v", round, seed, serial, credited, r)
		}
		if r.Served+policy.Slack() <= served {
			t.Errorf("round %d, seed %d: served %d, on disk %d", round, seed, served, r.Served)
		}
		t.Logf("round %d: acked up to %d, on disk %d; served %d, on disk %d", round, credited, r.Received, served, r.Served)
		// The child must find an unclean stop each time, so this is none.
		if err := errors.Join(b.Close(), store.Close()); err != nil {
			t.Error(err)
		}
	}
}

// A power loss at any moment costs less than W units of one peer, in each
// direction, and every request that left is known.
func TestLossIsBelowW(t *testing.T) {
	for _, threshold := range []tally.Amount{1, 4, 100, 100_000} {
		t.Run(fmt.Sprint(threshold), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNode(t, 0, withPolicy(Policy{PaymentThreshold: threshold, MinPeerThreshold: 1}))
				policy := n.Policy()
				p := testPeer(1)
				call(t, n, p)
				rng := rand.New(rand.NewPCG(1, uint64(threshold)))
				for i := range 300 {
					units := 1 + rng.Uint64N(uint64(policy.Slack()))
					if i%2 == 0 {
						_ = n.Debit(p, "store", tally.Amount(units))
					} else if h, err := n.TryReserve(t.Context(), p, "store", Consume, tally.Amount(units)); err == nil {
						if i%4 == 1 {
							_ = h.Commit(tally.Amount(units))
						} else {
							_ = h.Release()
						}
					}
					if i%10 == 0 {
						time.Sleep(flushEvery) // bubble
					}
					l := n.tab(p)
					d, _ := n.onDisk(p)
					if lost := l.served - d.served; lost >= policy.Slack() {
						t.Fatalf("step %d: %d units served are not on disk, W is %d", i, lost, policy.Slack())
					}
					known := d.consumed + d.unanswered // a record counts what is in flight as unanswered
					if l.consumed+l.reserved > known && l.consumed+l.reserved-known >= policy.Slack() {
						t.Fatalf("step %d: consumed %d and %d in flight, on disk %d and %d", i, l.consumed, l.reserved, d.consumed, d.unanswered)
					}
				}
			})
		})
	}
}

// The request that the reservation is for may leave only when the disk knows it.
func TestReservationIsSaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, 0)
		p := testPeer(1)
		call(t, n, p)
		policy := n.Policy()
		h := reserved(t, n, p, Consume, policy.Slack()/2)
		if d, ok := n.onDisk(p); !ok || d.unanswered != policy.Slack()/2 {
			t.Errorf("on disk %v: %d unanswered", ok, d.unanswered)
		}
		_ = h.Release()

		n.disk.FailAt(n.disk.Commits()+1, errors.New("no space left"))
		before := n.tab(p)
		if _, err := n.TryReserve(t.Context(), p, "store", Consume, 50); !errors.Is(err, durable.ErrFailed) {
			t.Errorf("a reservation that is not on disk: %v", err)
		}
		if l := n.tab(p); l.reserved != before.reserved || n.Stats().Holds != 0 {
			t.Errorf("it stays in flight: %s", describe(&l))
		}
	})
}

// A store that failed stops the book, with an error that says why, and nothing
// that is not on disk is told to anybody.
func TestStoreFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newNode(t, 0), newNode(t, 1)
		w := wireUp(t, a, b)
		mustServe(t, a, b, 20, 4)
		time.Sleep(time.Second) // bubble
		full := errors.New("no space left on device")
		b.disk.FailAt(b.disk.Commits()+1, full)
		_ = serve(t.Context(), a, b, 20)
		time.Sleep(time.Second) // bubble
		if len(messages[*Ack](w, b)) != 0 {
			t.Error("a cheque was acked that no disk holds")
		}
		_, reserve := b.TryReserve(t.Context(), a.id, "store", Serve, 1)
		_, hello := b.Hello(t.Context(), a.id)
		for name, err := range map[string]error{
			"reserve": reserve, "hello": hello,
			"debit":   b.Debit(a.id, "store", 1),
			"credit":  b.Credit(a.id, "store", 1),
			"settle":  b.Settle(t.Context(), a.id),
			"cheque":  b.Receive(t.Context(), a.id, signCheque(t, b, 0, 9, 500)),
			"session": b.BeginSession(t.Context(), a.id, &Handshake{Realm: b.Realm()}, true),
			"close":   b.Close(),
		} {
			if !errors.Is(err, durable.ErrFailed) || !errors.Is(err, full) {
				if name == "close" && err != nil {
					continue
				}
				t.Errorf("%s on a failed store: %v", name, err)
			}
		}
		b.revive() // and what it had is all there
		if l := b.tab(a.id); l.served < 80 {
			t.Errorf("after the restart %s", describe(&l))
		}
	})
}

// Close saves everything, and counts as a clean stop.
func TestCloseSavesAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, 0)
		var booked [8]tally.Amount
		var wg sync.WaitGroup
		for i := range booked {
			wg.Go(func() { // ends when the book is closed
				for {
					err := n.Debit(testPeer(uint16(i)), "store", 1)
					if errors.Is(err, ErrClosed) {
						return
					}
					booked[i]++                  // ErrOverThreshold: booked all the same
					time.Sleep(time.Millisecond) // bubble
				}
			})
		}
		time.Sleep(350 * time.Millisecond) // bubble
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		disk := n.disk.Clone()
		n.end()
		n.disk = disk
		n.open()
		for i, want := range booked {
			if l := n.tab(testPeer(uint16(i))); l.served != want || l.flags&flagUnclean != 0 {
				t.Errorf("peer %d: booked %d, on disk %d, flags %b", i, want, l.served, l.flags)
			}
		}
		n.check()
	})
}

// slowKey signs when it is let.
type slowKey struct {
	crypto.PrivKey
	let chan struct{}
}

func (k slowKey) Sign(text []byte) ([]byte, error) {
	<-k.let
	return k.PrivKey.Sign(text)
}

// A record that is on its way to disk, held up by a signature, is never written
// over a newer one; and the message path does not wait for it.
func TestOlderRecordNeverWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := slowKey{PrivKey: testKey(0), let: make(chan struct{})}
		n := newNode(t, 0, func(c *Config) { c.Key = key })
		p := testPeer(1)
		_ = n.Debit(p, "store", 10)
		go func() { _ = n.Receive(context.Background(), p, signCheque(t, n, 1, 1, 10)) }()
		synctest.Wait() // it has stepped, and waits for the signature of its ack
		go func() { _ = n.Receive(context.Background(), p, &KarmaCheque{Beneficiary: []byte(n.id), Amount: 5}) }()
		for range 7 {
			_ = n.Debit(p, "store", 1)
			time.Sleep(2 * flushEvery) // bubble
		}
		close(key.let)
		time.Sleep(2 * flushEvery) // bubble
		n.check()
		if l, _ := n.onDisk(p); l.served != 17 || l.received != 15 {
			t.Errorf("on disk: %s", describe(&l))
		}
		if l := n.tab(p); l.served != 17 || l.received != 15 {
			t.Errorf("in memory: %s", describe(&l))
		}
	})
}

// A key that cannot sign stops the book, and leaves the disk as it was.
func TestKeyCannotSign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, 0, func(c *Config) { c.Key = deadKey{testKey(0)} })
		p := testPeer(1)
		_ = n.Debit(p, "store", 10)
		time.Sleep(time.Second) // bubble
		if err := n.Receive(t.Context(), p, signCheque(t, n, 1, 1, 10)); !errors.Is(err, errDeadKey) {
			t.Errorf("cheque: %v", err)
		}
		if err := n.Debit(p, "store", 1); !errors.Is(err, errDeadKey) {
			t.Errorf("debit: %v", err)
		}
		time.Sleep(time.Second) // bubble
		if l, _ := n.onDisk(p); l.served != 10 || l.received != 0 {
			t.Errorf("on disk: %s", describe(&l))
		}
		_ = n.Close()
		n.cfg.Key = testKey(0) // mended
		disk := n.disk.Clone()
		_ = n.disk.Close()
		n.disk = disk
		n.open()
		if err := n.Receive(t.Context(), p, signCheque(t, n, 1, 1, 10)); err != nil {
			t.Error(err)
		}
		n.check()
	})
}

var errDeadKey = errors.New("token was pulled")

type deadKey struct{ crypto.PrivKey }

func (deadKey) Sign([]byte) ([]byte, error) { return nil, errDeadKey }

// The same on Pebble, with real time and disks that keep part of what was not
// synced: a clone at any moment opens, is whole and knows all that was acked.
func TestPebblePowerLoss(t *testing.T) {
	disk := durabletest.NewCrash()
	n := newNodeOn(t, disk, killSelf)
	p := testPeer(killPeer)
	var acked atomic.Uint64
	n.Bind(ackWatch{&acked})
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // ends with done
		for serial := uint64(1); ; serial++ {
			select {
			case <-done:
				return
			default:
			}
			_ = n.Debit(p, "store", 30)
			_ = n.Receive(context.Background(), p, signCheque(t, n, killPeer, serial, tally.Amount(30*serial)))
		}
	})
	rounds := 20
	if testing.Short() {
		rounds = 5
	}
	for seed := range rounds {
		before := acked.Load()
		eventually(t, func() bool { return acked.Load() >= before+100 })
		sure := tally.Amount(acked.Load())
		clone := disk.CloneSeed(uint64(seed))
		b, err := Open(t.Context(), clone.Store, n.cfg)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if err := b.Check(t.Context()); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		r, err := b.Row(p)
		if err != nil || r.Received < sure {
			t.Errorf("seed %d: acked up to %d, on disk %d, %v", seed, sure, r.Received, err)
		}
		if err := errors.Join(b.Close(), clone.Close()); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	}
	close(done)
	wg.Wait()
}

// ackWatch is a courier that remembers the highest sum that was acked.
type ackWatch struct{ credited *atomic.Uint64 }

func (w ackWatch) Send(_ context.Context, _ peer.ID, m Message) error {
	if ack, ok := m.(*Ack); ok {
		w.credited.Store(uint64(ack.Credited))
	}
	return nil
}

func (ackWatch) Disconnect(peer.ID) error { return nil }
