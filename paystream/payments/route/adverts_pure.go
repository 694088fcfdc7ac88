package route

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Bounds of what adverts of others can make us hold: about 64 MiB.
const (
	// MaxAdverts bounds them in all.
	MaxAdverts = 1 << 16
	// MaxAdvertsOf bounds those that one node signs.
	MaxAdvertsOf = 256
	// MaxAdvertsBy bounds those that one neighbour has brought: identities are free,
	// and no single neighbour may fill the table with its own.
	MaxAdvertsBy = 1 << 14
	// MaxHave bounds the digests of one pull.
	MaxHave = 4096
	// Buckets is the words of a digest.
	Buckets = 256
)

// ErrAdvertsFull: there is no room for it.
var ErrAdvertsFull = errors.New("route: too many adverts")

// Adverts is what a node knows of who carries what, ready to be passed on. Nothing is
// in it that was not verified. It is pure, and has one owner.
//
//	asker                               neighbour
//	  ├── digest_ask ──────────────────▶│
//	  │◀────────────── 256 words ───────┤
//	  ├── pull 7, digests that I have ─▶│
//	  │◀────────────── adverts ─────────┤ verify each, then keep
//	  ├── pull 7, … ───────────────────▶│ until nothing new comes
type Adverts struct {
	realm   string
	all     map[advertKey]*held
	of, by  map[peer.ID]int
	buckets [Buckets]uint64
	version uint64
}

type held struct {
	Advert
	by     peer.ID
	digest uint64
}

// NewAdverts returns an empty table of a realm.
func NewAdverts(realm string) *Adverts {
	return &Adverts{realm: realm, all: make(map[advertKey]*held), of: make(map[peer.ID]int), by: make(map[peer.ID]int)}
}

// Len counts the adverts.
func (t *Adverts) Len() int { return len(t.all) }

// Version changes with every change.
func (t *Adverts) Version() uint64 { return t.version }

// News reports whether an advert would be kept, before anybody verifies it.
func (t *Adverts) News(a *Advert) bool {
	old := t.all[a.key()]
	return old == nil || a.Seq > old.Seq
}

// Add keeps an advert that by has brought, and reports whether it was news.
func (t *Adverts) Add(now time.Time, a Advert, by peer.ID) (bool, error) {
	if !t.News(&a) {
		return false, nil
	}
	if err := a.Verify(now, t.realm); err != nil {
		return false, err
	}
	return t.AddVerified(now, a, by)
}

// AddVerified is Add for a caller that has verified the advert, beside the table.
func (t *Adverts) AddVerified(now time.Time, a Advert, by peer.ID) (bool, error) {
	if !t.News(&a) {
		return false, nil
	}
	err := t.put(now, a, by)
	return err == nil, err
}

// Find returns the advert of the same edge that is kept.
func (t *Adverts) Find(a *Advert) (Advert, bool) {
	if h := t.all[a.key()]; h != nil {
		return h.Advert, true
	}
	return Advert{}, false
}

func (t *Adverts) put(now time.Time, a Advert, by peer.ID) error {
	k := a.key()
	old := t.all[k]
	if old == nil && len(t.all) >= MaxAdverts {
		t.Expire(now)
	}
	if old == nil && (len(t.all) >= MaxAdverts || t.of[a.From] >= MaxAdvertsOf || t.by[by] >= MaxAdvertsBy) {
		return fmt.Errorf("%w: %d in all, %d of %s, %d by %s", ErrAdvertsFull, len(t.all), t.of[a.From], a.From, t.by[by], by)
	}
	if old != nil {
		by = old.by // who brought the first keeps the place
		t.remove(k, old)
	}
	h := &held{Advert: a, by: by, digest: a.digest()}
	t.all[k] = h
	t.of[a.From]++
	t.by[by]++
	t.buckets[k[0]] ^= h.digest
	t.version++
	return nil
}

func (t *Adverts) remove(k advertKey, h *held) {
	delete(t.all, k)
	t.buckets[k[0]] ^= h.digest
	for _, c := range [...]struct {
		count map[peer.ID]int
		p     peer.ID
	}{{t.of, h.From}, {t.by, h.by}} {
		if c.count[c.p]--; c.count[c.p] == 0 {
			delete(c.count, c.p)
		}
	}
	t.version++
}

// Expire forgets what is not good any more.
func (t *Adverts) Expire(now time.Time) {
	at := now.UnixMilli()
	for k, h := range t.all {
		if at >= h.Expires {
			t.remove(k, h)
		}
	}
}

// Digest is all that is known, in short.
func (t *Adverts) Digest() []byte {
	b := make([]byte, 0, 8*Buckets)
	for _, w := range t.buckets {
		b = binary.BigEndian.AppendUint64(b, w)
	}
	return b
}

// Differ returns the buckets in which the other side knows something else.
func (t *Adverts) Differ(words []byte) (list []byte, err error) {
	if len(words) != 8*Buckets {
		return nil, fmt.Errorf("%w: digest of %d bytes", ErrAdvert, len(words))
	}
	for i, w := range t.buckets {
		if binary.BigEndian.Uint64(words[8*i:]) != w {
			list = append(list, byte(i))
		}
	}
	return list, nil
}

// Have are the digests of a bucket, for a pull.
func (t *Adverts) Have(bucket byte) []byte {
	var list []uint64
	for k, h := range t.all {
		if k[0] == bucket {
			list = append(list, h.digest)
		}
	}
	slices.Sort(list)
	b := make([]byte, 0, 8*min(len(list), MaxHave))
	for _, d := range list[:min(len(list), MaxHave)] {
		b = binary.BigEndian.AppendUint64(b, d)
	}
	return b
}

// Missing are adverts of a bucket that are not among have, at most size bytes.
func (t *Adverts) Missing(bucket byte, have []byte, size int) [][]byte {
	known := make(map[uint64]struct{}, len(have)/8)
	for ; len(have) >= 8; have = have[8:] {
		known[binary.BigEndian.Uint64(have)] = struct{}{}
	}
	var list [][]byte
	for k, h := range t.all {
		if _, ok := known[h.digest]; ok || k[0] != bucket {
			continue
		}
		raw := h.Bytes()
		if size -= len(raw) + 4; size < 0 {
			break
		}
		list = append(list, raw)
	}
	return list
}

// Graph makes the graph of all that is carried, but for self's own edges, of which it
// knows more. Of several adverts of one way, with channels and without, the
// latest counts.
func (t *Adverts) Graph(self peer.ID, locks bool) *Graph {
	latest := make(map[[2]peer.ID]*held, len(t.all))
	for _, h := range t.all {
		if h.From == self || locks && h.Modes&ModeLock == 0 {
			continue
		}
		way := [2]peer.ID{h.From, h.To}
		if old := latest[way]; old == nil || h.Seq > old.Seq || h.Seq == old.Seq && h.Channel > old.Channel {
			latest[way] = h
		}
	}
	g := NewGraph()
	for _, h := range latest {
		_ = g.Set(h.Edge) // only a graph that is full refuses it
	}
	return g
}

// LockDelta is the most by which a lock ends earlier on its way from one node to
// another, in ms, as the first says; 0 where it says nothing.
func (t *Adverts) LockDelta(from, to peer.ID) uint32 {
	var most uint32
	for _, h := range t.all {
		if h.From == from && h.To == to && h.Modes&ModeLock != 0 {
			most = max(most, h.HopDelta)
		}
	}
	return most
}

// Check returns the first broken invariant, by name.
func (t *Adverts) Check() error {
	var buckets [Buckets]uint64
	of := make(map[peer.ID]int)
	for k, h := range t.all {
		if h.key() != k || h.digest != h.Advert.digest() {
			return fmt.Errorf("route: invariant broken: advert-index: %s to %s", h.From, h.To)
		}
		buckets[k[0]] ^= h.digest
		of[h.From]++
		if of[h.From] > MaxAdvertsOf {
			return fmt.Errorf("route: invariant broken: adverts-of: %s", h.From)
		}
	}
	if buckets != t.buckets || len(t.all) > MaxAdverts || len(of) != len(t.of) {
		return errors.New("route: invariant broken: advert-digest")
	}
	return nil
}
