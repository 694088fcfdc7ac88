// Package settler joins the tabs of package swap to the channels of package
// paych: each cheque carries a voucher of a channel, so that what a peer paid is
// money on a chain.
//
//	swap.Book                    Settler                        paych.Manager
//	  │ Issue(p, cumulative) ──────▶│                                 │
//	  │                             │ none: save link, create ───────▶│ a channel a peer,
//	  │                             │ bound: voucher of lane 0 ──────▶│ known by its tag
//	  │◀──── backing ───────────────│◀──── the same for the same ─────│
//	  │                             │                                 │
//	  │ Accept(p, cumulative, ─────▶│ whose channel, which amount     │
//	  │         backing)            │ save link, add voucher ────────▶│
//	  │◀──── covered ───────────────│◀──── cover F epochs deep ───────│
//	  │                             │                                 │
//	  │◀──── Retry, Cover, Final ───│◀──── Notice ────────────────────│ chain
//
// A link ties one direction of a relation to one channel, from the first cheque
// on until the channel is collected for good:
//
//	none ──▶ opening ──▶ bound ──▶ none, and Final told the book
//	              └─────────▶ none, where the chain refused to create it
//
// The voucher of lane 0 has the amount base + (cumulative − origin) × 10^9
// attoFIL. Origin is the cumulative that was credited when the link was made,
// base what the lane had before; both are in the backing that the cheque's
// signature covers, and never change. So a cheque and its voucher name the same
// sum on both books, to the unit.
//
// Everything is idempotent in the cumulative: a crash between the two stores
// neither pays twice nor loses a payment.
package settler
