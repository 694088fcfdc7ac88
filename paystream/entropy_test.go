package paystream

import "testing"

// No two draws are alike, of one source or of two, over many fills; and all bits move.
func TestEntropy(t *testing.T) {
	var a, b entropy
	seen := make(map[[16]byte]bool)
	var ones, zeros [16]byte
	for range 4096 {
		a.uint32() // moves the ids to where a fill ends inside them
		for _, id := range [][16]byte{a.id(), b.id()} {
			if seen[id] {
				t.Fatalf("%x was drawn before", id)
			}
			seen[id] = true
			for i, c := range id {
				ones[i] |= c
				zeros[i] |= ^c
			}
		}
	}
	for i := range ones {
		if ones[i] != 255 || zeros[i] != 255 {
			t.Fatalf("byte %d: %08b of ones, %08b of zeros", i, ones[i], zeros[i])
		}
	}
}
