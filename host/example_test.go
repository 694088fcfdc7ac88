package host_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"

	tallyhost "github.com/tallystick/tally/host"
	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/swap"
)

// A node that has a go-libp2p host keeps tabs with its peers from New to Close.
func ExampleNew() {
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"))
	if err != nil {
		log.Fatal(err)
	}
	defer h.Close()
	dir, _ := os.MkdirTemp("", "books") // a real node keeps its folder
	defer os.RemoveAll(dir)

	node, err := tallyhost.New(h, tallyhost.Config{Dir: dir})
	if err != nil {
		log.Fatal(err)
	}
	defer node.Close()
	fmt.Println(node.Book().Policy().PaymentThreshold)
	// Output: 100
}

// A service of your own reserves before it works, and commits what it
// delivered.
func ExampleNode_Book() {
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"))
	if err != nil {
		log.Fatal(err)
	}
	defer h.Close()
	dir, _ := os.MkdirTemp("", "books")
	defer os.RemoveAll(dir)
	node, err := tallyhost.New(h, tallyhost.Config{Dir: dir})
	if err != nil {
		log.Fatal(err)
	}
	defer node.Close()

	client, err := peer.Decode("12D3KooWJRSrypvnpHgc6ZAgyCni4KcSmbV7uGRaMw5LgMKT18fq")
	if err != nil {
		log.Fatal(err)
	}
	hold, err := node.Book().Reserve(context.Background(), client, "blocks", swap.Serve, 5)
	if err != nil {
		log.Fatal(err) // names what the peer owes and what it can do
	}
	// … find the blocks; only three are here …
	if err := hold.Commit(3); err != nil {
		log.Fatal(err)
	}
	row, err := node.Book().Row(client)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("the peer owes", row.Balance, "units; it may still take", row.HeadroomServe)
	// Output: the peer owes 3 units; it may still take 122
}

// Two nodes with payment sockets: one makes a gift code, the other redeems it.
func ExampleSockets() {
	ctx := context.Background()
	var nodes []*tallyhost.Node
	for range 2 {
		h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"))
		if err != nil {
			log.Fatal(err)
		}
		defer h.Close()
		dir, _ := os.MkdirTemp("", "books")
		defer os.RemoveAll(dir)
		node, err := tallyhost.New(h, tallyhost.Config{Dir: dir, Sockets: &tallyhost.SocketsConfig{}})
		if err != nil {
			log.Fatal(err)
		}
		defer node.Close()
		nodes = append(nodes, node)
	}
	giver, finder := nodes[0], nodes[1]
	if err := finder.Host().Connect(ctx, peer.AddrInfo{ID: giver.Host().ID(), Addrs: giver.Host().Addrs()}); err != nil {
		log.Fatal(err)
	}
	if err := finder.WaitNeighbour(ctx, giver.Host().ID()); err != nil {
		log.Fatal(err)
	}

	grant, err := tallyhost.GrantOf(paystream.UseGift, 60, time.Now().Add(time.Hour))
	if err != nil {
		log.Fatal(err)
	}
	from, err := giver.Sockets()
	if err != nil {
		log.Fatal(err)
	}
	uri, err := from.Issue(grant)
	if err != nil {
		log.Fatal(err)
	}
	// … uri.Reveal() goes to the finder as text …
	to, err := finder.Sockets()
	if err != nil {
		log.Fatal(err)
	}
	socket, err := to.Redeem(ctx, uri, nil, paystream.Terms{Max: paystream.NoMax})
	if err != nil {
		log.Fatal(err)
	}
	if err := socket.WaitBalance(ctx, 60); err != nil {
		log.Fatal(err)
	}
	fmt.Println("received", socket.Report().Received)
	// Output: received 60
}
