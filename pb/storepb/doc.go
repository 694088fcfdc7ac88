// Package storepb has the wire messages of the Waku store and metadata
// protocols, byte-compatible with those of Waku. testdata holds golden vectors
// made by the JavaScript implementation. storenet converts them at the edge;
// nothing else should use them.
package storepb
