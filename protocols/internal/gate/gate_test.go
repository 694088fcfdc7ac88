package gate

import (
	"testing"
	"testing/synctest"

	"github.com/libp2p/go-libp2p/core/peer"
	"pgregory.net/rapid"
)

// A peer that asks one thing after the other is never told that there are too many, however
// late its streams are closed: until as many are open as may be.
func TestOneAfterTheOther(t *testing.T) {
	g := New(Limits{Total: 2, Peer: 1})
	for i := range openFactor {
		p := g.Enter("a")
		if p == nil || p.Busy() {
			t.Fatalf("request %d: %+v", i, p)
		}
		p.Answered() // and stays open
	}
	if g.Enter("a") != nil {
		t.Fatal("more are open than may be")
	}
	if p := g.Enter("b"); p == nil || p.Busy() {
		t.Fatal("another peer suffers")
	}
}

// The counts are those of the passes that are out, within their limits, and nothing is kept
// of a peer that has left.
func TestCounts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limits := Limits{Total: rapid.IntRange(1, 4).Draw(t, "total"), Peer: rapid.IntRange(1, 3).Draw(t, "peer")}
		g := New(limits)
		var out []*Pass
		t.Repeat(map[string]func(*rapid.T){
			"enter": func(t *rapid.T) {
				p := peer.ID(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "who"))
				of, all := g.peers[p], g.all
				pass := g.Enter(p)
				if room := all.open < openFactor*limits.Total && of.open < openFactor*limits.Peer; room != (pass != nil) {
					t.Fatalf("let in %v with %+v of %+v open", pass != nil, of, all)
				}
				if pass == nil {
					return
				}
				if work := all.work < limits.Total && of.work < limits.Peer; work == pass.Busy() {
					t.Fatalf("busy %v with %+v of %+v at work", pass.Busy(), of, all)
				}
				out = append(out, pass)
			},
			"answered": func(t *rapid.T) {
				if len(out) > 0 {
					out[rapid.IntRange(0, len(out)-1).Draw(t, "which")].Answered()
				}
			},
			"leave": func(t *rapid.T) {
				if len(out) == 0 {
					return
				}
				i := rapid.IntRange(0, len(out)-1).Draw(t, "which")
				out[i].Leave()
				out = append(out[:i], out[i+1:]...)
			},
			"": func(t *rapid.T) {
				want := make(map[peer.ID]count)
				var all count
				for _, p := range out {
					n := count{open: 1}
					if p.works {
						n.work = 1
					}
					c := want[p.peer]
					want[p.peer] = count{c.open + n.open, c.work + n.work}
					all = count{all.open + n.open, all.work + n.work}
				}
				if g.all != all || len(g.peers) != len(want) {
					t.Fatalf("%+v of %d peers, want %+v of %d", g.all, len(g.peers), all, len(want))
				}
				for p, c := range want {
					if g.peers[p] != c || c.work > limits.Peer {
						t.Fatalf("%s: %+v, want %+v", p, g.peers[p], c)
					}
				}
				if all.work > limits.Total {
					t.Fatalf("%d at work, limit %d", all.work, limits.Total)
				}
			},
		})
	})
}

func TestShutWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Limits{Total: 1, Peer: 1})
		p := g.Enter("a")
		down := false
		go func() { g.Shut(); down = true }()
		synctest.Wait()
		if down || g.Enter("b") != nil {
			t.Fatalf("down %v, or let in while it shuts", down)
		}
		p.Leave()
		synctest.Wait()
		if !down {
			t.Fatal("not down after the last has left")
		}
	})
}
