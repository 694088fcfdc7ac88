package paystream

import (
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"pgregory.net/rapid"

	"github.com/tallystick/tally"
)

var (
	then = time.Unix(1_800_000_000, 0)
	gift = Grant{Use: UseGift, Min: At(-1000), Max: At(-1000), SingleUse: true, Expires: then.Unix() + 3600}
)

func issue(t testing.TB, k *ServerKey, g Grant, n byte) Token {
	t.Helper()
	token, err := k.Issue([32]byte{n}, g)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestTokens(t *testing.T) {
	k := ServerKey{1}
	for _, g := range []Grant{
		gift,
		{Use: UsePush, Max: NoMax},
		{Use: UseAccount, Min: At(0), Max: NoMax, Refunds: true},
		{Use: UseMandate, Min: At(-500), Max: At(0), Period: 86400, Expires: then.Unix() + 1},
	} {
		token := issue(t, &k, g, 7)
		back, err := k.Grant(&token, then)
		if err != nil || back != g {
			t.Fatalf("got %+v %v, want %+v", back, err, g)
		}
		for i := range token {
			bad := token
			bad[i] ^= 1
			if _, err := k.Grant(&bad, then); !errors.Is(err, ErrToken) {
				t.Fatalf("byte %d changed: %v", i, err)
			}
		}
		other := ServerKey{2}
		if _, err := other.Grant(&token, then); !errors.Is(err, ErrToken) {
			t.Fatal("another server reads it")
		}
	}
	token := issue(t, &k, gift, 1)
	if _, err := k.Grant(&token, then.Add(time.Hour)); !errors.Is(err, ErrTokenExpired) {
		t.Fatal(err)
	}
	a, b := issue(t, &k, gift, 1), issue(t, &k, gift, 2)
	sa, _ := k.Secret(&a)
	sb, _ := k.Secret(&b)
	if a == b || sa == sb || a.ID() == b.ID() {
		t.Fatal("two tokens share something")
	}
	if _, err := k.Issue([32]byte{}, Grant{Use: UseGift, Min: At(1), Max: At(0)}); !errors.Is(err, ErrLimits) {
		t.Fatal(err)
	}
}

func testPeer(t testing.TB, seed byte) (crypto.PrivKey, peer.ID) {
	t.Helper()
	raw := ed25519.NewKeyFromSeed(append(make([]byte, 31), seed))
	key, err := crypto.UnmarshalEd25519PrivateKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, id
}

func TestURI(t *testing.T) {
	k := ServerKey{1}
	_, id := testPeer(t, 1)
	token := issue(t, &k, gift, 1)
	secret, err := k.Secret(&token)
	if err != nil {
		t.Fatal(err)
	}
	u := URI{Peer: id, Token: token, Secret: secret, Use: UseGift, Amount: 1000}
	text := u.Reveal()
	back, err := ParseURI(text)
	if err != nil || back != u {
		t.Fatal(back, err)
	}
	plain := text[:strings.Index(text, "?")] + text[strings.Index(text, "#"):]
	if _, err := ParseURI(plain); err != nil {
		t.Fatal(err)
	}
	if _, err := ParseURI(strings.Replace(text, "?", "?later=1&", 1)); err != nil {
		t.Fatal("an unknown parameter is refused:", err)
	}
	for name, bad := range map[string]string{
		"scheme":       "http" + text[5:],
		"no secret":    text[:strings.Index(text, "#")],
		"short secret": text[:len(text)-1],
		"redacted":     u.String(),
		"kind twice":   strings.Replace(text, "?", "?kind=gift&", 1),
		"kind":         strings.Replace(text, "gift", "loan", 1),
		"amount":       strings.Replace(text, "1000", "01000", 1),
		"negative":     strings.Replace(text, "1000", "-1", 1),
		"2^63":         strings.Replace(text, "1000", "9223372036854775808", 1),
		"peer":         "tally:x" + text[6:],
		"long":         text[:strings.Index(text, "?")+1] + strings.Repeat("a", MaxURI) + text[strings.Index(text, "#"):],
		"empty":        "",
	} {
		_, err := ParseURI(bad)
		if !errors.Is(err, ErrURI) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), text[len(text)-20:]) {
			t.Errorf("%s: the error shows the secret", name)
		}
	}
}

func FuzzParseURI(f *testing.F) {
	k := ServerKey{1}
	_, id := testPeer(f, 1)
	token := issue(f, &k, gift, 1)
	f.Add(URI{Peer: id, Token: token, Use: UseGift, Amount: 5}.Reveal())
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseURI(s)
		if err != nil {
			return
		}
		if again, err := ParseURI(u.Reveal()); err != nil || again != u {
			t.Fatal(again, err)
		}
	})
}

func FuzzTokenGrant(f *testing.F) {
	k := ServerKey{1}
	token := issue(f, &k, gift, 1)
	f.Add(token[:])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) != TokenSize {
			return
		}
		x := Token(b)
		if g, err := k.Grant(&x, then); err == nil && (x != token || g != gift) {
			t.Fatal("a forged token")
		}
	})
}

// TestOneGiftTwoRedeemers is attack 11: at once, and again after a restart.
func TestOneGiftTwoRedeemers(t *testing.T) {
	g := gift
	g.SingleUse = false
	b := NewBudget(g, then)
	one, two := SocketID{0}, SocketID{1}
	redeem := func(budgets [2]*Budget) (paid tally.Amount) {
		for i, b := range budgets {
			if _, _, err := b.Join(then, SocketID{byte(i)}); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 20 {
			if err := budgets[i%2].Hold(then, SocketID{byte(i % 2)}, 150); err == nil {
				paid += 150
			} else if !errors.Is(err, ErrSpent) {
				t.Fatal(err)
			}
		}
		return paid
	}
	if paid := redeem([2]*Budget{b, b}); paid != 900 {
		t.Fatalf("two redeemers got %d of a gift of 1000", paid)
	}
	// The weakened variant gives each socket a budget of its own.
	if paid := redeem([2]*Budget{NewBudget(g, then), NewBudget(g, then)}); paid <= 1000 {
		t.Fatal("the weakened variant did not fall for it")
	}
	for range 6 {
		b.Settle(150, true)
	}
	again, err := ParseBudget(b.AppendRecord(nil))
	if err != nil {
		t.Fatal(err)
	}
	again.SetGrant(g)
	low, high, err := again.Join(then, SocketID{3})
	if err != nil || low != At(-100) || high != At(-100) {
		t.Fatal(low, high, err)
	}
	if err := again.Hold(then, SocketID{3}, 101); !errors.Is(err, ErrSpent) {
		t.Fatal(err)
	}

	b = NewBudget(gift, then) // single use
	if _, _, err := b.Join(then, one); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Join(then, two); !errors.Is(err, ErrInUse) {
		t.Fatal(err)
	}
	if err := b.Hold(then, one, 10); err != nil {
		t.Fatal(err)
	}
	b.Settle(10, true)
	b.Leave(one)
	if again, err = ParseBudget(b.AppendRecord(nil)); err != nil {
		t.Fatal(err)
	}
	again.SetGrant(gift)
	if _, _, err := again.Join(then, two); !errors.Is(err, ErrSpent) {
		t.Fatal(err)
	}
	if _, _, err := again.Join(then, one); err != nil {
		t.Fatal("its own socket may go on:", err)
	}
}

func TestBudgetKeepsWhatWasPaidIn(t *testing.T) {
	b := NewBudget(Grant{Use: UsePush, Min: At(0), Max: NoMax}, then)
	if err := b.Receive(then, SocketID{1}, 500, 0); err != nil {
		t.Fatal(err)
	}
	if low, _, err := b.Join(then, SocketID{2}); err != nil || low != At(0) {
		t.Fatalf("a second socket could pull the first one's money: %s %v", low, err)
	}
	account := NewBudget(Grant{Use: UseAccount, Min: At(0), Max: NoMax, Refunds: true}, then)
	if err := account.Receive(then, SocketID{1}, 500, 0); err != nil {
		t.Fatal(err)
	}
	if low, high, err := account.Join(then, SocketID{2}); err != nil || low != At(-500) || high != NoMax {
		t.Fatal(low, high, err)
	}
	if account.Forget(then.Add(1e6 * time.Hour)) {
		t.Fatal("an account was forgotten")
	}
}

func TestMandatePeriods(t *testing.T) {
	b := NewBudget(Grant{Use: UseMandate, Min: At(-100), Max: At(0), Period: 60}, then)
	id := SocketID{1}
	for period := range 3 {
		now := then.Add(time.Duration(period) * time.Minute)
		if err := b.Hold(now, id, 100); err != nil {
			t.Fatal(period, err)
		}
		if err := b.Hold(now, id, 1); !errors.Is(err, ErrSpent) {
			t.Fatal(period, err)
		}
		b.Settle(100, true)
	}
	if b.sent != 300 {
		t.Fatal(b.sent)
	}
}

func TestForgetBudget(t *testing.T) {
	b := NewBudget(gift, then)
	end := time.Unix(gift.Expires, 0)
	if b.Forget(end.Add(keepAfter - time.Second)) {
		t.Fatal("forgotten within the hour")
	}
	if !b.Forget(end.Add(keepAfter)) {
		t.Fatal("kept for ever")
	}
}

// TestBudgetModel: sockets of one token together never pay beyond its limits.
func TestBudgetModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		g := Grant{Use: UseVoucher, Min: At(-1000), Max: At(500), Refunds: rapid.Bool().Draw(rt, "refunds")}
		b := NewBudget(g, then)
		var held []tally.Amount
		var out, in tally.Amount
		for range 50 {
			n := tally.Amount(rapid.Uint64Range(1, 600).Draw(rt, "n"))
			id := SocketID{rapid.Byte().Draw(rt, "id") % 3}
			switch rapid.IntRange(0, 3).Draw(rt, "what") {
			case 0:
				if b.Hold(then, id, n) == nil {
					held = append(held, n)
				}
			case 1:
				if len(held) > 0 {
					ok := rapid.Bool().Draw(rt, "ok")
					b.Settle(held[0], ok)
					if ok {
						out += held[0]
					}
					held = held[1:]
				}
			case 2:
				if b.Receive(then, id, n, 0) == nil {
					in += n
				}
			case 3:
				again, err := ParseBudget(b.AppendRecord(nil))
				if err != nil {
					rt.Fatal(err)
				}
				again.SetGrant(g)
				for _, h := range held {
					again.Restore(h)
				}
				b = again
			}
			low, high, err := b.Join(then, id)
			if err != nil || low.Cmp(high) > 0 {
				rt.Fatal(low, high, err)
			}
			bal := tally.Balance(in) - tally.Balance(out)
			if bal < -1000 || bal > 500 {
				rt.Fatalf("balance %d", bal)
			}
		}
	})
}

func TestReceipt(t *testing.T) {
	key, id := testPeer(t, 1)
	r := Receipt{Payee: id, Socket: SocketID{1}, Nonce: [16]byte{2}, Total: 77, Time: 5}
	var err error
	if r.Signature, err = key.Sign(r.Message()); err != nil {
		t.Fatal(err)
	}
	if err := r.Verify(); err != nil {
		t.Fatal(err)
	}
	bad := r
	bad.Total++
	if err := bad.Verify(); !errors.Is(err, ErrReceipt) {
		t.Fatal(err)
	}
	_, bad.Payee = testPeer(t, 2)
	bad.Total--
	if err := bad.Verify(); !errors.Is(err, ErrReceipt) {
		t.Fatal(err)
	}
}
