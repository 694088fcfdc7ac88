package wire

import (
	"errors"
	"fmt"
)

var (
	// ErrFrameTooLarge: the announced length, or the message to be written, is
	// above the limit of this reader or writer. Nothing was allocated for it.
	ErrFrameTooLarge = errors.New("wire: frame too large")

	// ErrTruncated: the stream ended inside a frame. An end between two frames
	// is io.EOF.
	ErrTruncated = errors.New("wire: frame truncated")

	// ErrGarbage: the length is no minimal uvarint, or the frame does not
	// decode as the message asked for.
	ErrGarbage = errors.New("wire: frame is garbage")

	// ErrTimeout: the first byte of a frame did not come within the idle limit,
	// or the rest of it not within the frame limit, or the peer did not take
	// our bytes in time.
	ErrTimeout = errors.New("wire: frame deadline passed")
)

// SizeError is an ErrFrameTooLarge with its figures.
type SizeError struct {
	Size uint64 // length announced or needed, bytes
	Max  int    // limit, bytes
}

func (e *SizeError) Error() string {
	return fmt.Sprintf("%v: %d bytes, limit %d", ErrFrameTooLarge, e.Size, e.Max)
}

// Is makes errors.Is(err, ErrFrameTooLarge) hold.
func (e *SizeError) Is(target error) bool { return target == ErrFrameTooLarge }

// timeout is what net.Error, os.ErrDeadlineExceeded and the muxers' own
// deadline errors have in common.
type timeout interface{ Timeout() bool }

// streamError names err by op, and marks a passed deadline as ErrTimeout while
// the cause stays reachable.
func streamError(op string, err error) error {
	if t, ok := errors.AsType[interface {
		error
		timeout
	}](err); ok && t.Timeout() {
		return fmt.Errorf("wire: %s: %w: %w", op, ErrTimeout, err)
	}
	return fmt.Errorf("wire: %s: %w", op, err)
}
