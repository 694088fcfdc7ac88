package paych_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/big"
	"os"
	"strings"
	"testing"

	filbig "github.com/filecoin-project/go-state-types/big"
	"golang.org/x/crypto/blake2b"

	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/actor"
)

// This test writes the vectors of docs/protocol/voucher.md and of
// testdata/voucher-vectors.json with -update, and compares them without: a
// change of one byte of the format shows in both.

var update = flag.Bool("update", false, "write the voucher vectors anew")

const (
	vectorFile = "testdata/voucher-vectors.json"
	vectorDoc  = "../docs/protocol/voucher.md"
	docBegin   = "<!-- vectors: begin, written by go test ./paych -run TestVoucherVectors -update -->\n"
	docEnd     = "<!-- vectors: end -->\n"
)

// payeeKey is the other party's private key, as well known as testKey.
var payeeKey = bytes.Repeat([]byte{0x43}, 32)

// vector is one voucher, byte by byte, in hex where not said otherwise.
type vector struct {
	Name         string `json:"name"`
	Key          string `json:"key"`
	Signer       string `json:"signer"` // address
	SigningBytes string `json:"signing_bytes"`
	Digest       string `json:"digest"`
	Signature    string `json:"signature"` // r‖s‖v
	CBOR         string `json:"cbor"`
	Text         string `json:"text"` // base64
	Secret       string `json:"secret,omitempty"`
	// Params of UpdateChannelState that redeem it.
	Params string `json:"params"`
}

// refused is what a reader of vouchers must not take.
type refused struct {
	Name string `json:"name"`
	Why  string `json:"why"`
	Text string `json:"text"`
}

type vectors struct {
	Channel string    `json:"channel"`
	Valid   []vector  `json:"valid"`
	Refused []refused `json:"refused"`
}

func TestVoucherVectors(t *testing.T) {
	got := vectors{Channel: channel(t).String()}
	secret := bytes.Repeat([]byte{0x07}, 32)
	lock := blake2b.Sum256(secret)
	for _, v := range []struct {
		name   string
		key    []byte
		secret []byte
		change func(*paych.SignedVoucher)
	}{
		{"plain: lane 1, nonce 7, 1 nanoFIL", testKey, nil, func(*paych.SignedVoucher) {}},
		{"locked: opened by a secret, up to an epoch", testKey, secret, func(sv *paych.SignedVoucher) {
			sv.Lane, sv.Nonce, sv.SecretHash, sv.TimeLockMax = 2, 1, lock[:], 5_000_000
		}},
		{"cancel: signed by the payee, amount 0", payeeKey, nil, func(sv *paych.SignedVoucher) {
			sv.Lane, sv.Nonce, sv.Amount = 2, 2, filbig.Zero()
		}},
		{"every field, at its greatest where it has one", testKey, nil, func(sv *paych.SignedVoucher) {
			sv.TimeLockMin, sv.TimeLockMax, sv.MinSettleHeight = 1000, math.MaxInt64, 4_611_686_018_427_387_904
			sv.Lane, sv.Nonce = math.MaxInt64, math.MaxUint64
			sv.Amount = filbig.MustFromString("2000000000000000000000000000") // all FIL there is
			sv.Extra = &paych.ModVerifyParams{Actor: sv.ChannelAddr, Method: 3, Data: []byte{0x80}}
			sv.Merges = []paych.Merge{{Lane: 1, Nonce: 8}, {Lane: 300, Nonce: 70000}}
		}},
	} {
		sv := signed(t, v.change)
		msg, err := paych.SigningBytes(sv)
		if err != nil {
			t.Fatal(err)
		}
		sv.Signature = signWith(v.key, msg)
		if err := paych.Verify(sv, keyAddress(t, v.key)); err != nil {
			t.Fatalf("%s: %v", v.name, err)
		}
		cbor, err := paych.EncodeVoucher(sv)
		if err != nil {
			t.Fatal(err)
		}
		text, err := paych.FormatVoucher(sv)
		if err != nil {
			t.Fatal(err)
		}
		params, err := actor.Redeem(*sv, v.secret).Params()
		if err != nil {
			t.Fatal(err)
		}
		digest := blake2b.Sum256(msg)
		got.Valid = append(got.Valid, vector{
			Name: v.name, Key: hex.EncodeToString(v.key), Signer: keyAddress(t, v.key).String(),
			SigningBytes: hex.EncodeToString(msg), Digest: hex.EncodeToString(digest[:]),
			Signature: hex.EncodeToString(sv.Signature.Data), CBOR: hex.EncodeToString(cbor), Text: text,
			Secret: hex.EncodeToString(v.secret), Params: hex.EncodeToString(params),
		})
	}
	got.Refused = refusedVectors(t)

	data, err := json.MarshalIndent(got, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	data = append(data, '\n')
	want, err := os.ReadFile(vectorFile)
	if err != nil && !*update {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(vectorDoc)
	if err != nil {
		t.Fatal(err)
	}
	begin, end := strings.Index(string(doc), docBegin), strings.Index(string(doc), docEnd)
	if begin < 0 || end < begin {
		t.Fatalf("%s has no place for the vectors", vectorDoc)
	}
	newDoc := string(doc[:begin]) + docBegin + "\n" + got.markdown() + string(doc[end:])
	if *update {
		for path, data := range map[string][]byte{vectorFile: data, vectorDoc: []byte(newDoc)} {
			if err := os.WriteFile(path, data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	if !bytes.Equal(want, data) {
		t.Errorf("%s is not what this code makes (-update writes it)", vectorFile)
	}
	if newDoc != string(doc) {
		t.Errorf("%s is not what this code makes (-update writes it)", vectorDoc)
	}
}

// refusedVectors are near misses of the plain voucher.
func refusedVectors(t *testing.T) (list []refused) {
	t.Helper()
	sv := signed(t)
	good, err := paych.EncodeVoucher(sv)
	if err != nil {
		t.Fatal(err)
	}
	add := func(name, why string, data []byte) {
		text := base64.RawURLEncoding.EncodeToString(data)
		list = append(list, refused{name, why, text})
		back, err := paych.ParseVoucher(text)
		if err == nil {
			err = paych.Verify(back, keyAddress(t, testKey))
		}
		if !errors.Is(err, paych.ErrVoucherFormat) && !errors.Is(err, paych.ErrSignature) &&
			!errors.Is(err, paych.ErrSignatureType) && !errors.Is(err, paych.ErrNotSigned) {
			t.Errorf("%s: %v", name, err)
		}
	}
	with := func(change func(sig []byte)) []byte {
		data := bytes.Clone(good)
		change(data[len(data)-paych.SignatureSize:])
		return data
	}
	add("high s", "the second signature that anybody can make from a valid one", with(func(sig []byte) {
		copy(sig[32:64], word(new(big.Int).Sub(order, new(big.Int).SetBytes(sig[32:64]))))
		sig[64] ^= 1
	}))
	add("v + 27", "v as Ethereum writes it", with(func(sig []byte) { sig[64] += 27 }))
	add("wrong v", "recovers to another key", with(func(sig []byte) { sig[64] ^= 1 }))
	add("BLS type", "type byte 2 before a secp256k1 signature", func() []byte {
		data := bytes.Clone(good)
		data[len(data)-paych.SignatureSize-1] = 2
		return data
	}())
	sv.Signature = nil
	unsigned, err := paych.EncodeVoucher(sv)
	if err != nil {
		t.Fatal(err)
	}
	add("unsigned", "null in the signature's place", unsigned)
	add("trailing byte", "data after the array", append(bytes.Clone(good), 0))
	add("long integer", "TimeLockMin 0 in two bytes", append(append(bytes.Clone(good[:23]), 0x18, 0), good[24:]...))
	add("length beyond the end", "SecretHash says 2 MiB", append(append(bytes.Clone(good[:25]), 0x5a, 0, 0x20, 0, 0), good[26:]...))
	return list
}

func (v vectors) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Channel `%s`.\n", v.Channel)
	for _, x := range v.Valid {
		fmt.Fprintf(&b, "\n### %s\n\n```\n", x.Name)
		for _, line := range [][2]string{
			{"key", x.Key},
			{"signer", x.Signer},
			{"signing bytes", x.SigningBytes},
			{"digest", x.Digest},
			{"signature", x.Signature},
			{"cbor", x.CBOR},
			{"text", x.Text},
			{"secret", x.Secret},
			{"params", x.Params},
		} {
			for i := 0; i < len(line[1]); i += 64 {
				name := line[0]
				if i > 0 {
					name = ""
				}
				fmt.Fprintf(&b, "%-14s %s\n", name, line[1][i:min(i+64, len(line[1]))])
			}
		}
		b.WriteString("```\n")
	}
	b.WriteString("\n### Refused\n\n| | why |\n|---|---|\n")
	for _, x := range v.Refused {
		fmt.Fprintf(&b, "| %s | %s |\n", x.Name, x.Why)
	}
	b.WriteString("\n")
	return b.String()
}
