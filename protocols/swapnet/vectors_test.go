package swapnet

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/pb/swappb"
	"github.com/tallystick/tally/protocols/internal/wire"
	"github.com/tallystick/tally/swap"
)

var update = flag.Bool("update", false, "write the vectors to testdata and into docs/protocol/swap.md")

const (
	vectorDir = "../../pb/swappb/testdata"
	specFile  = "../../docs/protocol/swap.md"
)

// vector is one frame, as other implementations read it from testdata.
type vector struct {
	Name     string `json:"name"`
	Protocol string `json:"protocol"`
	Message  string `json:"message"`
	About    string `json:"about"`
	// Frame with its length, in hex.
	Frame string `json:"frame"`
	// Error is empty where the frame is good, else the status that ends the
	// stream.
	Error string `json:"error,omitempty"`
	// Canonical is false where we read the frame but would write it shorter.
	Canonical bool           `json:"canonical"`
	Fields    map[string]any `json:"fields,omitempty"`
}

// The keys of the examples: Ed25519 keys from 32 bytes of 01, and of 02.
func vectorKey(t testing.TB, b byte) (crypto.PrivKey, peer.ID) {
	t.Helper()
	std := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, ed25519.SeedSize))
	key, err := crypto.UnmarshalEd25519PrivateKey(std)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, id
}

var vectorRealm = swap.Realm{Network: "calibrationnet", Genesis: "bafy2bzacea", Asset: "karma"}

type signedExample struct {
	Realm                    swap.Realm
	Issuer, Beneficiary      peer.ID
	Cheque                   *swap.Cheque
	Ack                      *swap.Ack
	ChequeText, AckText      []byte
	IssuerSeed, BeneficiSeed string
}

func signed(t testing.TB) *signedExample {
	t.Helper()
	keyA, a := vectorKey(t, 1)
	keyB, b := vectorKey(t, 2)
	c := &swap.Cheque{
		Issuer: a, Beneficiary: b, Serial: 3, Cumulative: 300, Served: 40, Consumed: 390, Balance: -50,
		Date: 1_600_000_000,
	}
	out := &signedExample{Realm: vectorRealm, Issuer: a, Beneficiary: b, Cheque: c}
	var err error
	out.ChequeText = c.SigningBytes(vectorRealm)
	if c.Signature, err = keyA.Sign(out.ChequeText); err != nil {
		t.Fatal(err)
	}
	out.Ack = &swap.Ack{
		Issuer: b, Beneficiary: a, ChequeHash: c.Hash(vectorRealm), Serial: 3, Credited: 300,
		Served: 390, Consumed: 40, Balance: 50,
	}
	out.AckText = out.Ack.SigningBytes(vectorRealm)
	if out.Ack.Signature, err = keyB.Sign(out.AckText); err != nil {
		t.Fatal(err)
	}
	return out
}

func chequeFields(c *swap.Cheque) map[string]any {
	return map[string]any{
		"issuer": c.Issuer.String(), "beneficiary": c.Beneficiary.String(), "serial": dec(c.Serial),
		"cumulative": dec(c.Cumulative), "served": dec(c.Served), "consumed": dec(c.Consumed), "balance": dec(c.Balance),
		"date": dec(c.Date), "backing": hex.EncodeToString(c.Backing), "signature": hex.EncodeToString(c.Signature),
	}
}

func ackFields(a *swap.Ack) map[string]any {
	return map[string]any{
		"issuer": a.Issuer.String(), "beneficiary": a.Beneficiary.String(), "cheque_hash": hex.EncodeToString(a.ChequeHash[:]),
		"serial": dec(a.Serial), "credited": dec(a.Credited), "served": dec(a.Served), "consumed": dec(a.Consumed),
		"balance": dec(a.Balance), "signature": hex.EncodeToString(a.Signature),
	}
}

// dec writes a number as text: JSON readers lose what is beyond 2^53.
func dec[N ~uint64 | ~int64 | ~uint32](n N) string { return fmt.Sprint(n) }

func nativeVectors(t testing.TB) []vector {
	t.Helper()
	ex := signed(t)
	mk := func(name, message, about string, m swap.Message, fields map[string]any) vector {
		b, err := encodeFrame(m)
		if err != nil {
			t.Fatal(err)
		}
		return vector{
			Name: name, Protocol: string(ProtocolNative), Message: message, About: about,
			Frame: hex.EncodeToString(frameOf(b)), Canonical: true, Fields: fields,
		}
	}
	plain := func(name, message, about string, f *swappb.Frame, status string) vector {
		return vector{
			Name: name, Protocol: string(ProtocolNative), Message: message, About: about,
			Frame: hex.EncodeToString(frameOf(mustMarshal(t, f))), Error: status,
		}
	}
	short := &swap.Handshake{Realm: vectorRealm, Terms: swap.Terms{PaymentThreshold: 100, DisconnectThreshold: 125, Mode: swap.ModeMock, Native: true}}
	full := &swap.Handshake{
		Realm: vectorRealm, Terms: swap.Terms{PaymentThreshold: 100, DisconnectThreshold: 125, Mode: swap.ModeHard, Native: true},
		Payout: swap.Payout{Address: "t1example"}, Totals: swap.Totals{Served: 40, Consumed: 390, SeenServed: 390, SeenConsumed: 40, AtRest: true},
		ChequeSent: ex.Cheque, AckReceived: ex.Ack,
	}
	return []vector{
		mk("handshake", "handshake", "first contact", short, map[string]any{
			"network": "calibrationnet", "genesis": "bafy2bzacea", "asset": "karma",
			"payment_threshold": "100", "disconnect_threshold": "125", "mode": "2",
		}),
		mk("handshake-recovery", "handshake", "with the last cheque that the teller sent and the ack that it got", full, map[string]any{
			"network": "calibrationnet", "genesis": "bafy2bzacea", "asset": "karma",
			"payment_threshold": "100", "disconnect_threshold": "125", "mode": "3", "payout_address": "t1example",
			"served": "40", "consumed": "390", "seen_served": "390", "seen_consumed": "40", "at_rest": true,
			"cheque_sent": chequeFields(ex.Cheque), "ack_received": ackFields(ex.Ack),
		}),
		mk("cheque", "cheque", "the signed cheque of the example below", ex.Cheque, chequeFields(ex.Cheque)),
		mk("cheque-ack", "cheque_ack", "the ack of that cheque", ex.Ack, ackFields(ex.Ack)),
		mk("statement", "statement", "totals between settlements", &swap.Statement{Totals: full.Totals}, map[string]any{
			"served": "40", "consumed": "390", "seen_served": "390", "seen_consumed": "40", "at_rest": true,
		}),
		mk("refusal", "refusal", "cheque 3 is older than the last one", &swap.Refusal{Serial: 3, Code: swap.RefusalStale, Detail: "serial 3, last 4"}, map[string]any{
			"serial": "3", "code": "4", "detail": "serial 3, last 4",
		}),
		plain("cheque-serial-0", "cheque", "serials begin at 1", &swappb.Frame{Kind: &swappb.Frame_Cheque{Cheque: &swappb.Cheque{
			Issuer: []byte(ex.Issuer), Beneficiary: []byte(ex.Beneficiary), Cumulative: 1,
		}}}, "malformed"),
		plain("cheque-above-bound", "cheque", "cumulative of 2^60 + 1", &swappb.Frame{Kind: &swappb.Frame_Cheque{Cheque: &swappb.Cheque{
			Issuer: []byte(ex.Issuer), Beneficiary: []byte(ex.Beneficiary), Serial: 1, Cumulative: 1<<60 + 1,
		}}}, "malformed"),
		{
			Name: "oversize", Protocol: string(ProtocolNative), Message: "length only", Frame: "8140", Error: "oversize",
			About: "a length of 8193: the stream is reset before a byte of the frame is read",
		},
	}
}

// The frames of the seed's protocol are written out by hand, byte for byte, so
// that they do not come from the code they test.
func alpha1Vectors() []vector {
	hs := func(name, frame, threshold, about string, canonical bool) vector {
		return vector{
			Name: name, Protocol: string(ProtocolAlpha1), Message: "Handshake", About: about, Frame: frame, Canonical: canonical,
			Fields: map[string]any{"threshold": threshold},
		}
	}
	cheque := func(name, frame, beneficiary string, date, amount uint32, about string, canonical bool) vector {
		return vector{
			Name: name, Protocol: string(ProtocolAlpha1), Message: "Cheque", About: about, Frame: frame, Canonical: canonical,
			Fields: map[string]any{"beneficiary": beneficiary, "date": dec(date), "amount": dec(amount)},
		}
	}
	// The binary and the text form of the peer id of the second example key.
	bin := "0024080112208139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394"
	txt := hex.EncodeToString([]byte("12D3KooWJWoaqZhDaoEFshF7Rh1bpY9ohihFhzcW6d69Lr2NASuq"))
	return []vector{
		hs("threshold-0", "00", "0", "an empty message", true),
		hs("threshold-0-empty-field", "020a00", "0", "the same with the field written", false),
		hs("threshold-0-zero-byte", "030a0100", "0", "the same as one byte", false),
		hs("threshold-1", "030a0101", "1", "", true),
		hs("threshold-100", "030a0164", "100", "our default", true),
		hs("threshold-100-not-minimal", "0a0a080000000000000064", "100", "leading zero bytes are read", false),
		hs("threshold-255", "030a01ff", "255", "", true),
		hs("threshold-256", "040a020100", "256", "big-endian", true),
		hs("threshold-2-32", "070a050100000000", "4294967296", "2^32", true),
		hs("threshold-2-40", "080a06010000000000", "1099511627776", "2^40, the largest that counts", true),
		hs("threshold-2-64-1", "0a0a08ffffffffffffffff", "1099511627776", "2^64 - 1 counts as 2^40", false),
		hs("threshold-32-bytes", "220a20"+strings.Repeat("ff", 32), "1099511627776", "2^256 - 1 counts as 2^40", false),
		hs("threshold-unknown-field", "060a0164122a78", "", "", false).garbage(),
		hs("threshold-unknown-fields", "070a01641a027878", "100", "unknown fields are ignored", false),
		{
			Name: "threshold-33-bytes", Protocol: string(ProtocolAlpha1), Message: "Handshake", About: "no threshold has more than 32 bytes",
			Frame: "230a21" + strings.Repeat("00", 33), Error: "malformed",
		},
		cheque("cheque-binary-peer-id", "300a26"+bin+"1080a0f8fa051864", bin, 1_600_000_000, 100, "", true),
		cheque("cheque-text-peer-id", "3e0a34"+txt+"1080a0f8fa051864", txt, 1_600_000_000, 100, "", true),
		cheque("cheque-address", "0f0a0b"+hex.EncodeToString([]byte("t1exampleto"))+"1801", hex.EncodeToString([]byte("t1exampleto")), 0, 1, "a payout address; no date", true),
		cheque("cheque-largest", "0f0a0178"+"10ffffffff0f18ffffffff0f", "78", 1<<32-1, 1<<32-1, "date in 2106 and amount 2^32 - 1", true),
		cheque("cheque-empty", "00", "", 0, 0, "an empty message is a cheque of 0 when it is not the first frame", true),
		cheque("cheque-like-handshake", "030a0164", "64", 0, 0, "the bytes of threshold-100 in a later place", true),
		cheque("cheque-last-field-counts", "0618011802"+"1803", "", 0, 3, "of a field that comes twice the last counts", false),
		{Name: "oversize", Protocol: string(ProtocolAlpha1), Message: "length only", About: "a length of 4097", Frame: "8120", Error: "oversize"},
		{Name: "garbage", Protocol: string(ProtocolAlpha1), Message: "Cheque", About: "a field without its value", Frame: "010a", Error: "garbage"},
	}
}

// garbage marks a frame that does not decode.
func (v vector) garbage() vector {
	v.Error, v.Fields, v.About = "garbage", nil, "a field of 42 bytes in a frame that has one left"
	return v
}

func beta1Vectors() []vector {
	mk := func(name, frame, about string, amount uint32, status string) vector {
		v := vector{Name: name, Protocol: string(ProtocolBeta1), Message: "Cheque", About: about, Frame: frame, Error: status}
		if status == "" {
			v.Fields = map[string]any{"amount": dec(amount)}
		}
		return v
	}
	return []vector{
		mk("cheque-nwaku", "0818012204"+"30786162", "as nwaku writes it: amount and signature, and the reader is the beneficiary", 1, ""),
		mk("cheque-nwaku-full", "0d0a017810011864"+"22043078"+"6162", "every field", 100, ""),
		mk("cheque-go-waku", "0a0a01781201791801"+"2064", "go-waku's layout: field 2 is bytes, field 4 a number", 0, "other_layout"),
		mk("cheque-go-waku-short", "0418012064", "the same without field 2", 0, "other_layout"),
	}
}

func TestVectors(t *testing.T) {
	files := map[string][]vector{"native.json": nativeVectors(t), "alpha1.json": alpha1Vectors(), "beta1.json": beta1Vectors()}
	for name, vectors := range files {
		var want bytes.Buffer
		enc := json.NewEncoder(&want)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		if err := enc.Encode(vectors); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(vectorDir, name)
		if *update {
			if err := os.WriteFile(path, want.Bytes(), 0o640); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want.Bytes()) {
			t.Errorf("%s is not what the code writes (go test -run TestVectors -update, and read the diff)", path)
		}
		for _, v := range vectors {
			t.Run(name+"/"+v.Name, func(t *testing.T) { checkVector(t, v) })
		}
	}
}

// checkVector reads the frame as a stream of its protocol would, and writes it
// back.
func checkVector(t *testing.T, v vector) {
	raw, err := hex.DecodeString(v.Frame)
	if err != nil {
		t.Fatal(err)
	}
	_, self := vectorKey(t, 2)
	b, err := wire.NewReader(memory{bytes.NewReader(raw)}, maxFrame(protocolOf(v))).ReadFrame()
	var m swap.Message
	if err == nil {
		m, err = decodeAs(v, b, self)
	}
	if v.Error != "" {
		if got := readStatus(err); err == nil || got.String() != v.Error {
			t.Fatalf("status %v (%v), want %s", got, err, v.Error)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	switch m := m.(type) {
	case *swap.Handshake:
		if want, ok := v.Fields["threshold"]; ok && want != dec(m.PaymentThreshold) {
			t.Fatalf("threshold %d, want %s", m.PaymentThreshold, want)
		}
	case *swap.KarmaCheque:
		if want := v.Fields["amount"]; want != dec(m.Amount) {
			t.Fatalf("amount %d, want %s", m.Amount, want)
		}
		if want, ok := v.Fields["beneficiary"]; ok && want != hex.EncodeToString(m.Beneficiary) {
			t.Fatalf("beneficiary %x, want %s", m.Beneficiary, want)
		}
		if strings.Contains(v.Name, "peer-id") && !m.For(self) {
			t.Fatal("not for us")
		}
	}
	if v.Protocol == string(ProtocolBeta1) {
		return // inbound only
	}
	var again []byte
	switch m := m.(type) {
	case *swap.Handshake:
		if v.Protocol == string(ProtocolAlpha1) {
			again, err = encodeAlpha1Handshake(m)
		} else {
			again, err = encodeFrame(m)
		}
	case *swap.KarmaCheque:
		again, err = encodeAlpha1Cheque(m)
	default:
		again, err = encodeFrame(m)
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := bytes.Equal(frameOf(again), raw); got != v.Canonical {
		t.Fatalf("written back as %x: canonical is %v", frameOf(again), got)
	}
}

func protocolOf(v vector) (id protocolID) { return protocolID(v.Protocol) }

func decodeAs(v vector, b []byte, self peer.ID) (swap.Message, error) {
	switch {
	case v.Protocol == string(ProtocolNative):
		m, _, err := decodeFrame(b)
		return m, err
	case v.Protocol == string(ProtocolBeta1):
		m, err := decodeBeta1Cheque(b, self)
		return m, err
	case v.Message == "Handshake":
		m, err := decodeAlpha1Handshake(b)
		return m, err
	default:
		m, err := decodeAlpha1Cheque(b)
		return m, err
	}
}

// The signatures of the example hold, and the texts are what they sign.
func TestSignedExample(t *testing.T) {
	ex := signed(t)
	for _, s := range []struct {
		text, sig []byte
		id        peer.ID
	}{{ex.ChequeText, ex.Cheque.Signature, ex.Issuer}, {ex.AckText, ex.Ack.Signature, ex.Beneficiary}} {
		pub, err := s.id.ExtractPublicKey()
		if err != nil {
			t.Fatal(err)
		}
		if ok, err := pub.Verify(s.text, s.sig); !ok || err != nil {
			t.Fatal(ok, err)
		}
		if ok, _ := pub.Verify(append(s.text, 0), s.sig); ok {
			t.Fatal("another text verifies")
		}
	}
}

// The largest handshake that the checks let through fits a frame, and its size
// is the one that the documents name.
func TestLargestHandshakeFits(t *testing.T) {
	long := peer.ID(append([]byte{0, 62}, bytes.Repeat([]byte{0xff}, 62)...))
	c := &swap.Cheque{
		Issuer: long, Beneficiary: long, Serial: 1<<64 - 1, Cumulative: MaxAmount, Served: MaxAmount, Consumed: MaxAmount,
		Balance: -tally.Balance(MaxAmount), Date: -1, Backing: make([]byte, swap.MaxBacking), Signature: make([]byte, swap.MaxSignature),
	}
	a := &swap.Ack{
		Issuer: long, Beneficiary: long, Serial: 1<<64 - 1, Credited: MaxAmount, Served: MaxAmount, Consumed: MaxAmount,
		Balance: -tally.Balance(MaxAmount), Signature: make([]byte, swap.MaxSignature),
	}
	name := strings.Repeat("n", maxName)
	h := &swap.Handshake{
		Realm: swap.Realm{Network: name, Genesis: name, Asset: name},
		Terms: swap.Terms{PaymentThreshold: 1<<64 - 1, DisconnectThreshold: 1<<64 - 1, Mode: swap.ModeHard},
		Payout: swap.Payout{
			Address: strings.Repeat("a", swap.MaxPayoutAddress), Proof: make([]byte, swap.MaxPayoutProof),
			Consent: make([]byte, swap.MaxPayoutConsent), Channel: strings.Repeat("c", swap.MaxPayoutAddress), Origin: MaxAmount,
		},
		Totals:     swap.Totals{Served: MaxAmount, Consumed: MaxAmount, SeenServed: MaxAmount, SeenConsumed: MaxAmount, AtRest: true, Uncovered: MaxAmount},
		ChequeSent: c, ChequeReceived: c, AckGiven: a, AckReceived: a,
	}
	b, err := encodeFrame(h)
	if err != nil {
		t.Fatal(err)
	}
	if want := 8170; len(b) != want || len(b) > MaxNativeFrame {
		t.Fatalf("the largest handshake has %d bytes; MaxNativeFrame and the spec say %d", len(b), want)
	}
	longer := *h
	longer.Payout.Address += "a"
	if _, err := encodeFrame(&longer); !errors.Is(err, swap.ErrMalformed) {
		t.Fatal(err)
	}
	if _, err := marshal(&swappb.Alpha1Cheque{Beneficiary: make([]byte, 5000)}, MaxAlpha1Frame); !errors.Is(err, wire.ErrFrameTooLarge) {
		t.Fatal(err)
	}
}

// The document and the vectors are equal: what stands between its two marks is
// written from testdata.
func TestSpecHasTheVectors(t *testing.T) {
	ex := signed(t)
	var b strings.Builder
	for _, name := range []string{"native", "alpha1", "beta1"} {
		raw, err := os.ReadFile(filepath.Join(vectorDir, name+".json"))
		if err != nil {
			t.Fatal(err)
		}
		var vectors []vector
		if err := json.Unmarshal(raw, &vectors); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "### %s\n\n", vectors[0].Protocol)
		for _, v := range vectors {
			fmt.Fprintf(&b, "- **%s** (%s)", v.Name, v.Message)
			if v.About != "" {
				fmt.Fprintf(&b, ": %s", v.About)
			}
			if v.Error != "" {
				fmt.Fprintf(&b, "; ends the stream: %s", v.Error)
			}
			if n, ok := v.Fields["threshold"]; ok {
				fmt.Fprintf(&b, "; reads as %s", n)
			}
			fmt.Fprintf(&b, "\n\n%s\n\n", codeHex(v.Frame))
		}
	}
	b.WriteString("### The signed cheque and its ack\n\n")
	fmt.Fprintf(&b, "Issuer: Ed25519 key from a seed of 32 bytes 01, peer id `%s`. Beneficiary: from 32 bytes 02, peer id `%s`. ", ex.Issuer, ex.Beneficiary)
	fmt.Fprintf(&b, "Network `%s`, genesis `%s`, asset `%s`.\n\n", ex.Realm.Network, ex.Realm.Genesis, ex.Realm.Asset)
	hash := ex.Cheque.Hash(ex.Realm)
	for _, part := range []struct {
		title string
		bytes []byte
	}{
		{"Text of the cheque (serial 3, cumulative 300, served 40, consumed 390, balance -50, date 1600000000, no backing)", ex.ChequeText},
		{"Signature of the cheque", ex.Cheque.Signature},
		{"Hash of the cheque", hash[:]},
		{"Text of the ack (serial 3, credited 300, served 390, consumed 40, balance 50)", ex.AckText},
		{"Signature of the ack", ex.Ack.Signature},
	} {
		fmt.Fprintf(&b, "%s:\n\n%s\n\n", part.title, codeHex(hex.EncodeToString(part.bytes)))
	}

	const begin, end = "<!-- vectors: begin -->\n", "<!-- vectors: end -->\n"
	raw, err := os.ReadFile(specFile)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(raw), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatal("the marks are gone")
	}
	want := head + begin + "\n" + b.String() + end + tail
	if *update {
		if err := os.WriteFile(specFile, []byte(want), 0o640); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(raw) != want {
		t.Error("docs/protocol/swap.md is not what testdata says (go test -run 'TestVectors|TestSpec' -update)")
	}
}

// codeHex sets hex in lines of 32 bytes.
func codeHex(s string) string {
	var b strings.Builder
	b.WriteString("```\n")
	for len(s) > 64 {
		b.WriteString(s[:64] + "\n")
		s = s[64:]
	}
	b.WriteString(s + "\n```")
	return b.String()
}
