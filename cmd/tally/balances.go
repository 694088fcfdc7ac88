package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/rpc"
)

func (a *app) balancesCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "balances [PEER]",
		Short: "Show the tab with every peer, or all of one tab",
		Long: `Shows every peer with an account, connected or not. Amounts are accounting units;
a balance above zero means that the peer owes us. SERVE and CONSUME are how much
more we would serve and could consume before a cheque is needed. With PEER all
figures of its tab are shown, and why a due settlement has not been made.`,
		Example: "  tally balances\n  tally balances 12D3KooW…\n  tally balances -o json",
		Args:    nArgs(0, "PEER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := optionalPeerArg(args)
			if err != nil {
				return err
			}
			return askRows(cmd.Context(), a, func(ctx context.Context, r *remote) ([]rpc.BalanceRow, error) {
				return r.Balances(ctx, id)
			}, func(list []rpc.BalanceRow) *table {
				if id != "" && len(list) == 1 {
					return balanceCard(list[0])
				}
				return balanceTable(list)
			})
		},
	}
}

func balanceTable(list []rpc.BalanceRow) *table {
	t := newTable("PEER", "CONNECTED", ">BALANCE", ">SERVE", ">CONSUME", ">EXPOSURE", ">SERVED", ">CONSUMED", "SENT", "RECEIVED", "BLOCKED BY")
	t.empty = "no tabs yet; connect a peer: tally peers connect ADDRESS"
	for _, b := range list {
		t.add(b.Peer, b.Connected, b.Balance, b.HeadroomServe, b.HeadroomConsume, b.Exposure, b.Served, b.Consumed,
			b.LastChequeSent, b.LastChequeReceived, b.SettlementBlockedBy)
	}
	return t
}

func balanceCard(b rpc.BalanceRow) *table {
	t := newCard().
		add("peer", b.Peer).add("connected", b.Connected).add("asset", b.Asset).
		add("mode", b.Mode).add("peer mode", b.PeerMode).
		add("balance", b.Balance).add("owed", b.Owed).
		add("prepaid by peer", b.PrepaidByPeer).add("prepaid to peer", b.PrepaidToPeer).
		add("reserved", b.Reserved).add("shadow", b.Shadow).
		add("payment threshold", b.PaymentThreshold).add("peer's payment threshold", b.PeerPaymentThreshold).
		add("disconnect threshold", b.DisconnectThreshold).
		add("headroom to serve", b.HeadroomServe).add("headroom to consume", b.HeadroomConsume).
		add("exposure", b.Exposure).add("uncashed", b.Uncashed).add("skew", b.Skew).
		add("served", b.Served).add("consumed", b.Consumed)
	for _, s := range b.Services {
		t.add("  "+s.Service, "served "+cell(s.Served)+", consumed "+cell(s.Consumed))
	}
	for _, l := range b.Links {
		t.add("channel for cheques "+l.Direction, linkText(l))
	}
	return t.add("last cheque sent", b.LastChequeSent).add("last cheque received", b.LastChequeReceived).
		add("next settlement", b.NextSettlement).add("settlement blocked by", b.SettlementBlockedBy).
		add("stranger", b.Stranger).add("blocked until", b.BlockedUntil)
}

// linkText is the channel behind cheques in one line.
func linkText(l rpc.LinkRow) string {
	text := l.State
	if l.Channel != "" {
		text += " " + l.Channel
	}
	if l.Covered != nil {
		text += ", covers " + cell(*l.Covered) + ", redeemed " + cell(*l.Redeemed) + ", uncashed " + cell(*l.Uncashed)
	}
	return text
}
