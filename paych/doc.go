// Package paych manages payment channels on a Filecoin chain: it creates and
// funds them, makes and takes the vouchers that move money inside them without
// the chain, and settles and collects them.
//
//	payer                                payee                      chain
//	  │ create, add funds ─────────────────────────────────────────▶ │ From, To,
//	  │ voucher lane 1 nonce 1 amount 10 ─▶ │                        │ balance
//	  │ voucher lane 1 nonce 2 amount 25 ─▶ │ keeps the best of      │
//	  │                                     │ every lane             │
//	  │ settle ────────────────────────────────────────────────────▶ │ SettlingAt
//	  │                                     │ submit the best ─────▶ │ ToSend 25
//	  │                                     │ collect ─────────────▶ │ 25 to To, the
//	  ▼                                     ▼                        ▼ rest to From
//
// A voucher's amount is the lane's new total, not an increase, so that the last
// one is worth all that came before. Amounts are attoFIL in big.Int; whoever
// counts in other units converts at the edge.
//
// The chain's own rules are package paych/actor; keys are in paych/wallet; the
// chain itself is the interface Chain, spoken to by paych/lotus and played by
// paych/devnet. docs/protocol/voucher.md has the format of vouchers byte by byte.
package paych
