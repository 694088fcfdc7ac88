// Package btpws is the server side of BTP 2.0 over WebSocket: it makes the node
// the connector of JavaScript clients (ilp-plugin-btp).
//
//	client                                 Server
//	GET, Upgrade: websocket ─────────────▶ one of MaxHandshakes
//	message{auth, auth_token} ───────────▶ within 5 s; name and token of a Client
//	◀──────────────────────────── response{}   an older connection of the client ends
//	message{ilp: prepare peer.config} ───▶ answered here (ILDCP)
//	message{ilp: prepare} ───────────────▶ Config.Serve(client).Prepare
//	◀─────────────── response{ilp: fulfil or reject}
//	◀─────────────── message{ilp: prepare}     Server.Client(name).Prepare
//	response{ilp: fulfil or reject} ─────▶ the condition is checked here
//
// Money is counted by whoever implements the Handler: this package moves packets,
// once each way, and says of each how it ended. A packet to a client that is
// answered after its time, or with a wrong fulfilment, or not at all, was
// rejected.
//
//	bound                   value             past it
//	frame                   btp.MaxFrame      the connection ends
//	packets on the way      64 each way       T03 to the client; T03 to our caller
//	handshakes              64                503
//	first message           5 s               the connection ends
//	a packet's time         60 s              counted from now where it has more
//	silence                 60 s, pings 20 s  the connection ends
//	write                   10 s              the connection ends
package btpws
