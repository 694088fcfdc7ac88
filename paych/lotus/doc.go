// Package lotus is paych.Chain and paych.Wallet over the JSON-RPC of a Lotus
// node, or of any that speaks as Lotus does: Forest, Venus, a public gateway, or
// the embedded chain of package devnet. There is one client for all of them.
//
//	Prepare  MpoolGetNonce, GasEstimateMessageGas, signature   nothing leaves
//	Publish  MpoolPush of the saved bytes, as often as needed
//	Wait     StateSearchMsg at each new head                   through reorgs
//	Bump     the same message for a higher fee                 to save, then Publish
//
// MpoolPushMessage is never used: there the node picks the nonce when the
// message leaves, so a crash in between could pay twice.
//
// A tipset's state has the messages of the tipsets below it. All heights here
// are those of the tipset whose state shows a message executed, so that
// Calls(…, head) and Channel(…, 0) tell the same.
//
// The package polls; it has no subscription to lose. What it takes from a node
// without proof is the head, the state of actors and receipts; cids of messages,
// signatures and objects are computed here.
package lotus
