// Package hold pays a payee that is not online. A neighbour of both, the holder,
// keeps the payer's money bound until the payee comes; the payer may go offline
// meanwhile. It follows "asynchronous Lightning network payments" (lightning-dev,
// 2019); docs/protocol/hold.md has the bytes.
//
//	payer                        holder                         payee
//	  ├── park: terms, box ────────▶│ save draft, book the price
//	  ├── part, until T + return ──▶│ save held                     (offline)
//	  ┆ (may go)                    │
//	  ┆                             │◀───────────── list, release ──┤
//	  ┆                             │ save offered                  │
//	  ┆                             ├── part, box ─────────────────▶│ open box, save claiming
//	  ┆                             │◀──────────────────── preimage ┤ received
//	  ┆                             │ save claimed                  │
//	  │◀── preimage, once back ─────┤ settled
//
// Before the payee has the money the payer can call it back; after, the holder is
// sure to be paid. In between stands one saved step of the holder, from held to
// offered: what is offered is not cancelled, what is cancelled is not offered. When
// time T is over without the payee, the holder gives the part back, and nobody has
// paid anything but the price of the holding.
//
// The payer chooses the preimage and seals it to the payee's key, bound to hash,
// amount, expiry and holder (box.go). Nobody but the payee can open the box, and the
// payee shows the preimage only for what the payer sealed. Where the payee chose the
// hash (promise_pure.go) there is no box, and the preimage proves the payment.
//
// In the second form nobody keeps anything: the payer buys a voucher of the holder's
// own channel to the payee, and mails it (purchase_pure.go).
//
// Six cores, all of one owner:
//
//	Payer    holds of ours (payer_pure.go)
//	Holder   holds of others (holder_pure.go)
//	Payee    what we promised, and what we were paid (payee_pure.go)
//	Buyer    vouchers that we buy (buyer_pure.go)
//	Seller   vouchers that we sell (seller_pure.go)
//	Taker    room that we keep, and what was mailed to us (taker_pure.go)
//	Service  the six, with disk, time, peers and callers (service.go, party.go, mail.go)
//
// What holds at every moment, and is in Check by name:
//
//	one-offer             a hold is offered exactly if one part of it is on its way
//	paid-by-preimage      what is claimed of a payer was shown by the payee
//	answerable            the payer's part outlives the hold by what an answer takes
//	shown-for-enough      a preimage was shown for at least what was sealed
//	one-hash-one-hold     a hash that a payee chose is paid by one hold
//	complete-by-preimage  a payer is complete exactly with the preimage
//	bought-by-preimage   what we bought we have the preimage of, and the voucher
//	within-room          no more is bought, or taken, over a statement than its room
//	one-lane-one-sale    no lane of a channel is sold twice
//	opened-by-us         the preimage of what we sell is ours until it is paid
//	caps, bounds          nobody makes us keep more than the named bounds
//
// Parts are carried by a payments.Carrier, on credit or under locks: that is its
// business. A lock on every hop under a point of the curve, with which a payee could
// sell a signature instead, has its cryptography in paych/adaptor and its voucher
// rule in paych; no carrier carries it yet, and such a part is refused.
package hold
