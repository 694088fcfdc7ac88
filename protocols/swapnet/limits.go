package swapnet

import (
	"fmt"
	"time"

	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"

	"github.com/libp2p/go-libp2p/core/protocol"
)

// The protocols of swap, preferred first.
const (
	// ProtocolNative is ours: acks, statements, recovery, backed cheques.
	ProtocolNative protocol.ID = "/tally/swap/1.0.0"
	// ProtocolAlpha1 is the seed's.
	ProtocolAlpha1 protocol.ID = "/vac/waku/swap/2.0.0-alpha1"
	// ProtocolBeta1 is nwaku's, accepted inbound: one cheque a stream.
	ProtocolBeta1 protocol.ID = "/vac/waku/swap/2.0.0-beta1"

	// ServiceName is what libp2p's resource manager calls us.
	ServiceName = "tally.swap"
)

// Frame sizes, in bytes without the length. They are part of the protocol: a
// longer frame resets the stream before anything is allocated for it.
const (
	// MaxNativeFrame holds the largest message there can be, a handshake with
	// both cheques and both acks in full: 8,170 bytes where every field is at
	// its bound (TestLargestHandshakeFits), rounded up to a power of two.
	MaxNativeFrame = 8 << 10
	// MaxAlpha1Frame is for alpha1 and beta1. The seed gives none; its messages
	// need fewer than 150 bytes.
	MaxAlpha1Frame = 4 << 10

	// readAhead is the buffer of the frame reader. With the frame it is what a
	// stream reserves of libp2p's memory scope.
	readAhead = 4 << 10
)

// Limits bound what peers can make us hold or do. A zero field takes its
// default.
type Limits struct {
	// Streams is the number of swap streams in all, both ways. One stream is one
	// goroutine and about 12 KiB. Default 4096.
	Streams int
	// StreamsPerPeer covers a session, its successor while both shake hands, a
	// companion of alpha1 and a cheque of beta1. Default 4.
	StreamsPerPeer int
	// Handshakes is the number under way at once: each may cost four signature
	// checks. A further one waits, within its own time. Default 64.
	Handshakes int
	// Openers is the number of streams that we open at once. Default 16.
	Openers int
	// OpenQueue is the number of peers that wait to be opened to; a further one
	// is left to open to us. Default 4096.
	OpenQueue int
	// SessionsPerSecond and SessionBurst bound the streams that one peer may
	// open to us: a token bucket. Stream after stream with a new handshake would
	// cost signature checks past FramesPerSecond. Defaults 2 and 16.
	SessionsPerSecond float64
	SessionBurst      int
	// FramesPerSecond and FrameBurst bound the frames that one session reads: a
	// token bucket. Beyond it we read more slowly and never disconnect, so that
	// an honest burst is only late. 2000 signature checks are an eighth of one
	// core. Defaults 2000 and 256.
	FramesPerSecond float64
	FrameBurst      int
	// Inbox is the number of frames read and not yet booked in one session; the
	// reader then waits. Of the cheques among them only the highest is booked.
	// Default 64.
	Inbox int
	// QueuedBytes is what one session may hold to be written. A further Send
	// waits. Default 64 KiB, eight of the largest frames.
	QueuedBytes int

	// HandshakeTimeout is for both handshakes together, from the stream on, and
	// for opening one. Default 5 s.
	HandshakeTimeout time.Duration
	// FrameTimeout is for the rest of a frame once it began, and for one write.
	// An idle stream may stay open for ever. Default 10 s.
	FrameTimeout time.Duration
	// OpenGrace is how long the side that was dialled waits for the other to
	// open. Default 2 s.
	OpenGrace time.Duration
	// Overlap is how long after a session began a stream of the other direction
	// still counts as opened at the same time. Later, and on another connection,
	// it is a reconnect. Default 5 s, the longest that a handshake takes.
	Overlap time.Duration
	// RetryMin and RetryMax bound the pause before we open again where a session
	// failed or ended soon; it doubles from one to the other. Defaults 1 s and
	// 1 min.
	RetryMin, RetryMax time.Duration
	// DuplicateWait is how long a second stream of the same direction waits for
	// the end of the first, which may already be on its way. Default 250 ms.
	DuplicateWait time.Duration
}

// DefaultLimits returns the defaults of every field.
func DefaultLimits() Limits { return Limits{}.Complete() }

// Complete returns l with the defaults in place of zero fields.
func (l Limits) Complete() Limits {
	setInt := func(field *int, def int) {
		if *field == 0 {
			*field = def
		}
	}
	setFloat := func(field *float64, def float64) {
		if *field == 0 {
			*field = def
		}
	}
	setTime := func(field *time.Duration, def time.Duration) {
		if *field == 0 {
			*field = def
		}
	}
	setInt(&l.Streams, 4096)
	setInt(&l.StreamsPerPeer, 4)
	setInt(&l.Handshakes, 64)
	setInt(&l.Openers, 16)
	setInt(&l.OpenQueue, 4096)
	setFloat(&l.SessionsPerSecond, 2)
	setInt(&l.SessionBurst, 16)
	setFloat(&l.FramesPerSecond, 2000)
	setInt(&l.FrameBurst, 256)
	setInt(&l.Inbox, 64)
	setInt(&l.QueuedBytes, 8*MaxNativeFrame)
	setTime(&l.HandshakeTimeout, 5*time.Second)
	setTime(&l.FrameTimeout, 10*time.Second)
	setTime(&l.OpenGrace, 2*time.Second)
	setTime(&l.Overlap, 5*time.Second)
	setTime(&l.RetryMin, time.Second)
	setTime(&l.RetryMax, time.Minute)
	setTime(&l.DuplicateWait, 250*time.Millisecond)
	return l
}

// Validate reports limits under which no session could live.
func (l Limits) Validate() error {
	switch {
	case l.Streams < 1, l.StreamsPerPeer < 1, l.Handshakes < 1, l.Openers < 1, l.OpenQueue < 1, l.Inbox < 1:
		return fmt.Errorf("swapnet: limits: every number must be at least 1: %+v", l)
	case l.SessionBurst < 1, l.FrameBurst < 1, l.SessionsPerSecond < 0, l.FramesPerSecond <= 0:
		return fmt.Errorf("swapnet: limits: rates must be above 0 and bursts at least 1: %+v", l)
	case l.QueuedBytes < MaxNativeFrame:
		return fmt.Errorf("swapnet: limits: queued bytes %d are below one frame, %d", l.QueuedBytes, MaxNativeFrame)
	case min(l.HandshakeTimeout, l.FrameTimeout, l.OpenGrace, l.Overlap, l.RetryMin, l.DuplicateWait) < 0, l.RetryMax < l.RetryMin:
		return fmt.Errorf("swapnet: limits: times must not be negative, and retry max not below retry min: %+v", l)
	}
	return nil
}

// ApplyLimits adds swap's limits to those of a host that we build ourselves. The
// semaphores of Limits hold either way: these come first on such a host, and
// stop a flood before a goroutine starts.
func ApplyLimits(cfg *rcmgr.ScalingLimitConfig) {
	streams := rcmgr.BaseLimit{Streams: 4096, StreamsInbound: 4096, StreamsOutbound: 4096, Memory: 4096 * (readAhead + MaxNativeFrame)}
	grow := rcmgr.BaseLimitIncrease{Streams: 1024, StreamsInbound: 1024, StreamsOutbound: 1024, Memory: 1024 * (readAhead + MaxNativeFrame)}
	peer := rcmgr.BaseLimit{Streams: 8, StreamsInbound: 6, StreamsOutbound: 6, Memory: 8 * (readAhead + MaxNativeFrame)}
	cfg.AddServiceLimit(ServiceName, streams, grow)
	cfg.AddServicePeerLimit(ServiceName, peer, rcmgr.BaseLimitIncrease{})
	for _, id := range [...]protocol.ID{ProtocolNative, ProtocolAlpha1, ProtocolBeta1} {
		cfg.AddProtocolLimit(id, streams, grow)
		cfg.AddProtocolPeerLimit(id, peer, rcmgr.BaseLimitIncrease{})
	}
}
