package main

import (
	"context"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/rpc"
)

func (a *app) peersCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "peers",
		Short:   "List, connect, block and unblock peers",
		Long:    `Works on the peers of the running peer.`,
		Example: "  tally peers ls\n  tally peers connect /ip4/127.0.0.1/tcp/4001/p2p/12D3KooW…",
		RunE:    group,
	}
	cmd.AddCommand(a.peersLsCmd(), a.peersConnectCmd(),
		a.peersActCmd("block", "Disconnect a peer and refuse it",
			`Disconnects a peer and refuses it until it is unblocked. Its tab stays: what it
owes is still owed.`, true, func(ctx context.Context, r *remote, id string) error { _, err := r.PeerBlock(ctx, id); return err }),
		a.peersActCmd("unblock", "End the block of a peer",
			`Ends any block of a peer: the operator's own, and the one that a peer gets when
its debt stays over the threshold without a cheque.`, false, func(ctx context.Context, r *remote, id string) error { _, err := r.PeerUnblock(ctx, id); return err }),
		a.peersResolveCmd())
	return cmd
}

// peerArg reads a PEER argument: a peer id, or an address that ends in one.
func peerArg(s string) (peer.AddrInfo, error) {
	if len(s) > 0 && s[0] == '/' {
		info, err := rpc.ParseAddr(s)
		if err != nil {
			return info, usagef("use an address that `tally id` of the other peer prints", "%w", err)
		}
		return info, nil
	}
	id, err := rpc.ParsePeer(s)
	if err != nil {
		return peer.AddrInfo{}, usagef("use a peer id as `tally peers ls` prints it, such as 12D3KooW…", "%w", err)
	}
	return peer.AddrInfo{ID: id}, nil
}

// optionalPeerArg reads [PEER]; none means all.
func optionalPeerArg(args []string) (string, error) {
	if len(args) == 0 {
		return "", nil
	}
	info, err := peerArg(args[0])
	return info.ID.String(), err
}

func (a *app) peersLsCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Short:   "List peers that are connected or blocked or have an account",
		Long:    `Lists the peers that are connected, are blocked, or have an account.`,
		Example: "  tally peers ls\n  tally peers ls -o ndjson",
		Args:    nArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return askRows(cmd.Context(), a, func(ctx context.Context, r *remote) ([]rpc.PeerRow, error) {
				return r.Peers(ctx)
			}, peerTable)
		},
	}
}

func peerTable(list []rpc.PeerRow) *table {
	t := newTable("PEER", "CONNECTED", "MODE", ">BALANCE", "PROTOCOL", "AGENT", "BLOCKED")
	t.empty = "no peers; connect one: tally peers connect ADDRESS"
	for _, p := range list {
		blocked := ""
		if p.Blocked {
			blocked = p.BlockedReason
			if p.BlockedUntil != nil {
				blocked = "until " + cell(p.BlockedUntil) + " " + blocked
			} else if blocked == "" {
				blocked = "yes"
			}
		}
		t.add(p.Peer, p.Connected, p.Mode, p.Balance, p.SwapProtocol, p.Agent, blocked)
	}
	return t
}

func (a *app) peersConnectCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "connect MULTIADDR",
		Short:   "Dial a peer and shake hands",
		Long:    `Dials a peer at an address that ends in /p2p/<peer id>, and waits for the swap handshake.`,
		Example: "  tally peers connect /ip4/127.0.0.1/tcp/4001/p2p/12D3KooW…",
		Args:    nArgs(1, "MULTIADDR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := rpc.ParseAddr(args[0]); err != nil {
				return usagef("use an address that `tally id` of the other peer prints", "%w", err)
			}
			return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.PeerRow, error) {
				return r.PeerConnect(ctx, args[0])
			}, func(row rpc.PeerRow) *table {
				return peerTable([]rpc.PeerRow{row})
			})
		},
	}
}

// peersActCmd is a command that changes whether a peer is served.
func (a *app) peersActCmd(name, short, long string, blocked bool, act func(context.Context, *remote, string) error) *cobra.Command {
	return &cobra.Command{
		Use:     name + " PEER",
		Short:   short,
		Long:    long,
		Example: "  tally peers " + name + " 12D3KooW…",
		Args:    nArgs(1, "PEER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			info, err := peerArg(args[0])
			if err != nil {
				return err
			}
			result := struct {
				Peer    string `json:"peer"`
				Blocked bool   `json:"blocked"`
			}{info.ID.String(), blocked}
			if _, err := ask(cmd.Context(), a, func(ctx context.Context, r *remote) (struct{}, error) { return struct{}{}, act(ctx, r, result.Peer) }); err != nil {
				return err
			}
			return a.out.one(result, func() *table { return newCard().add("peer", result.Peer).add("blocked", blocked) })
		},
	}
}

func (a *app) peersResolveCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "resolve PEER",
		Short: "Take the peer's figure where the two books differ",
		Long: `Small differences between two books close by themselves. Where a difference is
too large for that, credit stops until the peer pays or you take its figure with
this command. What you forgive is the skew in ` + "`tally balances PEER`" + `.`,
		Example: "  tally peers resolve 12D3KooW…",
		Args:    nArgs(1, "PEER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			info, err := peerArg(args[0])
			if err != nil {
				return err
			}
			return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.BalanceRow, error) {
				return r.PeerResolve(ctx, info.ID.String())
			}, balanceCard)
		},
	}
}
