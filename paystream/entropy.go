package paystream

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"sync"
)

// entropy is random bytes for what must not be guessed, or met twice, and is no secret:
// ids of sessions and packets, pauses. It is the key stream of AES under one random key,
// because what the system gives costs more than a packet can.
type entropy struct {
	mu     sync.Mutex
	stream cipher.Stream // nil before the first draw
	buf    [4096]byte    // zero where it was drawn
	left   int
}

// draw fills p, of at most 16 bytes.
func (e *entropy) draw(p []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.left < len(p) {
		e.fill()
	}
	at := len(e.buf) - e.left
	copy(p, e.buf[at:])
	clear(e.buf[at : at+len(p)])
	e.left -= len(p)
}

// fill is called under mu.
func (e *entropy) fill() {
	if e.stream == nil {
		var key [32]byte
		var first [aes.BlockSize]byte
		rand.Read(key[:]) // never fails
		block, err := aes.NewCipher(key[:])
		if err != nil {
			panic(err) // a key of 32 bytes is one
		}
		e.stream = cipher.NewCTR(block, first[:])
	}
	clear(e.buf[:])
	e.stream.XORKeyStream(e.buf[:], e.buf[:])
	e.left = len(e.buf)
}

func (e *entropy) id() (id [16]byte) {
	e.draw(id[:])
	return id
}

func (e *entropy) uint32() uint32 {
	var b [4]byte
	e.draw(b[:])
	return binary.LittleEndian.Uint32(b[:])
}
