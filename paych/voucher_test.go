package paych_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math"
	"math/big"
	"os"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
	"github.com/decred/dcrd/dcrec/secp256k1/v4/ecdsa"
	"github.com/filecoin-project/go-address"
	gocrypto "github.com/filecoin-project/go-crypto"
	"github.com/filecoin-project/go-state-types/abi"
	filbig "github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/crypto"
	"golang.org/x/crypto/blake2b"
	"pgregory.net/rapid"

	"github.com/tallystick/tally/paych"
)

// testKey is a private key that everybody knows.
var testKey = bytes.Repeat([]byte{0x42}, 32)

// keyAddress returns the f1 address of a private key, by the library that Lotus
// uses, which is not the one that paych verifies with.
func keyAddress(t testing.TB, key []byte) address.Address {
	t.Helper()
	a, err := address.NewSecp256k1Address(gocrypto.PublicKey(key))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// signWith signs without a random nonce (RFC 6979), so that the bytes are the
// same every time.
func signWith(key, msg []byte) *crypto.Signature {
	digest := blake2b.Sum256(msg)
	compact := ecdsa.SignCompact(secp256k1.PrivKeyFromBytes(key), digest[:], false)
	return &crypto.Signature{Type: crypto.SigTypeSecp256k1, Data: append(compact[1:], compact[0]-27)}
}

func channel(t testing.TB) address.Address {
	t.Helper()
	a, err := address.NewActorAddress([]byte("tallystick test channel"))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// signed returns a voucher that testKey signed.
func signed(t testing.TB, change ...func(*paych.SignedVoucher)) *paych.SignedVoucher {
	t.Helper()
	sv := &paych.SignedVoucher{ChannelAddr: channel(t), Lane: 1, Nonce: 7, Amount: filbig.NewInt(1e9)}
	for _, f := range change {
		f(sv)
	}
	msg, err := paych.SigningBytes(sv)
	if err != nil {
		t.Fatal(err)
	}
	sv.Signature = signWith(testKey, msg)
	return sv
}

// A voucher that a Lotus node printed reads, writes out byte for byte, and
// yields the address of the key that signed it.
func TestVoucherOfLotus(t *testing.T) {
	data, err := os.ReadFile("testdata/vouchers.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []struct {
		Source, Text, Signer string
		Lane, Nonce          uint64
		Amount               string `json:"amount_attofil"`
		Prefix               string `json:"channel_prefix"`
	}
	if err := json.Unmarshal(data, &vectors); err != nil || len(vectors) == 0 {
		t.Fatalf("%d vectors: %v", len(vectors), err)
	}
	for _, v := range vectors {
		sv, err := paych.ParseVoucher(v.Text)
		if err != nil {
			t.Fatalf("%s: %v", v.Source, err)
		}
		// Addresses print with f here; the vector has t, of a test network.
		ch := "t" + strings.TrimPrefix(sv.ChannelAddr.String(), "f")
		if sv.Lane != v.Lane || sv.Nonce != v.Nonce || sv.Amount.String() != v.Amount || !strings.HasPrefix(ch, v.Prefix) {
			t.Errorf("%s: %+v", v.Source, sv)
		}
		if text, err := paych.FormatVoucher(sv); err != nil || text != v.Text {
			t.Errorf("%s: came back as %s (%v)", v.Source, text, err)
		}
		want, err := address.NewFromString(v.Signer)
		if err != nil {
			t.Fatal(err)
		}
		got, err := paych.Signer(sv)
		if err != nil || got != want {
			t.Errorf("%s: signer %s (%v), want %s", v.Source, got, err, want)
		}
		if err := paych.Verify(sv, want); err != nil {
			t.Errorf("%s: %v", v.Source, err)
		}
		if err := paych.Verify(sv, keyAddress(t, testKey)); !errors.Is(err, paych.ErrSignature) {
			t.Errorf("%s: another signer: %v", v.Source, err)
		}
	}
}

func TestParseVoucherRefuses(t *testing.T) {
	good, err := paych.FormatVoucher(signed(t))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := base64.RawURLEncoding.DecodeString(good)
	if err != nil {
		t.Fatal(err)
	}
	text := base64.RawURLEncoding.EncodeToString
	// Offsets in the CBOR: 1 the array, 22 the channel, then one byte each of
	// TimeLockMin and so on.
	const timeLockMin, secretHash = 23, 25
	splice := func(at int, with ...byte) string {
		return text(append(append(bytes.Clone(raw[:at]), with...), raw[at+1:]...))
	}
	for name, bad := range map[string]string{
		"empty":             "",
		"null":              text([]byte{0xf6}),
		"cut":               text(raw[:len(raw)-1]),
		"trailing":          text(append(bytes.Clone(raw), 0)),
		"padding":           good + "=",
		"line end":          good[:10] + "\n" + good[10:],
		"line end at last":  good + "\n",
		"standard alphabet": "+" + good[1:],
		"space":             " " + good,
		"ten fields":        splice(0, 0x8a),
		"twelve fields":     splice(0, 0x8c),
		"long integer":      splice(timeLockMin, 0x18, 0),
		"epoch overflow":    splice(timeLockMin, 0x1b, 0xff, 0, 0, 0, 0, 0, 0, 0),
		"epoch as bytes":    splice(timeLockMin, 0x40),
		"2 MiB not there":   splice(secretHash, 0x5a, 0, 0x20, 0, 0),
		"null lock":         splice(secretHash, 0xf6),
		"indefinite":        splice(secretHash, 0x5f, 0xff),
		"too long":          strings.Repeat("A", 5464),
		"too long in bytes": text(make([]byte, paych.MaxVoucherSize+1)),
	} {
		if sv, err := paych.ParseVoucher(bad); !errors.Is(err, paych.ErrVoucherFormat) {
			t.Errorf("%s: %v, %v", name, sv, err)
		}
	}
	// Stray bits in the last character, where there are any.
	sv := signed(t)
	for range 3 {
		sv.SecretHash = append(sv.SecretHash, 1)
		text, err := paych.FormatVoucher(sv)
		if err != nil {
			t.Fatal(err)
		}
		const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
		for i := range 64 {
			other := text[:len(text)-1] + alphabet[i:i+1]
			got, err := paych.ParseVoucher(other)
			if err == nil && other != text && reflect.DeepEqual(got, sv) {
				t.Fatalf("%s and %s are one voucher", text, other)
			}
		}
	}
}

// Amounts have a byte for the sign and no leading zeros; the library takes more.
func TestAmountHasOneForm(t *testing.T) {
	good, err := paych.EncodeVoucher(signed(t, func(sv *paych.SignedVoucher) { sv.Amount = filbig.NewInt(5) }))
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(good, []byte{0x42, 0, 5})
	if at < 0 {
		t.Fatalf("no amount in %x", good)
	}
	for name, amount := range map[string][]byte{
		"leading zero":       {0x43, 0, 0, 5},
		"zero with a sign":   {0x41, 0},
		"minus zero":         {0x41, 1},
		"a sign of its own":  {0x42, 2, 5},
		"minus leading zero": {0x43, 1, 0, 5},
		"129 bytes":          append([]byte{0x58, 129, 0, 1}, make([]byte, 127)...),
	} {
		bad := append(append(bytes.Clone(good[:at]), amount...), good[at+3:]...)
		if sv, err := paych.DecodeVoucher(bad); !errors.Is(err, paych.ErrVoucherFormat) {
			t.Errorf("%s: %v, %v", name, sv, err)
		}
	}
}

func TestEncodeVoucherRefuses(t *testing.T) {
	for name, change := range map[string]func(*paych.SignedVoucher){
		"no channel":      func(sv *paych.SignedVoucher) { sv.ChannelAddr = address.Undef },
		"amount too long": func(sv *paych.SignedVoucher) { sv.Amount = filbig.Lsh(filbig.NewInt(1), 1100) },
		"too long":        func(sv *paych.SignedVoucher) { sv.SecretHash = make([]byte, paych.MaxVoucherSize) },
	} {
		sv := signed(t)
		change(sv)
		if _, err := paych.FormatVoucher(sv); !errors.Is(err, paych.ErrVoucherFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := paych.EncodeVoucher(nil); !errors.Is(err, paych.ErrVoucherFormat) {
		t.Errorf("nil: %v", err)
	}
	if _, err := paych.SigningBytes(nil); !errors.Is(err, paych.ErrVoucherFormat) {
		t.Errorf("nil: %v", err)
	}
	// A nil amount is 0.
	sv := signed(t, func(sv *paych.SignedVoucher) { sv.Amount = filbig.Int{} })
	if data, err := paych.EncodeVoucher(sv); err != nil {
		t.Error(err)
	} else if back, err := paych.DecodeVoucher(data); err != nil || !back.Amount.Equals(filbig.Zero()) {
		t.Errorf("%v %v", back, err)
	}
}

// What a text costs to refuse is bounded by its length.
func TestParseVoucherAllocatesWhatIsThere(t *testing.T) {
	good, err := paych.EncodeVoucher(signed(t))
	if err != nil {
		t.Fatal(err)
	}
	bad := append(append(bytes.Clone(good[:25]), 0x5a, 0, 0x20, 0, 0), good[26:]...)
	text := base64.RawURLEncoding.EncodeToString(bad)
	const runs = 64
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range runs {
		if _, err := paych.ParseVoucher(text); err == nil {
			t.Fatal("parsed")
		}
	}
	runtime.ReadMemStats(&after)
	if got := (after.TotalAlloc - before.TotalAlloc) / runs; got > 64<<10 {
		t.Errorf("%d bytes allocated for a text of %d", got, len(text))
	}
}

// Every field is signed.
func TestSignatureCoversEveryField(t *testing.T) {
	signer := keyAddress(t, testKey)
	base := func() *paych.SignedVoucher {
		return signed(t, func(sv *paych.SignedVoucher) {
			sv.TimeLockMin, sv.TimeLockMax, sv.MinSettleHeight = 1, 2, 3
			sv.SecretHash = make([]byte, 32)
			sv.Extra = &paych.ModVerifyParams{Actor: signer, Method: 1, Data: []byte{1}}
			sv.Merges = []paych.Merge{{Lane: 4, Nonce: 5}}
		})
	}
	if err := paych.Verify(base(), signer); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*paych.SignedVoucher){
		"channel":     func(sv *paych.SignedVoucher) { sv.ChannelAddr = signer },
		"min":         func(sv *paych.SignedVoucher) { sv.TimeLockMin++ },
		"max":         func(sv *paych.SignedVoucher) { sv.TimeLockMax++ },
		"lock":        func(sv *paych.SignedVoucher) { sv.SecretHash[0]++ },
		"no lock":     func(sv *paych.SignedVoucher) { sv.SecretHash = nil },
		"extra":       func(sv *paych.SignedVoucher) { sv.Extra.Method++ },
		"no extra":    func(sv *paych.SignedVoucher) { sv.Extra = nil },
		"lane":        func(sv *paych.SignedVoucher) { sv.Lane++ },
		"nonce":       func(sv *paych.SignedVoucher) { sv.Nonce++ },
		"amount":      func(sv *paych.SignedVoucher) { sv.Amount = filbig.Add(sv.Amount, filbig.NewInt(1)) },
		"sign":        func(sv *paych.SignedVoucher) { sv.Amount = sv.Amount.Neg() },
		"height":      func(sv *paych.SignedVoucher) { sv.MinSettleHeight++ },
		"merge":       func(sv *paych.SignedVoucher) { sv.Merges[0].Nonce++ },
		"no merge":    func(sv *paych.SignedVoucher) { sv.Merges = nil },
		"merge twice": func(sv *paych.SignedVoucher) { sv.Merges = append(sv.Merges, sv.Merges[0]) },
	} {
		sv := base()
		change(sv)
		if err := paych.Verify(sv, signer); !errors.Is(err, paych.ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// order and prime of secp256k1, and the numbers that break sloppy verifiers.
var (
	order, _ = new(big.Int).SetString("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141", 16)
	prime, _ = new(big.Int).SetString("fffffffffffffffffffffffffffffffffffffffffffffffffffffffefffffc2f", 16)
	half     = new(big.Int).Rsh(order, 1)
	one      = big.NewInt(1)
)

func word(i *big.Int) []byte { return i.FillBytes(make([]byte, 32)) }

func TestHostileSignatures(t *testing.T) {
	signer := keyAddress(t, testKey)
	sv := signed(t)
	sig := sv.Signature.Data
	r, s, v := sig[:32], sig[32:64], sig[64]
	if new(big.Int).SetBytes(s).Cmp(half) > 0 {
		t.Fatal("the signer gave a high s")
	}
	join := func(r, s []byte, v byte) []byte { return append(append(bytes.Clone(r), s...), v) }
	minus := func(a, b *big.Int) []byte { return word(new(big.Int).Sub(a, b)) }
	high := minus(order, new(big.Int).SetBytes(s))
	key := secp256k1.PrivKeyFromBytes(testKey)
	msg, err := paych.SigningBytes(sv)
	if err != nil {
		t.Fatal(err)
	}
	digest := blake2b.Sum256(msg)
	sum := make([]byte, 32)

	type hostile struct {
		name string
		typ  crypto.SigType
		data []byte
		err  error
	}
	const k1 = crypto.SigTypeSecp256k1
	var cases []hostile
	add := func(name string, data []byte) { cases = append(cases, hostile{name, k1, data, paych.ErrSignature}) }
	add("malleated", join(r, high, v^1))
	add("high s, same v", join(r, high, v))
	add("v of the other point", join(r, s, v^1))
	for _, v := range []byte{2, 3, 4, 27, 28, 29, 30, 31, 34, 128, 228, 229, 255} {
		add("v "+hex.EncodeToString([]byte{v}), join(r, s, v))
	}
	add("empty", nil)
	add("64 bytes", sig[:64])
	add("66 bytes", append(bytes.Clone(sig), 0))
	add("v first", append([]byte{v + 27}, sig[:64]...))
	add("ASN.1", ecdsa.Sign(key, digest[:]).Serialize())
	add("all zero", make([]byte, 65))
	add("all ones", bytes.Repeat([]byte{0xff}, 65))
	add("r and s swapped", join(s, r, v))
	for name, n := range map[string]*big.Int{
		"0": new(big.Int), "1": one, "n-1": new(big.Int).Sub(order, one), "n": order, "n+1": new(big.Int).Add(order, one),
		"n/2": half, "n/2+1": new(big.Int).Add(half, one), "p-1": new(big.Int).Sub(prime, one), "p": prime, "p-n": new(big.Int).Sub(prime, order),
		"2^256-1": new(big.Int).SetBytes(bytes.Repeat([]byte{0xff}, 32)),
		"5":       big.NewInt(5), // no point has this x
	} {
		for v := range byte(4) {
			add("r = "+name, join(word(n), s, v))
			add("s = "+name, join(r, word(n), v))
			add("r = s = "+name, join(word(n), word(n), v))
		}
	}
	add("another digest", signWith(testKey, append(bytes.Clone(msg), 0)).Data)
	copy(sum, digest[:])
	add("digest of the digest", signWith(testKey, sum).Data)
	add("another key", signWith(bytes.Repeat([]byte{0x43}, 32), msg).Data)
	for _, typ := range []crypto.SigType{crypto.SigTypeBLS, crypto.SigTypeDelegated, crypto.SigTypeUnknown, 0, 77} {
		cases = append(cases, hostile{"type", typ, sig, paych.ErrSignatureType})
	}

	if err := paych.Verify(sv, signer); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		bad := *sv
		bad.Signature = &crypto.Signature{Type: c.typ, Data: c.data}
		if err := paych.Verify(&bad, signer); !errors.Is(err, c.err) {
			t.Errorf("%s %x: %v", c.name, c.data, err)
		}
	}
	// The chain would take the malleated one: it is the same statement.
	if pk, err := gocrypto.EcRecover(digest[:], join(r, high, v^1)); err != nil || !bytes.Equal(pk, gocrypto.PublicKey(testKey)) {
		t.Errorf("the chain refuses what we say it takes: %v", err)
	}
	none := *sv
	none.Signature = nil
	if err := paych.Verify(&none, signer); !errors.Is(err, paych.ErrNotSigned) {
		t.Errorf("no signature: %v", err)
	}
	if _, err := paych.Signer(&none); !errors.Is(err, paych.ErrNotSigned) {
		t.Errorf("no signature: %v", err)
	}
}

// The recovered key is (sR − eG)/r: the point at infinity where R = G and s = e.
func TestKeyAtInfinity(t *testing.T) {
	var g secp256k1.JacobianPoint
	secp256k1.ScalarBaseMultNonConst(new(secp256k1.ModNScalar).SetInt(1), &g)
	g.ToAffine()
	v := byte(0)
	if g.Y.IsOdd() {
		v = 1
	}
	tried := 0
	for n := range byte(20) {
		digest := blake2b.Sum256([]byte{n})
		if new(big.Int).SetBytes(digest[:]).Cmp(half) > 0 {
			continue // refused for its high s already
		}
		x := g.X.Bytes()
		data := append(append(x[:], digest[:]...), v)
		if a, err := paych.RecoverSigner(&crypto.Signature{Type: crypto.SigTypeSecp256k1, Data: data}, []byte{n}); !errors.Is(err, paych.ErrSignature) {
			t.Errorf("signer %s, %v", a, err)
		}
		tried++
	}
	if tried == 0 {
		t.Error("no digest was low enough")
	}
}

// Every flipped bit of a signature is refused.
func TestFlippedBits(t *testing.T) {
	signer := keyAddress(t, testKey)
	sv := signed(t)
	for i := range 8 * paych.SignatureSize {
		bad := *sv
		bad.Signature = &crypto.Signature{Type: crypto.SigTypeSecp256k1, Data: bytes.Clone(sv.Signature.Data)}
		bad.Signature.Data[i/8] ^= 1 << (i % 8)
		if err := paych.Verify(&bad, signer); !errors.Is(err, paych.ErrSignature) {
			t.Fatalf("bit %d: %v", i, err)
		}
	}
}

// fixed signs with a stated key, or lies.
type fixed struct {
	paych.Wallet
	key  []byte
	mend func(*crypto.Signature)
}

func (w fixed) Sign(_ context.Context, _ address.Address, msg []byte) (*crypto.Signature, error) {
	if w.key == nil {
		return nil, errors.New("no such key")
	}
	sig := signWith(w.key, msg)
	if w.mend != nil {
		w.mend(sig)
	}
	return sig, nil
}

type local struct{ fixed }

func (local) Local() {}

func TestSign(t *testing.T) {
	ctx, signer := t.Context(), keyAddress(t, testKey)
	sv := signed(t)
	sv.Signature = nil
	for _, w := range []paych.Wallet{fixed{key: testKey}, local{fixed{key: testKey}}} {
		got, err := paych.Sign(ctx, w, signer, sv)
		if err != nil || paych.Verify(got, signer) != nil || sv.Signature != nil {
			t.Fatalf("%v %v; the original has %v", got, err, sv.Signature)
		}
	}
	high := func(sig *crypto.Signature) {
		s := new(big.Int).SetBytes(sig.Data[32:64])
		copy(sig.Data[32:], word(new(big.Int).Sub(order, s)))
		sig.Data[64] ^= 1
	}
	for name, w := range map[string]paych.Wallet{
		"no key":            fixed{},
		"another key":       fixed{key: bytes.Repeat([]byte{9}, 32)},
		"high s":            fixed{key: testKey, mend: high},
		"high s from local": local{fixed{key: testKey, mend: high}},
		"short":             local{fixed{key: testKey, mend: func(s *crypto.Signature) { s.Data = s.Data[:64] }}},
		"BLS":               fixed{key: testKey, mend: func(s *crypto.Signature) { s.Type = crypto.SigTypeBLS }},
	} {
		if got, err := paych.Sign(ctx, w, signer, sv); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
	bad := *sv
	bad.ChannelAddr = address.Undef
	if _, err := paych.Sign(ctx, fixed{key: testKey}, signer, &bad); !errors.Is(err, paych.ErrVoucherFormat) {
		t.Errorf("no channel: %v", err)
	}
}

// Any voucher comes back from text, and ours and Lotus' library agree on who
// signed it.
func TestVoucherRoundTrip(t *testing.T) {
	ch := channel(t)
	rapid.Check(t, func(t *rapid.T) {
		epoch := rapid.OneOf(rapid.Int64Range(0, 5e6), rapid.SampledFrom([]int64{-1, math.MinInt64, math.MaxInt64, 1 << 62}))
		u := rapid.OneOf(rapid.Uint64(), rapid.Uint64Range(0, 30), rapid.SampledFrom([]uint64{1 << 63, math.MaxUint64}))
		sv := &paych.SignedVoucher{
			ChannelAddr: ch,
			TimeLockMin: abi.ChainEpoch(epoch.Draw(t, "min")),
			TimeLockMax: abi.ChainEpoch(epoch.Draw(t, "max")),
			Lane:        u.Draw(t, "lane"), Nonce: u.Draw(t, "nonce"),
			Amount:          filbig.NewFromGo(new(big.Int).SetBytes(rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "amount"))),
			MinSettleHeight: abi.ChainEpoch(epoch.Draw(t, "height")),
		}
		if rapid.Bool().Draw(t, "negative") {
			sv.Amount = sv.Amount.Neg()
		}
		if rapid.Bool().Draw(t, "locked") {
			sv.SecretHash = rapid.SliceOfN(rapid.Byte(), 1, 64).Draw(t, "lock")
		}
		if rapid.Bool().Draw(t, "extra") {
			sv.Extra = &paych.ModVerifyParams{Actor: ch, Method: abi.MethodNum(u.Draw(t, "method"))}
		}
		for range rapid.IntRange(0, 3).Draw(t, "merges") {
			sv.Merges = append(sv.Merges, paych.Merge{Lane: u.Draw(t, "other"), Nonce: u.Draw(t, "other nonce")})
		}
		key := rapid.SliceOfN(rapid.ByteRange(1, 0xfe), 32, 32).Draw(t, "key")
		msg, err := paych.SigningBytes(sv)
		if err != nil {
			t.Fatal(err)
		}
		digest := blake2b.Sum256(msg)
		data, err := gocrypto.Sign(key, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		sv.Signature = &crypto.Signature{Type: crypto.SigTypeSecp256k1, Data: data}
		text, err := paych.FormatVoucher(sv)
		if err != nil {
			t.Fatal(err)
		}
		back, err := paych.ParseVoucher(text)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := paych.FormatVoucher(back); err != nil || again != text {
			t.Fatalf("%s came back as %s (%v)", text, again, err)
		}
		want, err := address.NewSecp256k1Address(gocrypto.PublicKey(key))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := paych.Signer(back); err != nil || got != want {
			t.Fatalf("signer %s (%v), want %s", got, err, want)
		}
	})
}

func FuzzParseVoucher(f *testing.F) {
	for _, change := range []func(*paych.SignedVoucher){
		func(*paych.SignedVoucher) {},
		func(sv *paych.SignedVoucher) { sv.SecretHash = make([]byte, 32); sv.TimeLockMax = 5000 },
		func(sv *paych.SignedVoucher) {
			sv.Merges = []paych.Merge{{Lane: 1, Nonce: 2}}
			sv.Amount = filbig.NewInt(-1)
		},
		func(sv *paych.SignedVoucher) {
			sv.Extra = &paych.ModVerifyParams{Actor: sv.ChannelAddr, Data: []byte{0x80}}
		},
	} {
		text, err := paych.FormatVoucher(signed(f, change))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		sv, err := paych.ParseVoucher(text)
		if err != nil {
			if !errors.Is(err, paych.ErrVoucherFormat) {
				t.Fatalf("error %v", err)
			}
			return
		}
		if again, err := paych.FormatVoucher(sv); err != nil || again != text {
			t.Fatalf("%q came back as %q (%v)", text, again, err)
		}
		if _, err := paych.SigningBytes(sv); err != nil {
			t.Fatal(err)
		}
		_, _ = paych.Signer(sv) // must not panic
	})
}

// FuzzDecodeVoucher is FuzzParseVoucher below the text, where a mutation reaches
// the fields.
func FuzzDecodeVoucher(f *testing.F) {
	good, err := paych.EncodeVoucher(signed(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, data []byte) {
		sv, err := paych.DecodeVoucher(data)
		if err != nil {
			return
		}
		if again, err := paych.EncodeVoucher(sv); err != nil || !bytes.Equal(again, data) {
			t.Fatalf("%x came back as %x (%v)", data, again, err)
		}
	})
}

// FuzzRecoverSigner holds ours against the library that Lotus uses: the same
// signatures, but for the high s, recover to the same key.
func FuzzRecoverSigner(f *testing.F) {
	f.Add(signWith(testKey, []byte("x")).Data, []byte("x"))
	f.Add(make([]byte, 65), []byte{})
	f.Fuzz(func(t *testing.T, sig, msg []byte) {
		digest := blake2b.Sum256(msg)
		got, err := paych.RecoverSigner(&crypto.Signature{Type: crypto.SigTypeSecp256k1, Data: sig}, msg)
		pk, theirs := gocrypto.EcRecover(digest[:], sig)
		if theirs != nil {
			if err == nil {
				t.Fatalf("we take %x, Lotus does not: %v", sig, theirs)
			}
			return
		}
		if err != nil {
			if new(big.Int).SetBytes(sig[32:64]).Cmp(half) <= 0 {
				t.Fatalf("Lotus takes %x, we do not", sig)
			}
			return
		}
		if want, err := address.NewSecp256k1Address(pk); err != nil || want != got {
			t.Fatalf("signer %s, Lotus says %s (%v)", got, want, err)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	sv, signer := signed(b), keyAddress(b, testKey)
	for b.Loop() {
		if err := paych.Verify(sv, signer); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseVoucher(b *testing.B) {
	text, err := paych.FormatVoucher(signed(b))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := paych.ParseVoucher(text); err != nil {
			b.Fatal(err)
		}
	}
}
