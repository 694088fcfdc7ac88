package storenet

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/pb/storepb"
	"github.com/tallystick/tally/protocols/internal/wire"
)

func newClient(h host.Host, m Meter) *Client {
	return NewClient(h, ClientConfig{Meter: m, MinWait: time.Millisecond, MaxWait: 2 * time.Millisecond})
}

// both runs f for each protocol; beta4 by taking the other away.
func both(t *testing.T, f func(t *testing.T, id protocol.ID, only func(*Server))) {
	t.Run("v3", func(t *testing.T) { f(t, QueryID, func(*Server) {}) })
	t.Run("beta4", func(t *testing.T) {
		f(t, HistoryID, func(s *Server) { s.host.RemoveStreamHandler(QueryID) })
	})
}

// TestQuery: both books hold the same number, and every message comes, once and
// in order.
func TestQuery(t *testing.T) {
	both(t, func(t *testing.T, id protocol.ID, only func(*Server)) {
		server := newHost(t)
		store := newStore(t)
		all := fill(t, store, 250)
		serverMeter := newMeter(1000)
		srv, _ := serve(t, server, store, Config{Meter: serverMeter})
		only(srv)
		client := newHost(t)
		connect(t, client, server)
		clientMeter := newMeter(1000)
		c := newClient(client, clientMeter)
		for _, tc := range []struct {
			name        string
			query       Query
			want        []int
			pages, unit int
		}{
			{"all", Query{PageSize: 100}, ints(0, 250, 1), 3, 250},
			{"default page", Query{Limit: 45}, ints(0, 45, 1), 3, 45},
			{"filter backward", Query{Filter: Filter{ContentTopics: []string{"/tally/1/topic-1/proto"}, PubsubTopic: "/waku/2/rs/1/1", Start: numbered(100).Timestamp}, Backward: true, PageSize: 7}, reversed(ints(103, 250, 6)), 4, 25},
			{"nothing", Query{Filter: Filter{ContentTopics: []string{"/no/1/such/topic"}}}, nil, 0, 0},
		} {
			t.Run(tc.name, func(t *testing.T) {
				before, _ := clientMeter.tab(server.ID())
				var got []Message
				paged := 0
				tc.query.OnPage = func(n int) { paged += n }
				res, err := c.Query(testCtx(t), server.ID(), tc.query, Messages(&got))
				if err != nil {
					t.Fatal(err)
				}
				if len(got) != len(tc.want) || paged != len(got) {
					t.Fatalf("%d messages, %d in pages, want %d", len(got), paged, len(tc.want))
				}
				for i, n := range tc.want {
					want := *all[n]
					if id == HistoryID {
						want.PubsubTopic = tc.query.PubsubTopic // not on the wire
					}
					if got[i].Hash() != want.Hash() {
						t.Fatalf("message %d: %+v", i, got[i])
					}
				}
				if res.Protocol != id || res.Messages != len(got) || res.Pages != tc.pages || res.Units != tally.Amount(tc.unit) {
					t.Fatalf("%+v", res)
				}
				after, held := clientMeter.tab(server.ID())
				served, _ := serverMeter.tab(client.ID())
				if after-before != tally.Amount(tc.unit) || held != 0 || served != after {
					t.Fatalf("client %d (%d held), server %d", after, held, served)
				}
			})
		}
	})
}

// TestClientPage walks page by page with the cursor in the caller's hand, over a
// tab that shortens pages: what was booked is always handed out.
func TestClientPage(t *testing.T) {
	both(t, func(t *testing.T, _ protocol.ID, only func(*Server)) {
		server, client := newHost(t), newHost(t)
		store := newStore(t)
		fill(t, store, 50)
		serverMeter, meter := newMeter(33), newMeter(1000)
		srv, _ := serve(t, server, store, Config{Meter: serverMeter})
		only(srv)
		connect(t, client, server)
		c := newClient(client, meter)
		q := Query{PageSize: 20, Limit: 1, Backward: true}
		var sizes []int
		cursor, last := "", int64(1<<62)
		for {
			page, err := c.Page(testCtx(t), server.ID(), q, cursor)
			if err != nil || int(page.Units) != len(page.Messages) {
				t.Fatalf("%+v, %v", page, err)
			}
			for _, m := range page.Messages {
				if m.Timestamp >= last {
					t.Fatal("not newest first")
				}
				last = m.Timestamp
			}
			sizes = append(sizes, len(page.Messages))
			if cursor = page.Next; cursor == "" {
				break
			}
			if booked, _ := serverMeter.tab(client.ID()); booked == 33 {
				serverMeter.settle(client.ID(), 33)
			}
		}
		if !slices.Equal(sizes, []int{20, 13, 17}) {
			t.Fatal(sizes)
		}
		meter.want(t, server.ID(), 50, 0)
		for _, bad := range []string{"q", "q!", "qAAAA", "h!", "h_____w", "x", "xAAAA"} {
			if _, err := c.Page(testCtx(t), server.ID(), q, bad); !errors.Is(err, ErrCursorText) {
				t.Errorf("%q: %v", bad, err)
			}
		}
	})
}

func reversed(in []int) []int { slices.Reverse(in); return in }

func connect(t *testing.T, from, to host.Host) {
	t.Helper()
	from.Peerstore().AddAddrs(to.ID(), to.Addrs(), time.Hour)
	if _, err := from.Network().DialPeer(testCtx(t), to.ID()); err != nil {
		t.Fatal(err)
	}
}

// TestQueryModel: random stores, filters, page sizes, limits, both directions
// and protocols over one pair of hosts, against a sorted slice.
func TestQueryModel(t *testing.T) {
	client := newHost(t)
	hosts := map[protocol.ID]host.Host{QueryID: newHost(t), HistoryID: newHost(t)}
	for _, h := range hosts {
		connect(t, client, h)
	}
	rapid.Check(t, func(rt *rapid.T) {
		disk := durabletest.NewMem()
		defer disk.Close()
		store, err := OpenStore(context.Background(), disk)
		if err != nil {
			rt.Fatal(err)
		}
		var all []*Message
		for i := range rapid.IntRange(0, 30).Draw(rt, "messages") {
			m := numbered(i)
			m.Timestamp = rapid.Int64Range(1, 8).Draw(rt, "time") // many of one time
			all = append(all, m)
		}
		if _, err := store.Add(context.Background(), all...); err != nil {
			rt.Fatal(err)
		}
		id := rapid.SampledFrom([]protocol.ID{QueryID, HistoryID}).Draw(rt, "protocol")
		server := hosts[id]
		meter := newMeter(tally.MaxAmount / 2)
		srv, err := NewServer(server, store, Config{Meter: meter, Logger: quiet()})
		if err != nil {
			rt.Fatal(err)
		}
		defer srv.Close()
		if id == HistoryID {
			server.RemoveStreamHandler(QueryID)
		}
		// What identify told of the server of the round before may be old.
		if err := client.Peerstore().SetProtocols(server.ID(), id); err != nil {
			rt.Fatal(err)
		}
		q := Query{
			Filter: Filter{
				PubsubTopic:   rapid.SampledFrom([]string{"/waku/2/rs/1/0", "/waku/2/rs/1/1"}).Draw(rt, "pubsub"),
				ContentTopics: rapid.SliceOfN(rapid.SampledFrom([]string{numbered(0).ContentTopic, numbered(1).ContentTopic, numbered(2).ContentTopic}), 0, 3).Draw(rt, "topics"),
				Start:         rapid.Int64Range(0, 5).Draw(rt, "start"),
				End:           rapid.Int64Range(0, 9).Draw(rt, "span"),
			},
			Backward: rapid.Bool().Draw(rt, "backward"),
			PageSize: rapid.IntRange(1, 12).Draw(rt, "size"),
			Limit:    rapid.IntRange(0, 20).Draw(rt, "limit"),
		}
		if q.End != 0 {
			q.End = max(q.End, q.Start)
		}
		var want []Hash
		for _, m := range all {
			if fits(&q.Filter, m.Hash(), m) {
				want = append(want, m.Hash())
			}
		}
		at := map[Hash]int64{}
		for _, m := range all {
			at[m.Hash()] = m.Timestamp
		}
		slices.SortFunc(want, func(a, b Hash) int {
			order := int(at[a] - at[b])
			if order == 0 {
				order = bytes.Compare(a[:], b[:])
			}
			if q.Backward {
				order = -order
			}
			return order
		})
		if q.Limit > 0 {
			want = want[:min(len(want), q.Limit)]
		}
		var got []Hash
		_, err = newClient(client, nil).Query(testCtx(t), server.ID(), q, func(h Hash, _ *Message) error {
			got = append(got, h)
			return nil
		})
		if err != nil || !slices.Equal(got, want) {
			rt.Fatalf("%d messages, want %d: %v", len(got), len(want), err)
		}
		if units, _ := meter.tab(client.ID()); units != tally.Amount(len(want)) {
			rt.Fatalf("%d units for %d messages", units, len(want))
		}
	})
}

func TestLookUp(t *testing.T) {
	client, server := pair(t)
	store := newStore(t)
	all := fill(t, store, 10)
	meter := newMeter(100)
	serve(t, server, store, Config{Meter: meter})
	q := Query{Filter: Filter{Hashes: []Hash{all[7].Hash(), {9}, all[3].Hash()}}, PageSize: 1}
	for _, q.NoData = range []bool{false, true} {
		var got []Hash
		_, err := newClient(client, nil).Query(testCtx(t), server.ID(), q, func(h Hash, m *Message) error {
			if (m == nil) != q.NoData {
				t.Error(m)
			}
			got = append(got, h)
			return nil
		})
		if err != nil || !slices.Equal(got, []Hash{all[3].Hash(), all[7].Hash()}) {
			t.Fatal(got, err)
		}
	}
	meter.want(t, client.ID(), 4, 0)
}

func TestUnsupported(t *testing.T) {
	client, server := pair(t)
	meter := newMeter(100)
	c := newClient(client, meter)
	_, err := c.Query(testCtx(t), server.ID(), Query{}, nil)
	if !errors.Is(err, ErrUnsupported) {
		t.Fatal(err)
	}
	srv, _ := serve(t, server, newStore(t), Config{})
	server.RemoveStreamHandler(QueryID)
	_ = srv
	_, err = c.Query(testCtx(t), server.ID(), Query{NoData: true}, nil)
	if !errors.Is(err, ErrUnsupported) {
		t.Fatal(err)
	}
	// The client holds that the server still speaks it, and asks at once.
	if err := client.Peerstore().AddProtocols(server.ID(), QueryID); err != nil {
		t.Fatal(err)
	}
	_, err = c.Query(testCtx(t), server.ID(), Query{NoData: true}, nil)
	if !errors.Is(err, ErrUnsupported) || errors.Is(err, ErrLost) {
		t.Fatal(err)
	}
	meter.want(t, server.ID(), 0, 0)
	if meter.released != 3 {
		t.Fatal(meter.released)
	}
}

// TestWaitsForSettlement: a client whose peer says 402 settles and goes on to the
// end; nothing comes twice or is booked twice.
func TestWaitsForSettlement(t *testing.T) {
	both(t, func(t *testing.T, _ protocol.ID, only func(*Server)) {
		server, client := newHost(t), newHost(t)
		store := newStore(t)
		fill(t, store, 300)
		serverMeter, clientMeter := newMeter(125), newMeter(1000)
		srv, outcomes := serve(t, server, store, Config{Meter: serverMeter})
		only(srv)
		connect(t, client, server)
		ended := make(chan struct{})
		settled := make(chan int)
		go func() { // ends with ended
			n := 0
			for {
				select {
				case o := <-outcomes:
					if o.Status == StatusPaymentRequired {
						n++
						serverMeter.settle(client.ID(), 125)
					}
				case <-ended:
					settled <- n
					return
				}
			}
		}()
		seen := map[Hash]bool{}
		res, err := newClient(client, clientMeter).Query(testCtx(t), server.ID(), Query{PageSize: 100}, func(h Hash, _ *Message) error {
			if seen[h] {
				t.Errorf("%s twice", h)
			}
			seen[h] = true
			return nil
		})
		close(ended)
		if n := <-settled; err != nil || len(seen) != 300 || n < 2 {
			t.Fatalf("%d messages, %d settlements, %v", len(seen), n, err)
		}
		if res.Units != 300 {
			t.Fatalf("%+v", res)
		}
		clientMeter.want(t, server.ID(), 300, 0)
	})
}

// TestConsumeWaits: our own tab is full; the query goes on when it is settled.
func TestConsumeWaits(t *testing.T) {
	client, server := pair(t)
	store := newStore(t)
	fill(t, store, 100)
	serve(t, server, store, Config{})
	meter := newMeter(40)
	meter.onWait = func(p peer.ID) { meter.settle(p, 40) }
	res, err := newClient(client, meter).Query(testCtx(t), server.ID(), Query{}, func(Hash, *Message) error { return nil })
	if err != nil || res.Messages != 100 || meter.waits < 2 {
		t.Fatalf("%+v, %d waits, %v", res, meter.waits, err)
	}
}

func TestNoCredit(t *testing.T) {
	client, server := pair(t)
	store := newStore(t)
	fill(t, store, 100)
	serverMeter := newMeter(30)
	serve(t, server, store, Config{Meter: serverMeter})
	drop := func(Hash, *Message) error { return nil }

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	meter := newMeter(20)
	meter.onWait = func(peer.ID) { cancel() }
	res, err := newClient(client, meter).Query(ctx, server.ID(), Query{}, drop)
	credit, ok := errors.AsType[*CreditError](err)
	if !ok || credit.Units != 20 || !strings.Contains(err.Error(), "owes 20 of 20 units") || !strings.Contains(err.Error(), "tally settle") {
		t.Fatal(err)
	}
	if res.Messages != 20 || res.Units != 20 {
		t.Fatalf("%+v", res)
	}

	// Ours would go on, theirs does not. On a slow machine it is the stream's
	// deadline that ends the wait, not the context's, and the first may come before
	// the first refusal.
	serverMeter.book(client.ID(), 10)
	var refused *RefusedError
	for within := 50 * time.Millisecond; refused == nil && within < patience; within *= 2 {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		_, err = newClient(client, newMeter(1000)).Query(ctx, server.ID(), Query{}, drop)
		cancel()
		refused, _ = errors.AsType[*RefusedError](err)
	}
	if refused == nil || refused.Status != StatusPaymentRequired || !strings.Contains(err.Error(), "owes 30 of 30 units") ||
		!strings.Contains(err.Error(), "tally settle") || !strings.Contains(err.Error(), "deadline") {
		t.Fatal(err)
	}
	// A client without a tab has nothing to wait for.
	_, err = newClient(client, nil).Query(testCtx(t), server.ID(), Query{}, drop)
	if _, ok := errors.AsType[*RefusedError](err); !ok || errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}

// TestSmallTab: pages shrink to what the tab can ever hold.
func TestSmallTab(t *testing.T) {
	client, server := pair(t)
	store := newStore(t)
	fill(t, store, 50)
	serve(t, server, store, Config{})
	meter := newMeter(1000)
	meter.tooLarge = 12
	res, err := newClient(client, meter).Query(testCtx(t), server.ID(), Query{PageSize: 100}, func(Hash, *Message) error { return nil })
	if err != nil || res.Messages != 50 || res.Pages != 5 {
		t.Fatalf("%+v, %v", res, err)
	}
	if !slices.Equal(meter.commits, []tally.Amount{12, 12, 12, 12, 2}) {
		t.Fatal(meter.commits)
	}
	meter.tooLarge = 0
	meter.limit = 0
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := newClient(client, meter).Query(ctx, server.ID(), Query{PageSize: 3}, nil); err == nil {
		t.Fatal("no error")
	}
}

func TestCallbackError(t *testing.T) {
	client, server := pair(t)
	store := newStore(t)
	fill(t, store, 50)
	serve(t, server, store, Config{})
	meter := newMeter(1000)
	stop := errors.New("enough")
	res, err := newClient(client, meter).Query(testCtx(t), server.ID(), Query{}, func(Hash, *Message) error { return stop })
	if !errors.Is(err, stop) || res.Messages != 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	meter.want(t, server.ID(), 20, 0) // it came, so it is owed
}

// hostile answers 3.0.0 by script. requests counts them.
type hostile struct {
	mu       sync.Mutex
	requests int
}

func (h *hostile) serve(t *testing.T, on host.Host, id protocol.ID, answer func(n int, s network.Stream, frame []byte)) {
	on.SetStreamHandler(id, func(s network.Stream) {
		defer s.Close()
		_ = s.SetDeadline(time.Now().Add(patience))
		frame, err := wire.NewReader(s, 1<<20).ReadFrame()
		if err != nil {
			t.Errorf("request: %v", err)
			return
		}
		h.mu.Lock()
		n := h.requests
		h.requests++
		h.mu.Unlock()
		answer(n, s, frame)
	})
}

func page(id string, from, to int) *storepb.StoreQueryResponse {
	res := &storepb.StoreQueryResponse{RequestId: id, StatusCode: new(uint32(200)), StatusDesc: new("OK")}
	for i := from; i < to; i++ {
		m := numbered(i)
		h := m.Hash()
		res.Messages = append(res.Messages, &storepb.WakuMessageKeyValue{MessageHash: h[:], Message: m.proto(), PubsubTopic: &m.PubsubTopic})
	}
	return res
}

// TestHostileQuery is what a 3.0.0 server may try; in all cases the caller gets
// a typed error, no wrong message, and a booking of at most what was asked for.
func TestHostileQuery(t *testing.T) {
	endless := bytes.Repeat([]byte{1}, 32)
	spoil := func(i int, f func(kv *storepb.WakuMessageKeyValue)) func(int, string) proto.Message {
		return func(_ int, id string) proto.Message {
			res := page(id, 0, 5)
			f(res.Messages[i])
			return res
		}
	}
	rehash := func(kv *storepb.WakuMessageKeyValue) {
		h := messageFromProto(kv.Message, kv.GetPubsubTopic()).Hash()
		kv.MessageHash = h[:]
	}
	pub := "/waku/2/rs/1/0"
	for _, tc := range []struct {
		name   string
		query  Query
		answer func(n int, id string) proto.Message
		is     error
		booked tally.Amount
		seen   int
		lost   int
	}{
		{name: "more than asked", answer: func(_ int, id string) proto.Message { return page(id, 0, 11) }, is: ErrTooMany, booked: 10},
		{name: "a million empty ones", answer: func(_ int, id string) proto.Message {
			return raw(bytes.Repeat([]byte{0xa2, 0x01, 0x00}, 1_000_000))
		}, is: ErrTooMany, booked: 10},
		{name: "another request", answer: func(int, string) proto.Message { return page("other", 0, 5) }, is: ErrAnswer, booked: 5},
		{name: "wrong hash", answer: spoil(2, func(kv *storepb.WakuMessageKeyValue) { kv.MessageHash = endless }), is: ErrAnswer, booked: 5},
		{name: "short hash", answer: spoil(2, func(kv *storepb.WakuMessageKeyValue) { kv.MessageHash = endless[:31] }), is: ErrAnswer, booked: 5},
		{name: "no data", answer: spoil(2, func(kv *storepb.WakuMessageKeyValue) { kv.Message = nil }), is: ErrAnswer, booked: 5},
		{name: "other payload", answer: spoil(2, func(kv *storepb.WakuMessageKeyValue) { kv.Message.Payload = []byte("forged") }), is: ErrAnswer, booked: 5},
		{name: "other content topic", query: Query{Filter: Filter{ContentTopics: []string{numbered(0).ContentTopic}}}, answer: func(_ int, id string) proto.Message { return page(id, 0, 2) }, is: ErrAnswer, booked: 2},
		{name: "other pubsub topic", query: Query{Filter: Filter{PubsubTopic: pub}}, answer: func(_ int, id string) proto.Message { return page(id, 0, 2) }, is: ErrAnswer, booked: 2},
		{name: "too early", query: Query{Filter: Filter{Start: numbered(1).Timestamp}}, answer: func(_ int, id string) proto.Message { return page(id, 0, 2) }, is: ErrAnswer, booked: 2},
		{name: "too late", query: Query{Filter: Filter{End: numbered(1).Timestamp}}, answer: func(_ int, id string) proto.Message { return page(id, 0, 3) }, is: ErrAnswer, booked: 3},
		{name: "hash not asked for", query: Query{Filter: Filter{Hashes: []Hash{numbered(0).Hash()}}}, answer: func(_ int, id string) proto.Message { return page(id, 0, 2) }, is: ErrAnswer, booked: 2},
		{name: "out of order", answer: spoil(0, func(kv *storepb.WakuMessageKeyValue) {
			kv.Message.Timestamp = new(int64(1 << 62))
			rehash(kv)
		}), is: ErrAnswer, booked: 5},
		{name: "out of order backward", query: Query{Backward: true}, answer: func(_ int, id string) proto.Message {
			res := page(id, 0, 5)
			slices.Reverse(res.Messages)
			return res
		}, is: ErrAnswer, booked: 5},
		{name: "the same page again", answer: func(_ int, id string) proto.Message {
			res := page(id, 0, 5)
			res.PaginationCursor = endless
			return res
		}, is: ErrAnswer, booked: 10, seen: 5},
		{name: "one message again and again", answer: func(_ int, id string) proto.Message {
			res := page(id, 4, 5)
			res.PaginationCursor = res.Messages[0].MessageHash
			return res
		}, is: ErrAnswer, booked: 2, seen: 1},
		{name: "hashes again and again", query: Query{NoData: true}, answer: func(_ int, id string) proto.Message {
			res := page(id, 4, 6)
			res.PaginationCursor = res.Messages[0].MessageHash
			return res
		}, is: ErrAnswer, booked: 4, seen: 2},
		{name: "endless empty pages", answer: func(_ int, id string) proto.Message {
			res := page(id, 0, 0)
			res.PaginationCursor = endless
			return res
		}, is: ErrNoProgress},
		{name: "short cursor", answer: func(_ int, id string) proto.Message {
			res := page(id, 0, 5)
			res.PaginationCursor = endless[:3]
			return res
		}, is: ErrAnswer, booked: 5},
		{name: "garbage", answer: func(int, string) proto.Message { return raw{0xff, 0xff} }, is: wire.ErrGarbage},
		{name: "too large", answer: func(int, string) proto.Message { return raw(make([]byte, maxAnswerBytes+1)) }, is: wire.ErrFrameTooLarge, lost: 1},
		{name: "no status", answer: func(_ int, id string) proto.Message {
			res := page(id, 0, 5)
			res.StatusCode = nil
			return res
		}},
		{name: "long description", answer: func(_ int, id string) proto.Message {
			return &storepb.StoreQueryResponse{RequestId: id, StatusCode: new(uint32(500)), StatusDesc: new(strings.Repeat("é", 1<<20))}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			client, server := pair(t)
			var h hostile
			h.serve(t, server, QueryID, func(n int, s network.Stream, frame []byte) {
				var req storepb.StoreQueryRequest
				if err := proto.Unmarshal(frame, &req); err != nil {
					t.Error(err)
				}
				w := wire.NewWriter(s, 8<<20)
				switch m := tc.answer(n, req.GetRequestId()).(type) {
				case raw:
					_ = w.WriteFrame(m)
				default:
					_ = w.WriteMsg(m)
				}
				_ = w.Flush() // the client may have reset it
			})
			meter := newMeter(1000)
			tc.query.PageSize = 10
			seen := 0
			_, err := newClient(client, meter).Query(testCtx(t), server.ID(), tc.query, func(Hash, *Message) error {
				seen++
				return nil
			})
			if tc.is != nil && !errors.Is(err, tc.is) || err == nil {
				t.Fatalf("got %v, want %v", err, tc.is)
			}
			if refused, ok := errors.AsType[*RefusedError](err); tc.is == nil && (!ok || len(refused.Desc) > maxDesc) {
				t.Fatalf("got %v, want a refusal", err)
			}
			if seen != tc.seen || h.requests > maxEmptyPages+1 {
				t.Fatalf("%d messages came through, %d requests", seen, h.requests)
			}
			meter.want(t, server.ID(), tc.booked, tally.Amount(10*tc.lost))
			if meter.lost != tc.lost {
				t.Fatalf("%d lost", meter.lost)
			}
		})
	}
}

// raw is a frame that is sent as it is.
type raw []byte

func (raw) ProtoReflect() protoreflect.Message { return nil }

// TestHostileHistory: the same for what differs in 2.0.0-beta4.
func TestHostileHistory(t *testing.T) {
	messages := func(from, to int) (out []*storepb.WakuMessage) {
		for i := from; i < to; i++ {
			out = append(out, numbered(i).proto())
		}
		return out
	}
	cursor := &storepb.PagingInfo{Cursor: &storepb.Index{Digest: make([]byte, 32)}}
	for _, tc := range []struct {
		name   string
		answer func(id string) *storepb.HistoryRPC
		is     error
		status Status
		booked tally.Amount
	}{
		{"more than asked", func(id string) *storepb.HistoryRPC {
			return &storepb.HistoryRPC{RequestId: id, Response: &storepb.HistoryResponse{Messages: messages(0, 11)}}
		}, ErrTooMany, 0, 10},
		{"no response", func(id string) *storepb.HistoryRPC { return &storepb.HistoryRPC{RequestId: id} }, ErrAnswer, 0, 0},
		{"another request", func(string) *storepb.HistoryRPC {
			return &storepb.HistoryRPC{Response: &storepb.HistoryResponse{Messages: messages(0, 1)}}
		}, ErrAnswer, 0, 1},
		{"endless empty pages", func(id string) *storepb.HistoryRPC {
			return &storepb.HistoryRPC{RequestId: id, Response: &storepb.HistoryResponse{PagingInfo: cursor}}
		}, ErrNoProgress, 0, 0},
		{"the same page again", func(id string) *storepb.HistoryRPC {
			return &storepb.HistoryRPC{RequestId: id, Response: &storepb.HistoryResponse{Messages: messages(0, 3), PagingInfo: cursor}}
		}, ErrAnswer, 0, 6},
		{"invalid cursor", func(id string) *storepb.HistoryRPC {
			return &storepb.HistoryRPC{Response: &storepb.HistoryResponse{Error: storepb.HistoryResponse_INVALID_CURSOR.Enum()}}
		}, nil, 400, 0},
		{"unknown error", func(id string) *storepb.HistoryRPC {
			return &storepb.HistoryRPC{Response: &storepb.HistoryResponse{Error: storepb.HistoryResponse_Error(77).Enum()}}
		}, nil, 77, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			client, server := pair(t)
			var h hostile
			h.serve(t, server, HistoryID, func(_ int, s network.Stream, frame []byte) {
				var req storepb.HistoryRPC
				if err := proto.Unmarshal(frame, &req); err != nil {
					t.Error(err)
				}
				w := wire.NewWriter(s, 1<<20)
				_ = errors.Join(w.WriteMsg(tc.answer(req.GetRequestId())), w.Flush())
			})
			meter := newMeter(1000)
			_, err := newClient(client, meter).Query(testCtx(t), server.ID(), Query{PageSize: 10}, func(Hash, *Message) error { return nil })
			if tc.is != nil && !errors.Is(err, tc.is) || err == nil {
				t.Fatalf("got %v, want %v", err, tc.is)
			}
			if refused, ok := errors.AsType[*RefusedError](err); tc.is == nil && (!ok || refused.Status != tc.status) {
				t.Fatalf("got %v", err)
			}
			meter.want(t, server.ID(), tc.booked, 0)
		})
	}
}

// TestLost: the stream breaks after the request left. The reservation stays with
// the ledger; before it left, it is given back.
func TestLost(t *testing.T) {
	for name, answer := range map[string]func(s network.Stream){
		"reset":     func(s network.Stream) { _ = s.Reset() },
		"no answer": func(s network.Stream) { _ = s.CloseWrite() },
		"cut": func(s network.Stream) {
			_, _ = s.Write([]byte{100, 1, 2, 3})
			_ = s.CloseWrite()
		},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := pair(t)
			var h hostile
			h.serve(t, server, QueryID, func(_ int, s network.Stream, _ []byte) { answer(s) })
			meter := newMeter(1000)
			_, err := newClient(client, meter).Query(testCtx(t), server.ID(), Query{PageSize: 10}, nil)
			if !errors.Is(err, ErrLost) {
				t.Fatal(err)
			}
			meter.want(t, server.ID(), 0, 10)
			if meter.lost != 1 {
				t.Fatal(meter.lost)
			}
		})
	}
	t.Run("ctx", func(t *testing.T) {
		client, server := pair(t)
		var h hostile
		ctx, cancel := context.WithCancel(context.Background())
		h.serve(t, server, QueryID, func(_ int, s network.Stream, _ []byte) {
			cancel()
			_, _ = s.Read(make([]byte, 1)) // until the client resets
		})
		meter := newMeter(1000)
		_, err := newClient(client, meter).Query(ctx, server.ID(), Query{PageSize: 10}, nil)
		if !errors.Is(err, ErrLost) || !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	})
	t.Run("never left", func(t *testing.T) {
		client, server := pair(t)
		serverID := server.ID()
		_ = server.Close()
		meter := newMeter(1000)
		_, err := newClient(client, meter).Query(testCtx(t), serverID, Query{PageSize: 10}, nil)
		if err == nil || errors.Is(err, ErrLost) {
			t.Fatal(err)
		}
		meter.want(t, serverID, 0, 0)
	})
}

// TestWriteFails: the server has booked, and the client goes away before the
// response: the booking stands.
func TestWriteFails(t *testing.T) {
	client, server := pair(t)
	store := newStore(t)
	fill(t, store, 20)
	g := &commitGate{fakeMeter: newMeter(100)}
	_, outcomes := serve(t, server, store, Config{Meter: g})
	s := open(t, client, server.ID(), QueryID)
	g.reset = func() {
		// Resets at the server's side: the next Write of the handler fails.
		for _, conn := range server.Network().ConnsToPeer(client.ID()) {
			for _, st := range conn.GetStreams() {
				if st.Protocol() == QueryID {
					_ = st.Reset()
				}
			}
		}
	}
	w := wire.NewWriter(s, 100)
	if err := errors.Join(w.WriteMsg(&storepb.StoreQueryRequest{RequestId: "goes away"}), w.Flush()); err != nil {
		t.Fatal(err)
	}
	o := next(t, outcomes)
	if o.Units != 20 || o.Err == nil {
		t.Fatalf("outcome %+v", o)
	}
	g.want(t, client.ID(), 20, 0)
}

// commitGate calls reset when a booking has been made.
type commitGate struct {
	*fakeMeter
	reset func()
}

func (g *commitGate) Serve(ctx context.Context, p peer.ID, units tally.Amount) (Hold, error) {
	h, err := g.fakeMeter.Serve(ctx, p, units)
	return &commitHold{h, g}, err
}

type commitHold struct {
	Hold
	g *commitGate
}

func (h *commitHold) Commit(units tally.Amount) error {
	err := h.Hold.Commit(units)
	h.g.reset()
	return err
}
