package testnet

import (
	"context"
	"slices"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host/rpc"
)

// Tab is one side of a tab, as far as in-process peers and live ones both tell.
type Tab struct {
	Connected                  bool
	Balance                    int64
	Served, Consumed           tally.Amount
	Paid, Received             tally.Amount
	Reserved, Shadow           tally.Amount
	Exposure                   tally.Amount
	RoomServe, RoomConsume     tally.Amount
	PeerThreshold              tally.Amount
	Skew                       int64
	Blocked                    time.Duration
	SentSerial, ReceivedSerial uint64
	Pending                    bool // a cheque of ours is not acked
	Forgiven, Unanswered       tally.Amount
	// What the chain says of the cheques of the other side, in mode hard.
	Covered, Redeemed, Uncashed int64
	// Why is what keeps a due settlement from being made.
	Why string
	// Arrived is what we paid the other in parts.
	Arrived int64
	// PaySkew is that less what the other took of anybody.
	PaySkew int64
	// In the slots of the other's channel to us: what is ours, what of it the chain has,
	// whether it has the guard, and how many of our CANCELs.
	SlotsPaid, SlotsRedeemed, CancelsOnChain int64
	Guarded                                  bool
	// MailsPaid is what the chain has paid of vouchers of that channel that were bought.
	MailsPaid int64
}

// mirrors reports whether two sides are one tab.
func (t *Tab) mirrors(o *Tab) bool {
	return t.Balance == -o.Balance && t.Served == o.Consumed && t.Consumed == o.Served &&
		t.Paid == o.Received && t.Received == o.Paid
}

// Stats is what one peer counts.
type Stats struct {
	Sessions, Sent, Acked, Received, Refused, Denied, ServiceRefused, Blocked uint64
	Accounts, Holds                                                           int
	Strangers, Exposure                                                       tally.Amount
	SwapStreams                                                               int
	Got                                                                       int // messages of the last query
	// In mode hard: what is wrong with the peer, its channels by state, and what
	// its wallet gained, in units.
	Unhealthy                 bool
	Why                       string
	Open, Settling, Collected int
	Earned                    int64
	// Of a process: its sockets in memory, what it has on all tabs (served less
	// consumed, which no settlement moves), and the MiB of memory that it has
	// taken since it started.
	Sockets int
	Net     int64
	Growth  int64
	// Locks that stand, ours and those of others, and channels of ours whose slots they
	// fill.
	Locks, SlotsFull int
	// LockWays are our channels that can carry locks now.
	LockWays int
	// HoldRows counts its payments through a holder, by role and status.
	HoldRows map[string]int
	// MailRows counts its vouchers by mail in the same way.
	MailRows map[string]int
	// Payments in parts: ours by state, invoices paid, parts that wait here, and what
	// was claimed and could not be collected.
	PayPending, PayComplete, PayFailed, PartsWaiting int
	// Signatures that it bought, each verified here.
	Signatures       int
	Taken, PartsLost int64
}

// figure is a number that a check can compare: of a tab, or of a peer.
type figure struct {
	tab    func(*Tab) int64
	peer   func(*Stats) int64
	socket func(*rpc.SocketRow) int64
	local  bool // cannot be read over RPC
	procs  bool // only of processes
	chain  bool // there is none without a chain
}

var figures = map[string]figure{
	"balance":          {tab: func(t *Tab) int64 { return t.Balance }},
	"served":           {tab: func(t *Tab) int64 { return int64(t.Served) }},
	"consumed":         {tab: func(t *Tab) int64 { return int64(t.Consumed) }},
	"paid":             {tab: func(t *Tab) int64 { return int64(t.Paid) }},
	"received":         {tab: func(t *Tab) int64 { return int64(t.Received) }},
	"reserved":         {tab: func(t *Tab) int64 { return int64(t.Reserved) }},
	"shadow":           {tab: func(t *Tab) int64 { return int64(t.Shadow) }},
	"exposure":         {tab: func(t *Tab) int64 { return int64(t.Exposure) }},
	"headroom-serve":   {tab: func(t *Tab) int64 { return int64(t.RoomServe) }},
	"headroom-consume": {tab: func(t *Tab) int64 { return int64(t.RoomConsume) }},
	"peer-threshold":   {tab: func(t *Tab) int64 { return int64(t.PeerThreshold) }},
	"skew":             {tab: func(t *Tab) int64 { return t.Skew }},
	"connected":        {tab: func(t *Tab) int64 { return bit(t.Connected) }},
	"blocked":          {tab: func(t *Tab) int64 { return int64((t.Blocked + time.Second - 1) / time.Second) }},
	"cheque-sent":      {tab: func(t *Tab) int64 { return int64(t.SentSerial) }},
	"cheque-received":  {tab: func(t *Tab) int64 { return int64(t.ReceivedSerial) }},
	"cheque-pending":   {tab: func(t *Tab) int64 { return bit(t.Pending) }},
	"forgiven":         {tab: func(t *Tab) int64 { return int64(t.Forgiven) }},
	"unanswered":       {tab: func(t *Tab) int64 { return int64(t.Unanswered) }},

	"covered":          {tab: func(t *Tab) int64 { return t.Covered }, chain: true},
	"redeemed":         {tab: func(t *Tab) int64 { return t.Redeemed }, chain: true},
	"uncashed":         {tab: func(t *Tab) int64 { return t.Uncashed }, chain: true},
	"settlement-waits": {tab: func(t *Tab) int64 { return bit(t.Why != "") }, chain: true},
	"unhealthy":        {peer: func(s *Stats) int64 { return bit(s.Unhealthy) }, chain: true},
	"open":             {peer: func(s *Stats) int64 { return int64(s.Open) }, chain: true},
	"settling":         {peer: func(s *Stats) int64 { return int64(s.Settling) }, chain: true},
	"collected":        {peer: func(s *Stats) int64 { return int64(s.Collected) }, chain: true},
	"earned":           {peer: func(s *Stats) int64 { return s.Earned }, chain: true},

	"slots-paid":       {tab: func(t *Tab) int64 { return t.SlotsPaid }, procs: true, chain: true},
	"slots-redeemed":   {tab: func(t *Tab) int64 { return t.SlotsRedeemed }, procs: true, chain: true},
	"cancels-on-chain": {tab: func(t *Tab) int64 { return t.CancelsOnChain }, procs: true, chain: true},
	"mails-paid":       {tab: func(t *Tab) int64 { return t.MailsPaid }, procs: true, chain: true},
	"guarded":          {tab: func(t *Tab) int64 { return bit(t.Guarded) }, procs: true, chain: true},
	"lock-ways":        {peer: func(s *Stats) int64 { return int64(s.LockWays) }, procs: true, chain: true},
	"slots-full":       {peer: func(s *Stats) int64 { return int64(s.SlotsFull) }, procs: true, chain: true},
	"locks":            {peer: func(s *Stats) int64 { return int64(s.Locks) }, procs: true, chain: true},

	"socket-balance":    {socket: func(s *rpc.SocketRow) int64 { return s.Balance }},
	"socket-sent":       {socket: func(s *rpc.SocketRow) int64 { return int64(s.Sent) }},
	"socket-received":   {socket: func(s *rpc.SocketRow) int64 { return int64(s.Received) }},
	"socket-in-flight":  {socket: func(s *rpc.SocketRow) int64 { return int64(s.InFlight) }},
	"socket-loss":       {socket: func(s *rpc.SocketRow) int64 { return int64(s.Loss) }},
	"socket-settled":    {socket: func(s *rpc.SocketRow) int64 { return bit(s.Settled) }},
	"socket-noted":      {socket: func(s *rpc.SocketRow) int64 { return bit(s.Note != "") }},
	"holds-held":        {peer: func(s *Stats) int64 { return int64(s.HoldRows["holder held"]) }, procs: true},
	"holds-complete":    {peer: func(s *Stats) int64 { return int64(s.HoldRows["payer complete"]) }, procs: true},
	"holds-failed":      {peer: func(s *Stats) int64 { return int64(s.HoldRows["payer failed"]) }, procs: true},
	"holds-received":    {peer: func(s *Stats) int64 { return int64(s.HoldRows["payee received"]) }, procs: true},
	"mails-bought":      {peer: func(s *Stats) int64 { return int64(s.MailRows["payer bought"]) }, procs: true, chain: true},
	"mails-redeemed":    {peer: func(s *Stats) int64 { return int64(s.MailRows["payer redeemed"]) }, procs: true, chain: true},
	"mails-expired":     {peer: func(s *Stats) int64 { return int64(s.MailRows["payer expired"]) }, procs: true, chain: true},
	"mails-sold":        {peer: func(s *Stats) int64 { return int64(s.MailRows["holder settled"]) }, procs: true, chain: true},
	"mails-taken":       {peer: func(s *Stats) int64 { return int64(s.MailRows["payee taken"]) }, procs: true, chain: true},
	"sockets":           {peer: func(s *Stats) int64 { return int64(s.Sockets) }, procs: true},
	"net":               {peer: func(s *Stats) int64 { return s.Net }, procs: true},
	"memory-growth":     {peer: func(s *Stats) int64 { return s.Growth }, procs: true},
	"arrived":           {tab: func(t *Tab) int64 { return t.Arrived }, procs: true},
	"payment-skew":      {tab: func(t *Tab) int64 { return t.PaySkew }, procs: true},
	"pending-payments":  {peer: func(s *Stats) int64 { return int64(s.PayPending) }, procs: true},
	"complete-payments": {peer: func(s *Stats) int64 { return int64(s.PayComplete) }, procs: true},
	"signatures":        {peer: func(s *Stats) int64 { return int64(s.Signatures) }, procs: true, chain: true},
	"failed-payments":   {peer: func(s *Stats) int64 { return int64(s.PayFailed) }, procs: true},
	"waiting-parts":     {peer: func(s *Stats) int64 { return int64(s.PartsWaiting) }, procs: true},
	"taken":             {peer: func(s *Stats) int64 { return s.Taken }, procs: true},
	"lost-parts":        {peer: func(s *Stats) int64 { return s.PartsLost }, procs: true},

	"got":              {peer: func(s *Stats) int64 { return int64(s.Got) }},
	"accounts":         {peer: func(s *Stats) int64 { return int64(s.Accounts) }},
	"total-exposure":   {peer: func(s *Stats) int64 { return int64(s.Exposure) }},
	"sessions":         {peer: func(s *Stats) int64 { return int64(s.Sessions) }, local: true},
	"cheques-sent":     {peer: func(s *Stats) int64 { return int64(s.Sent) }, local: true},
	"cheques-acked":    {peer: func(s *Stats) int64 { return int64(s.Acked) }, local: true},
	"cheques-received": {peer: func(s *Stats) int64 { return int64(s.Received) }, local: true},
	"cheques-refused":  {peer: func(s *Stats) int64 { return int64(s.Refused) }, local: true},
	"cheques-denied":   {peer: func(s *Stats) int64 { return int64(s.Denied) }, local: true},
	"service-refused":  {peer: func(s *Stats) int64 { return int64(s.ServiceRefused) }, local: true},
	"peers-blocked":    {peer: func(s *Stats) int64 { return int64(s.Blocked) }, local: true},
	"holds":            {peer: func(s *Stats) int64 { return int64(s.Holds) }, local: true},
	"strangers-credit": {peer: func(s *Stats) int64 { return int64(s.Strangers) }, local: true},
	"swap-streams":     {peer: func(s *Stats) int64 { return int64(s.SwapStreams) }, local: true},
}

// Figures returns the names that a check can compare.
func Figures() []string {
	var names []string
	for name := range figures {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func bit(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// driver carries out the statements of a scenario: on peers in this process, or
// on live ones. Its methods are called one at a time.
type driver interface {
	// do carries out a plain statement, within ctx.
	do(ctx context.Context, st *statement) error
	// tab and stats read figures.
	tab(ctx context.Context, at, with string) (Tab, error)
	stats(ctx context.Context, at string) (Stats, error)
	// socket reads one end of a socket: its client's or its server's.
	socket(ctx context.Context, name, end string) (rpc.SocketRow, error)
	// why says of what was begun how it stands, where that is not done: a check that
	// failed tells it. Empty where there is none.
	why(ctx context.Context) string
	// changed returns a channel that is closed when figures may have changed;
	// nil where nobody tells.
	changed() <-chan struct{}
	// arm makes a peer crash at a point from now on; recover starts it again
	// where the crash struck, and reports whether it did.
	arm(ctx context.Context, name string, at crashPoint) error
	recover(ctx context.Context, name string) (struck bool, err error)
	close() error
}
