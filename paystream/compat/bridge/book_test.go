package bridge

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-datastore"
	"github.com/libp2p/go-libp2p/core/peer"
	"pgregory.net/rapid"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/compat/btp"
	"github.com/tallystick/tally/paystream/compat/envelope"
	"github.com/tallystick/tally/paystream/compat/ilp"
	"github.com/tallystick/tally/paystream/forward"
)

func markOf(n uint64) envelope.Mark {
	return envelope.MarkOf(binary.BigEndian.AppendUint64(nil, n))
}

func idOf(n uint64) (id PacketID) {
	binary.BigEndian.PutUint64(id[:], n)
	return id
}

func grant(low, high int64, refunds bool) *paystream.Grant {
	return &paystream.Grant{
		Use: paystream.UseAccount, Min: paystream.At(tally.Balance(low)), Max: paystream.At(tally.Balance(high)), Refunds: refunds,
	}
}

func TestAddress(t *testing.T) {
	node, err := peer.Decode("12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA")
	if err != nil {
		t.Fatal(err)
	}
	base, err := AddressOf("tally", node)
	if err != nil || base != "private.tally.tally.12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA" {
		t.Fatal(base, err)
	}
	odd, err := AddressOf("my net", node)
	if err != nil || !strings.HasPrefix(string(odd), "private.tally.~") {
		t.Fatal(odd, err)
	}
	if got, rest, ok := split(odd+".s.x", "my net"); !ok || got != node || rest != "s.x" {
		t.Fatal(got, rest, ok)
	}
	if got, rest, ok := split(base+".c.alice.x.y", "tally"); !ok || got != node || rest != "c.alice.x.y" {
		t.Fatal(got, rest, ok)
	}
	if kind, name := kindOf("c.alice.x.y"); kind != KindClient || name != "alice" {
		t.Fatal(kind, name)
	}
	for _, bad := range []ilp.Address{
		"test.tally.x", "private.tally.other." + ilp.Address(node.String()) + ".c.a", "private.tally.tally.x.c.a",
		"private.tally.tally", "private.tally.tallyx." + ilp.Address(node.String()),
		// The same id as a CID: another way to write it.
		"private.tally.tally." + ilp.Address(peer.ToCid(node).String()) + ".c.a",
	} {
		if _, _, ok := split(bad, "tally"); ok {
			t.Error(bad)
		}
	}
	for name, ok := range map[string]bool{
		"alice": true, "a-b_9": true, "": false, "Alice": false, "a.b": false, "a/b": false, "aaaaaaaaaabbbbbbbbbbccccccccccddd": false,
	} {
		if err := CheckName(name); (err == nil) != ok {
			t.Error(name, err)
		}
	}
}

func TestClientAccount(t *testing.T) {
	b := NewBook()
	alice := Party{Client: "alice"}
	if err := b.Add("alice", btp.Token("t").Hash(), Limits{Credit: 100, Debt: 50}); err != nil {
		t.Fatal(err)
	}
	if err := b.Add("alice", btp.Token("u").Hash(), Limits{}); !errors.Is(err, ErrClientExists) {
		t.Fatal(err)
	}
	if err := b.Leave(idOf(1), alice, 70, markOf(1), nil); err != nil {
		t.Fatal(err)
	}
	var room *RoomError
	if err := b.HoldSend(alice, 31, nil); !errors.As(err, &room) || room.Room != 30 {
		t.Fatal(err)
	}
	if !b.Reflected(markOf(1)) || b.Reflected(markOf(2)) {
		t.Fatal("the guard does not know what is on the way")
	}
	if err := b.HoldGet(alice, 51, markOf(2), nil); !errors.As(err, &room) || room.Room != 50 {
		t.Fatal(err)
	}
	if from, _, ok := b.End(idOf(1), true); !ok || from != alice || b.Reflected(markOf(1)) {
		t.Fatal(from, ok)
	}
	if c, _ := b.Client("alice"); c.Balance() != 70 || c.Sent != 70 {
		t.Fatalf("%+v", c)
	}
	// What it owes is room for what it gets.
	if err := b.HoldGet(alice, 120, markOf(3), nil); err != nil {
		t.Fatal(err)
	}
	b.EndGet(alice, 120, true)
	if c, _ := b.Client("alice"); c.Balance() != -50 || b.Remove("alice") == nil {
		t.Fatalf("%+v", c)
	}
	if err := b.Paid("alice", 0, 50); err != nil {
		t.Fatal(err)
	}
	if err := b.Paid("alice", maxTotal+1, 0); !errors.Is(err, ErrTotals) {
		t.Fatal(err)
	}
	if err := errors.Join(b.Check(), b.Remove("alice")); err != nil {
		t.Fatal(err)
	}
	if err := b.HoldSend(alice, 1, nil); !errors.Is(err, ErrClient) {
		t.Fatal(err)
	}
}

func TestIncomingBound(t *testing.T) {
	b := NewBook()
	if err := b.Add("a", btp.TokenHash{1}, Limits{Debt: 1000}); err != nil {
		t.Fatal(err)
	}
	for range MaxIncoming {
		if err := b.HoldGet(Party{Client: "a"}, 1, envelope.Mark{}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.HoldGet(Party{Client: "a"}, 0, envelope.Mark{}, nil); !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
}

func TestTokenBudgets(t *testing.T) {
	get := func(b *Book, g *paystream.Grant, n tally.Amount, mark uint64) error {
		err := b.HoldGet(Party{Token: TokenID{1}}, n, markOf(mark), g)
		if err == nil {
			b.EndGet(Party{Token: TokenID{1}}, n, true)
		}
		return err
	}
	give := func(b *Book, g *paystream.Grant, n tally.Amount) error {
		err := b.HoldSend(Party{Token: TokenID{1}}, n, g)
		if err == nil {
			b.EndSend(Party{Token: TokenID{1}}, n, true, false)
		}
		return err
	}
	var room *RoomError
	b, g := NewBook(), grant(0, 100, false) // a push: takes 100, gives nothing back
	if err := errors.Join(get(b, g, 60, 1), get(b, g, 40, 2)); err != nil {
		t.Fatal(err)
	}
	if err := get(b, g, 1, 3); !errors.As(err, &room) || room.Room != 0 {
		t.Fatal(err)
	}
	if err := give(b, g, 1); !errors.As(err, &room) {
		t.Fatal(err)
	}
	b, g = NewBook(), grant(-100, 0, false) // a voucher: gives 100, which is gone
	if err := give(b, g, 100); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(get(b, g, 1, 1), give(b, g, 1)); !errors.As(err, &room) {
		t.Fatal(err)
	}
	b, g = NewBook(), grant(0, 100, true) // an account: gives back what came
	if err := errors.Join(get(b, g, 100, 1), give(b, g, 70), get(b, g, 70, 2)); err != nil {
		t.Fatal(err)
	}
	if err := give(b, g, 101); !errors.As(err, &room) || room.Room != 100 {
		t.Fatal(err)
	}
	if err := get(b, g, 1, 2); !errors.Is(err, ErrSeen) {
		t.Fatalf("a packet of before is booked again: %v", err)
	}
	b, g = NewBook(), grant(100, 100, false) // an invoice
	if err := errors.Join(get(b, g, 100, 1), b.Check()); err != nil {
		t.Fatal(err)
	}
	if err := give(b, g, 1); !errors.As(err, &room) {
		t.Fatal(err)
	}
	if err := b.HoldGet(Party{Token: TokenID{2}}, 1, markOf(1), nil); !errors.Is(err, ErrRefused) {
		t.Fatal(err)
	}
}

// TestForget: tokens leave an hour after their end, and those that never moved money
// at once, so that there is room for others.
func TestForget(t *testing.T) {
	b, now := NewBook(), time.Now()
	g := grant(0, 100, false)
	g.Expires = now.Unix()
	for i := range byte(3) {
		if err := b.HoldGet(Party{Token: TokenID{i}}, 1, markOf(uint64(i)), g); err != nil {
			t.Fatal(err)
		}
		b.EndGet(Party{Token: TokenID{i}}, 1, true)
	}
	if gone := b.Forget(now.Add(keepToken-time.Second), 10); len(gone) != 0 {
		t.Fatal(gone)
	}
	if gone := b.Forget(now.Add(keepToken+time.Second), 2); len(gone) != 2 || len(b.tokens) != 1 {
		t.Fatal(gone)
	}
}

// TestBookOverRestarts drives a book at random, saves as the shell does, and starts
// it anew: balances and packets on the way are those of a simple model.
func TestBookOverRestarts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ds := datastore.NewMapDatastore()
		store := durable.New(ds)
		defer func() { _ = store.Close() }()
		b, next := NewBook(), uint64(1)
		names := []string{"alice", "bob"}
		balance := make(map[Party]tally.Balance)
		type flight struct {
			from   Party
			amount tally.Amount
		}
		flying := make(map[PacketID]flight)
		commit := func(fill func(*durable.Batch)) {
			var batch durable.Batch
			fill(&batch)
			if err := store.Commit(context.Background(), &batch); err != nil {
				t.Fatal(err)
			}
		}
		grants := map[Party]*paystream.Grant{{Token: TokenID{7}}: grant(-500, 500, true)}
		parties := []Party{{Client: "alice"}, {Client: "bob"}, {Token: TokenID{7}}}
		for _, n := range names {
			if err := b.Add(n, btp.Token(n).Hash(), Limits{Credit: 300, Debt: 200}); err != nil {
				t.Fatal(err)
			}
			commit(func(batch *durable.Batch) { b.Save(batch, Party{Client: n}) })
		}
		party := rapid.SampledFrom(parties)
		amount := rapid.Uint64Range(0, 250)
		t.Repeat(map[string]func(*rapid.T){
			"leave": func(t *rapid.T) {
				from, n, id := party.Draw(t, "from"), tally.Amount(amount.Draw(t, "amount")), idOf(next)
				next++
				if b.Leave(id, from, n, markOf(next), grants[from]) != nil {
					return
				}
				commit(func(batch *durable.Batch) { b.SavePacket(batch, id) })
				flying[id] = flight{from, n}
			},
			"end": func(t *rapid.T) {
				if len(flying) == 0 {
					t.Skip()
				}
				ids := make([]PacketID, 0, len(flying))
				for id := range flying {
					ids = append(ids, id)
				}
				slices.SortFunc(ids, func(a, b PacketID) int { return slices.Compare(a[:], b[:]) })
				id, ok := rapid.SampledFrom(ids).Draw(t, "id"), rapid.Bool().Draw(t, "fulfilled")
				from, saved, ours := b.End(id, ok)
				if !saved || !ours || from != flying[id].from {
					t.Fatal(from, saved, ours)
				}
				if ok {
					balance[from] += tally.Balance(flying[id].amount)
				}
				delete(flying, id)
				commit(func(batch *durable.Batch) { DeletePacket(batch, id); b.Save(batch, from) })
			},
			"get": func(t *rapid.T) {
				to, n := party.Draw(t, "to"), tally.Amount(amount.Draw(t, "amount"))
				next++
				if b.HoldGet(to, n, markOf(next), grants[to]) != nil {
					return
				}
				ok := rapid.Bool().Draw(t, "fulfilled")
				b.EndGet(to, n, ok)
				if ok {
					balance[to] -= tally.Balance(n)
					commit(func(batch *durable.Batch) { b.Save(batch, to) })
				}
			},
			"paid": func(t *rapid.T) {
				name, in, out := rapid.SampledFrom(names).Draw(t, "name"), amount.Draw(t, "in"), amount.Draw(t, "out")
				if err := b.Paid(name, tally.Amount(in), tally.Amount(out)); err != nil {
					t.Fatal(err)
				}
				balance[Party{Client: name}] += tally.Balance(out) - tally.Balance(in)
				commit(func(batch *durable.Batch) { b.Save(batch, Party{Client: name}) })
			},
			"restart": func(t *rapid.T) {
				b = NewBook()
				for _, prefix := range []string{prefixClients, prefixTokens, prefixPackets} {
					if err := store.Scan(context.Background(), prefix, "", b.Restore); err != nil {
						t.Fatal(err)
					}
				}
			},
			"": func(t *rapid.T) {
				if err := b.Check(); err != nil {
					t.Fatal(err)
				}
				for _, n := range names {
					c, err := b.Client(n)
					if err != nil || c.Balance() != balance[Party{Client: n}] {
						t.Fatalf("%s has %d, want %d: %v", n, c.Balance(), balance[Party{Client: n}], err)
					}
				}
				for p, g := range grants {
					if _, _, got := b.Rooms(p.Token, g); got != -balance[p] {
						t.Fatalf("token has %d, want %d", got, -balance[p])
					}
				}
				if len(b.packets) != len(flying) {
					t.Fatalf("%d packets on the way, want %d", len(b.packets), len(flying))
				}
			},
		})
	})
}

func TestRestoreRefuses(t *testing.T) {
	b := NewBook()
	if err := b.Add("alice", btp.Token("t").Hash(), Limits{Credit: 9}); err != nil {
		t.Fatal(err)
	}
	if err := b.Leave(idOf(1), Party{Client: "alice"}, 3, markOf(1), nil); err != nil {
		t.Fatal(err)
	}
	ds := durable.New(datastore.NewMapDatastore())
	t.Cleanup(func() { _ = ds.Close() })
	var batch durable.Batch
	b.SavePacket(&batch, idOf(1))
	if err := ds.Commit(t.Context(), &batch); err != nil {
		t.Fatal(err)
	}
	rows := make(map[string][]byte)
	if err := ds.Scan(t.Context(), prefixAll, "", func(key string, rec []byte) error {
		rows[key] = slices.Clone(rec)
		return nil
	}); err != nil || len(rows) != 2 {
		t.Fatal(len(rows), err)
	}
	for key, rec := range rows {
		for i := range rec {
			bad := slices.Clone(rec)
			bad[i] ^= 1
			if NewBook().Restore(key, bad) == nil {
				t.Fatalf("%s: a row with byte %d changed is taken", key, i)
			}
		}
		if NewBook().Restore("/bridge/other/x", rec) == nil {
			t.Fatal("a row under a foreign key is taken")
		}
	}
	// A packet of nobody.
	if err := NewBook().Restore(packetKey(idOf(1)), rows[packetKey(idOf(1))]); !errors.Is(err, errRecord) {
		t.Fatal(err)
	}
}

func FuzzRestore(f *testing.F) {
	f.Add(uint8(0), []byte("\x05alice"))
	f.Add(uint8(1), make([]byte, 48))
	f.Add(uint8(2), make([]byte, 100))
	f.Fuzz(func(t *testing.T, kind uint8, payload []byte) {
		key := [...]string{
			Party{Client: "alice"}.key(), Party{Token: TokenID{}}.key(), packetKey(PacketID{}),
		}[kind%3]
		b := NewBook()
		if err := b.Restore(key, durable.Seal(nil, key, recordVersion, payload)); err == nil {
			if err := b.Check(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestRejectOverHops(t *testing.T) {
	for _, j := range []*ilp.Reject{
		{Code: ilp.CodeApplication, TriggeredBy: "test.x", Message: "no", Data: []byte{1, 2}},
		{Code: ilp.CodeUnreachable},
	} {
		got := fromHops(&forward.Result{Code: forward.CodeApplication, Data: overHops(j)}, 5, "test.us")
		if got.Code != j.Code || got.TriggeredBy != j.TriggeredBy || got.Message != j.Message || string(got.Data) != string(j.Data) {
			t.Fatalf("%+v, want %+v", got, j)
		}
	}
	long := &ilp.Reject{Code: ilp.CodeApplication, TriggeredBy: "test.x", Message: string(make([]byte, ilp.MaxMessage)), Data: make([]byte, ilp.MaxData-100)}
	if got := fromHops(&forward.Result{Code: forward.CodeApplication, Data: overHops(long)}, 5, "test.us"); got.Message != "" || len(got.Data) != ilp.MaxData-100 {
		t.Fatalf("%d bytes of data, message of %d", len(got.Data), len(got.Message))
	}
	if got := fromHops(&forward.Result{Code: forward.CodeApplication, Data: []byte("x")}, 5, "test.us"); got.Code != ilp.CodeUnreachable {
		t.Fatal(got)
	}
	for code := forward.CodeUnset; code <= forward.CodeInternal; code++ {
		got := fromHops(&forward.Result{Code: code, Headroom: 3}, 5, "test.us")
		if _, err := got.Append(nil); err != nil {
			t.Fatal(code, err)
		}
		if l, err := ilp.DecodeTooLarge(got.Data); code == forward.CodeHeadroom || code == forward.CodeHeadroomFinal || code == forward.CodeTooLarge {
			if err != nil || l != (ilp.TooLarge{Received: 5, Maximum: 3}) {
				t.Fatal(code, l, err)
			}
		}
		if want := code.Temporary() && code != forward.CodeNoRoute && code != forward.CodeTimeout; got.Code.Temporary() != want && code != forward.CodeUnset {
			t.Error(fmt.Sprint(code), got.Code)
		}
	}
}
