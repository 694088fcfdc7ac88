// Package actor is the Filecoin payment channel actor as one pure function: what
// the chain would do with a channel, for the embedded chain that runs it and for
// the manager that wants to know before it sends.
//
//	            Construct                 Settle                epoch ≥ SettlingAt
//	Init.Exec ────────────▶ open ────────────────────▶ settling ──────────────────▶ settled
//	                       │    ▲                     │    ▲                           │
//	                       └────┘                     └────┘                   Collect │ pays To and From
//	                 UpdateChannelState         UpdateChannelState                     ▼
//	                                            (up to SettlingAt − 1)              deleted
//
// The rules, their order and their exit codes are those of specs-actors v8.0.1,
// actors/builtin/paych, against which the nested module conformance runs them.
// Networks of today run the same rules in builtin-actors (Rust); there a caller
// that is not a party reads 18 where v8 says 8. Nobody should act on more than
// zero or not.
//
// The package does no I/O. Signatures, addresses and the call that a voucher's
// Extra asks for come in through Env; text and signatures of vouchers belong to
// package paych, messages and receipts to whoever runs a chain.
package actor
