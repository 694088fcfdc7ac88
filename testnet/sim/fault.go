package sim

import (
	"fmt"
	"slices"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable/durabletest"
)

// crash ends a party between two instructions and starts it again after a while.
func (w *world) crash(p *party, seed uint64) {
	if p.book == nil {
		return
	}
	w.logf("crash %s", p.name)
	w.down(p, seed)
}

// crashAt makes one of the next writes of a party its last instruction.
func (w *world) crashAt(p *party, n int, after bool) {
	if p.book == nil || p.disk.Failed() != nil {
		return
	}
	w.logf("crash %s at write %d, after %v", p.name, n, after)
	at := p.disk.Commits() + n
	if after {
		p.disk.CrashAfter(at)
	} else {
		p.disk.CrashBefore(at)
	}
}

// bury finds the parties whose disk died in the last step.
func (w *world) bury() {
	for _, p := range w.parties {
		if p.book != nil && p.disk.Failed() != nil {
			w.logf("%s died at a write", p.name)
			w.down(p, 0)
		}
	}
}

// down ends the life of a party. What its disk kept, by seed, is what the next
// life begins with.
func (w *world) down(p *party, seed uint64) {
	w.report.Crashes++
	p.crashes++
	var disk *durabletest.Crash
	switch {
	case w.remains != nil:
		disk = w.remains(p)
	case w.opt.Pebble && seed != 0:
		disk = p.disk.CloneSeed(seed)
	default:
		disk = p.disk.Clone()
	}
	ghost, old := p.book, p.disk
	p.book = nil
	p.life++ // its courier is deaf from here on
	for _, l := range w.linksOf(p) {
		w.hangUp(l, p.name+" is gone")
		w.reconnect(l, w.someTime(2*time.Second))
	}
	_ = ghost.Close() // writes to a disk that nobody reads again
	_ = old.Close()
	p.disk = disk
	w.plan(w.someTime(5*time.Second), "revive", func() { w.revive(p) })
}

func (w *world) linksOf(p *party) []*link {
	var list []*link
	for i := range w.parties {
		if l := w.links[[2]int{min(i, p.index), max(i, p.index)}]; l != nil && i != p.index {
			list = append(list, l)
		}
	}
	return list
}

func (w *world) revive(p *party) {
	if p.book != nil {
		return
	}
	err := w.open(p)
	w.logf("revive %s: %s", p.name, cause(err))
	if err != nil {
		panic(fmt.Sprintf("sim: %v", err)) // a crash has to be survived
	}
}

// heal lets the world come to rest: no more faults, everybody up and connected,
// and time for every back-off. Then books have to agree.
func (w *world) heal() error {
	w.healed = true
	w.logf("heal")
	end := w.now() + healFor
	for _, l := range w.links {
		l.until = 0
	}
	for i := range w.parties { // in a fixed order
		for _, b := range w.parties[i+1:] {
			if l := w.links[[2]int{i, b.index}]; l != nil {
				w.reconnect(l, w.someTime(time.Second))
			}
		}
	}
	// A last small use and settlement each way: what differs shows itself then.
	for _, at := range [...]time.Duration{10 * time.Minute, 15 * time.Minute} {
		for i := range w.parties {
			for j := range w.parties {
				l := w.links[[2]int{min(i, j), max(i, j)}]
				if i == j || l == nil || w.parties[i].liar != nil || w.parties[j].liar != nil {
					continue
				}
				client, server := w.parties[i], w.parties[j]
				w.plan(at+w.someTime(time.Minute), "use", func() { w.use(l, client, server, 1) })
				w.plan(at+2*time.Minute+w.someTime(time.Minute), "settle", func() { w.settle(l, client) })
			}
		}
	}
	for len(w.queue) > 0 && w.queue[0].at < end {
		if err := w.next(); err != nil {
			return err
		}
	}
	w.plan(end-w.now(), "end", func() { w.logf("end") })
	w.queue = slices.DeleteFunc(w.queue, func(t *task) bool { return t.name != "end" })
	if err := w.next(); err != nil {
		return err
	}
	return w.checkEnd()
}

// allowance is what a creditor may forgive one peer in all.
func (w *world) allowance(paid tally.Amount) tally.Amount { return w.policy.Slack() + paid/100 }
