package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/repo"
	"github.com/tallystick/tally/host/rpc"
)

const (
	// lowDisk is when a peer should get room: its books need little, a store of
	// messages and the compaction of a database need more.
	lowDisk, noDisk = 1 << 30, 100 << 20
	// slowSync is a disk on which a cheque takes longer than a page.
	slowSync = 20 * time.Millisecond
)

func (a *app) doctorCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Check the repo, the machine and the running peer",
		Long: `Checks folder, permissions, lock, settings, chain, ports, clock, disk space, the
speed of synced writes, the running peer and the store. Each line that is not ok says what
to do. It changes nothing and exits with 1 if a check fails.`,
		Example: "  tally doctor\n  tally doctor -o json",
		Args:    nArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := a.repoDir()
			if err != nil {
				return err
			}
			d := &doctor{app: a, dir: dir}
			d.examine(cmd.Context())
			if err := rows(a.out, d.checks, func() *table { return checkTable(d.checks) }); err != nil {
				return err
			}
			if n := d.failed(); n > 0 {
				return failf("do what the NEXT column says", "%d of %d checks failed", n, len(d.checks))
			}
			return nil
		},
	}
}

type doctor struct {
	app    *app
	dir    string
	checks []rpc.Check
}

func (d *doctor) add(name string, state rpc.CheckState, next, format string, args ...any) {
	d.checks = append(d.checks, rpc.Check{Name: name, State: state, Detail: fmt.Sprintf(format, args...), Next: next})
}

// result adds a check that failed with err, or is well.
func (d *doctor) result(name string, err error, well string) bool {
	if err == nil {
		d.add(name, rpc.CheckOK, "", "%s", well)
		return true
	}
	next := ""
	var e *repo.Error
	if errors.As(err, &e) {
		next = e.Remedy()
	}
	d.add(name, rpc.CheckFail, next, "%v", err)
	return false
}

func (d *doctor) failed() int {
	n := 0
	for _, c := range d.checks {
		if c.State == rpc.CheckFail {
			n++
		}
	}
	return n
}

func (d *doctor) examine(ctx context.Context) {
	if !d.result("repo", repo.CheckLayout(d.dir), d.dir) {
		return // the rest would repeat the same
	}
	problems := repo.CheckPermissions(d.dir)
	for _, err := range problems {
		d.result("permissions", err, "")
	}
	if len(problems) == 0 {
		d.add("permissions", rpc.CheckOK, "", "secrets are ours alone")
	}
	config, err := repo.ReadConfig(d.dir)
	if d.result("config", err, repo.ConfigFile+" is valid") {
		d.chain(config)
	}
	pid, held, lockErr := repo.Holder(d.dir)
	switch {
	case lockErr != nil:
		d.result("lock", lockErr, "")
	case held:
		d.add("lock", rpc.CheckOK, "", "held by process %d", pid)
	default:
		d.add("lock", rpc.CheckOK, "", "free")
	}
	d.daemon(ctx, held)
	if err == nil {
		d.ports(config, held)
	}
	d.clock()
	d.disk()
	d.store(ctx, held)
}

// chain checks what is said of the chain, not the node: the running peer does.
func (d *doctor) chain(c repo.Config) {
	node, err := c.ChainNode(d.dir, os.Getenv)
	switch {
	case err != nil:
		d.result("chain", err, "")
	case node.URL != "":
		token := "without a token"
		if node.Token != "" {
			token = "with a token"
		}
		d.add("chain", rpc.CheckOK, "", "named by %s, %s", node.From, token)
	case c.Mode == "hard":
		d.add("chain", rpc.CheckFail, "set chain in "+repo.ConfigFile+", or mode = \"mock\"", "mode hard needs a chain, and none is configured")
	default:
		d.add("chain", rpc.CheckSkip, "", "none is configured")
	}
	if c.Mode == "hard" {
		d.add("mode", rpc.CheckFail, "set mode = \"mock\"", "mode hard is not in this version yet")
	}
}

// daemon asks the running peer for its own checks.
func (d *doctor) daemon(ctx context.Context, held bool) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	status, err := ask(ctx, d.app, func(ctx context.Context, r *remote) (rpc.Status, error) { return r.Status(ctx) })
	var cli *cliError
	switch {
	case err == nil:
		d.add("daemon", rpc.CheckOK, "", "answers, version %s", status.Version)
		for _, c := range status.Checks {
			c.Name = "daemon: " + c.Name
			d.checks = append(d.checks, c)
		}
	case errors.As(err, &cli) && cli.code == exitNoDaemon && !held:
		d.add("daemon", rpc.CheckSkip, d.app.startCommand(), "no peer runs")
	case !held:
		d.result("daemon", err, "")
	default:
		d.add("daemon", rpc.CheckFail, "look at its log; stop it and start it again", "holds the lock but does not answer: %v", err)
	}
}

// ports tries whether the peer could listen. A running one does.
func (d *doctor) ports(c repo.Config, held bool) {
	if held {
		d.add("ports", rpc.CheckSkip, "", "the running peer has them")
		return
	}
	for _, text := range c.Listen {
		addr, err := ma.NewMultiaddr(text)
		if err != nil {
			continue // the settings were checked
		}
		// Only the IP part of an address is listened on: /ip4/…/tcp/N/ws is TCP.
		var head ma.Multiaddr
		for i, comp := range addr {
			if i < 2 {
				head = append(head, comp)
			}
		}
		network, host, err := manet.DialArgs(head)
		if err != nil {
			d.add("ports", rpc.CheckSkip, "", "%s cannot be tried", text)
			continue
		}
		var closer interface{ Close() error }
		if network == "udp4" || network == "udp6" {
			closer, err = net.ListenPacket(network, host)
		} else {
			closer, err = net.Listen(network, host)
		}
		if err != nil {
			d.add("ports", rpc.CheckFail, "choose another port in listen of "+repo.ConfigFile, "%s: %v", text, err)
			continue
		}
		_ = closer.Close()
		d.add("ports", rpc.CheckOK, "", "%s is free", text)
	}
}

// clock finds one that was set back: a file is never from the future.
func (d *doctor) clock() {
	now := time.Now()
	var newest time.Time
	_ = filepath.WalkDir(d.dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil {
			if info, err := e.Info(); err == nil && info.ModTime().After(newest) {
				newest = info.ModTime()
			}
		}
		return nil
	})
	switch {
	case now.Year() < 2025:
		d.add("clock", rpc.CheckFail, "set the clock", "it is not %v", now.UTC().Format(time.RFC3339))
	case newest.After(now.Add(time.Minute)):
		d.add("clock", rpc.CheckWarn, "set the clock", "a file of the repo is %v in the future", newest.Sub(now).Round(time.Second))
	default:
		d.add("clock", rpc.CheckOK, "", "%s", now.UTC().Format(time.RFC3339))
	}
}

func (d *doctor) disk() {
	free, err := freeBytes(d.dir)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		d.add("disk space", rpc.CheckSkip, "", "cannot be read on this system")
	case err != nil:
		d.add("disk space", rpc.CheckFail, "", "%v", err)
	case free < noDisk:
		d.add("disk space", rpc.CheckFail, "make room on the disk of "+d.dir, "%s MiB free", cell(free>>20))
	case free < lowDisk:
		d.add("disk space", rpc.CheckWarn, "make room on the disk of "+d.dir, "%s MiB free", cell(free>>20))
	default:
		d.add("disk space", rpc.CheckOK, "", "%s MiB free", cell(free>>20))
	}
	median, err := syncTime(d.dir)
	switch {
	case err != nil:
		d.add("synced writes", rpc.CheckFail, "check that "+d.dir+" may be written", "%v", err)
	case median > slowSync:
		d.add("synced writes", rpc.CheckWarn, "put the repo on a faster disk", "%v each: cheques will be slow", median.Round(10*time.Microsecond))
	default:
		d.add("synced writes", rpc.CheckOK, "", "%v each", median.Round(time.Microsecond))
	}
}

// syncTime returns the median time of a small write with its sync.
func syncTime(dir string) (median time.Duration, err error) {
	f, err := os.CreateTemp(dir, ".write-doctor-*") // a crash leaves it to the next start
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	times := make([]time.Duration, 15)
	block := make([]byte, 4096)
	for i := range times {
		begin := time.Now()
		if _, err := f.Write(block); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		times[i] = time.Since(begin)
	}
	slices.Sort(times)
	return times[len(times)/2], nil
}

func (d *doctor) store(ctx context.Context, held bool) {
	switch {
	case held:
		d.add("store", rpc.CheckSkip, "", "the running peer has it open and checks it itself")
	case d.app.deps.CheckStore == nil:
		d.add("store", rpc.CheckSkip, "", "this build cannot check it")
	default:
		d.result("store", d.app.deps.CheckStore(ctx, d.dir), "read without damage")
	}
}
