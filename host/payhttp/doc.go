// Package payhttp lets HTTP requests be paid for by payment sockets, one request each
// and without a second round trip: the caller says with its request whom to ask for
// the money, and how much it gives at most.
//
//	caller (Payer)                              server (Meter)
//	GET /page
//	Tally-Pay: tally:<caller>/<token>?amount=limit#<secret> ─▶ price ≤ limit?
//	◀──────────────────────── 402 {"reason", "price", "offered"}   no, or not given
//	◀═ socket to the caller, min = max = price ═▶  over the peers between the two
//	◀──────────────────────────────────────── 200, once it is paid
//
// The token is of one request: it gives the limit at most, to one socket, and expires.
// So a server that takes the money and does not serve, or whoever else reads the
// header, costs the caller that limit and no more; a caller that hangs up has paid
// what it got in time, and a server that is not paid has served nothing.
//
// The header is money until the request is answered. Payer sends it over TLS, and in
// the clear to this machine alone.
package payhttp

import (
	"context"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/paystream"
)

// Header names. Via has the peer ids on the way from the server to the caller, joined
// by commas, where the server has no way of its own.
const (
	HeaderPay = "Tally-Pay"
	HeaderVia = "Tally-Via"
)

// Sockets are the payment sockets of a node; host.Sockets has both methods.
type Sockets interface {
	// Issue makes a URI that gives its bearer a grant.
	Issue(paystream.Grant) (paystream.URI, error)
	// Redeem opens a socket to the maker of a URI.
	Redeem(context.Context, paystream.URI, []peer.ID, paystream.Terms) (*paystream.Conn, error)
}
