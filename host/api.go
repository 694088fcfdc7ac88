package host

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/conngater"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/host/settler"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/protocols/storenet"
	"github.com/tallystick/tally/swap"
)

// connectWithin bounds one dial with its swap handshake.
const connectWithin = 15 * time.Second

// API answers for a node what the RPC asks of a peer.
type API struct {
	node    *Node
	gater   *conngater.BasicConnectionGater // nil on a host that somebody else built
	events  *rpc.EventLog
	started time.Time
	settler *settler.Settler // nil but in mode hard
	// channels is nil where no chain is configured. It is set before the first
	// call and never changes.
	channels *rpc.Channels
	chain    *chain       // what channels is a view of
	watches  atomic.Int32 // goroutines of socketOpened
	streams  heldStreams
}

var _ rpc.Peer = (*API)(nil)

// Channels returns the payment channels.
func (a *API) Channels() (*rpc.Channels, error) {
	if a.channels == nil {
		return nil, rpc.NewError(rpc.CodeNoChain, "no chain is configured")
	}
	return a.channels, nil
}

func protocolNames(n *Node) []string {
	var names []string
	for _, id := range n.host.Mux().Protocols() {
		names = append(names, string(id))
	}
	sort.Strings(names)
	return names
}

// ID says who we are and where we listen.
func (a *API) ID(context.Context) (rpc.Identity, error) {
	return rpc.Identity{
		PeerID: a.node.host.ID().String(), Addrs: a.node.Addrs(), Protocols: protocolNames(a.node),
		Agent: UserAgent, Network: a.node.book.Realm().Network,
	}, nil
}

// Addrs returns our listen addresses, each with /p2p/<peer id>.
func (n *Node) Addrs() []string {
	var out []string
	for _, addr := range n.host.Addrs() {
		out = append(out, fmt.Sprintf("%s/p2p/%s", addr, n.host.ID()))
	}
	return out
}

// Peers lists connected and blocked peers and those with an account.
func (a *API) Peers(ctx context.Context) ([]rpc.PeerRow, error) {
	rows, err := a.node.book.Rows(ctx)
	if err != nil {
		return nil, apiError(err)
	}
	seen := make(map[peer.ID]rpc.PeerRow)
	for i := range rows {
		seen[rows[i].Peer] = a.peerRow(rows[i].Peer, &rows[i])
	}
	others := a.node.host.Network().Peers()
	if a.gater != nil {
		others = append(others, a.gater.ListBlockedPeers()...)
	}
	for _, p := range others {
		if _, ok := seen[p]; !ok {
			seen[p] = a.peerRow(p, nil)
		}
	}
	list := make([]rpc.PeerRow, 0, len(seen))
	for _, row := range seen {
		list = append(list, row)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Peer < list[j].Peer })
	return list, nil
}

func (a *API) peerRow(p peer.ID, r *swap.Row) rpc.PeerRow {
	h := a.node.host
	row := rpc.PeerRow{Peer: p.String(), Addrs: []string{}, Mode: swap.ModeUnset.String()}
	for _, c := range h.Network().ConnsToPeer(p) {
		row.Connected = true
		row.Addrs = append(row.Addrs, c.RemoteMultiaddr().String())
		row.Direction = directionName(c.Stat().Direction)
	}
	if agent, err := h.Peerstore().Get(p, "AgentVersion"); err == nil {
		row.Agent, _ = agent.(string)
	}
	if id, ok := a.node.swap.Protocol(p); ok {
		row.SwapProtocol = string(id)
	}
	if r != nil {
		row.Mode, row.Balance = r.PeerMode.String(), int64(r.Balance)
		if r.BlockedFor > 0 {
			until := time.Now().Add(r.BlockedFor)
			row.Blocked, row.BlockedUntil = true, &until
			row.BlockedReason = "stayed at the disconnect threshold without paying"
		}
	}
	if a.gater != nil && !a.gater.InterceptPeerDial(p) {
		row.Blocked, row.BlockedUntil, row.BlockedReason = true, nil, "by the operator"
	}
	return row
}

func directionName(d network.Direction) string {
	switch d {
	case network.DirInbound:
		return "inbound"
	case network.DirOutbound:
		return "outbound"
	default:
		return "unknown"
	}
}

// PeerConnect dials and waits for the swap handshake.
func (a *API) PeerConnect(ctx context.Context, addr peer.AddrInfo) (rpc.PeerRow, error) {
	if addr.ID == a.node.host.ID() {
		return rpc.PeerRow{}, rpc.NewError(rpc.CodeBadAddress, "%s is this peer itself", addr.ID)
	}
	if a.gater != nil && !a.gater.InterceptPeerDial(addr.ID) {
		return rpc.PeerRow{}, rpc.NewError(rpc.CodeBlocked, "%s is blocked by the operator", addr.ID)
	}
	ctx, cancel := context.WithTimeout(ctx, connectWithin)
	defer cancel()
	if err := a.node.host.Connect(ctx, addr); err != nil {
		return rpc.PeerRow{}, rpc.NewError(rpc.CodeConnectFailed, "connect to %s: %w", addr.ID, err)
	}
	if err := a.node.book.WaitSession(ctx, addr.ID); err != nil {
		return rpc.PeerRow{}, rpc.NewError(rpc.CodeHandshake,
			"connected to %s, but there was no swap handshake: %w", addr.ID, err)
	}
	a.node.waitPackets(ctx, addr.ID)
	r, err := a.node.book.Row(addr.ID)
	if err != nil {
		return rpc.PeerRow{}, apiError(err)
	}
	return a.peerRow(addr.ID, &r), nil
}

// errNoGater: the node runs on a host that somebody else built.
var errNoGater = rpc.NewError(rpc.CodeUnsupported, "this peer's libp2p host was built without a block list")

// PeerBlock is the operator's own block.
func (a *API) PeerBlock(_ context.Context, id peer.ID) error {
	if a.gater == nil {
		return errNoGater
	}
	if err := a.gater.BlockPeer(id); err != nil {
		return rpc.NewError(rpc.CodeStore, "block %s: %w", id, err)
	}
	return a.node.swap.Disconnect(id)
}

// PeerUnblock ends any block of a peer.
func (a *API) PeerUnblock(_ context.Context, id peer.ID) error {
	if a.gater == nil {
		return errNoGater
	}
	if err := a.gater.UnblockPeer(id); err != nil {
		return rpc.NewError(rpc.CodeStore, "unblock %s: %w", id, err)
	}
	return apiError(a.node.book.Unblock(id))
}

// PeerResolve takes the peer's figures where the books differ.
func (a *API) PeerResolve(ctx context.Context, id peer.ID) (rpc.BalanceRow, error) {
	r, err := a.node.book.Row(id)
	if err != nil {
		return rpc.BalanceRow{}, apiError(err)
	}
	if r.Connected && r.Skew == 0 && !r.SkewBlocks && r.Unanswered == 0 {
		return rpc.BalanceRow{}, rpc.NewError(rpc.CodeNothingToResolve, "the books of %s and ours agree as far as it has told", id)
	}
	if err := a.node.book.Resolve(ctx, id); err != nil {
		return rpc.BalanceRow{}, apiError(err)
	}
	if r, err = a.node.book.Row(id); err != nil {
		return rpc.BalanceRow{}, apiError(err)
	}
	return balanceRow(&r, a.links(ctx)), nil
}

// Balances lists every peer with an account, or the one of id.
func (a *API) Balances(ctx context.Context, id peer.ID) ([]rpc.BalanceRow, error) {
	if id != "" {
		known, err := a.node.book.Known(id)
		if err != nil {
			return nil, apiError(err)
		}
		if !known {
			return nil, rpc.NewError(rpc.CodeUnknownPeer, "there is no account with %s", id)
		}
		r, err := a.node.book.Row(id)
		if err != nil {
			return nil, apiError(err)
		}
		return []rpc.BalanceRow{balanceRow(&r, a.links(ctx))}, nil
	}
	rows, err := a.node.book.Rows(ctx)
	if err != nil {
		return nil, apiError(err)
	}
	out := make([]rpc.BalanceRow, len(rows))
	links := a.links(ctx)
	for i := range rows {
		out[i] = balanceRow(&rows[i], links)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Peer < out[j].Peer })
	return out, nil
}

func balanceRow(r *swap.Row, links map[peer.ID][]settler.LinkInfo) rpc.BalanceRow {
	b := rpc.BalanceRow{
		Peer: r.Peer.String(), Asset: r.Asset, Balance: int64(r.Balance),
		Reserved: uint64(r.Reserved), Shadow: uint64(r.Shadow),
		PaymentThreshold: uint64(r.PaymentThreshold), PeerPaymentThreshold: uint64(r.PeerPaymentThreshold),
		DisconnectThreshold: uint64(r.DisconnectThreshold),
		HeadroomServe:       uint64(r.HeadroomServe), HeadroomConsume: uint64(r.HeadroomConsume),
		Exposure: uint64(r.Exposure), LastChequeSent: lastCheque(r.LastChequeSent), LastChequeReceived: lastCheque(r.LastChequeReceived),
		Uncashed: uint64(r.Uncashed), SettlementBlockedBy: r.SettlementBlockedBy,
		Connected: r.Connected, Mode: r.Mode.String(), PeerMode: r.PeerMode.String(),
		Owed: int64(r.Owed), PrepaidByPeer: uint64(r.PrepaidByPeer), PrepaidToPeer: uint64(r.PrepaidToPeer),
		Served: uint64(r.Served), Consumed: uint64(r.Consumed), Skew: int64(r.Skew),
		Paid: uint64(r.Paid), Received: uint64(r.Received), Forgiven: uint64(r.Forgiven), Unanswered: uint64(r.Unanswered),
		NextSettlement: uint64(r.NextSettlement), Stranger: r.Stranger, Services: []rpc.ServiceCount{}, Links: []rpc.LinkRow{},
	}
	for _, l := range links[r.Peer] {
		b.Links = append(b.Links, linkRow(&l))
		if st := l.Standing; st != nil {
			b.Uncashed = uint64(st.Uncashed)
			if c := b.LastChequeReceived; c != nil {
				c.State = backedState(c.State, tally.Amount(c.Cumulative), r.Received, st)
			}
		}
	}
	for _, s := range r.Services {
		b.Services = append(b.Services, rpc.ServiceCount{Service: s.Service, Served: uint64(s.Served), Consumed: uint64(s.Consumed)})
	}
	if r.BlockedFor > 0 {
		until := time.Now().Add(r.BlockedFor)
		b.BlockedUntil = &until
	}
	return b
}

func lastCheque(m *swap.ChequeMark) *rpc.LastCheque {
	if m == nil {
		return nil
	}
	return &rpc.LastCheque{Serial: m.Serial, Cumulative: uint64(m.Cumulative), State: string(m.State)}
}

// backedState is the state of a received cheque with what became of its channel.
func backedState(state string, cumulative, credited tally.Amount, st *swap.Standing) string {
	switch {
	case st.Redeemed >= cumulative && cumulative > 0:
		return rpc.ChequeRedeemed
	case st.Covered < credited:
		return rpc.ChequeUncovered
	default:
		return state
	}
}

// linksWithin bounds the look at the chain for a view; what is not known by then
// is left out.
const linksWithin = 2 * time.Second

// links returns the channels behind cheques by peer; nil but in mode hard.
func (a *API) links(ctx context.Context) map[peer.ID][]settler.LinkInfo {
	if a.settler == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, linksWithin)
	defer cancel()
	byPeer := make(map[peer.ID][]settler.LinkInfo)
	for _, l := range a.settler.Links(ctx) {
		byPeer[l.Peer] = append(byPeer[l.Peer], l)
	}
	return byPeer
}

func linkRow(l *settler.LinkInfo) rpc.LinkRow {
	row := rpc.LinkRow{
		Direction: rpc.ChequeSent, State: l.State, Channel: addressText(l.Channel), Payout: addressText(l.Payout), Origin: uint64(l.Origin),
	}
	if l.Direction == swap.Serve {
		row.Direction = rpc.ChequeReceived
	}
	if st := l.Standing; st != nil {
		covered, redeemed, uncashed := uint64(st.Covered), uint64(st.Redeemed), uint64(st.Uncashed)
		row.Covered, row.Redeemed, row.Uncashed = &covered, &redeemed, &uncashed
	}
	return row
}

// Cashout submits vouchers of peers to the chain.
func (a *API) Cashout(ctx context.Context, id peer.ID, least uint64) ([]rpc.CashoutRow, error) {
	if a.settler == nil {
		return nil, rpc.NewError(rpc.CodeUnsupported, "only mode hard has cheques that can be cashed; this peer is in mode %v", a.node.book.Policy().Mode)
	}
	var done []settler.Cashed
	var err error
	if id == "" {
		done, err = a.settler.CashoutAll(ctx, tally.Amount(least))
	} else {
		var one settler.Cashed
		if one, err = a.settler.Cashout(ctx, id, tally.Amount(least)); err == nil {
			done = append(done, one)
		}
	}
	if errors.Is(err, settler.ErrNothingToCash) {
		return nil, rpc.NewError(rpc.CodeNothingToCash, "%w", err)
	}
	if err != nil {
		return nil, apiError(err)
	}
	rows := make([]rpc.CashoutRow, len(done))
	for i, c := range done {
		rows[i] = rpc.CashoutRow{Peer: c.Peer.String(), Channel: c.Channel.String(), Units: uint64(c.Units), Cid: c.Message.String()}
	}
	return rows, nil
}

// Cheques lists the last cheque each way of a peer, or of all.
func (a *API) Cheques(ctx context.Context, id peer.ID) ([]rpc.ChequeRow, error) {
	peers := []peer.ID{id}
	if id == "" {
		rows, err := a.node.book.Rows(ctx)
		if err != nil {
			return nil, apiError(err)
		}
		peers = peers[:0]
		for i := range rows {
			peers = append(peers, rows[i].Peer)
		}
	}
	out := []rpc.ChequeRow{}
	links := a.links(ctx)
	for _, p := range peers {
		list, err := a.node.book.Cheques(p)
		if err != nil {
			return nil, apiError(err)
		}
		for i := range list {
			row := chequeRow(&list[i])
			for _, l := range links[p] {
				if l.Standing != nil && !list[i].Sent {
					row.State = backedState(row.State, list[i].Cheque.Cumulative, tally.Amount(row.Credited), l.Standing)
				}
			}
			out = append(out, row)
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Date.Before(out[j].Date) })
	return out, nil
}

func chequeRow(c *swap.ChequeRow) rpc.ChequeRow {
	row := rpc.ChequeRow{
		Peer: c.Peer.String(), Direction: rpc.ChequeReceived, Serial: c.Cheque.Serial,
		Cumulative: uint64(c.Cheque.Cumulative), Credited: uint64(c.Credited), State: string(c.State),
		Date:    time.Unix(c.Cheque.Date, 0).UTC(),
		Backing: hex.EncodeToString(c.Cheque.Backing), Voucher: voucherText(c.Cheque.Backing), Signature: hex.EncodeToString(c.Cheque.Signature),
	}
	if c.Sent {
		row.Direction = rpc.ChequeSent
	}
	return row
}

// voucherText is the voucher in a backing as people pass it on; empty for karma.
func voucherText(b swap.Backing) string {
	if len(b) == 0 {
		return ""
	}
	sv, err := settler.VoucherOf(b)
	if err != nil {
		return ""
	}
	text, err := paych.FormatVoucher(sv)
	if err != nil {
		return ""
	}
	return text
}

// Settle pays what we owe the peer now and waits for its answer.
func (a *API) Settle(ctx context.Context, id peer.ID) (rpc.SettleResult, error) {
	s, err := a.node.book.SettleAndWait(ctx, id)
	return settleResult(id, s, err)
}

// Prepay pays what we owe the peer, and units ahead of service.
func (a *API) Prepay(ctx context.Context, id peer.ID, units uint64) (rpc.SettleResult, error) {
	s, err := a.node.book.PrepayAndWait(ctx, id, tally.Amount(units))
	return settleResult(id, s, err)
}

func settleResult(id peer.ID, s swap.Settled, err error) (rpc.SettleResult, error) {
	if err != nil {
		return rpc.SettleResult{}, apiError(err)
	}
	return rpc.SettleResult{
		Peer: id.String(), Serial: s.Serial, Paid: uint64(s.Paid), Cumulative: uint64(s.Cumulative),
		State: string(s.State), Balance: int64(s.Balance),
	}, nil
}

// StoreImport adds messages to our own store.
func (a *API) StoreImport(ctx context.Context, messages []rpc.Message) (rpc.ImportResult, error) {
	var file bytes.Buffer
	enc := json.NewEncoder(&file)
	enc.SetEscapeHTML(false)
	for i := range messages {
		if err := enc.Encode(&messages[i]); err != nil {
			return rpc.ImportResult{}, rpc.NewError(rpc.CodeBadMessage, "message %d: %w", i+1, err)
		}
	}
	res, err := a.node.Import(ctx, bytes.NewReader(file.Bytes()), nil)
	var line *storenet.LineError
	switch {
	case errors.As(err, &line):
		return rpc.ImportResult{}, rpc.NewError(rpc.CodeBadMessage, "message %d: %w", line.Line, line.Err)
	case errors.Is(err, storenet.ErrImporting):
		return rpc.ImportResult{}, rpc.NewError(rpc.CodeBusy, "%w", err)
	case err != nil:
		return rpc.ImportResult{}, apiError(err)
	}
	count, err := a.node.messages.Count(ctx)
	if err != nil {
		return rpc.ImportResult{}, apiError(err)
	}
	return rpc.ImportResult{Imported: res.Added, Duplicates: res.Duplicates, Stored: count}, nil
}

// StoreQuery asks a peer for one page.
func (a *API) StoreQuery(ctx context.Context, id peer.ID, q rpc.StoreQuery) (rpc.StorePage, error) {
	if a.node.client == nil {
		return rpc.StorePage{}, apiError(ErrNoMessages)
	}
	page, err := a.node.queryPage(ctx, id, q)
	if err != nil {
		return rpc.StorePage{}, apiError(err)
	}
	r, err := a.node.book.Row(id)
	if err != nil {
		return rpc.StorePage{}, apiError(err)
	}
	page.Balance = int64(r.Balance)
	return page, nil
}

// EventsSince returns what happened after a cursor.
func (a *API) EventsSince(ctx context.Context, cursor uint64) (rpc.EventBatch, error) {
	return a.events.Since(ctx, cursor), nil
}

// notify keeps what happens to tabs for EventsSince.
func (a *API) notify(n swap.Notice) {
	fields := make(map[string]any)
	if n.Serial != 0 {
		fields["serial"] = n.Serial
	}
	if n.Amount != 0 {
		fields["amount"] = uint64(n.Amount)
	}
	if n.Detail != "" {
		fields["detail"] = n.Detail
	}
	a.events.Append(time.Now(), string(n.Kind), n.Peer.String(), fields)
}

// errorCode is the stable code of an error of the parts.
type errorCode struct {
	err  error
	code rpc.Code
}

// coded gives err the code of the first line of a table that it is, and nil where it is
// none of them.
func coded(err error, table []errorCode) error {
	for _, m := range table {
		if errors.Is(err, m.err) {
			return rpc.NewError(m.code, "%w", err)
		}
	}
	return nil
}

// apiError gives the errors of the parts their stable code.
func apiError(err error) error {
	if err == nil {
		return nil
	}
	var known *rpc.Error
	if errors.As(err, &known) {
		return err
	}
	if known := coded(err, []errorCode{
		{context.DeadlineExceeded, rpc.CodeTimeout},
		{swap.ErrClosed, rpc.CodeStopping},
		{swap.ErrNothingOwed, rpc.CodeNothingOwed},
		{swap.ErrPaymentRefused, rpc.CodeChequeRefused},
		{swap.ErrSoft, rpc.CodeSettlementBlock},
		{swap.ErrPeerMode, rpc.CodeSettlementBlock},
		{swap.ErrNoSession, rpc.CodeNotConnected},
		{swap.ErrTooLarge, rpc.CodeTooLarge},
		{swap.ErrOverThreshold, rpc.CodeOverThreshold},
		{swap.ErrPeerThreshold, rpc.CodeHandshake},
		{swap.ErrInFlight, rpc.CodeBusy},
		{swap.ErrTooManyHolds, rpc.CodeBusy},
		{ErrNoMessages, rpc.CodeUnsupported},
		{storenet.ErrCursorText, rpc.CodeBadArgument},
		{storenet.ErrUnsupported, rpc.CodeRefusedByPeer},
		{storenet.ErrAnswer, rpc.CodeRemoteProtocol},
		{tally.ErrOverflow, rpc.CodeBadArgument},
	}); known != nil {
		return known
	}
	var refused *storenet.RefusedError
	if errors.As(err, &refused) {
		return rpc.NewError(rpc.CodeRefusedByPeer, "%w", err)
	}
	return err
}
