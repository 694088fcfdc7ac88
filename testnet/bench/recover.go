package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/tallystick/tally/swap"
)

// ErrNoChild: the program did not say how Child is reached.
var ErrNoChild = errors.New("bench: recover kills processes of its own; set Options.Child to the arguments that lead to bench.Child")

// What a child does.
const (
	childFill  = "fill"  // make the accounts, then book on until killed
	childServe = "serve" // start a node on the store, then book on until killed
	childScan  = "scan"  // open the store and read every record
)

// Lines of a child.
const childReady = "ready"

// dirtyFor is how long a node books after it is ready and before it is killed,
// so that there is a journal to replay.
const dirtyFor = 500 * time.Millisecond

// recoverSeed makes the same peers in all processes.
const recoverSeed = 7

// benchRecover measures from the start of the process to the first request
// served, on the store of a node that was killed.
func benchRecover(ctx context.Context, o *Options) (_ []Figure, err error) {
	if o.Child == nil {
		return nil, ErrNoChild
	}
	n := scale(o, 1_000_000, 2000)
	dir := filepath.Join(o.Dir, "recover")
	o.say("recover: make %d accounts", n)
	if _, err := o.child(ctx, childFill, dir, n); err != nil {
		return nil, err
	}
	serve := func(ctx context.Context, _ time.Duration) (float64, error) {
		o.say("recover: kill -9, start")
		took, err := o.child(ctx, childServe, dir, n)
		return took.Seconds(), err
	}
	scan := func(ctx context.Context, _ time.Duration) (float64, error) {
		o.say("recover: kill -9, scan")
		took, err := o.child(ctx, childScan, dir, n)
		if err != nil {
			return 0, err
		}
		// Leaves a journal behind for whoever is next.
		_, err = o.child(ctx, childServe, dir, n)
		return took.Seconds(), err
	}
	m, err := rounds(ctx, o, serve, scan)
	if err != nil {
		return nil, err
	}
	return []Figure{
		cost("recover", "s", m[0], m[1], "a process that opens the same store and reads every record, nothing else", 1.5).
			note("from the start of a process, after SIGKILL of the last, to its first request served").with("accounts", n),
	}, nil
}

// child runs one until it is ready, lets it book on for a while, and kills it. It
// returns the time to ready.
func (o *Options) child(ctx context.Context, what, dir string, accounts int) (_ time.Duration, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	args := append(append([]string(nil), o.Child...), what, dir, strconv.Itoa(accounts))
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	lines := bufio.NewScanner(out)
	ready := false
	for !ready && lines.Scan() {
		ready = lines.Text() == childReady
	}
	took := time.Since(begin)
	if ready && what != childScan {
		time.Sleep(scale(o, dirtyFor, dirtyFor/20))
	}
	_ = cmd.Process.Kill() // SIGKILL; fails where it ended by itself
	err = cmd.Wait()
	if !ready {
		return 0, fmt.Errorf("child %s was never ready: %w", what, errors.Join(err, lines.Err()))
	}
	return took, nil
}

// Child is the body of the processes that recover starts and kills. It returns
// only on an error, or after a scan. args are what recover put behind
// Options.Child; out is standard output.
func Child(ctx context.Context, args []string, out io.Writer) error {
	if len(args) != 3 {
		return fmt.Errorf("bench: child: want task, folder and number of accounts, got %q", args)
	}
	n, err := strconv.Atoi(args[2])
	if err != nil || n < 1 {
		return fmt.Errorf("bench: child: %q accounts", args[2])
	}
	what, dir := args[0], args[1]
	switch what {
	case childFill:
		return fillChild(ctx, dir, n, out)
	case childServe:
		return serveChild(ctx, dir, n, out)
	case childScan:
		return scanChild(ctx, dir, out)
	default:
		return fmt.Errorf("bench: child: unknown task %q", what)
	}
}

func fillChild(ctx context.Context, dir string, n int, out io.Writer) error {
	store, err := openDisk(dir)
	if err != nil {
		return err
	}
	book, err := loadedBook(ctx, store, newPeers(n, recoverSeed))
	if err != nil {
		return errors.Join(err, store.Close())
	}
	// Close saves what is in memory; the next process then is killed with the
	// store in use.
	if err := errors.Join(book.Close(), store.Close()); err != nil {
		return err
	}
	return serveChild(ctx, dir, n, out)
}

func serveChild(ctx context.Context, dir string, n int, out io.Writer) (err error) {
	store, err := openDisk(dir)
	if err != nil {
		return err
	}
	node, err := newParty(ctx, partyConfig{transport: overTCP, policy: wide(), store: store})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.close()) }()
	if err := node.swap.Start(); err != nil {
		return err
	}
	// Peers that the store knows; the list is short so that making it takes no
	// time of the recovery.
	peers := newPeers(min(n, 1000), recoverSeed)
	h, err := node.book.Reserve(ctx, peers[0], service, swap.Serve, 1)
	if err != nil {
		return err
	}
	if err := h.Commit(1); err != nil {
		return err
	}
	row, err := node.book.Row(peers[0])
	if err != nil {
		return err
	}
	if row.Served < 2 {
		return fmt.Errorf("bench: child: the account came back with %d units served", row.Served)
	}
	if _, err := fmt.Fprintln(out, childReady); err != nil {
		return err
	}
	for ctx.Err() == nil { // until killed
		for _, p := range peers {
			if err := node.book.Debit(p, service, 1); err != nil && !errors.Is(err, swap.ErrOverThreshold) {
				return err
			}
		}
		time.Sleep(time.Millisecond)
	}
	return ctx.Err()
}

func scanChild(ctx context.Context, dir string, out io.Writer) error {
	store, err := openDisk(dir)
	if err != nil {
		return err
	}
	records, bytes := 0, 0
	err = store.Scan(ctx, "/", "", func(_ string, v []byte) error {
		records++
		bytes += len(v)
		return nil
	})
	if err == nil && records == 0 {
		err = errors.New("bench: child: no records")
	}
	if err != nil {
		return errors.Join(err, store.Close())
	}
	_, err = fmt.Fprintln(out, childReady)
	return errors.Join(err, store.Close())
}
