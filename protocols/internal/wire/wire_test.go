package wire

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-msgio/pbio"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// pipe is a stream over a buffer: it records each Write and never blocks.
type pipe struct {
	r      io.Reader
	writes [][]byte
	err    error // of Write
	take   int   // bytes that a failing Write still takes
}

func (p *pipe) Read(b []byte) (int, error) { return p.r.Read(b) }
func (p *pipe) Write(b []byte) (int, error) {
	if p.err != nil {
		return p.take, p.err
	}
	p.writes = append(p.writes, bytes.Clone(b))
	return len(b), nil
}
func (*pipe) SetReadDeadline(time.Time) error  { return nil }
func (*pipe) SetWriteDeadline(time.Time) error { return nil }

func message(n int) *wrapperspb.StringValue {
	return wrapperspb.String(strings.Repeat("x", n))
}

func TestWriteManyFramesInOneWrite(t *testing.T) {
	p := &pipe{}
	w := NewWriter(p, 1<<20)
	sizes := []int{0, 1, 127, 128, 4094, 4096, 4097, 30_000}
	for _, n := range sizes {
		if err := w.WriteMsg(message(n)); err != nil {
			t.Fatal(err)
		}
	}
	if len(p.writes) != 0 {
		t.Fatalf("%d writes before Flush", len(p.writes))
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if len(p.writes) != 1 || w.Written() != int64(len(p.writes[0])) || w.Buffered() != 0 {
		t.Fatalf("writes %d, written %d, buffered %d", len(p.writes), w.Written(), w.Buffered())
	}

	// pbio is the reference: it must read what we write, and we what it writes.
	ref := pbio.NewDelimitedReader(bytes.NewReader(p.writes[0]), 1<<20)
	var theirs bytes.Buffer
	refW := pbio.NewDelimitedWriter(&theirs)
	for _, n := range sizes {
		var got wrapperspb.StringValue
		if err := ref.ReadMsg(&got); err != nil || len(got.Value) != n {
			t.Fatalf("pbio reads %d of %d bytes: %v", len(got.Value), n, err)
		}
		if err := refW.WriteMsg(message(n)); err != nil {
			t.Fatal(err)
		}
	}
	for name, in := range map[string][]byte{"own": p.writes[0], "pbio": theirs.Bytes()} {
		// One byte a Read is the worst case for the paths with a partial frame.
		for _, src := range []io.Reader{bytes.NewReader(in), oneByte{bytes.NewReader(in)}} {
			r := NewReader(&pipe{r: src}, 1<<20)
			for _, n := range sizes {
				var got wrapperspb.StringValue
				if err := r.ReadMsg(&got); err != nil || len(got.Value) != n {
					t.Fatalf("%s: read %d of %d bytes: %v", name, len(got.Value), n, err)
				}
			}
			if _, err := r.ReadFrame(); err != io.EOF {
				t.Fatalf("%s: end is %v, want io.EOF", name, err)
			}
		}
	}
}

type oneByte struct{ r io.Reader }

func (o oneByte) Read(b []byte) (int, error) { return o.r.Read(b[:min(1, len(b))]) }

func TestReadRefuses(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   string
		want error
	}{
		{"empty", "", io.EOF},
		{"too large", "\x81\x08", ErrFrameTooLarge},
		{"too large, complete", "\x81\x08" + strings.Repeat("x", 1025), ErrFrameTooLarge},
		{"huge", "\xff\xff\xff\xff\xff\xff\xff\xff\x7f", ErrFrameTooLarge},
		{"length of ten bytes", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", ErrGarbage},
		{"length not minimal", "\x81\x00", ErrGarbage},
		{"length cut", "\x81", ErrTruncated},
		{"no body", "\x05", ErrTruncated},
		{"body cut", "\x05\x0a\x03ab", ErrTruncated},
		{"no protobuf", "\x03\xff\xff\xff", ErrGarbage},
		{"string not UTF-8", "\x03\x0a\x01\xff", ErrGarbage},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := NewReader(&pipe{r: strings.NewReader(tc.in)}, 1024)
			var m wrapperspb.StringValue
			err := r.ReadMsg(&m)
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			if again := r.ReadMsg(&m); again != err {
				t.Fatalf("after the error: %v", again)
			}
		})
	}
}

// TestReadAllocatesAfterCheck: a length above the limit costs nothing, and one
// below it no more than one step ahead of the bytes that came.
func TestReadAllocatesAfterCheck(t *testing.T) {
	const limit = 256 << 20
	for _, tc := range []struct {
		name string
		in   string
		want error
	}{
		{"above the limit", "\xff\xff\xff\xff\x7f", ErrFrameTooLarge},
		{"below the limit, no body", "\x80\x80\x80\x80\x01", ErrTruncated}, // 256 MiB
	} {
		t.Run(tc.name, func(t *testing.T) {
			res := testing.Benchmark(func(b *testing.B) {
				for b.Loop() {
					r := NewReader(&pipe{r: strings.NewReader(tc.in)}, limit)
					if _, err := r.ReadFrame(); !errors.Is(err, tc.want) {
						b.Fatal(err)
					}
				}
			})
			if got := res.AllocedBytesPerOp(); got > growStep+2*readAhead {
				t.Fatalf("%d bytes allocated", got)
			}
		})
	}
}

func TestWriteRefuses(t *testing.T) {
	p := &pipe{}
	w := NewWriter(p, 10)
	if err := w.WriteMsg(message(9)); !errors.Is(err, ErrFrameTooLarge) {
		t.Fatal(err)
	}
	if err := w.WriteFrame(make([]byte, 11)); !errors.Is(err, ErrFrameTooLarge) {
		t.Fatal(err)
	}
	if err := w.WriteMsg(wrapperspb.String("\xff")); err == nil || w.Buffered() != 0 {
		t.Fatalf("invalid string: %v, %d bytes buffered", err, w.Buffered())
	}
	if err := w.WriteMsg(message(8)); err != nil {
		t.Fatal(err)
	}
	p.err, p.take = net.ErrClosed, 3
	err := w.Flush()
	if !errors.Is(err, net.ErrClosed) || w.Written() != 3 {
		t.Fatalf("%v, written %d", err, w.Written())
	}
	if again := w.WriteMsg(message(1)); again != err {
		t.Fatal(again)
	}
}

func TestWriterFlushesWhenFull(t *testing.T) {
	p := &pipe{}
	w := NewWriter(p, 1<<20)
	for range 3 {
		if err := w.WriteMsg(message(flushAt / 2)); err != nil {
			t.Fatal(err)
		}
	}
	if len(p.writes) != 1 {
		t.Fatalf("%d writes", len(p.writes))
	}
}

// TestDeadlines runs on a fake clock: the idle limit, the limit of a frame that
// drips, and a peer that does not read.
func TestDeadlines(t *testing.T) {
	run := func(name string, f func(t *testing.T, near, far net.Conn)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				defer near.Close()
				defer far.Close()
				f(t, near, far)
			})
		})
	}
	run("idle", func(t *testing.T, near, _ net.Conn) {
		start := time.Now()
		_, err := NewReader(near, 64).ReadFrame()
		wantTimeout(t, err, start, DefaultTimeout)
	})
	run("long-lived stream waits", func(t *testing.T, near, far net.Conn) {
		r := NewReader(near, 64)
		r.SetTimeout(0, time.Second)
		go func() { // ends with its two writes
			time.Sleep(time.Hour) // bubble
			far.Write([]byte("\x01a"))
			time.Sleep(time.Hour) // bubble
			far.Write([]byte("\x01b"))
		}()
		for _, want := range []string{"a", "b"} {
			if got, err := r.ReadFrame(); err != nil || string(got) != want {
				t.Fatal(string(got), err)
			}
		}
	})
	run("drip", func(t *testing.T, near, far net.Conn) {
		go func() { // ends when near is closed
			far.Write([]byte("\x40"))
			for {
				time.Sleep(9 * time.Second) // bubble
				if _, err := far.Write([]byte("x")); err != nil {
					return
				}
			}
		}()
		start := time.Now()
		_, err := NewReader(near, 64).ReadFrame()
		wantTimeout(t, err, start, DefaultTimeout)
		near.Close()
		time.Sleep(10 * time.Second) // the dripper wakes and sees the end // bubble
	})
	run("peer does not read", func(t *testing.T, near, _ net.Conn) {
		w := NewWriter(near, 64)
		w.SetTimeout(3 * time.Second)
		if err := w.WriteMsg(message(1)); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		wantTimeout(t, w.Flush(), start, 3*time.Second)
		if w.Written() != 0 {
			t.Fatal(w.Written())
		}
	})
}

func wantTimeout(t *testing.T, err error, start time.Time, after time.Duration) {
	t.Helper()
	if !errors.Is(err, ErrTimeout) || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %v, want a timeout", err)
	}
	if got := time.Since(start); got != after {
		t.Fatalf("after %v, want %v", got, after)
	}
}

// FuzzRead: any bytes, cut any way, give frames within the limit or a typed
// error, the same frames however they arrive, and what was read can be written
// back to the bytes it came from.
func FuzzRead(f *testing.F) {
	for _, s := range []string{"", "\x00", "\x05\x0a\x03abc", "\x05\x0a\x03abc\x00\x01", "\x81\x00", "\x80", "\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "\x80\x80\x01"} {
		f.Add([]byte(s))
	}
	f.Add(append([]byte("\x80\x40"), make([]byte, 8192)...))
	f.Fuzz(func(t *testing.T, in []byte) {
		const limit = 16 << 10
		read := func(src io.Reader) (frames [][]byte, err error) {
			r := NewReader(&pipe{r: src}, limit)
			for {
				frame, err := r.ReadFrame()
				if err != nil {
					return frames, err
				}
				frames = append(frames, bytes.Clone(frame))
			}
		}
		frames, err := read(bytes.NewReader(in))
		dripped, err2 := read(oneByte{bytes.NewReader(in)})
		if len(frames) != len(dripped) || err.Error() != err2.Error() {
			t.Fatalf("whole: %d frames, %v; dripped: %d frames, %v", len(frames), err, len(dripped), err2)
		}
		typed := err == io.EOF || errors.Is(err, ErrFrameTooLarge) || errors.Is(err, ErrTruncated) || errors.Is(err, ErrGarbage)
		if !typed {
			t.Fatalf("untyped error %v", err)
		}
		p := &pipe{}
		w := NewWriter(p, limit)
		for _, frame := range frames {
			if len(frame) > limit {
				t.Fatalf("frame of %d bytes", len(frame))
			}
			if err := w.WriteFrame(frame); err != nil {
				t.Fatal(err)
			}
			var m wrapperspb.BytesValue
			if Unmarshal(frame, &m) == nil {
				if _, err := proto.Marshal(&m); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if out := bytes.Join(p.writes, nil); !bytes.HasPrefix(in, out) || (err == io.EOF && len(out) != len(in)) {
			t.Fatalf("wrote back %d bytes of %d", len(out), len(in))
		}
	})
}

func BenchmarkRead(b *testing.B) {
	var one bytes.Buffer
	p := &pipe{}
	w := NewWriter(p, 1<<20)
	for range 32 {
		_ = w.WriteMsg(message(100))
	}
	_ = w.Flush()
	one.Write(p.writes[0])
	src := bytes.NewReader(nil)
	r := NewReader(&pipe{r: src}, 1<<20)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%32 == 0 {
			src.Reset(one.Bytes())
		}
		if _, err := r.ReadFrame(); err != nil {
			b.Fatal(err)
		}
	}
}
