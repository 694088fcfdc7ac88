// Package arena keeps bytes that are needed for one round of work, and are all let go
// together: one piece of memory for many, and used again for the next round.
package arena

// Size is how much memory an Arena takes at once. What is longer has a piece of its own.
const Size = 64 << 10

// keptSize bounds the memory that stays for the next round.
const keptSize = 2 * Size

// Arena is the memory of one round. The zero Arena is empty.
type Arena struct{ buf []byte }

// Keep returns a copy of b that is good until Reset; nil where it is empty. What an
// earlier piece of memory holds stays where it is.
func (a *Arena) Keep(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	if cap(a.buf)-len(a.buf) < len(b) {
		a.buf = make([]byte, 0, max(Size, len(b)))
	}
	n := len(a.buf)
	a.buf = append(a.buf, b...)
	return a.buf[n:len(a.buf):len(a.buf)]
}

// Full reports whether the next bytes may need another piece of memory.
func (a *Arena) Full() bool { return len(a.buf) >= Size }

// Reset lets go what was kept.
func (a *Arena) Reset() {
	if cap(a.buf) > keptSize {
		a.buf = nil
	}
	a.buf = a.buf[:0]
}
