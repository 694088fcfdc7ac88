package bench

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/libp2p/go-libp2p/core/protocol"
)

// Protocols of the measured streams. The first byte of a stream's first frame
// does not matter; what a handler does with it is the benchmark's.
const (
	protocolFlow protocol.ID = "/tally/bench/flow/1.0.0"
	protocolEcho protocol.ID = "/tally/bench/echo/1.0.0"
	// protocolRaw is the echo without accounting.
	protocolRaw protocol.ID = "/tally/bench/raw/1.0.0"
)

const (
	// bodySize is the size of a message; its length takes one more byte.
	bodySize  = 100
	frameSize = 1 + bodySize
	// readBuffer of the measured streams, with and without accounting.
	readBuffer = 64 << 10

	// first bytes of a body
	bodyMore byte = 0
	bodyLast byte = 1 // of a round
)

// frames returns n frames in one piece.
func frames(n int) []byte {
	b := make([]byte, n*frameSize)
	for i := range n {
		b[i*frameSize] = bodySize
	}
	return b
}

// setLast marks the last frame of b as the last of a round, or not.
func setLast(b []byte, last bool) {
	mark := bodyMore
	if last {
		mark = bodyLast
	}
	b[len(b)-bodySize] = mark
}

var errFrame = errors.New("bench: not a frame of the benchmark")

// reader reads frames without a copy.
type reader struct{ br *bufio.Reader }

func newReader(r io.Reader, size int) reader { return reader{bufio.NewReaderSize(r, size)} }

// next returns the first byte of the next body.
func (r reader) next() (mark byte, err error) {
	b, err := r.br.Peek(frameSize)
	if err != nil {
		return 0, err
	}
	if b[0] != bodySize {
		return 0, fmt.Errorf("%w: length %d", errFrame, b[0])
	}
	mark = b[1]
	_, err = r.br.Discard(frameSize)
	return mark, err
}

// buffered tells whether another whole frame is here already.
func (r reader) buffered() bool { return r.br.Buffered() >= frameSize }
