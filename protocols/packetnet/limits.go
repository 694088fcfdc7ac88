package packetnet

import (
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/tallystick/tally/paystream/forward"
)

// Protocol is the libp2p protocol of packets.
const Protocol protocol.ID = "/tally/packet/1.0.0"

// ServiceName is what libp2p's resource manager calls us.
const ServiceName = "tally.packet"

const (
	// MaxFrame holds the largest message: a prepare with 32 KiB of data, 20 peer
	// ids of at most 64 bytes, a token of 512, and two vouchers of a lock. Part
	// of the protocol: a longer frame resets the stream before anything is
	// allocated for it.
	MaxFrame = forward.MaxData + 12<<10

	// batchMsgs is how many messages one batch takes at the most: enough that
	// the engine's lock is paid for, and so few that a batch is done soon. An arena
	// holds their data at 256 bytes a packet.
	batchMsgs = 256
	// maxQueued bounds what waits to be written to one peer: all the data that
	// it may have of us, replies as long, and the rest of 8192 messages. A peer
	// that leaves more unread is reset.
	maxQueued = 16 << 20
	// dropDataAt is where replies leave without their data: the preimage
	// matters, and a payer has to live with a reply that lost its data anyway.
	dropDataAt = 6 << 20
)

// Limits bound what peers can make us hold or do. A zero field takes its
// default.
type Limits struct {
	// Sessions in all. One is two goroutines, and while it is busy about 1 MiB.
	// Default 1024.
	Sessions int
	// Batches that one session may have with the engine. Default 4.
	Batches int
	// Openers is the number of streams that we open at once. Default 16.
	Openers int
	// SessionsPerSecond and SessionBurst bound the streams that one peer may open
	// to us. Defaults 2 and 16.
	SessionsPerSecond float64
	SessionBurst      int
	// HandshakeTimeout is for opening and both handshakes together. Default 5 s.
	HandshakeTimeout time.Duration
	// FrameTimeout is for the rest of a frame once it began, and for one write.
	// An idle stream may stay open for ever. Default 10 s.
	FrameTimeout time.Duration
	// RetryMin and RetryMax bound the pause before we open again. Defaults 1 s
	// and 1 min.
	RetryMin, RetryMax time.Duration
}

// Complete returns l with the defaults in place of zero fields.
func (l Limits) Complete() Limits {
	for _, f := range [...]struct {
		field *int
		def   int
	}{{&l.Sessions, 1024}, {&l.Batches, 4}, {&l.Openers, 16}, {&l.SessionBurst, 16}} {
		if *f.field == 0 {
			*f.field = f.def
		}
	}
	if l.SessionsPerSecond == 0 {
		l.SessionsPerSecond = 2
	}
	for _, f := range [...]struct {
		field *time.Duration
		def   time.Duration
	}{
		{&l.HandshakeTimeout, 5 * time.Second},
		{&l.FrameTimeout, 10 * time.Second},
		{&l.RetryMin, time.Second},
		{&l.RetryMax, time.Minute},
	} {
		if *f.field == 0 {
			*f.field = f.def
		}
	}
	return l
}

// Validate reports limits under which no session could live.
func (l Limits) Validate() error {
	switch {
	case l.Sessions < 1, l.Batches < 1, l.Openers < 1, l.SessionBurst < 1, l.SessionsPerSecond < 0:
		return fmt.Errorf("packetnet: limits: every number must be at least 1: %+v", l)
	case min(l.HandshakeTimeout, l.FrameTimeout, l.RetryMin) < 0, l.RetryMax < l.RetryMin:
		return fmt.Errorf("packetnet: limits: times must not be negative, and retry max not below retry min: %+v", l)
	}
	return nil
}

// Status tells how a stream ended. The numbers go over the wire as reset codes:
// add at the end.
type Status uint8

// Statuses.
const (
	// StatusOK: the peer closed it.
	StatusOK Status = iota
	// StatusClosed: the service was closed.
	StatusClosed
	// StatusReplaced: a newer session of the same peer took over.
	StatusReplaced
	// StatusTooMany and StatusTooOften: a limit of ours.
	StatusTooMany
	StatusTooOften
	// StatusWrongOpener: the peer has the higher id and must not open.
	StatusWrongOpener
	// StatusMalformed: a frame too long, cut, or that does not decode.
	StatusMalformed
	// StatusSlow: a deadline passed, or too much was left unread.
	StatusSlow
	// StatusFault: the engine said that the peer broke the protocol.
	StatusFault
	// StatusGone: the connection broke.
	StatusGone
	// StatusResource: libp2p's resource manager refused.
	StatusResource
	statusCount
)

var statusWords = [statusCount]string{
	"ok", "closed", "replaced", "too_many", "too_often", "wrong_opener", "malformed", "slow", "fault", "gone", "resource",
}

// String is the status as logs and metrics show it.
func (s Status) String() string {
	if s < statusCount {
		return statusWords[s]
	}
	return "unknown"
}

func (s Status) resetCode() network.StreamErrorCode {
	return network.StreamErrorCode(0x7470_0000 + uint32(s)) // "tp"
}
