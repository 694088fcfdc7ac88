package storenet

import (
	"context"

	"github.com/tallystick/tally/pb/storepb"
)

// serveQuery is the handler of store-query 3.0.0.
func (s *Server) serveQuery(ctx context.Context, x *exchange) Status {
	var req storepb.StoreQueryRequest
	answer := func(page Page, backward bool, r *refusal) Status {
		res := queryResponse(req.GetRequestId(), page, backward, r)
		s.write(x, res, s.cfg.Limits.MaxResponseBytes)
		x.out.Messages = len(page.Entries)
		return Status(res.GetStatusCode())
	}
	fail := func(r *refusal) Status {
		if x.out.Err == nil {
			x.out.Err = r.err
		}
		return answer(Page{}, false, r)
	}
	if x.pass.Busy() {
		return fail(refuse(StatusTooManyRequests, "too many requests under way"))
	}
	if reset, err := s.read(x, &req, s.cfg.Limits.MaxRequestBytes); err != nil {
		if reset {
			x.out.Err = err
			return statusReset
		}
		req.Reset()
		return fail(refuse(StatusBadRequest, "%w", err))
	}
	page, bad := s.decodeQuery(&req)
	if bad != nil {
		return fail(bad)
	}
	found, bad := s.fetch(ctx, x, page)
	if bad != nil {
		return fail(bad)
	}
	return answer(found, page.Backward, nil)
}

// decodeQuery converts and checks a request.
func (s *Server) decodeQuery(req *storepb.StoreQueryRequest) (PageRequest, *refusal) {
	l := s.cfg.Limits
	if n := len(req.GetRequestId()); n > maxRequestID {
		req.RequestId = ""
		return PageRequest{}, refuse(StatusBadRequest, "request_id has %d bytes, limit %d", n, maxRequestID)
	}
	r := PageRequest{
		Filter: Filter{
			PubsubTopic:   req.GetPubsubTopic(),
			ContentTopics: req.GetContentTopics(),
			Start:         req.GetTimeStart(),
			End:           req.GetTimeEnd(),
		},
		Backward: !req.GetPaginationForward(),
		Limit:    s.limit(req.GetPaginationLimit()),
		NoData:   !req.GetIncludeData(),
	}
	if bad := s.checkFilter(&r.Filter); bad != nil {
		return PageRequest{}, bad
	}
	if n := len(req.GetMessageHashes()); n > l.MaxHashes {
		return PageRequest{}, refuse(StatusBadRequest, "%d message hashes, limit %d", n, l.MaxHashes)
	} else if n > 0 && (len(r.ContentTopics) > 0 || r.Start != 0 || r.End != 0) {
		// A pubsub topic is let through: js-waku sends one with every look-up.
		return PageRequest{}, refuse(StatusBadRequest, "message_hashes cannot be joined with content topics or times")
	}
	for _, raw := range req.GetMessageHashes() {
		if len(raw) != len(Hash{}) {
			return PageRequest{}, refuse(StatusBadRequest, "a message hash has %d bytes, want %d", len(raw), len(Hash{}))
		}
		r.Hashes = append(r.Hashes, Hash(raw))
	}
	if raw := req.GetPaginationCursor(); len(raw) == len(Hash{}) {
		cursor := Hash(raw)
		r.Cursor = &cursor
	} else if len(raw) > 0 {
		return PageRequest{}, refuse(StatusBadRequest, "the cursor has %d bytes, want %d", len(raw), len(Hash{}))
	}
	return r, nil
}

// queryResponse converts a page or a refusal. Status and description are always
// on the wire: nwaku takes a missing one for an error.
func queryResponse(id string, page Page, backward bool, r *refusal) *storepb.StoreQueryResponse {
	res := &storepb.StoreQueryResponse{RequestId: id, StatusCode: new(uint32(StatusOK)), StatusDesc: new("OK")}
	if r != nil {
		status := r.status
		if status == statusBadCursor {
			status = StatusBadRequest
		}
		res.StatusCode, res.StatusDesc = new(uint32(status)), new(r.desc())
		return res
	}
	res.Messages = make([]*storepb.WakuMessageKeyValue, len(page.Entries))
	for i := range page.Entries {
		e := &page.Entries[i]
		kv := &storepb.WakuMessageKeyValue{MessageHash: e.Hash[:]}
		if e.Message != nil {
			kv.Message = e.Message.proto()
			kv.PubsubTopic = &e.Message.PubsubTopic
		}
		res.Messages[i] = kv
	}
	if page.More && len(page.Entries) > 0 {
		res.PaginationCursor = page.last(backward).Hash[:]
	}
	return res
}
