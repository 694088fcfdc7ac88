// Package locker keeps the locks of channels: it joins the slots of package
// paystream/lock to the vouchers of package paych, for each channel that settles a
// tab with a neighbour.
//
//	carrier ── Offer, Fulfil, Give ──▶ line (one a channel and side, one goroutine)
//	wire    ── Receive, Up ─────────▶   │ lock.Slots.Step
//	chain   ── views, each epoch ───▶   │   keep      vouchers of the neighbour: paych
//	                                    │   save      one synced batch, with the
//	                                    │             carrier's records of the packet
//	                                    │   sign      ours: paych, which saves them
//	                                    ▼   send      only now
//	                                  wire, carrier
//
// What waits in a line when it has time, and is about different lanes, is stepped
// together and shares one sync.
// What has to go to the chain the line asks paych for; paych's own watcher knows the
// vouchers and preimages as well, and does the same where we are not running.
package locker
