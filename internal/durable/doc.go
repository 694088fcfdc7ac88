// Package durable is the only way money reaches disk: an ordered store of
// records with group commit over a go-datastore.
//
// A caller fills a [Batch] and hands it to [Store.Commit], which returns once
// the whole batch is on stable storage, or hands it to [Store.Submit], which
// answers through a callback. One goroutine owns all writes; it merges what is
// queued into one engine batch and makes one sync answer for all of it:
//
//	Commit ─┐  ┌────────── queue ──────────┐      ┌─ committer ─┐
//	Commit ─┼─▶│ group │ group │ open group │ ───▶ │ apply, sync │ ──▶ answers,
//	Submit ─┘  └───────────────────────────┘      └─────────────┘     in order
//
// What holds:
//
//   - A batch lands whole or not at all, and in the order it was queued; within
//     a batch and across batches the last op on a key wins.
//   - A nil answer means that the batch survives a power loss.
//   - After a failed commit or sync nothing is written any more and every later
//     Commit fails with [ErrFailed]. The sync is never tried again: after a
//     failed fsync the kernel may have dropped the pages and would report
//     success for data that is gone. Only a restart, which reads what the disk
//     really holds, makes the store whole.
//
// A record is sealed with its key, a schema version and a checksum by [Seal]
// and opened by [Unseal]. A torn tail of the journal is dropped when the store
// is opened (nobody was told that it had landed); damage before the last synced
// record is an error that names its place.
//
// The package leaves to others what the records mean, and which of them have to
// be on disk before a message is sent. Subpackage durabletest has the in-memory
// twins and the fault hooks.
package durable
