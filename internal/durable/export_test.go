package durable

// MaxQueuedBatches is for tests that fill the queue.
const MaxQueuedBatches = maxQueuedBatches
