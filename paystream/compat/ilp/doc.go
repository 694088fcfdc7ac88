// Package ilp encodes the packets of the Interledger Protocol, version 4 (RFC
// 0027), addresses (RFC 0015), sha2-256 conditions, and the configuration that a
// connector tells its client (ILDCP, RFC 0031).
//
//	packet    type u8 | length | body
//	Prepare   12: amount u64 | expires_at 17 digits | condition 32 |
//	              destination var ≤ 1023 | data var ≤ 32767
//	Fulfil    13: fulfilment 32 | data var ≤ 32767
//	Reject    14: code 3 | triggered_by var ≤ 1023 | message var ≤ 8191 |
//	              data var ≤ 32767
//	config    address var | asset scale u8 | asset code var
//
// expires_at is YYYYMMDDHHMMSSfff in UTC. Decoding is strict: one form of each
// value, no bytes after a packet or within it. What a decoder returns aliases its
// input where it is a []byte.
//
// A condition here is SHA-256, which the lock of a channel does not know: such a
// packet travels on credit only and is never hashed again for another digest.
package ilp
