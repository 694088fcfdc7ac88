package rpc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Bounds of one stored message.
const (
	// MaxTopicBytes bounds a content or pubsub topic. Topics have a fixed form
	// of four short words; the bound leaves room for any.
	MaxTopicBytes = 512
	// MaxPayloadBytes bounds the payload of one message: the largest message
	// that Waku relays is 150 KiB.
	MaxPayloadBytes = 150 << 10
)

// Message is one stored message. It is a line of the files that `tally store
// import` reads and of what `tally store query` prints.
type Message struct {
	ContentTopic string `json:"content_topic"`
	// Payload is base64 in JSON.
	Payload []byte `json:"payload"`
	// Timestamp is in nanoseconds of Unix time.
	Timestamp int64 `json:"timestamp"`
	// PubsubTopic is empty where it is the configured default.
	PubsubTopic string `json:"pubsub_topic,omitempty"`
}

// Validate reports the first field that no store takes.
func (m Message) Validate() error {
	switch {
	case m.ContentTopic == "":
		return errors.New("content_topic is empty")
	case len(m.ContentTopic) > MaxTopicBytes:
		return fmt.Errorf("content_topic has %d bytes, over %d", len(m.ContentTopic), MaxTopicBytes)
	case len(m.PubsubTopic) > MaxTopicBytes:
		return fmt.Errorf("pubsub_topic has %d bytes, over %d", len(m.PubsubTopic), MaxTopicBytes)
	case len(m.Payload) > MaxPayloadBytes:
		return fmt.Errorf("payload has %d bytes, over %d", len(m.Payload), MaxPayloadBytes)
	}
	return nil
}

// ParseMessage reads one line of an import file. It takes exactly the fields of
// Message, and all but pubsub_topic must be there: a misspelt key is an error
// and not a message with a hole.
func ParseMessage(line []byte) (Message, error) {
	var raw struct {
		ContentTopic *string `json:"content_topic"`
		Payload      *[]byte `json:"payload"`
		Timestamp    *int64  `json:"timestamp"`
		PubsubTopic  string  `json:"pubsub_topic"`
	}
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&raw); err != nil {
		return Message{}, explainJSON(err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return Message{}, errors.New("more than one JSON value on the line")
	}
	switch {
	case raw.ContentTopic == nil:
		return Message{}, errors.New("content_topic is missing")
	case raw.Payload == nil:
		return Message{}, errors.New("payload is missing")
	case raw.Timestamp == nil:
		return Message{}, errors.New("timestamp is missing")
	}
	m := Message{ContentTopic: *raw.ContentTopic, Payload: *raw.Payload, Timestamp: *raw.Timestamp, PubsubTopic: raw.PubsubTopic}
	return m, m.Validate()
}

// explainJSON puts an error of encoding/json into words of the file.
func explainJSON(err error) error {
	var typ *json.UnmarshalTypeError
	if errors.As(err, &typ) {
		want := map[string]string{"timestamp": "a whole number of nanoseconds", "payload": "base64 text"}[typ.Field]
		if want == "" {
			want = "text"
		}
		if typ.Field == "" {
			return fmt.Errorf("want a JSON object, got %s", typ.Value)
		}
		return fmt.Errorf("%s: want %s, got %s", typ.Field, want, typ.Value)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the JSON object is cut off")
	}
	return fmt.Errorf("not a message: %w", err)
}
