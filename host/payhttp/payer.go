package payhttp

import (
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream"
)

// offerLife is how long the offer of a request is good.
const offerLife = 2 * time.Minute

// ErrPlain: the offer would go over the network in the clear.
var ErrPlain = errors.New("payhttp: plain HTTP shows the offer, which is money, to everybody on the way: use https, or an address of this machine")

// Payer is an http.RoundTripper that offers to pay for requests. A 402 comes back to
// the caller as a response: its body is a Refusal.
type Payer struct {
	// Sockets are those of the node that pays. Required.
	Sockets Sockets
	// Limit is the most that a request may cost; 0 offers nothing. A redirect is a
	// request of its own: look at its host. Required.
	Limit func(*http.Request) tally.Amount
	// Via are the peers on the way from the server to our node, where it has none of
	// its own.
	Via []peer.ID
	// Base default: http.DefaultTransport.
	Base http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (p *Payer) RoundTrip(r *http.Request) (*http.Response, error) {
	base := p.Base
	if base == nil {
		base = http.DefaultTransport
	}
	limit := p.Limit(r)
	if limit == 0 {
		return base.RoundTrip(r)
	}
	paid, err := p.offer(r, limit)
	if err != nil {
		if r.Body != nil {
			_ = r.Body.Close() // as a RoundTripper has to, also where it sends nothing
		}
		return nil, err
	}
	return base.RoundTrip(paid)
}

// offer returns the request with an offer of its own.
func (p *Payer) offer(r *http.Request, limit tally.Amount) (*http.Request, error) {
	if r.URL.Scheme != "https" && !loopback(r.URL.Hostname()) {
		return nil, ErrPlain
	}
	low, err := tally.Balance(0).Credit(limit)
	if err != nil {
		return nil, err
	}
	uri, err := p.Sockets.Issue(paystream.Grant{
		Use: paystream.UseVoucher, Min: paystream.At(low), Max: paystream.At(0), SingleUse: true,
		Expires: time.Now().Add(offerLife).Unix(),
	})
	if err != nil {
		return nil, err
	}
	uri.Amount = limit
	r = r.Clone(r.Context()) // the caller's request stays as it is
	r.Header.Set(HeaderPay, uri.Reveal())
	r.Header.Del(HeaderVia)
	if len(p.Via) > 0 {
		via := make([]string, len(p.Via))
		for i, id := range p.Via {
			via[i] = id.String()
		}
		r.Header.Set(HeaderVia, strings.Join(via, ","))
	}
	return r, nil
}

func loopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}
