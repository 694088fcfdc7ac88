package testnet

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tallystick/tally/host"
	"github.com/tallystick/tally/host/repo"
	"github.com/tallystick/tally/host/rpc"
)

// daemonNode is a daemon with what the program around it answers.
type daemonNode struct{ *host.Daemon }

func (daemonNode) Version(context.Context) (rpc.Version, error)       { return rpc.Version{}, nil }
func (daemonNode) ConfigShow(context.Context) (map[string]any, error) { return nil, nil }
func (daemonNode) Shutdown(context.Context) error                     { return nil }

// startDaemon runs a peer with its RPC on a new repo, and returns the repo.
func startDaemon(t *testing.T) string {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	dir, err := os.MkdirTemp("", "tl") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	dir = filepath.Join(dir, "r")
	if _, err := repo.Init(dir); err != nil {
		t.Fatal(err)
	}
	r, err := repo.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	cfg := r.Config()
	cfg.Listen = []string{loopback}
	if err := r.SetConfig(cfg); err != nil {
		t.Fatal(err)
	}
	d, err := host.Start(t.Context(), r, host.StartConfig{Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	server, err := rpc.NewServer(daemonNode{d}, r.RPCKey(), rpc.Config{Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	socket, err := r.SocketPath()
	if err != nil {
		t.Fatal(err)
	}
	l, err := rpc.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.WriteAPI(rpc.AddrOf(l.Addr())); err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(l) }() // ends with Shutdown below
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := errors.Join(server.Shutdown(ctx), d.Close(ctx), r.Close()); err != nil {
			t.Error(err)
		}
		<-served
	})
	return dir
}

// The file that runs on peers in this process runs on daemons as well, over
// their RPC.
func TestScenarioOnLivePeers(t *testing.T) {
	peers := map[string]string{"a": startDaemon(t), "b": startDaemon(t)}
	r, err := RunScenario(t.Context(), "tab", Options{Peers: peers})
	if err != nil || r.Failed != 0 || r.Passed != 11 {
		t.Errorf("%v\n%s", err, printed(t, &r))
	}
	file := filepath.Join(t.TempDir(), "s.txt")
	text := "title Fails\npeers a b\nconnect a b\ncheck \"a debt that is not there\" balance a b == -7\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err = RunScenario(t.Context(), file, Options{Peers: peers})
	if err != nil || r.Failed != 1 {
		t.Errorf("%v\n%s", err, printed(t, &r))
	}
}

func TestLivePeersThatAreNotThere(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	_, err := RunScenario(t.Context(), "tab", Options{Peers: map[string]string{"a": dir, "b": dir}})
	if err == nil || !strings.Contains(err.Error(), "peer ") {
		t.Error(err)
	}
}
