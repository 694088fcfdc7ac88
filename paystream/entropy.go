package paystream

import (
	"crypto/rand"
	"sync"
)

// entropy is random bytes drawn in pieces, because a system call for each packet
// costs more than the packet.
type entropy struct {
	mu   sync.Mutex
	buf  [4096]byte
	left int
}

func (e *entropy) id() (id [16]byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.left < 16 {
		rand.Read(e.buf[:]) // never fails
		e.left = len(e.buf)
	}
	at := len(e.buf) - e.left
	copy(id[:], e.buf[at:])
	clear(e.buf[at : at+16])
	e.left -= 16
	return id
}
