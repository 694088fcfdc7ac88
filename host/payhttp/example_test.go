package payhttp_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host"
	"github.com/tallystick/tally/host/payhttp"
)

// A handler costs 7 units a request, and a client gives up to 10.
func Example() {
	ctx := context.Background()
	var nodes []*host.Node
	for range 2 {
		h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"))
		if err != nil {
			log.Fatal(err)
		}
		defer h.Close()
		dir, _ := os.MkdirTemp("", "books")
		defer os.RemoveAll(dir)
		node, err := host.New(h, host.Config{Dir: dir, Sockets: &host.SocketsConfig{}})
		if err != nil {
			log.Fatal(err)
		}
		defer node.Close()
		nodes = append(nodes, node)
	}
	shop, buyer := nodes[0], nodes[1]
	if err := buyer.Host().Connect(ctx, peer.AddrInfo{ID: shop.Host().ID(), Addrs: shop.Host().Addrs()}); err != nil {
		log.Fatal(err)
	}
	if err := shop.WaitNeighbour(ctx, buyer.Host().ID()); err != nil {
		log.Fatal(err)
	}

	till, err := shop.Sockets()
	if err != nil {
		log.Fatal(err)
	}
	metered, err := payhttp.Meter(payhttp.MeterConfig{
		Sockets: till,
		Price:   func(*http.Request) (tally.Amount, error) { return 7, nil },
	}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "a page") }))
	if err != nil {
		log.Fatal(err)
	}
	server := httptest.NewServer(metered)
	defer server.Close()

	purse, err := buyer.Sockets()
	if err != nil {
		log.Fatal(err)
	}
	client := &http.Client{Transport: &payhttp.Payer{
		Sockets: purse,
		Limit:   func(*http.Request) tally.Amount { return 10 },
	}}
	resp, err := client.Get(server.URL)
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(resp.StatusCode, string(page))
	// Output: 200 a page
}
