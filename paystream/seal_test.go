package paystream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/tallystick/tally"
)

// ids draws session ids that never repeat.
type ids struct{ n uint64 }

func (i *ids) next() (id SessionID) {
	i.n++
	binary.BigEndian.PutUint64(id[:], i.n)
	return id
}

// duo is the crypto of both ends of a socket.
type duo struct {
	t      testing.TB
	ids    ids
	psk    Secret
	socket SocketID
	client *Session
	server *Session
}

func newDuo(t testing.TB) *duo {
	d := &duo{t: t, psk: Secret{1}, socket: SocketID{2}}
	d.client = d.start(RoleClient)
	d.server = d.start(RoleServer)
	return d
}

func (d *duo) start(role Role) *Session {
	s, err := NewSession(d.psk, KDFShared, d.socket, role, d.ids.next())
	if err != nil {
		d.t.Fatal(err)
	}
	return s
}

func (d *duo) seal(s *Session, text string) []byte {
	env, err := s.Seal(nil, KindPrepare, []byte(text))
	if err != nil {
		d.t.Fatal(err)
	}
	return env
}

// send seals at one end, opens at the other, and gives the reply back.
func (d *duo) send(from, to *Session, text string) (Opened, error) {
	return d.deliver(from, to, d.seal(from, text))
}

func (d *duo) deliver(from, to *Session, env []byte) (Opened, error) {
	o, err := to.Open(nil, env, d.ids.next())
	if err != nil {
		return o, err
	}
	reply, err := to.SealReply(nil, &o, KindReject, []byte("ok"))
	if err != nil {
		d.t.Fatal(err)
	}
	if from != nil {
		if _, err := from.Open(nil, reply, d.ids.next()); err != nil {
			d.t.Fatalf("reply: %v", err)
		}
	}
	return o, nil
}

func TestSessionOpens(t *testing.T) {
	d := newDuo(t)
	o, err := d.send(d.client, d.server, "open")
	if err != nil || o.Fresh {
		t.Fatalf("an open counts for nothing yet: %+v %v", o, err)
	}
	if !d.client.Confirmed() || d.server.Confirmed() {
		t.Fatal("the client knows the server now, the server nothing")
	}
	o, err = d.send(d.client, d.server, "pay")
	if err != nil || !o.Fresh || !o.Began || string(o.Inner) != "pay" {
		t.Fatalf("%+v %v", o, err)
	}
	o, err = d.send(d.server, d.client, "back")
	if err != nil || !o.Fresh {
		t.Fatalf("%+v %v", o, err)
	}
}

func TestPreimageNeedsTheExactBytes(t *testing.T) {
	d := newDuo(t)
	env := d.seal(d.client, "open")
	_, cond := d.client.Condition(env)
	o, err := d.server.Open(nil, env, d.ids.next())
	if err != nil || !o.Preimage.Opens(cond) {
		t.Fatal("the payee cannot make the preimage", err)
	}
	for i := range env {
		bad := bytes.Clone(env)
		bad[i] ^= 1
		if o, err := d.server.Open(nil, bad, d.ids.next()); err == nil || o.Preimage.Opens(cond) {
			t.Fatalf("byte %d changed and the packet still opens", i)
		}
	}
}

// Even where a fault of ours sealed two packets under one counter, neither's preimage
// would open the other.
func TestPreimageOfEachTag(t *testing.T) {
	d := newDuo(t)
	a := d.seal(d.client, "100")
	d.client.live.count--
	b := d.seal(d.client, "900")
	pre, _ := d.client.Condition(a)
	if _, cond := d.client.Condition(b); pre.Opens(cond) || pre == (tally.Preimage{}) {
		t.Fatal("one preimage for two packets")
	}
}

// TestReflection is attack 1: a connector sends the payer's own packet back to it,
// has it fulfilled, and keeps the difference. With one key for both directions, as
// in PSK2 and STREAM, that works.
func TestReflection(t *testing.T) {
	d := newDuo(t)
	if _, err := d.send(d.client, d.server, "open"); err != nil {
		t.Fatal(err)
	}
	env := d.seal(d.client, "1000")
	if _, err := d.client.Open(nil, env, d.ids.next()); !errors.Is(err, ErrReflected) {
		t.Fatalf("our own packet: %v", err)
	}
	// The weakened variant: the role is not in the key, the session not looked at.
	weak := func(env []byte) (tally.Preimage, error) {
		h, err := ParseHeader(env)
		if err != nil {
			return tally.Preimage{}, err
		}
		k, err := DeriveKeys(&d.psk, KDFShared, d.socket, h.Sender, RoleClient)
		if err != nil {
			return tally.Preimage{}, err
		}
		_, err = k.open(nil, env)
		return k.preimage(env), err
	}
	_, cond := d.client.Condition(env)
	if p, err := weak(env); err != nil || !p.Opens(cond) {
		t.Fatal("the weakened variant did not fall for it")
	}
	// Also after a restart, when the session id is forgotten.
	again := d.start(RoleClient)
	if _, err := again.Open(nil, env, d.ids.next()); err == nil {
		t.Fatal("a packet of ours from before the restart was taken")
	}
}

// TestReplay is attack 2, and 3 for a packet that only asks: each is handled once,
// also when the client has opened a new session since.
func TestReplay(t *testing.T) {
	d := newDuo(t)
	var old [][]byte
	if _, err := d.send(d.client, d.server, "open"); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		env := d.seal(d.client, fmt.Sprint(i))
		old = append(old, env)
		if o, err := d.deliver(d.client, d.server, env); err != nil || o.Seen || !o.Fresh {
			t.Fatal(o, err)
		}
		if o, err := d.deliver(nil, d.server, env); err != nil || !o.Seen {
			t.Fatalf("replayed packet %d is new", i)
		}
	}
	if err := d.client.Renew(d.ids.next()); err != nil {
		t.Fatal(err)
	}
	if _, err := d.send(d.client, d.server, "open"); err != nil {
		t.Fatal(err)
	}
	if o, err := d.send(d.client, d.server, "on"); err != nil || !o.Began {
		t.Fatal(o, err)
	}
	for _, env := range old {
		o, err := d.deliver(nil, d.server, env)
		if err == nil && o.Fresh {
			t.Fatal("a packet of the old session counts again")
		}
		// The weakened variant derives the keys of any session and believes it.
		if _, inner, err := Authentic(nil, env, &d.psk, RoleServer); err != nil || len(inner) == 0 {
			t.Fatal("the weakened variant did not fall for it")
		}
	}
}

// TestReplayedPrepare is attack 2 on the money: a hop delivers one packet of 100
// twice, under two packet ids.
func TestReplayedPrepare(t *testing.T) {
	attack := func(seen func(o Opened) bool) tally.Amount {
		d := newDuo(t)
		for _, s := range []string{"open", "on"} {
			if _, err := d.send(d.client, d.server, s); err != nil {
				t.Fatal(err)
			}
		}
		env := d.seal(d.client, "money")
		sock, err := NewSocket(Terms{Max: NoMax})
		if err != nil {
			t.Fatal(err)
		}
		for i := range byte(2) {
			o, err := d.deliver(nil, d.server, env)
			if err != nil {
				t.Fatal(err)
			}
			id := PacketID{i}
			if _, err := sock.Step(&Event{Kind: EvArrive, ID: id, Amount: 100, Least: 99, Sent: 100, Opens: true, Seen: seen(o)}); err != nil {
				continue
			}
			if _, err := sock.Step(&Event{Kind: EvTake, ID: id}); err != nil {
				t.Fatal(err)
			}
		}
		return sock.Report().Received
	}
	if got := attack(func(o Opened) bool { return o.Seen }); got != 100 {
		t.Fatalf("a packet of 100 counts %d", got)
	}
	// The weakened variant knows packets by their id on the hop alone.
	if got := attack(func(Opened) bool { return false }); got != 200 {
		t.Fatal("the weakened variant did not fall for it")
	}
}

// TestReplayedRefundRequest is attack 3: a payee that was asked for a refund once
// is played the request again, after the payer has paid anew.
func TestReplayedRefundRequest(t *testing.T) {
	attack := func(request func(s *Socket, seq uint64) Event) (back tally.Amount) {
		s, err := NewSocket(Terms{Min: At(0), Max: At(2000), Refunds: true})
		if err != nil {
			t.Fatal(err)
		}
		step := func(ev Event) {
			t.Helper()
			if _, err := s.Step(&ev); err != nil && !errors.Is(err, ErrStale) {
				t.Fatal(err)
			}
		}
		step(Event{Kind: EvRate, Rate: Rate{}.Observe(1000, 1000)})
		var n byte
		pay := func() {
			n++
			step(Event{Kind: EvArrive, ID: PacketID{n}, Amount: 1000, Least: 990, Sent: 1000, Opens: true})
			step(Event{Kind: EvTake, ID: PacketID{n}})
		}
		give := func() {
			for s.Due() > 0 {
				n++
				due := s.Due()
				step(Event{Kind: EvPump, ID: PacketID{n}, Amount: due})
				step(Event{Kind: EvFulfilled, ID: PacketID{n}, Arrived: due, Known: true})
				back += due
			}
		}
		pay()
		step(request(s, 1))
		give()
		pay()
		for seq := range uint64(3) {
			step(request(s, 2+seq))
			give()
		}
		return back
	}
	// The recorded request says that 1000 will have been received in the end, and
	// has number 1 whenever it comes.
	if back := attack(func(*Socket, uint64) Event {
		return Event{Kind: EvState, Seq: 1, Totals: Totals{Expected: 1000, Wanted: Total{N: 1000}}}
	}); back != 1000 {
		t.Fatalf("a request for 1000 brought %d", back)
	}
	// A variant that does not look at the number is still held by the total.
	if back := attack(func(_ *Socket, seq uint64) Event {
		return Event{Kind: EvState, Seq: seq, Totals: Totals{Expected: 1000, Wanted: Total{N: 1000}}}
	}); back != 1000 {
		t.Fatalf("without numbers a request for 1000 brought %d", back)
	}
	// The weakened variant asks by differences, as the reference code does.
	if back := attack(func(s *Socket, seq uint64) Event {
		more := s.arrived + 1000
		return Event{Kind: EvState, Seq: seq, Totals: Totals{Expected: more, Wanted: Total{N: more}}}
	}); back <= 1000 {
		t.Fatal("the weakened variant did not fall for it")
	}
}

// TestReplayedOpenForcesNoNonce is attack 10: after each idle eviction an old Open
// is played again. The server answers with a session id of its own that is new
// each time, so no key ever encrypts twice under one nonce.
func TestReplayedOpenForcesNoNonce(t *testing.T) {
	d := newDuo(t)
	open := d.seal(d.client, "open")
	attack := func(fresh func() SessionID) map[string]int {
		used := make(map[string]int)
		for range 50 {
			s, err := NewSession(d.psk, KDFShared, d.socket, RoleServer, fresh()) // evicted before
			if err != nil {
				t.Fatal(err)
			}
			o, err := s.Open(nil, open, fresh())
			if err != nil {
				t.Fatal(err)
			}
			reply, err := s.SealReply(nil, &o, KindReject, []byte("ok"))
			if err != nil {
				t.Fatal(err)
			}
			h, err := ParseHeader(reply)
			if err != nil {
				t.Fatal(err)
			}
			used[fmt.Sprintf("%x/%d", h.Sender, h.Counter)]++
		}
		return used
	}
	for at, n := range attack(d.ids.next) {
		if n > 1 {
			t.Fatalf("nonce %s was used %d times", at, n)
		}
	}
	if weak := attack(func() SessionID { return SessionID{9} }); len(weak) != 1 {
		t.Fatal("the weakened variant, with one session id per socket, repeats no nonce")
	}
}

func TestReplayedOpenLeavesTheLivePair(t *testing.T) {
	d := newDuo(t)
	first := d.seal(d.client, "open")
	if err := d.client.Renew(d.ids.next()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := d.send(d.client, d.server, "open"); err != nil {
			t.Fatal(err)
		}
	}
	for range 10 {
		if _, err := d.deliver(nil, d.server, first); err != nil {
			t.Fatal(err)
		}
		if o, err := d.send(d.client, d.server, "pay"); err != nil || !o.Fresh || o.Seen {
			t.Fatalf("a replayed open broke the session: %+v %v", o, err)
		}
	}
}

func TestReopenAfterTheServerRestarts(t *testing.T) {
	d := newDuo(t)
	for range 2 {
		if _, err := d.send(d.client, d.server, "open"); err != nil {
			t.Fatal(err)
		}
	}
	d.server = d.start(RoleServer)
	env := d.seal(d.client, "pay")
	o, err := d.server.Open(nil, env, d.ids.next())
	if !errors.Is(err, ErrReopen) {
		t.Fatal(err)
	}
	reply, err := d.server.SealReopen(nil, &o, d.ids.next(), []byte("reopen"))
	if err != nil {
		t.Fatal(err)
	}
	if inner, err := d.client.OpenReopen(nil, reply); err != nil || string(inner) != "reopen" {
		t.Fatal(err)
	}
	reply[len(reply)-1] ^= 1
	if _, err := d.client.OpenReopen(nil, reply); !errors.Is(err, ErrSealed) {
		t.Fatal(err)
	}
	if err := d.client.Renew(d.ids.next()); err != nil {
		t.Fatal(err)
	}
	if _, err := d.send(d.client, d.server, "open"); err != nil {
		t.Fatal(err)
	}
	if o, err := d.send(d.client, d.server, "pay"); err != nil || !o.Fresh {
		t.Fatal(o, err)
	}
}

// TestWindow holds the replay window against a set.
func TestWindow(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var w window
		seen := make(map[uint64]bool)
		base := uint64(0)
		for range 300 {
			base += rapid.Uint64Range(0, 3000).Draw(rt, "step") / 10
			n := base + rapid.Uint64Range(0, 200).Draw(rt, "n")
			back := rapid.Uint64Range(0, 6000).Draw(rt, "back")
			n -= min(n, back)
			if fresh := w.mark(n); fresh && seen[n] {
				rt.Fatalf("%d is new twice", n)
			} else if !fresh && !seen[n] && w.top-n <= replayWindow {
				rt.Fatalf("%d was never seen", n)
			}
			seen[n] = true
		}
	})
}

func FuzzOpenEnvelope(f *testing.F) {
	d := newDuo(f)
	f.Add(d.seal(d.client, "open"))
	f.Fuzz(func(t *testing.T, env []byte) {
		d := newDuo(t)
		if o, err := d.server.Open(nil, env, d.ids.next()); err == nil && o.Fresh {
			t.Fatal("fresh without a session")
		}
		_, _ = d.client.OpenReopen(nil, env)
		_, _, _ = Authentic(nil, env, &d.psk, RoleServer)
	})
}

func TestSecretsAreRedacted(t *testing.T) {
	psk, key := Secret{0xab}, ServerKey{0xcd}
	u := URI{Secret: psk, Use: UseGift}
	var log strings.Builder
	noTime := func(_ []string, a slog.Attr) slog.Attr { // its digits are no leak
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}
	slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{ReplaceAttr: noTime})).Info("open", "psk", psk, "key", key, "uri", u)
	text := fmt.Sprintf("%v %+v %#v %s %v %#v %v %+v %s", psk, psk, psk, psk, key, key, u, u, log.String())
	for _, leak := range []string{"ab", "171", "0xab", "cd", "205", u.Reveal()[len(u.Reveal())-secretChars:]} {
		if strings.Contains(strings.ReplaceAll(text, "redacted", ""), leak) {
			t.Fatalf("%q leaks in %s", leak, text)
		}
	}
}

func BenchmarkSealOpen(b *testing.B) {
	d := newDuo(b)
	for range 2 {
		if _, err := d.send(d.client, d.server, "open"); err != nil {
			b.Fatal(err)
		}
	}
	inner := make([]byte, 64)
	var env, plain []byte
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if env, err = d.client.Seal(env[:0], KindPrepare, inner); err != nil {
			b.Fatal(err)
		}
		_, cond := d.client.Condition(env)
		o, err := d.server.Open(plain[:0], env, SessionID{})
		if err != nil || !o.Preimage.Opens(cond) || !o.Fresh {
			b.Fatal(o, err)
		}
		plain = o.Inner
	}
}
