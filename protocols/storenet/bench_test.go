package storenet

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/tallystick/tally/internal/durable"
)

// BenchmarkImport imports files of 100 000 messages of 100 bytes into a store on
// disk; ns/op is for one message.
func BenchmarkImport(b *testing.B) {
	const n = 100_000
	disk, err := durable.Open(b.TempDir(), durable.WithLogger(quiet()))
	if err != nil {
		b.Fatal(err)
	}
	defer disk.Close()
	s := openStore(b, disk)
	var file bytes.Buffer
	round := 0
	for i := 0; b.Loop(); i++ {
		if i%n == 0 {
			b.StopTimer()
			file.Reset()
			for j := range n {
				m := numbered(round*n + j)
				m.Payload = bytes.Repeat([]byte{byte(j)}, 100)
				file.WriteString(ndjson(b, m))
			}
			round++
			b.StartTimer()
			res, err := s.Import(context.Background(), bytes.NewReader(file.Bytes()), ImportOptions{})
			if err != nil || res.Added != n {
				b.Fatal(res, err)
			}
		}
	}
}

// BenchmarkPage reads pages of 20 in the middle of 100 000 messages on disk.
func BenchmarkPage(b *testing.B) {
	disk, err := durable.Open(b.TempDir(), durable.WithLogger(quiet()))
	if err != nil {
		b.Fatal(err)
	}
	defer disk.Close()
	s := openStore(b, disk)
	for i := range 100 {
		var batch []*Message
		for j := range 1000 {
			m := numbered(1000*i + j)
			m.Payload = bytes.Repeat([]byte{byte(j)}, 100)
			batch = append(batch, m)
		}
		if _, err := s.Add(context.Background(), batch...); err != nil {
			b.Fatal(err)
		}
	}
	page, err := s.Page(context.Background(), PageRequest{Limit: 1, Filter: Filter{Start: numbered(50_000).Timestamp}})
	if err != nil {
		b.Fatal(err)
	}
	for name, f := range map[string]Filter{
		"all": {}, "pubsub": {PubsubTopic: numbered(0).PubsubTopic}, "content": {ContentTopics: []string{numbered(0).ContentTopic}},
		"both": {PubsubTopic: numbered(0).PubsubTopic, ContentTopics: []string{numbered(0).ContentTopic, numbered(1).ContentTopic}},
	} {
		for _, backward := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/backward=%v", name, backward), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					got, err := s.Page(context.Background(), PageRequest{Filter: f, Limit: 20, Backward: backward, Cursor: &page.Entries[0].Hash})
					if err != nil || len(got.Entries) != 20 {
						b.Fatal(len(got.Entries), err)
					}
				}
			})
		}
	}
}

// BenchmarkQuery is one metered page of 20 over two hosts; the client's stream,
// the server's page and both bookings.
func BenchmarkQuery(b *testing.B) {
	client, server := pair(b)
	store := newStore(b)
	fill(b, store, 100)
	serve(b, server, store, Config{Meter: newMeter(1 << 60)})
	c := NewClient(client, ClientConfig{Meter: newMeter(1 << 60)})
	for b.Loop() {
		res, err := c.Query(context.Background(), server.ID(), Query{Limit: 20}, func(Hash, *Message) error { return nil })
		if err != nil || res.Messages != 20 {
			b.Fatal(res, err)
		}
	}
}
