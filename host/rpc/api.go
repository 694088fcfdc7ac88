package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	// MaxPageSize bounds one page of a store query; stores of Waku answer at
	// most 100 messages a page.
	MaxPageSize = 100
	// maxContentTopics bounds the filter of a store query (Waku store allows
	// as many).
	maxContentTopics = 10
	// maxCursorBytes bounds a cursor, which is opaque to us.
	maxCursorBytes = 1024
	// maxPoll bounds one wait for events.
	maxPoll = time.Minute
	// maxWaiting bounds callers that wait for events, so that waiting never
	// takes the slots of those that work.
	maxWaiting = 32
)

// api is what go-jsonrpc serves: one method for each entry of Methods. Each
// goes through call, which is the one place that checks the permission.
type api struct {
	stop    context.Context // ends the calls that wait for events
	node    Node
	log     *slog.Logger
	timeout time.Duration
	imports *importSet
	waiting chan struct{}
	// chainWaits are the places for calls that wait for the chain.
	chainWaits chan struct{}
	// payWaits are those for calls that wait for payments.
	payWaits chan struct{}
	pairs    pairTurns
}

// call runs one of Methods, under a deadline.
func call[T any](ctx context.Context, a *api, method string, fn func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	return run(ctx, a, Namespace, Methods, method, fn)
}

// run runs one method of a list under the caller's permission, and makes its
// error one that may be shown.
func run[T any](ctx context.Context, a *api, namespace string, list []Method, method string, fn func(context.Context) (T, error)) (T, error) {
	var zero T
	m, ok := methodByName(list, method)
	if !ok {
		panic("rpc: method " + method + " is not in the list")
	}
	if !allowed(ctx, m.Perm) {
		return zero, NewError(CodePermission, "%s.%s needs the permission %q", namespace, method, m.Perm)
	}
	begin := time.Now()
	v, err := fn(ctx)
	if err != nil {
		e := shown(ctx, err)
		a.log.Debug("rpc call failed", "method", method, "code", int(e.Code), "took", time.Since(begin), "err", e.Message)
		return zero, e
	}
	a.log.Debug("rpc call", "method", method, "took", time.Since(begin))
	return v, nil
}

// shown returns err as it crosses the wire.
func shown(ctx context.Context, err error) *Error {
	var e *Error
	channel, payment, held := channelError(err), paymentError(err), holdError(err)
	switch {
	case errors.As(err, &e):
		c := *e
		c.Message = err.Error() // with what was wrapped around it
		return &c
	case channel != nil:
		return channel
	case payment != nil:
		return payment
	case held != nil:
		return held
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil:
		return NewError(CodeTimeout, "%w", err)
	case errors.Is(err, context.Canceled):
		return NewError(CodeStopping, "%w", err)
	default:
		return NewError(CodeFailed, "%w", err)
	}
}

// ParsePeer reads a peer id. A text that a slip of the hand cut or changed may
// still decode as a multihash; where the id holds the public key itself, as
// those of Ed25519 do, the key must be whole.
func ParsePeer(s string) (peer.ID, error) {
	id, err := peer.Decode(s)
	if err == nil {
		if _, keyErr := id.ExtractPublicKey(); keyErr != nil && !errors.Is(keyErr, peer.ErrNoPublicKey) {
			err = keyErr
		}
	}
	if err != nil {
		return "", NewError(CodeBadPeer, "%q is not a peer id", clip(s))
	}
	return id, nil
}

// optionalPeer is ParsePeer but for the empty string, which means all peers.
func optionalPeer(s string) (peer.ID, error) {
	if s == "" {
		return "", nil
	}
	return ParsePeer(s)
}

// clip shortens what a caller sent before it is repeated in an error.
func clip(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}

// ParseAddr reads a multiaddr that ends in /p2p/<peer id>.
func ParseAddr(s string) (peer.AddrInfo, error) {
	addr, err := ma.NewMultiaddr(s)
	if err != nil {
		return peer.AddrInfo{}, NewError(CodeBadAddress, "%q is not a multiaddr: %w", clip(s), err)
	}
	info, err := peer.AddrInfoFromP2pAddr(addr)
	if err == nil {
		_, err = ParsePeer(info.ID.String())
	}
	if err != nil || len(info.Addrs) == 0 {
		return peer.AddrInfo{}, NewError(CodeBadAddress, "%q must name an address and end in /p2p/<peer id>", clip(s))
	}
	return *info, nil
}

// list makes an absent list an empty one, so that JSON has [] and never null.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func (a *api) Status(ctx context.Context) (Status, error) {
	return call(ctx, a, "Status", func(ctx context.Context) (Status, error) {
		s, err := a.node.Status(ctx)
		s.Checks = list(s.Checks)
		return s, err
	})
}

func (a *api) ID(ctx context.Context) (Identity, error) {
	return call(ctx, a, "ID", func(ctx context.Context) (Identity, error) {
		id, err := a.node.ID(ctx)
		id.Addrs, id.Protocols = list(id.Addrs), list(id.Protocols)
		return id, err
	})
}

func (a *api) Version(ctx context.Context) (Version, error) {
	return call(ctx, a, "Version", func(ctx context.Context) (Version, error) {
		v, err := a.node.Version(ctx)
		v.Protocols = list(v.Protocols)
		return v, err
	})
}

func (a *api) Peers(ctx context.Context) ([]PeerRow, error) {
	return call(ctx, a, "Peers", func(ctx context.Context) ([]PeerRow, error) {
		rows, err := a.node.Peers(ctx)
		for i := range rows {
			rows[i].Addrs = list(rows[i].Addrs)
		}
		return list(rows), err
	})
}

func (a *api) PeerConnect(ctx context.Context, addr string) (PeerRow, error) {
	return call(ctx, a, "PeerConnect", func(ctx context.Context) (PeerRow, error) {
		info, err := ParseAddr(addr)
		if err != nil {
			return PeerRow{}, err
		}
		row, err := a.node.PeerConnect(ctx, info)
		row.Addrs = list(row.Addrs)
		return row, err
	})
}

// Done is the answer of a method that has nothing to tell.
type Done struct {
	Done bool `json:"done"`
}

func (a *api) PeerBlock(ctx context.Context, peerID string) (Done, error) {
	return call(ctx, a, "PeerBlock", func(ctx context.Context) (Done, error) {
		id, err := ParsePeer(peerID)
		if err != nil {
			return Done{}, err
		}
		return Done{true}, a.node.PeerBlock(ctx, id)
	})
}

func (a *api) PeerUnblock(ctx context.Context, peerID string) (Done, error) {
	return call(ctx, a, "PeerUnblock", func(ctx context.Context) (Done, error) {
		id, err := ParsePeer(peerID)
		if err != nil {
			return Done{}, err
		}
		return Done{true}, a.node.PeerUnblock(ctx, id)
	})
}

func (a *api) PeerResolve(ctx context.Context, peerID string) (BalanceRow, error) {
	return call(ctx, a, "PeerResolve", func(ctx context.Context) (BalanceRow, error) {
		id, err := ParsePeer(peerID)
		if err != nil {
			return BalanceRow{}, err
		}
		row, err := a.node.PeerResolve(ctx, id)
		row.Services = list(row.Services)
		return row, err
	})
}

func (a *api) Balances(ctx context.Context, peerID string) ([]BalanceRow, error) {
	return call(ctx, a, "Balances", func(ctx context.Context) ([]BalanceRow, error) {
		id, err := optionalPeer(peerID)
		if err != nil {
			return nil, err
		}
		rows, err := a.node.Balances(ctx, id)
		for i := range rows {
			rows[i].Services = list(rows[i].Services)
		}
		return list(rows), err
	})
}

func (a *api) Cheques(ctx context.Context, peerID string) ([]ChequeRow, error) {
	return call(ctx, a, "Cheques", func(ctx context.Context) ([]ChequeRow, error) {
		id, err := optionalPeer(peerID)
		if err != nil {
			return nil, err
		}
		rows, err := a.node.Cheques(ctx, id)
		return list(rows), err
	})
}

func (a *api) Settle(ctx context.Context, peerID string) (SettleResult, error) {
	return call(ctx, a, "Settle", func(ctx context.Context) (SettleResult, error) {
		id, err := ParsePeer(peerID)
		if err != nil {
			return SettleResult{}, err
		}
		return a.node.Settle(ctx, id)
	})
}

func (a *api) Cashout(ctx context.Context, peerID string, least uint64) ([]CashoutRow, error) {
	return call(ctx, a, "Cashout", func(ctx context.Context) ([]CashoutRow, error) {
		id, err := optionalPeer(peerID)
		if err != nil {
			return nil, err
		}
		rows, err := a.node.Cashout(ctx, id, least)
		return list(rows), err
	})
}

func (a *api) Prepay(ctx context.Context, peerID string, units uint64) (SettleResult, error) {
	return call(ctx, a, "Prepay", func(ctx context.Context) (SettleResult, error) {
		id, err := ParsePeer(peerID)
		if err != nil {
			return SettleResult{}, err
		}
		if units == 0 {
			return SettleResult{}, NewError(CodeBadArgument, "0 units are nothing to prepay").WithRemedy("use at least 1, or Settle for the debt alone")
		}
		return a.node.Prepay(ctx, id, units)
	})
}

func (a *api) StoreImportBegin(ctx context.Context) (ImportSession, error) {
	return call(ctx, a, "StoreImportBegin", func(context.Context) (ImportSession, error) {
		return a.imports.begin()
	})
}

func (a *api) StoreImportChunk(ctx context.Context, session string, number uint64, messages []Message) (Done, error) {
	return call(ctx, a, "StoreImportChunk", func(context.Context) (Done, error) {
		return Done{true}, a.imports.chunk(session, number, messages)
	})
}

func (a *api) StoreImportCommit(ctx context.Context, session string, total int) (ImportResult, error) {
	return call(ctx, a, "StoreImportCommit", func(ctx context.Context) (ImportResult, error) {
		messages, err := a.imports.take(session, total)
		if err != nil {
			return ImportResult{}, err
		}
		return a.node.StoreImport(ctx, messages)
	})
}

func (a *api) StoreImportAbort(ctx context.Context, session string) (Done, error) {
	return call(ctx, a, "StoreImportAbort", func(context.Context) (Done, error) {
		a.imports.abort(session)
		return Done{true}, nil
	})
}

func (a *api) StoreQuery(ctx context.Context, peerID string, query StoreQuery) (StorePage, error) {
	return call(ctx, a, "StoreQuery", func(ctx context.Context) (StorePage, error) {
		id, err := ParsePeer(peerID)
		if err != nil {
			return StorePage{}, err
		}
		if err := query.Validate(); err != nil {
			return StorePage{}, NewError(CodeBadArgument, "%w", err)
		}
		page, err := a.node.StoreQuery(ctx, id, query)
		page.Messages = list(page.Messages)
		return page, err
	})
}

// Validate reports the first field out of bounds.
func (q StoreQuery) Validate() error {
	switch {
	case q.PageSize < 1 || q.PageSize > MaxPageSize:
		return fmt.Errorf("page size %d: want 1 to %d", q.PageSize, MaxPageSize)
	case len(q.ContentTopics) > maxContentTopics:
		return fmt.Errorf("%d content topics, over %d", len(q.ContentTopics), maxContentTopics)
	case len(q.PubsubTopic) > MaxTopicBytes:
		return fmt.Errorf("pubsub topic has %d bytes, over %d", len(q.PubsubTopic), MaxTopicBytes)
	case len(q.Cursor) > maxCursorBytes:
		return fmt.Errorf("cursor has %d bytes, over %d", len(q.Cursor), maxCursorBytes)
	case q.Start != nil && q.End != nil && *q.Start > *q.End:
		return fmt.Errorf("start %d is after end %d", *q.Start, *q.End)
	}
	for _, topic := range q.ContentTopics {
		if topic == "" || len(topic) > MaxTopicBytes {
			return fmt.Errorf("content topic %q: want 1 to %d bytes", clip(topic), MaxTopicBytes)
		}
	}
	return nil
}

func (a *api) EventsSince(ctx context.Context, cursor uint64, timeoutMS int) (EventBatch, error) {
	return call(ctx, a, "EventsSince", func(ctx context.Context) (EventBatch, error) {
		wait, err := pollTime(timeoutMS)
		if err != nil {
			return EventBatch{}, err
		}
		select {
		case a.waiting <- struct{}{}:
			defer func() { <-a.waiting }()
		default:
			return EventBatch{}, NewError(CodeBusy, "%d callers wait for events", cap(a.waiting))
		}
		ctx, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		defer context.AfterFunc(a.stop, cancel)()
		batch, err := a.node.EventsSince(ctx, cursor)
		batch.Events = list(batch.Events)
		return batch, err
	})
}

func (a *api) ConfigShow(ctx context.Context) (map[string]any, error) {
	return call(ctx, a, "ConfigShow", func(ctx context.Context) (map[string]any, error) {
		return a.node.ConfigShow(ctx)
	})
}

func (a *api) Shutdown(ctx context.Context) (Done, error) {
	return call(ctx, a, "Shutdown", func(ctx context.Context) (Done, error) {
		return Done{true}, a.node.Shutdown(ctx)
	})
}
