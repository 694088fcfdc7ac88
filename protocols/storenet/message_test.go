package storenet

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

// TestHashVectors are the four vectors of 14/WAKU2-MESSAGE.
func TestHashVectors(t *testing.T) {
	meta64 := make([]byte, 64)
	for i := range meta64 {
		meta64[i] = byte(i)
	}
	payload := append([]byte{1, 2, 3, 4}, append([]byte("TEST"), 5, 6, 7, 8)...)
	for _, tc := range []struct {
		name          string
		payload, meta []byte
		want          string
	}{
		{"meta of 12 bytes", payload, []byte("super-secret"), "64cce733fed134e83da02b02c6f689814872b1a0ac97ea56b76095c3c72bfe05"},
		{"meta of 64 bytes", payload, meta64, "7158b6498753313368b9af8f6e0a0a05104f68f972981da42a43bc53fb0c1b27"},
		{"no meta", payload, nil, "a2554498b31f5bcdfcbf7fa58ad1c2d45f0254f3f8110a85588ec3cf10720fd8"},
		{"no payload", nil, []byte("super-secret"), "483ea950cb63f9b9d6926b262bb36194d3f40a0463ce8446228350bd44e96de4"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := Message{
				PubsubTopic: "/waku/2/default-waku/proto", ContentTopic: "/waku/2/default-content/proto",
				Payload: tc.payload, Meta: tc.meta, Timestamp: 0x175789bfa23f8400,
			}
			if got := m.Hash().String(); got != tc.want {
				t.Fatalf("got %s", got)
			}
		})
	}
}

func TestHashAtTimeZero(t *testing.T) {
	m := Message{PubsubTopic: "p", ContentTopic: "c"}
	with, without := m.Hash(), m.hash(nil)
	if with == without || !m.hashIs(with) || !m.hashIs(without) {
		t.Fatal("both hashes of an absent timestamp must be taken")
	}
	m.Timestamp = 1
	if m.hashIs(m.hash(nil)) {
		t.Fatal("a timestamp that is there must be in the hash")
	}
}

// TestShardedTopic: the shards are those of contentTopicToShardIndex in
// @waku/utils 0.0.27.
func TestShardedTopic(t *testing.T) {
	for _, tc := range []struct {
		content string
		want    string // empty: refused
	}{
		{"/toychat/2/huilong/proto", "/waku/2/rs/1/3"},
		{"/0/toychat/2/huilong/proto", "/waku/2/rs/1/3"},
		{"/tally/1/demo/proto", "/waku/2/rs/1/6"},
		{"/waku/2/content/test.js", "/waku/2/rs/1/1"},
		{"demo", ""},
		{"//1/demo/proto", ""},
		{"/a/b/c/d/e/f", ""},
	} {
		got, err := ShardedTopic(1, 8)(tc.content)
		if tc.want == "" {
			if !errors.Is(err, ErrMessage) {
				t.Errorf("%q: got %q, %v", tc.content, got, err)
			}
		} else if got != tc.want || err != nil {
			t.Errorf("%q: got %q, %v, want %q", tc.content, got, err, tc.want)
		}
	}
}

func TestMessageCheck(t *testing.T) {
	good := func() *Message { return &Message{ContentTopic: "c", PubsubTopic: "p", Payload: []byte("x")} }
	for _, tc := range []struct {
		name  string
		spoil func(*Message)
		want  string // empty: good
	}{
		{"good", func(*Message) {}, ""},
		{"empty payload", func(m *Message) { m.Payload = nil }, ""},
		{"no content topic", func(m *Message) { m.ContentTopic = "" }, "content_topic is missing"},
		{"no pubsub topic", func(m *Message) { m.PubsubTopic = "" }, "pubsub_topic is missing"},
		{"long topic", func(m *Message) { m.ContentTopic = strings.Repeat("x", MaxTopicBytes+1) }, "limit 1024"},
		{"topic not UTF-8", func(m *Message) { m.ContentTopic = "\xff" }, "not UTF-8"},
		{"largest meta", func(m *Message) { m.Meta = make([]byte, MaxMetaBytes) }, ""},
		{"long meta", func(m *Message) { m.Meta = make([]byte, MaxMetaBytes+1) }, "meta has 65 bytes"},
		{"ephemeral", func(m *Message) { m.Ephemeral = true }, "ephemeral"},
		{"too large", func(m *Message) { m.Payload = make([]byte, MaxMessageBytes) }, "bytes encoded"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := good()
			tc.spoil(m)
			err := m.Check()
			if tc.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errors.Is(err, ErrMessage) || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want %q in it", err, tc.want)
			}
		})
	}
}

func TestMessageProtoRoundTrip(t *testing.T) {
	m := &Message{
		PubsubTopic: "p", ContentTopic: "c", Payload: []byte{0, 0xff}, Timestamp: -5, Meta: []byte("m"),
		Version: 2, RateLimitProof: []byte("proof"),
	}
	got := messageFromProto(m.proto(), "p")
	if got.Hash() != m.Hash() || got.Version != 2 || !bytes.Equal(got.RateLimitProof, m.RateLimitProof) {
		t.Fatalf("%+v", got)
	}
	if hex.EncodeToString(got.Payload) != "00ff" {
		t.Fatal(got.Payload)
	}
}
