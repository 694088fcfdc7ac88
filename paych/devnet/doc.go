// Package devnet is a Filecoin chain in one process, for demos and tests that
// must settle in seconds and may revert, fail or stop a chain at will. It has
// one miner, one block a height, accounts, the init actor and payment channels;
// it has no consensus and no proofs.
//
//	Push, Faucet ──▶ pool ──▶ owner goroutine ──▶ one synced batch a block ──▶ heads
//	                 nonce     every T, or Mine      header, receipts, new
//	                 order                           versions of actors
//
// Messages are real: the CBOR, cids and signatures of Filecoin, executed by
// paych/actor, the same rules that the manager checks with. As on Filecoin the
// tipset at height h carries messages, and the tipset after it has their
// receipts and their effect in its parent state; so a message is seen executed
// two blocks after it was pushed.
//
// Every version of an actor is kept under the height that wrote it. So a state
// of the past can be read, and Reorg takes blocks back by deleting what they
// wrote. States and empty blocks that are old are pruned (prune.go), so that an
// idle chain does not grow. A block is one atomic batch: after a crash the chain is at the last
// block that landed whole, and the pool has what was answered for.
//
// [Chain.Handler] serves JSON-RPC under Lotus' names, see rpc.go. The client for
// it is package lotus, the same as for a real node.
package devnet
