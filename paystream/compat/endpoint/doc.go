// Package endpoint receives and sends money end to end as PSK2 and STREAM do, over
// any compat.Handler.
//
//	                 Prepare ─▶ our own envelope? ─▶ opens? ─▶ enough, condition? ─▶
//	receiving                    │ yes                │ no       │ no
//	                             ▼ F99                ▼ F02/F06  ▼ F99/F05, what arrived
//	                 ─▶ Receive books it, once ─▶ Fulfil
//	                             │ error
//	                             ▼ F99
//	sending          Journal.Sent(mark) ─▶ Via.Prepare ─▶ Journal.Decided(mark)
//
// What arrives is booked by Config.Receive before the fulfilment leaves: a crash
// between the two costs the payer's side, whose packet then expires, and nobody
// twice. It is given the envelope's mark, which names the packet for ever: a hop
// may send an old envelope again, and paying again does not make it new.
//
// Servers keep nothing until a packet authenticates: the secret of a token comes
// from the server's own. A sender has one packet on the way, seals the least that
// may arrive in each, and fixes the price it accepts when it begins.
//
// Bytes of a STREAM are not carried: a stream that sends data is closed.
package endpoint
