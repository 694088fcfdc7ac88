package storenet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/p2p/transport/websocket"

	"github.com/tallystick/tally"
)

// jsResult is what interop/js/store/query.mjs prints.
type jsResult struct {
	Pages      int    `json:"pages"`
	Messages   int    `json:"messages"`
	Sizes      []int  `json:"sizes"`
	Status     int    `json:"status"`
	StatusDesc string `json:"status_desc"`
	Error      string `json:"error"`
}

// TestInteropJS has a stock @waku/sdk light client page through 250 messages over
// /ws on loopback: all of them from a node without a tab, 125 and then 402 from
// one whose tab ends there.
//
//	cd interop/js/store && npm install
//	TALLY_INTEROP=1 go test -run TestInteropJS ./protocols/storenet
//
// TALLY_INTEROP_DIR names another folder with the scripts and their modules.
func TestInteropJS(t *testing.T) {
	if os.Getenv("TALLY_INTEROP") != "1" {
		t.Skip("set TALLY_INTEROP=1; needs node and npm modules")
	}
	dir := os.Getenv("TALLY_INTEROP_DIR")
	if dir == "" {
		dir = filepath.Join("..", "..", "interop", "js", "store")
	}
	h, err := libp2p.New(
		libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0/ws"),
		libp2p.Transport(websocket.New), libp2p.DisableRelay(),
	)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	const topic, n = "/tally/1/demo/proto", 250
	store := newStore(t)
	var lines []*Message
	for i := range n {
		m := numbered(i)
		m.ContentTopic, m.PubsubTopic = topic, ""
		lines = append(lines, m)
	}
	// The topics are those that the SDK's autosharding asks for.
	res, err := store.Import(testCtx(t), strings.NewReader(ndjson(t, lines...)), ImportOptions{Topic: ShardedTopic(1, 8)})
	if err != nil || res.Added != n {
		t.Fatalf("%+v, %v", res, err)
	}
	for _, tc := range []struct {
		name  string
		meter *fakeMeter
		args  []string
		want  jsResult
		units tally.Amount
	}{
		{"unmetered", nil, nil, jsResult{Pages: 13, Messages: 250, Status: 200}, 0},
		{"unmetered, large pages backward", nil, []string{"--page-size", "100", "--backward"}, jsResult{Pages: 3, Messages: 250, Status: 200}, 0},
		{"metered", newMeter(125), nil, jsResult{Pages: 7, Messages: 125, Status: 402, StatusDesc: "owes 125 of 125 units"}, 125},
		{"metered to the last one", newMeter(250), []string{"--page-size", "100"}, jsResult{Pages: 3, Messages: 250, Status: 200}, 250},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := Config{Cluster: 1, Shards: []uint32{0, 1, 2, 3, 4, 5, 6, 7}}
			if tc.meter != nil {
				cfg.Meter = tc.meter
			}
			srv, outcomes := serve(t, h, store, cfg)
			defer srv.Close()
			got := runJS(t, dir, h, append([]string{topic}, tc.args...)...)
			got.Sizes = nil
			if fmt.Sprint(got) != fmt.Sprint(tc.want) {
				t.Fatalf("got %+v, want %+v", got, tc.want)
			}
			var asked []string
			var units tally.Amount
			for len(outcomes) > 0 {
				o := <-outcomes
				units += o.Units
				if !slices.Contains(asked, string(o.Protocol)) {
					asked = append(asked, string(o.Protocol))
				}
			}
			if units != tc.units || !slices.Contains(asked, string(QueryID)) {
				t.Fatalf("%d units booked, want %d; protocols %v", units, tc.units, asked)
			}
			t.Logf("protocols asked: %v", asked)
		})
	}
}

func runJS(t *testing.T, dir string, h host.Host, args ...string) (res jsResult) {
	t.Helper()
	address := fmt.Sprintf("%s/p2p/%s", h.Addrs()[0], h.ID())
	cmd := exec.CommandContext(testCtx(t), "node", append([]string{"query.mjs", address}, args...)...)
	cmd.Dir = dir
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	}
	if err := json.Unmarshal(stdout.Bytes(), &res); err != nil {
		t.Fatalf("%v\n%s\n%s", err, stdout.String(), stderr.String())
	}
	t.Logf("%s", bytes.TrimSpace(stdout.Bytes()))
	return res
}
