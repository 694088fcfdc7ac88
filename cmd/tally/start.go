package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/repo"
	"github.com/tallystick/tally/host/rpc"
)

// stopWithin bounds a clean stop, from the signal to the end of the process.
const stopWithin = 5 * time.Second

type startFlags struct {
	dev                         bool
	listen                      []string
	rpc, chain, tokenFile, mode string
}

func (a *app) startCmd() *cobra.Command {
	var flags startFlags
	cmd := &cobra.Command{
		Use:   "start",
		Short: "Run the peer of the repo",
		Long: `Runs the peer until SIGINT, SIGTERM or a Shutdown call, then stops cleanly within
5 seconds. Flags overrule config.toml and do not change it.

When the peer is ready it writes <repo>/api and prints one line; with -o json:
{"ready":true,"peer_id":…,"addrs":[…],"rpc":…}. Logs go to standard error.

--chain names the JSON-RPC of a chain's node, for payment channels; without it, the
setting chain does, then FULLNODE_API_INFO of the environment. The token is that
of --chain-token-file, else of TALLY_CHAIN_TOKEN, else the one beside the address
(TOKEN:/ip4/…, which on the command line every user of the machine can see), else
that of chain_token_file if the setting chain names the node. Keys are made in
<repo>/keystore and belong to that chain: the node of another one is refused. A
node that is away later on is waited for.

--dev runs a throw-away peer: in a temporary repo that is removed at the end, or
in the one that --repo or TALLY_PATH names, which is made where it is missing. It
has a chain of play money of its own in <repo>/devnet, see ` + "`tally devnet`" + `, and a
filled wallet.

--mode auto, the default, is hard where there is a chain and mock elsewhere.`,
		Example: `  tally start
  tally start --listen /ip4/0.0.0.0/tcp/4001 --rpc 127.0.0.1:5001
  tally start --chain http://127.0.0.1:PORT/rpc/v1 --chain-token-file net/token
  tally start --dev -o json`,
		Args: nArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.start(cmd, flags) },
	}
	f := cmd.Flags()
	f.BoolVar(&flags.dev, "dev", false, "throw-away peer for trying things out")
	f.StringArrayVar(&flags.listen, "listen", nil, "multiaddr to listen on instead of those of the settings; may be repeated")
	f.StringVar(&flags.rpc, "rpc", "", "unix, or HOST:PORT with a loopback host")
	f.StringVar(&flags.chain, "chain", "", "URL of the chain's JSON-RPC, or TOKEN:MULTIADDR as Lotus has it")
	f.StringVar(&flags.tokenFile, "chain-token-file", "", "file with the token for it, readable by you alone")
	f.StringVar(&flags.mode, "mode", "", "auto, soft, mock or hard")
	_ = cmd.RegisterFlagCompletionFunc("mode", cobra.FixedCompletions([]string{"auto", "soft", "mock", "hard"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// ready is what start prints when the peer can be used.
type ready struct {
	Ready  bool     `json:"ready"`
	PeerID string   `json:"peer_id"`
	Addrs  []string `json:"addrs"`
	RPC    string   `json:"rpc"`
}

func (a *app) start(cmd *cobra.Command, flags startFlags) (err error) {
	if a.deps.StartNode == nil {
		return failf("use a complete build", "this build cannot run a peer")
	}
	// Flags are checked against the defaults before anything is touched, and
	// again against the settings of the repo.
	if _, err := flags.overrule(cmd, repo.DefaultConfig()); err != nil {
		return err
	}
	dir, remove, err := a.startDir(flags)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	r, err := repo.Open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	config, err := flags.overrule(cmd, r.Config())
	if err != nil {
		return err
	}
	if err := r.SetConfig(config); err != nil {
		return err
	}
	opts := StartOptions{Dev: flags.dev}
	if !flags.dev {
		if opts.Chain, err = config.ChainNode(dir, flags.getenv()); err != nil {
			return err
		}
	}
	if config.Mode == "hard" && !opts.Dev && opts.Chain.URL == "" { // host says so too, for those without a command line
		return failf("tally start --chain URL, or tally start --dev", "mode hard settles on a chain, and none is configured")
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(config.LogLevel)); err != nil {
		return err
	}
	opts.Logger = slog.New(slog.NewTextHandler(a.deps.Stderr, &slog.HandlerOptions{Level: level}))
	return a.serve(cmd.Context(), r, opts)
}

// getenv is the environment without what a flag comes before.
func (f startFlags) getenv() func(string) string {
	return func(key string) string {
		if key == repo.EnvChainToken && (f.tokenFile != "" || repo.HasToken(f.chain)) {
			return ""
		}
		return os.Getenv(key)
	}
}

// overrule returns the settings with the flags in place.
func (f startFlags) overrule(cmd *cobra.Command, c repo.Config) (repo.Config, error) {
	set := cmd.Flags().Changed
	if set("listen") {
		c.Listen = f.listen
	}
	if set("rpc") {
		c.RPC = f.rpc
	}
	if set("chain") {
		// The token of the settings is for the node of the settings.
		c.Chain, c.ChainTokenFile = f.chain, ""
	}
	if set("chain-token-file") {
		path, err := filepath.Abs(f.tokenFile)
		if err != nil {
			return c, err
		}
		c.ChainTokenFile = path
	}
	if f.dev && (set("chain") || set("chain-token-file")) {
		return c, usagef("leave out --dev, or --chain", "--dev has a chain of its own")
	}
	if set("mode") {
		c.Mode = f.mode
	}
	if err := c.Validate(); err != nil {
		var e *repo.Error
		errors.As(err, &e)
		return c, &cliError{exitUsage, err, e.Remedy()}
	}
	return c, nil
}

// startDir returns the repo to run on and what is done at the end. With --dev
// and no name it is a temporary one.
func (a *app) startDir(flags startFlags) (dir string, remove func() error, err error) {
	keep := func() error { return nil }
	if flags.dev && a.repoFlag == "" && os.Getenv(repo.EnvPath) == "" {
		temp, err := os.MkdirTemp("", "tally-dev-")
		if err != nil {
			return "", nil, err
		}
		if _, err := repo.Init(temp); err != nil {
			return "", nil, errors.Join(err, os.RemoveAll(temp))
		}
		_, _ = fmt.Fprintf(a.deps.Stderr, "dev: throw-away peer in %s with a chain of its own; tally --repo %s … talks to both\n", temp, temp)
		return temp, func() error { return os.RemoveAll(temp) }, nil
	}
	dir, err = a.repoDir()
	if err != nil {
		return "", nil, err
	}
	if flags.dev {
		if _, err := repo.Init(dir); err != nil && !errors.Is(err, repo.ErrExists) {
			return "", nil, err
		}
		_, _ = fmt.Fprintf(a.deps.Stderr, "dev: peer in %s with a chain of its own\n", dir)
	}
	return dir, keep, nil
}

// serve runs the peer and its RPC until ctx ends.
func (a *app) serve(ctx context.Context, r *repo.Repo, opts StartOptions) (err error) {
	logger := opts.Logger
	socket, err := r.SocketPath()
	if err != nil {
		return err
	}
	listener, err := rpc.Listen(r.Config().RPC, socket)
	if err != nil {
		return failf("choose another with --rpc", "rpc cannot listen on %s: %w", r.Config().RPC, err)
	}
	defer func() { _ = listener.Close() }()
	peer, err := a.deps.StartNode(ctx, r, opts)
	if err != nil {
		return err
	}
	stopping, stop := context.WithCancel(ctx)
	defer stop()
	server, err := rpc.NewServer(&process{RunningPeer: peer, version: a.deps.Version, config: r.Config(), stop: stop}, r.RPCKey(), rpc.Config{Logger: logger})
	if err != nil {
		return errors.Join(err, closeWithin(peer))
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }() // ends with shutdown below
	failed := make(<-chan error)
	if f, ok := peer.(Failing); ok {
		failed = f.Failed()
	}

	if err = a.announce(r, listener.Addr(), peer); err == nil {
		select {
		case <-stopping.Done():
			logger.Info("stopping")
		case err = <-failed:
			err = fmt.Errorf("the peer failed: %w", err)
		case err = <-served:
			err = fmt.Errorf("the rpc server ended: %w", err)
		}
	}
	return errors.Join(err, shutdown(r, server, peer))
}

// announce writes the api file and the line that says that all is ready.
func (a *app) announce(r *repo.Repo, addr net.Addr, peer RunningPeer) error {
	api := rpc.AddrOf(addr)
	url, err := rpc.URLOf(api)
	if err != nil {
		return err
	}
	if err := r.WriteAPI(api); err != nil {
		return err
	}
	line := ready{Ready: true, PeerID: r.PeerID().String(), Addrs: peer.Addrs(), RPC: url}
	if line.Addrs == nil {
		line.Addrs = []string{}
	}
	if a.out.format == formatTable {
		_, err = fmt.Fprintf(a.out.w, "ready: %s listens on %s, rpc %s\n", line.PeerID, printable(fmt.Sprint(line.Addrs)), url)
		return err
	}
	return a.out.json(line, "")
}

// shutdown stops in the order in which nobody is left hanging: no new clients,
// then calls, then the peer with its books.
func shutdown(r *repo.Repo, server *rpc.Server, peer RunningPeer) error {
	err := r.RemoveAPI()
	ctx, cancel := context.WithTimeout(context.Background(), stopWithin/5)
	defer cancel()
	if serverErr := server.Shutdown(ctx); serverErr != nil && !errors.Is(serverErr, context.DeadlineExceeded) {
		err = errors.Join(err, serverErr)
	}
	return errors.Join(err, closeWithin(peer))
}

// closeWithin closes the peer in what is left of stopWithin, even if it hangs.
func closeWithin(peer RunningPeer) error {
	const within = stopWithin * 3 / 5
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- peer.Close(ctx) }() // ends with Close, or with the process
	select {
	case err := <-done:
		return err
	case <-time.After(within + stopWithin/10):
		return failf("tally doctor looks at what is on disk", "the peer did not stop within %v", within)
	}
}

// process adds to a peer what the program around it knows.
type process struct {
	RunningPeer
	version string
	config  repo.Config
	stop    func()
	once    sync.Once
}

var _ rpc.Node = (*process)(nil)

func (p *process) Version(ctx context.Context) (rpc.Version, error) {
	v := buildVersion(p.version)
	id, err := p.ID(ctx)
	v.Protocols = id.Protocols
	return v, err
}

func (p *process) ConfigShow(context.Context) (map[string]any, error) { return p.config.Show(), nil }

func (p *process) Shutdown(context.Context) error {
	// The answer has a moment to leave before the server stops.
	p.once.Do(func() { time.AfterFunc(10*time.Millisecond, p.stop) })
	return nil
}

// buildVersion names this build.
func buildVersion(version string) rpc.Version {
	v := rpc.Version{Version: version, API: rpc.Path, Protocols: []string{}}
	if info, ok := debug.ReadBuildInfo(); ok {
		v.Go = info.GoVersion
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				v.Commit = s.Value
			}
		}
	}
	return v
}
