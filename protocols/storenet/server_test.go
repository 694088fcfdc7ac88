package storenet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-varint"
	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/pb/storepb"
	"github.com/tallystick/tally/protocols/internal/wire"
)

func TestLimitsValidate(t *testing.T) {
	if err := DefaultLimits().Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Limits){
		"MaxRequestBytes":  func(l *Limits) { l.MaxRequestBytes = 0 },
		"MaxResponseBytes": func(l *Limits) { l.MaxResponseBytes = MaxMessageBytes },
		"MaxPage":          func(l *Limits) { l.MaxPage = 0 },
		"DefaultPage":      func(l *Limits) { l.DefaultPage = l.MaxPage + 1 },
		"MaxContentTopics": func(l *Limits) { l.MaxContentTopics = -1 },
		"MaxHashes":        func(l *Limits) { l.MaxHashes = 0 },
		"MaxRequests":      func(l *Limits) { l.MaxRequests = 0 },
		"MaxPeerRequests":  func(l *Limits) { l.MaxPeerRequests = 0 },
		"RequestTimeout":   func(l *Limits) { l.RequestTimeout = 0 },
	} {
		l := DefaultLimits()
		spoil(&l)
		if err := l.Validate(); !errors.Is(err, ErrLimits) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestQueryRequests is the table of what 3.0.0 answers to a single request.
func TestQueryRequests(t *testing.T) {
	client, server := pair(t)
	store := newStore(t)
	all := fill(t, store, 250)
	_, outcomes := serve(t, server, store, Config{})
	hash := func(i int) []byte { h := all[i].Hash(); return h[:] }
	topics := func(n int) []string { return slices.Repeat([]string{"/tally/1/topic-0/proto"}, n) }
	const (
		noCursor = -1
		topic0   = "/tally/1/topic-0/proto"
	)
	for _, tc := range []struct {
		name     string
		req      *storepb.StoreQueryRequest
		status   Status
		desc     string
		messages []int // numbers
		cursor   int
	}{
		{"default page is 20, backward", &storepb.StoreQueryRequest{}, 200, "OK", ints(230, 250, 1), 230},
		{"limit 0 is none", &storepb.StoreQueryRequest{PaginationForward: true, PaginationLimit: new(uint64(0))}, 200, "OK", ints(0, 20, 1), 19},
		{"page above the limit", &storepb.StoreQueryRequest{PaginationForward: true, PaginationLimit: new(uint64(1 << 63))}, 200, "OK", ints(0, 100, 1), 99},
		{"content topic", &storepb.StoreQueryRequest{PaginationForward: true, ContentTopics: []string{topic0}, PaginationLimit: new(uint64(3))}, 200, "OK", []int{0, 3, 6}, 6},
		{"both topics", &storepb.StoreQueryRequest{PaginationForward: true, ContentTopics: []string{topic0}, PubsubTopic: new("/waku/2/rs/1/1"), PaginationLimit: new(uint64(3))}, 200, "OK", []int{3, 9, 15}, 15},
		{"pubsub topic alone", &storepb.StoreQueryRequest{PubsubTopic: new("/waku/2/rs/1/1"), PaginationLimit: new(uint64(2))}, 200, "OK", []int{247, 249}, 247},
		{"cursor", &storepb.StoreQueryRequest{PaginationForward: true, PaginationCursor: hash(247)}, 200, "OK", []int{248, 249}, noCursor},
		{"cursor backward", &storepb.StoreQueryRequest{PaginationCursor: hash(2)}, 200, "OK", []int{0, 1}, noCursor},
		{"cursor at the end", &storepb.StoreQueryRequest{PaginationForward: true, PaginationCursor: hash(249)}, 200, "OK", nil, noCursor},
		{"time", &storepb.StoreQueryRequest{PaginationForward: true, TimeStart: new(all[5].Timestamp), TimeEnd: new(all[7].Timestamp)}, 200, "OK", []int{5, 6, 7}, noCursor},
		{"times of zero are open", &storepb.StoreQueryRequest{PaginationForward: true, TimeStart: new(int64(0)), TimeEnd: new(int64(0)), PaginationLimit: new(uint64(1))}, 200, "OK", []int{0}, 0},
		{"look-up", &storepb.StoreQueryRequest{PaginationForward: true, MessageHashes: [][]byte{hash(9), make([]byte, 32), hash(4), hash(9)}}, 200, "OK", []int{4, 9}, noCursor},
		{"look-up with a pubsub topic", &storepb.StoreQueryRequest{PaginationForward: true, PubsubTopic: new("/waku/2/rs/1/0"), MessageHashes: [][]byte{hash(9), hash(4)}}, 200, "OK", []int{4}, noCursor},
		{"look-up of the next page", &storepb.StoreQueryRequest{PaginationForward: true, MessageHashes: [][]byte{hash(9), hash(4)}, PaginationCursor: hash(4)}, 200, "OK", []int{9}, noCursor},
		{"nothing found", &storepb.StoreQueryRequest{ContentTopics: []string{"/no/1/such/topic"}}, 200, "OK", nil, noCursor},

		{"unknown cursor", &storepb.StoreQueryRequest{PaginationCursor: make([]byte, 32)}, 400, "unknown cursor", nil, noCursor},
		{"short cursor", &storepb.StoreQueryRequest{PaginationCursor: []byte{1}}, 400, "cursor has 1 bytes", nil, noCursor},
		{"short hash", &storepb.StoreQueryRequest{MessageHashes: [][]byte{{1, 2}}}, 400, "hash has 2 bytes", nil, noCursor},
		{"hashes and topics", &storepb.StoreQueryRequest{MessageHashes: [][]byte{hash(1)}, ContentTopics: topics(1)}, 400, "cannot be joined", nil, noCursor},
		{"hashes and time", &storepb.StoreQueryRequest{MessageHashes: [][]byte{hash(1)}, TimeEnd: new(int64(1))}, 400, "cannot be joined", nil, noCursor},
		{"too many hashes", &storepb.StoreQueryRequest{MessageHashes: slices.Repeat([][]byte{hash(1)}, 101)}, 400, "101 message hashes, limit 100", nil, noCursor},
		{"too many topics", &storepb.StoreQueryRequest{ContentTopics: topics(101)}, 400, "101 content topics, limit 100", nil, noCursor},
		{"empty topic", &storepb.StoreQueryRequest{ContentTopics: []string{""}}, 400, "content topic is empty", nil, noCursor},
		{"time range the wrong way", &storepb.StoreQueryRequest{TimeStart: new(int64(2)), TimeEnd: new(int64(1))}, 400, "ends (1) before it starts (2)", nil, noCursor},
	} {
		for _, data := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, data %v", tc.name, data), func(t *testing.T) {
				req := proto.CloneOf(tc.req)
				req.RequestId, req.IncludeData = "id of "+tc.name, data
				var res storepb.StoreQueryResponse
				ask(t, client, server.ID(), QueryID, req, &res)
				if Status(res.GetStatusCode()) != tc.status || !strings.Contains(res.GetStatusDesc(), tc.desc) || res.GetRequestId() != req.GetRequestId() {
					t.Fatalf("id %q, status %d, %q", res.GetRequestId(), res.GetStatusCode(), res.GetStatusDesc())
				}
				if len(res.GetMessages()) != len(tc.messages) {
					t.Fatalf("%d messages, want %d", len(res.GetMessages()), len(tc.messages))
				}
				for i, kv := range res.GetMessages() {
					m := all[tc.messages[i]]
					if !bytes.Equal(kv.GetMessageHash(), hash(tc.messages[i])) || (kv.Message != nil) != data || (kv.PubsubTopic != nil) != data {
						t.Fatalf("message %d: %v", i, kv)
					}
					if data && (messageFromProto(kv.GetMessage(), kv.GetPubsubTopic()).Hash() != m.Hash() || kv.GetPubsubTopic() != m.PubsubTopic) {
						t.Fatalf("message %d: %v", i, kv)
					}
				}
				if tc.cursor == noCursor {
					if res.PaginationCursor != nil {
						t.Fatal("a cursor at the end")
					}
				} else if !bytes.Equal(res.GetPaginationCursor(), hash(tc.cursor)) {
					t.Fatalf("cursor %x", res.GetPaginationCursor())
				}
				if o := next(t, outcomes); o.Status != tc.status || o.Units != 0 || (o.Err == nil) != (tc.status == StatusOK) {
					t.Fatalf("outcome %+v", o)
				}
			})
		}
	}
}

func ints(from, to, step int) (out []int) {
	for i := from; i < to; i += step {
		out = append(out, i)
	}
	return out
}

// TestHistoryRequests is the same table for 2.0.0-beta4.
func TestHistoryRequests(t *testing.T) {
	client, server := pair(t)
	store := newStore(t)
	all := fill(t, store, 150)
	_, outcomes := serve(t, server, store, Config{})
	index := func(i int, digest Hash) *storepb.Index {
		m := all[i]
		return &storepb.Index{Digest: digest[:], SenderTime: &m.Timestamp, ReceiverTime: &m.Timestamp, PubsubTopic: &m.PubsubTopic}
	}
	paging := func(size uint64, d storepb.PagingInfo_Direction, cursor *storepb.Index) *storepb.PagingInfo {
		return &storepb.PagingInfo{PageSize: &size, Direction: &d, Cursor: cursor}
	}
	const (
		back, forward = storepb.PagingInfo_BACKWARD, storepb.PagingInfo_FORWARD
		noCursor      = -1
	)
	for _, tc := range []struct {
		name     string
		query    *storepb.HistoryQuery
		err      storepb.HistoryResponse_Error
		messages []int
		cursor   int
	}{
		{"no paging info", &storepb.HistoryQuery{}, 0, ints(0, 20, 1), 19},
		{"no direction", &storepb.HistoryQuery{PagingInfo: &storepb.PagingInfo{PageSize: new(uint64(2))}}, 0, []int{148, 149}, 148},
		{"forward", &storepb.HistoryQuery{PagingInfo: paging(200, forward, nil)}, 0, ints(0, 100, 1), 99},
		{"page of zero", &storepb.HistoryQuery{PagingInfo: paging(0, back, nil)}, 0, ints(130, 150, 1), 130},
		{"filters", &storepb.HistoryQuery{
			PubsubTopic:    new("/waku/2/rs/1/1"),
			ContentFilters: []*storepb.ContentFilter{{ContentTopic: "/tally/1/topic-0/proto"}, {ContentTopic: "/tally/1/topic-1/proto"}},
			StartTime:      new(all[1].Timestamp), EndTime: new(all[9].Timestamp), PagingInfo: paging(9, forward, nil),
		}, 0, []int{1, 3, 7, 9}, noCursor},
		{"our cursor", &storepb.HistoryQuery{PagingInfo: paging(1, forward, index(7, all[7].Hash()))}, 0, []int{8}, 8},
		{"our cursor backward", &storepb.HistoryQuery{PagingInfo: paging(9, back, index(2, all[2].Hash()))}, 0, []int{0, 1}, noCursor},
		{"cursor made from a message", &storepb.HistoryQuery{PagingInfo: paging(1, forward, index(7, all[7].digest()))}, 0, []int{8}, 8},
		{"cursor of another time", &storepb.HistoryQuery{PagingInfo: paging(1, forward, index(6, all[7].digest()))}, storepb.HistoryResponse_INVALID_CURSOR, nil, noCursor},
		{"unknown cursor", &storepb.HistoryQuery{PagingInfo: paging(1, forward, index(7, Hash{7}))}, storepb.HistoryResponse_INVALID_CURSOR, nil, noCursor},
		{"empty cursor", &storepb.HistoryQuery{PagingInfo: paging(1, forward, &storepb.Index{})}, storepb.HistoryResponse_INVALID_CURSOR, nil, noCursor},
		{"too many topics", &storepb.HistoryQuery{ContentFilters: slices.Repeat([]*storepb.ContentFilter{{ContentTopic: "x"}}, 101)}, storepb.HistoryResponse_BAD_REQUEST, nil, noCursor},
		{"no query", nil, storepb.HistoryResponse_BAD_REQUEST, nil, noCursor},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var rpc storepb.HistoryRPC
			ask(t, client, server.ID(), HistoryID, &storepb.HistoryRPC{RequestId: tc.name, Query: tc.query}, &rpc)
			res := rpc.GetResponse()
			if rpc.GetRequestId() != tc.name || res == nil || res.Error == nil || res.GetError() != tc.err {
				t.Fatalf("%v", &rpc)
			}
			if len(res.GetMessages()) != len(tc.messages) {
				t.Fatalf("%d messages, want %d", len(res.GetMessages()), len(tc.messages))
			}
			for i, w := range res.GetMessages() {
				m := all[tc.messages[i]]
				if messageFromProto(w, m.PubsubTopic).Hash() != m.Hash() {
					t.Fatalf("message %d: %v", i, w)
				}
			}
			cursor := res.GetPagingInfo().GetCursor()
			if tc.cursor == noCursor {
				if cursor != nil {
					t.Fatal("a cursor at the end")
				}
			} else if !proto.Equal(cursor, index(tc.cursor, all[tc.cursor].Hash())) {
				t.Fatalf("cursor %v", cursor)
			}
			if tc.err == storepb.HistoryResponse_NONE && res.GetPagingInfo().GetPageSize() != uint64(len(tc.messages)) {
				t.Fatalf("page size %d", res.GetPagingInfo().GetPageSize())
			}
			next(t, outcomes)
		})
	}
}

func TestMetadata(t *testing.T) {
	client, server := pair(t)
	serve(t, server, newStore(t), Config{Cluster: 16, Shards: []uint32{1, 300}})
	var res storepb.WakuMetadataResponse
	ask(t, client, server.ID(), MetadataID, &storepb.WakuMetadataRequest{ClusterId: new(uint32(1))}, &res)
	if res.GetClusterId() != 16 || !slices.Equal(res.GetShards(), []uint32{1, 300}) {
		t.Fatal(&res)
	}
}

// TestBadFrames: what is no request is answered with 400, or the stream is
// reset; nothing is booked and the slot is free again.
func TestBadFrames(t *testing.T) {
	client, server := pair(t)
	store := newStore(t)
	fill(t, store, 3)
	meter := newMeter(100)
	srv, outcomes := serve(t, server, store, Config{Meter: meter})
	for _, tc := range []struct {
		name   string
		in     []byte
		status Status // 0: reset
		is     error
	}{
		{"nothing", nil, 0, io.EOF},
		{"length cut", []byte{0x80}, 0, wire.ErrTruncated},
		{"frame cut", []byte{10, 1, 2}, 0, wire.ErrTruncated},
		{"too large", varint.ToUvarint(uint64(DefaultLimits().MaxRequestBytes) + 1), 400, wire.ErrFrameTooLarge},
		{"huge", varint.ToUvarint(1 << 62), 400, wire.ErrFrameTooLarge},
		{"garbage", []byte{3, 0xff, 0xff, 0xff}, 400, wire.ErrGarbage},
		{"long request id", append([]byte{0x84, 0x02, 0x0a, 0x81, 0x02}, bytes.Repeat([]byte("x"), 257)...), 400, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := open(t, client, server.ID(), QueryID)
			if _, err := s.Write(tc.in); err != nil {
				t.Fatal(err)
			}
			if err := s.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			var res storepb.StoreQueryResponse
			err := wire.NewReader(s, 1<<20).ReadMsg(&res)
			if tc.status == 0 {
				if !errors.Is(err, network.ErrReset) {
					t.Fatalf("%v, want a reset", err)
				}
			} else if err != nil || Status(res.GetStatusCode()) != tc.status || res.GetStatusDesc() == "" {
				t.Fatalf("%v, %v", &res, err)
			}
			o := next(t, outcomes)
			if o.Status != tc.status || o.Err == nil || tc.is != nil && !errors.Is(o.Err, tc.is) {
				t.Fatalf("outcome %+v", o)
			}
		})
	}
	meter.want(t, client.ID(), 0, 0)
	if n := srv.gate.Working(client.ID()); n != 0 {
		t.Fatalf("%d requests under way", n)
	}
}

// TestResponseSize: a page of large messages is cut below the limit and carries
// a cursor; paging on brings them all.
func TestResponseSize(t *testing.T) {
	client, server := pair(t)
	store := newStore(t)
	const n = 13
	for i := range n {
		m := numbered(i)
		m.Payload = bytes.Repeat([]byte{byte(i)}, MaxMessageBytes-100)
		m.PubsubTopic = strings.Repeat("p", MaxTopicBytes)
		if _, err := store.Add(context.Background(), m); err != nil {
			t.Fatal(err)
		}
	}
	serve(t, server, store, Config{})
	for _, backward := range []bool{false, true} {
		var cursor []byte
		got, pages := 0, 0
		for {
			var res storepb.StoreQueryResponse
			ask(t, client, server.ID(), QueryID, &storepb.StoreQueryRequest{
				IncludeData: true, PaginationForward: !backward, PaginationCursor: cursor, PaginationLimit: new(uint64(100)),
			}, &res)
			if size := proto.Size(&res); size > DefaultLimits().MaxResponseBytes {
				t.Fatalf("%d bytes", size)
			}
			if got += len(res.GetMessages()); len(res.GetMessages()) == 0 {
				t.Fatal("empty page")
			}
			pages++
			if cursor = res.GetPaginationCursor(); cursor == nil {
				break
			}
		}
		if got != n || pages != 5 {
			t.Fatalf("%d messages in %d pages", got, pages)
		}
	}
}

// TestMetered: pages shrink to the headroom, zero headroom is 402 (beta4: 429)
// with the ledger's text, what is paid can be had again, and empty pages are
// free even then.
func TestMetered(t *testing.T) {
	client, server := pair(t)
	store := newStore(t)
	all := fill(t, store, 60)
	meter := newMeter(45)
	_, outcomes := serve(t, server, store, Config{Meter: meter})
	var cursor []byte
	query := func() *storepb.StoreQueryResponse {
		var res storepb.StoreQueryResponse
		ask(t, client, server.ID(), QueryID, &storepb.StoreQueryRequest{IncludeData: true, PaginationForward: true, PaginationCursor: cursor}, &res)
		if res.GetStatusCode() == 200 && res.PaginationCursor != nil {
			cursor = res.GetPaginationCursor()
		}
		return &res
	}
	for i, want := range []int{20, 20, 5} {
		if res := query(); len(res.GetMessages()) != want || res.PaginationCursor == nil {
			t.Fatalf("page %d: %d messages, cursor %x", i, len(res.GetMessages()), res.GetPaginationCursor())
		}
		if o := next(t, outcomes); o.Units != tally.Amount(want) {
			t.Fatalf("outcome %+v", o)
		}
	}
	meter.want(t, client.ID(), 45, 0)
	if res := query(); res.GetStatusCode() != 402 || res.GetStatusDesc() != "owes 45 of 45 units" || len(res.GetMessages()) != 0 {
		t.Fatal(res)
	}
	if o := next(t, outcomes); o.Status != StatusPaymentRequired || o.Units != 0 {
		t.Fatalf("outcome %+v", o)
	}
	var rpc storepb.HistoryRPC
	ask(t, client, server.ID(), HistoryID, &storepb.HistoryRPC{Query: &storepb.HistoryQuery{}}, &rpc)
	if rpc.GetResponse().GetError() != storepb.HistoryResponse_TOO_MANY_REQUESTS {
		t.Fatal(&rpc)
	}
	next(t, outcomes)

	var res storepb.StoreQueryResponse
	last := all[59].Hash()
	ask(t, client, server.ID(), QueryID, &storepb.StoreQueryRequest{PaginationForward: true, PaginationCursor: last[:]}, &res)
	if res.GetStatusCode() != 200 || len(res.GetMessages()) != 0 {
		t.Fatalf("empty page at a full tab: %v", &res)
	}
	next(t, outcomes)
	meter.want(t, client.ID(), 45, 0)

	meter.settle(client.ID(), 45)
	if res := query(); len(res.GetMessages()) != 15 || res.PaginationCursor != nil {
		t.Fatalf("%d messages after the settlement", len(res.GetMessages()))
	}
	meter.want(t, client.ID(), 15, 0)
}

// TestHeadroomStolen: another request takes headroom between the look and the
// reservation.
func TestHeadroomStolen(t *testing.T) {
	for _, tc := range []struct {
		steal  tally.Amount // at each look
		want   int
		status Status
	}{
		{1, 10, 200}, // 20 do not fit in 19, so half is taken
		{11, 9, 200},
		{19, 1, 200},
		{20, 0, 402},
	} {
		t.Run(fmt.Sprint(tc.steal), func(t *testing.T) {
			client, server := pair(t)
			store := newStore(t)
			fill(t, store, 50)
			meter := newMeter(20)
			once := sync.OnceFunc(func() { meter.book(client.ID(), tc.steal) })
			meter.steal = once
			serve(t, server, store, Config{Meter: meter})
			for _, forward := range []bool{true} {
				var res storepb.StoreQueryResponse
				ask(t, client, server.ID(), QueryID, &storepb.StoreQueryRequest{PaginationForward: forward}, &res)
				if len(res.GetMessages()) != tc.want || Status(res.GetStatusCode()) != tc.status {
					t.Fatalf("%d messages, %d %s", len(res.GetMessages()), res.GetStatusCode(), res.GetStatusDesc())
				}
				if tc.want > 0 && !bytes.Equal(res.GetPaginationCursor(), res.GetMessages()[tc.want-1].GetMessageHash()) {
					t.Fatal("the cursor is not at the end of the cut page")
				}
				meter.want(t, client.ID(), tc.steal+tally.Amount(tc.want), 0)
			}
		})
	}
}

// TestTrimBackward: a page cut for headroom keeps the newest.
func TestTrimBackward(t *testing.T) {
	p := Page{Entries: []Entry{{Hash: Hash{1}}, {Hash: Hash{2}}, {Hash: Hash{3}}}}
	p.trim(2, true)
	if len(p.Entries) != 2 || p.Entries[0].Hash != (Hash{2}) || !p.More || p.last(true).Hash != (Hash{2}) {
		t.Fatalf("%+v", p)
	}
	p.trim(2, true)
	if len(p.Entries) != 2 {
		t.Fatal("cut without need")
	}
}

func TestLedgerFails(t *testing.T) {
	client, server := pair(t)
	store := newStore(t)
	fill(t, store, 5)
	meter := newMeter(100)
	meter.commitErr = errors.New("disk full")
	_, outcomes := serve(t, server, store, Config{Meter: meter})
	var res storepb.StoreQueryResponse
	ask(t, client, server.ID(), QueryID, &storepb.StoreQueryRequest{}, &res)
	if res.GetStatusCode() != 503 || len(res.GetMessages()) != 0 || strings.Contains(res.GetStatusDesc(), "disk") {
		t.Fatal(&res)
	}
	if o := next(t, outcomes); !errors.Is(o.Err, meter.commitErr) || o.Units != 0 {
		t.Fatalf("outcome %+v", o)
	}
}

func TestStoreFails(t *testing.T) {
	client, server := pair(t)
	disk := durabletest.NewMem()
	store := openStore(t, disk)
	fill(t, store, 5)
	_ = disk.Close()
	_, outcomes := serve(t, server, store, Config{})
	var res storepb.StoreQueryResponse
	ask(t, client, server.ID(), QueryID, &storepb.StoreQueryRequest{}, &res)
	if res.GetStatusCode() != 503 {
		t.Fatal(&res)
	}
	if o := next(t, outcomes); o.Status != StatusUnavailable || o.Err == nil {
		t.Fatalf("outcome %+v", o)
	}
}

// waiting is a Meter whose Serve waits, so that requests stay under way.
type waiting struct {
	*fakeMeter
	entered chan struct{}
	open    chan struct{}
}

func (g *waiting) Serve(ctx context.Context, _ peer.ID, units tally.Amount) (Hold, error) {
	g.entered <- struct{}{}
	select {
	case <-g.open:
		return noHold{}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// TestTooManyRequests: requests over the limit are told so, far over it reset,
// and a slot is free again after each.
func TestTooManyRequests(t *testing.T) {
	client, server := pair(t)
	store := newStore(t)
	fill(t, store, 5)
	limits := DefaultLimits()
	limits.MaxPeerRequests = 2
	g := &waiting{fakeMeter: newMeter(100), entered: make(chan struct{}, 8), open: make(chan struct{})}
	srv, outcomes := serve(t, server, store, Config{Limits: limits, Meter: g})
	var inside []network.Stream
	for range 2 {
		s := open(t, client, server.ID(), QueryID)
		w := wire.NewWriter(s, 100)
		if err := errors.Join(w.WriteMsg(&storepb.StoreQueryRequest{RequestId: "waits"}), w.Flush()); err != nil {
			t.Fatal(err)
		}
		<-g.entered
		inside = append(inside, s)
	}
	var res storepb.StoreQueryResponse
	ask(t, client, server.ID(), QueryID, &storepb.StoreQueryRequest{}, &res)
	if res.GetStatusCode() != 429 {
		t.Fatal(&res)
	}
	next(t, outcomes)
	var rpc storepb.HistoryRPC
	ask(t, client, server.ID(), HistoryID, &storepb.HistoryRPC{}, &rpc)
	if rpc.GetResponse().GetError() != storepb.HistoryResponse_TOO_MANY_REQUESTS {
		t.Fatal(&rpc)
	}
	next(t, outcomes)
	close(g.open)
	for _, s := range inside {
		if err := wire.NewReader(s, 1<<20).ReadMsg(&res); err != nil || res.GetStatusCode() != 200 {
			t.Fatal(&res, err)
		}
		next(t, outcomes)
	}
	ask(t, client, server.ID(), QueryID, &storepb.StoreQueryRequest{}, &res)
	if res.GetStatusCode() != 200 {
		t.Fatal(&res)
	}
	next(t, outcomes)
	if n := srv.gate.Working(client.ID()); n != 0 {
		t.Fatalf("%d requests under way", n)
	}
}

// TestCloseEndsRequests: Close does not wait for a peer that sends nothing, nor
// for one whose request is under way.
func TestCloseEndsRequests(t *testing.T) {
	client, server := pair(t)
	store := newStore(t)
	fill(t, store, 5)
	g := &waiting{fakeMeter: newMeter(100), entered: make(chan struct{}, 8), open: make(chan struct{})}
	srv, _ := serve(t, server, store, Config{Meter: g})
	slow := open(t, client, server.ID(), QueryID)
	if _, err := slow.Write([]byte{50}); err != nil {
		t.Fatal(err)
	}
	s := open(t, client, server.ID(), QueryID)
	w := wire.NewWriter(s, 100)
	if err := errors.Join(w.WriteMsg(&storepb.StoreQueryRequest{RequestId: "waits"}), w.Flush()); err != nil {
		t.Fatal(err)
	}
	<-g.entered
	done := make(chan error)
	go func() { done <- srv.Close() }() // ends with Close
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("Close hangs")
	}
}

// TestSlowPeer: one that drips its request is cut off.
func TestSlowPeer(t *testing.T) {
	client, server := pair(t)
	limits := DefaultLimits()
	limits.RequestTimeout = 50 * time.Millisecond
	_, outcomes := serve(t, server, newStore(t), Config{Limits: limits})
	s := open(t, client, server.ID(), QueryID)
	if _, err := s.Write([]byte{50, 1}); err != nil {
		t.Fatal(err)
	}
	if o := next(t, outcomes); o.Status != 0 || o.Err == nil {
		t.Fatalf("outcome %+v", o)
	}
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, network.ErrReset) {
		t.Fatal(err)
	}
}
