package swap

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
)

// Packets go up to the disconnect threshold in every mode, services to the
// payment threshold; what is in flight of either counts against the other.
func TestPacketLimits(t *testing.T) {
	hold := func(dir Direction, n tally.Amount) Event {
		return Event{Kind: EvPacketHold, Dir: dir, Units: n}
	}
	for _, mode := range []Mode{ModeSoft, ModeMock} {
		t.Run(mode.String(), func(t *testing.T) {
			x := newTab(t, Policy{Mode: mode})
			x.refuses(ErrNoSession, hold(Consume, 1))
			x.native()
			for _, dir := range []Direction{Serve, Consume} {
				x.refuses(ErrTooLarge, hold(dir, 126))
				x.do(hold(dir, 100))
				if room := x.l.HeadroomPacket(x.now, dir); room != 25 {
					t.Fatalf("%v: headroom %d, want 25", dir, room)
				}
				x.refuses(ErrOverThreshold, hold(dir, 26))
				x.do(hold(dir, 25))
				x.refuses(ErrOverThreshold, hold(dir, 1))
				x.refuses(ErrUnexpected, Event{Kind: EvPacketRelease, Dir: dir, Units: 126})
				x.refuses(ErrUnexpected, Event{Kind: EvPacketCommit, Dir: dir, Units: 126})
			}
			if x.l.AtRest() || x.l.Exposure() != 125 {
				t.Fatalf("at rest %v, exposure %d with 125 in flight each way", x.l.AtRest(), x.l.Exposure())
			}
			if mode == ModeMock {
				x.refuses(ErrOverThreshold, Event{Kind: EvReserve, Dir: Serve, Units: 1})
				x.refuses(ErrOverThreshold, Event{Kind: EvReserve, Dir: Consume, Units: 1})
			}
			x.do(Event{Kind: EvPacketCommit, Dir: Serve, Units: 125})
			x.wantBalance(125)
			x.do(Event{Kind: EvPacketCommit, Dir: Consume, Units: 50})
			x.do(Event{Kind: EvPacketRelease, Dir: Consume, Units: 75})
			x.wantBalance(75)
			// What was taken before a restart counts beyond any limit.
			x.do(Event{Kind: EvPacketKeep, Dir: Serve, Units: 1000})
			x.refuses(ErrOverThreshold, hold(Serve, 1))
			x.refuses(tally.ErrOverflow, Event{Kind: EvPacketKeep, Dir: Serve, Units: maxPacketUnits})
		})
	}
}

// A statement that comes while packets are in flight closes nothing.
func TestPacketsAreNotAtRest(t *testing.T) {
	x := newTab(t, Policy{}).native()
	x.serve(20)
	x.do(Event{Kind: EvPacketHold, Dir: Serve, Units: 5})
	x.do(Event{Kind: EvStatement, Totals: &Totals{Consumed: 10, SeenServed: 20, AtRest: true}})
	x.wantBalance(20)
	x.do(Event{Kind: EvPacketRelease, Dir: Serve, Units: 5})
	x.do(Event{Kind: EvStatement, Totals: &Totals{Consumed: 10, SeenServed: 20, AtRest: true}})
	x.wantBalance(10)
}

func TestPacketHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newNode(t, 0, withPolicy(Policy{PaymentThreshold: 10_000})), newNode(t, 1)
		wireUp(t, a, b)
		p := b.id
		for id := range uint64(maxPacketHolds) {
			if err := a.HoldPacket(p, id, Serve, 1); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.HoldPacket(p, 7, Serve, 1); err != nil {
			t.Fatalf("the same id again: %v", err)
		}
		if err := a.HoldPacket(p, maxPacketHolds, Serve, 1); !errors.Is(err, ErrTooManyHolds) {
			t.Fatalf("one more: %v, want ErrTooManyHolds", err)
		}
		time.Sleep(2 * time.Hour) // bubble: no time ends a packet hold
		if got := a.tab(p).packetsIn; got != maxPacketHolds {
			t.Fatalf("%d in flight after two hours, want %d", got, maxPacketHolds)
		}
		for id := range uint64(maxPacketHolds) {
			var err error
			if id%2 == 0 {
				err = a.CommitPacket(p, id, Serve)
			} else {
				err = a.ReleasePacket(p, id, Serve)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		for _, err := range []error{a.CommitPacket(p, 0, Serve), a.ReleasePacket(p, 0, Serve), a.CommitPacket(testPeer(9), 0, Serve)} {
			if !errors.Is(err, ErrNoPacket) {
				t.Fatalf("decided twice: %v, want ErrNoPacket", err)
			}
		}
		if got := a.row(b).Balance; got != maxPacketHolds/2 {
			t.Fatalf("balance %d, want %d", got, maxPacketHolds/2)
		}
		var refused *RefusedError
		if err := b.HoldPacket(a.id, 1, Consume, 1001); !errors.As(err, &refused) || refused.Headroom != 1000 || refused.Limit != 1000 {
			t.Fatalf("%v, want a refusal that names 1000", err) // b's own max debt
		}
		time.Sleep(time.Second) // bubble: written behind
		if err := a.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// Packets that take the debt past the payment threshold are settled like any
// other debt, and a refusal for want of headroom begins a settlement below it.
func TestPacketsAreSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newNode(t, 0), newNode(t, 1)
		wireUp(t, a, b)
		pay := func(id uint64, units tally.Amount) error {
			if err := a.HoldPacket(b.id, id, Consume, units); err != nil {
				return err
			}
			if err := b.HoldPacket(a.id, id, Serve, units); err != nil {
				t.Fatal(err)
			}
			for _, err := range []error{b.CommitPacket(a.id, id, Serve), a.CommitPacket(b.id, id, Consume)} {
				if err != nil {
					t.Fatal(err)
				}
			}
			return nil
		}
		if err := pay(1, 120); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := a.row(b).Balance; got != 0 {
			t.Fatalf("balance %d after a settlement, want 0", got)
		}
		if err := pay(2, 60); err != nil {
			t.Fatal(err)
		}
		if err := pay(3, 70); !errors.Is(err, ErrOverThreshold) {
			t.Fatalf("%v, want ErrOverThreshold", err)
		}
		synctest.Wait()
		if err := pay(3, 70); err != nil {
			t.Fatalf("after the settlement that the refusal began: %v", err)
		}
	})
}

// Tab and journal reach the disk together: at no moment does a crash leave a
// packet on the one and not on the other, although the write-behind is due
// while the batch is open.
func TestPacketBatchIsAtomic(t *testing.T) {
	const journal = "/test/journal"
	for _, crash := range []string{"none", "open", "before", "after"} {
		t.Run(crash, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newNode(t, 0)
				p := testPeer(1)
				if err := a.HoldPacket(p, 1, Serve, 20); err != nil {
					t.Fatal(err)
				}
				batch := a.NewPacketBatch()
				if err := batch.Commit(p, 1, Serve); err != nil {
					t.Fatal(err)
				}
				if err := batch.Commit(p, 1, Serve); !errors.Is(err, ErrNoPacket) {
					t.Fatalf("twice: %v", err)
				}
				time.Sleep(5 * flushEvery) // bubble: nobody else saves the tab
				if crash == "open" {
					a.die()
				}
				var rec durable.Batch
				rec.Put(journal, []byte{1})
				batch.Save(&rec)
				switch crash {
				case "before":
					a.disk.CrashBefore(a.disk.Commits() + 1)
				case "after":
					a.disk.CrashAfter(a.disk.Commits() + 1)
				}
				batch.Done(a.store.Commit(context.Background(), &rec))
				a.revive()
				_, err := a.store.Get(t.Context(), journal)
				said := err == nil
				l, stored := a.onDisk(p)
				if landed := crash == "none" || crash == "after"; said != landed || stored != landed {
					t.Fatalf("journal %v, tab %v, want both %v", said, stored, landed)
				}
				if stored && l.Balance() != 20 {
					t.Fatalf("balance %d, want 20", l.Balance())
				}
			})
		})
	}
}

func TestRestorePackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newNodeOn(t, durabletest.NewMemCrash(), 0)
		p := testPeer(1)
		list := []PacketHold{{p, 1, Serve, 200}, {p, 1, Consume, 300}, {p, 1, Serve, 200}}
		if err := a.RestorePackets(list); err != nil {
			t.Fatal(err)
		}
		if l := a.tab(p); l.packetsIn != 200 || l.packetsOut != 300 {
			t.Fatalf("in %d, out %d", l.packetsIn, l.packetsOut)
		}
		if err := a.RestorePackets([]PacketHold{{p, 2, Serve, 1 << 62}}); !errors.Is(err, tally.ErrOverflow) {
			t.Fatalf("2^62 units: %v", err)
		}
		time.Sleep(20 * time.Minute) // bubble: an account with packets stays in memory
		batch := a.NewPacketBatch()
		if err := batch.Commit(p, 1, Consume); err != nil {
			t.Fatal(err)
		}
		batch.Done(nil) // without a journal there is nothing to save with
		if l := a.tab(p); l.Balance() != -300 {
			t.Fatalf("balance %d, want -300", l.Balance())
		}
	})
}

// Any order of holds and decisions leaves what a plain sum says.
func TestPacketModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policy := Policy{Mode: rapid.SampledFrom([]Mode{ModeSoft, ModeMock, ModeHard}).Draw(t, "mode")}.Complete()
		l := NewLedger(&policy)
		step := func(ev Event) error { _, err := l.Step(testStart, &ev); return err }
		if err := step(Event{Kind: EvSession, Terms: &Terms{PaymentThreshold: 100, DisconnectThreshold: 125, Mode: policy.Mode, Native: true}}); err != nil {
			t.Fatal(err)
		}
		held := map[Direction][]tally.Amount{}
		balance := tally.Balance(0)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			dir := rapid.SampledFrom([]Direction{Serve, Consume}).Draw(t, "dir")
			if list := held[dir]; len(list) > 0 && rapid.Bool().Draw(t, "decide") {
				n, kind := list[0], EvPacketRelease
				held[dir] = list[1:]
				if rapid.Bool().Draw(t, "fulfil") {
					kind = EvPacketCommit
					if dir == Serve {
						balance += tally.Balance(n)
					} else {
						balance -= tally.Balance(n)
					}
				}
				if err := step(Event{Kind: kind, Dir: dir, Units: n}); err != nil {
					t.Fatal(err)
				}
			} else {
				n := tally.Amount(rapid.Uint64Range(0, 130).Draw(t, "units"))
				room := l.HeadroomPacket(testStart, dir)
				err := step(Event{Kind: EvPacketHold, Dir: dir, Units: n})
				if (err == nil) != (n <= room) {
					t.Fatalf("%v %d with headroom %d: %v", dir, n, room, err)
				}
				if err == nil {
					held[dir] = append(held[dir], n)
				}
			}
			for _, d := range []Direction{Serve, Consume} {
				var sum tally.Amount
				for _, n := range held[d] {
					sum += n
				}
				if *l.packetHeld(d) != sum {
					t.Fatalf("%v: held %d, want %d", d, *l.packetHeld(d), sum)
				}
			}
			if l.Balance() != balance || balance > 125 || balance < -125 {
				t.Fatalf("balance %d, want %d, within 125", l.Balance(), balance)
			}
			if err := l.Check(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func BenchmarkPacketHold(b *testing.B) {
	n := newNode(b, 0, withPolicy(Policy{PaymentThreshold: 1 << 38, MaxPeerThreshold: 1 << 38, MaxExposure: 1 << 50, MaxExposureTotal: 1 << 50, StrangersExposure: 1 << 50}))
	p := testPeer(1)
	b.ReportAllocs()
	for id := uint64(0); b.Loop(); id++ {
		if err := n.HoldPacket(p, id, Serve, 1); err != nil {
			b.Fatal(err)
		}
		if err := n.CommitPacket(p, id, Serve); err != nil {
			b.Fatal(err)
		}
	}
}
