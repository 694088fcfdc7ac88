package forward

import "github.com/tallystick/tally/internal/durable"

// Tabs is an Account whose changes can be saved in one batch with the journal.
type Tabs interface {
	Account
	// Restore brings back holds after a restart, whatever the limits are now.
	Restore([]Held) error
	// Save adds to batch every tab that was booked on since the last Done, and
	// Done tells what became of the batch. Between the first Commit and Done
	// nobody else saves these tabs.
	Save(batch *durable.Batch)
	Done(err error)
}
