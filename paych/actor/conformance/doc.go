// Package conformance runs random sequences of messages through paych/actor and
// through the payment channel actor of Filecoin, specs-actors v8.0.1, and
// compares what they did after every message.
//
// It is a module of its own, so that the product does not depend on the chain's
// actors; nothing imports it. From this directory:
//
//	go test                                    100,000 sequences, always the same
//	go test -short                             5000 of them
//	CONFORMANCE=1000000 go test -timeout 30m   as many as you like, never the same
//	CONFORMANCE_SEED=7:42 go test -v           one of them, message by message
//	go test -run - -fuzz . -fuzzminimizetime 1s
package conformance
