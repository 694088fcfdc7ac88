package rpc

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream"
)

// maxURIExpiry bounds how long a URI may live: what it has moved is remembered
// until then.
const maxURIExpiry = 10 * 365 * 24 * time.Hour

// Sockets is the payment socket part of a peer. All methods may be called at the
// same time, and return when ctx ends.
type Sockets interface {
	// Open opens a socket to a peer, or to the maker of a URI.
	Open(ctx context.Context, to peer.ID, uri *paystream.URI, via []peer.ID, terms paystream.Terms) (SocketRow, error)
	// Redeem opens a socket for what a URI is for, and waits until no money is
	// going to move or ctx ends. A nil limit means what is usual.
	Redeem(ctx context.Context, uri paystream.URI, via []peer.ID, low, high *paystream.Limit) (SocketRow, error)
	// List returns the sockets in memory, Get one that may have left it.
	List(ctx context.Context) ([]SocketRow, error)
	Get(ctx context.Context, id paystream.SocketID) (SocketRow, error)
	SetLimits(ctx context.Context, id paystream.SocketID, low, high paystream.Limit) (SocketRow, error)
	Pay(ctx context.Context, id paystream.SocketID, units uint64) (SocketRow, error)
	Charge(ctx context.Context, id paystream.SocketID, units uint64) (SocketRow, error)
	Close(ctx context.Context, id paystream.SocketID) (SocketRow, error)
	// Send writes to a stream, a new one for 0, and waits until the peer has it all.
	// With end the stream is closed then.
	Send(ctx context.Context, id paystream.SocketID, stream uint64, data []byte, end bool) (StreamRow, error)
	// Receive reads what a stream has, of the next one that the peer opened for 0,
	// and waits some seconds where that is nothing.
	Receive(ctx context.Context, id paystream.SocketID, stream uint64) (StreamRow, error)
	// Create makes a URI; with limits they are in place of the usual ones.
	Create(ctx context.Context, use paystream.Use, units uint64, low, high *paystream.Limit, expires time.Time, period time.Duration) (URIRow, error)
}

// Limit is one end of what a socket's balance may be: an integer in JSON, or one
// of the texts inf and -inf.
type Limit string

// MarshalJSON implements json.Marshaler.
func (l Limit) MarshalJSON() ([]byte, error) {
	if _, err := strconv.ParseInt(string(l), 10, 64); err == nil {
		return []byte(l), nil
	}
	return json.Marshal(string(l))
}

// UnmarshalJSON implements json.Unmarshaler.
func (l *Limit) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		return json.Unmarshal(b, (*string)(l))
	}
	*l = Limit(b)
	return nil
}

// Parse reads a limit.
func (l Limit) Parse() (paystream.Limit, error) {
	switch l {
	case "inf", "+inf":
		return paystream.NoMax, nil
	case "-inf":
		return paystream.NoMin, nil
	}
	n, err := strconv.ParseInt(string(l), 10, 64)
	if err != nil {
		return paystream.Limit{}, NewError(CodeBadArgument, "%q is not a limit", clip(string(l))).
			WithRemedy("use a whole number of units, inf or -inf")
	}
	return paystream.At(tally.Balance(n)), nil
}

// LimitOf shows a limit.
func LimitOf(l paystream.Limit) Limit { return Limit(strings.TrimPrefix(l.String(), "+")) }

// SocketOptions say how a socket is opened.
type SocketOptions struct {
	Min Limit `json:"min"`
	Max Limit `json:"max"`
	// Via are the peers on the way, first hop first; needed where the other side
	// is no neighbour and no route leads to it.
	Via []string `json:"via"`
	// Refunds lets money flow back. Without, what was paid stays paid.
	Refunds bool `json:"refunds"`
	// AllOrNothing fails, and moves nothing, where the limits of the two sides do
	// not meet.
	AllOrNothing bool `json:"all_or_nothing"`
}

// RedeemOptions say how a URI is redeemed.
type RedeemOptions struct {
	// Min and Max are in place of what is usual for the URI; empty is usual.
	Min Limit    `json:"min"`
	Max Limit    `json:"max"`
	Via []string `json:"via"`
}

// URIOptions say what a URI gives.
type URIOptions struct {
	Amount uint64 `json:"amount"`
	// Min and Max are the limits of our balance with all bearers, in place of what
	// is usual for the kind; empty is usual.
	Min Limit `json:"min"`
	Max Limit `json:"max"`
	// ExpirySeconds from now; 0 is a day, and never for deposit.
	ExpirySeconds uint64 `json:"expiry_seconds"`
	// PeriodSeconds makes a pull a mandate: its amount is anew after each; 0 is
	// once.
	PeriodSeconds uint64 `json:"period_seconds"`
}

// URIRow is a URI that was made. Who reads it can spend it.
type URIRow struct {
	URI    string `json:"uri"`
	Kind   string `json:"kind"`
	Amount uint64 `json:"amount"`
	// Expires is null for one that never does.
	Expires *time.Time `json:"expires"`
}

// SocketRow is one socket at our end. Amounts are units; its balance is received
// less sent, and is not the balance of a tab.
type SocketRow struct {
	ID   string `json:"id"`
	Peer string `json:"peer"`
	// Role is client where we opened it, else server.
	Role     string `json:"role"`
	Min      Limit  `json:"min"`
	Max      Limit  `json:"max"`
	Balance  int64  `json:"balance"`
	Sent     uint64 `json:"sent"`
	Received uint64 `json:"received"`
	// Settled: nothing is in flight, and no money is going to move.
	Settled bool `json:"settled"`
	// Loss is what the hops kept of what we sent and of what came back of it.
	Loss uint64 `json:"loss"`
	// Note says why nothing moves; empty where all is well.
	Note string `json:"note"`
	// Expected is what the peer still asks for and Wanted what it still takes,
	// InFlight what is on its way from us.
	Expected uint64 `json:"expected"`
	Wanted   Limit  `json:"wanted"`
	InFlight uint64 `json:"in_flight"`
	// Rate is how many units arrive for one that we send, 0 while that is not
	// known.
	Rate float64 `json:"rate"`
	// Verdict is compatible, payer short, payee full or unknown.
	Verdict string `json:"verdict"`
	// Asset is what we count in, with how many digits of it a unit is behind the
	// point; PeerAsset what the peer says that it does, empty where it has not.
	Asset     string `json:"asset"`
	Scale     int    `json:"scale"`
	PeerAsset string `json:"peer_asset"`
	PeerScale int    `json:"peer_scale"`
	// Streams are those that are open, DataSent the bytes of an application that
	// the peer has, and DataReceived those that it sent.
	Streams      int    `json:"streams"`
	DataSent     uint64 `json:"data_sent"`
	DataReceived uint64 `json:"data_received"`
}

// StreamRow is what one call moved of a stream of an application's bytes.
type StreamRow struct {
	// Stream is its number on the socket; 0: the peer has opened none yet.
	Stream uint64 `json:"stream"`
	// Data is what was received, in base64.
	Data []byte `json:"data"`
	// End: nothing follows.
	End bool `json:"end"`
}

// MaxStreamData bounds the bytes that one call sends or receives.
const MaxStreamData = 256 << 10

func (a *api) sockets() (Sockets, error) { return a.node.Sockets() }

// onSockets is call for a method that works on the sockets.
func onSockets[T any](ctx context.Context, a *api, method string, fn func(context.Context, Sockets) (T, error)) (T, error) {
	return call(ctx, a, method, func(ctx context.Context) (T, error) {
		s, err := a.sockets()
		if err != nil {
			var zero T
			return zero, err
		}
		return fn(ctx, s)
	})
}

// onSocket is onSockets for one socket.
func onSocket[T any](ctx context.Context, a *api, method, id string, fn func(context.Context, Sockets, paystream.SocketID) (T, error)) (T, error) {
	return onSockets(ctx, a, method, func(ctx context.Context, s Sockets) (T, error) {
		raw, err := hex.DecodeString(id)
		if err != nil || len(raw) != len(paystream.SocketID{}) {
			var zero T
			return zero, NewError(CodeBadArgument, "%q is not the id of a socket", clip(id)).WithRemedy("use an id that `tally socket ls` prints")
		}
		return fn(ctx, s, paystream.SocketID(raw))
	})
}

func parseVia(list []string) (via []peer.ID, err error) {
	if len(list) > paystream.MaxVia {
		return nil, NewError(CodeBadArgument, "%d peers on the way, over %d", len(list), paystream.MaxVia)
	}
	for _, s := range list {
		id, err := ParsePeer(s)
		if err != nil {
			return nil, err
		}
		via = append(via, id)
	}
	return via, nil
}

func parseLimits(low, high Limit) (l, h paystream.Limit, err error) {
	if l, err = low.Parse(); err == nil {
		h, err = high.Parse()
	}
	if err != nil {
		return l, h, err
	}
	if err := (paystream.Terms{Min: l, Max: h}).Validate(); err != nil {
		return l, h, NewError(CodeSocketLimits, "%w", err)
	}
	return l, h, nil
}

// optional is Parse but for the empty limit, which is nil.
func (l Limit) optional() (*paystream.Limit, error) {
	if l == "" {
		return nil, nil
	}
	p, err := l.Parse()
	return &p, err
}

// ParseURI reads a tally: URI. Its error does not quote it.
func ParseURI(s string) (paystream.URI, error) {
	u, err := paystream.ParseURI(s)
	if err != nil {
		return u, NewError(CodeBadURI, "%w", err)
	}
	return u, nil
}

func (a *api) SocketOpen(ctx context.Context, target string, o SocketOptions) (SocketRow, error) {
	return onSockets(ctx, a, "SocketOpen", func(ctx context.Context, s Sockets) (SocketRow, error) {
		t := paystream.Terms{Refunds: o.Refunds, AllOrNothing: o.AllOrNothing}
		var err error
		if t.Min, t.Max, err = parseLimits(o.Min, o.Max); err != nil {
			return SocketRow{}, err
		}
		via, err := parseVia(o.Via)
		if err != nil {
			return SocketRow{}, err
		}
		if strings.HasPrefix(target, "tally:") {
			u, err := ParseURI(target)
			if err != nil {
				return SocketRow{}, err
			}
			return s.Open(ctx, u.Peer, &u, via, t)
		}
		to, err := ParsePeer(target)
		if err != nil {
			return SocketRow{}, err
		}
		return s.Open(ctx, to, nil, via, t)
	})
}

func (a *api) SocketList(ctx context.Context) ([]SocketRow, error) {
	return onSockets(ctx, a, "SocketList", func(ctx context.Context, s Sockets) ([]SocketRow, error) {
		rows, err := s.List(ctx)
		return list(rows), err
	})
}

func (a *api) SocketStatus(ctx context.Context, id string) (SocketRow, error) {
	return onSocket(ctx, a, "SocketStatus", id, func(ctx context.Context, s Sockets, id paystream.SocketID) (SocketRow, error) {
		return s.Get(ctx, id)
	})
}

func (a *api) SocketLimits(ctx context.Context, id string, low, high Limit) (SocketRow, error) {
	return onSocket(ctx, a, "SocketLimits", id, func(ctx context.Context, s Sockets, id paystream.SocketID) (SocketRow, error) {
		l, h, err := parseLimits(low, high)
		if err != nil {
			return SocketRow{}, err
		}
		return s.SetLimits(ctx, id, l, h)
	})
}

func (a *api) SocketPay(ctx context.Context, id string, units uint64) (SocketRow, error) {
	return onSocket(ctx, a, "SocketPay", id, func(ctx context.Context, s Sockets, id paystream.SocketID) (SocketRow, error) {
		return s.Pay(ctx, id, units)
	})
}

func (a *api) SocketCharge(ctx context.Context, id string, units uint64) (SocketRow, error) {
	return onSocket(ctx, a, "SocketCharge", id, func(ctx context.Context, s Sockets, id paystream.SocketID) (SocketRow, error) {
		return s.Charge(ctx, id, units)
	})
}

func (a *api) SocketClose(ctx context.Context, id string) (SocketRow, error) {
	return onSocket(ctx, a, "SocketClose", id, func(ctx context.Context, s Sockets, id paystream.SocketID) (SocketRow, error) {
		return s.Close(ctx, id)
	})
}

func (a *api) SocketSend(ctx context.Context, id string, stream uint64, data []byte, end bool) (StreamRow, error) {
	return onSocket(ctx, a, "SocketSend", id, func(ctx context.Context, s Sockets, id paystream.SocketID) (StreamRow, error) {
		if len(data) > MaxStreamData {
			return StreamRow{}, NewError(CodeBadArgument, "%d bytes, over %d", len(data), MaxStreamData).WithRemedy("send them in several calls")
		}
		return s.Send(ctx, id, stream, data, end)
	})
}

func (a *api) SocketReceive(ctx context.Context, id string, stream uint64) (StreamRow, error) {
	return onSocket(ctx, a, "SocketReceive", id, func(ctx context.Context, s Sockets, id paystream.SocketID) (StreamRow, error) {
		return s.Receive(ctx, id, stream)
	})
}

// uriKinds are the words for what a URI is for. Pull with a period is a mandate.
var uriKinds = map[string]paystream.Use{
	"gift": paystream.UseGift, "invoice": paystream.UseInvoice, "pull": paystream.UseVoucher, "deposit": paystream.UseAccount,
	"push": paystream.UsePush,
}

// uriWish is what URIOptions ask for.
type uriWish struct {
	use       paystream.Use
	low, high *paystream.Limit
	expires   time.Time
}

func wantedURI(kind string, o URIOptions) (w uriWish, err error) {
	var ok bool
	w.use, ok = uriKinds[kind]
	switch {
	case !ok:
		return w, NewError(CodeBadArgument, "%q is no kind of URI", clip(kind)).WithRemedy("use gift, invoice, pull, push or deposit")
	case o.Amount == 0:
		return w, NewError(CodeBadArgument, "an amount of 0 moves nothing").WithRemedy("use at least 1")
	case o.ExpirySeconds > uint64(maxURIExpiry/time.Second) || o.PeriodSeconds > uint64(maxURIExpiry/time.Second):
		return w, NewError(CodeBadArgument, "expiry or period of more than ten years")
	case o.PeriodSeconds != 0 && w.use != paystream.UseVoucher:
		return w, NewError(CodeBadArgument, "only a pull has a period")
	}
	if w.low, err = o.Min.optional(); err != nil {
		return w, err
	}
	if w.high, err = o.Max.optional(); err != nil {
		return w, err
	}
	expiry := time.Duration(o.ExpirySeconds) * time.Second
	if expiry == 0 && w.use != paystream.UseAccount {
		expiry = 24 * time.Hour
	}
	if expiry != 0 {
		w.expires = time.Now().Add(expiry).Truncate(time.Second)
	}
	if o.PeriodSeconds != 0 {
		w.use = paystream.UseMandate
	}
	return w, nil
}

func (a *api) URICreate(ctx context.Context, kind string, o URIOptions) (URIRow, error) {
	return onSockets(ctx, a, "URICreate", func(ctx context.Context, s Sockets) (URIRow, error) {
		w, err := wantedURI(kind, o)
		if err != nil {
			return URIRow{}, err
		}
		return s.Create(ctx, w.use, o.Amount, w.low, w.high, w.expires, time.Duration(o.PeriodSeconds)*time.Second)
	})
}

func (a *api) URIRedeem(ctx context.Context, uri string, o RedeemOptions) (SocketRow, error) {
	return onSockets(ctx, a, "URIRedeem", func(ctx context.Context, s Sockets) (SocketRow, error) {
		u, err := ParseURI(uri)
		if err != nil {
			return SocketRow{}, err
		}
		via, err := parseVia(o.Via)
		if err != nil {
			return SocketRow{}, err
		}
		low, err := o.Min.optional()
		if err != nil {
			return SocketRow{}, err
		}
		high, err := o.Max.optional()
		if err != nil {
			return SocketRow{}, err
		}
		return s.Redeem(ctx, u, via, low, high)
	})
}
