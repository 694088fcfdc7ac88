package storenet

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/pb/storepb"
)

var (
	// ErrCursor: the cursor of a page is no message of this store.
	ErrCursor = errors.New("storenet: unknown cursor")

	// ErrImporting: another import is under way.
	ErrImporting = errors.New("storenet: an import is under way")
)

// Disk is what the store needs from durable.Store; its contracts are there.
type Disk interface {
	Commit(ctx context.Context, b *durable.Batch) error
	Get(ctx context.Context, key string) ([]byte, error)
	Scan(ctx context.Context, prefix, after string, fn func(key string, value []byte) error) error
	ScanReverse(ctx context.Context, prefix, before string, fn func(key string, value []byte) error) error
}

// The records. place is time and hash of a message, as durable writes them, so
// that the order of the keys is the order of time and, at one time, of hashes.
// A topic id is the first 16 bytes of the topic's SHA-256. generation says which
// import a record belongs to, see Import; 0 is none.
//
//	/store/t/<place>                             generation, pubsub topic, message
//	/store/p/<pubsub id>/<place>                 generation
//	/store/x/<content id>/<pubsub id>/<place>    generation
//	/store/h/<hash>                              generation, time, both topic ids
//	/store/visible                               last generation that counts
//	/store/staging                               generation that an import writes
const (
	keyTime    = "/store/t/"
	keyPubsub  = "/store/p/"
	keyContent = "/store/x/"
	keyHash    = "/store/h/"
	keyVisible = "/store/visible"
	keyStaging = "/store/staging"

	recordVersion = 1

	topicIDBytes = 16
	timeChars    = 13 // durable.KeyUint
	placeChars   = timeChars + 52
	hashRecBytes = 8 + 8 + 2*topicIDBytes
)

// Store keeps messages. All methods may be called at the same time.
type Store struct {
	disk    Disk
	visible atomic.Uint64 // generations up to this one count

	importing chan struct{} // capacity 1: held by the import under way
	dirty     bool          // staged records may be left; guarded by importing

	// mu orders the writers: each reads what is there and then writes.
	mu sync.Mutex
}

// OpenStore opens the messages on disk, and removes what an import left that was
// cut off by a crash. It does not own disk.
func OpenStore(ctx context.Context, disk Disk) (*Store, error) {
	s := &Store{disk: disk, importing: make(chan struct{}, 1)}
	visible, _, err := s.number(ctx, keyVisible)
	if err != nil {
		return nil, fmt.Errorf("open message store: %w", err)
	}
	s.visible.Store(visible)
	_, s.dirty, err = s.number(ctx, keyStaging)
	if err != nil {
		return nil, fmt.Errorf("open message store: %w", err)
	}
	if s.dirty {
		if err := s.sweep(ctx); err != nil {
			return nil, fmt.Errorf("open message store: %w", err)
		}
	}
	return s, nil
}

// Add stores messages and returns how many were new. Those that are there
// already are left as they are. All of the call land, or none (durable bounds
// the batch to 32 MiB). Each needs a pubsub topic.
func (s *Store) Add(ctx context.Context, messages ...*Message) (added int, err error) {
	for i, m := range messages {
		if err := m.Check(); err != nil {
			return 0, fmt.Errorf("message %d of %d: %w", i+1, len(messages), err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.put(ctx, 0, messages)
}

// put writes those of messages that do not count yet, as generation gen, in one
// batch. The caller holds mu.
func (s *Store) put(ctx context.Context, gen uint64, messages []*Message) (added int, err error) {
	type entry struct {
		place string
		hash  Hash
		m     *Message
	}
	entries := make([]entry, len(messages))
	for i, m := range messages {
		hash := m.Hash()
		entries[i] = entry{placeOf(m.Timestamp, hash), hash, m}
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.place, b.place) })
	entries = slices.CompactFunc(entries, func(a, b entry) bool { return a.place == b.place })
	places := make([]string, len(entries))
	for i := range entries {
		places[i] = entries[i].place
	}
	there, err := s.generations(ctx, places)
	if err != nil {
		return 0, err
	}
	var b durable.Batch
	visible := s.visible.Load()
	for _, e := range entries {
		if g, ok := there[e.place]; ok && (g <= visible || g == gen) {
			continue
		}
		if err := putMessage(&b, gen, e.hash, e.m); err != nil {
			return 0, err
		}
		added++
	}
	if err := s.disk.Commit(ctx, &b); err != nil {
		return 0, fmt.Errorf("store %d messages: %w", added, err)
	}
	return added, nil
}

// generations returns which of places, which are in order, hold a message, and
// the import that each belongs to. Files are mostly in the order of time, and
// then the places of a batch lie between few others, if any: one scan finds what
// is there. Where there are many others between them each is looked up.
func (s *Store) generations(ctx context.Context, places []string) (map[string]uint64, error) {
	found := make(map[string]uint64)
	if len(places) == 0 {
		return found, nil
	}
	between := 2 * len(places) // records that the scan may pass
	rest := places
	err := s.disk.Scan(ctx, keyTime, keyTime+places[0][:timeChars], func(key string, value []byte) error {
		place := key[len(keyTime):]
		for len(rest) > 0 && rest[0] < place {
			rest = rest[1:]
		}
		if len(rest) == 0 {
			return durable.ErrStop
		}
		if rest[0] == place {
			gen, err := generation(key, value)
			if err != nil {
				return err
			}
			found[place] = gen
			rest = rest[1:]
			return nil
		}
		if between--; between < 0 {
			return durable.ErrStop
		}
		return nil
	})
	if err != nil || between >= 0 {
		return found, err
	}
	for _, place := range rest {
		key := keyTime + place
		value, err := s.disk.Get(ctx, key)
		if errors.Is(err, durable.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if found[place], err = generation(key, value); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// generation reads the first field of a record of a message or an index.
func generation(key string, value []byte) (uint64, error) {
	body, err := unseal(key, value)
	if err != nil {
		return 0, err
	}
	gen, n := binary.Uvarint(body)
	if n <= 0 {
		return 0, fmt.Errorf("%w: %q has no generation", durable.ErrDamaged, key)
	}
	return gen, nil
}

func putMessage(b *durable.Batch, gen uint64, hash Hash, m *Message) error {
	rec := hashRecord{gen: gen, time: m.Timestamp, pubsub: topicID(m.PubsubTopic), content: topicID(m.ContentTopic)}
	body := binary.AppendUvarint(nil, gen)
	index := body
	data := binary.AppendUvarint(slices.Clone(body), uint64(len(m.PubsubTopic)))
	data = append(data, m.PubsubTopic...)
	data, err := proto.MarshalOptions{}.MarshalAppend(data, m.proto())
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMessage, err)
	}
	keys := rec.keys(hash)
	seal := func(key string, payload []byte) { b.Put(key, durable.Seal(nil, key, recordVersion, payload)) }
	seal(keys.time, data)
	seal(keys.pubsub, index)
	seal(keys.content, index)
	seal(keys.hash, rec.encode())
	return nil
}

// hashRecord is where a message lies, found by its hash.
type hashRecord struct {
	gen             uint64
	time            int64
	pubsub, content [topicIDBytes]byte
}

type messageKeys struct{ time, pubsub, content, hash string }

func (r *hashRecord) keys(hash Hash) messageKeys {
	place := placeOf(r.time, hash)
	pubsub, content := durable.KeyID(r.pubsub[:]), durable.KeyID(r.content[:])
	return messageKeys{
		time:    keyTime + place,
		pubsub:  keyPubsub + pubsub + "/" + place,
		content: keyContent + content + "/" + pubsub + "/" + place,
		hash:    keyHash + durable.KeyID(hash[:]),
	}
}

func (r *hashRecord) encode() []byte {
	b := make([]byte, 0, hashRecBytes)
	b = binary.BigEndian.AppendUint64(b, r.gen)
	b = binary.BigEndian.AppendUint64(b, uint64(r.time))
	b = append(b, r.pubsub[:]...)
	return append(b, r.content[:]...)
}

func decodeHashRecord(key string, value []byte) (r hashRecord, err error) {
	body, err := unseal(key, value)
	if err != nil {
		return r, err
	}
	if len(body) != hashRecBytes {
		return r, fmt.Errorf("%w: %q has %d bytes", durable.ErrDamaged, key, len(body))
	}
	r.gen = binary.BigEndian.Uint64(body)
	r.time = int64(binary.BigEndian.Uint64(body[8:]))
	copy(r.pubsub[:], body[16:])
	copy(r.content[:], body[16+topicIDBytes:])
	return r, nil
}

func (s *Store) hashRecord(ctx context.Context, hash Hash) (hashRecord, error) {
	key := keyHash + durable.KeyID(hash[:])
	value, err := s.disk.Get(ctx, key)
	if err != nil {
		return hashRecord{}, err
	}
	return decodeHashRecord(key, value)
}

func topicID(topic string) (id [topicIDBytes]byte) {
	sum := sha256.Sum256([]byte(topic))
	copy(id[:], sum[:])
	return id
}

// timeKey writes t so that the order is kept, years before 1970 included.
func timeKey(t int64) string { return durable.KeyUint(uint64(t) ^ 1<<63) }

func placeOf(t int64, hash Hash) string { return timeKey(t) + durable.KeyID(hash[:]) }

func placeHash(place string) (h Hash, err error) {
	raw, err := durable.ParseKeyID(place[timeChars:])
	if err != nil || len(raw) != len(h) {
		return h, fmt.Errorf("%w: place %q", durable.ErrDamaged, place)
	}
	return Hash(raw), nil
}

func unseal(key string, value []byte) ([]byte, error) {
	_, body, err := durable.Unseal(key, recordVersion, value)
	return body, err
}

// number reads a record that is one number; ok is false where there is none.
func (s *Store) number(ctx context.Context, key string) (n uint64, ok bool, err error) {
	value, err := s.disk.Get(ctx, key)
	if errors.Is(err, durable.ErrNotFound) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	body, err := unseal(key, value)
	if err == nil && len(body) != 8 {
		err = fmt.Errorf("%w: %q has %d bytes", durable.ErrDamaged, key, len(body))
	}
	if err != nil {
		return 0, false, err
	}
	return binary.BigEndian.Uint64(body), true, nil
}

func putNumber(b *durable.Batch, key string, n uint64) {
	b.Put(key, durable.Seal(nil, key, recordVersion, binary.BigEndian.AppendUint64(nil, n)))
}

// Filter says which messages are wanted. The zero Filter is all of them; every
// field narrows it.
type Filter struct {
	PubsubTopic   string   // empty: any
	ContentTopics []string // any of them; empty: any
	Start, End    int64    // Unix nanoseconds, both included; 0: open
	Hashes        []Hash   // any of them; empty: any
}

// PageRequest asks for a page.
type PageRequest struct {
	Filter
	Backward bool // newest messages first, in pages; within a page oldest first
	Cursor   *Hash
	Limit    int // messages, at least 1
	MaxBytes int // of messages, topics and entryOverhead each; 0: no limit
	NoData   bool
}

// Entry is a message and its hash. Message is nil where only hashes were asked
// for.
type Entry struct {
	Hash    Hash
	Message *Message
}

// Page is a run of messages, oldest first.
type Page struct {
	Entries []Entry
	More    bool // there are more in the direction asked for
}

// trim keeps the n entries that come first in the direction of paging.
func (p *Page) trim(n int, backward bool) {
	if n >= len(p.Entries) {
		return
	}
	p.More = true
	if backward {
		p.Entries = p.Entries[len(p.Entries)-n:]
	} else {
		p.Entries = p.Entries[:n]
	}
}

// last is the entry that paging goes on behind.
func (p *Page) last(backward bool) *Entry {
	if backward {
		return &p.Entries[0]
	}
	return &p.Entries[len(p.Entries)-1]
}

// Page returns up to r.Limit messages behind r.Cursor, in the order of time and
// hash. At least one message is returned where there is one, whatever MaxBytes
// says. Errors: ErrCursor, or what the disk says. The store may change between
// two pages: a cursor stays good, and messages that come later than the cursor
// in the order are seen.
func (s *Store) Page(ctx context.Context, r PageRequest) (Page, error) {
	if r.Limit < 1 {
		panic(fmt.Sprintf("storenet: page of %d messages", r.Limit))
	}
	walk := walk{backward: r.Backward, want: r.Limit + 1, visible: s.visible.Load()}
	// The range of time, as bounds of places that are themselves outside: a time
	// without a hash sorts below all places of that time.
	if r.Start != 0 {
		walk.after = timeKey(r.Start)
	}
	if r.End != 0 && r.End < math.MaxInt64 {
		walk.before = timeKey(r.End + 1)
	}
	if r.Cursor != nil {
		rec, err := s.hashRecord(ctx, *r.Cursor)
		if errors.Is(err, durable.ErrNotFound) || err == nil && rec.gen > walk.visible {
			return Page{}, fmt.Errorf("%w: %s", ErrCursor, r.Cursor)
		}
		if err != nil {
			return Page{}, err
		}
		place := placeOf(rec.time, *r.Cursor)
		if r.Backward {
			if walk.before == "" || place < walk.before {
				walk.before = place
			}
		} else {
			walk.after = max(walk.after, place)
		}
	}
	if err := s.collect(ctx, &walk, &r.Filter); err != nil {
		return Page{}, err
	}
	return s.load(ctx, &walk, &r)
}

// walk collects the first places in one direction out of several ordered
// sources.
type walk struct {
	backward      bool
	after, before string // places, both excluded; empty: open
	want          int
	visible       uint64
	places        []string // in the direction of the walk
}

// inside tells whether place is within the bounds, whether a walk in its
// direction has passed them, and whether want others come first.
func (w *walk) inside(place string) (ok, passed bool) {
	if w.backward {
		if w.after != "" && place <= w.after {
			return false, true
		}
		if len(w.places) >= w.want && place < w.places[w.want-1] {
			return false, true
		}
		return w.before == "" || place < w.before, false
	}
	if w.before != "" && place >= w.before {
		return false, true
	}
	if len(w.places) >= w.want && place > w.places[w.want-1] {
		return false, true
	}
	return place > w.after, false
}

// merge puts the places of one more source, in the direction of the walk, to
// those of the earlier ones.
func (w *walk) merge(places []string) {
	w.places = append(w.places, places...)
	slices.Sort(w.places)
	if w.backward {
		slices.Reverse(w.places)
	}
	w.places = w.places[:min(len(w.places), w.want)]
}

// collect chooses the sources for f: every record of a source fits f, so that a
// page never costs more than its own length for each source.
func (s *Store) collect(ctx context.Context, w *walk, f *Filter) error {
	pubsub := ""
	if f.PubsubTopic != "" {
		id := topicID(f.PubsubTopic)
		pubsub = durable.KeyID(id[:])
	}
	switch {
	case len(f.Hashes) > 0:
		return s.collectHashes(ctx, w, f)
	case len(f.ContentTopics) > 0:
		topics := slices.Clone(f.ContentTopics)
		slices.Sort(topics)
		for _, topic := range slices.Compact(topics) {
			id := topicID(topic)
			prefix := keyContent + durable.KeyID(id[:]) + "/"
			if pubsub != "" {
				if err := s.scan(ctx, w, prefix+pubsub+"/"); err != nil {
					return err
				}
				continue
			}
			if err := s.scanEach(ctx, w, prefix); err != nil {
				return err
			}
		}
		return nil
	case pubsub != "":
		return s.scan(ctx, w, keyPubsub+pubsub+"/")
	default:
		return s.scan(ctx, w, keyTime)
	}
}

// scan collects from one source.
func (s *Store) scan(ctx context.Context, w *walk, prefix string) error {
	var places []string
	visit := func(key string, value []byte) error {
		place := key[len(prefix):]
		if len(place) != placeChars {
			return fmt.Errorf("%w: key %q", durable.ErrDamaged, key)
		}
		ok, passed := w.inside(place)
		if passed {
			return durable.ErrStop
		}
		gen, err := generation(key, value)
		if err != nil {
			return err
		}
		if !ok || gen > w.visible {
			return nil
		}
		places = append(places, place)
		if len(places) == w.want {
			return durable.ErrStop
		}
		return nil
	}
	bound := func(place string) string {
		if place == "" {
			return ""
		}
		return prefix + place
	}
	var err error
	if w.backward {
		err = s.disk.ScanReverse(ctx, prefix, bound(w.before), visit)
	} else {
		err = s.disk.Scan(ctx, prefix, bound(w.after), visit)
	}
	if err != nil {
		return err
	}
	w.merge(places)
	return nil
}

// scanEach collects from every folder below prefix: the pubsub topics of one
// content topic, mostly one.
func (s *Store) scanEach(ctx context.Context, w *walk, prefix string) error {
	after := ""
	for {
		folder := ""
		err := s.disk.Scan(ctx, prefix, after, func(key string, _ []byte) error {
			if len(key) != len(prefix)+26+1+placeChars {
				return fmt.Errorf("%w: key %q", durable.ErrDamaged, key)
			}
			folder = key[:len(prefix)+26]
			return durable.ErrStop
		})
		if err != nil || folder == "" {
			return err
		}
		if err := s.scan(ctx, w, folder+"/"); err != nil {
			return err
		}
		after = folder + "0" // '0' is the byte behind '/': the first key of the next folder
	}
}

func (s *Store) collectHashes(ctx context.Context, w *walk, f *Filter) error {
	var pubsub, none [topicIDBytes]byte
	if f.PubsubTopic != "" {
		pubsub = topicID(f.PubsubTopic)
	}
	var places []string
	for _, hash := range f.Hashes {
		rec, err := s.hashRecord(ctx, hash)
		if errors.Is(err, durable.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		place := placeOf(rec.time, hash)
		if ok, _ := w.inside(place); !ok || rec.gen > w.visible || pubsub != none && rec.pubsub != pubsub {
			continue
		}
		if len(f.ContentTopics) > 0 && !slices.ContainsFunc(f.ContentTopics, func(t string) bool { return topicID(t) == rec.content }) {
			continue
		}
		places = append(places, place)
	}
	slices.Sort(places)
	w.merge(slices.Compact(places))
	return nil
}

// load reads the messages that were collected.
func (s *Store) load(ctx context.Context, w *walk, r *PageRequest) (Page, error) {
	page := Page{More: len(w.places) > r.Limit}
	places := w.places[:min(len(w.places), r.Limit)]
	page.Entries = make([]Entry, 0, len(places))
	size := 0
	for _, place := range places {
		hash, err := placeHash(place)
		if err != nil {
			return Page{}, err
		}
		entry := Entry{Hash: hash}
		cost := entryOverhead
		if !r.NoData {
			m, n, err := s.message(ctx, place)
			if err != nil {
				return Page{}, err
			}
			entry.Message = m
			cost += n
		}
		if r.MaxBytes > 0 && size+cost > r.MaxBytes && len(page.Entries) > 0 {
			page.More = true
			break
		}
		size += cost
		page.Entries = append(page.Entries, entry)
	}
	if r.Backward {
		slices.Reverse(page.Entries)
	}
	return page, nil
}

// message reads one message; size is that of message and topic.
func (s *Store) message(ctx context.Context, place string) (m *Message, size int, err error) {
	key := keyTime + place
	value, err := s.disk.Get(ctx, key)
	if err != nil {
		return nil, 0, fmt.Errorf("read message: %w", err)
	}
	body, err := unseal(key, value)
	if err != nil {
		return nil, 0, err
	}
	_, n := binary.Uvarint(body)
	if n <= 0 {
		return nil, 0, fmt.Errorf("%w: %q has no generation", durable.ErrDamaged, key)
	}
	body = body[n:]
	topic, n := binary.Uvarint(body)
	if n <= 0 || topic > uint64(len(body)-n) {
		return nil, 0, fmt.Errorf("%w: %q has no topic", durable.ErrDamaged, key)
	}
	body = body[n:]
	var w storepb.WakuMessage
	if err := proto.Unmarshal(body[topic:], &w); err != nil {
		return nil, 0, fmt.Errorf("%w: %q: %w", durable.ErrDamaged, key, err)
	}
	return messageFromProto(&w, string(body[:topic])), len(body), nil
}

// findDigest is the cursor of a 2.0.0-beta4 client that made its cursor itself:
// the message of that time and topic with this digest. It looks at no more than
// maxSameTime messages.
func (s *Store) findDigest(ctx context.Context, at int64, pubsubTopic string, digest Hash) (Hash, error) {
	const maxSameTime = 1000
	id := topicID(pubsubTopic)
	w := walk{after: timeKey(at), want: maxSameTime, visible: s.visible.Load()}
	if at < math.MaxInt64 {
		w.before = timeKey(at + 1)
	}
	if err := s.scan(ctx, &w, keyPubsub+durable.KeyID(id[:])+"/"); err != nil {
		return Hash{}, err
	}
	for _, place := range w.places {
		m, _, err := s.message(ctx, place)
		if err != nil {
			return Hash{}, err
		}
		if m.digest() == digest {
			return m.Hash(), nil
		}
	}
	return Hash{}, fmt.Errorf("%w: digest %s", ErrCursor, digest)
}
