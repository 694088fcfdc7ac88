package rpc

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/paystream/hold"
	"github.com/tallystick/tally/paystream/payments"
)

// Node is what the server needs: a peer and the process that it runs in. All
// methods may be called at the same time from many goroutines, and return when
// ctx ends. Rows are values of the caller. An error that the caller can act on
// is an [*Error] with its code (see [NewError]); any other error reaches the
// client as CodeFailed with its text, so it must hold no secret.
type Node interface {
	Peer
	Process
}

// Process is the part of a Node that the program around a peer answers.
type Process interface {
	// Version names the build and the protocols that it speaks.
	Version(ctx context.Context) (Version, error)
	// ConfigShow returns the settings in force, key to value, without secrets.
	ConfigShow(ctx context.Context) (map[string]any, error)
	// Shutdown asks the process to stop and returns at once.
	Shutdown(ctx context.Context) error
}

// Peer is the part of a Node that package host answers.
type Peer interface {
	// Status reports health as a list of checks, each with the next action. It
	// answers before anything is funded or connected.
	Status(ctx context.Context) (Status, error)
	// ID says who we are and where we listen.
	ID(ctx context.Context) (Identity, error)

	// Peers lists connected and blocked peers and those with an account.
	Peers(ctx context.Context) ([]PeerRow, error)
	// PeerConnect dials and waits for the swap handshake or its refusal.
	PeerConnect(ctx context.Context, addr peer.AddrInfo) (PeerRow, error)
	// PeerBlock is the operator's own block: disconnect, and refuse until
	// PeerUnblock. Blocking twice is success.
	PeerBlock(ctx context.Context, id peer.ID) error
	// PeerUnblock ends any block of the peer, the operator's and our own.
	PeerUnblock(ctx context.Context, id peer.ID) error
	// PeerResolve takes the peer's figure where the two books differ by more
	// than may be forgiven without a person, and lets credit flow again.
	PeerResolve(ctx context.Context, id peer.ID) (BalanceRow, error)

	LockNode

	// Balances lists every peer with an account, connected or not, in the
	// order of peer ids; or the one of id where that is not empty
	// (CodeUnknownPeer if it has none).
	Balances(ctx context.Context, id peer.ID) ([]BalanceRow, error)
	// Cheques lists the cheques of a peer, of all peers where id is empty,
	// oldest first.
	Cheques(ctx context.Context, id peer.ID) ([]ChequeRow, error)
	// Settle pays what we owe the peer now and waits for the ack. It returns
	// CodeNothingOwed where there is no debt.
	Settle(ctx context.Context, id peer.ID) (SettleResult, error)
	// Prepay pays what we owe the peer and units, at least 1, ahead of service;
	// the peer may credit less. It waits for the ack.
	Prepay(ctx context.Context, id peer.ID, units uint64) (SettleResult, error)

	// Cashout submits the best voucher of a peer to the chain, of all peers where
	// id is empty, and leaves less than least uncashed units alone. It returns when
	// the messages are published. CodeNothingToCash where there is nothing.
	Cashout(ctx context.Context, id peer.ID, least uint64) ([]CashoutRow, error)

	// StoreImport adds messages to our own store: all of them, or on error
	// none. The slice is the callee's to keep.
	StoreImport(ctx context.Context, messages []Message) (ImportResult, error)
	// StoreQuery asks a peer for one page, which is accounted like any other
	// use of its service. An empty Cursor in the answer is the end.
	StoreQuery(ctx context.Context, id peer.ID, query StoreQuery) (StorePage, error)

	// EventsSince returns the events after cursor, oldest first, at most
	// MaxEventBatch. Without any it waits for one; when ctx ends it returns an
	// empty batch and no error. [EventLog] does this.
	EventsSince(ctx context.Context, cursor uint64) (EventBatch, error)

	// Sockets returns the payment sockets, the same for the life of the peer;
	// CodeNoSockets where it has none.
	Sockets() (Sockets, error)
	// Bridge returns the Interledger bridge; CodeNoBridge where there is none.
	Bridge() (Bridge, error)

	// Payments returns the payments in parts, the same for the life of the peer;
	// CodeUnsupported where it makes none.
	Payments() (*payments.Service, error)
	// Holds returns the holds, the same for the life of the peer; CodeUnsupported
	// where it takes part in none.
	Holds() (*hold.Service, error)

	// Channels returns the payment channels, the same for the life of the peer;
	// CodeNoChain where no chain is configured.
	Channels() (*Channels, error)
}

// Identity is who a peer is.
type Identity struct {
	PeerID string `json:"peer_id"`
	// Addrs are the listen addresses, each ending in /p2p/<peer id>.
	Addrs []string `json:"addrs"`
	// Protocols are the libp2p protocol ids that we serve.
	Protocols []string `json:"protocols"`
	Agent     string   `json:"agent"`
	Network   string   `json:"network"`
}

// Version names a build.
type Version struct {
	Version   string   `json:"version"`
	Commit    string   `json:"commit"`
	Go        string   `json:"go"`
	API       string   `json:"api"`
	Protocols []string `json:"protocols"`
}

// CheckState is the outcome of one health check.
type CheckState string

// The outcomes of a health check.
const (
	CheckOK   CheckState = "ok"
	CheckWarn CheckState = "warn"
	CheckFail CheckState = "fail"
	CheckSkip CheckState = "skip"
)

// Check is one line of a health check list.
type Check struct {
	Name   string     `json:"name"`
	State  CheckState `json:"state"`
	Detail string     `json:"detail"`
	// Next is what the operator does about it; empty where all is well.
	Next string `json:"next"`
}

// Status is the health of a running peer.
type Status struct {
	PeerID    string    `json:"peer_id"`
	Version   string    `json:"version"`
	Mode      string    `json:"mode"`
	Network   string    `json:"network"`
	Asset     string    `json:"asset"`
	StartedAt time.Time `json:"started_at"`
	Connected int       `json:"connected"`
	Accounts  int       `json:"accounts"`
	Messages  int       `json:"messages"`
	// OwedToUs and OwedByUs sum the balances above and below zero, in units.
	OwedToUs uint64  `json:"owed_to_us"`
	OwedByUs uint64  `json:"owed_by_us"`
	Exposure uint64  `json:"exposure"`
	Healthy  bool    `json:"healthy"`
	Checks   []Check `json:"checks"`
	// Next is the Next of the worst check.
	Next string `json:"next"`
}

// PeerRow is one peer as the connection sees it.
type PeerRow struct {
	Peer      string   `json:"peer"`
	Connected bool     `json:"connected"`
	Direction string   `json:"direction"`
	Addrs     []string `json:"addrs"`
	Agent     string   `json:"agent"`
	// SwapProtocol is the swap protocol id in use, empty before the handshake.
	SwapProtocol string `json:"swap_protocol"`
	Mode         string `json:"mode"`
	Balance      int64  `json:"balance"`
	// Blocked is set while the peer is refused; BlockedUntil is null for the
	// operator's own block, which has no end.
	Blocked       bool       `json:"blocked"`
	BlockedUntil  *time.Time `json:"blocked_until"`
	BlockedReason string     `json:"blocked_reason"`
}

// LastCheque is the newest cheque of one direction.
type LastCheque struct {
	Serial     uint64 `json:"serial"`
	Cumulative uint64 `json:"cumulative"`
	State      string `json:"state"`
}

// ServiceCount is what one metered service gave and took, in units.
type ServiceCount struct {
	Service  string `json:"service"`
	Served   uint64 `json:"served"`
	Consumed uint64 `json:"consumed"`
}

// BalanceRow is all that the operator sees of one tab. Amounts are units; a
// balance above zero means that the peer owes us.
type BalanceRow struct {
	Peer  string `json:"peer"`
	Asset string `json:"asset"`
	// Balance is net: owed - prepaid_by_peer + prepaid_to_peer. The books of
	// two honest peers at rest are negatives of each other.
	Balance int64 `json:"balance"`
	// Reserved is our consumption in flight, Shadow our service in flight.
	Reserved uint64 `json:"reserved"`
	Shadow   uint64 `json:"shadow"`
	// PaymentThreshold and DisconnectThreshold are ours, PeerPaymentThreshold
	// is what the peer announced (0 before a handshake).
	PaymentThreshold     uint64 `json:"payment_threshold"`
	PeerPaymentThreshold uint64 `json:"peer_payment_threshold"`
	DisconnectThreshold  uint64 `json:"disconnect_threshold"`
	// HeadroomServe is how much we would still serve, HeadroomConsume how much
	// we could still consume, before a cheque is needed.
	HeadroomServe   uint64 `json:"headroom_serve"`
	HeadroomConsume uint64 `json:"headroom_consume"`
	// Exposure is what we lose if the peer never comes back.
	Exposure uint64 `json:"exposure"`
	// LastChequeSent and LastChequeReceived are null where there was none.
	LastChequeSent     *LastCheque `json:"last_cheque_sent"`
	LastChequeReceived *LastCheque `json:"last_cheque_received"`
	// Uncashed is what received cheques would still pay on a chain.
	Uncashed uint64 `json:"uncashed"`
	// SettlementBlockedBy says why a due settlement has not been made, empty
	// where nothing is in its way.
	SettlementBlockedBy string `json:"settlement_blocked_by"`

	Connected bool   `json:"connected"`
	Mode      string `json:"mode"`
	PeerMode  string `json:"peer_mode"`
	// Owed is the service part of the balance; PrepaidByPeer and PrepaidToPeer
	// are money beyond the debt.
	Owed          int64  `json:"owed"`
	PrepaidByPeer uint64 `json:"prepaid_by_peer"`
	PrepaidToPeer uint64 `json:"prepaid_to_peer"`
	// Served and Consumed are all units ever.
	Served   uint64 `json:"served"`
	Consumed uint64 `json:"consumed"`
	// Paid and Received are the cumulatives of cheques that were credited, by the
	// peer and by us.
	Paid     uint64 `json:"paid"`
	Received uint64 `json:"received"`
	// Forgiven is what we served and let go of, because a crash made the books
	// differ; Unanswered what we asked for and had no answer to.
	Forgiven   uint64 `json:"forgiven"`
	Unanswered uint64 `json:"unanswered"`
	// Skew is our balance plus the peer's as it last stated it: 0 between
	// books that agree.
	Skew int64 `json:"skew"`
	// NextSettlement is the debt at which we pay, 0 where we never will.
	NextSettlement uint64         `json:"next_settlement"`
	Services       []ServiceCount `json:"services"`
	// Stranger is set while the peer has never paid.
	Stranger     bool       `json:"stranger"`
	BlockedUntil *time.Time `json:"blocked_until"`
	// Links are the channels behind the cheques, in mode hard.
	Links []LinkRow `json:"links"`
}

// LinkRow is the channel behind the cheques of one direction.
type LinkRow struct {
	// Direction is sent for our cheques, received for the peer's.
	Direction string `json:"direction"`
	// State is opening or bound.
	State string `json:"state"`
	// Channel is empty while it opens.
	Channel string `json:"channel"`
	// Payout is the peer's address.
	Payout string `json:"payout"`
	// Origin is the cumulative that was credited when the channel was bound.
	Origin uint64 `json:"origin"`
	// Covered, Redeemed and Uncashed are of the peer's cheques, null while the
	// chain is away and for ours: what the chain would pay, what is on it already,
	// and what is not.
	Covered  *uint64 `json:"covered"`
	Redeemed *uint64 `json:"redeemed"`
	Uncashed *uint64 `json:"uncashed"`
}

// CashoutRow is one cash-out.
type CashoutRow struct {
	Peer    string `json:"peer"`
	Channel string `json:"channel"`
	// Units that are on the chain with it and were not before.
	Units uint64 `json:"units"`
	Cid   string `json:"cid"`
}

// Directions of a cheque.
const (
	ChequeSent     = "sent"
	ChequeReceived = "received"
)

// States of a cheque.
const (
	ChequeIntent    = "intent"    // decided and saved, not yet signed
	ChequePending   = "pending"   // signed and saved, no ack yet
	ChequeRefused   = "refused"   // the peer refused it
	ChequeAcked     = "acked"     // sent: the peer said that it has credited it
	ChequeCredited  = "credited"  // received: credited in our book
	ChequeRedeemed  = "redeemed"  // received: paid out on a chain
	ChequeUncovered = "uncovered" // received: its cover was lost
)

// ChequeRow is one cheque.
type ChequeRow struct {
	Peer      string `json:"peer"`
	Direction string `json:"direction"`
	Serial    uint64 `json:"serial"`
	// Cumulative is all ever paid by this cheque and those before it; Credited
	// is the cumulative that the creditor has credited, which may be less.
	Cumulative uint64     `json:"cumulative"`
	Credited   uint64     `json:"credited"`
	State      string     `json:"state"`
	Date       time.Time  `json:"date"`
	AckedAt    *time.Time `json:"acked_at,omitempty"`
	// Backing is what the signature covers, in hex, and Voucher the voucher in it
	// as `tally voucher inspect` takes it; both are empty for karma. Signature is
	// the issuer's, in hex.
	Backing   string `json:"backing"`
	Voucher   string `json:"voucher"`
	Signature string `json:"signature"`
}

// SettleResult is what a settlement did.
type SettleResult struct {
	Peer       string `json:"peer"`
	Serial     uint64 `json:"serial"`
	Paid       uint64 `json:"paid"`
	Cumulative uint64 `json:"cumulative"`
	State      string `json:"state"`
	// Balance is the balance after it.
	Balance int64 `json:"balance"`
}

// ImportResult is what an import did.
type ImportResult struct {
	Imported int `json:"imported"`
	// Duplicates were in the store already; they are not counted as imported.
	Duplicates int `json:"duplicates"`
	// Stored is the number of messages in the store now.
	Stored int `json:"stored"`
}

// StoreQuery says which page of a peer's store to ask for.
type StoreQuery struct {
	// ContentTopics to match; none matches all.
	ContentTopics []string `json:"content_topics"`
	// PubsubTopic to match; empty means the configured default.
	PubsubTopic string `json:"pubsub_topic"`
	// Start and End bound the timestamp, both inclusive, in nanoseconds of
	// Unix time; null is no bound.
	Start *int64 `json:"start"`
	End   *int64 `json:"end"`
	// PageSize is the most messages of a page, 1 to MaxPageSize. The peer may
	// return fewer, for example what is left of our credit.
	PageSize int `json:"page_size"`
	// Backward starts at the newest message.
	Backward bool `json:"backward"`
	// Cursor is that of the page before, empty for the first.
	Cursor string `json:"cursor"`
}

// StorePage is one page of a peer's store.
type StorePage struct {
	Messages []Message `json:"messages"`
	// Cursor asks for the page after this one; empty is the end.
	Cursor string `json:"cursor"`
	// Cost is what the page cost, in units.
	Cost uint64 `json:"cost"`
	// Balance is our balance with the peer after it.
	Balance int64 `json:"balance"`
}

// Event is something that happened: a settlement, a cheque, a block.
type Event struct {
	Cursor uint64    `json:"cursor"`
	Time   time.Time `json:"time"`
	// Kind is a fixed word such as cheque_sent or peer_blocked.
	Kind string `json:"kind"`
	Peer string `json:"peer"`
	// Fields holds the figures of the kind.
	Fields map[string]any `json:"fields,omitempty"`
}

// EventBatch is what happened after a cursor.
type EventBatch struct {
	Events []Event `json:"events"`
	// Cursor is what the next call passes.
	Cursor uint64 `json:"cursor"`
	// Missed is set where events after the caller's cursor are gone from the
	// log: read the state afresh.
	Missed bool `json:"missed"`
}
