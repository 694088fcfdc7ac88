package holdnet

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	mocknet "github.com/libp2p/go-libp2p/p2p/net/mock"
	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/hold"
	"github.com/tallystick/tally/pb/holdpb"
	"github.com/tallystick/tally/protocols/internal/wire"
)

// desk is a server that writes down what it is asked.
type desk struct {
	now int64

	mu    sync.Mutex
	calls []any
	reply hold.Reply
	list  []hold.Terms
	err   error
	wait  chan struct{}

	statement hold.LaneStatement
	voucher   []byte
}

func (d *desk) Now() int64 { return d.now }

func (d *desk) call(v ...any) error {
	if d.wait != nil {
		<-d.wait
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, v...)
	return d.err
}

func (d *desk) Park(_ context.Context, from peer.ID, t *hold.Terms, limit tally.Amount, quote bool) (hold.Reply, error) {
	return d.reply, d.call(from, *t, limit, quote)
}

func (d *desk) ListFor(_ context.Context, payee peer.ID, after hold.ID) ([]hold.Terms, bool, error) {
	return d.list, len(d.list) == hold.ListPage, d.call(payee, after)
}

func (d *desk) Release(_ context.Context, from peer.ID, id hold.ID) error { return d.call(from, id) }

func (d *desk) Cancel(_ context.Context, from peer.ID, id hold.ID) (hold.State, error) {
	return hold.StateCancelled, d.call(from, id)
}

func (d *desk) TakeStatement(_ context.Context, from peer.ID, st *hold.LaneStatement) error {
	return d.call(from, *st)
}

func (d *desk) GiveStatement(_ context.Context, from, payee peer.ID) (hold.LaneStatement, error) {
	return d.statement, d.call(from, payee)
}

func (d *desk) GiveGuard(_ context.Context, from peer.ID, height int64) ([]byte, error) {
	return d.voucher, d.call(from, height)
}

func (d *desk) Sell(_ context.Context, from peer.ID, p *hold.Purchase, limit tally.Amount, quote bool) (hold.SoldReply, error) {
	return hold.SoldReply{Price: 3, Charged: !quote, Hash: tally.Hashlock{4}, Voucher: d.voucher}, d.call(from, *p, limit, quote)
}

func (d *desk) TakeMail(_ context.Context, m *hold.Mail) (hold.Taken, error) {
	return hold.Taken{}, d.call(*m)
}

func (d *desk) Collect(holder peer.ID) { _ = d.call(holder) }

// pair is two services whose clocks are 1000 s apart.
func pair(t *testing.T) (asker, asked *Service, mine, theirs *desk) {
	t.Helper()
	net := mocknet.New()
	t.Cleanup(func() { _ = net.Close() })
	var list []*Service
	for range 2 {
		h, err := net.GenPeer()
		if err != nil {
			t.Fatal(err)
		}
		s := New(h, nil)
		t.Cleanup(s.Close)
		list = append(list, s)
	}
	if err := errors.Join(net.LinkAll(), net.ConnectAllButSelf()); err != nil {
		t.Fatal(err)
	}
	mine, theirs = &desk{now: 1_700_000_000_000}, &desk{now: 1_700_001_000_000}
	list[0].Serve(mine)
	list[1].Serve(theirs)
	return list[0], list[1], mine, theirs
}

func (s *Service) terms(holder peer.ID, now int64) *hold.Terms {
	return &hold.Terms{
		ID: hold.ID{1}, Payer: s.host.ID(), Holder: holder, Payee: s.host.ID(), Hash: tally.Hashlock{2}, Amount: 100,
		Expires: now + 1000, Until: now + 2000, Poll: true, Box: bytes.Repeat([]byte{7}, hold.BoxSize),
	}
}

func TestRequests(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	asker, asked, mine, theirs := pair(t)
	me, holder := asker.host.ID(), asked.host.ID()
	theirs.reply = hold.Reply{Price: 7, Charged: true}
	terms := asker.terms(holder, mine.now)
	reply, err := asker.Park(ctx, terms, 9, true)
	if err != nil || reply.Price != 7 || !reply.Charged {
		t.Fatal(reply, err)
	}
	// Times arrive on the asked side's clock.
	want := *terms
	want.Expires, want.Until = terms.Expires+1_000_000, terms.Until+1_000_000
	if got := theirs.calls; !reflect.DeepEqual(got, []any{me, want, tally.Amount(9), true}) {
		t.Fatalf("%+v\nwant %+v", got, want)
	}
	theirs.calls = nil
	for i := range hold.ListPage {
		theirs.list = append(theirs.list, want)
		theirs.list[i].ID[1] = byte(i)
	}
	list, more, err := asker.List(ctx, holder, hold.ID{5})
	if err != nil || !more || len(list) != hold.ListPage || !reflect.DeepEqual(list[0], *terms) {
		t.Fatal(len(list), more, err, list[0])
	}
	if !reflect.DeepEqual(theirs.calls, []any{me, hold.ID{5}}) {
		t.Fatal(theirs.calls)
	}
	theirs.calls = nil
	if err := errors.Join(asker.Release(ctx, holder, hold.ID{1}), asker.Cancel(ctx, holder, hold.ID{2}), asker.Poll(ctx, holder, 3)); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(theirs.calls, []any{me, hold.ID{1}, me, hold.ID{2}, me}) {
		t.Fatal(theirs.calls)
	}
	// What the service says is what the asker hears, and no more of what is ours.
	for _, s := range statuses {
		theirs.err = s.err
		if err := asker.Release(ctx, holder, hold.ID{1}); !errors.Is(err, s.err) {
			t.Errorf("%v came as %v", s.err, err)
		}
	}
	theirs.err = errors.New("secret of the disk")
	err = asker.Release(ctx, holder, hold.ID{1})
	if refused := (*RefusedError)(nil); !errors.As(err, &refused) || refused.Status != holdpb.Status_STATUS_INTERNAL || strings.Contains(err.Error(), "secret") {
		t.Error(err)
	}
	if err := errOf(holder, 77); err == nil {
		t.Error("an unknown status is taken for yes")
	}
	theirs.err = hold.ErrPrice
	if reply, err := asker.Park(ctx, terms, 1, false); !errors.Is(err, hold.ErrPrice) || reply.Price != 7 {
		t.Error(reply, err)
	}
}

func (s *Service) raw(ctx context.Context, t *testing.T, to peer.ID, frame []byte) (*holdpb.Response, error) {
	t.Helper()
	st, err := s.host.NewStream(ctx, to, Protocol)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = st.Reset() }()
	if _, err := st.Write(frame); err != nil {
		t.Fatal(err)
	}
	if err := st.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	a := new(holdpb.Response)
	return a, wire.NewReader(st, maxResponse).ReadMsg(a)
}

// framed is a request behind its length.
func framed(t testing.TB, q *holdpb.Request) []byte {
	t.Helper()
	b, err := proto.Marshal(q)
	if err != nil {
		t.Fatal(err)
	}
	out := []byte{byte(len(b))}
	if len(b) >= 0x80 {
		out = []byte{byte(len(b)) | 0x80, byte(len(b) >> 7)}
	}
	return append(out, b...)
}

// TestHostile: what no peer sends ends its stream, and nothing is asked of the node.
func TestHostile(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	asker, asked, mine, theirs := pair(t)
	good := func() *holdpb.Hold { return wireHold(asker.terms(asked.host.ID(), mine.now), false) }
	park := func(f func(h *holdpb.Hold)) []byte {
		h := good()
		f(h)
		return framed(t, &holdpb.Request{ClockMs: 1, Kind: &holdpb.Request_Park{Park: &holdpb.Park{Hold: h}}})
	}
	for name, frame := range map[string][]byte{
		"garbage": {3, 0xff, 0xff, 0xff}, "too long": {0xff, 0xff, 0x7f}, "cut": {9, 1}, "nothing": {},
		"clock":      framed(t, &holdpb.Request{ClockMs: 1 << 63, Kind: &holdpb.Request_List{List: &holdpb.List{}}}),
		"short id":   park(func(h *holdpb.Hold) { h.Id = h.Id[1:] }),
		"no payee":   park(func(h *holdpb.Hold) { h.Payee = nil }),
		"long payee": park(func(h *holdpb.Hold) { h.Payee = bytes.Repeat([]byte{1}, 65) }),
		"bad payee":  park(func(h *holdpb.Hold) { h.Payee = []byte{1, 2, 3} }),
		"short hash": park(func(h *holdpb.Hold) { h.Hash = h.Hash[1:] }),
		"no hold":    framed(t, &holdpb.Request{Kind: &holdpb.Request_Park{Park: &holdpb.Park{}}}),
		"after":      framed(t, &holdpb.Request{Kind: &holdpb.Request_List{List: &holdpb.List{After: []byte{1}}}}),
		"release":    framed(t, &holdpb.Request{Kind: &holdpb.Request_Release{Release: &holdpb.Release{}}}),
		"statement":  framed(t, &holdpb.Request{Kind: &holdpb.Request_LaneStatement{LaneStatement: &holdpb.LaneStatement{}}}),
		"buy":        framed(t, &holdpb.Request{Kind: &holdpb.Request_Buy{Buy: &holdpb.Buy{Id: make([]byte, 16), Payee: []byte(asked.host.ID())}}}),
		"short buy":  framed(t, &holdpb.Request{Kind: &holdpb.Request_Buy{Buy: &holdpb.Buy{Id: make([]byte, 15), Payee: []byte(asked.host.ID()), Channel: "t2"}}}),
		"cancel":     framed(t, &holdpb.Request{Kind: &holdpb.Request_Cancel{Cancel: &holdpb.Cancel{Id: make([]byte, 17)}}}),
	} {
		if a, err := asker.raw(ctx, t, asked.host.ID(), frame); err == nil {
			t.Errorf("%s: answered %v", name, a)
		}
	}
	if len(theirs.calls) != 0 {
		t.Fatal(theirs.calls)
	}
	for name, q := range map[string]*holdpb.Request{
		"no kind": {ClockMs: 5},
	} {
		if a, err := asker.raw(ctx, t, asked.host.ID(), framed(t, q)); err != nil || a.GetStatus() != holdpb.Status_STATUS_UNSUPPORTED {
			t.Errorf("%s: %v, %v", name, a, err)
		}
	}
	// Times beyond all clocks are none, which the service refuses.
	if _, err := asker.raw(ctx, t, asked.host.ID(), park(func(h *holdpb.Hold) { h.ExpiresMs = 1 << 63 })); err != nil {
		t.Fatal(err)
	}
	if got := theirs.calls[1].(hold.Terms); got.Expires != 0 || got.Payer != asker.host.ID() {
		t.Fatal(got)
	}
}

// late is a stream that our side comes to closing only when the test ends.
type late struct {
	network.Stream
	end <-chan struct{}
}

func (l late) Close() error {
	<-l.end
	return l.Stream.Close()
}

// A peer that asks one thing after the other is answered each time, however late our side
// closes the streams whose answers it has read.
func TestOneAfterTheOther(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	asker, asked, _, _ := pair(t)
	end := make(chan struct{})
	defer close(end)
	asked.host.SetStreamHandler(Protocol, func(st network.Stream) { asked.handle(late{st, end}) })
	for i := range maxServedPeer + 2 {
		if err := asker.Release(ctx, asked.host.ID(), hold.ID{1}); err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
	}
}

// TestTooManyRequests: a peer has few at a time, and has them again afterwards.
func TestTooManyRequests(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	asker, asked, _, theirs := pair(t)
	theirs.wait = make(chan struct{})
	var open []network.Stream
	for range maxServedPeer {
		st, err := asker.host.NewStream(ctx, asked.host.ID(), Protocol)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := st.Write([]byte{1}); err != nil { // begins a request
			t.Fatal(err)
		}
		open = append(open, st)
	}
	under := func() int { return asked.gate.Working(asker.host.ID()) }
	for under() < maxServedPeer {
		if ctx.Err() != nil {
			t.Fatal("the requests do not arrive")
		}
	}
	if err := asker.Release(ctx, asked.host.ID(), hold.ID{1}); err == nil {
		t.Fatal("one over the share was answered")
	}
	close(theirs.wait)
	for _, st := range open {
		_ = st.Reset()
	}
	for under() > 0 && ctx.Err() == nil {
	}
	if err := asker.Release(ctx, asked.host.ID(), hold.ID{1}); err != nil {
		t.Fatal(err)
	}
	asked.Close()
	if err := asker.Release(ctx, asked.host.ID(), hold.ID{1}); err == nil {
		t.Fatal("answered after its end")
	}
	asker.Close()
	if err := asker.Release(ctx, asked.host.ID(), hold.ID{1}); !errors.Is(err, hold.ErrClosed) {
		t.Fatal(err)
	}
}

// TestVectors are those of docs/protocol/hold.md.
func TestVectors(t *testing.T) {
	payee, err := peer.Decode("12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp")
	if err != nil {
		t.Fatal(err)
	}
	h := &holdpb.Hold{
		Id: bytes.Repeat([]byte{1}, 16), Payee: []byte(payee), Hash: bytes.Repeat([]byte{2}, 32), Amount: 1000,
		ExpiresMs: 1_700_000_000_000, UntilMs: 1_700_000_900_000, PleasePoll: true, Box: []byte{3},
	}
	id := bytes.Repeat([]byte{1}, 16)
	data, err := os.ReadFile("testdata/vectors.txt")
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]proto.Message{
		"park":           &holdpb.Request{ClockMs: 1000, Kind: &holdpb.Request_Park{Park: &holdpb.Park{Hold: h, MaxPrice: 5}}},
		"parked":         &holdpb.Response{ClockMs: 1000, Status: holdpb.Status_STATUS_OK, Parked: &holdpb.Parked{Price: 5, Charged: true}},
		"poll":           &holdpb.Request{ClockMs: 1000, Kind: &holdpb.Request_Poll{Poll: &holdpb.Poll{Holds: 2}}},
		"list":           &holdpb.Request{ClockMs: 1000, Kind: &holdpb.Request_List{List: &holdpb.List{After: id}}},
		"release":        &holdpb.Request{ClockMs: 1000, Kind: &holdpb.Request_Release{Release: &holdpb.Release{Id: id}}},
		"ask_statement":  &holdpb.Request{ClockMs: 1000, Kind: &holdpb.Request_LaneStatement{LaneStatement: &holdpb.LaneStatement{Payee: []byte(payee)}}},
		"give_statement": &holdpb.Request{ClockMs: 1000, Kind: &holdpb.Request_LaneStatement{LaneStatement: &holdpb.LaneStatement{Statement: []byte("tallylane1…")}}},
		"statement":      &holdpb.Response{ClockMs: 1000, Status: holdpb.Status_STATUS_OK, Statement: []byte("tallylane1…")},
		"ask_guard":      &holdpb.Request{ClockMs: 1000, Kind: &holdpb.Request_Guard{Guard: &holdpb.Guard{Height: 650}}},
		"guard":          &holdpb.Response{ClockMs: 1000, Status: holdpb.Status_STATUS_OK, Guard: []byte{1, 2}},
		"buy": &holdpb.Request{ClockMs: 1000, Kind: &holdpb.Request_Buy{Buy: &holdpb.Buy{
			Id: id, Payee: []byte(payee), Channel: "t2channel", Amount: 100, Deadline: 600, MaxPrice: 5,
		}}},
		"sold":   &holdpb.Response{ClockMs: 1000, Status: holdpb.Status_STATUS_OK, Sold: &holdpb.Sold{Price: 5, Charged: true, Hash: bytes.Repeat([]byte{2}, 32), Voucher: []byte{1, 2}}},
		"mail":   &holdpb.Request{ClockMs: 1000, Kind: &holdpb.Request_Mail{Mail: &holdpb.Mail{Mail: []byte("tallymail1…")}}},
		"cancel": &holdpb.Request{ClockMs: 1000, Kind: &holdpb.Request_Cancel{Cancel: &holdpb.Cancel{Id: id}}},
	} {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if line := name + " " + hex.EncodeToString(b) + "\n"; !strings.Contains(string(data), line) {
			t.Errorf("%s", line)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	from := peer.ID("from")
	s := &hold.Terms{ID: hold.ID{1}, Payee: "12345", Hash: tally.Hashlock{2}, Amount: 1, Expires: 5, Until: 6}
	f.Add(framed(f, &holdpb.Request{Kind: &holdpb.Request_Park{Park: &holdpb.Park{Hold: wireHold(s, false)}}})[1:])
	f.Add(framed(f, &holdpb.Request{Kind: &holdpb.Request_List{List: &holdpb.List{}}})[1:])
	f.Fuzz(func(t *testing.T, frame []byte) {
		var q holdpb.Request
		if len(frame) > maxRequest || wire.Unmarshal(frame, &q) != nil {
			return
		}
		d := &desk{now: 1000}
		a, err := answer(context.Background(), d, "self", from, &q)
		if (a == nil) == (err == nil) || err != nil && (len(d.calls) > 0 || !errors.Is(err, ErrMalformed)) {
			t.Fatal(a, err, d.calls)
		}
		if len(d.calls) == 0 {
			return
		}
		if _, mail := d.calls[0].(hold.Mail); !mail && d.calls[0] != from { // a mail names its payer itself
			t.Fatal("another asker", d.calls)
		}
	})
}
