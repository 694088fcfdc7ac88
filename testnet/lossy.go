package testnet

import (
	"net"
	"sync"
)

// lossy is the wire between two processes: a TCP relay on loopback that can lose
// what it carries. Partitioned, it keeps its connections and delivers nothing, as
// a dead cable does: neither side is told, and what was sent before waits. Healed,
// it delivers, as TCP's own retransmission would. Cut, its connections end.
type lossy struct {
	l      net.Listener
	target string
	tasks  sync.WaitGroup

	// mu guards the fields below; flow is told when held changes.
	mu     sync.Mutex
	flow   *sync.Cond
	held   bool
	closed bool
	conns  map[net.Conn]struct{}
}

func newLossy(target string) (*lossy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	w := &lossy{l: l, target: target, conns: make(map[net.Conn]struct{})}
	w.flow = sync.NewCond(&w.mu)
	w.tasks.Go(w.accept) // ends with close
	return w, nil
}

func (w *lossy) accept() {
	for {
		in, err := w.l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", w.target)
		if err != nil {
			_ = in.Close()
			continue
		}
		if !w.keep(in, out) {
			return
		}
		w.tasks.Go(func() { w.carry(out, in) }) // ends with either connection
		w.tasks.Go(func() { w.carry(in, out) }) // ends with either connection
	}
}

func (w *lossy) keep(conns ...net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range conns {
		if w.closed {
			_ = c.Close()
		} else {
			w.conns[c] = struct{}{}
		}
	}
	return !w.closed
}

// carry delivers from one side to the other, and ends both with one.
func (w *lossy) carry(to, from net.Conn) {
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, c := range [...]net.Conn{to, from} {
			_ = c.Close()
			delete(w.conns, c)
		}
	}()
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			w.mu.Lock()
			for w.held && !w.closed {
				w.flow.Wait()
			}
			w.mu.Unlock()
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return // io.EOF, too: half a connection is of no use to libp2p
		}
	}
}

func (w *lossy) port() int { return w.l.Addr().(*net.TCPAddr).Port }

// hold stops or resumes delivery.
func (w *lossy) hold(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held = on
	w.flow.Broadcast()
}

// cut ends all connections.
func (w *lossy) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		_ = c.Close()
	}
}

func (w *lossy) close() error {
	w.mu.Lock()
	w.closed = true
	w.flow.Broadcast()
	w.mu.Unlock()
	w.cut()
	err := w.l.Close()
	w.tasks.Wait()
	return err
}
