// Package storenet is the metered service of the project: a store of Waku
// messages that peers page through, each message a unit on their tab.
//
// Three stream protocols, one request and one response on each stream, each a
// uvarint-delimited protobuf (package wire):
//
//	/vac/waku/store-query/3.0.0    StoreQueryRequest → StoreQueryResponse
//	/vac/waku/store/2.0.0-beta4    HistoryRPC{query} → HistoryRPC{response}
//	/vac/waku/metadata/1.0.0       cluster and shards, free of charge
//
// Any Waku light client may ask: Waku specifications 13/WAKU2-STORE,
// 14/WAKU2-MESSAGE and 66/WAKU2-METADATA are followed to the byte. Metering is
// the SWAP accounting of one unit a message (design/swap.md, section 5):
//
//	client                                          server
//	Consume(page size)      may wait for a
//	  │                     settlement
//	  ├──── query, page 20, cursor c ──────────────▶ read, decode, check
//	  │                                              page = min(20, headroom)
//	  │                                              Serve(n), Commit(n)   on disk
//	  ◀──── 200, n messages, cursor ────────────────┤ before the bytes leave
//	check each message                              │
//	Commit(n)                                       │
//	  ├──── query, cursor ─────────────────────────▶ headroom 0:
//	  ◀──── 402 "owes 125 of 125 …" ────────────────┤ nothing is read or booked
//	Release; Consume waits for our cheque; again
//
// A response without messages costs nothing. Where the stream breaks after the
// request was written the client calls Lost and the server's booking stands; the
// next statement of the ledger closes the difference.
//
// The store keeps messages in the order of time and hash on internal/durable.
// Pages are in that order whichever way they are walked; a page taken backward
// holds the newest messages, oldest first, as Waku has it.
//
// The package leaves to others: the ledger behind Meter (package swap, joined in
// host), which peers may connect, and Waku's relay, filter and light push.
package storenet
