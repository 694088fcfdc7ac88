package host

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/host/repo"
	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/paystream"
)

// Two daemons on their repos, as the RPC sees them: URIs, sockets, events, codes.
func TestSocketsOfDaemons(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	change := func(c *repo.Config) { c.SocketPushMax = 500 }
	alice, stopAlice := startDaemon(t, newRepo(t), change)
	defer stopAlice()
	bob, stopBob := startDaemon(t, newRepo(t), change)
	defer stopBob()
	if _, err := alice.PeerConnect(ctx, addrInfo(t, bob)); err != nil {
		t.Fatal(err)
	}
	if err := alice.Node().WaitNeighbour(ctx, bob.Node().host.ID()); err != nil {
		t.Fatal(err)
	}
	a, err := alice.Sockets()
	if err != nil {
		t.Fatal(err)
	}
	b, err := bob.Sockets()
	if err != nil {
		t.Fatal(err)
	}

	made, err := b.Create(ctx, paystream.UseGift, 60, nil, nil, time.Now().Add(time.Hour), 0)
	if err != nil {
		t.Fatal(err)
	}
	u, err := rpc.ParseURI(made.URI)
	if err != nil {
		t.Fatal(err)
	}
	row, err := a.Redeem(ctx, u, nil, nil, nil)
	if err != nil || row.Balance != 60 || row.Peer != bob.Node().host.ID().String() {
		t.Fatalf("redeemed %+v, %v", row, err)
	}
	if _, err = a.Redeem(ctx, u, nil, nil, nil); code(err) != rpc.CodeSpent {
		t.Fatalf("redeemed twice: %v", err)
	}

	low := paystream.At(-40)
	row, err = a.Open(ctx, bob.Node().host.ID(), nil, nil, paystream.Terms{Min: low, Max: low})
	if err != nil {
		t.Fatal(err)
	}
	id := socketID(t, a, row.ID)
	for !row.Settled {
		if row, err = a.Get(ctx, id); err != nil || ctx.Err() != nil {
			t.Fatalf("%+v, %v", row, err)
		}
		<-time.After(5 * time.Millisecond)
	}
	if row.Balance != -40 || row.Sent != 40 || row.Loss != 0 {
		t.Fatalf("pushed %+v", row)
	}
	if row, err = a.Pay(ctx, id, 10); err != nil || row.Max != "-50" {
		t.Fatalf("pay 10 more: %+v, %v", row, err)
	}
	for row.Balance != -50 {
		if row, err = a.Get(ctx, id); err != nil || ctx.Err() != nil {
			t.Fatalf("%+v, %v", row, err)
		}
		<-time.After(5 * time.Millisecond)
	}
	if _, err = a.SetLimits(ctx, id, paystream.At(1), paystream.At(0)); code(err) != rpc.CodeSocketLimits {
		t.Fatalf("minimum above maximum: %v", err)
	}
	if _, err = a.Get(ctx, paystream.SocketID{1}); code(err) != rpc.CodeNoSocket {
		t.Fatalf("unknown socket: %v", err)
	}
	low = paystream.At(-600)
	if _, err = a.Open(ctx, bob.Node().host.ID(), nil, nil, paystream.Terms{Min: low, Max: low, AllOrNothing: true}); code(err) != rpc.CodeIncompatible {
		t.Fatalf("push of 600 where 500 are taken: %v", err)
	}
	if _, err = a.Open(ctx, alice.Node().host.ID(), nil, nil, paystream.Terms{}); code(err) != rpc.CodeBadPeer {
		t.Fatalf("to ourselves: %v", err)
	}
	if row.Asset != "karma" || row.PeerAsset != "karma" {
		t.Errorf("assets of %+v", row)
	}
	dataOfDaemons(ctx, t, a, b, id)
	if _, err = a.Close(ctx, id); err != nil {
		t.Fatal(err)
	}

	seen := make(map[string]bool)
	for cursor := uint64(0); !seen["socket opened"] || !seen["socket settled"]; {
		batch, err := bob.EventsSince(ctx, cursor)
		if err != nil || ctx.Err() != nil {
			t.Fatalf("events %v, %v", seen, err)
		}
		for _, e := range batch.Events {
			seen[e.Kind] = true
			if e.Kind == "socket opened" && e.Peer != alice.Node().host.ID().String() {
				t.Errorf("opened by %q", e.Peer)
			}
		}
		cursor = batch.Cursor
	}
}

// dataOfDaemons sends bytes over a socket, in two calls and with the end.
func dataOfDaemons(ctx context.Context, t *testing.T, from, to rpc.Sockets, id paystream.SocketID) {
	t.Helper()
	sent := bytes.Repeat([]byte("tally"), 60_000)
	done := make(chan struct{})
	defer func() { <-done }() // who closes the socket before fails the call
	go func() {               // ends with the stream, or with ctx
		defer close(done)
		row, err := from.Send(ctx, id, 0, sent[:rpc.MaxStreamData], false)
		if err == nil {
			_, err = from.Send(ctx, id, row.Stream, sent[rpc.MaxStreamData:], true)
		}
		if err != nil {
			t.Error(err)
		}
	}()
	var got []byte
	for row := (rpc.StreamRow{}); !row.End; {
		var err error
		if row, err = to.Receive(ctx, id, row.Stream); err != nil || ctx.Err() != nil {
			t.Fatalf("received %d bytes, then %v", len(got), err)
		}
		got = append(got, row.Data...)
	}
	if !bytes.Equal(got, sent) {
		t.Errorf("received %d bytes, which are not the %d that were sent", len(got), len(sent))
	}
	if _, err := to.Receive(ctx, id, 99); code(err) != rpc.CodeBadArgument {
		t.Errorf("receive on a stream that nobody opened: %v", err)
	}
}

func socketID(t *testing.T, s rpc.Sockets, text string) (id paystream.SocketID) {
	t.Helper()
	for _, c := range s.(socketAPI).Sockets.List() {
		if c.ID().String() == text {
			return c.ID()
		}
	}
	t.Fatalf("no socket %s", text)
	return id
}

// Ways and fees come from the settings.
func TestSettingsOfPackets(t *testing.T) {
	const to, via = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA", "12D3KooWJRSrypvnpHgc6ZAgyCni4KcSmbV7uGRaMw5LgMKT18fq"
	c := repo.DefaultConfig()
	c.FeeBase, c.FeePPM, c.Routes = 3, 100, []string{to + "=" + via}
	n, err := nodeConfig(c, false)
	if err != nil {
		t.Fatal(err)
	}
	dest, err := peer.Decode(to)
	if err != nil {
		t.Fatal(err)
	}
	if r := n.Packets.Rules; r.FeeBase != 3 || r.FeePPM != 100 || n.Packets.Routes[dest].String() != via {
		t.Fatalf("%+v", n.Packets)
	}
	for _, bad := range [][]string{{to}, {to + "=" + to}, {"x=" + via}, {to + "=" + via, to + "=" + via}} {
		c.Routes = bad
		if err := c.Validate(); err == nil {
			t.Errorf("routes %v", bad)
		}
	}
}
