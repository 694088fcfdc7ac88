// Package packetpb has the wire messages of /tally/packet/1.0.0, generated from
// packet.proto. docs/protocol/packet.md says what may follow what. Package
// packetnet reads and writes them by hand on the message path; its tests hold
// both against each other.
package packetpb
