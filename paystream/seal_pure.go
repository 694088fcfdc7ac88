package paystream

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"log/slog"
	"slices"

	"github.com/tallystick/tally"
)

// The clear header, and what surrounds the sealed packet.
const (
	// headerSize: version, suite, kdf, kind, socket, sender's and receiver's
	// session, counter.
	headerSize = 4 + 16 + 16 + 16 + 8
	tagSize    = 16
	// Overhead is what sealing adds to an inner packet.
	Overhead = headerSize + tagSize
	// MaxEnvelope is the most bytes that two ends exchange in one packet.
	MaxEnvelope = MaxInner + Overhead

	wireVersion = 1
	// SuiteNative is this package's own format. Suites 2 and 3 are those of
	// package compat.
	SuiteNative = 1

	// maxCounter ends a session long before its nonces do.
	maxCounter = 1 << 48

	// replayWindow is how far packets of one session may overtake each other, in
	// counters: those of a full window of prepares and of as many replies, twice.
	replayWindow = 4 * maxHolds
)

// KDF says how the two ends came by the socket's secret. It is bound into every
// packet, so that nobody can talk two ends into different ones.
type KDF uint8

const (
	// KDFShared: the secret was handed over: in a URI or on a set-up stream.
	KDFShared KDF = 1
	// KDFX25519: agreed with the peer's static key.
	KDFX25519 KDF = 2
	// 3 is for a hybrid with ML-KEM.
)

// Role says who opened the socket. It keeps the keys of the two directions apart.
type Role uint8

// The roles.
const (
	RoleClient Role = 1
	RoleServer Role = 2
)

func (r Role) other() Role { return RoleClient + RoleServer - r }

// Errors of envelopes. The shell answers all but ErrReopen with silence or one
// and the same reject.
var (
	// ErrEnvelope: not an envelope of this version and suite.
	ErrEnvelope = errors.New("paystream: not a packet of ours")
	// ErrSealed: the packet is not authentic.
	ErrSealed = errors.New("paystream: packet does not authenticate")
	// ErrReflected: our own packet came back.
	ErrReflected = errors.New("paystream: our own packet came back")
	// ErrReopen: authentic, but of a session that we do not know.
	ErrReopen = errors.New("paystream: unknown session; open again")
	// ErrWorn: a session has used up its counter. Open a new one.
	ErrWorn = errors.New("paystream: session is worn out; open again")
)

// Secret is a socket's pre-shared key. Whoever has it can spend what the socket's
// limits allow, so it prints redacted.
type Secret [32]byte

// String hides the secret.
func (s Secret) String() string { return "<secret>" }

// GoString hides the secret from %#v.
func (s Secret) GoString() string { return s.String() }

// LogValue hides the secret from structured logs.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// SocketID names a socket: 16 random bytes of the client.
type SocketID [16]byte

// String returns the id in hex.
func (id SocketID) String() string { return hex.EncodeToString(id[:]) }

// SessionID names one start of one end of a socket: 16 random bytes, drawn anew
// each time, so that no key is used twice after a restart. Zero: not known yet.
type SessionID [16]byte

// Header is what a packet shows to every hop.
type Header struct {
	Kind             Kind
	KDF              KDF
	Socket           SocketID
	Sender, Receiver SessionID
	Counter          uint64
}

// ParseHeader reads the clear part of an envelope.
func ParseHeader(env []byte) (Header, error) {
	if len(env) < Overhead || len(env) > MaxEnvelope || env[0] != wireVersion || env[1] != SuiteNative {
		return Header{}, ErrEnvelope
	}
	h := Header{KDF: KDF(env[2]), Kind: Kind(env[3]), Counter: binary.BigEndian.Uint64(env[52:])}
	copy(h.Socket[:], env[4:])
	copy(h.Sender[:], env[20:])
	copy(h.Receiver[:], env[36:])
	if h.Kind < KindPrepare || h.Kind > KindReject || h.Counter >= maxCounter || h.Sender == (SessionID{}) {
		return Header{}, ErrEnvelope
	}
	return h, nil
}

func (h *Header) append(dst []byte) []byte {
	dst = append(dst, wireVersion, SuiteNative, byte(h.KDF), byte(h.Kind))
	dst = append(dst, h.Socket[:]...)
	dst = append(dst, h.Sender[:]...)
	dst = append(dst, h.Receiver[:]...)
	return binary.BigEndian.AppendUint64(dst, h.Counter)
}

// Keys are those of one direction of one session: who sends under them, and with
// which session id, is bound into them.
type Keys struct {
	aead   cipher.AEAD
	fulfil [preimageSize]byte // the fulfil key, and room for what is hashed with it
	nonce  [12]byte
}

// DeriveKeys returns the keys under which sender seals in its session.
func DeriveKeys(psk *Secret, kdf KDF, socket SocketID, sender SessionID, role Role) (*Keys, error) {
	var salt [32]byte
	copy(salt[:], socket[:])
	copy(salt[16:], sender[:])
	info := [...]byte{'t', 'a', 'l', 'l', 'y', ' ', 's', 'o', 'c', 'k', 'e', 't', ' ', SuiteNative, byte(kdf), byte(role)}
	raw, err := hkdf.Key(sha256.New, psk[:], salt[:], string(info[:]), 64)
	if err != nil {
		return nil, err
	}
	defer clear(raw)
	block, err := aes.NewCipher(raw[:32])
	if err != nil {
		return nil, err
	}
	k := new(Keys)
	if k.aead, err = cipher.NewGCM(block); err != nil {
		return nil, err
	}
	copy(k.fulfil[:], raw[32:])
	return k, nil
}

// counterBytes are those of a counter that are not zero: see maxCounter.
const counterBytes = 6

// preimageSize is the length of what a preimage is the hash of: fulfil key, counter and
// tag. With its padding it is one block of SHA-256.
const preimageSize = 32 + counterBytes + tagSize

// preimage is the hash of counter and tag behind the fulfil key: only the two ends can
// make it. All else of a packet is bound by the tag, which the payee has checked before,
// so that nothing of a packet can change and be fulfilled (ADR 17).
func (k *Keys) preimage(env []byte) tally.Preimage {
	n := copy(k.fulfil[32:], env[headerSize-counterBytes:headerSize])
	copy(k.fulfil[32+n:], env[len(env)-tagSize:])
	return sha256.Sum256(k.fulfil[:])
}

func (k *Keys) counter(n uint64) []byte {
	binary.BigEndian.PutUint64(k.nonce[4:], n)
	return k.nonce[:]
}

// open decrypts the packet behind a header into dst.
func (k *Keys) open(dst, env []byte) ([]byte, error) {
	plain, err := k.aead.Open(dst, k.counter(binary.BigEndian.Uint64(env[52:])), env[headerSize:], env[:headerSize])
	if err != nil {
		return nil, ErrSealed
	}
	return plain, nil
}

// Session is the crypto of one socket at one end between two restarts: our keys,
// the peer's, and which packets of it were seen. It is pure and is not safe for
// use from several goroutines.
//
// A pair is one session id of each end. Both are drawn for this pair alone. Once
// a new pair is confirmed the old one is dead for ever, so that what was sealed
// in it cannot be replayed after its window is forgotten.
type Session struct {
	psk    Secret
	kdf    KDF
	socket SocketID
	role   Role

	live pair // Invariant: confirmed, once it was
	next pair // server: the newest Open that is not confirmed yet
}

// pair is one session of each end.
type pair struct {
	own, peer         SessionID
	ownKeys, peerKeys *Keys
	count             uint64 // our next nonce; one counter over all kinds
	confirmed         bool   // the peer has echoed own
	window            window
}

// NewSession begins a socket at one end with a session id drawn for it.
func NewSession(psk Secret, kdf KDF, socket SocketID, role Role, own SessionID) (*Session, error) {
	s := &Session{psk: psk, kdf: kdf, socket: socket, role: role}
	return s, s.Renew(own)
}

// Renew drops the live pair and begins a new one, of which the peer's half is not
// known: a client does so after "reopen".
func (s *Session) Renew(own SessionID) error {
	keys, err := s.derive(own, s.role)
	if err != nil {
		return err
	}
	s.live = pair{own: own, ownKeys: keys}
	s.next = pair{}
	return nil
}

func (s *Session) derive(id SessionID, role Role) (*Keys, error) {
	return DeriveKeys(&s.psk, s.kdf, s.socket, id, role)
}

// Confirmed reports whether the peer has shown that it speaks now and not in a
// recording: it has echoed our session id.
func (s *Session) Confirmed() bool { return s.live.confirmed }

// Own returns our session id.
func (s *Session) Own() SessionID { return s.live.own }

// NextCounter is the counter of the packet that Seal makes next; as the
// request_id it is inside as well.
func (s *Session) NextCounter() uint64 { return s.live.count }

// Seal encrypts an inner packet of kind behind dst.
func (s *Session) Seal(dst []byte, kind Kind, inner []byte) ([]byte, error) {
	return s.seal(&s.live, dst, kind, inner)
}

func (s *Session) seal(p *pair, dst []byte, kind Kind, inner []byte) ([]byte, error) {
	if p.ownKeys == nil {
		return nil, ErrReopen // the pair died while the answer was made
	}
	if p.count >= maxCounter {
		return nil, ErrWorn
	}
	h := Header{Kind: kind, KDF: s.kdf, Socket: s.socket, Sender: p.own, Receiver: p.peer, Counter: p.count}
	p.count++
	at := len(dst)
	dst = h.append(slices.Grow(dst, Overhead+len(inner)))
	return p.ownKeys.aead.Seal(dst, p.ownKeys.counter(h.Counter), inner, dst[at:at+headerSize]), nil
}

// Condition returns the condition of a prepare that Seal made, and what opens it.
func (s *Session) Condition(env []byte) (tally.Preimage, tally.Hashlock) {
	p := s.live.ownKeys.preimage(env)
	return p, p.Hashlock()
}

// Opened is a packet of the peer that is authentic.
type Opened struct {
	Header Header
	Inner  []byte
	// Preimage opens the condition of a prepare, if nobody changed it.
	Preimage tally.Preimage
	// Fresh: the peer knows our session, so the packet is no recording of an
	// earlier one. Only then money and state count.
	Fresh bool
	// Seen: this prepare was opened before.
	Seen bool
	// Began: with this packet a new pair was confirmed; what was told before
	// does not count any more.
	Began bool
	// reply is the pair to answer in.
	reply *pair
}

// Open authenticates an envelope; the inner packet is appended to dst. fresh is a
// session id that nobody has used, for the case that the packet begins a pair; it
// is used up where Took says so. With ErrReopen the packet is authentic, and
// SealReopen answers it.
func (s *Session) Open(dst, env []byte, fresh SessionID) (Opened, error) {
	h, err := ParseHeader(env)
	if err != nil {
		return Opened{}, err
	}
	if h.Socket != s.socket || h.KDF != s.kdf {
		return Opened{}, ErrEnvelope
	}
	if h.Sender == s.live.own || h.Sender == s.next.own {
		return Opened{}, ErrReflected
	}
	p := s.pairOf(&h)
	known := p != nil
	if !known {
		p = &pair{peer: h.Sender}
	}
	keys := p.peerKeys
	if keys == nil {
		// Nothing is kept until the packet is authentic.
		if keys, err = s.derive(h.Sender, s.role.other()); err != nil {
			return Opened{}, err
		}
	}
	o := Opened{Header: h}
	if o.Inner, err = keys.open(dst, env); err != nil {
		return Opened{}, err
	}
	p.peerKeys = keys
	if h.Kind == KindPrepare {
		o.Preimage = keys.preimage(env)
	}
	switch {
	case known && s.role == RoleClient && !p.confirmed:
		// The first answer in our session: it names us, so it is no recording.
		p.peer, p.confirmed, o.Began = h.Sender, true, true
	case known && h.Receiver == p.own && p == &s.next:
		s.live, s.next = s.next, pair{}
		p = &s.live
		p.confirmed, o.Began = true, true
	case !known && s.role == RoleServer && h.Receiver == (SessionID{}) && h.Kind == KindPrepare:
		// A new client session. Our half of the pair is drawn for it alone.
		if p.ownKeys, err = s.derive(fresh, s.role); err != nil {
			return Opened{}, err
		}
		p.own = fresh
		s.next = *p
		p = &s.next
	case !known:
		return o, ErrReopen
	}
	o.Fresh = p.confirmed && h.Receiver == p.own
	o.reply = p
	if h.Kind == KindPrepare {
		o.Seen = !p.window.mark(h.Counter)
	}
	return o, nil
}

// pairOf finds the pair that a header belongs to, or nil.
func (s *Session) pairOf(h *Header) *pair {
	for _, p := range [...]*pair{&s.live, &s.next} {
		if p.own == (SessionID{}) {
			continue
		}
		if h.Sender == p.peer && (h.Receiver == p.own || h.Receiver == (SessionID{})) {
			return p
		}
		if s.role == RoleClient && p.peer == (SessionID{}) && h.Receiver == p.own {
			return p
		}
	}
	return nil
}

// SealReply encrypts a reply to o, in the pair that o came in. It is called before
// the next Open.
func (s *Session) SealReply(dst []byte, o *Opened, kind Kind, inner []byte) ([]byte, error) {
	if o.reply == nil {
		return nil, ErrReopen
	}
	return s.seal(o.reply, dst, kind, inner)
}

// SealReopen encrypts the answer to a packet of a session that we do not know,
// under a session id that is used for this alone.
func (s *Session) SealReopen(dst []byte, o *Opened, once SessionID, inner []byte) ([]byte, error) {
	return Reopen(dst, &s.psk, s.kdf, &o.Header, s.role, once, inner)
}

// Reopen is SealReopen without a session: nothing is kept for it.
func Reopen(dst []byte, psk *Secret, kdf KDF, h *Header, role Role, once SessionID, inner []byte) ([]byte, error) {
	keys, err := DeriveKeys(psk, kdf, h.Socket, once, role)
	if err != nil {
		return nil, err
	}
	r := Header{Kind: KindReject, KDF: kdf, Socket: h.Socket, Sender: once, Receiver: h.Sender}
	at := len(dst)
	dst = r.append(dst)
	return keys.aead.Seal(dst, keys.counter(0), inner, dst[at:at+headerSize]), nil
}

// OpenReopen authenticates a reject that came from an end which has forgotten our
// session: it names our session as the receiver, under one of its own that we have
// not seen. It changes nothing; the caller checks that the packet inside says
// CodeReopen and names a request of ours.
func (s *Session) OpenReopen(dst, env []byte) ([]byte, error) {
	h, err := ParseHeader(env)
	if err != nil {
		return nil, err
	}
	if h.Socket != s.socket || h.KDF != s.kdf || h.Receiver != s.live.own || h.Kind != KindReject || h.Sender == s.live.own {
		return nil, ErrEnvelope
	}
	keys, err := s.derive(h.Sender, s.role.other())
	if err != nil {
		return nil, err
	}
	return keys.open(dst, env)
}

// Authentic derives what is needed to open one packet of a socket that is not
// known, and opens it. It is what a server does before it keeps anything.
func Authentic(dst, env []byte, psk *Secret, role Role) (Header, []byte, error) {
	h, err := ParseHeader(env)
	if err != nil {
		return Header{}, nil, err
	}
	keys, err := DeriveKeys(psk, h.KDF, h.Socket, h.Sender, role.other())
	if err != nil {
		return Header{}, nil, err
	}
	inner, err := keys.open(dst, env)
	return h, inner, err
}

// window remembers which of the newest counters were seen. One that has fallen
// out of it counts as seen.
type window struct {
	top  uint64 // one above the highest counter seen
	bits [replayWindow / 64]uint64
}

// mark notes n; false where it was seen, or is too old to tell.
func (w *window) mark(n uint64) bool {
	if n >= w.top {
		// Clear what the window moves over.
		if n-w.top >= replayWindow {
			w.bits = [replayWindow / 64]uint64{}
		} else {
			for i := w.top; i < n; i++ {
				w.bits[i%replayWindow/64] &^= 1 << (i % 64)
			}
		}
		w.top = n + 1
		w.bits[n%replayWindow/64] |= 1 << (n % 64)
		return true
	}
	if w.top-n > replayWindow {
		return false
	}
	bit := uint64(1) << (n % 64)
	word := &w.bits[n%replayWindow/64]
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	return true
}
