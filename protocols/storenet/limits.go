package storenet

import (
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/protocol"
)

const (
	// QueryID is the protocol of Waku's current light clients.
	QueryID protocol.ID = "/vac/waku/store-query/3.0.0"

	// HistoryID is the protocol before it, which SWAP was written for.
	HistoryID protocol.ID = "/vac/waku/store/2.0.0-beta4"

	// MetadataID tells cluster and shards of a node.
	MetadataID protocol.ID = "/vac/waku/metadata/1.0.0"

	// ServiceName is what rcmgr counts our streams under.
	ServiceName = "tally.storenet"

	// entryOverhead is what a message costs in a response over its own bytes and
	// those of its pubsub topic: hash, tags and lengths of the larger layout,
	// rounded up.
	entryOverhead = 64

	// responseOverhead is what a response costs without messages: request id,
	// status, description, cursor, rounded up.
	responseOverhead = 4 << 10

	// maxRequestID bounds the request id that we repeat, bytes; a UUID has 36.
	maxRequestID = 256

	// maxDesc bounds the description of a status that we send or keep, bytes.
	maxDesc = 512

	// maxMetadata bounds a metadata frame: 1024 shards at 3 bytes and some.
	maxMetadata = 4 << 10
)

// Limits bounds what peers can make the server do. All are enforced by the
// server itself; rcmgr's limits come on top.
type Limits struct {
	// MaxRequestBytes bounds one request frame. Default 64 KiB: a full list of
	// content topics of the usual length, or of hashes, fits several times.
	MaxRequestBytes int

	// MaxResponseBytes bounds one response frame; a page that would be larger is
	// cut and carries a cursor. Default 1 MiB. js-waku takes no more than 4 MiB,
	// the smallest limit of the clients we know.
	MaxResponseBytes int

	// MaxPage is the largest page, messages. Default 100, as nwaku.
	MaxPage int

	// DefaultPage is the page where none is asked for. Default 20, as nwaku.
	DefaultPage int

	// MaxContentTopics bounds the content topics of one request. Default 100.
	MaxContentTopics int

	// MaxHashes bounds the hashes of one look-up. Default 100: one page.
	MaxHashes int

	// MaxRequests bounds requests under way, all peers together. Default 64:
	// with MaxRequestBytes and MaxResponseBytes it bounds memory to 68 MiB.
	MaxRequests int

	// MaxPeerRequests bounds requests under way from one peer. Default 8.
	MaxPeerRequests int

	// RequestTimeout bounds one request from its first byte to the last of the
	// response. Default 30 s.
	RequestTimeout time.Duration
}

// DefaultLimits returns the defaults that the fields of Limits state.
func DefaultLimits() Limits {
	return Limits{
		MaxRequestBytes:  64 << 10,
		MaxResponseBytes: 1 << 20,
		MaxPage:          100,
		DefaultPage:      20,
		MaxContentTopics: 100,
		MaxHashes:        100,
		MaxRequests:      64,
		MaxPeerRequests:  8,
		RequestTimeout:   30 * time.Second,
	}
}

// ErrLimits: limits that cannot work. The text names the field.
var ErrLimits = errors.New("storenet: bad limits")

// Validate returns which field is wrong, an ErrLimits, or nil.
func (l Limits) Validate() error {
	for _, f := range []struct {
		name       string
		value, min int
	}{
		{"MaxRequestBytes", l.MaxRequestBytes, 1 << 10},
		{"MaxResponseBytes", l.MaxResponseBytes, MaxMessageBytes + MaxTopicBytes + entryOverhead + responseOverhead},
		{"MaxPage", l.MaxPage, 1},
		{"DefaultPage", l.DefaultPage, 1},
		{"MaxContentTopics", l.MaxContentTopics, 1},
		{"MaxHashes", l.MaxHashes, 1},
		{"MaxRequests", l.MaxRequests, 1},
		{"MaxPeerRequests", l.MaxPeerRequests, 1},
	} {
		if f.value < f.min {
			return fmt.Errorf("%w: %s is %d, must be at least %d", ErrLimits, f.name, f.value, f.min)
		}
	}
	if l.DefaultPage > l.MaxPage {
		return fmt.Errorf("%w: DefaultPage %d is above MaxPage %d", ErrLimits, l.DefaultPage, l.MaxPage)
	}
	if l.RequestTimeout <= 0 {
		return fmt.Errorf("%w: RequestTimeout must be above zero", ErrLimits)
	}
	return nil
}
