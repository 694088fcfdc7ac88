package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/rpc"
)

// amountHelp is in the help of every command that takes an amount of FIL.
const amountHelp = `An amount is a whole number of attoFIL, or a number with a unit: "1.5 FIL",
"3 nanoFIL". 1 FIL is 10^18 attoFIL. What is no whole number of attoFIL is refused.`

func (a *app) channelCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "channel",
		Short: "Open, fund, settle and collect payment channels",
		Long: `A payment channel holds money on the chain that one side, the payer, pays to the
other with vouchers, each signed and passed on without the chain. Settling starts
its closing: after a delay, in which the payee submits its vouchers by itself,
collecting pays out both sides.

` + amountHelp,
		Example: "  tally channel create f1… f1… \"1.5 FIL\" --wait\n  tally channel ls",
		RunE:    group,
	}
	cmd.AddCommand(a.channelCreateCmd(),
		a.channelFundCmd("add-funds", "Put more money into a channel",
			`Adds an amount to a channel that we pay on. Calls that meet a top-up under way wait
for it and are merged into the next message.`,
			func(ctx context.Context, r *remote, ch, amount string) (*rpc.MessageRow, error) {
				m, err := r.PaychAddFunds(ctx, ch, amount)
				return &m, err
			}),
		a.channelFundCmd("reserve", "Set money of a channel aside for coming vouchers",
			`Sets an amount aside. Where less is free, what is missing is added with a message,
and the reservation holds once that is final.`,
			func(ctx context.Context, r *remote, ch, amount string) (*rpc.MessageRow, error) {
				res, err := r.PaychReserveFunds(ctx, ch, amount)
				return res.Message, err
			}),
		a.channelReleaseCmd(), a.channelLsCmd(), a.channelStatusCmd(),
		a.channelEndCmd("settle", "Start the closing of a channel",
			`Starts the closing. From then on the channel takes no more funds and vouchers, and
at settling_at it can be collected. Settling twice is one message.`,
			func(ctx context.Context, r *remote, ch string) (rpc.MessageRow, error) { return r.PaychSettle(ctx, ch) }),
		a.channelEndCmd("collect", "Pay out a channel that has settled",
			`Pays out both sides of a channel that has reached settling_at. A running peer does
that by itself; this command is for a hurry.`,
			func(ctx context.Context, r *remote, ch string) (rpc.MessageRow, error) {
				return r.PaychCollect(ctx, ch)
			}),
		a.channelLaneCmd(), a.channelPendingCmd())
	return cmd
}

// amountArg reads an amount into attoFIL.
func amountArg(s string) (string, error) {
	n, err := rpc.ParseFIL(s)
	if err != nil {
		return "", err
	}
	return n.String(), nil
}

// showFIL shows an amount of attoFIL to a person.
func showFIL(atto string) string {
	number, unit, _ := strings.Cut(rpc.FormatFIL(atto), " ")
	whole, frac, dot := strings.Cut(number, ".")
	sign := ""
	if strings.HasPrefix(whole, "-") {
		sign, whole = "-", whole[1:]
	}
	if dot {
		frac = "." + frac
	}
	return strings.TrimSpace(sign + grouped(whole) + frac + " " + unit)
}

// waitFlag adds --wait to a command that sends a message.
func waitFlag(cmd *cobra.Command, wait *bool) *cobra.Command {
	cmd.Flags().BoolVar(wait, "wait", false, "wait until the message is final on the chain")
	return cmd
}

// message sends a message, waits for it where that was asked for, and shows it.
func (a *app) message(ctx context.Context, wait bool, send func(context.Context, *remote) (*rpc.MessageRow, error)) (*rpc.MessageRow, error) {
	return ask(ctx, a, func(ctx context.Context, r *remote) (*rpc.MessageRow, error) {
		m, err := send(ctx, r)
		if err != nil || m == nil || !wait {
			return m, err
		}
		show, end := a.progress()
		defer end()
		begin := time.Now()
		tell := func(m rpc.MessageRow) {
			show(fmt.Sprintf("%s %s is %s, seconds waited:", m.Kind, m.Cid, m.State), int(time.Since(begin).Seconds()), 0)
		}
		tell(*m)
		done, err := r.WaitReady(ctx, m.Cid, tell)
		return &done, err
	})
}

func messageCard(m rpc.MessageRow) *table {
	t := newCard().add("message", m.Cid).add("kind", m.Kind).add("state", m.State).add("channel", m.Channel).
		add("channel state", m.ChannelState).add("value", showFIL(m.Value)).add("from", m.From).add("nonce", m.Nonce).
		add("since", m.Since).add("deadline", deadline(m))
	if m.Height > 0 {
		t.add("epoch", m.Height).add("exit code", m.ExitCode)
	}
	if m.Error != "" {
		t.add("error", m.Error)
	}
	return t
}

// deadline shows when a message is late.
func deadline(m rpc.MessageRow) string {
	if m.Late {
		return cell(m.Deadline) + " (late)"
	}
	return cell(m.Deadline)
}

func (a *app) showMessage(m *rpc.MessageRow) error {
	return a.out.one(m, func() *table { return messageCard(*m) })
}

func (a *app) channelCreateCmd() *cobra.Command {
	var (
		tag  string
		wait bool
	)
	cmd := &cobra.Command{
		Use:   "create FROM TO AMOUNT",
		Short: "Open a channel with money in it",
		Long: `Opens a channel from an address of our wallet and puts an amount into it. It opens
one each time; with --tag there is one channel for the tag, and the same command
again shows the same message. Without --wait it answers when the message is saved
and published: the channel has no address before its receipt.

` + amountHelp,
		Example: "  tally channel create f1… f1… 1000000000\n  tally channel create f1… f1… \"1.5 FIL\" --tag rent --wait -o json",
		Args:    nArgs(3, "FROM", "TO", "AMOUNT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			amount, err := amountArg(args[2])
			if err != nil {
				return err
			}
			m, err := a.message(cmd.Context(), wait, func(ctx context.Context, r *remote) (*rpc.MessageRow, error) {
				m, err := r.PaychCreate(ctx, args[0], args[1], amount, tag)
				return &m, err
			})
			if err != nil {
				return err
			}
			return a.showMessage(m)
		},
	}
	cmd.Flags().StringVar(&tag, "tag", "", "one channel for this name, however often it is asked for")
	return waitFlag(cmd, &wait)
}

// channelFundCmd is a command that may send money to a channel.
func (a *app) channelFundCmd(name, short, long string, fund func(context.Context, *remote, string, string) (*rpc.MessageRow, error)) *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use:     name + " CHANNEL AMOUNT",
		Short:   short,
		Long:    long + "\n\n" + amountHelp,
		Example: "  tally channel " + name + " f2… \"0.5 FIL\" --wait",
		Args:    nArgs(2, "CHANNEL", "AMOUNT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			amount, err := amountArg(args[1])
			if err != nil {
				return err
			}
			result := rpc.Reservation{Channel: args[0], Amount: amount}
			result.Message, err = a.message(cmd.Context(), wait, func(ctx context.Context, r *remote) (*rpc.MessageRow, error) {
				return fund(ctx, r, args[0], amount)
			})
			if err != nil {
				return err
			}
			return a.out.one(result, func() *table {
				t := newCard().add("channel", result.Channel).add("amount", showFIL(result.Amount))
				if m := result.Message; m != nil {
					return t.add("message", m.Cid).add("state", m.State).add("deadline", deadline(*m))
				}
				return t.add("message", "none: enough was free")
			})
		},
	}
	return waitFlag(cmd, &wait)
}

func (a *app) channelReleaseCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "release CHANNEL AMOUNT",
		Short:   "Give reserved money of a channel back",
		Long:    "Makes an amount that was reserved free again. More than is reserved is refused.\n\n" + amountHelp,
		Example: "  tally channel release f2… \"0.5 FIL\"",
		Args:    nArgs(2, "CHANNEL", "AMOUNT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			amount, err := amountArg(args[1])
			if err != nil {
				return err
			}
			return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.ChannelRow, error) {
				return r.PaychReleaseFunds(ctx, args[0], amount)
			}, channelCard)
		},
	}
}

func (a *app) channelLsCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List the channels",
		Long: `Lists every channel, also those that are being created. Free is what we can still
promise; redeemed is what vouchers have taken. -o json has every figure.`,
		Example: "  tally channel ls\n  tally channel ls -o ndjson",
		Args:    nArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return askRows(cmd.Context(), a, func(ctx context.Context, r *remote) ([]rpc.ChannelRow, error) {
				return r.PaychInfo(ctx)
			}, func(list []rpc.ChannelRow) *table {
				t := newTable("CHANNEL", "DIRECTION", "STATE", ">HOLDS", ">REDEEMED", ">RESERVED", ">FREE", ">PENDING", "SETTLES", "NOTE")
				t.empty = "no channels yet"
				for i := range list {
					c := &list[i]
					t.add(c.Channel, c.Direction, c.State, showFIL(c.Confirmed), showFIL(c.Redeemed), showFIL(c.Reserved), showFIL(c.Free),
						showFIL(c.Pending), settles(c), channelNote(c))
				}
				return t
			})
		},
	}
}

// settles says when a channel can be collected.
func settles(c *rpc.ChannelRow) string {
	switch {
	case c.State != "settling":
		return ""
	case c.SettlingLeft == 0:
		return "now"
	default:
		return "in " + human(c.SettlingLeft) + " epochs"
	}
}

// channelNote is what the operator should know first of a channel.
func channelNote(c *rpc.ChannelRow) string {
	switch {
	case len(c.Operations) > 0 && c.Operations[0].Late:
		return c.Operations[0].Kind + " is late"
	case c.LastError != "":
		return c.LastError
	case len(c.Operations) > 0:
		return c.Operations[0].Kind + " is " + c.Operations[0].State
	case c.Owned:
		return "owned by " + c.Tag
	}
	return ""
}

func channelCard(c rpc.ChannelRow) *table {
	t := newCard().add("channel", c.Channel).add("direction", c.Direction).add("state", c.State).
		add("from", c.From).add("to", c.To).add("holds", showFIL(c.Confirmed)).add("redeemed", showFIL(c.Redeemed)).
		add("reserved", showFIL(c.Reserved)).add("free", showFIL(c.Free)).add("pending", showFIL(c.Pending)).add("queued", showFIL(c.Queued)).
		add("lanes", c.Lanes).add("vouchers", c.Vouchers).add("epoch", c.Epoch)
	if c.SettlingAt != 0 {
		t.add("settles", fmt.Sprintf("at epoch %s, %s, about %s", human(c.SettlingAt), settles(&c), cell(c.SettlingTime)))
	}
	if c.Tag != "" {
		t.add("tag", c.Tag).add("owned", c.Owned)
	}
	if r := c.Result; r != nil {
		t.add("paid", showFIL(r.Paid)).add("returned", showFIL(r.Returned))
	}
	for _, m := range c.Operations {
		t.add(m.Kind, fmt.Sprintf("%s is %s since %s, deadline %s", m.Cid, m.State, cell(m.Since), deadline(m)))
	}
	if c.LastError != "" {
		t.add("last error", c.LastError)
	}
	return t
}

func (a *app) channelStatusCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "status CHANNEL|CID",
		Short: "Show all that is known of a channel or of a message",
		Long: `Shows a channel by its address: what it holds, what is left, when it settles, and
every message without a receipt with its deadline. With the cid of a message, as
"tally channel create" prints it, it shows that message.`,
		Example: "  tally channel status f2…\n  tally channel status bafy2bza…",
		Args:    nArgs(1, "CHANNEL|CID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.HasPrefix(args[0], "baf") {
				m, err := ask(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.MessageRow, error) { return r.PaychStatusByMsg(ctx, args[0]) })
				if err != nil {
					return err
				}
				return a.showMessage(&m)
			}
			return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.ChannelRow, error) {
				return r.PaychStatus(ctx, args[0])
			}, channelCard)
		},
	}
}

// channelEndCmd is a command that sends a message of the channel's end.
func (a *app) channelEndCmd(name, short, long string, send func(context.Context, *remote, string) (rpc.MessageRow, error)) *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use:     name + " CHANNEL",
		Short:   short,
		Long:    long,
		Example: "  tally channel " + name + " f2… --wait",
		Args:    nArgs(1, "CHANNEL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := a.message(cmd.Context(), wait, func(ctx context.Context, r *remote) (*rpc.MessageRow, error) {
				m, err := send(ctx, r, args[0])
				return &m, err
			})
			if err != nil {
				return err
			}
			return a.showMessage(m)
		},
	}
	return waitFlag(cmd, &wait)
}

func (a *app) channelLaneCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "lane CHANNEL",
		Short: "Take a lane of a channel that nobody used",
		Long: `Takes a lane for vouchers of one purpose. Each lane has its own running total, so
that several consumers of one channel do not get in each other's way.`,
		Example: "  tally channel lane f2…",
		Args:    nArgs(1, "CHANNEL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.Lane, error) {
				return r.PaychAllocateLane(ctx, args[0])
			}, func(l rpc.Lane) *table {
				return newCard().add("channel", l.Channel).add("lane", l.Lane)
			})
		},
	}
}

func (a *app) channelPendingCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "pending",
		Short: "List the messages that wait for the chain",
		Long: `Lists every message of ours without a receipt: what it is for, since when, and the
deadline after which it is late. A late message stays valid; look at the chain and
at its fee.`,
		Example: "  tally channel pending\n  tally channel pending -o json",
		Args:    nArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return askRows(cmd.Context(), a, func(ctx context.Context, r *remote) ([]rpc.MessageRow, error) {
				return r.PaychPending(ctx)
			}, func(list []rpc.MessageRow) *table {
				t := newTable("MESSAGE", "KIND", "STATE", "CHANNEL", ">VALUE", "SINCE", "DEADLINE", "ERROR")
				t.empty = "nothing waits for the chain"
				for _, m := range list {
					t.add(m.Cid, m.Kind, m.State, m.Channel, showFIL(m.Value), m.Since, deadline(m), m.Error)
				}
				return t
			})
		},
	}
}
