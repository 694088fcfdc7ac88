package payhttp

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream"
)

const (
	// defaultWait is how long a request waits for its money.
	defaultWait = 20 * time.Second
	// defaultWaiting bounds the requests that wait for it at a time.
	defaultWaiting = 256
)

// MeterConfig is what metering needs.
type MeterConfig struct {
	// Sockets are those of the node that is paid. Required.
	Sockets Sockets
	// Price is what a request costs; 0 is free. An error is answered with 500. It is
	// asked before the request is paid or served, and may not read the body. Required.
	Price func(*http.Request) (tally.Amount, error)
	// Wait is how long a request waits for its money. Default: 20 s.
	Wait time.Duration
	// Waiting bounds the requests that wait at a time; a further one is answered with
	// 503. Default: 256.
	Waiting int
	// Logger default: none.
	Logger *slog.Logger
}

// Refusal is the body of a 402, in JSON.
type Refusal struct {
	Reason string `json:"reason"`
	// Price is what the request costs, Offered the caller's limit, in units.
	Price   tally.Amount `json:"price"`
	Offered tally.Amount `json:"offered"`
}

// Meter returns a handler that has each request paid before next serves it.
func Meter(cfg MeterConfig, next http.Handler) (http.Handler, error) {
	if cfg.Sockets == nil || cfg.Price == nil || next == nil {
		return nil, errors.New("payhttp: a meter needs Sockets, Price and a handler")
	}
	if cfg.Wait <= 0 {
		cfg.Wait = defaultWait
	}
	if cfg.Waiting <= 0 {
		cfg.Waiting = defaultWaiting
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &meter{cfg: cfg, next: next, waiting: make(chan struct{}, cfg.Waiting)}, nil
}

type meter struct {
	cfg     MeterConfig
	next    http.Handler
	waiting chan struct{}
}

func (m *meter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	price, err := m.cfg.Price(r)
	if err != nil {
		m.cfg.Logger.Error("price of a request", "path", r.URL.Path, "err", err)
		http.Error(w, "no price", http.StatusInternalServerError)
		return
	}
	header := r.Header.Values(HeaderPay)
	via, viaErr := parseVia(r.Header.Get(HeaderVia))
	// What is money does not get into logs and handlers behind.
	r.Header.Del(HeaderPay)
	r.Header.Del(HeaderVia)
	if price == 0 {
		m.next.ServeHTTP(w, r)
		return
	}
	if len(header) == 0 {
		refuse(w, Refusal{Reason: "this costs: send " + HeaderPay, Price: price})
		return
	}
	uri, err := paystream.ParseURI(header[0])
	if err != nil || viaErr != nil || len(header) > 1 {
		http.Error(w, "want one tally: URI in "+HeaderPay+", and peer ids in "+HeaderVia, http.StatusBadRequest)
		return
	}
	if uri.Amount < price {
		refuse(w, Refusal{Reason: "the limit is below the price", Price: price, Offered: uri.Amount})
		return
	}
	select {
	case m.waiting <- struct{}{}:
	default:
		w.Header().Set("Retry-After", "1")
		http.Error(w, "too many requests wait for their money", http.StatusServiceUnavailable)
		return
	}
	err = m.collect(r.Context(), uri, via, price)
	<-m.waiting
	if err != nil {
		m.cfg.Logger.Debug("request is not paid", "peer", uri.Peer, "price", price, "err", err)
		refuse(w, Refusal{Reason: reasonOf(err), Price: price, Offered: uri.Amount})
		return
	}
	m.next.ServeHTTP(w, r)
}

// collect takes the price from the caller. It ends with ctx when the caller hangs up.
func (m *meter) collect(ctx context.Context, uri paystream.URI, via []peer.ID, price tally.Amount) error {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Wait)
	defer cancel()
	cost, err := tally.Balance(0).Debit(price)
	if err != nil {
		return err
	}
	c, err := m.cfg.Sockets.Redeem(ctx, uri, via, paystream.Terms{
		Min: paystream.At(cost), Max: paystream.At(cost), AllOrNothing: true,
	})
	if err != nil {
		return err
	}
	defer c.Close()
	// What the header says is not sealed. A token that gives less is seen here; what
	// it has given by then is the price of the lie.
	if r := c.Report(); !r.PeerOffer.Open && tally.Balance(r.PeerOffer.N) < cost-r.Balance {
		return paystream.ErrIncompatible
	}
	if err := c.WaitSettled(ctx); err != nil {
		return err
	}
	if got := c.Report().Balance; got < cost { // settled below its minimum: never
		return paystream.ErrIncompatible
	}
	return nil
}

// reasonOf is what a caller may know of why it was not served.
func reasonOf(err error) string {
	switch {
	case errors.Is(err, paystream.ErrIncompatible):
		return "the caller does not give the price"
	case errors.Is(err, paystream.ErrSpent), errors.Is(err, paystream.ErrInUse), errors.Is(err, paystream.ErrTokenExpired):
		return "the offer is used up or expired: make a new one"
	case errors.Is(err, paystream.ErrNoRate), errors.Is(err, paystream.ErrStalled), errors.Is(err, context.DeadlineExceeded):
		return "no money came in time: is there a way from the caller to here?"
	default:
		return "the price was not paid"
	}
}

func refuse(w http.ResponseWriter, r Refusal) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusPaymentRequired)
	_ = json.NewEncoder(w).Encode(r) // whoever does not read it has hung up
}

func parseVia(text string) (via []peer.ID, err error) {
	if text == "" {
		return nil, nil
	}
	list := strings.Split(text, ",")
	if len(list) > paystream.MaxVia {
		return nil, paystream.ErrURI
	}
	for _, s := range list {
		id, err := peer.Decode(strings.TrimSpace(s))
		if err != nil {
			return nil, err
		}
		via = append(via, id)
	}
	return via, nil
}
