// Package sim runs books against each other on a simulated clock, network and
// disk. A seed decides everything; the same seed gives the same events, byte for
// byte, and so the same hash.
//
// What is simulated is the world around the book and never the book: swap.Book
// with its goroutines, its store and its signatures is the one that ships. So a
// run lives in a testing/synctest bubble, where time stands still while a book
// works. The scheduler does one thing at a time, waits until every goroutine of
// every book is blocked, and only then takes what they sent, in an order that
// does not depend on which of them ran first:
//
//	next event of the seed ─▶ sleep until then ─▶ do it ─▶ wait for quiet
//	        ▲                                                   │
//	        └── delay, lose, repeat, reorder ◀── sort what was sent
//
// Driving swap.Ledger alone would need no bubble. But then the order of save and
// send, the recovery after a crash and the goroutine that issues cheques, which
// is where money gets lost, would be a copy of ours and not the real ones.
//
// A bubble needs a *testing.T, and so does Run.
package sim
