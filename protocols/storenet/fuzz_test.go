package storenet

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/pb/storepb"
	"github.com/tallystick/tally/protocols/internal/wire"
)

// vectors are the golden vectors of pb/storepb whose names begin with prefix.
func vectors(f *testing.F, prefix string) (out [][]byte) {
	f.Helper()
	files, err := filepath.Glob("../../pb/storepb/testdata/" + prefix + "*.hex")
	if err != nil || len(files) == 0 {
		f.Fatalf("no vectors %s: %v", prefix, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		b, err := hex.DecodeString(strings.TrimSpace(string(text)))
		if err != nil {
			f.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}

// fuzzServer is a Server without a host, for what lies behind the stream.
func fuzzServer(f *testing.F) *Server {
	disk := durabletest.NewMem()
	f.Cleanup(func() { _ = disk.Close() })
	store, err := OpenStore(context.Background(), disk)
	if err != nil {
		f.Fatal(err)
	}
	for i := range 30 {
		if _, err := store.Add(context.Background(), numbered(i)); err != nil {
			f.Fatal(err)
		}
	}
	return &Server{store: store, cfg: Config{Limits: DefaultLimits(), Logger: quiet()}}
}

func checkPageRequest(t *testing.T, s *Server, r PageRequest) {
	l := s.cfg.Limits
	if r.Limit < 1 || r.Limit > l.MaxPage || len(r.ContentTopics) > l.MaxContentTopics || len(r.Hashes) > l.MaxHashes {
		t.Fatalf("out of the limits: %+v", r)
	}
	page, err := s.store.Page(context.Background(), r)
	if err != nil {
		return
	}
	if len(page.Entries) > r.Limit {
		t.Fatalf("%d entries, limit %d", len(page.Entries), r.Limit)
	}
	for _, e := range page.Entries {
		if e.Message != nil && !fits(&r.Filter, e.Hash, e.Message) {
			t.Fatalf("%+v does not fit %+v", e.Message, r.Filter)
		}
	}
}

// FuzzQueryRequest: any frame gives a request within the limits or a refusal
// whose text fits; what it finds fits its filter.
func FuzzQueryRequest(f *testing.F) {
	s := fuzzServer(f)
	for _, v := range vectors(f, "v3_request") {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		var req storepb.StoreQueryRequest
		if wire.Unmarshal(frame, &req) != nil {
			return
		}
		r, bad := s.decodeQuery(&req)
		if bad != nil {
			if res := queryResponse(req.GetRequestId(), Page{}, false, bad); proto.Size(res) > responseOverhead {
				t.Fatalf("refusal of %d bytes", proto.Size(res))
			}
			return
		}
		checkPageRequest(t, s, r)
	})
}

// FuzzHistoryRequest is the same for 2.0.0-beta4.
func FuzzHistoryRequest(f *testing.F) {
	s := fuzzServer(f)
	for _, v := range vectors(f, "beta4_query") {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		var rpc storepb.HistoryRPC
		if wire.Unmarshal(frame, &rpc) != nil {
			return
		}
		r, bad := s.decodeHistory(context.Background(), &rpc)
		if bad != nil {
			if historyError(bad.status) == storepb.HistoryResponse_NONE {
				t.Fatalf("refused without an error: %v", bad.err)
			}
			return
		}
		checkPageRequest(t, s, r)
	})
}

// fuzzAnswer: whatever a server sends, no message gets through that does not fit,
// and never more than asked for. The count of messages before decoding is theirs
// after it.
func fuzzAnswer(t *testing.T, c codec, id string, frame []byte, q Query) {
	const limit = 3
	w := &walker{query: q, check: newChecker(&q)}
	page, err := w.decode(c, frame, id, limit)
	if err != nil {
		if page.received < 0 || err.Error() == "" {
			t.Fatal(err)
		}
		return
	}
	if len(page.entries) > limit || len(page.entries) != page.received {
		t.Fatalf("%d entries, %d counted, limit %d", len(page.entries), page.received, limit)
	}
	for _, e := range page.entries {
		if e.Message != nil && !fits(&q.Filter, e.Hash, e.Message) {
			t.Fatalf("%+v does not fit %+v", e.Message, q.Filter)
		}
	}
}

func FuzzQueryResponse(f *testing.F) {
	for _, v := range vectors(f, "v3_response") {
		f.Add(v, false)
	}
	for n := range 5 {
		b, err := proto.Marshal(page("0f3c", 0, n))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, n%2 == 0)
	}
	f.Fuzz(func(t *testing.T, frame []byte, backward bool) {
		q := Query{Filter: Filter{PubsubTopic: "/waku/2/rs/1/0", Start: 1}, Backward: backward}
		fuzzAnswer(t, codecs[QueryID], "0f3c", frame, q)
	})
}

func FuzzHistoryResponse(f *testing.F) {
	for _, v := range vectors(f, "beta4_response") {
		f.Add(v, false)
	}
	f.Fuzz(func(t *testing.T, frame []byte, backward bool) {
		fuzzAnswer(t, codecs[HistoryID], "0f3c", frame, Query{Filter: Filter{End: 1 << 60}, Backward: backward})
	})
}

// FuzzParseLine: any line is a message that can be stored and written as the same
// line again, or a typed error.
func FuzzParseLine(f *testing.F) {
	for _, s := range []string{
		`{"content_topic":"/tally/1/demo/proto","payload":"aGVsbG8=","timestamp":1700000000000000001}`,
		`{"content_topic":"c","payload":"","timestamp":-1,"pubsub_topic":"p","meta":"bQ==","version":1}`,
		`{"content_topic":"c","payload":"","timestamp":1,"ephemeral":true}`, `{}`, `[]`, `null`, `{"timestamp":1e3}`, "{\"content_topic\":\"\xff\"}",
	} {
		f.Add([]byte(s))
	}
	topic := FixedTopic(DefaultPubsubTopic)
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := ParseLine(line, topic)
		if err != nil {
			return
		}
		if err := m.Check(); err != nil {
			t.Fatal(err)
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		m2, err := ParseLine(again, topic)
		if err != nil || m2.Hash() != m.Hash() || m2.Version != m.Version || !bytes.Equal(m2.RateLimitProof, m.RateLimitProof) {
			t.Fatalf("%s gives %+v: %v", again, m2, err)
		}
	})
}

// FuzzStoredMessage: a damaged record is an error with its key, never a panic and
// never another message.
func FuzzStoredMessage(f *testing.F) {
	m := numbered(1)
	place := placeOf(m.Timestamp, m.Hash())
	f.Add([]byte{}, 0)
	f.Add([]byte{0, 14}, 3)
	f.Fuzz(func(t *testing.T, value []byte, at int) {
		disk := durabletest.NewMem()
		defer disk.Close()
		s := openStore(t, disk)
		if _, err := s.Add(context.Background(), m); err != nil {
			t.Fatal(err)
		}
		key := keyTime + place
		good, err := disk.Get(context.Background(), key)
		if err != nil {
			t.Fatal(err)
		}
		at = max(0, min(at, len(good)))
		bad := slices.Concat(good[:at], value, good[at:])
		var b durable.Batch
		b.Put(key, bad)
		if err := disk.Commit(context.Background(), &b); err != nil {
			t.Fatal(err)
		}
		page, err := s.Page(context.Background(), PageRequest{Limit: 1})
		if err == nil && (len(page.Entries) != 1 || page.Entries[0].Message.Hash() != m.Hash()) {
			t.Fatalf("%+v", page)
		}
	})
}
