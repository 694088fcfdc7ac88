package paystream

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/pbfield"
	"github.com/tallystick/tally/pb/paystreampb"
)

func via(ids ...string) (v ViaFrame) {
	for _, id := range ids {
		v.Add([]byte(id))
	}
	return v
}

// fullPacket has every frame in it.
func fullPacket() *Packet {
	id := [16]byte{1, 2, 3, 15: 16}
	return &Packet{
		Kind: KindPrepare, Code: CodeTooLittle, RequestID: 7, Amount: 990, Sent: 1000, Again: true,
		Has:          HasOpen | HasState | HasNewAddress | HasAssetDetails | HasClose,
		Open:         OpenFrame{Asset: []byte("karma"), Suite: 1, Idle: 60, ViaFrame: via("first", "last")},
		State:        StateFrame{Seq: 3, Seen: 2, Totals: Totals{Expected: 10, Wanted: Total{N: 20}, Offer: Total{Open: true}}, Received: 9},
		NewAddress:   via("other"),
		AssetDetails: AssetFrame{Code: []byte("FIL"), Scale: 9},
		Close:        CloseFrame{Code: 1, Sent: 5, Received: 6},
		Proposals:    []ProposalFrame{{ID: id, MinDelta: -100, MaxDelta: 101, Memo: []byte("for tea")}},
		Replies:      []ProposalReplyFrame{{ID: id, Accepted: true}},
		Money:        []MoneyFrame{{Stream: 1, Shares: 3}, {Stream: 2, Shares: 1}},
		Data:         []DataFrame{{Stream: 1, Offset: 300, Data: bytes.Repeat([]byte{7}, 200), Fin: true}},
		Credits:      []CreditFrame{{Stream: 1, Limit: 65536, End: true}},
		Receipts:     []ReceiptFrame{{Nonce: id, Total: 77, Time: 1700000000, Signature: bytes.Repeat([]byte{9}, 64)}},
		Requests:     []ReceiptRequestFrame{{Nonce: id}},
	}
}

// TestFramesAreProtobuf: the generated code reads what Append writes, knows every
// field of it, and writes the same bytes.
func TestFramesAreProtobuf(t *testing.T) {
	for name, p := range map[string]*Packet{"full": fullPacket(), "plain": {Kind: KindReject, Code: CodeRead}} {
		ours := p.Append(nil)
		var m paystreampb.Packet
		if err := proto.Unmarshal(ours, &m); err != nil {
			t.Fatal(name, err)
		}
		if unknown := m.ProtoReflect().GetUnknown(); len(unknown) > 0 {
			t.Fatalf("%s: unknown to the generated code: %x", name, unknown)
		}
		theirs, err := proto.MarshalOptions{Deterministic: true}.Marshal(&m)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(ours, theirs) {
			t.Fatalf("%s:\nours   %x\ntheirs %x", name, ours, theirs)
		}
		var back Packet
		if err := back.Decode(ours); err != nil {
			t.Fatal(name, err)
		}
		if !bytes.Equal(back.Append(nil), ours) {
			t.Fatalf("%s: decoding lost something", name)
		}
		if name == "full" && !reflect.DeepEqual(&back, p) {
			t.Fatalf("got  %+v\nwant %+v", &back, p)
		}
	}
}

// TestFrameVectors holds the bytes that docs/protocol/paystream.md gives.
func TestFrameVectors(t *testing.T) {
	file, err := os.ReadFile("testdata/packet-vectors.txt")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for line := range strings.Lines(string(file)) {
		name, want, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || strings.HasPrefix(name, "#") {
			continue
		}
		got, ok := vectors(t)[name]
		if !ok {
			t.Fatalf("vector %q is not made here", name)
		}
		if hex.EncodeToString(got) != want {
			t.Errorf("%s\ngot  %x\nwant %s", name, got, want)
		}
		seen++
	}
	if seen != len(vectors(t)) {
		t.Fatalf("%d vectors in the file, want %d:\n%s", seen, len(vectors(t)), vectorText(t))
	}
}

func vectorText(t *testing.T) string {
	var b strings.Builder
	for name, v := range vectors(t) {
		b.WriteString(name + " " + hex.EncodeToString(v) + "\n")
	}
	return b.String()
}

// vectors are made of fixed ids and keys.
func vectors(t *testing.T) map[string][]byte {
	t.Helper()
	var psk Secret
	var socket SocketID
	var client, server SessionID
	for i := range psk {
		psk[i] = 0x11
	}
	for i := range socket {
		socket[i], client[i], server[i] = 0x22, 0x33, 0x44
	}
	s, err := NewSession(psk, KDFShared, socket, RoleClient, client)
	if err != nil {
		t.Fatal(err)
	}
	s.live.peer = server
	inner := (&Packet{Kind: KindPrepare, Amount: 990, Sent: 1000, Has: HasState, State: StateFrame{Seq: 1, Totals: Totals{Wanted: Total{Open: true}}}}).Append(nil)
	env, err := s.Seal(nil, KindPrepare, inner)
	if err != nil {
		t.Fatal(err)
	}
	pre := s.live.ownKeys.preimage(env)
	cond := pre.Hashlock()
	var key ServerKey
	var random [32]byte
	for i := range key {
		key[i], random[i] = 0x55, 0x66
	}
	token, err := key.Issue(random, Grant{Use: UseGift, Min: At(-1000), Max: At(-1000), SingleUse: true, Expires: 1_900_000_000})
	if err != nil {
		t.Fatal(err)
	}
	secret, err := key.Secret(&token)
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{
		"full": fullPacket().Append(nil), "inner": inner, "envelope": env, "preimage": pre[:], "condition": cond[:],
		"token": token[:], "secret": secret[:],
	}
}

func TestFrameBounds(t *testing.T) {
	frame := func(num protowire.Number, body []byte) []byte {
		inner := pbfield.AppendBytes(nil, num, body)
		return pbfield.AppendBytes(nil, 6, inner)
	}
	prepare := pbfield.AppendUint(nil, 1, 1)
	many := bytes.Clone(prepare)
	for range maxFrames + 1 {
		many = append(many, frame(frameMoney, nil)...)
	}
	var hops []byte
	for range MaxVia + 1 {
		hops = pbfield.AppendBytes(hops, 4, []byte("peer"))
	}
	for name, b := range map[string][]byte{
		"empty":            nil,
		"kind":             pbfield.AppendUint(nil, 1, 4),
		"amount of 2^63":   pbfield.AppendUint(bytes.Clone(prepare), 3, 1<<63),
		"frames":           many,
		"two states":       append(append(bytes.Clone(prepare), frame(frameState, nil)...), frame(frameState, nil)...),
		"two kinds":        append(bytes.Clone(prepare), pbfield.AppendBytes(nil, 6, append(pbfield.AppendBytes(nil, 1, nil), pbfield.AppendBytes(nil, 2, nil)...))...),
		"hops":             append(bytes.Clone(prepare), frame(frameOpen, hops)...),
		"long peer id":     append(bytes.Clone(prepare), frame(frameOpen, pbfield.AppendBytes(nil, 4, make([]byte, maxPeerID+1)))...),
		"long data":        append(bytes.Clone(prepare), frame(frameData, pbfield.AppendBytes(nil, 3, make([]byte, MaxData+1)))...),
		"long memo":        append(bytes.Clone(prepare), frame(frameProposal, pbfield.AppendBytes(pbfield.AppendBytes(nil, 1, make([]byte, 16)), 4, make([]byte, MaxMemo+1)))...),
		"proposal no id":   append(bytes.Clone(prepare), frame(frameProposal, nil)...),
		"short id":         append(bytes.Clone(prepare), frame(frameProposal, pbfield.AppendBytes(nil, 1, []byte{1}))...),
		"length past end":  append(bytes.Clone(prepare), 0x32, 0xff, 0xff, 0xff, 0xff, 0x0f),
		"group":            append(bytes.Clone(prepare), 0x3b, 0x3c),
		"too large by one": make([]byte, MaxInner+1),
	} {
		var p Packet
		if err := p.Decode(b); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Unknown fields and frames are skipped.
	b := append(bytes.Clone(prepare), frame(99, []byte("new"))...)
	b = pbfield.AppendUint(b, 77, 5)
	var p Packet
	if err := p.Decode(b); err != nil {
		t.Fatal(err)
	}
}

func FuzzDecodePacket(f *testing.F) {
	f.Add(fullPacket().Append(nil))
	f.Add((&Packet{Kind: KindFulfil, Amount: 1}).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		var p Packet
		if err := p.Decode(b); err != nil {
			return
		}
		out := p.Append(nil)
		var again Packet
		if err := again.Decode(out); err != nil {
			t.Fatalf("%x does not decode: %v", out, err)
		}
		if !bytes.Equal(again.Append(nil), out) {
			t.Fatal("no round trip")
		}
		if err := proto.Unmarshal(out, new(paystreampb.Packet)); err != nil && !strings.Contains(err.Error(), "UTF-8") {
			t.Fatalf("the generated code does not read %x: %v", out, err)
		}
	})
}

func BenchmarkPacketCodec(b *testing.B) {
	b.ReportAllocs()
	in := Packet{
		Kind: KindPrepare, RequestID: 1 << 20, Amount: 990, Sent: 1000, Has: HasState,
		State: StateFrame{Seq: 1, Seen: 2, Totals: Totals{Expected: tally.Amount(1e9), Wanted: Total{Open: true}}},
	}
	var out Packet
	var buf []byte
	for b.Loop() {
		buf = in.Append(buf[:0])
		if err := out.Decode(buf); err != nil {
			b.Fatal(err)
		}
	}
}
