// Package rpc is the door to a running peer: a JSON-RPC 2.0 server at /rpc/v1,
// its method list, the rows it answers with, and a typed client.
//
//	client ──▶ listener ──▶ guard ──────────────▶ go-jsonrpc ──▶ api ──▶ Node
//	           unix 0600     Host, Origin, type,   decode         perm,
//	           or loopback   size, bearer token,                  peer ids,
//	                         slots                                limits
//
// What a peer can do is an interface here, [Node]; package host implements it.
// The rows are plain structs with stable JSON keys, because scripts and the web
// page read them. Every failure that a caller may act on has a stable code, see
// [Codes].
//
// The package leaves to others what the figures mean (package swap), where the
// token and the socket lie (package host/repo), and how rows are printed
// (cmd/tally).
package rpc
