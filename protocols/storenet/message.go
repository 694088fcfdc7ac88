package storenet

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tally/pb/storepb"
)

const (
	// MaxMessageBytes bounds one encoded message. Waku's networks refuse what is
	// above 150 KiB; the rest is room for older ones. It keeps a response with
	// one message below every client's limit.
	MaxMessageBytes = 256 << 10

	// MaxTopicBytes bounds a pubsub or content topic. Those in use have 20 to
	// 100 bytes.
	MaxTopicBytes = 1024

	// MaxMetaBytes is the limit of the meta attribute (14/WAKU2-MESSAGE).
	MaxMetaBytes = 64

	// DefaultPubsubTopic is shard 0 of Waku's public cluster, for messages that
	// come without a topic and nothing else is configured.
	DefaultPubsubTopic = "/waku/2/rs/1/0"
)

// ErrMessage: a message that the store refuses. The text says why.
var ErrMessage = errors.New("storenet: bad message")

// Hash is the deterministic hash of a message, its id in every store.
type Hash [sha256.Size]byte

// String returns h in lower-case hex.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// Message is one stored message. Its JSON form is a line of the import file and
// of what `store query` prints.
type Message struct {
	ContentTopic   string `json:"content_topic"`
	Payload        []byte `json:"payload"`   // base64 in JSON
	Timestamp      int64  `json:"timestamp"` // Unix time, nanoseconds
	PubsubTopic    string `json:"pubsub_topic,omitempty"`
	Meta           []byte `json:"meta,omitempty"`
	Version        uint32 `json:"version,omitempty"`
	RateLimitProof []byte `json:"rate_limit_proof,omitempty"`
	Ephemeral      bool   `json:"ephemeral,omitempty"`
}

// Hash is SHA-256 over pubsub topic, payload, content topic, meta and the
// timestamp in eight bytes, big endian (14/WAKU2-MESSAGE, deterministic message
// hashing).
func (m *Message) Hash() Hash {
	var at [8]byte
	binary.BigEndian.PutUint64(at[:], uint64(m.Timestamp))
	return m.hash(at[:])
}

func (m *Message) hash(at []byte) (out Hash) {
	h := sha256.New()
	h.Write([]byte(m.PubsubTopic))
	h.Write(m.Payload)
	h.Write([]byte(m.ContentTopic))
	h.Write(m.Meta)
	h.Write(at)
	h.Sum(out[:0])
	return out
}

// hashIs tells whether h is a hash of m. At timestamp 0 there are two: where the
// attribute is absent the specification leaves it out, and an absent one reads
// as 0.
func (m *Message) hashIs(h Hash) bool {
	return m.Hash() == h || m.Timestamp == 0 && m.hash(nil) == h
}

// digest is the hash that 2.0.0-beta4 knows a message by: SHA-256 over content
// topic and payload.
func (m *Message) digest() (out Hash) {
	h := sha256.New()
	h.Write([]byte(m.ContentTopic))
	h.Write(m.Payload)
	h.Sum(out[:0])
	return out
}

// Check returns why the store refuses m, an ErrMessage, or nil.
func (m *Message) Check() error {
	for _, topic := range []struct{ name, value string }{
		{"content_topic", m.ContentTopic}, {"pubsub_topic", m.PubsubTopic},
	} {
		switch {
		case topic.value == "":
			return fmt.Errorf("%w: %s is missing", ErrMessage, topic.name)
		case len(topic.value) > MaxTopicBytes:
			return fmt.Errorf("%w: %s has %d bytes, limit %d", ErrMessage, topic.name, len(topic.value), MaxTopicBytes)
		case !utf8.ValidString(topic.value):
			return fmt.Errorf("%w: %s is not UTF-8", ErrMessage, topic.name)
		}
	}
	if len(m.Meta) > MaxMetaBytes {
		return fmt.Errorf("%w: meta has %d bytes, limit %d", ErrMessage, len(m.Meta), MaxMetaBytes)
	}
	if m.Ephemeral {
		return fmt.Errorf("%w: it is ephemeral and must not be stored", ErrMessage)
	}
	if n := proto.Size(m.proto()); n > MaxMessageBytes {
		return fmt.Errorf("%w: %d bytes encoded, limit %d", ErrMessage, n, MaxMessageBytes)
	}
	return nil
}

// proto converts m at the edge. The topic is not part of a WakuMessage.
func (m *Message) proto() *storepb.WakuMessage {
	w := &storepb.WakuMessage{
		Payload:        m.Payload,
		ContentTopic:   m.ContentTopic,
		Timestamp:      &m.Timestamp,
		Meta:           m.Meta,
		RateLimitProof: m.RateLimitProof,
	}
	if len(m.Meta) == 0 {
		w.Meta = nil
	}
	if len(m.RateLimitProof) == 0 {
		w.RateLimitProof = nil
	}
	if m.Version != 0 {
		w.Version = &m.Version
	}
	if m.Ephemeral {
		w.Ephemeral = &m.Ephemeral
	}
	return w
}

func messageFromProto(w *storepb.WakuMessage, pubsubTopic string) *Message {
	m := &Message{
		PubsubTopic:    pubsubTopic,
		ContentTopic:   w.GetContentTopic(),
		Payload:        w.GetPayload(),
		Timestamp:      w.GetTimestamp(),
		Meta:           w.GetMeta(),
		Version:        w.GetVersion(),
		RateLimitProof: w.GetRateLimitProof(),
		Ephemeral:      w.GetEphemeral(),
	}
	if m.Payload == nil {
		m.Payload = []byte{} // JSON: "" and not null
	}
	return m
}

// Topic chooses the pubsub topic of a message that came without one.
type Topic func(contentTopic string) (pubsubTopic string, err error)

// FixedTopic gives every message the same topic.
func FixedTopic(pubsubTopic string) Topic {
	return func(string) (string, error) { return pubsubTopic, nil }
}

// ShardedTopic gives a message the topic that Waku's autosharding gives it: the
// shard is SHA-256 over application and version of the content topic
// (/application/version/name/encoding), its last eight bytes as a number, modulo
// shards. It is what a light client with an autosharding network config asks
// for.
func ShardedTopic(cluster, shards uint32) Topic {
	return func(contentTopic string) (string, error) {
		parts := strings.Split(strings.TrimPrefix(contentTopic, "/"), "/")
		if len(parts) == 5 && parts[0] == "0" {
			parts = parts[1:] // generation 0, the only one
		}
		if len(parts) != 4 || parts[0] == "" || parts[1] == "" || shards == 0 {
			return "", fmt.Errorf("%w: content topic %q has no shard: want /application/version/name/encoding, or a pubsub_topic", ErrMessage, contentTopic)
		}
		sum := sha256.Sum256([]byte(parts[0] + parts[1]))
		shard := binary.BigEndian.Uint64(sum[24:]) % uint64(shards)
		return fmt.Sprintf("/waku/2/rs/%d/%d", cluster, shard), nil
	}
}
