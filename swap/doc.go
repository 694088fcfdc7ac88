// Package swap keeps a tab with every neighbour, and settles it before it
// outgrows trust. It follows Waku SWAP 2.0.0-alpha1, and is richer where both
// sides speak our own protocol.
//
// A service reserves before it works and commits what it delivered; the debtor
// pays when its debt reaches what the creditor announced:
//
//	                 server (creditor)                 client (debtor)
//	request           Reserve(Serve, n)                 Reserve(Consume, n)
//	answer            Commit(n): balance +n             Commit(n): balance −n
//	                                                    │ debt reaches the
//	                                                    ▼ payment threshold
//	                                     intent saved, cheque signed, saved
//	   ┌──────────────── cheque{serial, cumulative} ────┘
//	   ▼ verified; saved and credited in one batch
//	   └──────────────── ack{serial, credited} ─────────▶ promoted: balance 0
//	unpaid at the disconnect threshold: service is refused; after 30 s the peer
//	is disconnected, and may always come back to pay.
//
// The parts, from the inside out:
//
//	Ledger      one tab: pure, Step(now, event) → effects        (ledger.go,
//	            settlement.go, statement.go)
//	Cheque, Ack what the two sides sign                          (cheque.go)
//	Policy      what an operator decides                         (policy.go)
//	Book        all tabs: locks, disk, time, settler, courier    (book.go …)
//	Hold        one reservation                                  (hold.go)
//	WrapHost    metering from outside of a service               (wraphost.go)
//
// A positive balance means that the peer owes us. Amounts are units; what a unit
// is worth is the settler's business. Package swap knows no protobuf and, but for
// WrapHost, no streams: protocols/swapnet carries its messages.
package swap
