package storenet

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newStore(t testing.TB) *Store {
	t.Helper()
	disk := durabletest.NewMem()
	t.Cleanup(func() {
		if err := disk.Close(); err != nil {
			t.Error(err)
		}
	})
	return openStore(t, disk)
}

func openStore(t testing.TB, disk Disk) *Store {
	t.Helper()
	s, err := OpenStore(context.Background(), disk)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// numbered is message i: every tenth nanosecond, one content topic of three, one
// pubsub topic of two.
func numbered(i int) *Message {
	return &Message{
		PubsubTopic:  fmt.Sprintf("/waku/2/rs/1/%d", i%2),
		ContentTopic: fmt.Sprintf("/tally/1/topic-%d/proto", i%3),
		Payload:      fmt.Appendf(nil, "message %d", i),
		Timestamp:    1_700_000_000_000_000_000 + 10*int64(i),
	}
}

func fill(t testing.TB, s *Store, n int) []*Message {
	t.Helper()
	var all []*Message
	for i := range n {
		all = append(all, numbered(i))
	}
	added, err := s.Add(context.Background(), all...)
	if err != nil || added != n {
		t.Fatalf("added %d of %d: %v", added, n, err)
	}
	return all
}

func hashes(p Page) []Hash {
	var out []Hash
	for _, e := range p.Entries {
		out = append(out, e.Hash)
	}
	return out
}

func TestAddOnce(t *testing.T) {
	s := newStore(t)
	ctx := context.Background()
	m := numbered(1)
	for i, want := range []int{1, 0} {
		added, err := s.Add(ctx, m, m)
		if err != nil || added != want {
			t.Fatalf("round %d: added %d: %v", i, added, err)
		}
	}
	if _, err := s.Add(ctx, numbered(2), &Message{}); !errors.Is(err, ErrMessage) {
		t.Fatal(err)
	}
	page, err := s.Page(ctx, PageRequest{Limit: 10})
	if err != nil || len(page.Entries) != 1 || page.Entries[0].Message.Hash() != m.Hash() {
		t.Fatalf("%+v, %v", page, err)
	}
}

// TestAddBetween: a batch whose places have many others between them, so that
// the scan for what is there gives up, finds the same.
func TestAddBetween(t *testing.T) {
	s := newStore(t)
	all := fill(t, s, 1000)
	batch := []*Message{numbered(2000), all[999], all[0], all[500], numbered(-1), all[501]}
	for _, want := range []int{2, 0} {
		if added, err := s.Add(context.Background(), batch...); err != nil || added != want {
			t.Fatalf("added %d, want %d: %v", added, want, err)
		}
	}
}

func TestPageOrderAtTheEdges(t *testing.T) {
	s := newStore(t)
	ctx := context.Background()
	times := []int64{math.MinInt64, -1, 0, 1, math.MaxInt64 - 1, math.MaxInt64}
	for _, at := range slices.Backward(times) {
		if _, err := s.Add(ctx, &Message{PubsubTopic: "p", ContentTopic: "c", Timestamp: at}); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		start, end int64
		want       []int64
	}{
		{0, 0, times},
		{1, 0, times[3:]},
		{0, 1, times[:4]},
		{-1, -1, times[1:2]},
		{math.MaxInt64, 0, times[5:]},
		{0, math.MaxInt64, times},
		{0, math.MaxInt64 - 1, times[:5]},
		{math.MinInt64, math.MinInt64, times[:1]},
	} {
		for _, backward := range []bool{false, true} {
			page, err := s.Page(ctx, PageRequest{Filter: Filter{Start: tc.start, End: tc.end}, Backward: backward, Limit: 10})
			if err != nil {
				t.Fatal(err)
			}
			var got []int64
			for _, e := range page.Entries {
				got = append(got, e.Message.Timestamp)
			}
			if !slices.Equal(got, tc.want) || page.More {
				t.Errorf("%d to %d, backward %v: %v, more %v", tc.start, tc.end, backward, got, page.More)
			}
		}
	}
}

func TestPageMaxBytes(t *testing.T) {
	s := newStore(t)
	fill(t, s, 20)
	for _, backward := range []bool{false, true} {
		page, err := s.Page(context.Background(), PageRequest{Limit: 20, MaxBytes: 1, Backward: backward})
		if err != nil || len(page.Entries) != 1 || !page.More {
			t.Fatalf("%d entries, more %v, %v", len(page.Entries), page.More, err)
		}
		want := numbered(0)
		if backward {
			want = numbered(19)
		}
		if page.Entries[0].Hash != want.Hash() {
			t.Fatal("not the first in the direction of paging")
		}
	}
}

func TestUnknownCursor(t *testing.T) {
	s := newStore(t)
	fill(t, s, 3)
	_, err := s.Page(context.Background(), PageRequest{Limit: 1, Cursor: new(Hash)})
	if !errors.Is(err, ErrCursor) {
		t.Fatal(err)
	}
}

func TestDamagedRecord(t *testing.T) {
	disk := durabletest.NewMem()
	defer disk.Close()
	s := openStore(t, disk)
	fill(t, s, 1)
	var b durable.Batch
	m := numbered(0)
	key := keyTime + placeOf(m.Timestamp, m.Hash())
	b.Put(key, []byte("not what was written"))
	if err := disk.Commit(context.Background(), &b); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Page(context.Background(), PageRequest{Limit: 1}); !errors.Is(err, durable.ErrDamaged) {
		t.Fatal(err)
	}
}

// TestPageModel walks random stores with random filters, page sizes and both
// directions, and compares with a sorted slice: every page as a whole, the
// cursor, and that the walk ends exactly at the end.
func TestPageModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		disk := durabletest.NewMem()
		defer disk.Close()
		s, err := OpenStore(context.Background(), disk)
		if err != nil {
			t.Fatal(err)
		}
		ctx := context.Background()
		topics := []string{"/a/1/x/proto", "/a/1/y/proto", "/b/1/x/proto"}
		pubsubs := []string{"/waku/2/rs/1/0", "/waku/2/rs/1/1"}
		genMessage := rapid.Custom(func(t *rapid.T) *Message {
			return &Message{
				ContentTopic: rapid.SampledFrom(topics).Draw(t, "content"),
				PubsubTopic:  rapid.SampledFrom(pubsubs).Draw(t, "pubsub"),
				Timestamp:    rapid.Int64Range(-3, 12).Draw(t, "time"),
				Payload:      []byte{rapid.Byte().Draw(t, "payload")},
			}
		})
		model := map[Hash]*Message{}
		for _, batch := range rapid.SliceOfN(rapid.SliceOfN(genMessage, 1, 8), 0, 6).Draw(t, "batches") {
			want := 0
			for _, m := range batch {
				if model[m.Hash()] == nil {
					want++
					model[m.Hash()] = m
				}
			}
			if got, err := s.Add(ctx, batch...); err != nil || got != want {
				t.Fatalf("added %d, want %d: %v", got, want, err)
			}
		}
		f := Filter{
			PubsubTopic:   rapid.SampledFrom([]string{"", pubsubs[0], pubsubs[1], "/nobody"}).Draw(t, "pubsub"),
			ContentTopics: rapid.SliceOfN(rapid.SampledFrom(append(topics, "/no/1/body/proto")), 0, 3).Draw(t, "topics"),
			Start:         rapid.Int64Range(-4, 13).Draw(t, "start"),
			End:           rapid.Int64Range(-4, 13).Draw(t, "end"),
		}
		if len(model) > 0 && rapid.Bool().Draw(t, "look up") {
			var all []Hash
			for h := range model {
				all = append(all, h)
			}
			slices.SortFunc(all, func(a, b Hash) int { return slices.Compare(a[:], b[:]) })
			f.Hashes = append(rapid.SliceOfN(rapid.SampledFrom(all), 1, 5).Draw(t, "hashes"), Hash{1})
		}
		var want []Hash
		for h, m := range model {
			if fits(&f, h, m) {
				want = append(want, h)
			}
		}
		slices.SortFunc(want, func(a, b Hash) int {
			if d := model[a].Timestamp - model[b].Timestamp; d != 0 {
				return int(d)
			}
			return slices.Compare(a[:], b[:])
		})
		backward := rapid.Bool().Draw(t, "backward")
		size := rapid.IntRange(1, 12).Draw(t, "size")
		noData := rapid.Bool().Draw(t, "no data")
		var cursor *Hash
		for {
			page, err := s.Page(ctx, PageRequest{Filter: f, Backward: backward, Cursor: cursor, Limit: size, NoData: noData})
			if err != nil {
				t.Fatal(err)
			}
			n := min(size, len(want))
			part, rest := want[:n], want[n:]
			if backward {
				part, rest = want[len(want)-n:], want[:len(want)-n]
			}
			if got := hashes(page); !slices.Equal(got, part) || page.More != (len(rest) > 0) {
				t.Fatalf("page %v, want %v; more %v, rest %d", got, part, page.More, len(rest))
			}
			for _, e := range page.Entries {
				if (e.Message == nil) != noData || !noData && e.Message.Hash() != e.Hash {
					t.Fatalf("entry %+v", e)
				}
			}
			want = rest
			if n == 0 {
				break
			}
			// One page more than More promises: js-waku ends at an empty one.
			h := page.last(backward).Hash
			cursor = &h
		}
		if len(want) != 0 {
			t.Fatalf("%d not paged", len(want))
		}
	})
}

// fits is the model of a filter.
func fits(f *Filter, h Hash, m *Message) bool {
	return (f.PubsubTopic == "" || f.PubsubTopic == m.PubsubTopic) &&
		(len(f.ContentTopics) == 0 || slices.Contains(f.ContentTopics, m.ContentTopic)) &&
		(f.Start == 0 || m.Timestamp >= f.Start) && (f.End == 0 || m.Timestamp <= f.End) &&
		(len(f.Hashes) == 0 || slices.Contains(f.Hashes, h))
}
