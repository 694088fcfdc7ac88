package durable

// MaxQueuedBatches is for tests that fill the queue.
const MaxQueuedBatches = maxQueuedBatches

// Flush makes Pebble write its buffer into a table.
func (s *Store) Flush() error { return s.engine.(*pebbleEngine).d.DB.Flush() }
