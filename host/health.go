package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/protocols/storenet"
	"github.com/tallystick/tally/swap"
)

// Status reports health as a list of checks, each with the next action.
func (a *API) Status(ctx context.Context) (rpc.Status, error) {
	n := a.node
	realm, policy := n.book.Realm(), n.book.Policy()
	st := rpc.Status{
		PeerID: n.host.ID().String(), Version: Version, Mode: policy.Mode.String(),
		Network: realm.Network, Asset: realm.Asset, StartedAt: a.started.UTC().Truncate(time.Second),
		Connected: len(n.host.Network().Peers()), Exposure: uint64(n.book.Stats().Exposure),
	}
	if n.messages != nil {
		count, err := n.messages.Count(ctx)
		if err != nil {
			return rpc.Status{}, apiError(err)
		}
		st.Messages = count
	}
	rows, err := n.book.Rows(ctx)
	if err != nil {
		return rpc.Status{}, apiError(err)
	}
	st.Accounts = len(rows)
	for i := range rows {
		st.OwedToUs += uint64(rows[i].Balance.Owed())
		st.OwedByUs += uint64(rows[i].Balance.Debt())
	}
	st.Checks = append(a.checks(rows, policy), a.chain.checks(ctx)...)
	st.Healthy = true
	for _, c := range st.Checks {
		if c.State == rpc.CheckFail {
			st.Healthy = false
		}
		if c.Next != "" && (st.Next == "" || c.State == rpc.CheckFail) {
			st.Next = c.Next
		}
	}
	return st, nil
}

func (a *API) checks(rows []swap.Row, policy swap.Policy) []rpc.Check {
	n := a.node
	store := rpc.Check{Name: "store", State: rpc.CheckOK, Detail: "books are on disk"}
	if err := n.store.Failed(); err != nil {
		store = rpc.Check{Name: "store", State: rpc.CheckFail, Detail: err.Error(), Next: "free the disk or restore a backup, then restart: tally start"}
	}
	listen := rpc.Check{Name: "listen", State: rpc.CheckOK, Detail: fmt.Sprintf("%d addresses", len(n.host.Addrs()))}
	if len(n.host.Addrs()) == 0 {
		listen.State, listen.Next = rpc.CheckWarn, "nobody can dial this peer: set listen in config.toml"
	}
	peers := rpc.Check{Name: "peers", State: rpc.CheckOK, Detail: fmt.Sprintf("%d with a swap session", n.swap.Stats().Sessions)}
	if n.swap.Stats().Sessions == 0 {
		peers.State, peers.Next = rpc.CheckWarn, "connect to one: tally peers connect ADDRESS"
	}
	return []rpc.Check{store, listen, peers, settlementCheck(rows, policy), skewCheck(rows), a.exposureCheck(policy), n.locksCheck()}
}

func settlementCheck(rows []swap.Row, policy swap.Policy) rpc.Check {
	c := rpc.Check{Name: "settlement", State: rpc.CheckOK, Detail: "mode " + policy.Mode.String()}
	for i := range rows {
		m := rows[i].LastChequeSent
		if m != nil && m.State == swap.ChequeRefused {
			c.State, c.Detail = rpc.CheckFail, fmt.Sprintf("%s refused our cheque: %s", rows[i].Peer, rows[i].SettlementBlockedBy)
			c.Next = "see the reason: tally cheques " + rows[i].Peer.String()
			return c
		}
	}
	return c
}

func skewCheck(rows []swap.Row) rpc.Check {
	c := rpc.Check{Name: "books", State: rpc.CheckOK, Detail: "agree with all peers as far as they told"}
	for i := range rows {
		if rows[i].SkewBlocks {
			c.State = rpc.CheckFail
			c.Detail = fmt.Sprintf("we claim %d units more than %s admits", rows[i].Skew, rows[i].Peer)
			c.Next = "ask the peer, then: tally peers resolve " + rows[i].Peer.String()
			return c
		}
	}
	return c
}

// nearCap is the part of a cap at which the operator should look.
const nearCap = 90

func (a *API) exposureCheck(policy swap.Policy) rpc.Check {
	st := a.node.book.Stats()
	c := rpc.Check{Name: "exposure", State: rpc.CheckOK, Detail: fmt.Sprintf("%d of %d units", st.Exposure, policy.MaxExposureTotal)}
	switch {
	case policy.Mode == swap.ModeSoft:
		c.State, c.Detail = rpc.CheckSkip, "soft mode counts only"
	case st.Exposure >= policy.MaxExposureTotal/100*nearCap:
		c.State, c.Next = rpc.CheckWarn, "peers owe nearly as much as they may: raise max_exposure_total, or wait for payments"
	case st.StrangersCredit >= policy.StrangersExposure/100*nearCap:
		c.State, c.Detail = rpc.CheckWarn, fmt.Sprintf("peers that never paid have %d of %d units", st.StrangersCredit, policy.StrangersExposure)
		c.Next = "new peers are soon refused: raise strangers_exposure, or let them prepay"
	}
	return c
}

// CheckStore reads through the books, channels and messages in dir, which no process may
// use, and reports the first damage with its place.
func CheckStore(ctx context.Context, dir string) (err error) {
	store, err := durable.Open(dir, durable.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if err := swap.CheckStore(ctx, store); err != nil {
		return err
	}
	if _, _, _, err := paych.Bound(ctx, store); err != nil && !errors.Is(err, paych.ErrNotFound) {
		return err
	}
	messages, err := storenet.OpenStore(ctx, store)
	if err != nil {
		return err
	}
	_, err = messages.Count(ctx)
	return err
}
