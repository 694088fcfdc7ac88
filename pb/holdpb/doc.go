// Package holdpb has the wire messages of /tally/hold/1.0.0, generated from
// hold.proto. docs/protocol/hold.md says what they are for.
package holdpb
