package swapnet

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/tallystick/tally/protocols/internal/wire"
	"github.com/tallystick/tally/swap"
)

type protocolID = protocol.ID

// memory is a stream of bytes without a clock.
type memory struct{ *bytes.Reader }

func (memory) SetReadDeadline(time.Time) error { return nil }

// seedFrames adds the frames of the vectors, without their length.
func seedFrames(f *testing.F, vectors []vector) {
	f.Add([]byte{})
	for _, v := range vectors {
		raw, err := hex.DecodeString(v.Frame)
		if err != nil {
			f.Fatal(err)
		}
		if b, err := wire.NewReader(memory{bytes.NewReader(raw)}, 1<<20).ReadFrame(); err == nil {
			f.Add(bytes.Clone(b))
		}
	}
}

// wantTyped: a decoder answers any bytes with a message or with one of the
// errors that have a status.
func wantTyped(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, errUnknownKind) {
		return
	}
	if st := readStatus(err); st != StatusGarbage && st != StatusMalformed && st != StatusOtherLayout {
		t.Fatalf("untyped error %v", err)
	}
}

// FuzzFrame: what decodes is within bounds, fits a frame, and reads back as the
// same message.
func FuzzFrame(f *testing.F) {
	seedFrames(f, nativeVectors(f))
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > MaxNativeFrame {
			return
		}
		m, r, err := decodeFrame(in)
		if err != nil {
			wantTyped(t, err)
			return
		}
		if r != nil {
			if m != nil {
				t.Fatal("both")
			}
			return
		}
		checkBounds(t, m)
		out, err := encodeFrame(m)
		if err != nil {
			t.Fatalf("%+v does not encode: %v", m, err)
		}
		if len(out) > MaxNativeFrame {
			t.Fatalf("%d bytes", len(out))
		}
		again, _, err := decodeFrame(out)
		if err != nil || !reflect.DeepEqual(m, again) {
			t.Fatalf("read back as %+v, %v; want %+v", again, err, m)
		}
	})
}

func checkBounds(t *testing.T, m swap.Message) {
	t.Helper()
	cheque := func(c *swap.Cheque) {
		if c == nil {
			return
		}
		if err := c.Validate(c.Issuer, c.Beneficiary); err != nil {
			t.Fatal(err)
		}
		if c.Issuer.Validate() != nil || c.Beneficiary.Validate() != nil {
			t.Fatal("peer id")
		}
	}
	ack := func(a *swap.Ack) {
		if a == nil {
			return
		}
		if err := a.Validate(a.Issuer, a.Beneficiary); err != nil {
			t.Fatal(err)
		}
	}
	switch m := m.(type) {
	case *swap.Handshake:
		if err := m.Realm.Validate(); err != nil {
			t.Fatal(err)
		}
		if m.Mode > swap.ModeHard || m.PaymentThreshold > 1<<40 || m.Payout.Validate() != nil {
			t.Fatalf("%+v", m)
		}
		cheque(m.ChequeSent)
		cheque(m.ChequeReceived)
		ack(m.AckGiven)
		ack(m.AckReceived)
	case *swap.Cheque:
		cheque(m)
	case *swap.Ack:
		ack(m)
	case *swap.Statement:
		if max(m.Served, m.Consumed, m.SeenServed, m.SeenConsumed) > MaxAmount {
			t.Fatalf("%+v", m)
		}
	case *swap.Refusal:
		if len(m.Detail) > MaxDetail || m.Code > swap.RefusalInternal {
			t.Fatalf("%+v", m)
		}
	}
}

func FuzzAlpha1(f *testing.F) {
	seedFrames(f, alpha1Vectors())
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > MaxAlpha1Frame {
			return
		}
		if hs, err := decodeAlpha1Handshake(in); err != nil {
			wantTyped(t, err)
		} else {
			if hs.PaymentThreshold > 1<<40 {
				t.Fatal(hs.PaymentThreshold)
			}
			out, err := encodeAlpha1Handshake(hs)
			if err != nil {
				t.Fatal(err)
			}
			again, err := decodeAlpha1Handshake(out)
			if err != nil || again.PaymentThreshold != hs.PaymentThreshold {
				t.Fatal(again, err)
			}
		}
		c, err := decodeAlpha1Cheque(in)
		if err != nil {
			wantTyped(t, err)
			return
		}
		out, err := encodeAlpha1Cheque(c)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeAlpha1Cheque(out)
		if err != nil || !reflect.DeepEqual(c, again) {
			t.Fatalf("read back as %+v, %v; want %+v", again, err, c)
		}
	})
}

func FuzzBeta1(f *testing.F) {
	seedFrames(f, beta1Vectors())
	_, self := vectorKey(f, 2)
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > MaxAlpha1Frame {
			return
		}
		c, err := decodeBeta1Cheque(in, self)
		if err != nil {
			wantTyped(t, err)
			return
		}
		if len(c.Beneficiary) == 0 || len(c.Beneficiary) > MaxBeneficiary {
			t.Fatalf("%+v", c)
		}
		// Our alpha1 form of it says the same, and reads as beta1 too.
		out, err := encodeAlpha1Cheque(c)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeBeta1Cheque(out, peer.ID("other"))
		if err != nil || !reflect.DeepEqual(c, again) {
			t.Fatalf("read back as %+v, %v; want %+v", again, err, c)
		}
	})
}
