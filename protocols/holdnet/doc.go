// Package holdnet speaks /tally/hold/1.0.0: it carries what payer, holder and payee
// of a hold ask each other. It speaks docs/protocol/hold.md.
//
//	hold.Service ── Park, List, Release, Cancel, Poll ─▶ Service ── one stream each ─▶ peer
//	hold.Service ◀── the same, with who asks ─────────── Service ◀───────────────────── peer
//
// One stream carries one request and its response. The money itself travels as
// packets, beside it (package packetnet). The package converts wire messages to the
// types of package hold, once, and checks every length and number before the
// service sees it; it decides nothing.
package holdnet
