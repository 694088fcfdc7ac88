// Package route finds the ways of a payment's parts: how much over which peers. It
// is pure: time comes in, and it works in memory on a graph that it is given.
//
// What an edge can carry now is not known, only bounds: it carried lo, and it can
// carry no more than hi. Between them every value is as likely, so that x passes
// with
//
//	P(x) = 1                           x ≤ lo
//	P(x) = (hi + 1 − x)/(hi + 1 − lo)  lo < x ≤ hi
//
// Splitting an amount so that −ln ΠP, with the fees weighed in, is least is a
// min-cost flow with convex costs (Pickhardt and Richter, 2021). Each edge's cost
// is made of four straight pieces: what is certain, and three of what is not. Where
// the flow does not fit (fees, smallest amounts, too many parts) the amount is
// halved until its parts find ways one by one.
//
// Every result moves the bounds of the edges it went over, and they are forgotten
// after a while, because tabs are settled. What is in flight is reserved.
package route
