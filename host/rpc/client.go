package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/filecoin-project/go-jsonrpc"
)

// ErrUnreachable is wrapped by every call that found no server at the address:
// the peer does not run.
var ErrUnreachable = errors.New("rpc: no peer answers")

// StatusError is a refusal that came before JSON-RPC, such as a wrong token.
type StatusError struct {
	Status int
	Cause  string
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("the peer answered %d: %s", e.Status, e.Cause)
}

// Client calls a running peer. Its fields are the methods of the server, see
// Methods; all may be called at the same time. A failure is an *Error, a
// *StatusError, or wraps ErrUnreachable; Explain sorts them.
type Client struct {
	Status            func(ctx context.Context) (Status, error)
	ID                func(ctx context.Context) (Identity, error)
	Version           func(ctx context.Context) (Version, error)
	Peers             func(ctx context.Context) ([]PeerRow, error)
	PeerConnect       func(ctx context.Context, addr string) (PeerRow, error)
	PeerBlock         func(ctx context.Context, peerID string) (Done, error)
	PeerUnblock       func(ctx context.Context, peerID string) (Done, error)
	PeerResolve       func(ctx context.Context, peerID string) (BalanceRow, error)
	Balances          func(ctx context.Context, peerID string) ([]BalanceRow, error)
	Cheques           func(ctx context.Context, peerID string) ([]ChequeRow, error)
	Locks             func(ctx context.Context, peerID string) ([]LockRow, error)
	LockState         func(ctx context.Context) (LockState, error)
	Cashout           func(ctx context.Context, peerID string, least uint64) ([]CashoutRow, error)
	Settle            func(ctx context.Context, peerID string) (SettleResult, error)
	Prepay            func(ctx context.Context, peerID string, units uint64) (SettleResult, error)
	StoreImportBegin  func(ctx context.Context) (ImportSession, error)
	StoreImportChunk  func(ctx context.Context, session string, number uint64, messages []Message) (Done, error)
	StoreImportCommit func(ctx context.Context, session string, total int) (ImportResult, error)
	StoreImportAbort  func(ctx context.Context, session string) (Done, error)
	StoreQuery        func(ctx context.Context, peerID string, query StoreQuery) (StorePage, error)
	HoldPay           func(ctx context.Context, options HoldOptions) (HoldRow, error)
	HoldQuote         func(ctx context.Context, options HoldOptions) (HoldQuote, error)
	HoldWait          func(ctx context.Context, id string, timeoutMS int) (HoldRow, error)
	HoldList          func(ctx context.Context, role string) ([]HoldRow, error)
	HoldCancel        func(ctx context.Context, id string) (Done, error)
	HoldPromise       func(ctx context.Context, payer string, amount, expirySeconds uint64) (PromiseRow, error)
	HoldCollect       func(ctx context.Context, peerID string) (Done, error)
	HoldRoom          func(ctx context.Context, options RoomOptions) (RoomRow, error)
	HoldBuy           func(ctx context.Context, options BuyOptions) (MailRow, error)
	HoldTake          func(ctx context.Context, mail string) (MailRow, error)
	HoldMails         func(ctx context.Context, role string) ([]MailRow, error)

	BridgeClientAdd    func(ctx context.Context, name string, limits *BridgeLimits) (BridgeTokenRow, error)
	BridgeClientList   func(ctx context.Context) ([]BridgeClientRow, error)
	BridgeClientRemove func(ctx context.Context, name string) (Done, error)
	BridgeClientSettle func(ctx context.Context, name string, paidIn, paidOut uint64) (BridgeClientRow, error)
	BridgeClientLimits func(ctx context.Context, name string, limits BridgeLimits) (BridgeClientRow, error)

	PointerAdd    func(ctx context.Context, path, kind string, units uint64) (PointerRow, error)
	PointerList   func(ctx context.Context) ([]PointerRow, error)
	PointerRemove func(ctx context.Context, path string) (Done, error)
	PointerFollow func(ctx context.Context, pointer string, options FollowOptions) (MovedRow, error)
	ILPCreate     func(ctx context.Context, kind string, options URIOptions) (ILPRow, error)

	SocketOpen    func(ctx context.Context, target string, options SocketOptions) (SocketRow, error)
	SocketList    func(ctx context.Context) ([]SocketRow, error)
	SocketStatus  func(ctx context.Context, id string) (SocketRow, error)
	SocketLimits  func(ctx context.Context, id string, low, high Limit) (SocketRow, error)
	SocketPay     func(ctx context.Context, id string, units uint64) (SocketRow, error)
	SocketCharge  func(ctx context.Context, id string, units uint64) (SocketRow, error)
	SocketClose   func(ctx context.Context, id string) (SocketRow, error)
	SocketSend    func(ctx context.Context, id string, stream uint64, data []byte, end bool) (StreamRow, error)
	SocketReceive func(ctx context.Context, id string, stream uint64) (StreamRow, error)
	URICreate     func(ctx context.Context, kind string, options URIOptions) (URIRow, error)
	URIRedeem     func(ctx context.Context, uri string, options RedeemOptions) (SocketRow, error)
	EventsSince   func(ctx context.Context, cursor uint64, timeoutMS int) (EventBatch, error)
	ConfigShow    func(ctx context.Context) (map[string]any, error)
	Shutdown      func(ctx context.Context) (Done, error)

	Invoice             func(ctx context.Context, options InvoiceOptions) (InvoiceRow, error)
	Pay                 func(ctx context.Context, invoice string, options PayOptions) (PaymentRow, error)
	SendPartialPay      func(ctx context.Context, invoice string, options SendPartOptions) (PartReply, error)
	WaitPartialPay      func(ctx context.Context, id uint64, timeoutMS int) (PartRow, error)
	WaitPayment         func(ctx context.Context, hash string, timeoutMS int) (PaymentRow, error)
	ListPayments        func(ctx context.Context) ([]PaymentRow, error)
	ListPartialPayments func(ctx context.Context, which string) ([]PartRow, error)
	ListInvoices        func(ctx context.Context, hash string) ([]InvoiceRow, error)
	ListPartialInvoices func(ctx context.Context, hash string) ([]PartialInvoiceRow, error)
	SettleInvoice       func(ctx context.Context, hash, preimage string) (InvoiceRow, error)
	CancelInvoice       func(ctx context.Context, hash string) (InvoiceRow, error)

	SignatureKey  func(ctx context.Context) (SignatureKey, error)
	SignatureSell func(ctx context.Context, o SignatureOptions) (SignatureRow, error)
	SignatureBuy  func(ctx context.Context, offer string, o SignatureBuyOptions) (SignatureRow, error)
	SignatureWait func(ctx context.Context, id string, timeoutMS int) (SignatureRow, error)
	SignatureList func(ctx context.Context, role string) ([]SignatureRow, error)
	SignatureShow func(ctx context.Context, id string) (SignatureRow, error)

	PaychCreate                func(ctx context.Context, from, to, amount, tag string) (MessageRow, error)
	PaychAddFunds              func(ctx context.Context, channel, amount string) (MessageRow, error)
	PaychReserveFunds          func(ctx context.Context, channel, amount string) (Reservation, error)
	PaychReleaseFunds          func(ctx context.Context, channel, amount string) (ChannelRow, error)
	PaychStatus                func(ctx context.Context, channel string) (ChannelRow, error)
	PaychInfo                  func(ctx context.Context) ([]ChannelRow, error)
	PaychLookup                func(ctx context.Context, from, to string) (ChannelRow, error)
	PaychList                  func(ctx context.Context) ([]string, error)
	PaychSettle                func(ctx context.Context, channel string) (MessageRow, error)
	PaychCollect               func(ctx context.Context, channel string) (MessageRow, error)
	PaychAllocateLane          func(ctx context.Context, channel string) (Lane, error)
	PaychVoucherCheckValid     func(ctx context.Context, channel, voucher string) (VoucherInfo, error)
	PaychVoucherCheckSpendable func(ctx context.Context, channel, voucher, secret string) (Spendable, error)
	PaychVoucherCreate         func(ctx context.Context, channel, amount string, lane uint64) (VoucherResult, error)
	PaychVoucherCreateSpec     func(ctx context.Context, channel string, spec VoucherSpec) (VoucherResult, error)
	PaychVoucherAdd            func(ctx context.Context, channel, voucher, secret, minDelta string) (VoucherAdded, error)
	PaychVoucherSecret         func(ctx context.Context, channel, secret string) (VoucherAdded, error)
	PaychVoucherList           func(ctx context.Context, channel string) ([]string, error)
	PaychVoucherRecords        func(ctx context.Context, channel string) ([]VoucherRow, error)
	PaychVoucherSubmit         func(ctx context.Context, channel, voucher, secret string) (MessageRow, error)
	PaychWaitReady             func(ctx context.Context, cid string, timeoutMS int) (MessageWait, error)
	PaychStatusByMsg           func(ctx context.Context, cid string) (MessageRow, error)
	PaychPending               func(ctx context.Context) ([]MessageRow, error)
	WalletNew                  func(ctx context.Context) (WalletRow, error)
	WalletList                 func(ctx context.Context) ([]WalletRow, error)
	WalletBalance              func(ctx context.Context, address string) (WalletRow, error)
}

// NewClient returns a client of the server at addr (the content of <repo>/api)
// and what ends it. It does no IO.
func NewClient(addr string, token Secret) (*Client, func(), error) {
	quietLibrary()
	network, address, err := parseAPI(addr)
	if err != nil {
		return nil, nil, err
	}
	transport := &http.Transport{
		Proxy: nil, // a token never goes through a proxy
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, address)
			if err != nil && ctx.Err() == nil {
				return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
			}
			return conn, err
		},
	}
	host := "localhost"
	if network == "tcp" {
		host = address
	}
	c := &Client{}
	closeCalls, err := jsonrpc.NewMergeClient(context.Background(), "http://"+host+Path, Namespace, []any{c},
		http.Header{"Authorization": {"Bearer " + token.Reveal()}},
		jsonrpc.WithHTTPClient(&http.Client{Transport: statusTransport{transport}}),
		jsonrpc.WithErrors(wireErrors()))
	if err != nil {
		return nil, nil, err
	}
	return c, func() { closeCalls(); transport.CloseIdleConnections() }, nil
}

// statusTransport makes a refusal an error that keeps its cause.
type statusTransport struct{ next http.RoundTripper }

func (t statusTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.next.RoundTrip(r)
	if err != nil || strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		return resp, err
	}
	defer func() { _ = resp.Body.Close() }()
	cause, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
	return nil, &StatusError{resp.StatusCode, strings.TrimSpace(string(cause))}
}

// Explain returns the failure of a call as one cause and one remedy.
func Explain(err error) *Error {
	var (
		coded   *Error
		status  *StatusError
		library *jsonrpc.JSONRPCError
	)
	switch {
	case errors.As(err, &coded):
		return coded
	case errors.As(err, &status):
		e := NewError(CodeFailed, "%w", status)
		switch status.Status {
		case http.StatusUnauthorized:
			return e.WithRemedy("the token file is of another peer: restart the peer, which writes it anew")
		case http.StatusServiceUnavailable:
			e.Code = CodeBusy
			return e.WithRemedy("%s", CodeBusy.Remedy())
		}
		return e
	case errors.As(err, &library):
		return NewError(CodeFailed, "%w", library).WithRemedy("use the same version of tally on both sides: tally version")
	case errors.Is(err, context.DeadlineExceeded):
		return NewError(CodeTimeout, "%w", err)
	default:
		return NewError(CodeFailed, "%w", err)
	}
}

// waitStep is how long one call waits for a receipt before progress is told.
const waitStep = 2 * time.Second

// WaitReady waits for the receipt of a message for as long as ctx lasts. Progress
// may be nil; it is told how the message stands, again and again.
func (c *Client) WaitReady(ctx context.Context, cid string, progress func(MessageRow)) (MessageRow, error) {
	for {
		w, err := c.PaychWaitReady(ctx, cid, int(waitStep.Milliseconds()))
		if err != nil || w.Done {
			return w.Message, err
		}
		if progress != nil {
			progress(w.Message)
		}
	}
}

// importChunkBytes is how much one chunk of an import holds, in bytes of the
// message. JSON makes a payload a third larger and a topic of control
// characters, at worst, six times: with the keys still below maxBody.
const importChunkBytes = 512 << 10

// importChunkMessages bounds a chunk of tiny messages, whose keys outweigh
// them.
const importChunkMessages = 8192

// Import sends messages to the peer's own store, all or none. Progress may be
// nil; it is called with the number sent so far.
func (c *Client) Import(ctx context.Context, messages []Message, progress func(sent int)) (ImportResult, error) {
	session, err := c.StoreImportBegin(ctx)
	if err != nil {
		return ImportResult{}, err
	}
	result, err := c.importInto(ctx, session.Session, messages, progress)
	if err != nil {
		// The caller's ctx may be over; the session ends by itself if this
		// does not arrive.
		abort, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_, _ = c.StoreImportAbort(abort, session.Session)
	}
	return result, err
}

func (c *Client) importInto(ctx context.Context, session string, messages []Message, progress func(int)) (ImportResult, error) {
	var number uint64
	for sent := 0; sent < len(messages); number++ {
		end, size := sent, 0
		for end < len(messages) && end-sent < importChunkMessages && size < importChunkBytes {
			size += len(messages[end].Payload) + len(messages[end].ContentTopic) + len(messages[end].PubsubTopic)
			end++
		}
		if _, err := c.StoreImportChunk(ctx, session, number, messages[sent:end]); err != nil {
			return ImportResult{}, err
		}
		sent = end
		if progress != nil {
			progress(sent)
		}
	}
	return c.StoreImportCommit(ctx, session, len(messages))
}

// Query yields the pages of a query one by one. An error ends it; the pages
// before it were paid for and are good.
func (c *Client) Query(ctx context.Context, peerID string, query StoreQuery) iter.Seq2[StorePage, error] {
	return func(yield func(StorePage, error) bool) {
		for {
			page, err := c.StoreQuery(ctx, peerID, query)
			if err == nil && page.Cursor != "" && page.Cursor == query.Cursor {
				err = NewError(CodeRemoteProtocol, "the peer gave the same cursor twice")
			}
			if !yield(page, err) || err != nil || page.Cursor == "" {
				return
			}
			query.Cursor = page.Cursor
		}
	}
}
