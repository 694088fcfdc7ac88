// Package hold pays a payee that is not online. A neighbour of both, the holder,
// keeps the payer's locked money until the payee comes; the payer may go offline
// meanwhile. It follows "asynchronous Lightning network payments" (lightning-dev,
// 2019); docs/protocol/hold.md has the bytes.
//
// The payer chooses the preimage and seals it to the payee's key, bound to hash,
// amount, expiry and holder (box.go). Nobody but the payee can open the box, and the
// payee shows the preimage only for what the payer sealed.
package hold
