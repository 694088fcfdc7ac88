package testnet

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/tallystick/tally/host/repo"
	"github.com/tallystick/tally/host/rpc"
)

const (
	// readyWithin bounds the start of a process and endWithin a clean stop; the
	// daemon promises 5 s on a quiet machine.
	readyWithin = 60 * time.Second
	endWithin   = 30 * time.Second
	// maxLogTail bounds what is kept of the log of a process.
	maxLogTail = 64 << 10
)

// ProcessConfig is a program that prints one line of JSON when it is ready, as
// `tally start` and `tally devnet` do with -o json.
type ProcessConfig struct {
	// Binary and its arguments. A restart uses the same.
	Binary string
	Args   []string
	// Env is added to the environment of this process.
	Env []string
	// Repo is its folder, for Client.
	Repo string
}

// Process is a program in a process of its own, through all its lives. Its
// methods may be called at the same time; what is done to it is done one at a
// time.
type Process struct {
	cfg ProcessConfig

	// life is held while the process is started, stopped or killed.
	life sync.Mutex
	cmd  *exec.Cmd // nil while it is down

	// mu guards the fields below.
	mu    sync.Mutex
	ready json.RawMessage
	log   []byte // the end of standard error, of all lives
}

// StartProcess starts a program and returns when it is ready.
func StartProcess(ctx context.Context, cfg ProcessConfig) (*Process, error) {
	p := &Process{cfg: cfg}
	return p, p.Start(ctx)
}

// Start begins a life. ErrUp.
func (p *Process) Start(ctx context.Context) error {
	p.life.Lock()
	defer p.life.Unlock()
	if p.cmd != nil {
		return ErrUp
	}
	cmd := exec.Command(p.cfg.Binary, p.cfg.Args...)
	cmd.Env = slices.Concat(os.Environ(), p.cfg.Env)
	cmd.Stderr = logTail{p}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("testnet: start %s: %w", p.name(), err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("testnet: start %s: %w", p.name(), err)
	}
	line := make(chan []byte, 1)
	go func() { // ends with the first line, or with the process
		text, _ := bufio.NewReader(out).ReadBytes('\n')
		line <- text
	}()
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	select {
	case text := <-line:
		var ready struct{ Ready bool }
		if json.Unmarshal(text, &ready) == nil && ready.Ready {
			p.mu.Lock()
			p.ready = text
			p.mu.Unlock()
			p.cmd = cmd
			return nil
		}
		err = fmt.Errorf("it printed %q in place of its ready line", text)
	case <-ctx.Done():
		err = ctx.Err()
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	return fmt.Errorf("testnet: start %s: %w; its log ends: %s", p.name(), err, p.Log())
}

func (p *Process) name() string {
	return fmt.Sprintf("%s %v", filepath.Base(p.cfg.Binary), p.cfg.Args)
}

// Kill ends a life between two instructions (SIGKILL), and waits until the
// process is gone. ErrDown.
func (p *Process) Kill() error {
	p.life.Lock()
	defer p.life.Unlock()
	if p.cmd == nil {
		return ErrDown
	}
	err := p.cmd.Process.Kill()
	_ = p.cmd.Wait() // says that it was killed
	p.cmd = nil
	return err
}

// Stop ends a life cleanly (SIGTERM). It is an error if the process says so, or
// does not end in time. ErrDown.
func (p *Process) Stop() error {
	p.life.Lock()
	defer p.life.Unlock()
	if p.cmd == nil {
		return ErrDown
	}
	err := p.cmd.Process.Signal(syscall.SIGTERM)
	if errors.Is(err, os.ErrProcessDone) {
		err = nil // an interrupt of the terminal reached it first
	}
	timer := time.AfterFunc(endWithin, func() { _ = p.cmd.Process.Kill() })
	err = errors.Join(err, p.cmd.Wait())
	if !timer.Stop() {
		err = errors.Join(err, fmt.Errorf("it was killed after %v", endWithin))
	}
	p.cmd = nil
	if err != nil {
		return fmt.Errorf("testnet: stop %s: %w; its log ends: %s", p.name(), err, p.Log())
	}
	return nil
}

// Restart is Kill and Start.
func (p *Process) Restart(ctx context.Context) error {
	if err := p.Kill(); err != nil {
		return err
	}
	return p.Start(ctx)
}

// Close ends the process if it runs.
func (p *Process) Close() error {
	if err := p.Stop(); !errors.Is(err, ErrDown) {
		return err
	}
	return nil
}

// Ready decodes the ready line of the present life.
func (p *Process) Ready(v any) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return json.Unmarshal(p.ready, v)
}

// Repo is its folder.
func (p *Process) Repo() string { return p.cfg.Repo }

// PID is that of the present life, 0 while it is down.
func (p *Process) PID() int {
	p.life.Lock()
	defer p.life.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Client returns a client of the peer in the process, and what ends it.
func (p *Process) Client() (*rpc.Client, func(), error) {
	addr, token, err := repo.Endpoint(p.cfg.Repo)
	if err != nil {
		return nil, nil, err
	}
	return rpc.NewClient(addr, token)
}

// Log returns the end of what the process wrote to standard error.
func (p *Process) Log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return string(p.log)
}

// logTail keeps the end of a stream.
type logTail struct{ p *Process }

var _ io.Writer = logTail{}

// Write implements io.Writer.
func (t logTail) Write(b []byte) (int, error) {
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	t.p.log = append(t.p.log, b...)
	if n := len(t.p.log) - maxLogTail; n > 0 {
		t.p.log = append([]byte(nil), t.p.log[n:]...)
	}
	return len(b), nil
}
