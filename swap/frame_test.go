package swap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"pgregory.net/rapid"
)

// framed writes frames with their uvarint lengths.
func framed(frames ...[]byte) []byte {
	var b []byte
	for _, f := range frames {
		b = binary.AppendUvarint(b, uint64(len(f)))
		b = append(b, f...)
	}
	return b
}

// TestFrameMeterFindsFramesInAnyPieces: the meter of a wrapped host sees what
// passes in pieces of any size, and finds the same frames.
func TestFrameMeterFindsFramesInAnyPieces(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		frames := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 0, 300), 0, 8).Draw(rt, "frames")
		wire := framed(frames...)
		var f frameMeter
		var got [][]byte
		for len(wire) > 0 {
			n := rapid.IntRange(1, len(wire)).Draw(rt, "piece")
			err := f.feed(wire[:n], 300, func(frame []byte) error {
				got = append(got, bytes.Clone(frame))
				return nil
			})
			if err != nil {
				rt.Fatal(err)
			}
			wire = wire[n:]
		}
		if len(got) != len(frames) {
			rt.Fatalf("%d frames, want %d", len(got), len(frames))
		}
		for i := range frames {
			if !bytes.Equal(got[i], frames[i]) {
				rt.Fatalf("frame %d: %x, want %x", i, got[i], frames[i])
			}
		}
	})
}

func TestFrameMeterRefusesLongFramesBeforeItKeepsThem(t *testing.T) {
	for _, wire := range [][]byte{
		binary.AppendUvarint(nil, 65),
		binary.AppendUvarint(nil, 1<<62),
		bytes.Repeat([]byte{0xff}, 11),
	} {
		var f frameMeter
		if err := f.feed(wire, 64, func([]byte) error { return nil }); !errors.Is(err, ErrFrame) || cap(f.body) != 0 {
			t.Errorf("%x: %v, %d bytes kept", wire, err, cap(f.body))
		}
	}
}

func FuzzFrameMeter(f *testing.F) {
	f.Add(framed([]byte("a"), nil, bytes.Repeat([]byte("b"), 64)), 3)
	f.Add([]byte{0xff, 0xff, 0xff}, 1)
	f.Fuzz(func(t *testing.T, wire []byte, piece int) {
		piece = max(1, piece%64)
		var m frameMeter
		total := 0
		for len(wire) > 0 {
			n := min(piece, len(wire))
			err := m.feed(wire[:n], 64, func(frame []byte) error {
				total += len(frame)
				if len(frame) > 64 {
					t.Fatalf("a frame of %d bytes passed", len(frame))
				}
				return nil
			})
			if err != nil {
				return
			}
			wire = wire[n:]
		}
		if cap(m.body) > 256 {
			t.Fatalf("%d bytes kept for frames of 64", cap(m.body))
		}
	})
}
