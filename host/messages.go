package host

import (
	"context"
	"fmt"
	"io"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/protocols/storenet"
)

// Defaults of the message store: the shards of the Waku network.
const (
	defaultCluster = 1
	defaultShards  = 8
)

func (cfg MessagesConfig) complete() MessagesConfig {
	if len(cfg.Shards) == 0 {
		if cfg.Cluster == 0 {
			cfg.Cluster = defaultCluster
		}
		for i := range uint32(defaultShards) {
			cfg.Shards = append(cfg.Shards, i)
		}
	}
	return cfg
}

// AutoTopic asks for the pubsub topic that Waku's autosharding gives a content
// topic. A content topic of another form than /application/version/name/encoding
// takes the first shard.
const AutoTopic = "auto"

// topicOf gives messages without a pubsub topic theirs.
func (cfg MessagesConfig) topicOf() storenet.Topic {
	if cfg.PubsubTopic != "" && cfg.PubsubTopic != AutoTopic {
		return storenet.FixedTopic(cfg.PubsubTopic)
	}
	sharded := storenet.ShardedTopic(cfg.Cluster, uint32(len(cfg.Shards)))
	first := fmt.Sprintf("/waku/2/rs/%d/%d", cfg.Cluster, cfg.Shards[0])
	return func(content string) (string, error) {
		if topic, err := sharded(content); err == nil {
			return topic, nil
		}
		return first, nil
	}
}

func (n *Node) openMessages(ctx context.Context, cfg MessagesConfig) (err error) {
	cfg = cfg.complete()
	if n.messages, err = storenet.OpenStore(ctx, n.store); err != nil {
		return err
	}
	meter := storeMeter{n.book}
	n.topic = cfg.topicOf()
	n.server, err = storenet.NewServer(n.host, n.messages, storenet.Config{
		Limits: cfg.Limits, Meter: meter, Cluster: cfg.Cluster, Shards: cfg.Shards, Logger: n.log,
	})
	if err != nil {
		return err
	}
	n.client = storenet.NewClient(n.host, storenet.ClientConfig{Meter: meter})
	return nil
}

// Import adds newline-delimited JSON messages to the store: all of them, or on
// an error none. See storenet.Store.Import.
func (n *Node) Import(ctx context.Context, file io.ReadSeeker, progress func(storenet.ImportProgress)) (storenet.ImportResult, error) {
	if n.messages == nil {
		return storenet.ImportResult{}, ErrNoMessages
	}
	return n.messages.Import(ctx, file, storenet.ImportOptions{Topic: n.topic, Progress: progress})
}

// Query asks p's store for messages, page by page, each accounted on the tab
// with p. See storenet.Client.Query.
func (n *Node) Query(ctx context.Context, p peer.ID, q storenet.Query, fn func(*storenet.Message) error) (storenet.Result, error) {
	if n.client == nil {
		return storenet.Result{}, ErrNoMessages
	}
	return n.client.Query(ctx, p, q, func(_ storenet.Hash, m *storenet.Message) error { return fn(m) })
}

// queryPage asks for one page in the words of the RPC.
func (n *Node) queryPage(ctx context.Context, p peer.ID, q rpc.StoreQuery) (rpc.StorePage, error) {
	query := storenet.Query{
		Filter:   storenet.Filter{PubsubTopic: q.PubsubTopic, ContentTopics: q.ContentTopics},
		Backward: q.Backward, PageSize: q.PageSize,
	}
	if q.Start != nil {
		query.Start = *q.Start
	}
	if q.End != nil {
		query.End = *q.End
	}
	page, err := n.client.Page(ctx, p, query, q.Cursor)
	if err != nil {
		return rpc.StorePage{}, err
	}
	out := rpc.StorePage{Messages: make([]rpc.Message, len(page.Messages)), Cursor: page.Next, Cost: uint64(page.Units)}
	for i, m := range page.Messages {
		out.Messages[i] = rpc.Message{ContentTopic: m.ContentTopic, Payload: m.Payload, Timestamp: m.Timestamp}
		if topic, err := n.topic(m.ContentTopic); err != nil || topic != m.PubsubTopic {
			out.Messages[i].PubsubTopic = m.PubsubTopic // what is left out is what an import here would give it
		}
	}
	return out, nil
}
