// Package socketnet lets a peer open a payment socket with us without a URI: the
// stream handler of /tally/socket/1.0.0.
//
//	asker                      asked
//	  ├──── SetupRequest ───────▶│ what it takes from anybody, as a token
//	  │◀─── SetupResponse ───────┤ keeps nothing
//	  │
//	  └──── packets, over any hops, open the socket
//
// One stream carries one question. The secret in the answer is as safe as the
// libp2p connection, which authenticates both peers; the packets of the socket may
// go another way. What a token gives is the business of whoever makes it.
package socketnet
