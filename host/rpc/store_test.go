package rpc

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func testMessages(n, payload int) []Message {
	ms := make([]Message, n)
	for i := range ms {
		ms[i] = Message{ContentTopic: "/app/1/chat/proto", Payload: bytes.Repeat([]byte{byte(i)}, payload), Timestamp: int64(i)}
	}
	return ms
}

func TestImportAndQuery(t *testing.T) {
	node := newFakeNode()
	c := dial(t, serve(t, node, Config{}), token(t, AllPerms...))
	want := testMessages(45, 100_000) // several chunks
	var progress []int
	result, err := c.Import(t.Context(), want, func(n int) { progress = append(progress, n) })
	if err != nil || result.Imported != 45 {
		t.Fatalf("%+v %v", result, err)
	}
	if len(progress) < 2 || progress[len(progress)-1] != 45 {
		t.Errorf("progress %v", progress)
	}
	if !reflect.DeepEqual(node.messages, want) {
		t.Error("the messages changed on the way")
	}
	var got []Message
	pages := 0
	for page, err := range c.Query(t.Context(), testPeer, StoreQuery{PageSize: 20}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, page.Messages...)
		pages++
	}
	if pages != 3 || !reflect.DeepEqual(got, want) {
		t.Errorf("%d messages in %d pages", len(got), pages)
	}
}

// The chunks that the client makes of the worst messages fit the server's
// body.
func TestWorstImportFits(t *testing.T) {
	c := dial(t, serve(t, newFakeNode(), Config{}), token(t, AllPerms...))
	worst := testMessages(4000, 0)
	for i := range worst {
		worst[i].ContentTopic = strings.Repeat("\x01", 400+i%100)
		worst[i].PubsubTopic = "\x02"
	}
	if _, err := c.Import(t.Context(), worst, nil); err != nil {
		t.Error(err)
	}
}

func TestImportIsAllOrNothing(t *testing.T) {
	node := newFakeNode()
	c := dial(t, serve(t, node, Config{}), token(t, AllPerms...))
	begin := func() string {
		s, err := c.StoreImportBegin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s.Session
	}
	ms := testMessages(3, 10)
	for name, try := range map[string]func() error{
		"bad message": func() error {
			s := begin()
			_, err := c.StoreImportChunk(t.Context(), s, 0, []Message{ms[0], {Timestamp: 1}})
			if Explain(err).Code != CodeBadMessage || !strings.Contains(err.Error(), "message 2") {
				t.Errorf("%v", err)
			}
			_, err = c.StoreImportCommit(t.Context(), s, 1)
			return err
		},
		"chunk twice": func() error {
			s := begin()
			_, _ = c.StoreImportChunk(t.Context(), s, 0, ms)
			_, _ = c.StoreImportChunk(t.Context(), s, 0, ms)
			_, err := c.StoreImportCommit(t.Context(), s, 3)
			return err
		},
		"chunk missing": func() error {
			s := begin()
			_, _ = c.StoreImportChunk(t.Context(), s, 1, ms)
			_, err := c.StoreImportCommit(t.Context(), s, 3)
			return err
		},
		"wrong total": func() error {
			s := begin()
			_, _ = c.StoreImportChunk(t.Context(), s, 0, ms)
			_, err := c.StoreImportCommit(t.Context(), s, 4)
			return err
		},
		"aborted": func() error {
			s := begin()
			_, _ = c.StoreImportChunk(t.Context(), s, 0, ms)
			_, _ = c.StoreImportAbort(t.Context(), s)
			_, err := c.StoreImportCommit(t.Context(), s, 3)
			return err
		},
		"unknown": func() error {
			_, err := c.StoreImportCommit(t.Context(), "deadbeef", 0)
			return err
		},
	} {
		if err := try(); Explain(err).Code != CodeImportSession {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(node.messages) != 0 {
		t.Errorf("%d messages were stored", len(node.messages))
	}
}

func TestImportBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newImportSet()
		s.limit = 1000
		var names []string
		for range maxImportSessions {
			session, err := s.begin()
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, session.Session)
		}
		if _, err := s.begin(); Explain(err).Code != CodeBusy {
			t.Errorf("one too many: %v", err)
		}
		if err := s.chunk(names[0], 0, testMessages(1, 500)); err != nil {
			t.Fatal(err)
		}
		if err := s.chunk(names[1], 0, testMessages(1, 500)); Explain(err).Code != CodeImportTooLarge {
			t.Errorf("two sessions over the limit: %v", err)
		}
		if _, err := s.take(names[0], 1); err != nil {
			t.Error(err)
		}
		time.Sleep(importIdle + time.Second) // bubble
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.sessions) != 0 || s.bytes != 0 {
			t.Errorf("%d idle sessions stay with %d bytes", len(s.sessions), s.bytes)
		}
	})
}

func TestParseMessage(t *testing.T) {
	m, err := ParseMessage([]byte(`{"content_topic":"/a/1/b/proto","payload":"aGk=","timestamp":1700000000000000001}`))
	if err != nil || string(m.Payload) != "hi" || m.Timestamp != 1700000000000000001 || m.PubsubTopic != "" {
		t.Fatalf("%+v %v", m, err)
	}
	line, _ := json.Marshal(m)
	if again, err := ParseMessage(line); err != nil || !reflect.DeepEqual(again, m) {
		t.Errorf("%+v %v", again, err)
	}
	for line, cause := range map[string]string{
		``:                                    "cut off",
		`[]`:                                  "want a JSON object",
		`{}`:                                  "content_topic is missing",
		`{"content_topic":"a","timestamp":1}`: "payload is missing",
		`{"content_topic":"a","payload":""}`:  "timestamp is missing",
		`{"content_topic":"a","payload":null,"timestamp":1}`:                              "payload is missing",
		`{"content_topic":"","payload":"","timestamp":1}`:                                 "content_topic is empty",
		`{"content_topic":5,"payload":"","timestamp":1}`:                                  "content_topic: want text",
		`{"content_topic":"a","payload":"!","timestamp":1}`:                               "base64",
		`{"content_topic":"a","payload":"","timestamp":1.5}`:                              "whole number of nanoseconds",
		`{"content_topic":"a","payload":"","timestamp":99999999999999999999}`:             "whole number of nanoseconds",
		`{"content_topic":"a","payload":"","timestamp":"1"}`:                              "whole number of nanoseconds",
		`{"content_topic":"a","payload":"","timestamp":1,"pubsubTopic":"x"}`:              "pubsubTopic",
		`{"content_topic":"a","payload":"","timestamp":1}{}`:                              "more than one",
		`{"content_topic":"a","payload":"","timestamp":1`:                                 "cut off",
		`{"content_topic":"` + strings.Repeat("a", 513) + `","payload":"","timestamp":1}`: "over 512",
	} {
		if _, err := ParseMessage([]byte(line)); err == nil || !strings.Contains(err.Error(), cause) {
			t.Errorf("%s: %v, want %s", line, err, cause)
		}
	}
}

func FuzzParseMessage(f *testing.F) {
	f.Add([]byte(`{"content_topic":"/a/1/b/proto","payload":"aGk=","timestamp":1,"pubsub_topic":"x"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := ParseMessage(line)
		if err != nil {
			return
		}
		out, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := ParseMessage(out); err != nil || !reflect.DeepEqual(again, m) {
			t.Fatalf("%+v, %v", again, err)
		}
	})
}

func TestEventLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewEventLog(time.Now())
		for i := range eventLogSize + 10 {
			l.Append(time.Now(), fmt.Sprint(i), "", nil)
		}
		cursor, seen := uint64(0), 0
		for seen < eventLogSize {
			batch := l.Since(t.Context(), cursor)
			if batch.Missed || len(batch.Events) > MaxEventBatch {
				t.Fatalf("%d events, missed %v", len(batch.Events), batch.Missed)
			}
			for _, e := range batch.Events {
				if want := fmt.Sprint(10 + seen); e.Kind != want {
					t.Fatalf("event %s, want %s", e.Kind, want)
				}
				seen++
			}
			cursor = batch.Cursor
		}
		if batch := l.Since(t.Context(), l.first-2); !batch.Missed || batch.Events[0].Kind != "10" {
			t.Errorf("a gap is not told: %v", batch.Missed)
		}
		if batch := l.Since(t.Context(), cursor+5); !batch.Missed {
			t.Error("a cursor from nowhere is not told")
		}
		old := NewEventLog(time.Now().Add(-time.Hour))
		old.Append(time.Now(), "old", "", nil)
		if batch := l.Since(t.Context(), old.next-1); !batch.Missed {
			t.Error("a cursor of an earlier run is not told")
		}
		got := make(chan EventBatch)
		go func() { got <- l.Since(t.Context(), cursor) }() // ends with the event
		synctest.Wait()
		l.Append(time.Now(), "new", "", nil)
		if batch := <-got; len(batch.Events) != 1 || batch.Events[0].Kind != "new" {
			t.Errorf("%+v", batch)
		}
	})
}
