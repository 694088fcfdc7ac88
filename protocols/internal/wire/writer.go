package wire

import (
	"fmt"
	"io"
	"time"

	"github.com/multiformats/go-varint"
	"google.golang.org/protobuf/proto"
)

// flushAt is the number of buffered bytes at which a Writer flushes by itself:
// bounds what one stream holds, and is past the size where a larger Write is
// any faster.
const flushAt = 64 << 10

// WriteStream is the side of a network.Stream that a Writer uses.
type WriteStream interface {
	io.Writer
	SetWriteDeadline(time.Time) error
}

// Writer collects frames and hands them to the stream in one Write. One
// goroutine at a time. After the first error of the stream every call returns
// that error.
type Writer struct {
	s       WriteStream
	max     int
	timeout time.Duration
	buf     []byte
	written int64
	err     error
}

// NewWriter returns a Writer that refuses frames of more than maxFrame bytes,
// the same limit that the other side reads with.
func NewWriter(s WriteStream, maxFrame int) *Writer {
	return &Writer{s: s, max: maxFrame, timeout: DefaultTimeout}
}

// SetTimeout changes how long one Write may take, from the next on. Zero is no
// limit.
func (w *Writer) SetTimeout(d time.Duration) { w.timeout = d }

// WriteMsg adds m as one frame. It stays in the buffer until Flush, or until
// the buffer passes 64 KiB. A message above the limit is refused with
// ErrFrameTooLarge and leaves the buffer as it was.
func (w *Writer) WriteMsg(m proto.Message) error {
	if w.err != nil {
		return w.err
	}
	size := proto.Size(m)
	if size > w.max {
		return &SizeError{Size: uint64(size), Max: w.max}
	}
	mark := len(w.buf)
	buf := appendLength(w.buf, size)
	buf, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(buf, m)
	if err != nil {
		w.buf = w.buf[:mark]
		return fmt.Errorf("wire: encode frame: %w", err)
	}
	w.buf = buf
	return w.flushFull()
}

// WriteFrame adds frame, already encoded, behind its length. As WriteMsg.
func (w *Writer) WriteFrame(frame []byte) error {
	if w.err != nil {
		return w.err
	}
	if len(frame) > w.max {
		return &SizeError{Size: uint64(len(frame)), Max: w.max}
	}
	w.buf = append(appendLength(w.buf, len(frame)), frame...)
	return w.flushFull()
}

// Flush hands all that is buffered to the stream in one Write, under the
// deadline. What the stream then reports as taken may still be lost: only an
// answer proves arrival.
func (w *Writer) Flush() error {
	if w.err != nil {
		return w.err
	}
	if len(w.buf) == 0 {
		return nil
	}
	if w.timeout > 0 {
		if err := w.s.SetWriteDeadline(time.Now().Add(w.timeout)); err != nil {
			return w.fail(deadlineError(err))
		}
	}
	n, err := w.s.Write(w.buf)
	w.written += int64(n)
	if err != nil {
		return w.fail(streamError("write", err))
	}
	w.buf = w.buf[:0]
	if cap(w.buf) > 2*flushAt {
		w.buf = nil // one long frame must not keep its memory for good
	}
	return nil
}

// Buffered is the number of bytes that wait for Flush.
func (w *Writer) Buffered() int { return len(w.buf) }

// Written is the number of bytes that the stream has taken. Zero after a failed
// Flush means that nothing of the frames has left us.
func (w *Writer) Written() int64 { return w.written }

func (w *Writer) flushFull() error {
	if len(w.buf) < flushAt {
		return nil
	}
	return w.Flush()
}

func (w *Writer) fail(err error) error {
	w.err = err
	w.buf = nil
	return err
}

func appendLength(buf []byte, size int) []byte {
	var head [varint.MaxLenUvarint63]byte
	n := varint.PutUvarint(head[:], uint64(size))
	return append(buf, head[:n]...)
}
