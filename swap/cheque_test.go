package swap

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// Two peer ids, text form: an Ed25519 key as identity multihash, and a hash.
const (
	aliceText = "12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5"
	bobText   = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
)

func mustPeer(t testing.TB, s string) peer.ID {
	t.Helper()
	id, err := peer.Decode(s)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func testCheque(t testing.TB) (Cheque, Realm) {
	return Cheque{
		Issuer: mustPeer(t, aliceText), Beneficiary: mustPeer(t, bobText),
		Serial: 3, Cumulative: 300, Served: 50, Consumed: 350, Balance: -300, Date: 1_700_000_000,
		Backing: Backing("voucher"),
	}, Realm{Network: "calibrationnet", Genesis: "bafy", Asset: "tfil"}
}

// A signature binds every field of a cheque, and the realm.
func TestChequeSigningBytesBindAll(t *testing.T) {
	c, r := testCheque(t)
	base := c.SigningBytes(r)
	if !bytes.HasPrefix(base, []byte("tally/swap/1 cheque\x00\x00\x0ecalibrationnet\x00\x04bafy\x00\x04tfil")) {
		t.Errorf("the text begins with %q", base[:50])
	}
	if bytes.Contains(base, []byte("voucher")) {
		t.Error("the backing is bound by its hash")
	}
	c.Signature = []byte("x")
	if !bytes.Equal(c.SigningBytes(r), base) {
		t.Error("the signature does not cover itself")
	}
	for name, change := range map[string]func(c *Cheque, r *Realm){
		"network":          func(_ *Cheque, r *Realm) { r.Network = "mainnet" },
		"genesis":          func(_ *Cheque, r *Realm) { r.Genesis = "bafz" },
		"asset":            func(_ *Cheque, r *Realm) { r.Asset = "fil" },
		"bytes moved over": func(_ *Cheque, r *Realm) { r.Network, r.Genesis = "calibrationnetb", "afy" },
		"issuer":           func(c *Cheque, _ *Realm) { c.Issuer = c.Beneficiary },
		"beneficiary":      func(c *Cheque, _ *Realm) { c.Beneficiary = c.Issuer },
		"serial":           func(c *Cheque, _ *Realm) { c.Serial++ },
		"cumulative":       func(c *Cheque, _ *Realm) { c.Cumulative++ },
		"served":           func(c *Cheque, _ *Realm) { c.Served++ },
		"consumed":         func(c *Cheque, _ *Realm) { c.Consumed++ },
		"balance":          func(c *Cheque, _ *Realm) { c.Balance = -c.Balance },
		"date":             func(c *Cheque, _ *Realm) { c.Date++ },
		"backing":          func(c *Cheque, _ *Realm) { c.Backing = nil },
	} {
		other, realm := c, r
		change(&other, &realm)
		if bytes.Equal(other.SigningBytes(realm), base) {
			t.Errorf("%s is not bound", name)
		}
		if other.Hash(realm) == c.Hash(r) {
			t.Errorf("%s does not change the hash", name)
		}
	}
}

func TestAckSigningBytesBindAll(t *testing.T) {
	c, r := testCheque(t)
	a := Ack{
		Issuer: c.Beneficiary, Beneficiary: c.Issuer, ChequeHash: c.Hash(r), Serial: 3, Credited: 300,
		Served: 350, Consumed: 50, Balance: 0, Signature: []byte("x"),
	}
	base := a.SigningBytes(r)
	if bytes.Equal(base[:20], c.SigningBytes(r)[:20]) {
		t.Error("ack and cheque share a domain")
	}
	for name, change := range map[string]func(a *Ack){
		"issuer": func(a *Ack) { a.Issuer = a.Beneficiary }, "beneficiary": func(a *Ack) { a.Beneficiary = a.Issuer },
		"hash": func(a *Ack) { a.ChequeHash[31]++ }, "serial": func(a *Ack) { a.Serial++ }, "credited": func(a *Ack) { a.Credited++ },
		"served": func(a *Ack) { a.Served++ }, "consumed": func(a *Ack) { a.Consumed++ }, "balance": func(a *Ack) { a.Balance-- },
	} {
		other := a
		change(&other)
		if bytes.Equal(other.SigningBytes(r), base) {
			t.Errorf("%s is not bound", name)
		}
	}
	for _, realm := range []Realm{{"mainnet", r.Genesis, r.Asset}, {r.Network, "", r.Asset}, {r.Network, r.Genesis, "karma"}} {
		if bytes.Equal(a.SigningBytes(realm), base) {
			t.Errorf("realm %v is not bound", realm)
		}
	}
}

func TestChequeValidate(t *testing.T) {
	c, _ := testCheque(t)
	alice, bob := c.Issuer, c.Beneficiary
	if err := c.Validate(alice, bob); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func(c *Cheque)
		want   error
	}{
		"serial 0":            {func(c *Cheque) { c.Serial = 0 }, ErrMalformed},
		"from somebody else":  {func(c *Cheque) { c.Issuer = bob }, ErrBeneficiary},
		"for somebody else":   {func(c *Cheque) { c.Beneficiary = alice }, ErrBeneficiary},
		"cumulative too high": {func(c *Cheque) { c.Cumulative = maxLedgerAmount + 1 }, tally.ErrOverflow},
		"served too high":     {func(c *Cheque) { c.Served = tally.MaxAmount }, tally.ErrOverflow},
		"consumed too high":   {func(c *Cheque) { c.Consumed = maxLedgerAmount + 1 }, tally.ErrOverflow},
		"backing too long":    {func(c *Cheque) { c.Backing = make(Backing, MaxBacking+1) }, ErrMalformed},
		"signature too long":  {func(c *Cheque) { c.Signature = make([]byte, MaxSignature+1) }, ErrMalformed},
	} {
		bad := c
		test.change(&bad)
		if err := bad.Validate(alice, bob); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c.Cumulative, c.Backing, c.Signature = maxLedgerAmount, make(Backing, MaxBacking), make([]byte, MaxSignature)
	if err := c.Validate(alice, bob); err != nil {
		t.Errorf("at the bounds: %v", err)
	}
}

func TestAckValidate(t *testing.T) {
	alice, bob := mustPeer(t, aliceText), mustPeer(t, bobText)
	a := Ack{Issuer: bob, Beneficiary: alice, Serial: 1, Credited: maxLedgerAmount}
	if err := a.Validate(bob, alice); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func(a *Ack)
		want   error
	}{
		"serial 0":           {func(a *Ack) { a.Serial = 0 }, ErrMalformed},
		"from somebody else": {func(a *Ack) { a.Issuer = alice }, ErrBeneficiary},
		"for somebody else":  {func(a *Ack) { a.Beneficiary = bob }, ErrBeneficiary},
		"credited too high":  {func(a *Ack) { a.Credited++ }, tally.ErrOverflow},
		"served too high":    {func(a *Ack) { a.Served = maxLedgerAmount + 1 }, tally.ErrOverflow},
		"consumed too high":  {func(a *Ack) { a.Consumed = maxLedgerAmount + 1 }, tally.ErrOverflow},
		"signature too long": {func(a *Ack) { a.Signature = make([]byte, MaxSignature+1) }, ErrMalformed},
	} {
		bad := a
		test.change(&bad)
		if err := bad.Validate(bob, alice); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRealmValidate(t *testing.T) {
	long := strings.Repeat("x", maxNameLen)
	for _, r := range []Realm{{Asset: "karma"}, {long, long, long}} {
		if err := r.Validate(); err != nil {
			t.Errorf("%v: %v", r, err)
		}
	}
	for _, r := range []Realm{{}, {Asset: long + "x"}, {Asset: "a", Network: long + "x"}, {Asset: "a", Genesis: long + "x"}} {
		if err := r.Validate(); !errors.Is(err, ErrMalformed) {
			t.Errorf("%v: %v", r, err)
		}
	}
}

func TestKarmaChequeFor(t *testing.T) {
	alice, bob := mustPeer(t, aliceText), mustPeer(t, bobText)
	for _, c := range []struct {
		name        string
		beneficiary string
		want        bool
	}{
		{"binary id", string(alice), true},
		{"text id", aliceText, true},
		{"text id as a cid", peer.ToCid(alice).String(), true},
		{"payout address", "t1alice", true},
		{"second name", "0xalice", true},
		{"another id", string(bob), false},
		{"another text id", bobText, false},
		{"empty", "", false},
		{"prefix", aliceText[:20], false},
		{"longer", aliceText + "x", false},
		{"address with more", "t1alice2", false},
		{"garbage", "\xff\xfe", false},
	} {
		k := KarmaCheque{Beneficiary: []byte(c.beneficiary)}
		if got := k.For(alice, "", "t1alice", "0xalice"); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// FuzzKarmaChequeFor: only an id's own forms and the given names are ours.
func FuzzKarmaChequeFor(f *testing.F) {
	alice := mustPeer(f, aliceText)
	for _, s := range []string{"", aliceText, string(alice), peer.ToCid(alice).String(), bobText, "t1alice", "T1alice"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, beneficiary []byte) {
		k := KarmaCheque{Beneficiary: beneficiary}
		if !k.For(alice, "t1alice", "") {
			return
		}
		s := string(beneficiary)
		if s == "t1alice" || s == string(alice) {
			return
		}
		if id, err := peer.Decode(s); err != nil || id != alice {
			t.Errorf("%q counts as %s", s, alice)
		}
	})
}

// FuzzChequeSigningBytes reads two cheques and realms: they share signing bytes
// only where they are the same in all that is signed.
func FuzzChequeSigningBytes(f *testing.F) {
	f.Add("net", "gen", "fil", "alice", "bob", []byte("v"), uint64(1), uint64(2), "ne", "tgen", "fil", "alice", "bob", []byte("v"), uint64(1), uint64(2))
	f.Add("", "", "karma", "a", "b", []byte{}, uint64(0), uint64(0), "", "", "karma", "a", "b", []byte{}, uint64(0), uint64(0))
	f.Add("", "", "karma", "ab", "", []byte{}, uint64(0), uint64(0), "", "", "karma", "a", "b", []byte{}, uint64(0), uint64(0))
	f.Fuzz(func(t *testing.T, net1, gen1, asset1, from1, to1 string, back1 []byte, n1, m1 uint64,
		net2, gen2, asset2, from2, to2 string, back2 []byte, n2, m2 uint64,
	) {
		make1 := func(net, gen, asset, from, to string, back []byte, n, m uint64) (string, []byte) {
			r := Realm{net, gen, asset}
			c := Cheque{
				Issuer: peer.ID(from), Beneficiary: peer.ID(to), Serial: n, Cumulative: tally.Amount(m), Served: tally.Amount(n ^ m),
				Consumed: tally.Amount(n + m), Balance: tally.Balance(n - m), Date: int64(m), Backing: back,
			}
			if r.Validate() != nil || max(len(from), len(to)) > 1000 || len(back) > MaxBacking {
				return "", nil
			}
			return fmt.Sprintf("%q %q %q %q %q %x %d %d", net, gen, asset, from, to, back, n, m), c.SigningBytes(r)
		}
		name1, text1 := make1(net1, gen1, asset1, from1, to1, back1, n1, m1)
		name2, text2 := make1(net2, gen2, asset2, from2, to2, back2, n2, m2)
		if text1 == nil || text2 == nil {
			return
		}
		if (name1 == name2) != bytes.Equal(text1, text2) {
			t.Errorf("%s\n%s\nsame text: %v", name1, name2, bytes.Equal(text1, text2))
		}
	})
}
