// Package payments pays an amount in parts over several routes, all of them or
// none, and takes such payments. It follows "Towards atomic multipath payments"
// (c-lightning, 2018); docs/protocol/payments.md has the bytes and what a carrier
// has to promise.
//
// All parts of a payment have one hash. The payee alone knows the preimage, and
// shows it when the parts that wait sum up to the total:
//
//	payer                         hops                        payee
//	  │ save part 1               │ │                           │ invoice
//	  ├── part 1: 60 of 100 ─────▶│ ├──────────────────────────▶│ save, wait 60 s
//	  │ save part 2               │ │                           │
//	  ├── part 2: 40 of 100 ───────▶├──────────────────────────▶│ sum ≥ total:
//	  │                           │ │                           │ save paid, claiming
//	  │◀───────────── preimage ───┤ ├◀─────────── fulfil both ──┤
//	  │ save complete             │ │                           │
//
// Two cores, each one owner's:
//
//	Payer     payments and parts; the table of sendpartialpay (payer_pure.go)
//	Payee     invoices, and the parts that wait (payee_pure.go)
//
// and what is around them:
//
//	PartData  what the payer tells the payee, sealed (seal_pure.go)
//	Invoice   what a payee hands out, as text (invoice_pure.go)
//	Service   both cores, with disk, time and waiters around them (service.go)
//	Pay       splits an amount and sends again what came back (pay.go)
//	Carrier   what takes parts to other nodes (carrier.go)
//	Router    what finds ways (carrier.go); subpackage route is one
//
// What holds at every moment, and is in Check by name:
//
//	never-twice        parts that live are below twice the total
//	older-groups-dead  a failed payment is sent again only when nothing of it lives
//	complete-by-part   a payment is complete exactly if a part is
//	claim-or-not       parts of an invoice are claimed all, or none
//	paid-whole         what is claimed is at least the total
//	held-whole         so is what an operator decides about
//
// How a part travels, on credit or under a lock, is its carrier's business:
// subpackage paymentstest carries parts in memory. What a node has to do to use this
// package is in docs/protocol/payments.md under "Wiring".
package payments
