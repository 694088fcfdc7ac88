// Package paystream is end-to-end payment sockets: two endpoints with one
// pre-shared key, on which either may pay, each within limits that it alone sets.
// It follows "Duplex PSK" (interledger/rfcs issue 388), with totals in place of
// differences, sessions, and crypto of its own. docs/protocol/paystream.md has the
// bytes.
//
// An endpoint has a balance, received − sent, that begins at 0, and a minimum and
// a maximum for it:
//
//	      min                0                   max
//	───────┼─────────────────┼────────────────────┼─────────▶ balance
//	 asks  │   gives when asked, takes what comes   │  pushes
//
// A push is min = max = −N; an invoice min = max = N; a voucher gives −N to 0.
//
//	Socket   what an end may do with its money: pure (socket.go, verdict_pure.go)
//	Control  how much leaves when: rate, windows, retries; pure (control.go)
//	Streams  an application's bytes beside the money; pure (streams_pure.go)
//	Packet   what the two ends tell each other (frame.go)
//	Session  sealing and opening it (seal_pure.go)
//	Token    how a server remembers nothing (token_pure.go), URI (uri_pure.go)
//	Budget   what all sockets of one token have moved (budget_pure.go)
//	Receipt  what a payee signs for third parties (receipt.go)
//	Endpoint all sockets of a node, disk and time around them (endpoint.go, load.go)
//	Conn     one live socket: conn.go, send.go, receive.go, answer.go, stream.go
//	Carrier  what takes packets to other endpoints (carrier.go)
//
// A packet as hops see it; what is sealed is a Packet:
//
//	 0        1       2     3      4         20       36         52        60
//	┌─────────┬───────┬─────┬──────┬─────────┬────────┬──────────┬─────────┬────────────────┐
//	│ version │ suite │ kdf │ kind │ socket  │ sender │ receiver │ counter │ sealed, tag 16 │
//	└─────────┴───────┴─────┴──────┴─────────┴────────┴──────────┴─────────┴────────────────┘
//
// Sessions: each end draws an id each time it starts. A pair of ids is confirmed
// once the other end has echoed ours, and only then money and state count:
//
//	client                                server
//	prepare{Open} ── receiver 0 ────────▶ authentic: draws its half of the pair
//	confirmed     ◀──────── reject{read} ─ names the client's session
//	prepare{State} ── both ids ─────────▶ confirmed; older pairs are dead for ever
//	              ◀─── prepare, replies ─
//	 … the server restarts …
//	prepare ────────────────────────────▶ unknown session
//	Open again    ◀────── reject{reopen} ─ sealed under an id used for this alone
//	 … or waits for the client …
//	prepare{State} ◀───── prepare, receiver 0 ─ a call: do you know me still?
//	Open again    ◀────── reject{reopen}
//
// A packet of ours goes: due → hold saved → sent → fulfilled or rejected. One of
// the peer: arrived → checked (R5) → saved → fulfilled. The package leaves to
// others how packets travel: subpackage paystreamtest does it in memory.
package paystream
