package compat

import (
	"context"

	"github.com/tallystick/tally/paystream/compat/ilp"
)

// Handler takes ILP packets one way: towards an endpoint, a bridged client, or
// the hops that lead there.
type Handler interface {
	// Prepare answers p, before it expires and once and for all. A *ilp.Fulfil
	// that it returns opens p's condition. It may be called at the same time from
	// many goroutines, keeps nothing of p after it returns, and heeds ctx, which
	// ends when p expires or the node stops. A caller does not end it because the
	// payer has gone: the payee may have fulfilled by then, and has to be paid.
	Prepare(ctx context.Context, p *ilp.Prepare) ilp.Reply
}

// HandlerFunc is a function as a Handler.
type HandlerFunc func(ctx context.Context, p *ilp.Prepare) ilp.Reply

// Prepare calls f.
func (f HandlerFunc) Prepare(ctx context.Context, p *ilp.Prepare) ilp.Reply { return f(ctx, p) }
