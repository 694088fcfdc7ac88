package testnet

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/tallystick/tally/host/rpc"
)

// whyWithin bounds how long a payer is asked what became of its payments.
const whyWithin = 5 * time.Second

// begun is a payment that goes on after the statement that began it.
type begun struct {
	from, to *proc
	units    uint64
	hash     string
	// err is how its call ended; read after ended.
	err   error
	ended chan struct{}
}

// why says what became of the payments that were begun and did not end well, or not yet.
func (d *procs) why(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, whyWithin)
	defer cancel()
	var all []string
	for _, b := range d.begun {
		if said := b.stands(ctx); said != "" {
			all = append(all, said)
		}
	}
	return strings.Join(all, "; ")
}

// stands is empty where the payment is complete.
func (b *begun) stands(ctx context.Context) string {
	said := fmt.Sprintf("%d of %s to %s: ", b.units, b.from.Name, b.to.Name)
	select {
	case <-b.ended:
		if b.err == nil {
			return ""
		}
		said += firstLine(b.err.Error())
	default:
		said += "under way"
	}
	parts, err := callOf(b.from.Member, func(c *rpc.Client) ([]rpc.PartRow, error) { return c.ListPartialPayments(ctx, b.hash) })
	if err != nil {
		return said + ", " + firstLine(err.Error())
	}
	for i := range parts {
		said += ", " + partText(&parts[i])
	}
	return said
}

// partText is how one part stands.
func partText(p *rpc.PartRow) string {
	said := fmt.Sprintf("part %d over %d %s", p.Number, p.Amount, p.Status)
	if p.Failure == "" {
		return said
	}
	said += ": " + p.Failure
	if p.FailedHop >= 0 {
		said += fmt.Sprintf(" at hop %d", p.FailedHop)
	}
	if p.DecidedAt != nil {
		said += fmt.Sprintf(" after %v", p.DecidedAt.Sub(p.CreatedAt))
	}
	return said
}
