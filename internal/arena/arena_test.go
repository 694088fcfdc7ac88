package arena

import (
	"bytes"
	"testing"
)

func TestArena(t *testing.T) {
	var a Arena
	if a.Keep(nil) != nil || a.Full() {
		t.Fatal("an empty arena keeps something")
	}
	var all [][]byte
	for i := range 3 * Size / 1000 { // over three pieces
		b := bytes.Repeat([]byte{byte(i)}, 1000)
		kept := a.Keep(b)
		clear(b)
		if cap(kept) != len(kept) {
			t.Fatal("who appends to what is kept writes over what is behind it")
		}
		all = append(all, kept)
	}
	for i, kept := range all {
		if !bytes.Equal(kept, bytes.Repeat([]byte{byte(i)}, 1000)) {
			t.Fatal(i, "was moved, or written over")
		}
	}
	a.Reset()
	if n := testing.AllocsPerRun(10, func() {
		a.Keep(all[0])
		a.Reset()
	}); n != 0 {
		t.Fatal("memory is not used again:", n)
	}
	if long := a.Keep(make([]byte, keptSize+1)); len(long) != keptSize+1 || !a.Full() {
		t.Fatal(len(long))
	}
	a.Reset()
	if cap(a.buf) != 0 {
		t.Fatal("a long piece stays")
	}
}
