package rpc

import (
	"context"
	"sync"
	"time"
)

const (
	// eventLogSize bounds the events kept for pollers: about an hour of a busy
	// peer's settlements, under 1 MiB.
	eventLogSize = 4096
	// MaxEventBatch bounds one answer of EventsSince.
	MaxEventBatch = 512
)

// EventLog keeps the newest events for callers that poll. Cursors grow from the
// microsecond in which the log began, so that a cursor of an earlier run is
// below all of this one and is answered with Missed instead of silence.
type EventLog struct {
	mu   sync.Mutex
	ring []Event
	// first is the cursor of the oldest event kept, next that of the event to
	// come. Invariant: next - first = len(ring).
	first, next uint64
	wake        chan struct{} // closed when an event arrives
}

// NewEventLog returns an empty log.
func NewEventLog(now time.Time) *EventLog {
	begin := uint64(max(1, now.UnixMicro()))
	return &EventLog{first: begin, next: begin, wake: make(chan struct{})}
}

// Append adds an event.
func (l *EventLog) Append(now time.Time, kind, peerID string, fields map[string]any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ring = append(l.ring, Event{Cursor: l.next, Time: now, Kind: kind, Peer: peerID, Fields: fields})
	l.next++
	if len(l.ring) > eventLogSize {
		l.ring[0] = Event{}
		l.ring = l.ring[1:]
		l.first++
	}
	close(l.wake)
	l.wake = make(chan struct{})
}

// Since returns the events after cursor, and waits for one if there is none.
// When ctx ends it returns an empty batch.
func (l *EventLog) Since(ctx context.Context, cursor uint64) EventBatch {
	for {
		l.mu.Lock()
		batch, wake := l.after(cursor), l.wake
		l.mu.Unlock()
		if len(batch.Events) > 0 || batch.Missed {
			return batch
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return batch
		}
	}
}

// after answers from what is there. Caller holds mu.
func (l *EventLog) after(cursor uint64) EventBatch {
	batch := EventBatch{Events: []Event{}, Cursor: l.next - 1}
	from := cursor + 1
	if cursor == 0 {
		from = l.first
	}
	if from < l.first || from > l.next {
		batch.Missed = true
		from = l.first
	}
	events := l.ring[from-l.first:]
	if len(events) > MaxEventBatch {
		events = events[:MaxEventBatch]
		batch.Cursor = events[len(events)-1].Cursor
	}
	batch.Events = append(batch.Events, events...)
	return batch
}
