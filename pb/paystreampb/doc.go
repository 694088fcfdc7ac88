// Package paystreampb holds the inner packet of paystream's native suite: what is
// sealed between the two ends of a payment socket. docs/protocol/paystream.md says
// what it means and gives the bytes. Package paystream encodes and decodes the
// same bytes by hand, without allocation; this package is for other
// implementations, and for the tests that hold the two against each other.
package paystreampb
