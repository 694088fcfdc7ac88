package swapnet

import (
	"errors"
	"io"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/tallystick/tally/protocols/internal/wire"
	"github.com/tallystick/tally/swap"
)

// Status is how a stream ended: every branch of the handlers returns one, and
// one place counts and logs it.
type Status uint8

const (
	// StatusOK: the peer closed the stream between two frames, or its one cheque
	// of beta1 was booked.
	StatusOK Status = iota
	// StatusGone: the connection was lost, or the peer reset the stream.
	StatusGone
	// StatusReplaced: a newer session with the same peer took over.
	StatusReplaced
	// StatusClosed: we ended it: Close, or Disconnect.
	StatusClosed
	// StatusTieBreak: both opened at once, and the other stream is kept.
	StatusTieBreak
	// StatusDuplicate: the peer already has a stream of this direction, or a
	// session of a preferred protocol.
	StatusDuplicate
	// StatusTooMany: no room in Limits.Streams or Limits.StreamsPerPeer.
	StatusTooMany
	// StatusTooOften: the peer opens more streams than Limits.SessionsPerSecond.
	StatusTooOften
	// StatusResource: libp2p's resource manager said no.
	StatusResource
	// StatusOpenFailed: we could not open a stream.
	StatusOpenFailed
	// StatusHandshakeTimeout: no handshake within its time.
	StatusHandshakeTimeout
	// StatusSlow: a frame or a write took longer than Limits.FrameTimeout.
	StatusSlow
	// StatusOversize: a frame above the limit of its protocol.
	StatusOversize
	// StatusTruncated: the stream ended inside a frame.
	StatusTruncated
	// StatusGarbage: bytes that are no frame or no message.
	StatusGarbage
	// StatusMalformed: a message that decodes and makes no sense.
	StatusMalformed
	// StatusUnexpected: a message out of its place: a cheque before the
	// handshake, or a second handshake.
	StatusUnexpected
	// StatusOtherLayout: a beta1 cheque in go-waku's layout.
	StatusOtherLayout
	// StatusSignature: the book found a signature that does not hold.
	StatusSignature
	// StatusRefused: the book refused the session or the cheque.
	StatusRefused
	// StatusInternal: our own side failed.
	StatusInternal

	numStatus
)

var statusNames = [numStatus]string{
	"ok", "gone", "replaced", "closed", "tie_break", "duplicate", "too_many", "too_often", "resource", "open_failed",
	"handshake_timeout", "slow", "oversize", "truncated", "garbage", "malformed", "unexpected", "other_layout",
	"signature", "refused", "internal",
}

// String is the status as metrics and logs name it.
func (s Status) String() string {
	if s < numStatus {
		return statusNames[s]
	}
	return "?"
}

// resetCode is what the peer is told of a stream that we reset.
func (s Status) resetCode() network.StreamErrorCode {
	switch s {
	case StatusReplaced, StatusTieBreak, StatusDuplicate:
		return network.StreamSupplanted
	case StatusClosed:
		return network.StreamShutdown
	case StatusTooMany, StatusResource:
		return network.StreamResourceLimitExceeded
	case StatusTooOften:
		return network.StreamRateLimited
	case StatusHandshakeTimeout, StatusSlow, StatusOversize, StatusTruncated, StatusGarbage, StatusMalformed,
		StatusUnexpected, StatusOtherLayout, StatusSignature:
		return network.StreamProtocolViolation
	default:
		return network.StreamNoError
	}
}

// faulty tells that the peer broke the protocol: worth a warning.
func (s Status) faulty() bool { return s.resetCode() == network.StreamProtocolViolation }

// readStatus names an error of the frame reader or of a decoder.
func readStatus(err error) Status {
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return StatusOK
	case errors.Is(err, wire.ErrFrameTooLarge):
		return StatusOversize
	case errors.Is(err, wire.ErrTruncated):
		return StatusTruncated
	case errors.Is(err, wire.ErrGarbage):
		return StatusGarbage
	case errors.Is(err, wire.ErrTimeout):
		return StatusSlow
	case errors.Is(err, errOtherLayout):
		return StatusOtherLayout
	case errors.Is(err, swap.ErrMalformed):
		return StatusMalformed
	default:
		return StatusGone
	}
}

// refusalOf translates an error of the book for the peer, and says what becomes
// of the stream.
func refusalOf(err error) (swap.RefusalCode, Status) {
	switch code := swap.RefusalFor(err); code {
	case swap.RefusalMalformed:
		return code, StatusMalformed
	case swap.RefusalSignature:
		return code, StatusSignature
	case swap.RefusalInternal:
		return code, StatusInternal
	default:
		return code, StatusRefused
	}
}

// Stats are the counters of a service since it was made.
type Stats struct {
	// Sessions is the number of sessions that the book has now, Streams the
	// number of streams.
	Sessions, Streams int
	// Ended counts streams by how they ended.
	Ended map[protocol.ID]map[Status]uint64
	// FramesIn and FramesOut count frames, handshakes included.
	FramesIn, FramesOut uint64
	// Superseded counts cheques that were dropped unverified because a higher
	// one of the same peer was already there.
	Superseded uint64
	// Throttled counts frames that had to wait for Limits.FramesPerSecond.
	Throttled uint64
	// Refused counts messages that the book refused with a reason.
	Refused uint64
	// Unsupported counts refund requests and refunds, which this version
	// answers with a refusal, and Unknown frames of a kind that it does not know.
	Unsupported, Unknown uint64
	// OpenDropped counts peers that found Limits.OpenQueue full.
	OpenDropped uint64
}

// counters are the live form of Stats.
type counters struct {
	ended [3][numStatus]atomic.Uint64

	framesIn, framesOut, superseded, throttled, refused, unsupported, unknown, openDropped atomic.Uint64
}

var protocols = [...]protocol.ID{ProtocolNative, ProtocolAlpha1, ProtocolBeta1}

func (c *counters) end(id protocol.ID, st Status) {
	for i, p := range protocols {
		if p == id {
			c.ended[i][st].Add(1)
		}
	}
}

// Stats returns the counters.
func (s *Service) Stats() Stats {
	c := &s.count
	out := Stats{
		Ended:    make(map[protocol.ID]map[Status]uint64, len(protocols)),
		FramesIn: c.framesIn.Load(), FramesOut: c.framesOut.Load(),
		Superseded: c.superseded.Load(), Throttled: c.throttled.Load(), Refused: c.refused.Load(),
		Unsupported: c.unsupported.Load(), Unknown: c.unknown.Load(), OpenDropped: c.openDropped.Load(),
	}
	for i, p := range protocols {
		out.Ended[p] = make(map[Status]uint64)
		for st := range numStatus {
			if n := c.ended[i][st].Load(); n > 0 {
				out.Ended[p][st] = n
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out.Streams = s.streams
	for _, ps := range s.peers {
		if ps.tab != nil {
			out.Sessions++
		}
	}
	return out
}
