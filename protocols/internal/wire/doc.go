// Package wire is the one framing helper of our protocols: protobuf messages,
// each behind its length, over a libp2p stream.
//
//	+----------------+------------------+----------------+------
//	| uvarint length | length bytes     | uvarint length | ...
//	+----------------+------------------+----------------+------
//	 1 to 9 bytes,    one protobuf
//	 minimal form     message
//
// The length is the unsigned varint of multiformats (63 bits, minimal form
// only), the same that go-msgio's pbio reads and writes, so both ends may use
// either. This package adds what a handler of untrusted peers needs beyond
// pbio:
//
//   - the length is checked before a byte is allocated for it, and a long frame
//     takes memory only as its bytes arrive;
//   - each frame has a deadline of its own, which starts with its first byte;
//   - a bad frame is told apart by error: too large, truncated, garbage, late;
//   - the raw bytes of a frame can be had, for layouts that are not ours;
//   - many frames leave in one Write. One Write a message costs a factor of
//     twenty in messages a second (architecture.md, section 7).
//
// It leaves to its callers what a frame means, resource reservations, resets
// and every decision about the peer.
package wire
