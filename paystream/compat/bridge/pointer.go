package bridge

import (
	"crypto/rand"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/compat/endpoint"
	"github.com/tallystick/tally/paystream/compat/spsp"
)

const (
	// pointerLife is how long an address lives that a pointer gave; what follows of
	// a payment has to come in time.
	pointerLife = time.Hour
	// wellKnown is the path of a pointer without one.
	wellKnown = "/.well-known/pay"
)

// AddPointer lets a path be paid, or pay, saved when it returns. Path is as in a
// payment pointer: empty, or from the slash on.
func (b *Bridge) AddPointer(p Pointer) error {
	if _, err := spsp.ParsePointer("$host" + p.Path); err != nil || p.Path != "" && p.Path[0] != '/' || p.Path == wellKnown || strings.HasSuffix(p.Path, "/") {
		return ErrPath
	}
	_, _ = rand.Read(p.Budget[:]) // never fails
	b.mu.Lock()
	err := b.book.AddPointer(p)
	b.mu.Unlock()
	if err != nil {
		return err
	}
	return b.savePointer(p.Path)
}

// RemovePointer ends a pointer. Addresses that it gave live for up to an hour more,
// within what it still had.
func (b *Bridge) RemovePointer(path string) error {
	b.mu.Lock()
	err := b.book.RemovePointer(path)
	b.mu.Unlock()
	if err != nil {
		return err
	}
	return b.savePointer(path)
}

// PointerRow is a pointer with what it has moved: received less sent. That of a push
// is with each payer, and not kept here.
type PointerRow struct {
	Pointer
	Balance tally.Balance
}

// Pointers returns all pointers.
func (b *Bridge) Pointers() []PointerRow {
	b.mu.Lock()
	defer b.mu.Unlock()
	rows := make([]PointerRow, 0, len(b.book.pointers))
	for _, p := range b.book.pointers {
		g := p.grant(time.Now())
		_, _, balance := b.book.Rooms(p.Budget, &g)
		rows = append(rows, PointerRow{p, balance})
	}
	return rows
}

// document makes what a pointer resolves to now.
func (b *Bridge) document(path string) (*spsp.Document, error) {
	b.mu.Lock()
	p, ok := b.book.pointers[path]
	b.mu.Unlock()
	if !ok {
		return nil, ErrPath
	}
	g, budget := p.grant(time.Now()), p.Budget
	if p.Use == paystream.UsePush {
		_, _ = rand.Read(budget[:]) // of each payer; never fails
	}
	to, err := b.issue(kindFor(&g), g, budget)
	if err != nil {
		return nil, err
	}
	d := &spsp.Document{Destination: to.Address, SharedSecret: to.Secret}
	if p.Use == paystream.UsePush {
		return d, nil
	}
	b.mu.Lock()
	_, _, balance := b.book.Rooms(budget, &g)
	b.mu.Unlock()
	d.Balance = &spsp.Balance{Current: int64(balance)}
	limit := int64(p.Amount)
	if p.Use == paystream.UseInvoice {
		d.Balance.Maximum = &limit
	} else {
		limit = -limit
		d.Balance.Minimum = &limit
	}
	return d, nil
}

// IssueFor is Issue over the protocol that suits the grant, STREAM or PSK2.
func (b *Bridge) IssueFor(g paystream.Grant) (to endpoint.Peer, protocol string, err error) {
	kind := kindFor(&g)
	to, err = b.Issue(kind, g)
	return to, map[string]string{KindStream: "STREAM", KindPSK2: "PSK2"}[kind], err
}

// kindFor is STREAM, which stock clients pay over, but PSK2 where the token pays out:
// there the other side can ask.
func kindFor(g *paystream.Grant) string {
	if n, ok := g.Min.Finite(); ok && n >= 0 {
		return KindStream
	}
	return KindPSK2
}

// ServePointer answers GET for the node's payment pointers. It belongs behind TLS:
// who reads the answer of a voucher can take its money.
func (b *Bridge) ServePointer(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "a payment pointer is read with GET", http.StatusMethodNotAllowed)
		return
	}
	path := r.URL.EscapedPath()
	switch path {
	case wellKnown:
		path = ""
	case "", "/":
		path = wellKnown // which AddPointer refuses
	}
	d, err := b.document(path)
	if errors.Is(err, ErrPath) {
		http.Error(w, "no payment pointer here", http.StatusNotFound)
		return
	}
	var body []byte
	if err == nil {
		body, err = d.Encode()
	}
	if err != nil {
		b.log.Error("payment pointer cannot be answered", "path", path, "err", err)
		http.Error(w, "not now", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", spsp.ContentType)
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(body)
}
