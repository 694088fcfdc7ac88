package hold

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/paystream/payments"
)

// An exhaustive model of one hold at a holder that may stop anywhere. Goal: in no
// order of events, answers and stops does the holder give the payer's money back and
// pay the payee as well, pay the payee twice, or take the payer's money for nothing;
// and from everywhere the hold ends. Method: all states are visited, a state being
// what the disk has and what the carrier has; after each step every prefix of its
// duties is followed by a stop. The same search finds a loss at once where duties
// are carried out before the save.

// world is one state.
type world struct {
	disk string // the row; "": none
	in   string // the payer's part at the carrier: "", waiting, fulfilled, rejected
	outs map[payments.PartID]string
	used byte // part ids
	time int  // 0: before the end of the hold, 1: after
	stop int  // how often it has stopped
}

func (w *world) key() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%x|%s|%d|%d|%d", w.disk, w.in, w.used, w.time, w.stop)
	for _, id := range slices.SortedFunc(maps.Keys(w.outs), func(a, b payments.PartID) int { return slices.Compare(a[:], b[:]) }) {
		fmt.Fprintf(&b, "|%x=%s", id[:2], w.outs[id])
	}
	return b.String()
}

func (w *world) clone() *world {
	c := *w
	c.outs = maps.Clone(w.outs)
	return &c
}

func (w *world) now() int64 {
	if w.time == 0 {
		return start
	}
	return termsOf(1).Expires
}

// loss names what nobody may see.
func (w *world) loss() string {
	paid := 0
	for _, s := range w.outs {
		if strings.HasPrefix(s, "fulfilled") {
			paid++
		}
	}
	switch {
	case paid > 1:
		return "the payee was paid twice"
	case paid > 0 && w.in == "rejected":
		return "the payee was paid and the payer has its money back"
	case paid == 0 && w.in == "fulfilled":
		return "the payer paid and the payee has nothing"
	}
	return ""
}

type search struct {
	t          *testing.T
	early      bool // carry out before the save: the weakened variant
	seen       map[string]bool
	queue      []*world
	lost       string
	ends       map[string]int
	mostOffers byte
	mostStops  int
}

func (s *search) add(w *world) {
	if l := w.loss(); l != "" && s.lost == "" {
		s.lost = l + ": " + w.key()
	}
	if k := w.key(); !s.seen[k] {
		s.seen[k] = true
		s.queue = append(s.queue, w)
	}
}

func (s *search) core(w *world) *Holder {
	h := NewHolder(holderID, Policy{Offer: true})
	if w.disk != "" {
		if err := h.Restore(termsOf(1).ID, []byte(w.disk)); err != nil {
			s.t.Fatal(err)
		}
	}
	return h
}

// step applies one event and follows every prefix of what it asks for.
func (s *search) step(w *world, ev *HolderEvent) {
	h := s.core(w)
	if ev.Kind == HolderRelease || ev.Kind == HolderPart {
		ev.PartID = payments.PartID{w.used + 1, 7}
	}
	fx, _ := h.Step(w.now(), ev, nil)
	if err := h.Check(); err != nil {
		s.t.Fatal(err)
	}
	next := w.clone()
	if slices.ContainsFunc(fx, func(f Effect) bool { return f.Kind == FxSend }) {
		next.used++
	}
	row := h.rows[termsOf(1).ID]
	save := func(w *world) {
		if row != nil {
			w.disk = string(row.record())
		}
	}
	if !s.early {
		save(next)
	}
	s.stopped(next)
	for i := range fx {
		next = next.clone()
		if next.carry(&fx[i]) {
			s.stopped(next)
		}
	}
	if s.early {
		next = next.clone()
		save(next)
		s.stopped(next)
	}
	s.add(next)
}

// stopped is w after a stop and a start.
func (s *search) stopped(w *world) {
	if l := w.loss(); l != "" && s.lost == "" {
		s.lost = l + ": " + w.key()
	}
	if w.stop >= s.mostStops {
		return
	}
	w = w.clone()
	w.stop++
	s.restart(w)
}

func (s *search) restart(w *world) {
	sent := make(map[payments.PartID]bool)
	for id, state := range w.outs {
		sent[id] = !strings.HasSuffix(state, "forgotten")
	}
	s.step(w, &HolderEvent{Kind: HolderRestart, Sent: sent, Waiting: map[payments.PartID]bool{termsOf(1).ID: w.in == "waiting"}})
}

// carry does one duty at the carrier, and says whether it was one.
func (w *world) carry(f *Effect) bool {
	switch f.Kind {
	case FxSend:
		w.outs[f.PartID] = "sent"
	case FxForget:
		if s := w.outs[f.PartID]; s != "" && !strings.HasSuffix(s, "forgotten") {
			w.outs[f.PartID] = s + " forgotten"
		}
	case FxFulfil:
		if w.in == "waiting" {
			w.in = "fulfilled"
		}
	case FxReject:
		if w.in == "waiting" {
			w.in = "rejected"
		}
	default:
		return false
	}
	return true
}

func (s *search) run() {
	s.seen, s.ends = make(map[string]bool), make(map[string]int)
	s.add(&world{outs: make(map[payments.PartID]string)})
	terms := termsOf(1)
	for len(s.queue) > 0 && s.lost == "" {
		w := s.queue[0]
		s.queue = s.queue[1:]
		if w.time == 0 {
			s.step(w, &HolderEvent{Kind: HolderPark, Terms: terms})
			if w.in == "" && w.disk != "" {
				c := w.clone()
				c.in = "waiting"
				s.step(c, &HolderEvent{Kind: HolderPart, Arrival: arrivalOf(terms)})
			}
			if w.used < s.mostOffers {
				s.step(w, &HolderEvent{Kind: HolderRelease, Peer: payeeID, ID: terms.ID})
			}
			c := w.clone()
			c.time = 1
			s.add(c)
		}
		for _, who := range []peer.ID{payerID, payeeID} {
			s.step(w, &HolderEvent{Kind: HolderCancel, Peer: who, ID: terms.ID})
		}
		s.step(w, &HolderEvent{Kind: HolderTick})
		if w.in == "fulfilled" || w.in == "rejected" {
			s.step(w, &HolderEvent{Kind: HolderDone, ID: terms.ID})
		}
		for id, state := range w.outs {
			switch state {
			case "sent": // the payee decides, or time does
				for _, end := range []string{"fulfilled", "rejected"} {
					c := w.clone()
					c.outs[id] = end
					s.add(c)
				}
			case "fulfilled":
				s.step(w, fulfilled(id, preimageOf(1)))
			case "rejected":
				s.step(w, rejected(id))
			}
		}
		s.end(w)
	}
}

// end follows one world to its end: time passes, and all that is due is told.
func (s *search) end(w *world) {
	w = w.clone()
	w.time = 1
	for range 8 {
		h := s.core(w)
		all := []*HolderEvent{{Kind: HolderTick}}
		for id, state := range w.outs {
			switch state {
			case "sent":
				w.outs[id] = "rejected"
				all = append(all, rejected(id))
			case "rejected":
				all = append(all, rejected(id))
			case "fulfilled":
				all = append(all, fulfilled(id, preimageOf(1)))
			}
		}
		if w.in == "waiting" {
			all = append(all, &HolderEvent{Kind: HolderPart, Arrival: arrivalOf(termsOf(1))})
		} else if w.in != "" {
			all = append(all, &HolderEvent{Kind: HolderDone, ID: termsOf(1).ID})
		}
		for _, ev := range all {
			fx, err := h.Step(w.now(), ev, nil)
			if err != nil {
				s.t.Fatal(err)
			}
			for i := range fx {
				w.carry(&fx[i])
			}
		}
		if row := h.rows[termsOf(1).ID]; row != nil {
			w.disk = string(row.record())
		}
	}
	row := s.core(w).rows[termsOf(1).ID]
	if w.in == "waiting" || row != nil && (row.State.Live() || !row.Done && w.in != "") {
		if s.lost == "" {
			s.lost = "it does not end: " + w.key()
		}
		return
	}
	if l := w.loss(); l != "" && s.lost == "" {
		s.lost = l + " in the end: " + w.key()
	}
	s.ends[w.in]++
}

func TestModel(t *testing.T) {
	s := &search{t: t, mostOffers: 2, mostStops: 2}
	s.run()
	if s.lost != "" {
		t.Fatal(s.lost)
	}
	if s.ends["fulfilled"] == 0 || s.ends["rejected"] == 0 || len(s.seen) < 500 {
		t.Fatalf("%d states, ends %v: too few to mean anything", len(s.seen), s.ends)
	}
	t.Logf("%d states, ends %v", len(s.seen), s.ends)
}

// TestSendBeforeSaveLoses: the same search on a holder that sends first finds what
// the order is for.
func TestSendBeforeSaveLoses(t *testing.T) {
	s := &search{t: t, early: true, mostOffers: 2, mostStops: 2}
	s.run()
	if s.lost == "" {
		t.Fatalf("nothing is lost in %d states", len(s.seen))
	}
	t.Log(s.lost)
}
