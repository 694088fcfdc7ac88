// Package stream1 encodes what STREAM version 1 (RFC 0029) puts in a packet's
// envelope, and receipts (RFC 0039).
//
//	packet   01 | ilp type u8 | sequence varuint | amount varuint |
//	         frame count varuint | frames | padding
//	frame    type u8 | length | body
//
//	type  frame              body
//	01    ConnectionClose    code u8 | message var
//	02    NewAddress         address var
//	03    ConnectionMaxData  offset varuint
//	04    ConnectionBlocked  offset varuint
//	05    MaxStreamID        id varuint
//	06    StreamIDBlocked    id varuint
//	07    AssetDetails       code var | scale u8
//	10    StreamClose        id varuint | code u8 | message var
//	11    StreamMoney        id varuint | shares varuint
//	12    StreamMaxMoney     id varuint | receive max varuint | received varuint
//	13    StreamMoneyBlocked id varuint | send max varuint | sent varuint
//	14    StreamData         id varuint | offset varuint | bytes var
//	15    StreamMaxData      id varuint | offset varuint
//	16    StreamDataBlocked  id varuint | offset varuint
//	17    StreamReceipt      id varuint | receipt var
//	else  Unknown            kept, and to be ignored
//
// The types are hexadecimal; receive max and send max past 64 bits read as
// 2^64−1. amount is the least to accept in a prepare, and what arrived in a
// fulfil or reject. The envelope and the derivation of conditions are those of
// package envelope, with the labels ilp_stream_encryption and
// ilp_stream_fulfillment.
package stream1
