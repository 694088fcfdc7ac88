package wire_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/filecoin-project/go-state-types/big"

	"github.com/tallystick/tally/paych/actor"
	"github.com/tallystick/tally/paych/lotus/wire"
)

// Messages and their CBOR as Zondax' filecoin-signing-tools publish them
// (test_vectors/txs.json).
func TestMessageVectors(t *testing.T) {
	for _, tc := range []struct{ msg, cbor string }{
		{
			`{"To":"t17uoq6tp427uzv7fztkbsnn64iwotfrristwpryy","From":"t1d2xrzcslx7xlbbylc5c3d5lvandqw4iwl6epxba","Nonce":1,"Value":"100000","GasLimit":25000,"GasFeeCap":"1","GasPremium":"1","Method":0,"Params":""}`,
			"8a005501fd1d0f4dfcd7e99afcb99a8326b7dc459d32c62855011eaf1c8a4bbfeeb0870b1745b1f57503470b71160144000186a01961a84200014200010040",
		},
		{
			`{"To":"t01002","From":"t1d2xrzcslx7xlbbylc5c3d5lvandqw4iwl6epxba","Nonce":1,"Value":"100000","GasLimit":25000,"GasFeeCap":"1","GasPremium":"1","Method":7,"Params":"hFUB/R0PTfzX6Zr8uZqDJrfcRZ0yxihAB1gtglUB/R0PTfzX6Zr8uZqDJrfcRZ0yxihVAR6vHIpLv+6whwsXRbH1dQNHC3EW"}`,
			"8a004300ea0755011eaf1c8a4bbfeeb0870b1745b1f57503470b71160144000186a01961a8420001420001075848845501fd1d0f4dfcd7e99afcb99a8326b7dc459d32c6284007582d825501fd1d0f4dfcd7e99afcb99a8326b7dc459d32c62855011eaf1c8a4bbfeeb0870b1745b1f57503470b7116",
		},
	} {
		var m, back wire.Message
		if err := json.Unmarshal([]byte(tc.msg), &m); err != nil {
			t.Fatal(err)
		}
		var buf bytes.Buffer
		if err := m.MarshalCBOR(&buf); err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(buf.Bytes()); got != tc.cbor {
			t.Errorf("cbor of %s\n got %s\nwant %s", tc.msg, got, tc.cbor)
		}
		if err := back.UnmarshalCBOR(bytes.NewReader(buf.Bytes())); err != nil || !back.EqualCall(&m) {
			t.Errorf("decoded %+v, %v", back, err)
		}
	}
}

// signedVector is a signed message and its cid, from the same place
// (test_vectors/get_cid.json).
const (
	signedVector = `{"Message":{"To":"t17uoq6tp427uzv7fztkbsnn64iwotfrristwpryy","From":"t1d2xrzcslx7xlbbylc5c3d5lvandqw4iwl6epxba","Nonce":1,"Value":"100000","GasLimit":2500000,"GasFeeCap":"1","GasPremium":"1","Method":0,"Params":""},"Signature":{"Type":1,"Data":"0wRrFJZFIVh8m0JD+f5C55YrxD6YAWtCXWYihrPTKdMfgMhYAy86MVhs43hSLXnV+47UReRIe8qFdHRJqFlreAE="}}`
	signedCid    = "bafy2bzacebaiinljwwctblf7czp4zxwhz4747z6tpricgn5cumd4xhebftcvu"
)

func vector(t testing.TB) *wire.SignedMessage {
	t.Helper()
	var s wire.SignedMessage
	if err := json.Unmarshal([]byte(signedVector), &s); err != nil {
		t.Fatal(err)
	}
	return &s
}

func TestSignedVector(t *testing.T) {
	s := vector(t)
	if id, err := s.Cid(); err != nil || id.String() != signedCid {
		t.Fatalf("cid %s, %v, want %s", id, err, signedCid)
	}
	if err := s.Verify(); err != nil {
		t.Fatal(err)
	}
	data, err := s.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	back, err := wire.DecodeSigned(data)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := back.Cid(); err != nil || id.String() != signedCid {
		t.Fatalf("after decoding: cid %s, %v", id, err)
	}
	out, err := json.Marshal(back)
	if err != nil {
		t.Fatal(err)
	}
	// Lotus prints the cid in both objects, and empty parameters as null.
	for _, want := range []string{`"Params":null`, `"Version":0`, `"CID":{"/":"` + signedCid + `"}`, `"Value":"100000"`} {
		if !strings.Contains(string(out), want) {
			t.Errorf("json %s has no %s", out, want)
		}
	}
	if n := strings.Count(string(out), `"CID"`); n != 2 {
		t.Errorf("json %s has %d cids, want 2", out, n)
	}
}

func TestVerifyRefuses(t *testing.T) {
	for name, change := range map[string]func(*wire.SignedMessage){
		"flipped bit":  func(s *wire.SignedMessage) { s.Signature.Data[3] ^= 4 },
		"recovery":     func(s *wire.SignedMessage) { s.Signature.Data[64] ^= 1 },
		"no recovery":  func(s *wire.SignedMessage) { s.Signature.Data = s.Signature.Data[:64] },
		"empty":        func(s *wire.SignedMessage) { s.Signature.Data = nil },
		"long":         func(s *wire.SignedMessage) { s.Signature.Data = append(s.Signature.Data, 0) },
		"type":         func(s *wire.SignedMessage) { s.Signature.Type = 2 },
		"other nonce":  func(s *wire.SignedMessage) { s.Message.Nonce++ },
		"other sender": func(s *wire.SignedMessage) { s.Message.From, s.Message.To = s.Message.To, s.Message.From },
	} {
		s := vector(t)
		change(s)
		if err := s.Verify(); !errors.Is(err, wire.ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A header of the serialization vectors, with the base fee that came later: one
// field more at the end.
func TestHeaderVector(t *testing.T) {
	const text = `{"Miner":"t01000","Ticket":{"VRFProof":"mFI5lBoxWv4ARBTRrXuzzt2Cx3W3koCq0yEsIcZkJLe3h3Ja7PceC+MmBKioMFjTEsE9uLe35qogctSMukv40sD/qZBrq8TG8gYIos+/Q5F1QBNj5243wSjIFwfP8fY2"},"Parents":[{"/":"bafy2bzaceaychypnea6bzwv3r34ekzs7ccwsuza3ie4xb5vru7sv7ybiowj3e"},{"/":"bafy2bzaceburnvajqrq3izxuafmpgm23e2jkonmtzl4jvnyv3mbmauszfstfa"}],"ParentWeight":"7065","Height":2,"ParentStateRoot":{"/":"bafy2bzacea4vuib2pqk47fl2herx3um7wdvmvghhjgdvamcmgd5fv4zq43k36"},"ParentMessageReceipts":{"/":"bafy2bzacebxaj4y5s7swiittq5rnhv7tklzfpm43z5ps27gornuueuqqbxuoy"},"Messages":{"/":"bafy2bzacecq54nhno5y2rdgtvgysd375sw3274cymg4t266ejllxuckazacaw"},"BLSAggregate":{"Type":2,"Data":"wAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"},"Timestamp":100050,"BlockSig":{"Type":2,"Data":"kpGzm3Vm4OCPt4W3I0PXlhkvDZTXCGVmAga7dNCvE8OGBUZWFhFuEMc6E+lcPbZgFWwA0DfU6dcozsncPWwJBJvZPl9PTtnLBKLge+vE8k1dwx8M3vAVKquTsd6zPYnL"},"ForkSignaling":0}`
	zeros := strings.Repeat("00", 95)
	want := "8f4300e807815860985239941a315afe004414d1ad7bb3cedd82c775b79280aad3212c21c66424b7b787725aecf71e0be32604a8a83058d312c13db8b7b7e6aa2072d48cba4bf8d2c0ffa9906babc4c6f20608a2cfbf439175401363e76e37c128c81707cff1f636f6808082d82a5827000171a0e402203023e1ed203c1cdabb8ef845665f10ad2a641b413970f6b1a7e55fe0287593b2d82a5827000171a0e402206916d4098461b466f40158f3335b2692a73593caf89ab715db02c052592ca65043001b9902d82a5827000171a0e40220395a203a7c15cf957a39237dd19fb0eaca98e7498750304c30fa5af330e6d5bfd82a5827000171a0e402206e04f31d97e56422738762d3d7f352f257b39bcf5f2d7cce8b694252100de8ecd82a5827000171a0e40220a1de34ed7771a88cd3a9b121effd95b7aff05861b93d7bc44ad77a0940c8040b586102c0" + zeros + "1a000186d25861029291b39b7566e0e08fb785b72343d796192f0d94d70865660206bb74d0af13c38605465616116e10c73a13e95c3db660156c00d037d4e9d728cec9dc3d6c09049bd93e5f4f4ed9cb04a2e07bebc4f24d5dc31f0cdef0152aab93b1deb33d89cb00"
	var b wire.BlockHeader
	if err := json.Unmarshal([]byte(text), &b); err != nil {
		t.Fatal(err)
	}
	data, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(data); got != "90"+want[2:]+"40" {
		t.Errorf("cbor of header\n got %s\nwant %s", got, "90"+want[2:]+"40")
	}
}

func TestChannelObjects(t *testing.T) {
	payer, payee := vector(t).Message.From, vector(t).Message.To
	for _, lanes := range []int{0, 1, 7, 8, 9, 200} {
		st := &actor.State{From: payer, To: payee, ToSend: big.NewInt(77), SettlingAt: 5, MinSettleHeight: 3}
		for i := range lanes {
			st.Lanes = append(st.Lanes, actor.Lane{Lane: uint64(i * i), Redeemed: big.NewInt(int64(i)), Nonce: uint64(i + 1)})
		}
		if lanes > 2 {
			st.Lanes = append(st.Lanes, actor.Lane{Lane: actor.MaxLane, Redeemed: big.NewInt(1), Nonce: 9})
		}
		head, root, objects, err := wire.EncodeChannel(t.Context(), st)
		if err != nil {
			t.Fatal(err)
		}
		if objects[head] == nil || objects[root] == nil {
			t.Fatal("state or lanes missing among the objects")
		}
		printed := &wire.ChannelState{
			From: payer, To: payee, ToSend: st.ToSend, SettlingAt: 5, MinSettleHeight: 3, LaneStates: root,
		}
		back, err := wire.DecodeChannel(t.Context(), printed, objects)
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(back) != fmt.Sprint(st) {
			t.Errorf("%d lanes: got %v, want %v", lanes, back, st)
		}
		// A node that hands out other bytes than were asked for is caught.
		for id, data := range objects {
			if id == head {
				continue
			}
			objects[id] = append(slices.Clone(data[:len(data)-1]), data[len(data)-1]^1)
			if _, err := wire.DecodeChannel(t.Context(), printed, objects); err == nil {
				t.Errorf("%d lanes: altered object %s was taken", lanes, id)
			}
			objects[id] = data
		}
	}
}

func TestDecodeSignedRefuses(t *testing.T) {
	good, err := vector(t).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	longHead := append([]byte{0x98, 2}, good[1:]...) // the array's length in two bytes
	for name, data := range map[string][]byte{
		"empty": nil, "trailing": append(slices.Clone(good), 0), "cut": good[:len(good)-1], "oversize": make([]byte, wire.MaxMessageBytes+1),
		"second spelling": longHead, "huge length": {0x82, 0x8a, 0, 0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	} {
		if _, err := wire.DecodeSigned(data); !errors.Is(err, wire.ErrMessage) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzDecodeSigned: what is taken has one spelling, and survives JSON.
func FuzzDecodeSigned(f *testing.F) {
	good, err := vector(f).Bytes()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:20])
	f.Add([]byte{0x82, 0x8a, 0x00, 0x42, 0x00, 0x01})
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := wire.DecodeSigned(data)
		if err != nil {
			return
		}
		again, err := s.Bytes()
		if err != nil || !bytes.Equal(again, data) {
			t.Fatalf("decoded %x, encoded %x, %v", data, again, err)
		}
		if s.Message.Check() != nil {
			return
		}
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var back wire.SignedMessage
		if err := json.Unmarshal(text, &back); err != nil {
			t.Fatal(err)
		}
		if third, err := back.Bytes(); err != nil || !bytes.Equal(third, data) {
			t.Fatalf("json round trip of %x gave %x, %v", data, third, err)
		}
	})
}

func TestTipSetKey(t *testing.T) {
	if out, err := json.Marshal(wire.TipSetKey(nil)); err != nil || string(out) != "[]" {
		t.Errorf("no key is %s, %v", out, err)
	}
	id, err := vector(t).Cid()
	if err != nil {
		t.Fatal(err)
	}
	var back wire.TipSetKey
	out, err := json.Marshal(wire.TipSetKey{id})
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, &back); err != nil || !back.Equals(wire.TipSetKey{id}) || back.Equals(nil) {
		t.Errorf("key %v, %v", back, err)
	}
	if err := json.Unmarshal([]byte("null"), &back); err != nil || !reflect.DeepEqual(back, wire.TipSetKey(nil)) {
		t.Errorf("null key %v, %v", back, err)
	}
}
