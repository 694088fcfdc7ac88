package endpoint

// windowSize is how far sequences of one connection may be out of order.
const windowSize = 1024

// window knows which sequences have been seen, so that a packet is taken once.
// What lies further back than its size counts as seen.
type window struct {
	top  uint64 // the highest seen
	bits [windowSize / 64]uint64
}

// see marks a sequence, and reports whether it is new.
func (w *window) see(seq uint64) bool {
	if seq > w.top {
		if seq-w.top >= windowSize {
			clear(w.bits[:])
		} else {
			for s := w.top + 1; s < seq; s++ {
				w.bits[s/64%uint64(len(w.bits))] &^= 1 << (s % 64)
			}
		}
		w.top = seq
	} else if w.top-seq >= windowSize || w.bits[seq/64%uint64(len(w.bits))]&(1<<(seq%64)) != 0 {
		return false
	}
	w.bits[seq/64%uint64(len(w.bits))] |= 1 << (seq % 64)
	return true
}
