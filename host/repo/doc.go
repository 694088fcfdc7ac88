// Package repo is the folder of one peer: its settings, its keys, its data and
// the lock that keeps a second process out.
//
//	config.toml    settings, a template that explains every key
//	identity.key   0600  the libp2p key: who the peer is
//	keystore/      0700  the key that signs tokens; wallet/ has keys of a chain
//	datastore/     0700  books and messages
//	token          0600  the bearer token of the command line
//	api                  where the running peer answers; gone when it stops
//	rpc.sock       0600  the unix socket of the running peer
//	repo.lock            held while a process uses the repo; has its pid
//	version              the layout of this folder
//	devnet/              the embedded chain of a throw-away peer
//
// Secrets that others on the machine could read are refused, with the command
// that repairs it. Every file is replaced whole: written beside, synced,
// renamed, and the folder synced, so that a crash leaves the old or the new.
//
// An embedded chain that runs on its own has a folder of its own, see [Devnet].
//
// The package leaves the meaning of the settings to those who use them.
package repo
