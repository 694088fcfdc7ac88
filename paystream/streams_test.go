package paystream

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tallystick/tally"
)

// TestSpans compares add and cut with a set of bytes.
func TestSpans(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var s spans
		var set [64]bool
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			a, b := rapid.Uint64Range(0, 63).Draw(rt, "a"), rapid.Uint64Range(0, 63).Draw(rt, "b")
			n := span{min(a, b), max(a, b)}
			add := rapid.Bool().Draw(rt, "add")
			if add {
				s = s.add(n)
			} else {
				s = s.cut(n)
			}
			for i := n.from; i < n.to; i++ {
				set[i] = add
			}
			var got [64]bool
			for i, have := range s {
				if have.from >= have.to || i > 0 && s[i-1].to >= have.from {
					rt.Fatalf("after %v: %v", n, s)
				}
				for k := have.from; k < have.to; k++ {
					got[k] = true
				}
			}
			if got != set {
				rt.Fatalf("after %v of %v: %v", add, n, s)
			}
		}
	})
}

// talker is one end of a world of streams: what it wrote and read of each.
type talker struct {
	Streams
	t      testing.TB
	memory int
	wrote  map[uint64][]byte // by stream
	read   map[uint64][]byte
	open   map[uint64]*stream
	ended  map[uint64]bool
	closed map[uint64]bool
}

func newTalker(t testing.TB, role Role) *talker {
	k := &talker{
		t: t, wrote: make(map[uint64][]byte), read: make(map[uint64][]byte), open: make(map[uint64]*stream),
		ended: make(map[uint64]bool), closed: make(map[uint64]bool),
	}
	k.Streams = newStreams(role, func(n int) bool {
		if k.memory+n > endpointData {
			return false
		}
		k.memory += n
		return true
	})
	k.Take()
	return k
}

func (k *talker) check() {
	k.t.Helper()
	if err := k.Check(); err != nil {
		k.t.Fatal(err)
	}
	if k.memory != k.held {
		k.t.Fatalf("the endpoint counts %d bytes, the streams %d", k.memory, k.held)
	}
}

// ids are those of the open streams, in order, so that a run can be repeated.
func (k *talker) ids() []uint64 { return slices.Sorted(maps.Keys(k.open)) }

// begin opens a stream, if that may be.
func (k *talker) begin() *stream {
	if !k.Takes() {
		return nil
	}
	st := k.Open()
	k.open[st.id] = st
	return st
}

// take accepts and reads what there is, up to most bytes of each stream.
func (k *talker) take(most int) {
	for st := k.Accept(); st != nil; st = k.Accept() {
		k.open[st.id] = st
	}
	buf := make([]byte, most)
	for id, st := range k.open {
		n, eof, err := k.Read(st, buf)
		if err != nil {
			k.t.Fatalf("read %d: %v", id, err)
		}
		k.read[id] = append(k.read[id], buf[:n]...)
		k.ended[id] = k.ended[id] || eof
	}
}

func (k *talker) write(st *stream, b []byte) {
	n, err := k.Write(st, b)
	if err != nil && !errors.Is(err, ErrDataMemory) {
		k.t.Fatal(err)
	}
	k.wrote[st.id] = append(k.wrote[st.id], b[:n]...)
}

func (k *talker) finish(st *stream) {
	k.CloseWrite(st)
	k.closed[st.id] = true
}

// wirePacket is a packet in flight between two talkers.
type wirePacket struct {
	to    *talker
	from  *talker
	bytes []byte
	load  *load
	reply bool
}

// ether carries packets of two talkers, as the packets of a socket are: each has an
// end, lost or answered, in any order.
type ether struct {
	ends [2]*talker
	air  []wirePacket
	now  time.Duration
}

func newEther(t testing.TB) *ether {
	return &ether{ends: [2]*talker{newTalker(t, RoleClient), newTalker(t, RoleServer)}, now: 1}
}

// emit lets one end send a packet, if it has to.
func (e *ether) emit(i int, room int) bool {
	k := e.ends[i]
	k.Late(e.now, 0)
	if !k.Due(e.now) {
		return false
	}
	p := Packet{Kind: KindPrepare}
	l := k.Fill(&p, e.now, room, false)
	k.check()
	if l == nil {
		return false
	}
	b := p.Append(nil)
	if len(b) > max(room, maxCredits*pieceOverhead)+pieceOverhead {
		k.t.Fatalf("packet of %d bytes in a room of %d", len(b), room)
	}
	e.air = append(e.air, wirePacket{to: e.ends[1-i], from: k, bytes: b, load: l})
	return true
}

// land ends the way of packet n: lost, or heard and answered.
func (e *ether) land(n int, lost bool) {
	w := e.air[n]
	e.air = slices.Delete(e.air, n, n+1)
	if lost || w.reply {
		again := lost
		if !lost {
			var p Packet
			if err := p.Decode(w.bytes); err != nil {
				w.to.t.Fatal(err)
			}
			w.to.Hear(&p, false)
			again = p.Again
		}
		owner := w.from
		if w.reply {
			owner = w.to
		}
		owner.Landed(w.load, e.now, !again, 0)
		owner.check()
		return
	}
	var p Packet
	if err := p.Decode(w.bytes); err != nil {
		w.to.t.Fatal(err)
	}
	reply := Packet{Kind: KindReject, Code: CodeRead}
	reply.Again = w.to.Hear(&p, true)
	w.to.Answer(&reply, &p)
	w.to.check()
	e.air = append(e.air, wirePacket{to: w.from, from: w.to, bytes: reply.Append(nil), load: w.load, reply: true})
}

// compare holds what was read against what was written; whole: all of it.
func (e *ether) compare(whole bool) error {
	for i, k := range e.ends {
		peer := e.ends[1-i]
		for id, got := range k.read {
			want := peer.wrote[id]
			if len(got) > len(want) || !bytes.Equal(got, want[:len(got)]) {
				return fmt.Errorf("stream %d: read %d bytes that are not those written", id, len(got))
			}
			if k.ended[id] && (!peer.closed[id] || len(got) != len(want)) {
				return fmt.Errorf("stream %d ended after %d of %d bytes", id, len(got), len(want))
			}
		}
		if !whole {
			continue
		}
		for id, want := range peer.wrote {
			if len(k.read[id]) != len(want) || k.ended[id] != peer.closed[id] {
				return fmt.Errorf("stream %d: read %d of %d bytes, ended %v of %v", id, len(k.read[id]), len(want), k.ended[id], peer.closed[id])
			}
		}
	}
	return nil
}

// rest lets all that is written arrive, while the first packets are still lost.
func (e *ether) rest(src *rand.Rand) error {
	for round := range 20_000 {
		moved := false
		for i := range e.ends {
			for e.emit(i, MaxInner) {
				moved = true
			}
		}
		for len(e.air) > 0 {
			e.land(0, src != nil && round < 40 && src.IntN(3) == 0)
			moved = true
		}
		for _, k := range e.ends {
			k.take(streamWindow)
			k.check()
			moved = moved || k.RetryAt() > e.now
		}
		if err := e.compare(true); err == nil && !moved {
			return nil
		}
		e.now += 100 * time.Millisecond
	}
	return errors.Join(errors.New("data does not arrive"), e.compare(true))
}

// TestStreamModel: streams of two ends over a way that loses, delays and reorders
// packets and their answers. What is read is what was written, in order, and no
// bound is crossed.
func TestStreamModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		e := newEther(t)
		src := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 1))
		for range rapid.IntRange(1, 120).Draw(rt, "steps") {
			i := rapid.IntRange(0, 1).Draw(rt, "end")
			k := e.ends[i]
			switch what := rapid.IntRange(0, 9).Draw(rt, "what"); {
			case what == 0:
				k.begin()
			case what <= 2:
				for _, id := range k.ids() {
					if st := k.open[id]; !k.closed[id] && src.IntN(2) == 0 {
						b := make([]byte, src.IntN(40_000))
						for j := range b {
							b[j] = byte(src.Uint32())
						}
						k.write(st, b)
						break
					}
				}
			case what == 3:
				for _, id := range k.ids() {
					if st := k.open[id]; src.IntN(3) == 0 && !k.closed[id] {
						k.finish(st)
						break
					}
				}
			case what <= 5:
				e.emit(i, rapid.IntRange(400, MaxInner).Draw(rt, "room"))
			case what <= 7:
				if len(e.air) > 0 {
					e.land(src.IntN(len(e.air)), src.IntN(4) == 0)
				}
			case what == 8:
				k.take(1 + src.IntN(50_000))
			default:
				e.now += time.Duration(src.IntN(2000)) * time.Millisecond
			}
			k.check()
			if err := e.compare(false); err != nil {
				rt.Fatal(err)
			}
		}
		for _, k := range e.ends { // every stream is closed by both ends in the end
			k.take(0)
			for id, st := range k.open {
				if !k.closed[id] {
					k.finish(st)
				}
			}
		}
		if err := e.rest(src); err != nil {
			rt.Fatal(err)
		}
		for _, k := range e.ends {
			for id, st := range k.open {
				if !k.closed[id] {
					k.finish(st)
				}
			}
		}
		if err := e.rest(nil); err != nil {
			rt.Fatal(err)
		}
		for _, k := range e.ends {
			if r := k.Report(); r.Streams != 0 || r.Held != 0 {
				rt.Fatalf("all streams are over, and the end keeps %+v", r)
			}
		}
	})
}

// opened returns an ether with a stream of the client, which the server knows.
func opened(t testing.TB) (*ether, *stream) {
	e := newEther(t)
	if err := e.rest(nil); err != nil {
		t.Fatal(err)
	}
	st := e.ends[0].begin()
	if st == nil {
		t.Fatal("the peer takes no data")
	}
	return e, st
}

// TestStreamWindow: a reader that does not read stops its writer at the window, and
// goes on from there.
func TestStreamWindow(t *testing.T) {
	e, st := opened(t)
	k := e.ends[0]
	for range 40 {
		k.write(st, make([]byte, 16<<10))
		for e.emit(0, MaxInner) {
		}
		for len(e.air) > 0 {
			e.land(0, false)
		}
	}
	if got := e.ends[1].received; got != streamWindow {
		t.Fatalf("%d bytes arrived with nobody reading, want the window of %d", got, streamWindow)
	}
	if got := len(k.wrote[st.id]); got != 2*streamWindow {
		t.Fatalf("%d bytes were taken to be sent, want two windows", got)
	}
	if err := e.rest(nil); err != nil {
		t.Fatal(err)
	}
}

// TestStreamEndArrivesFirst: the end was acked, and what lies before it lost: the
// stream is not over before that has arrived, too.
func TestStreamEndArrivesFirst(t *testing.T) {
	e, st := opened(t)
	a, b := e.ends[0], e.ends[1]
	a.write(st, make([]byte, 2*MaxData))
	a.finish(st)
	for e.emit(0, MaxData) { // one piece in each packet
	}
	e.land(0, true)
	for len(e.air) > 0 {
		e.land(0, false)
	}
	b.take(streamWindow)
	b.finish(b.open[st.id])
	for e.emit(1, MaxInner) {
	}
	for len(e.air) > 0 {
		e.land(0, false)
	}
	if err := e.rest(nil); err != nil {
		t.Fatal(err)
	}
}

// TestStreamBounds: what a peer may not do is not taken, and costs no memory.
func TestStreamBounds(t *testing.T) {
	for name, c := range map[string]struct {
		frames []DataFrame
		again  bool
	}{
		"first piece":         {[]DataFrame{{Stream: 1, Data: []byte("a")}}, false},
		"beyond the window":   {[]DataFrame{{Stream: 1, Offset: streamWindow, Data: []byte("a")}}, true},
		"beyond what a count": {[]DataFrame{{Stream: 1, Offset: math.MaxInt64, Data: []byte("a")}}, true},
		"stream 0":            {[]DataFrame{{Data: []byte("a")}}, true},
		"a stream of ours":    {[]DataFrame{{Stream: 2, Data: []byte("a")}}, true},
		"the last stream":     {[]DataFrame{{Stream: 2*maxStreams - 1, Data: []byte("a")}}, false},
		"one stream too many": {[]DataFrame{{Stream: 2*maxStreams + 1, Data: []byte("a")}}, true},
		"the highest stream":  {[]DataFrame{{Stream: math.MaxUint64, Data: []byte("a")}}, true},
		"two ends":            {[]DataFrame{{Stream: 1, Offset: 5, Fin: true}, {Stream: 1, Offset: 6, Fin: true}}, true},
		"beyond the end":      {[]DataFrame{{Stream: 1, Offset: 5, Fin: true}, {Stream: 1, Offset: 5, Data: []byte("a")}}, true},
		"end before data":     {[]DataFrame{{Stream: 1, Offset: 5, Data: []byte("a")}, {Stream: 1, Offset: 5, Fin: true}}, true},
		"the end twice":       {[]DataFrame{{Stream: 1, Offset: 5, Fin: true}, {Stream: 1, Offset: 5, Fin: true}}, false},
	} {
		k := newTalker(t, RoleServer)
		if again := k.Hear(&Packet{Data: c.frames}, true); again != c.again {
			t.Errorf("%s: again %v", name, again)
		}
		k.check()
	}

	// Pieces with gaps between them: as many as are bounded, and then the one that
	// goes on is still taken.
	k := newTalker(t, RoleServer)
	again := 0
	for i := range maxGaps + 10 {
		if k.Hear(&Packet{Data: []DataFrame{{Stream: 1, Offset: uint64(2*i + 1), Data: []byte("a")}}}, true) {
			again++
		}
		k.check()
	}
	if again != 10 {
		t.Errorf("%d of %d pieces with gaps were not taken, want 10", again, maxGaps+10)
	}
	if k.Hear(&Packet{Data: []DataFrame{{Stream: 1, Data: []byte("a")}}}, true) {
		t.Error("the piece that closes a gap was not taken")
	}

	// Streams full of data nobody reads: the socket's bound, then no more.
	k = newTalker(t, RoleServer)
	for id := uint64(1); id < 2*maxStreams; id += 2 {
		k.Hear(&Packet{Data: []DataFrame{{Stream: id, Offset: streamWindow - 1, Data: []byte("a")}}}, true)
		k.check()
	}
	if k.held != socketData {
		t.Errorf("the streams hold %d bytes, want the bound of %d", k.held, socketData)
	}
	k.Reset(ErrStreamReset)
	k.check()
	if k.memory != 0 {
		t.Errorf("%d bytes are counted after the session", k.memory)
	}

	// An end that takes no data.
	k = newTalker(t, RoleServer)
	k.taking = false
	if !k.Hear(&Packet{Data: []DataFrame{{Stream: 1, Data: []byte("a")}}}, true) || k.Live() {
		t.Error("data was taken that nobody wants")
	}
}

// TestStreamReaderGone: a reader that closes ends its writer, and both forget the
// stream.
func TestStreamReaderGone(t *testing.T) {
	e, st := opened(t)
	a, b := e.ends[0], e.ends[1]
	a.write(st, make([]byte, 100_000))
	if err := e.rest(nil); err != nil {
		t.Fatal(err)
	}
	other := b.open[st.id]
	b.CloseWrite(other)
	b.CloseRead(other)
	for range 10 {
		for i := range e.ends {
			for e.emit(i, MaxInner) {
			}
		}
		for len(e.air) > 0 {
			e.land(0, false)
		}
		if a.open[st.id] != nil {
			if _, eof, _ := a.Read(st, make([]byte, 10)); eof {
				delete(a.open, st.id)
			}
		}
	}
	if _, err := a.Write(st, []byte("more")); !errors.Is(err, ErrReaderGone) {
		t.Fatalf("write to a stream that nobody reads: %v", err)
	}
	for i, k := range e.ends {
		if r := k.Report(); r.Streams != 0 || r.Held != 0 {
			t.Errorf("end %d keeps %+v", i, r)
		}
	}
}

// TestStreamsAfterEnd: what arrived can be read after the socket was closed, also by
// who had not accepted the stream yet; then the error says why there is no more.
func TestStreamsAfterEnd(t *testing.T) {
	e, st := opened(t)
	a, b := e.ends[0], e.ends[1]
	a.write(st, []byte("hello"))
	a.finish(st)
	half := a.begin()
	a.write(half, []byte("half"))
	for e.emit(0, MaxInner) {
	}
	for len(e.air) > 0 {
		e.land(0, false)
	}
	b.End(ErrPeerClosed)
	b.check()
	buf := make([]byte, 10)
	for _, want := range []struct {
		text string
		err  error
	}{{"hello", nil}, {"half", ErrPeerClosed}} {
		got := b.Accept()
		if got == nil {
			t.Fatal("no stream")
		}
		n, eof, err := b.Read(got, buf)
		if string(buf[:n]) != want.text || err != nil || eof != (want.err == nil) {
			t.Fatalf("read %q, %v, %v", buf[:n], eof, err)
		}
		if _, _, err := b.Read(got, buf); !errors.Is(err, want.err) {
			t.Fatalf("then %v", err)
		}
		b.check()
	}
}

// TestShares: a packet's amount is divided to the unit.
func TestShares(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		k := newTalker(t, RoleServer)
		n := tally.Amount(rapid.Uint64Range(0, 1<<62).Draw(rt, "amount"))
		shares := rapid.SliceOfN(rapid.Uint64(), 1, maxShares).Draw(rt, "shares")
		var frames []MoneyFrame
		zero := true
		for i, s := range shares {
			frames = append(frames, MoneyFrame{Stream: uint64(2*i + 1), Shares: s})
			zero = zero && s == 0
		}
		k.Share(frames, n, true)
		var sum tally.Amount
		for _, st := range k.order {
			sum += st.received
		}
		if want := n; sum != want && !zero {
			rt.Fatalf("%d of %d is shared out", sum, want)
		}
	})
}

// FuzzStreams feeds one end any frames, and lets it write, read and send between: it
// never panics, and its bounds hold.
func FuzzStreams(f *testing.F) {
	f.Add([]byte{1, 2, 3}, uint64(1))
	f.Add(fullPacket().Append(nil), uint64(2))
	f.Fuzz(func(t *testing.T, b []byte, seed uint64) {
		rng := rand.New(rand.NewPCG(seed, 0))
		k := newTalker(t, Role(1+rng.IntN(2)))
		number := func() uint64 {
			if rng.IntN(2) == 0 {
				return uint64(rng.IntN(10))
			}
			return rng.Uint64() >> (1 + rng.IntN(63))
		}
		var loads []*load
		now := time.Duration(1)
		for range 20 {
			var p Packet
			if rng.IntN(4) == 0 && p.Decode(b) == nil {
				k.Hear(&p, rng.IntN(2) == 0)
			}
			p = Packet{}
			data := b[:min(len(b), MaxData)]
			for range rng.IntN(4) {
				p.Data = append(p.Data, DataFrame{Stream: number(), Offset: number(), Data: data[:rng.IntN(len(data)+1)], Fin: rng.IntN(8) == 0})
				p.Credits = append(p.Credits, CreditFrame{Stream: number(), Limit: rng.Uint64(), End: rng.IntN(8) == 0})
				p.Money = append(p.Money, MoneyFrame{Stream: number(), Shares: rng.Uint64()})
			}
			var reply Packet
			reply.Again = k.Hear(&p, true)
			k.Answer(&reply, &p)
			k.Share(p.Money, tally.Amount(number()), rng.IntN(2) == 0)
			if k.Takes() && rng.IntN(3) == 0 {
				k.open[k.ownNext] = k.Open()
			}
			if st := k.Accept(); st != nil {
				k.open[st.id] = st
			}
			for _, id := range k.ids() {
				st := k.open[id]
				switch rng.IntN(8) {
				case 0:
					_, _ = k.Write(st, data)
				case 1:
					_, _, _ = k.Read(st, make([]byte, rng.IntN(100)))
				case 2:
					k.CloseWrite(st)
				case 3:
					k.CloseRead(st)
				case 4:
					st.shares = number()
				}
				k.check()
			}
			if l := k.Fill(&reply, now, rng.IntN(MaxInner), true); l != nil {
				loads = append(loads, l)
			}
			if len(loads) > 0 && rng.IntN(2) == 0 {
				n := rng.IntN(len(loads))
				k.Landed(loads[n], now, rng.IntN(2) == 0, 0)
				loads = slices.Delete(loads, n, n+1)
			}
			k.Late(now, 0)
			if rng.IntN(50) == 0 {
				k.Reset(ErrStreamReset)
			}
			now += time.Duration(rng.IntN(1000)) * time.Millisecond
			k.check()
		}
	})
}
