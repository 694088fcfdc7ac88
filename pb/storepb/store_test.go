package storepb_test

import (
	"bytes"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tally/pb/storepb"
)

func seq(from, n byte) []byte {
	out := make([]byte, n)
	for i := range out {
		out[i] = from + byte(i)
	}
	return out
}

const (
	at     = int64(1681964442234143000)
	pubsub = "/waku/2/rs/1/0"
	demo   = "/tally/1/demo/proto"
	other  = "/tally/1/other/proto"
)

// rateLimitProof is the RLN proof of the vectors as the JavaScript schema has
// it, a message of seven fields; ours carries its bytes.
func rateLimitProof() []byte {
	var b []byte
	for i := range byte(7) {
		b = append(b, (i+1)<<3|2, 4)
		b = append(b, seq(1+4*i, 4)...)
	}
	return b
}

func full() *storepb.WakuMessage {
	return &storepb.WakuMessage{
		Payload: append([]byte{1, 2, 3, 4}, append([]byte("TEST"), 5, 6, 7, 8)...), ContentTopic: demo,
		Version: new(uint32(1)), Timestamp: new(at), Meta: []byte("super-secret"),
		RateLimitProof: rateLimitProof(), Ephemeral: new(true),
	}
}

func plain() *storepb.WakuMessage {
	return &storepb.WakuMessage{Payload: []byte{0, 0xff}, ContentTopic: demo, Timestamp: new(int64(-1))}
}

func index() *storepb.Index {
	return &storepb.Index{Digest: seq(0x20, 32), ReceiverTime: new(at), SenderTime: new(at), PubsubTopic: new(pubsub)}
}

func vectors() map[string]proto.Message {
	answer := func(id string, r *storepb.HistoryResponse) *storepb.HistoryRPC {
		return &storepb.HistoryRPC{RequestId: id, Response: r}
	}
	return map[string]proto.Message{
		"message_full":          full(),
		"message_plain":         plain(),
		"message_timestamp_max": &storepb.WakuMessage{Payload: []byte{0xaa}, ContentTopic: "x", Timestamp: new(int64(1<<63 - 1))},

		"v3_request_filter": &storepb.StoreQueryRequest{
			RequestId: "0f3c", IncludeData: true, PubsubTopic: new(pubsub), ContentTopics: []string{demo, other},
			TimeStart: new(at), TimeEnd: new(at + 1), PaginationCursor: seq(0x20, 32), PaginationForward: true,
			PaginationLimit: new(uint64(20)),
		},
		"v3_request_hashes": &storepb.StoreQueryRequest{
			RequestId: "0f3d", MessageHashes: [][]byte{seq(0x20, 32), seq(0x60, 32)},
		},
		"v3_response_page": &storepb.StoreQueryResponse{
			RequestId: "0f3c", StatusCode: new(uint32(200)), StatusDesc: new("OK"),
			Messages: []*storepb.WakuMessageKeyValue{
				{MessageHash: seq(0x20, 32), Message: full(), PubsubTopic: new(pubsub)},
				{MessageHash: seq(0x60, 32)},
			},
			PaginationCursor: seq(0x20, 32),
		},
		"v3_response_refused": &storepb.StoreQueryResponse{
			RequestId: "0f3c", StatusCode: new(uint32(402)), StatusDesc: new("pay first"),
		},

		"beta4_query": &storepb.HistoryRPC{RequestId: "0f3c", Query: &storepb.HistoryQuery{
			PubsubTopic:    new(pubsub),
			ContentFilters: []*storepb.ContentFilter{{ContentTopic: demo}, {ContentTopic: other}},
			PagingInfo: &storepb.PagingInfo{
				PageSize: new(uint64(20)), Cursor: index(), Direction: storepb.PagingInfo_FORWARD.Enum(),
			},
			StartTime: new(at), EndTime: new(at + 1),
		}},
		"beta4_query_backward": &storepb.HistoryRPC{RequestId: "0f3d", Query: &storepb.HistoryQuery{
			PagingInfo: &storepb.PagingInfo{PageSize: new(uint64(5)), Direction: storepb.PagingInfo_BACKWARD.Enum()},
		}},
		"beta4_response_page": answer("0f3c", &storepb.HistoryResponse{
			Messages: []*storepb.WakuMessage{full(), plain()},
			PagingInfo: &storepb.PagingInfo{
				PageSize: new(uint64(2)), Cursor: index(), Direction: storepb.PagingInfo_FORWARD.Enum(),
			},
		}),
		"beta4_response_invalid_cursor": answer("0f3c", &storepb.HistoryResponse{Error: storepb.HistoryResponse_INVALID_CURSOR.Enum()}),
		"beta4_response_refused":        answer("0f3c", &storepb.HistoryResponse{Error: storepb.HistoryResponse_TOO_MANY_REQUESTS.Enum()}),
		"beta4_response_unavailable":    answer("0f3c", &storepb.HistoryResponse{Error: storepb.HistoryResponse_SERVICE_UNAVAILABLE.Enum()}),

		"metadata_request":  &storepb.WakuMetadataRequest{ClusterId: new(uint32(1))},
		"metadata_response": &storepb.WakuMetadataResponse{ClusterId: new(uint32(1)), Shards: []uint32{0, 1, 7, 300}},
	}
}

// TestVectors holds our messages against the bytes of the JavaScript
// implementation (@waku/proto; interop/js/store/vectors.mjs writes the files):
// what it wrote we read as the same message, and we write the same bytes.
func TestVectors(t *testing.T) {
	want := vectors()
	files, err := filepath.Glob("testdata/*.hex")
	if err != nil || len(files) != len(want) {
		t.Fatalf("%d vector files, %d messages: %v", len(files), len(want), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".hex")
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			theirs, err := hex.DecodeString(strings.TrimSpace(string(text)))
			if err != nil {
				t.Fatal(err)
			}
			msg, ok := want[name]
			if !ok {
				t.Fatal("no message of this name")
			}
			ours, err := proto.MarshalOptions{Deterministic: true}.Marshal(msg)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(ours, theirs) {
				t.Errorf("bytes differ\nours   %x\ntheirs %x", ours, theirs)
			}
			got := msg.ProtoReflect().New().Interface()
			if err := proto.Unmarshal(theirs, got); err != nil {
				t.Fatal(err)
			}
			if len(got.ProtoReflect().GetUnknown()) != 0 {
				t.Errorf("unknown fields %x", got.ProtoReflect().GetUnknown())
			}
			back, err := proto.MarshalOptions{Deterministic: true}.Marshal(got)
			if err != nil || !bytes.Equal(back, theirs) {
				t.Errorf("read and written again: %x, want %x (%v)", back, theirs, err)
			}
			if !proto.Equal(got, msg) {
				t.Errorf("read %v, want %v", got, msg)
			}
		})
	}
}
