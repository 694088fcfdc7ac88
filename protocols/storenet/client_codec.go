package storenet

import (
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tally/pb/storepb"
	"github.com/tallystick/tally/protocols/internal/wire"
)

// cursor is where the next page starts, in the words of the protocol in use.
type cursor struct {
	hash  *Hash          // 3.0.0
	index *storepb.Index // 2.0.0-beta4
}

func (c cursor) set() bool { return c.hash != nil || c.index != nil }

// answer is a response, oldest message first.
type answer struct {
	entries  []Entry
	received int // messages in it, also where they were not decoded
	next     cursor
}

// codec is one of the two protocols as the client speaks it.
type codec struct {
	// request writes the request for one page.
	request func(id string, q *Query, ask int, at cursor) proto.Message
	// response reads one; a refusal is a RefusedError, anything odd an
	// ErrAnswer.
	response func(frame []byte, id string, from peer.ID, q *Query) (answer, error)
	// count is the number of messages in a frame, read or not.
	count func(frame []byte) int
	// hashes tells that the response carries the hash of each message.
	hashes bool
}

var codecs = map[protocol.ID]codec{
	QueryID:   {request: queryRequest, response: readQueryResponse, count: countQuery, hashes: true},
	HistoryID: {request: historyRequest, response: readHistoryResponse, count: countHistory},
}

func queryRequest(id string, q *Query, ask int, at cursor) proto.Message {
	req := &storepb.StoreQueryRequest{
		RequestId:         id,
		IncludeData:       !q.NoData,
		ContentTopics:     q.ContentTopics,
		PaginationForward: !q.Backward,
		PaginationLimit:   new(uint64(ask)),
	}
	if q.PubsubTopic != "" {
		req.PubsubTopic = &q.PubsubTopic
	}
	if q.Start != 0 {
		req.TimeStart = &q.Start
	}
	if q.End != 0 {
		req.TimeEnd = &q.End
	}
	for i := range q.Hashes {
		req.MessageHashes = append(req.MessageHashes, q.Hashes[i][:])
	}
	if at.hash != nil {
		req.PaginationCursor = at.hash[:]
	}
	return req
}

func readQueryResponse(frame []byte, id string, from peer.ID, q *Query) (answer, error) {
	var res storepb.StoreQueryResponse
	if err := wire.Unmarshal(frame, &res); err != nil {
		return answer{}, fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	if status := Status(res.GetStatusCode()); status != StatusOK {
		return answer{}, &RefusedError{Remote: from, Status: status, Desc: cut(res.GetStatusDesc())}
	}
	if res.GetRequestId() != id {
		return answer{}, fmt.Errorf("%w: it is for another request", ErrAnswer)
	}
	page := answer{entries: make([]Entry, len(res.GetMessages()))}
	for i, kv := range res.GetMessages() {
		if len(kv.GetMessageHash()) != len(Hash{}) {
			return answer{}, fmt.Errorf("%w: message %d has a hash of %d bytes", ErrAnswer, i, len(kv.GetMessageHash()))
		}
		page.entries[i].Hash = Hash(kv.GetMessageHash())
		if q.NoData {
			continue
		}
		if kv.GetMessage() == nil {
			return answer{}, fmt.Errorf("%w: message %d has no data", ErrAnswer, i)
		}
		page.entries[i].Message = messageFromProto(kv.GetMessage(), kv.GetPubsubTopic())
	}
	switch raw := res.GetPaginationCursor(); {
	case len(raw) == 0:
	case len(raw) != len(Hash{}):
		return answer{}, fmt.Errorf("%w: the cursor has %d bytes", ErrAnswer, len(raw))
	case len(page.entries) > 0:
		// By definition the place of the last message. Ours cannot be led
		// astray.
		last := (&Page{Entries: page.entries}).last(q.Backward).Hash
		page.next.hash = &last
	default:
		hash := Hash(raw)
		page.next.hash = &hash
	}
	return page, nil
}

func historyRequest(id string, q *Query, ask int, at cursor) proto.Message {
	direction := storepb.PagingInfo_FORWARD
	if q.Backward {
		direction = storepb.PagingInfo_BACKWARD
	}
	req := &storepb.HistoryQuery{
		PagingInfo: &storepb.PagingInfo{PageSize: new(uint64(ask)), Cursor: at.index, Direction: direction.Enum()},
	}
	if q.PubsubTopic != "" {
		req.PubsubTopic = &q.PubsubTopic
	}
	for _, topic := range q.ContentTopics {
		req.ContentFilters = append(req.ContentFilters, &storepb.ContentFilter{ContentTopic: topic})
	}
	if q.Start != 0 {
		req.StartTime = &q.Start
	}
	if q.End != 0 {
		req.EndTime = &q.End
	}
	return &storepb.HistoryRPC{RequestId: id, Query: req}
}

func readHistoryResponse(frame []byte, id string, from peer.ID, q *Query) (answer, error) {
	var rpc storepb.HistoryRPC
	if err := wire.Unmarshal(frame, &rpc); err != nil {
		return answer{}, fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	res := rpc.GetResponse()
	switch {
	case res == nil:
		return answer{}, fmt.Errorf("%w: there is no response in it", ErrAnswer)
	case res.GetError() == storepb.HistoryResponse_INVALID_CURSOR:
		return answer{}, &RefusedError{Remote: from, Status: StatusBadRequest, Desc: "INVALID_CURSOR"}
	case res.GetError() != storepb.HistoryResponse_NONE:
		return answer{}, &RefusedError{Remote: from, Status: Status(res.GetError()), Desc: res.GetError().String()}
	case rpc.GetRequestId() != id:
		return answer{}, fmt.Errorf("%w: it is for another request", ErrAnswer)
	}
	page := answer{entries: make([]Entry, len(res.GetMessages()))}
	for i, w := range res.GetMessages() {
		// The topic is not on the wire; it is that of the query, or not known,
		// and then the hash is not either.
		m := messageFromProto(w, q.PubsubTopic)
		page.entries[i].Message = m
		page.entries[i].Hash = m.Hash()
	}
	page.next.index = res.GetPagingInfo().GetCursor()
	return page, nil
}

const (
	queryMessagesField    protowire.Number = 20 // StoreQueryResponse.messages
	historyResponseField  protowire.Number = 3  // HistoryRPC.response
	historyMessagesFields protowire.Number = 2  // HistoryResponse.messages
)

func countQuery(frame []byte) (n int) {
	eachField(frame, queryMessagesField, func([]byte) { n++ })
	return n
}

func countHistory(frame []byte) (n int) {
	// A field of a message type that comes twice is merged, and so are its
	// repeated fields.
	eachField(frame, historyResponseField, func(res []byte) {
		eachField(res, historyMessagesFields, func([]byte) { n++ })
	})
	return n
}

// eachField calls fn with each length-delimited field of that number, as far as
// b is well formed; what is not is refused when it is decoded.
func eachField(b []byte, want protowire.Number, fn func([]byte)) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return
		}
		b = b[n:]
		if num == want && typ == protowire.BytesType {
			value, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return
			}
			fn(value)
			b = b[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return
		}
		b = b[n:]
	}
}
