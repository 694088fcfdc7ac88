package testnet

import (
	"context"
	"encoding/binary"
	"sync"

	libp2phost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/tallystick/tally/protocols/swapnet"
)

// FrameKind names a frame of the swap protocol as it stands on the wire.
type FrameKind string

// Kinds of frame, by the number of their field.
const (
	FrameHandshake FrameKind = "handshake"
	FrameCheque    FrameKind = "cheque"
	FrameAck       FrameKind = "ack"
	FrameStatement FrameKind = "statement"
	FrameRefusal   FrameKind = "refusal"
	FrameOther     FrameKind = "other"
)

var frameKinds = [...]FrameKind{1: FrameHandshake, 2: FrameCheque, 3: FrameAck, 4: FrameStatement, 5: FrameRefusal}

// Frame is one frame that a peer is about to send.
type Frame struct {
	To   peer.ID
	Kind FrameKind
}

// Fate is what becomes of a frame.
type Fate int

const (
	// Pass lets it through.
	Pass Fate = iota
	// Drop loses it; the stream goes on.
	Drop
	// Twice sends it two times.
	Twice
	// Cut ends the connection instead of sending it.
	Cut
	// CutAfter sends it and then ends the connection.
	CutAfter
)

// tap is the wire of one peer: every frame of /tally/swap/1.0.0 that it sends
// goes past hook.
type tap struct {
	// mu guards the field below.
	mu   sync.Mutex
	hook func(Frame) Fate
}

func (t *tap) set(hook func(Frame) Fate) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.hook = hook
}

func (t *tap) fate(f Frame) Fate {
	t.mu.Lock()
	hook := t.hook
	t.mu.Unlock()
	if hook == nil {
		return Pass
	}
	return hook(f)
}

// tappedHost is a host whose swap streams go past a tap.
type tappedHost struct {
	libp2phost.Host
	tap *tap
}

func (h tappedHost) NewStream(ctx context.Context, p peer.ID, ids ...protocol.ID) (network.Stream, error) {
	s, err := h.Host.NewStream(ctx, p, ids...)
	if err != nil || s.Protocol() != swapnet.ProtocolNative {
		return s, err
	}
	return &tappedStream{Stream: s, tap: h.tap}, nil
}

func (h tappedHost) SetStreamHandler(id protocol.ID, fn network.StreamHandler) {
	if id == swapnet.ProtocolNative {
		inner := fn
		fn = func(s network.Stream) { inner(&tappedStream{Stream: s, tap: h.tap}) }
	}
	h.Host.SetStreamHandler(id, fn)
}

// tappedStream cuts what is written into frames. One goroutine writes at a time.
type tappedStream struct {
	network.Stream
	tap  *tap
	rest []byte // of a frame that is not whole yet
}

func (s *tappedStream) Write(b []byte) (int, error) {
	s.rest = append(s.rest, b...)
	var out []byte
	for {
		n, k := binary.Uvarint(s.rest)
		if k <= 0 || uint64(len(s.rest)-k) < n {
			break
		}
		frame := s.rest[:k+int(n)]
		s.rest = s.rest[len(frame):]
		switch s.tap.fate(Frame{To: s.Conn().RemotePeer(), Kind: kindOf(frame[k:])}) {
		case Drop:
		case Twice:
			out = append(append(out, frame...), frame...)
		case Cut:
			_, _ = s.Stream.Write(out)
			return 0, s.cut()
		case CutAfter:
			_, _ = s.Stream.Write(append(out, frame...))
			_ = s.CloseWrite() // what was written is not lost in a reset
			return 0, s.cut()
		default:
			out = append(out, frame...)
		}
	}
	if len(out) > 0 {
		if _, err := s.Stream.Write(out); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// cut ends the connection under the stream.
func (s *tappedStream) cut() error {
	go func() { _ = s.Conn().Close() }() // ends with the connection; its close waits for streams
	return network.ErrReset
}

func kindOf(frame []byte) FrameKind {
	n, _, k := protowire.ConsumeTag(frame)
	if k < 0 || int(n) >= len(frameKinds) || n < 1 {
		return FrameOther
	}
	return frameKinds[n]
}
