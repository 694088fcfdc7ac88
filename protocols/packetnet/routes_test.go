package packetnet

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/pb/routepb"
	"github.com/tallystick/tally/protocols/internal/wire"
)

// shelf is a table of short texts: the first byte is the bucket, the rest the advert.
type shelf struct {
	mu   sync.Mutex
	text map[string]bool
	bad  string // an advert that is a fault
	told []peer.ID
}

func newShelf(texts ...string) *shelf {
	s := &shelf{text: make(map[string]bool)}
	for _, x := range texts {
		s.text[x] = true
	}
	return s
}

func shelfDigest(x string) uint64 {
	var b [8]byte
	copy(b[:], x)
	return binary.BigEndian.Uint64(b[:])
}

func (s *shelf) Digest() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	var words [256]uint64
	for x := range s.text {
		words[x[0]] ^= shelfDigest(x)
	}
	var b []byte
	for _, w := range words {
		b = binary.BigEndian.AppendUint64(b, w)
	}
	return b
}

func (s *shelf) Differ(words []byte) (list []byte, err error) {
	mine := s.Digest()
	if len(words) != len(mine) {
		return nil, errors.New("no digest")
	}
	for i := range 256 {
		if !bytes.Equal(words[8*i:8*i+8], mine[8*i:8*i+8]) {
			list = append(list, byte(i))
		}
	}
	return list, nil
}

func (s *shelf) Have(bucket byte) (b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for x := range s.text {
		if x[0] == bucket {
			b = binary.BigEndian.AppendUint64(b, shelfDigest(x))
		}
	}
	return b
}

func (s *shelf) Missing(bucket byte, have []byte, _ int) (list [][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for x := range s.text {
		known := false
		for i := 0; i < len(have); i += 8 {
			known = known || binary.BigEndian.Uint64(have[i:]) == shelfDigest(x)
		}
		if x[0] == bucket && !known {
			list = append(list, []byte(x))
		}
	}
	return list
}

func (s *shelf) Offer(_ context.Context, _ peer.ID, raw []byte) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if string(raw) == s.bad {
		return false, errors.New("forged")
	}
	news := !s.text[string(raw)]
	s.text[string(raw)] = true
	return news, nil
}

func (s *shelf) Told(from peer.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = append(s.told, from)
}

func (s *shelf) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.text)
}

func connectHosts(t *testing.T, a, b host.Host) {
	t.Helper()
	if err := a.Connect(t.Context(), peer.AddrInfo{ID: b.ID(), Addrs: b.Addrs()}); err != nil {
		t.Fatal(err)
	}
}

func TestRoutesPull(t *testing.T) {
	low, high := newHosts(t)
	one, two := newShelf("aone", "bboth"), newShelf("atwo", "bboth", "cthree")
	a, b := NewRoutes(low, one, nil), NewRoutes(high, two, nil)
	defer a.Close()
	defer b.Close()
	connectHosts(t, low, high)
	if news, err := a.Pull(t.Context(), high.ID(), false); err != nil || news != 2 || one.len() != 4 {
		t.Fatalf("%d news: %v", news, err)
	}
	if news, err := b.Pull(t.Context(), low.ID(), false); err != nil || news != 1 {
		t.Fatalf("%d news: %v", news, err)
	}
	if news, err := b.Pull(t.Context(), low.ID(), true); err != nil || news != 0 {
		t.Fatalf("nothing is new, and %d news: %v", news, err)
	}
	one.mu.Lock()
	if !slices.Equal(one.told, []peer.ID{high.ID()}) || len(two.told) != 0 {
		t.Errorf("told of news: %v, %v", one.told, two.told)
	}
	one.mu.Unlock()
	two.mu.Lock()
	two.bad = "dbad"
	two.mu.Unlock()
	one.mu.Lock()
	one.text["dbad"], one.text["egood"] = true, true
	one.mu.Unlock()
	if _, err := b.Pull(t.Context(), low.ID(), false); err == nil || two.len() != 4 {
		t.Fatalf("who gives a forged one is heard on: %v, %d", err, two.len())
	}
}

// What is beyond a bound ends the stream, and what is no question does.
func TestRoutesRefuse(t *testing.T) {
	low, high := newHosts(t)
	r := NewRoutes(high, newShelf("a"), nil)
	defer r.Close()
	connectHosts(t, low, high)
	pull := func(bucket uint32, have int) *routepb.RouteMsg {
		return &routepb.RouteMsg{Kind: &routepb.RouteMsg_Pull{Pull: &routepb.Pull{Bucket: bucket, Have: make([]byte, have)}}}
	}
	for name, c := range map[string]struct {
		msg  *routepb.RouteMsg
		good bool
	}{
		"a good one":       {pull(97, 8), true},
		"no such bucket":   {pull(256, 0), false},
		"half a digest":    {pull(1, 7), false},
		"too many digests": {pull(1, maxHaveBytes+8), false},
		"no kind":          {&routepb.RouteMsg{}, false},
		"an answer":        {&routepb.RouteMsg{Kind: &routepb.RouteMsg_Digest{Digest: &routepb.Digest{}}}, false},
	} {
		st, err := low.NewStream(t.Context(), high.ID(), RoutesProtocol)
		if err != nil {
			t.Fatal(err)
		}
		out, in := wire.NewWriter(st, maxRouteFrame), wire.NewReader(st, maxRouteFrame)
		if err := errors.Join(out.WriteMsg(c.msg), out.Flush()); err != nil {
			t.Fatal(err)
		}
		if err := in.ReadMsg(new(routepb.RouteMsg)); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
		_ = st.Reset()
	}
}

// A peer may have a few exchanges open, and is refused more until some are over.
func TestRoutesTooMany(t *testing.T) {
	low, high := newHosts(t)
	r := NewRoutes(high, newShelf("a"), nil)
	defer r.Close()
	connectHosts(t, low, high)
	ask := func() (network.Stream, error) {
		st, err := low.NewStream(t.Context(), high.ID(), RoutesProtocol)
		if err != nil {
			t.Fatal(err)
		}
		out, in := wire.NewWriter(st, maxRouteFrame), wire.NewReader(st, maxRouteFrame)
		q := &routepb.RouteMsg{Kind: &routepb.RouteMsg_DigestAsk{DigestAsk: &routepb.DigestAsk{}}}
		if err := errors.Join(out.WriteMsg(q), out.Flush()); err != nil {
			t.Fatal(err)
		}
		return st, in.ReadMsg(new(routepb.RouteMsg))
	}
	var open []network.Stream
	for range 4 * maxRouteStreamsPeer {
		st, err := ask()
		if err != nil {
			t.Fatalf("exchange %d: %v", len(open), err)
		}
		open = append(open, st)
	}
	if _, err := ask(); err == nil {
		t.Fatal("one over the bound was answered")
	}
	for _, st := range open {
		_ = st.Reset()
	}
	for r.gate.Working(low.ID()) > 0 && t.Context().Err() == nil {
		runtime.Gosched()
	}
	if _, err := ask(); err != nil {
		t.Fatal(err)
	}
}
