// Package compat is where Interledger joins: peers that speak ILPv4, PSK2 and
// STREAM, most of them JavaScript, pay and are paid through a node of ours.
//
//	JavaScript client                     node                      our endpoint
//	 STREAM or PSK2 ─ ILP ─ BTP ──────▶ btpws.Server ─▶ Handler ─┬▶ endpoint.Stream
//	                                                            ├▶ endpoint.PSK2
//	                                                            └▶ another client, or
//	                                                               hops of packetnet
//	package    what                                     pure
//	oer        octet encoding rules                     yes
//	ilp        packets, addresses, conditions, ILDCP    yes
//	envelope   sealing, conditions, reflection guard    yes
//	psk2       PSK2 packets, paystream messages         yes
//	stream1    STREAM version 1 packets, receipts       yes
//	btp        BTP 2.0 frames                           yes
//	spsp       payment pointers and their documents
//	btpws      BTP over WebSocket, server side
//	endpoint   receivers and senders of PSK2 and STREAM
//
// ILP's names stay in here: text addresses, sha2-256 conditions, codes. An ILP
// packet travels on credit only, and no amount of 2^63 or more gets past a
// Handler's caller. docs/protocol/ilp.md has the bytes.
package compat
