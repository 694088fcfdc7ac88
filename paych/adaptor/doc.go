// Package adaptor is ECDSA adaptor signatures on secp256k1: a signature that is
// given encrypted under a point Y = y·G. Who knows y completes it to a plain
// signature, and who has both then knows y. A voucher whose signature is given in
// this way is a point lock: the chain sees a plain voucher, and taking it shows y.
//
//	signer                          holder of y                 chain
//	  │ Encrypt(key, digest, Y)       │                           │
//	  │ save                          │                           │
//	  ├── 162 bytes ─────────────────▶│ Verify(key, digest, Y)    │
//	  │                               │ Decrypt(y)                │
//	  │                               ├── plain signature ───────▶│
//	  │◀───────── plain signature, from either ───────────────────┤
//	  │ Recover(Y) = y
//
// It follows the ECDSA adaptor signatures of the Discreet Log Contracts
// specification, whose vectors are in testdata; only the nonce is our own:
//
//	 0       33       66      98      130     162
//	┌───────┬────────┬───────┬───────┬───────┐    R = k·Y, R_a = k·G,
//	│ R     │ R_a    │ s_a   │ e     │ z     │    s_a = (digest + r·key) / k,
//	└───────┴────────┴───────┴───────┴───────┘    (e, z): one k made R_a and R
//
// Two adaptor signatures of one digest with one nonce under two points, or one
// beside a plain signature with the same nonce, give the private key away. So no
// caller gives a nonce: Encrypt derives it from key, digest, Y and 32 fresh random
// bytes, under a tag that no plain signature uses. What leaves once is saved before,
// and the same bytes are sent again: Encrypt is not asked twice.
//
// What y is, is its holder's: a number that it drew, or the s of a BIP 340 signature that
// it sells (Commitment; BIP 340's vectors are in testdata).
//
// Secrets (key, nonce, y) are multiplied in constant time. What is public already
// takes the faster ways.
package adaptor
