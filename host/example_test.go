package host_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"

	tallyhost "github.com/tallystick/tally/host"
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
