// Package wire has the forms in which a Filecoin node and its clients pass
// messages and chain data: the CBOR that is signed, hashed and mined, and the
// JSON that Lotus prints. The client (package lotus) and the embedded chain
// (package devnet) share it, so that both mean the same bytes.
//
//	Message        [Version, To, From, Nonce, Value, GasLimit, GasFeeCap,
//	                GasPremium, Method, Params]
//	SignedMessage  [Message, Signature]
//
// A cid is CIDv1, dag-cbor, BLAKE2b-256 over the CBOR; a secp256k1 signature is
// over the BLAKE2b-256 digest of the bytes of the message's cid. Keys of JSON
// objects are those of Lotus: capitalised, cids as {"/": …}, amounts as strings.
package wire
