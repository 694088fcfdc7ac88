package packetnet

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"reflect"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/arena"
	"github.com/tallystick/tally/paystream/forward"
	"github.com/tallystick/tally/paystream/lock"
	"github.com/tallystick/tally/pb/packetpb"
)

// toPB is what the generated code says of a message.
func toPB(m *forward.Msg) *packetpb.HopMsg {
	out := &packetpb.HopMsg{Id: m.ID}
	switch m.Kind {
	case forward.MsgPrepare:
		p := &packetpb.Prepare{
			Amount: uint64(m.Amount), ExpiresMs: uint64(m.Expires), PartId: m.Part[:], HopsLeft: uint32(m.HopsLeft),
			Dest: &packetpb.Destination{Peer: []byte(m.Dest), Token: m.Token}, Data: m.Data, MayLock: m.MayLock,
		}
		if m.Lock != nil {
			p.Lock = &packetpb.Lock{Voucher: m.Lock.Voucher, Guard: m.Lock.Guard}
		}
		switch m.Condition.Kind {
		case forward.ConditionPoint:
			y := m.Condition.Compressed()
			p.Condition = &packetpb.Prepare_Point{Point: y[:]}
		case forward.ConditionSHA256:
			p.Condition = &packetpb.Prepare_Multihash{Multihash: append(bytes.Clone(headSHA256), m.Condition.Digest[:]...)}
		default:
			p.Condition = &packetpb.Prepare_Multihash{Multihash: append(bytes.Clone(headBlake2b), m.Condition.Digest[:]...)}
		}
		for _, v := range m.Via {
			p.Via = append(p.Via, []byte(v))
		}
		out.Kind = &packetpb.HopMsg_Prepare{Prepare: p}
	case forward.MsgFulfil:
		out.Kind = &packetpb.HopMsg_Fulfil{Fulfil: &packetpb.Fulfil{Preimage: m.Preimage[:], Data: m.Data}}
	case forward.MsgFulfilAck:
		out.Kind = &packetpb.HopMsg_FulfilAck{FulfilAck: &packetpb.FulfilAck{Also: m.Fulfilled}}
	case forward.MsgReject:
		r := &packetpb.Reject{Code: packetpb.RejectCode(m.Code), Data: m.Data, Headroom: uint64(m.Headroom), Hop: uint32(m.Hop)}
		if m.Lock != nil {
			r.Cancel = m.Lock.Voucher
		}
		out.Kind = &packetpb.HopMsg_Reject{Reject: r}
	case forward.MsgSyncAsk:
		out.Kind = &packetpb.HopMsg_SyncAsk{SyncAsk: &packetpb.SyncAsk{Round: m.Round}}
	case forward.MsgSync:
		out.Kind = &packetpb.HopMsg_Sync{Sync: &packetpb.Sync{Round: m.Round, Live: m.Live, Fulfilled: m.Fulfilled, More: m.More}}
	case forward.MsgPrepareAck:
		out.Kind = &packetpb.HopMsg_PrepareAck{PrepareAck: &packetpb.PrepareAck{}}
	case forward.MsgUnlock:
		out.Kind = &packetpb.HopMsg_Unlock{Unlock: &packetpb.Unlock{Voucher: m.Lock.Voucher}}
	case forward.MsgUnlockAck:
		out.Kind = &packetpb.HopMsg_UnlockAck{UnlockAck: &packetpb.UnlockAck{}}
	case forward.MsgRejectAck:
		out.Kind = &packetpb.HopMsg_RejectAck{RejectAck: &packetpb.RejectAck{}}
	case forward.MsgCancelRequest:
		out.Kind = &packetpb.HopMsg_CancelRequest{CancelRequest: &packetpb.CancelRequest{}}
	case forward.MsgShow:
		out.Kind = &packetpb.HopMsg_Show{Show: &packetpb.Show{Voucher: m.Lock.Voucher}}
	case forward.MsgLaneSync:
		sync := &packetpb.LaneSync{Ask: m.Lock.Ask}
		for i := range m.Lock.Lanes {
			l := &m.Lock.Lanes[i]
			sync.Lanes = append(sync.Lanes, &packetpb.LaneState{Lane: l.Lane, Nonce: l.Nonce, Digest: l.Digest[:]})
		}
		out.Kind = &packetpb.HopMsg_LaneSync{LaneSync: sync}
	}
	if m.Lock != nil {
		out.Channel = m.Lock.Channel
	}
	return out
}

// draw makes any message that can be sent.
func draw(t *rapid.T) *forward.Msg {
	m := &forward.Msg{
		Kind: forward.MsgKind(rapid.IntRange(int(forward.MsgPrepare), int(forward.MsgShow)).Draw(t, "kind")),
		ID:   rapid.Uint64().Draw(t, "id"),
	}
	data := func(most int, name string) []byte {
		if b := rapid.SliceOfN(rapid.Byte(), 0, most).Draw(t, name); len(b) > 0 {
			return b
		}
		return nil
	}
	ids := func(name string) (list []uint64) {
		if n := rapid.IntRange(0, 50).Draw(t, name); n > 0 {
			list = rapid.SliceOfN(rapid.Uint64(), n, n).Draw(t, name)
		}
		return list
	}
	name := rapid.Custom(func(t *rapid.T) peer.ID {
		return peer.ID(rapid.SliceOfN(rapid.Byte(), 1, maxPeerID).Draw(t, "peer"))
	})
	switch m.Kind {
	case forward.MsgPrepare:
		m.Amount, m.Expires = tally.Amount(rapid.Uint64().Draw(t, "amount")), rapid.Int64Range(0, 1<<61).Draw(t, "expires")
		m.Condition.Kind = rapid.SampledFrom([]forward.ConditionKind{forward.ConditionBlake2b, forward.ConditionSHA256, forward.ConditionPoint}).Draw(t, "condition")
		if m.Condition.Kind == forward.ConditionPoint {
			m.Condition.Point = byte(rapid.IntRange(2, 3).Draw(t, "first byte"))
		}
		copy(m.Condition.Digest[:], data(32, "digest"))
		m.Part[0] = 1
		copy(m.Part[1:], data(15, "part"))
		m.HopsLeft = uint8(rapid.IntRange(0, 255).Draw(t, "hops"))
		m.Dest, m.Token, m.Data = name.Draw(t, "dest"), data(forward.MaxToken, "token"), data(400, "data")
		if n := rapid.IntRange(0, forward.MaxHops).Draw(t, "via"); n > 0 {
			m.Via = rapid.SliceOfN(name, n, n).Draw(t, "via")
		}
	case forward.MsgFulfil:
		copy(m.Preimage[:], data(32, "preimage"))
		m.Data = data(400, "data")
	case forward.MsgReject:
		m.Code = forward.Code(rapid.IntRange(0, int(forward.CodeInternal)).Draw(t, "code"))
		m.Data, m.Headroom = data(400, "data"), tally.Amount(rapid.Uint64().Draw(t, "headroom"))
		m.Hop = uint8(rapid.IntRange(0, forward.MaxHops+1).Draw(t, "hop"))
	case forward.MsgFulfilAck:
		m.Fulfilled = ids("also")
	case forward.MsgSyncAsk, forward.MsgSync:
		m.Round = rapid.Uint64().Draw(t, "round")
		if m.Kind == forward.MsgSync {
			m.Live, m.Fulfilled, m.More = ids("live"), ids("fulfilled"), rapid.Bool().Draw(t, "more")
		}
	}
	if m.Kind == forward.MsgPrepare {
		m.MayLock = rapid.Bool().Draw(t, "may lock")
	}
	if !m.Kind.MayHaveLock() || m.Kind <= forward.MsgSync && rapid.Bool().Draw(t, "credit") {
		return m
	}
	some := func(most int, name string) []byte { return append([]byte{1}, data(most-1, name)...) }
	m.Lock = &forward.LockMsg{Channel: some(forward.MaxChannel, "channel")}
	switch m.Kind {
	case forward.MsgPrepare:
		m.Lock.Voucher, m.Lock.Guard = some(forward.MaxVoucher, "voucher"), data(forward.MaxVoucher, "guard")
	case forward.MsgReject, forward.MsgUnlock, forward.MsgShow:
		m.Lock.Voucher = some(forward.MaxVoucher, "voucher")
	case forward.MsgLaneSync:
		m.Lock.Ask = rapid.Bool().Draw(t, "ask")
		for range rapid.IntRange(0, forward.MaxLanes).Draw(t, "lanes") {
			l := lock.LaneState{Lane: rapid.Uint64().Draw(t, "lane"), Nonce: rapid.Uint64().Draw(t, "nonce")}
			copy(l.Digest[:], data(32, "digest"))
			m.Lock.Lanes = append(m.Lock.Lanes, l)
		}
	}
	return m
}

// What is written by hand is what the generated code writes, but that a oneof
// stands at its number and not at the end, and is read back as it was.
func TestCodecIsProtobuf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := draw(t)
		want, err := proto.MarshalOptions{Deterministic: true}.Marshal(toPB(m))
		if err != nil {
			t.Fatal(err)
		}
		got := appendMsg(nil, m)
		var read packetpb.HopMsg
		if err := proto.Unmarshal(got, &read); err != nil || !proto.Equal(&read, toPB(m)) || len(got) != len(want) {
			t.Fatalf("%v: by hand %x\ngenerated %x", err, got, want)
		}
		if m.Kind != forward.MsgPrepare && m.Lock == nil && !bytes.Equal(got, want) {
			t.Fatalf("by hand %x\ngenerated %x", got, want)
		}
		var back forward.Msg
		if err := new(decoder).decode(got, &back, new(arena.Arena)); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(&back, m) {
			t.Fatalf("read back %+v\nwas %+v", &back, m)
		}
	})
}

func TestHandshakeIsProtobuf(t *testing.T) {
	h := &hello{ClockMS: 1_700_000_000_123, MaxInFlight: 4096, FeeBase: 1, FeePPM: 1000, HopDeltaMS: 1500, LockDelta: 36, PointLocks: true}
	want, _ := proto.Marshal(&packetpb.HopMsg{Kind: &packetpb.HopMsg_Hello{Hello: &packetpb.Hello{
		ClockMs: h.ClockMS, MaxInFlight: h.MaxInFlight, FeeBase: h.FeeBase, FeePpm: h.FeePPM, HopDeltaMs: h.HopDeltaMS,
		LockDeltaEpochs: h.LockDelta, PointLocks: h.PointLocks,
	}}})
	got := appendHello(nil, h)
	back, _, err := decodeHandshake(got)
	if !bytes.Equal(got, want) || err != nil || *back != *h {
		t.Fatalf("%x, want %x; back %+v, %v", got, want, back, err)
	}
	a := &helloAck{1, 2, 3}
	want, _ = proto.Marshal(&packetpb.HopMsg{Kind: &packetpb.HopMsg_HelloAck{HelloAck: &packetpb.HelloAck{HelloMs: 1, ReceivedMs: 2, ClockMs: 3}}})
	got = appendHelloAck(nil, a)
	_, ack, err := decodeHandshake(got)
	if !bytes.Equal(got, want) || err != nil || *ack != *a {
		t.Fatalf("%x, want %x; back %+v, %v", got, want, ack, err)
	}
}

var update = flag.Bool("update", false, "write the golden vectors")

// vector is one message as other implementations find it.
type vector struct {
	Name string `json:"name"`
	Hex  string `json:"hex"`
}

// The golden vectors hold: bytes that other implementations were written
// against do not change.
func TestVectors(t *testing.T) {
	const file = "../../pb/packetpb/testdata/packet.json"
	digest := func(b byte) (d [32]byte) {
		for i := range d {
			d[i] = b + byte(i)
		}
		return d
	}
	part := forward.PartID(bytes.Repeat([]byte{0xab}, 16))
	about := func(voucher, guard string) *forward.LockMsg {
		return &forward.LockMsg{Channel: []byte("channel"), Voucher: []byte(voucher), Guard: []byte(guard)}
	}
	lanes := about("", "")
	lanes.Ask, lanes.Lanes = true, []lock.LaneState{{Lane: 1, Nonce: 3, Digest: digest(4)}}
	msgs := map[string]*forward.Msg{
		"prepare": {
			Kind: forward.MsgPrepare, ID: 7, Amount: 100, Expires: 1_700_000_030_000, Part: part, HopsLeft: 20,
			Condition: forward.Condition{Kind: forward.ConditionBlake2b, Digest: digest(1)},
			Dest:      "payee", Token: []byte("token"), Via: []peer.ID{"hop-1", "hop-2"}, Data: []byte("data"),
		},
		"prepare of ILP": {
			Kind: forward.MsgPrepare, ID: 1 << 60, Amount: 1, Expires: 1, Part: part, HopsLeft: 1,
			Condition: forward.Condition{Kind: forward.ConditionSHA256, Digest: digest(2)}, Dest: "payee",
		},
		"fulfil":                 {Kind: forward.MsgFulfil, ID: 7, Preimage: digest(3), Data: []byte("answer")},
		"fulfil_ack":             {Kind: forward.MsgFulfilAck, ID: 7},
		"fulfil_ack of three":    {Kind: forward.MsgFulfilAck, ID: 7, Fulfilled: []uint64{300, 8}},
		"reject":                 {Kind: forward.MsgReject, ID: 8, Code: forward.CodeHeadroom, Headroom: 42, Data: []byte("why")},
		"reject of the next hop": {Kind: forward.MsgReject, ID: 8, Code: forward.CodeNoRoute, Hop: 2},
		"sync_ask":               {Kind: forward.MsgSyncAsk, Round: 1},
		"sync":                   {Kind: forward.MsgSync, Round: 1, Live: []uint64{7, 300}, Fulfilled: []uint64{8}, More: true},
		"prepare that may be locked": {
			Kind: forward.MsgPrepare, ID: 7, Amount: 100, Expires: 1_700_000_030_000, Part: part, HopsLeft: 20, MayLock: true,
			Condition: forward.Condition{Kind: forward.ConditionBlake2b, Digest: digest(1)}, Dest: "payee",
		},
		"prepare under a lock": {
			Kind: forward.MsgPrepare, ID: 9, Amount: 700, Expires: 1_700_000_030_000, Part: part, HopsLeft: 20, MayLock: true,
			Condition: forward.Condition{Kind: forward.ConditionBlake2b, Digest: digest(1)}, Dest: "payee", Lock: about("LOCK", "GUARD"),
		},
		"prepare under a point": {
			Kind: forward.MsgPrepare, ID: 9, Amount: 700, Expires: 1_700_000_030_000, Part: part, HopsLeft: 20, MayLock: true,
			Condition: forward.Condition{Kind: forward.ConditionPoint, Point: 3, Digest: digest(1)}, Dest: "payee", Lock: about("POINT LOCK", ""),
		},
		"prepare_ack":        {Kind: forward.MsgPrepareAck, ID: 9, Lock: about("", "")},
		"fulfil of a lock":   {Kind: forward.MsgFulfil, ID: 9, Preimage: digest(3), Lock: about("", "")},
		"unlock":             {Kind: forward.MsgUnlock, ID: 9, Lock: about("UNLOCK", "")},
		"unlock_ack":         {Kind: forward.MsgUnlockAck, ID: 9, Lock: about("", "")},
		"reject with CANCEL": {Kind: forward.MsgReject, ID: 9, Code: forward.CodeRefused, Hop: 2, Lock: about("CANCEL", "")},
		"reject_ack":         {Kind: forward.MsgRejectAck, ID: 9, Lock: about("", "")},
		"cancel_request":     {Kind: forward.MsgCancelRequest, ID: 9, Lock: about("", "")},
		"lane_sync":          {Kind: forward.MsgLaneSync, Lock: lanes},
		"show":               {Kind: forward.MsgShow, Lock: about("CANCEL", "")},
	}
	order := []string{
		"prepare", "prepare of ILP", "fulfil", "fulfil_ack", "fulfil_ack of three", "reject", "reject of the next hop", "sync_ask", "sync",
		"prepare that may be locked", "prepare under a lock", "prepare under a point", "prepare_ack", "fulfil of a lock", "unlock", "unlock_ack",
		"reject with CANCEL", "reject_ack", "cancel_request", "lane_sync", "show",
	}
	var made []vector
	for _, name := range order {
		made = append(made, vector{name, hex.EncodeToString(appendFrame(nil, msgs[name]))})
	}
	made = append(made,
		vector{"hello", hex.EncodeToString(closeLength(appendHello([]byte{0}, &hello{1_700_000_000_000, 4096, 1, 1000, 1000, 0, false}), 0))},
		vector{"hello of one that takes locks", hex.EncodeToString(closeLength(appendHello([]byte{0}, &hello{1_700_000_000_000, 4096, 1, 1000, 1000, 36, false}), 0))},
		vector{"hello of one that takes locks under points", hex.EncodeToString(closeLength(appendHello([]byte{0}, &hello{1_700_000_000_000, 4096, 1, 1000, 1000, 36, true}), 0))},
		vector{"hello_ack", hex.EncodeToString(closeLength(appendHelloAck([]byte{0}, &helloAck{1_700_000_000_000, 1_700_000_000_001, 1_700_000_000_001}), 0))},
	)
	if *update {
		text, _ := json.MarshalIndent(made, "", "  ")
		if err := os.WriteFile(file, append(text, '\n'), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var want []vector
	if err := json.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(made, want) {
		t.Fatalf("made %+v\nwant %+v", made, want)
	}
}

// ackedOneByOne is an ack whose further ids are not packed.
func ackedOneByOne(n int) []byte {
	return message(nil, fieldFulfilAk, func(b []byte) []byte {
		for id := range n {
			b = protowire.AppendVarint(protowire.AppendTag(b, 1, protowire.VarintType), uint64(id))
		}
		return b
	})
}

func TestDecodeRefuses(t *testing.T) {
	good := func() *packetpb.Prepare {
		m := toPB(&forward.Msg{Kind: forward.MsgPrepare, Part: forward.PartID{1}, Dest: "p", Condition: forward.Condition{Kind: forward.ConditionBlake2b}})
		return m.GetPrepare()
	}
	prepare := func(change func(*packetpb.Prepare)) []byte {
		p := good()
		change(p)
		b, err := proto.Marshal(&packetpb.HopMsg{Kind: &packetpb.HopMsg_Prepare{Prepare: p}})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	about := func(frame []byte, channel int) []byte { return appendBytes(frame, fieldChannel, make([]byte, channel)) }
	via := func(n int) (list [][]byte) {
		for range n {
			list = append(list, []byte("p"))
		}
		return list
	}
	if err := new(decoder).decode(prepare(func(p *packetpb.Prepare) {}), new(forward.Msg), new(arena.Arena)); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	for name, frame := range map[string][]byte{
		"no condition":      prepare(func(p *packetpb.Prepare) { p.Condition = nil }),
		"short condition":   prepare(func(p *packetpb.Prepare) { p.Condition = &packetpb.Prepare_Multihash{Multihash: []byte{0x12, 0x20}} }),
		"another multihash": prepare(func(p *packetpb.Prepare) { p.GetCondition().(*packetpb.Prepare_Multihash).Multihash[0]++ }),
		"long point": prepare(func(p *packetpb.Prepare) {
			p.Condition = &packetpb.Prepare_Point{Point: append([]byte{2}, make([]byte, 33)...)}
		}),
		"short point": prepare(func(p *packetpb.Prepare) {
			p.Condition = &packetpb.Prepare_Point{Point: append([]byte{2}, make([]byte, 31)...)}
		}),
		"uncompressed point": prepare(func(p *packetpb.Prepare) {
			p.Condition = &packetpb.Prepare_Point{Point: append([]byte{4}, make([]byte, 32)...)}
		}),
		"point and digest": append(prepare(func(*packetpb.Prepare) {}), prepare(func(p *packetpb.Prepare) {
			p.Condition = &packetpb.Prepare_Point{Point: append([]byte{2}, make([]byte, 32)...)}
		})...),
		"short part id":      prepare(func(p *packetpb.Prepare) { p.PartId = make([]byte, 15) }),
		"no destination":     prepare(func(p *packetpb.Prepare) { p.Dest = nil }),
		"long peer id":       prepare(func(p *packetpb.Prepare) { p.Dest.Peer = make([]byte, maxPeerID+1) }),
		"long token":         prepare(func(p *packetpb.Prepare) { p.Dest.Token = make([]byte, forward.MaxToken+1) }),
		"too many hops":      prepare(func(p *packetpb.Prepare) { p.Via = via(forward.MaxHops + 1) }),
		"empty hop":          prepare(func(p *packetpb.Prepare) { p.Via = [][]byte{{}} }),
		"long data":          prepare(func(p *packetpb.Prepare) { p.Data = make([]byte, forward.MaxData+1) }),
		"lock of no channel": prepare(func(p *packetpb.Prepare) { p.Lock = &packetpb.Lock{Voucher: []byte{1}} }),
		"channel, no lock":   about(prepare(func(*packetpb.Prepare) {}), 7),
		"long lock":          about(prepare(func(p *packetpb.Prepare) { p.Lock = &packetpb.Lock{Voucher: make([]byte, forward.MaxVoucher+1)} }), 7),
		"long guard": about(prepare(func(p *packetpb.Prepare) {
			p.Lock = &packetpb.Lock{Voucher: []byte{1}, Guard: make([]byte, forward.MaxVoucher+1)}
		}), 7),
		"lock of no voucher":     about(prepare(func(p *packetpb.Prepare) { p.Lock = &packetpb.Lock{} }), 7),
		"long channel":           about(prepare(func(p *packetpb.Prepare) { p.Lock = &packetpb.Lock{Voucher: []byte{1}} }), forward.MaxChannel+1),
		"cancel of no channel":   {0x42, 0x03, 0x22, 0x01, 0x01},
		"ack of no channel":      {0x1a, 0x00},
		"unlock without voucher": about([]byte{0x32, 0x00}, 7),
		"reject without CANCEL":  about([]byte{0x42, 0x02, 0x08, 0x01}, 7),
		"short digest of a lane": about([]byte{0x82, 0x01, 0x05, 0x0a, 0x03, 0x1a, 0x01, 0x00}, 7),
		"sync of too many lanes": appendMsg(nil, &forward.Msg{Kind: forward.MsgLaneSync, Lock: &forward.LockMsg{Channel: []byte{1}, Lanes: make([]lock.LaneState, forward.MaxLanes+1)}}),
		"two kinds":              append(appendMsg(nil, &forward.Msg{Kind: forward.MsgFulfilAck}), appendMsg(nil, &forward.Msg{Kind: forward.MsgFulfilAck})...),
		"short preimage":         {0x22, 0x03, 0x0a, 0x01, 0x00},
		"no preimage":            {0x22, 0x00},
		"a second handshake":     appendHello(nil, &hello{MaxInFlight: 1}),
		"too many ids":           appendMsg(nil, &forward.Msg{Kind: forward.MsgSync, Live: make([]uint64, forward.MaxSyncIDs+1)}),
		"cut":                    {0x22, 0x22, 0x0a},
		"garbage":                {0xff, 0xff, 0xff},
		"too many acks":          appendMsg(nil, &forward.Msg{Kind: forward.MsgFulfilAck, Fulfilled: make([]uint64, forward.MaxAckIDs)}),
		"acks one by one":        ackedOneByOne(forward.MaxAckIDs),
	} {
		if err := new(decoder).decode(frame, new(forward.Msg), new(arena.Arena)); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	far := appendMsg(nil, &forward.Msg{Kind: forward.MsgReject, Hop: forward.MaxHops + 2})
	var reject forward.Msg
	if err := new(decoder).decode(far, &reject, new(arena.Arena)); err != nil || reject.Hop != 0 {
		t.Fatalf("a hop further than any way goes is not known: %v, %d", err, reject.Hop)
	}
	locked := about(prepare(func(p *packetpb.Prepare) { p.Lock = &packetpb.Lock{Voucher: []byte{1}} }), 7)
	var m forward.Msg
	if err := new(decoder).decode(locked, &m, new(arena.Arena)); err != nil || m.Lock == nil || len(m.Lock.Channel) != 7 {
		t.Fatalf("the good one under a lock: %v, %+v", err, m.Lock)
	}
	m = forward.Msg{}
	if err := new(decoder).decode(about(appendMsg(nil, &forward.Msg{Kind: forward.MsgFulfilAck}), 7), &m, new(arena.Arena)); err != nil || m.Lock != nil {
		t.Fatalf("a message that no lock knows: %v, %+v", err, m.Lock)
	}
}

// Times come on the sender's clock, and none is so large that it overflows.
func TestTranslate(t *testing.T) {
	d := decoder{offset: 3_600_000}
	if got := d.translate(1_700_003_600_000); got != 1_700_000_000_000 {
		t.Fatalf("got %d", got)
	}
	d.offset = -1 << 62
	if got := d.translate(1<<64 - 1); got <= 0 {
		t.Fatalf("overflow to %d", got)
	}
}

// FuzzDecode: whatever is taken, the generated code takes too, and it means the
// same.
func FuzzDecode(f *testing.F) {
	f.Add(appendMsg(nil, &forward.Msg{Kind: forward.MsgFulfil, ID: 1, Preimage: tally.Preimage{1}, Data: []byte("x")}))
	f.Add(appendMsg(nil, &forward.Msg{Kind: forward.MsgReject, ID: 1, Code: forward.CodeBusy}))
	f.Add(appendMsg(nil, &forward.Msg{Kind: forward.MsgSync, Live: []uint64{1, 2}, Fulfilled: []uint64{3}}))
	f.Add(appendMsg(nil, &forward.Msg{
		Kind: forward.MsgPrepare, ID: 1, Amount: 5, Expires: 6, Part: forward.PartID{1}, Dest: "p", Via: []peer.ID{"q"},
		Condition: forward.Condition{Kind: forward.ConditionBlake2b}, Data: []byte("x"), HopsLeft: 3,
	}))
	about := &forward.LockMsg{Channel: []byte{1}, Voucher: []byte{2}, Guard: []byte{3}, Lanes: make([]lock.LaneState, 2), Ask: true}
	for k := forward.MsgPrepareAck; k <= forward.MsgShow; k++ {
		f.Add(appendMsg(nil, &forward.Msg{Kind: k, ID: 1, Lock: about}))
	}
	f.Add(appendMsg(nil, &forward.Msg{
		Kind: forward.MsgPrepare, ID: 1, Amount: 5, Part: forward.PartID{1}, Dest: "p", Lock: about, MayLock: true,
		Condition: forward.Condition{Kind: forward.ConditionBlake2b},
	}))
	f.Add(appendMsg(nil, &forward.Msg{Kind: forward.MsgReject, ID: 1, Lock: about}))
	f.Add(appendMsg(nil, &forward.Msg{
		Kind: forward.MsgPrepare, ID: 1, Amount: 5, Part: forward.PartID{1}, Dest: "p", Lock: about, MayLock: true,
		Condition: forward.Condition{Kind: forward.ConditionPoint, Point: 2},
	}))
	f.Add(appendHello(nil, &hello{MaxInFlight: 1, LockDelta: 36, PointLocks: true}))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if h, ack, err := decodeHandshake(frame); err == nil && (h == nil) == (ack == nil) {
			t.Fatal("a handshake of no kind, or of two")
		}
		var m forward.Msg
		if new(decoder).decode(frame, &m, new(arena.Arena)) != nil {
			return
		}
		var gen packetpb.HopMsg
		if err := proto.Unmarshal(frame, &gen); err != nil {
			t.Fatalf("taken by hand, and not by the generated code: %v", err)
		}
		again := appendMsg(nil, &m)
		var back forward.Msg
		if err := new(decoder).decode(again, &back, new(arena.Arena)); err != nil || !reflect.DeepEqual(m, back) {
			t.Fatalf("%v: read %+v, back %+v", err, m, back)
		}
		if m.Kind == forward.MsgFulfil && !bytes.Equal(gen.GetFulfil().GetPreimage(), m.Preimage[:]) {
			t.Fatal("another preimage")
		}
		if m.Kind == forward.MsgPrepare && (gen.GetPrepare().GetAmount() != uint64(m.Amount) || gen.GetId() != m.ID) {
			t.Fatal("another amount or id")
		}
	})
}

func BenchmarkCodec(b *testing.B) {
	m := &forward.Msg{
		Kind: forward.MsgPrepare, ID: 1 << 60, Amount: 5, Expires: 1_700_000_000_000, Part: forward.PartID{1}, Dest: peer.ID(make([]byte, 38)),
		Condition: forward.Condition{Kind: forward.ConditionBlake2b}, Data: make([]byte, 100), HopsLeft: 20,
	}
	b.ReportAllocs()
	var buf []byte
	var d decoder
	var a arena.Arena
	for b.Loop() {
		buf = appendMsg(buf[:0], m)
		a.Reset()
		var back forward.Msg
		if err := d.decode(buf, &back, &a); err != nil {
			b.Fatal(err)
		}
	}
}
