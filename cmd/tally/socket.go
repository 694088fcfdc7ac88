package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/rpc"
)

// limitHelp explains the limits, which are all that a socket knows.
const limitHelp = `A socket has a balance, received less sent, that begins at 0. --min and --max are what
we let it be: below the minimum we ask, above the maximum we push, between them we
give when asked and take what comes. A limit is a whole number, inf or -inf.

  --min -100 --max -100   pay 100          --min 100 --max 100   ask for 100
  --min -100 --max 0      pay up to 100    --min 0 --max inf     take what comes`

func (a *app) socketCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "socket",
		Short: "Pay and be paid over any number of peers",
		Long: `A payment socket joins two peers, neighbours or not. Either may pay, within limits that
each sets for itself.

` + limitHelp,
		Example: "  tally socket open 12D3KooW… --min -100 --max -100\n  tally socket ls",
		RunE:    group,
	}
	cmd.AddCommand(a.socketOpenCmd(), a.socketLsCmd(), a.socketLimitsCmd(), a.socketMoveCmd("pay"), a.socketMoveCmd("charge"),
		a.socketWatchCmd(), a.socketSendDataCmd(), a.socketRecvDataCmd(), a.socketCloseCmd())
	return cmd
}

// limitFlags adds --min and --max. Their values begin with a minus, which a flag
// takes as it is.
func limitFlags(cmd *cobra.Command, low, high *string, words string) {
	cmd.Flags().StringVar(low, "min", "", "never below this: a number, inf or -inf"+words)
	cmd.Flags().StringVar(high, "max", "", "nothing is taken above this: a number, inf or -inf"+words)
}

func needLimits(cmd *cobra.Command) error {
	for _, name := range []string{"min", "max"} {
		if !cmd.Flags().Changed(name) {
			return usagef("tally socket --help", "%s needs --%s", cmd.CommandPath(), name)
		}
	}
	return nil
}

func limitArg(text string) (rpc.Limit, error) {
	if text == "" {
		return "", nil
	}
	l := rpc.Limit(text)
	if _, err := l.Parse(); err != nil {
		return "", usagef("use a whole number of units, inf or -inf", "%q is not a limit", text)
	}
	return l, nil
}

func limitArgs(low, high string) (l, h rpc.Limit, err error) {
	if l, err = limitArg(low); err == nil {
		h, err = limitArg(high)
	}
	return l, h, err
}

func (a *app) socketOpenCmd() *cobra.Command {
	var low, high string
	var opts rpc.SocketOptions
	cmd := &cobra.Command{
		Use:   "open PEER|URI",
		Short: "Open a socket to a peer or to the maker of a URI",
		Long: `Opens a socket, and returns when the rate of the way and the limits of the other side
are known; money moves after that. A peer without a URI takes pushes alone, and has
to be reachable for the opening. --via names the peers on the way, first hop first.

` + limitHelp,
		Example: "  tally socket open 12D3KooW… --min -100 --max -100 --via 12D3KooX…\n  tally socket open 'tally:12D3KooW…' --min 0 --max inf",
		Args:    nArgs(1, "PEER|URI"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if err := needLimits(cmd); err != nil {
				return err
			}
			if opts.Min, opts.Max, err = limitArgs(low, high); err != nil {
				return err
			}
			return a.socketRow(cmd.Context(), func(ctx context.Context, r *remote) (rpc.SocketRow, error) {
				return r.SocketOpen(ctx, args[0], opts)
			})
		},
	}
	limitFlags(cmd, &low, &high, "")
	cmd.Flags().StringSliceVar(&opts.Via, "via", nil, "peers on the way, joined by commas")
	cmd.Flags().BoolVar(&opts.Refunds, "refunds", false, "let money flow back; without it, what was paid stays paid")
	cmd.Flags().BoolVar(&opts.AllOrNothing, "all-or-nothing", false, "move nothing where the limits of the two sides do not meet")
	return cmd
}

// socketRow asks for one socket and prints it.
func (a *app) socketRow(ctx context.Context, fn func(context.Context, *remote) (rpc.SocketRow, error)) error {
	return askOne(ctx, a, fn, socketCard)
}

func socketCard(r rpc.SocketRow) *table {
	return newCard().add("id", r.ID).add("peer", r.Peer).add("min", string(r.Min)).add("max", string(r.Max)).
		add("balance", r.Balance).add("sent", r.Sent).add("received", r.Received).add("settled", r.Settled).
		add("loss", r.Loss).add("asset", assetCell(r.Asset, r.Scale)).add("peer's asset", assetCell(r.PeerAsset, r.PeerScale)).
		add("data sent", r.DataSent).add("data received", r.DataReceived).add("note", r.Note)
}

// assetCell shows an asset and what of it a unit is.
func assetCell(code string, scale int) string {
	if code == "" || scale == 0 {
		return code
	}
	return fmt.Sprintf("%s, a unit is 10^-%d", code, scale)
}

func (a *app) socketLsCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List the sockets",
		Long: `Lists the sockets in memory. One that is idle for a minute leaves it, and is still
found by its id. Loss is what the hops kept.`,
		Example: "  tally socket ls",
		Args:    nArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return askRows(cmd.Context(), a, func(ctx context.Context, r *remote) ([]rpc.SocketRow, error) {
				return r.SocketList(ctx)
			}, func(list []rpc.SocketRow) *table {
				t := newTable("id", "peer", ">min", ">max", ">balance", ">sent", ">received", "settled", ">loss", "note")
				t.empty = "no sockets"
				for _, r := range list {
					t.add(r.ID, r.Peer, string(r.Min), string(r.Max), r.Balance, r.Sent, r.Received, r.Settled, r.Loss, r.Note)
				}
				return t
			})
		},
	}
}

func (a *app) socketLimitsCmd() *cobra.Command {
	var low, high string
	cmd := &cobra.Command{
		Use:   "limits ID",
		Short: "Set the limits of our balance on a socket",
		Long: `Sets both limits, also over what was raised because money that was paid stays paid. A
socket that has stopped tries again.

` + limitHelp,
		Example: "  tally socket limits 5f0c… --min -200 --max 0",
		Args:    nArgs(1, "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needLimits(cmd); err != nil {
				return err
			}
			l, h, err := limitArgs(low, high)
			if err != nil {
				return err
			}
			return a.socketRow(cmd.Context(), func(ctx context.Context, r *remote) (rpc.SocketRow, error) {
				return r.SocketLimits(ctx, args[0], l, h)
			})
		},
	}
	limitFlags(cmd, &low, &high, "")
	return cmd
}

// socketMoveCmd is pay and charge: the two moves of a limit that have a name.
func (a *app) socketMoveCmd(verb string) *cobra.Command {
	short, long := "Push units more to the other side", "Lowers the maximum below the balance by N units, so that they are pushed. It returns\nat once; `tally socket watch` shows them leave."
	if verb == "charge" {
		short, long = "Ask the other side for units more", "Raises the minimum above the balance by N units, so that the other side is asked for\nthem. It gives what its own limits allow."
	}
	return &cobra.Command{
		Use: verb + " ID N", Short: short, Long: long,
		Example: "  tally socket " + verb + " 5f0c… 100",
		Args:    nArgs(2, "ID", "N"),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := strconv.ParseUint(args[1], 10, 63)
			if err != nil || n == 0 {
				return usagef("use a whole number of units above 0", "%q is not an amount", args[1])
			}
			return a.socketRow(cmd.Context(), func(ctx context.Context, r *remote) (rpc.SocketRow, error) {
				if verb == "pay" {
					return r.SocketPay(ctx, args[0], n)
				}
				return r.SocketCharge(ctx, args[0], n)
			})
		},
	}
}

func (a *app) socketCloseCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "close ID",
		Short:   "End a socket at both ends",
		Long:    `Ends a socket for good. What was paid stays paid; what is in flight is still booked.`,
		Example: "  tally socket close 5f0c…",
		Args:    nArgs(1, "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.socketRow(cmd.Context(), func(ctx context.Context, r *remote) (rpc.SocketRow, error) { return r.SocketClose(ctx, args[0]) })
		},
	}
}

// watchEvery is how often a watched socket is looked at.
const watchEvery = 200 * time.Millisecond

func (a *app) socketWatchCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "watch ID",
		Short: "Follow a socket until no money moves any more",
		Long: `Shows a socket live: what the other side asks for (expected) and still takes (wanted),
what is in flight, the rate of the way and the loss on it. It ends when the socket is
settled, stopped or closed. On a terminal it is one table; elsewhere each change is a
line of JSON.`,
		Example: "  tally socket watch 5f0c…\n  tally socket watch 5f0c… -o ndjson",
		Args:    nArgs(1, "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.remote()
			if err != nil {
				return err
			}
			defer r.stop()
			return a.watchSocket(cmd.Context(), r, args[0])
		},
	}
}

func (a *app) watchSocket(ctx context.Context, r *remote, id string) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	var last rpc.SocketRow
	lines := 0
	for first := true; ; first = false {
		row, err := r.SocketStatus(ctx, id)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return r.explain(err)
		}
		if first || row != last {
			last = row
			if a.out.format != formatTable {
				err = a.out.json(row, "")
			} else {
				var b strings.Builder
				t := newCard().add("peer", row.Peer).add("balance", cell(row.Balance)+" in "+string(row.Min)+" … "+string(row.Max)).
					add("expected", row.Expected).add("wanted", string(row.Wanted)).add("in flight", row.InFlight).
					add("rate", row.Rate).add("loss", row.Loss).add("settled", row.Settled).add("note", row.Note)
				if err = t.write(&b); err != nil {
					return err
				}
				if lines > 0 && a.deps.OutTerminal {
					_, _ = fmt.Fprintf(a.out.w, "\033[%dA\033[J", lines)
				}
				lines = strings.Count(b.String(), "\n")
				_, err = fmt.Fprint(a.out.w, b.String())
			}
			if err != nil {
				return err
			}
		}
		if row.Settled || row.Note != "" {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
