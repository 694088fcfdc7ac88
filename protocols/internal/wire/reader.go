package wire

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/multiformats/go-varint"
	"google.golang.org/protobuf/proto"
)

const (
	// DefaultTimeout is how long one frame may take from its first byte to its
	// last, and how long a Write may take. A frame is at most a few hundred KiB;
	// a peer that needs longer is too slow to serve or is holding us.
	DefaultTimeout = 10 * time.Second

	// readAhead is the buffer of a Reader, bytes. Frames of up to this size are
	// handed out without a copy, and most of ours are far smaller.
	readAhead = 4 << 10

	// wideAhead is the buffer of a wide reader: what the muxer has at once of a
	// stream that is never idle for long.
	wideAhead = 64 << 10

	// growStep is how far, in bytes, memory for a long frame runs ahead of the
	// bytes that have arrived: a peer that announces a large frame and sends
	// nothing costs no more than this.
	growStep = 64 << 10
)

// ReadStream is the side of a network.Stream that a Reader uses.
type ReadStream interface {
	io.Reader
	SetReadDeadline(time.Time) error
}

// buffers are shared by all Readers: a long-lived stream that idles holds none.
var buffers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, readAhead) }}

// wide are the buffers of readers with NewWideReader.
var wide = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, wideAhead) }}

// Reader reads frames from one stream. It reads ahead: nothing else may read
// the stream. One goroutine at a time. After the first error every call returns
// that error.
type Reader struct {
	s       ReadStream
	pool    *sync.Pool
	br      *bufio.Reader // nil while a long-lived stream idles
	max     int
	timeout time.Duration // of one frame, from its first byte
	idle    time.Duration // until the first byte; 0 is for ever
	armed   bool          // a read deadline is set on s
	long    []byte        // memory of frames above readAhead
	first   [1]byte       // byte that ended an idle time, and is not in br yet
	err     error
}

// rest is the stream behind the byte that ended an idle time.
type rest struct{ r *Reader }

func (s rest) Read(p []byte) (int, error) { return s.r.s.Read(p) }

// await waits for the first byte of a frame on a long-lived stream without
// holding a buffer, and takes one when it is there.
func (r *Reader) await() error {
	if r.br != nil {
		r.br.Reset(nil)
		r.pool.Put(r.br)
		r.br = nil
	}
	r.long = nil
	if _, err := io.ReadFull(r.s, r.first[:]); err != nil {
		return err
	}
	r.br = r.pool.Get().(*bufio.Reader)
	r.br.Reset(io.MultiReader(bytes.NewReader(r.first[:]), rest{r}))
	_, err := r.br.Peek(1)
	return err
}

// NewReader returns a Reader that refuses frames of more than maxFrame bytes.
// Each frame has DefaultTimeout for its first byte and DefaultTimeout for the
// rest; see SetTimeout.
func NewReader(s ReadStream, maxFrame int) *Reader {
	return &Reader{
		s:       s,
		pool:    &buffers,
		br:      bufio.NewReaderSize(s, readAhead),
		max:     maxFrame,
		timeout: DefaultTimeout,
		idle:    DefaultTimeout,
	}
}

// NewWideReader is NewReader with a buffer of 64 KiB, for the few streams that
// carry a thousand frames at a time. It holds it only while the stream is busy,
// where SetTimeout allows to be idle for ever.
func NewWideReader(s ReadStream, maxFrame int) *Reader {
	r := NewReader(s, maxFrame)
	r.pool, r.br = &wide, bufio.NewReaderSize(s, wideAhead)
	return r
}

// SetTimeout changes the limits from the next frame on: idle until its first
// byte, frame from there to its last. Zero is no limit; a long-lived stream has
// idle 0, and no stream should have frame 0.
func (r *Reader) SetTimeout(idle, frame time.Duration) {
	r.idle, r.timeout = idle, frame
}

// Buffered tells whether bytes of a further frame are already here, so that a
// handler may finish the burst before it flushes its answers.
func (r *Reader) Buffered() bool { return r.buffered() > 0 }

func (r *Reader) buffered() int {
	if r.br == nil {
		return 0
	}
	return r.br.Buffered()
}

// ReadMsg reads one frame into m, which it resets first. Unknown fields are
// dropped. Errors: io.EOF at a clean end between frames, else ErrFrameTooLarge,
// ErrTruncated, ErrGarbage, ErrTimeout, or what the stream says.
func (r *Reader) ReadMsg(m proto.Message) error {
	frame, err := r.ReadFrame()
	if err != nil {
		return err
	}
	if err := Unmarshal(frame, m); err != nil {
		return r.fail(err)
	}
	return nil
}

// Unmarshal decodes one whole frame into m, which it resets first, and drops
// unknown fields. Its error is an ErrGarbage.
func Unmarshal(frame []byte, m proto.Message) error {
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(frame, m); err != nil {
		return fmt.Errorf("%w: %w", ErrGarbage, err)
	}
	return nil
}

// ReadFrame reads one frame and returns its bytes without the length. They
// belong to the Reader and are good until its next call. Errors as ReadMsg.
func (r *Reader) ReadFrame() ([]byte, error) {
	if r.err != nil {
		return nil, r.err
	}
	if r.buffered() == 0 {
		if err := r.arm(r.idle); err != nil {
			return nil, r.fail(err)
		}
		if err := r.begin(); err != nil {
			if errors.Is(err, io.EOF) {
				return nil, r.fail(io.EOF)
			}
			return nil, r.fail(streamError("read frame", err))
		}
	}
	if frame, ok := r.whole(); ok {
		return frame, nil // came with earlier bytes: no deadline to set
	}
	if err := r.arm(r.timeout); err != nil {
		return nil, r.fail(err)
	}
	size, err := varint.ReadUvarint(r.br)
	if err != nil {
		return nil, r.fail(lengthError(err))
	}
	if size > uint64(r.max) {
		return nil, r.fail(&SizeError{Size: size, Max: r.max})
	}
	frame, err := r.body(int(size))
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("%w: %d bytes announced", ErrTruncated, size)
		} else {
			err = streamError("read frame", err)
		}
		return nil, r.fail(err)
	}
	return frame, nil
}

// begin waits for the first byte of a frame.
func (r *Reader) begin() error {
	if r.idle == 0 {
		return r.await()
	}
	_, err := r.br.Peek(1)
	return err
}

// whole returns the next frame if all of it is buffered. Whatever is wrong with
// it is left for the slow path to say.
func (r *Reader) whole() ([]byte, bool) {
	head, err := r.br.Peek(min(r.br.Buffered(), varint.MaxLenUvarint63))
	if err != nil {
		return nil, false
	}
	size, n, err := varint.FromUvarint(head)
	if err != nil || size > uint64(r.max) || size > uint64(r.br.Buffered()-n) {
		return nil, false
	}
	frame, err := r.br.Peek(n + int(size))
	if err != nil {
		return nil, false
	}
	if _, err := r.br.Discard(len(frame)); err != nil {
		return nil, false
	}
	return frame[n:], true
}

// body reads size bytes, which the caller has checked against the limit.
func (r *Reader) body(size int) ([]byte, error) {
	if size <= r.br.Size() {
		frame, err := r.br.Peek(size)
		if err != nil {
			return nil, err
		}
		_, err = r.br.Discard(size)
		return frame, err
	}
	buf := r.long[:0]
	for len(buf) < size {
		step := min(size-len(buf), growStep)
		if cap(buf)-len(buf) < step {
			grown := make([]byte, len(buf), min(size, max(2*cap(buf), len(buf)+step)))
			copy(grown, buf)
			buf = grown
		}
		n, err := io.ReadFull(r.br, buf[len(buf):len(buf)+step])
		buf = buf[:len(buf)+n]
		if err != nil {
			return nil, err
		}
	}
	r.long = buf
	return buf, nil
}

// arm sets the read deadline d from now; 0 takes it away.
func (r *Reader) arm(d time.Duration) error {
	if d == 0 {
		if !r.armed {
			return nil
		}
		r.armed = false
		return deadlineError(r.s.SetReadDeadline(time.Time{}))
	}
	r.armed = true
	return deadlineError(r.s.SetReadDeadline(time.Now().Add(d)))
}

func (r *Reader) fail(err error) error {
	r.err = err
	r.long = nil
	return err
}

func deadlineError(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("wire: set deadline: %w", err)
}

func lengthError(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: in its length", ErrTruncated)
	case errors.Is(err, varint.ErrOverflow), errors.Is(err, varint.ErrNotMinimal):
		return fmt.Errorf("%w: length: %w", ErrGarbage, err)
	default:
		return streamError("read frame length", err)
	}
}
