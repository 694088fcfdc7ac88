package route

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/payments"
)

const testRealm = "test/karma"

var adTime = time.UnixMilli(1_700_000_000_000)

type signer struct {
	key crypto.PrivKey
	id  peer.ID
}

func newSigner(t testing.TB, n uint64) signer {
	t.Helper()
	seed := binary.BigEndian.AppendUint64(make([]byte, 24), n)
	key, err := crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(seed))
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return signer{key, id}
}

func (s signer) advert(t testing.TB, to peer.ID, change ...func(*Advert)) Advert {
	t.Helper()
	a := Advert{
		Edge:  Edge{From: s.id, To: to, Capacity: 100, FeeBase: 1, FeePPM: 500},
		Modes: ModeCredit, Seq: 1, Expires: adTime.Add(time.Minute).UnixMilli(), HopDelta: 1000,
	}
	for _, f := range change {
		f(&a)
	}
	var err error
	if a.Signature, err = s.key.Sign(a.SigningBytes(testRealm)); err != nil {
		t.Fatal(err)
	}
	return a
}

func TestAdvertRoundTrip(t *testing.T) {
	a := newSigner(t, 1).advert(t, newSigner(t, 2).id, func(a *Advert) {
		a.Channel, a.FromProof, a.ToProof, a.Min, a.Max = "f2abc", []byte{1, 2}, []byte{1, 3}, 1, 99
	})
	back, err := ParseAdvert(a.Bytes())
	if err != nil || !bytes.Equal(back.Bytes(), a.Bytes()) || back.Verify(adTime, testRealm) != nil {
		t.Fatalf("%v: %+v", err, back)
	}
	raw := a.Bytes()
	for cut := range raw {
		if _, err := ParseAdvert(raw[:cut]); err == nil {
			t.Fatalf("cut at %d it is taken", cut)
		}
	}
	for i := range raw { // every byte is signed, or part of the signature
		bad := bytes.Clone(raw)
		bad[i] ^= 1
		if b, err := ParseAdvert(bad); err == nil && b.Verify(adTime, testRealm) == nil {
			t.Fatalf("byte %d changed, and it is good", i)
		}
	}
}

func TestAdvertRefuses(t *testing.T) {
	s, to := newSigner(t, 1), newSigner(t, 2).id
	for name, change := range map[string]func(*Advert){
		"to itself":       func(a *Advert) { a.To = a.From },
		"no capacity":     func(a *Advert) { a.Capacity = 0 },
		"expired":         func(a *Advert) { a.Expires = adTime.UnixMilli() },
		"good too long":   func(a *Advert) { a.Expires = adTime.Add(MaxLife).UnixMilli() + 1 },
		"slow":            func(a *Advert) { a.HopDelta = maxDelta + 1 },
		"carries nothing": func(a *Advert) { a.Modes = 0 },
		"takes the whole": func(a *Advert) { a.FeePPM = 1_000_000 },
		"max below min":   func(a *Advert) { a.Min, a.Max = 5, 4 },
		"max above all":   func(a *Advert) { a.Max = 101 },
		"long channel": func(a *Advert) {
			a.Channel, a.FromProof, a.ToProof = string(make([]byte, maxChannel+1)), []byte{1}, []byte{1}
		},
		"no payer's proof": func(a *Advert) { a.Channel, a.ToProof = "f2abc", []byte{1} },
		"no payee's proof": func(a *Advert) { a.Channel, a.FromProof = "f2abc", []byte{1} },
		"long proof":       func(a *Advert) { a.Channel, a.FromProof, a.ToProof = "f2abc", []byte{1}, make([]byte, maxProof+1) },
		"proof of nothing": func(a *Advert) { a.FromProof, a.ToProof = []byte{1}, []byte{1} },
	} {
		a := s.advert(t, to, change)
		if err := a.Verify(adTime, testRealm); !errors.Is(err, ErrAdvert) && !errors.Is(err, ErrGraph) {
			t.Errorf("%s: %v", name, err)
		}
	}
	a := s.advert(t, to)
	if err := a.Verify(adTime, "other/karma"); !errors.Is(err, ErrAdvertSignature) {
		t.Errorf("of another realm: %v", err)
	}
	a.From = newSigner(t, 3).id
	if err := a.Verify(adTime, testRealm); !errors.Is(err, ErrAdvertSignature) {
		t.Errorf("signed by another: %v", err)
	}
}

// A later advert takes the place of an earlier one, an earlier one is no news, and
// what is not good is not kept.
func TestAdvertsKeepTheLatest(t *testing.T) {
	table := NewAdverts(testRealm)
	s, to, by := newSigner(t, 1), newSigner(t, 2).id, newSigner(t, 3).id
	add := func(a Advert) (bool, error) {
		t.Helper()
		news, err := table.Add(adTime, a, by)
		if check := table.Check(); check != nil {
			t.Fatal(check)
		}
		return news, err
	}
	second := s.advert(t, to, func(a *Advert) { a.Seq, a.Capacity = 2, 50 })
	if news, err := add(second); !news || err != nil {
		t.Fatal(news, err)
	}
	if news, err := add(s.advert(t, to)); news || err != nil {
		t.Fatalf("an earlier one: %v, %v", news, err)
	}
	forged := s.advert(t, to, func(a *Advert) { a.Seq = 3 })
	forged.Capacity++
	if news, err := add(forged); news || !errors.Is(err, ErrAdvertSignature) || table.Len() != 1 {
		t.Fatalf("a forged one: %v, %v", news, err)
	}
	g := table.Graph("", false)
	if g.Edges() != 1 || g.Probability(adTime, s.id, to, 51) != 0 {
		t.Fatalf("%d edges", g.Edges())
	}
	if table.Graph(s.id, false).Edges() != 0 {
		t.Fatal("our own edges come from adverts")
	}
	table.Expire(adTime.Add(time.Minute))
	if table.Len() != 0 || table.Check() != nil || len(table.of)+len(table.by) != 0 {
		t.Fatal("expired, and kept")
	}
}

// Of two adverts of one way the latest is in the graph, whichever names a channel.
func TestLatestAdvertOfAWayCounts(t *testing.T) {
	s, to, by := newSigner(t, 1), newSigner(t, 2).id, newSigner(t, 3).id
	for _, seq := range []uint64{1, 9} { // of the advert with a channel
		for range 8 { // whatever the order of a map
			table := NewAdverts(testRealm)
			for _, a := range []Advert{
				s.advert(t, to, func(a *Advert) { a.Seq, a.Capacity = 5, 50 }),
				s.advert(t, to, func(a *Advert) {
					a.Seq, a.Capacity, a.Channel, a.FromProof, a.ToProof = seq, 80, "f2abc", []byte{1}, []byte{1}
				}),
			} {
				if news, err := table.Add(adTime, a, by); !news || err != nil {
					t.Fatal(news, err)
				}
			}
			g := table.Graph("", false)
			if fits := g.Probability(adTime, s.id, to, 51) > 0; fits != (seq > 5) || g.Edges() != 1 {
				t.Fatalf("channel's advert %d: 51 fits %t, %d edges", seq, fits, g.Edges())
			}
		}
	}
}

// Nobody fills the table with identities that cost nothing.
func TestAdvertsBounds(t *testing.T) {
	table := NewAdverts(testRealm)
	s := newSigner(t, 1)
	for i := range MaxAdvertsOf + 1 {
		_, err := table.Add(adTime, s.advert(t, newSigner(t, uint64(i)+10).id), "by")
		if full := errors.Is(err, ErrAdvertsFull); full != (i == MaxAdvertsOf) {
			t.Fatalf("advert %d of one node: %v", i, err)
		}
	}
	// put is what is behind the signatures, which would take a minute here.
	now, made := adTime, 0
	fill := func(by peer.ID) (n int) {
		for {
			made++
			a := Advert{Edge: Edge{From: peer.ID(fmt.Sprintf("node-%d", made)), To: "x"}, Expires: now.Add(time.Minute).UnixMilli()}
			if err := table.put(now, a, by); err != nil {
				return n
			}
			n++
		}
	}
	if n := fill("one"); n != MaxAdvertsBy {
		t.Fatalf("one neighbour brought %d", n)
	}
	for i := range 3 {
		fill(peer.ID(fmt.Sprint("neighbour-", i)))
	}
	if table.Len() != MaxAdverts {
		t.Fatalf("%d in all", table.Len())
	}
	now = now.Add(time.Hour)
	if n := fill("one"); n != MaxAdvertsBy || table.Len() > MaxAdverts {
		t.Fatalf("when all have expired one neighbour brings %d", n)
	}
}

// Two tables that know different things know all after each has pulled once.
func TestAdvertsSpread(t *testing.T) {
	a, b := NewAdverts(testRealm), NewAdverts(testRealm)
	var nodes []signer
	for i := range 60 {
		nodes = append(nodes, newSigner(t, uint64(i)))
	}
	random := rand.New(rand.NewPCG(1, 2))
	for i, s := range nodes {
		for range 5 {
			to := nodes[random.IntN(len(nodes))]
			if to.id == s.id {
				continue
			}
			table := []*Adverts{a, b}[i%2]
			if _, err := table.Add(adTime, s.advert(t, to.id), s.id); err != nil {
				t.Fatal(err)
			}
		}
	}
	all := a.Len() + b.Len()
	pull := func(to, from *Adverts, size int) (frames int) {
		buckets, err := to.Differ(from.Digest())
		if err != nil {
			t.Fatal(err)
		}
		for _, bucket := range buckets {
			for again := true; again; {
				again = false
				frames++
				for _, raw := range from.Missing(bucket, to.Have(bucket), size) {
					ad, err := ParseAdvert(raw)
					if err != nil {
						t.Fatal(err)
					}
					news, err := to.Add(adTime, ad, "by")
					if err != nil {
						t.Fatal(err)
					}
					again = again || news
				}
			}
		}
		return frames
	}
	pull(a, b, 300) // one advert a frame
	pull(b, a, 40<<10)
	for _, table := range []*Adverts{a, b} {
		if table.Len() != all || table.Check() != nil {
			t.Fatalf("%d of %d adverts: %v", table.Len(), all, table.Check())
		}
	}
	if frames := pull(a, b, 300); frames != 0 || !bytes.Equal(a.Digest(), b.Digest()) {
		t.Fatalf("nothing is new, and %d frames", frames)
	}
	if _, err := a.Differ([]byte("short")); !errors.Is(err, ErrAdvert) {
		t.Fatal(err)
	}
}

// Payments find their way through graphs of a hundred to ten thousand nodes, and a
// graph that is made anew keeps what was learnt.
func TestGraphsOfAdverts(t *testing.T) {
	for _, nodes := range []int{100, 1000, 10_000} {
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			table := NewAdverts(testRealm)
			random := rand.New(rand.NewPCG(uint64(nodes), 0))
			id := func(i int) peer.ID { return peer.ID(fmt.Sprintf("node-%05d", i)) }
			put := func(from, to int, seq uint64) {
				a := Advert{
					Edge:  Edge{From: id(from), To: id(to), Capacity: tally.Amount(500 + random.IntN(1000)), FeeBase: 1, FeePPM: uint32(random.IntN(1000))},
					Modes: ModeCredit, Seq: seq, Expires: adTime.Add(time.Minute).UnixMilli(),
				}
				if err := table.put(adTime, a, id(from%97)); err != nil {
					t.Fatal(err)
				}
			}
			for i := range nodes { // a ring, and two chords a node, each both ways
				for _, j := range []int{(i + 1) % nodes, random.IntN(nodes)} {
					if i != j {
						put(i, j, 1)
						put(j, i, 1)
					}
				}
			}
			f := NewFinder(id(0), NewGraph())
			f.Replace(table.Graph("", false))
			want := tally.Amount(900)
			legs, err := f.Plan(adTime, &payments.Request{Dest: id(nodes / 2), Amount: want, MaxFee: 900, MaxParts: 8})
			if err != nil {
				t.Fatal(err)
			}
			var sum tally.Amount
			for i := range legs {
				sum += legs[i].Amount
				f.Sent(adTime, id(nodes/2), &legs[i])
			}
			if sum != want {
				t.Fatalf("legs of %d", sum)
			}
			f.Failed(adTime, id(nodes/2), &legs[0], payments.Failure{Code: payments.FailHeadroom, Hop: 0, Most: 7})
			first := id(nodes / 2)
			if len(legs[0].Via) > 0 {
				first = legs[0].Via[0]
			}
			put(5, 7, 2)
			f.Replace(table.Graph("", false))
			if p := f.graph.Probability(adTime, id(0), first, 8); p != 0 {
				t.Fatalf("what was learnt is gone: %v", p)
			}
			if err := f.graph.Check(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func FuzzParseAdvert(f *testing.F) {
	seed := newSigner(f, 1).advert(f, newSigner(f, 2).id)
	f.Add(seed.Bytes())
	f.Fuzz(func(t *testing.T, raw []byte) {
		a, err := ParseAdvert(raw)
		if err == nil && !bytes.Equal(a.Bytes(), raw) {
			t.Fatalf("%x is written as %x", raw, a.Bytes())
		}
	})
}

// BenchmarkGraphOfAdverts is what the first plan after a new advert costs besides.
func BenchmarkGraphOfAdverts(b *testing.B) {
	for _, n := range []int{1000, 10_000, MaxAdverts} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			table, rng := NewAdverts(testRealm), rand.New(rand.NewPCG(1, 2))
			for i := range n {
				a := Advert{
					Edge: Edge{
						From: peer.ID(fmt.Sprint("node", i/10)), To: peer.ID(fmt.Sprint("node", rng.IntN(1+n/10))),
						Capacity: 100, FeeBase: 1,
					},
					Modes: ModeCredit, Seq: 1, Expires: adTime.Add(time.Minute).UnixMilli(),
				}
				if _, err := table.AddVerified(adTime, a, peer.ID(fmt.Sprint("by", i%8))); err != nil {
					b.Fatal(err)
				}
			}
			f := NewFinder("A", NewGraph())
			for b.Loop() {
				f.Replace(table.Graph("A", false))
			}
		})
	}
}
