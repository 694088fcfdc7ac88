// Package socketpb has the wire messages of /tally/socket/1.0.0, generated from
// socket.proto. docs/protocol/paystream.md says what they are for.
package socketpb
