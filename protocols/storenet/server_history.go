package storenet

import (
	"context"
	"errors"

	"github.com/tallystick/tally/pb/storepb"
)

// historyError is the word of 2.0.0-beta4 for a status. It has none for a full
// tab: TOO_MANY_REQUESTS is the nearest, because a client that knows it waits
// and asks again, which is right. There is no description on the wire.
func historyError(s Status) storepb.HistoryResponse_Error {
	switch s {
	case StatusOK:
		return storepb.HistoryResponse_NONE
	case statusBadCursor:
		return storepb.HistoryResponse_INVALID_CURSOR
	case StatusBadRequest:
		return storepb.HistoryResponse_BAD_REQUEST
	case StatusPaymentRequired, StatusTooManyRequests:
		return storepb.HistoryResponse_TOO_MANY_REQUESTS
	default:
		return storepb.HistoryResponse_SERVICE_UNAVAILABLE
	}
}

// serveHistory is the handler of store 2.0.0-beta4.
func (s *Server) serveHistory(ctx context.Context, x *exchange) Status {
	var rpc storepb.HistoryRPC
	fail := func(r *refusal) Status {
		if x.out.Err == nil {
			x.out.Err = r.err
		}
		s.write(x, &storepb.HistoryRPC{
			RequestId: rpc.GetRequestId(),
			Response:  &storepb.HistoryResponse{Error: historyError(r.status).Enum()},
		}, s.cfg.Limits.MaxResponseBytes)
		if r.status == statusBadCursor {
			return StatusBadRequest
		}
		return r.status
	}
	if x.pass.Busy() {
		return fail(refuse(StatusTooManyRequests, "too many requests under way"))
	}
	if reset, err := s.read(x, &rpc, s.cfg.Limits.MaxRequestBytes); err != nil {
		if reset {
			x.out.Err = err
			return statusReset
		}
		rpc.Reset()
		return fail(refuse(StatusBadRequest, "%w", err))
	}
	page, bad := s.decodeHistory(ctx, &rpc)
	if bad != nil {
		return fail(bad)
	}
	found, bad := s.fetch(ctx, x, page)
	if bad != nil {
		return fail(bad)
	}
	s.write(x, &storepb.HistoryRPC{
		RequestId: rpc.GetRequestId(),
		Response:  historyResponse(found, page.Backward),
	}, s.cfg.Limits.MaxResponseBytes)
	x.out.Messages = len(found.Entries)
	return StatusOK
}

// decodeHistory converts and checks a query. A query without paging info is one
// forward page of the default size, as nwaku reads it; within paging info an
// absent direction is its zero, backward.
func (s *Server) decodeHistory(ctx context.Context, rpc *storepb.HistoryRPC) (PageRequest, *refusal) {
	if n := len(rpc.GetRequestId()); n > maxRequestID {
		rpc.RequestId = ""
		return PageRequest{}, refuse(StatusBadRequest, "request_id has %d bytes, limit %d", n, maxRequestID)
	}
	q := rpc.GetQuery()
	if q == nil {
		return PageRequest{}, refuse(StatusBadRequest, "there is no query in it")
	}
	paging := q.GetPagingInfo()
	r := PageRequest{
		Filter:   Filter{PubsubTopic: q.GetPubsubTopic(), Start: q.GetStartTime(), End: q.GetEndTime()},
		Backward: paging != nil && paging.GetDirection() == storepb.PagingInfo_BACKWARD,
		Limit:    s.limit(paging.GetPageSize()),
	}
	if n := len(q.GetContentFilters()); n > s.cfg.Limits.MaxContentTopics {
		return PageRequest{}, refuse(StatusBadRequest, "%d content topics, limit %d", n, s.cfg.Limits.MaxContentTopics)
	}
	for _, f := range q.GetContentFilters() {
		r.ContentTopics = append(r.ContentTopics, f.GetContentTopic())
	}
	if bad := s.checkFilter(&r.Filter); bad != nil {
		return PageRequest{}, bad
	}
	if index := paging.GetCursor(); index != nil {
		cursor, err := s.findIndex(ctx, index)
		switch {
		case errors.Is(err, ErrCursor):
			return PageRequest{}, &refusal{status: statusBadCursor, err: err}
		case err != nil:
			return PageRequest{}, &refusal{status: StatusUnavailable, err: err}
		}
		r.Cursor = &cursor
	}
	return r, nil
}

// findIndex finds the message of an index: by the message hash that we put into
// the digest, or by the digest that the specification has, of a client that
// made the index from a message.
func (s *Server) findIndex(ctx context.Context, index *storepb.Index) (Hash, error) {
	raw := index.GetDigest()
	if len(raw) != len(Hash{}) {
		return Hash{}, ErrCursor
	}
	digest := Hash(raw)
	if _, err := s.store.hashRecord(ctx, digest); err == nil {
		return digest, nil // whether it counts is for Page to say
	}
	return s.store.findDigest(ctx, index.GetSenderTime(), index.GetPubsubTopic(), digest)
}

// historyResponse converts a page. Zeros are set, not left out: nwaku takes a
// missing field of these for an error.
func historyResponse(page Page, backward bool) *storepb.HistoryResponse {
	direction := storepb.PagingInfo_FORWARD
	if backward {
		direction = storepb.PagingInfo_BACKWARD
	}
	res := &storepb.HistoryResponse{
		Messages: make([]*storepb.WakuMessage, len(page.Entries)),
		PagingInfo: &storepb.PagingInfo{
			PageSize:  new(uint64(len(page.Entries))),
			Direction: direction.Enum(),
		},
		Error: storepb.HistoryResponse_NONE.Enum(),
	}
	for i := range page.Entries {
		res.Messages[i] = page.Entries[i].Message.proto()
	}
	if page.More && len(page.Entries) > 0 {
		last := page.last(backward)
		res.PagingInfo.Cursor = &storepb.Index{
			Digest:       last.Hash[:],
			ReceiverTime: &last.Message.Timestamp,
			SenderTime:   &last.Message.Timestamp,
			PubsubTopic:  &last.Message.PubsubTopic,
		}
	}
	return res
}
