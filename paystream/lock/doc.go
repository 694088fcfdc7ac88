// Package lock carries amounts under hash locks in the slots of a payment channel:
// what is too large to travel on credit. It follows docs/protocol/lock.md.
//
// A channel goes one way. Its lane 0 settles the tab; lanes 1 to N are slots, each
// for one lock at a time; lane N+1 is the guard. A slot at rest has a nonce n and a
// base b, the lane's total. A lock of a until epoch T goes like this:
//
//	payer                                              payee
//	free n, b                                          free n, b
//	  │ save ─ sign LOCK  n+1, b+a, hash, until T        │
//	locked ── prepare ────────────────────────────────▶  │ keep, save
//	  │  ◀──────────────────────────────── prepare_ack ─ locked
//	  │                                                  │
//	  │                                 the preimage comes: save, arm the claim
//	  │  ◀───────────────────────────────────── fulfil ─ opened
//	  │ save, with the fulfil of the way in              │ no answer by T − S:
//	opened ─ sign UNLOCK  n+2, b+a                       │ LOCK and preimage go
//	  │ ───── unlock ─────────────────────────────────▶  │ to the chain
//	  │  ◀───────────────────────────────── unlock_ack ─ free n+2, b+a
//	free n+2, b+a
//
//	or the payee gives it up:
//	                                                     │ save: never claimed again
//	  │  ◀────────────────── reject, CANCEL  n+2, b ──── given ─ sign
//	  │ keep, save; only now the way in may fail         │
//	free n+2, b ──── reject_ack ──────────────────────▶  free n+2, b
//
//	or nobody decides: it cannot be redeemed after T. The payee is free then, the
//	payer when the chain is final beyond T; nonce n+2 counts as used for both.
//
// LOCK and UNLOCK are signed by the payer and submitted by the payee; CANCEL is
// signed by the payee and kept by the payer, against a LOCK that is submitted in
// spite of it. Every other combination of fields is refused.
//
// Slots is one side of one channel, a state machine without time, disk, keys or
// network. Its effects are in duty order: who carries them out keeps and saves what
// comes before a signature or a message, and steps the next event of a lane (LaneOf)
// when that is done, because it may ask for the same message again. Vouchers come in
// as values; that their signature is good is checked before, and what they are in
// attoFIL is the shell's.
package lock
