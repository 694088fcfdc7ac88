package spsp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

const (
	// resolveWithin bounds the whole of a resolution, redirects included.
	resolveWithin = 10 * time.Second
	maxRedirects  = 3
)

var (
	// ErrResolve: the pointer's host did not answer with a document.
	ErrResolve = errors.New("spsp: payment pointer does not resolve")
	// ErrLoopback: plain HTTP is for this machine alone.
	ErrLoopback = errors.New("spsp: plain HTTP is for 127.0.0.1 and [::1] alone: want one of them, with a port")
)

// Resolver fetches the documents of payment pointers over HTTPS.
type Resolver struct {
	// Loopback, where set, is asked by plain HTTP in place of every pointer's host:
	// an address of this machine with a port, for tests and trials.
	Loopback string
	// Transport default: http.DefaultTransport.
	Transport http.RoundTripper
}

// Resolve returns a pointer's document.
func (r Resolver) Resolve(ctx context.Context, p Pointer) (*Document, error) {
	url := p.URL()
	if r.Loopback != "" {
		at, err := netip.ParseAddrPort(r.Loopback)
		if err != nil || !at.Addr().IsLoopback() {
			return nil, ErrLoopback
		}
		url = "http://" + at.String() + strings.TrimPrefix(url, "https://"+p.Host)
	}
	ctx, cancel := context.WithTimeout(ctx, resolveWithin)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrResolve, err)
	}
	req.Header.Set("Accept", ContentType)
	client := http.Client{Transport: r.Transport, CheckRedirect: r.redirect}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrResolve, err)
	}
	defer func() { _ = resp.Body.Close() }()
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if resp.StatusCode != http.StatusOK || kind != ContentType {
		return nil, fmt.Errorf("%w: %s answers %d with %.64q, want 200 with %s", ErrResolve, p, resp.StatusCode, kind, ContentType)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxDocument+1)) // one too many is refused below
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrResolve, err)
	}
	return Decode(body)
}

// redirect lets HTTPS lead to HTTPS alone, and a loopback nowhere: who can answer in
// the host's place could name its own address and secret.
func (r Resolver) redirect(req *http.Request, via []*http.Request) error {
	if req.URL.Scheme != "https" || r.Loopback != "" || len(via) > maxRedirects {
		return fmt.Errorf("refuse redirect to %s://%s", req.URL.Scheme, req.URL.Host)
	}
	return nil
}
