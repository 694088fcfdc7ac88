// Package swappb holds the wire messages of swap: our own protocol
// /tally/swap/1.0.0, the seed's /vac/waku/swap/2.0.0-alpha1, and the cheque of
// /vac/waku/swap/2.0.0-beta1. What they mean is in docs/protocol/swap.md;
// protocols/swapnet converts them to the types of package swap, and nothing else
// reads them.
package swappb
