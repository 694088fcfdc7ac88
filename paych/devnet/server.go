package devnet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/filecoin-project/go-jsonrpc"
	logging "github.com/ipfs/go-log/v2"
	"golang.org/x/net/netutil"
)

// devNamespace is that of our own methods.
const devNamespace = "Tally"

// Path is where the server answers, as a Lotus node does.
const Path = "/rpc/v1"

// Limits of the server: a client with a bug must cost little.
const (
	// maxBody bounds a request. The largest is a signed message in base64.
	maxBody = 1 << 20
	// maxHeader bounds the header.
	maxHeader = 8 << 10
	// maxConns bounds connections and maxCalls calls at work, those that wait
	// for a message included.
	maxConns = 256
	maxCalls = 256
	// minToken is how long a token must be, in bytes.
	minToken = 16
	// Time for the header, the body and an idle connection.
	headerTimeout = 5 * time.Second
	bodyTimeout   = 30 * time.Second
	idleTimeout   = time.Minute
)

var errToken = fmt.Errorf("devnet: the token has fewer than %d bytes", minToken)

// Server answers JSON-RPC for a chain.
type Server struct {
	http *http.Server
	// stop ends calls that wait and websockets, which Shutdown would leave.
	stop context.CancelFunc
	base context.Context //nolint:containedctx // the base of all requests, which is what http.Server wants
}

// NewServer returns a server for c that wants token as bearer token. It does no
// IO before Serve.
func NewServer(c *Chain, token string) (*Server, error) {
	h, err := c.Handler(token)
	if err != nil {
		return nil, err
	}
	base, stop := context.WithCancel(context.Background())
	return &Server{base: base, stop: stop, http: &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(c.log.Handler(), slog.LevelDebug),
	}}, nil
}

// Serve answers on l, which must be of this machine alone, until Shutdown; then
// it returns nil.
func (s *Server) Serve(l net.Listener) error {
	if tcp, ok := l.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
		return fmt.Errorf("devnet: listen on 127.0.0.1 or ::1, not on %s", tcp)
	}
	err := s.http.Serve(netutil.LimitListener(l, maxConns))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Shutdown ends calls that wait, lets the others finish until ctx ends, and
// closes the listener.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	if err := s.http.Shutdown(ctx); err != nil {
		return errors.Join(err, s.http.Close())
	}
	return nil
}

// Handler answers JSON-RPC at Path to those who have the token.
func (c *Chain) Handler(token string) (http.Handler, error) {
	if len(token) < minToken {
		return nil, errToken
	}
	quietLibrary()
	rpc := jsonrpc.NewServer(jsonrpc.WithServerErrors(rpcErrors()), jsonrpc.WithMaxRequestSize(maxBody))
	rpc.Register("Filecoin", &api{c})
	rpc.Register(devNamespace, &devAPI{c})
	return &guard{c: c, next: rpc, token: sha256.Sum256([]byte(token)), slots: make(chan struct{}, maxCalls)}, nil
}

// guard refuses what is no call of a program that has the token.
type guard struct {
	c     *Chain
	next  http.Handler
	token [sha256.Size]byte
	slots chan struct{}
}

func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	if status, cause := g.serve(w, r); status != 0 {
		g.c.log.Warn("rpc request refused", "status", status, "cause", cause)
		w.Header().Set("Connection", "close")
		http.Error(w, cause, status)
	}
}

// local reports whether a host is this machine. A name that somebody pointed at
// 127.0.0.1 is not.
func local(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}

// serve returns 0 where the request was answered, else the refusal.
func (g *guard) serve(w http.ResponseWriter, r *http.Request) (int, string) {
	if !local(r.Host) {
		return http.StatusForbidden, "this Host is not ours"
	}
	if origin := r.Header.Get("Origin"); origin != "" {
		// go-jsonrpc's websockets take every origin.
		if u, err := url.Parse(origin); err != nil || u.Host != r.Host {
			return http.StatusForbidden, "this Origin may not call"
		}
	}
	if r.URL.Path != Path {
		return http.StatusNotFound, "the path is " + Path
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	sum := sha256.Sum256([]byte(token))
	if !ok || subtle.ConstantTimeCompare(sum[:], g.token[:]) != 1 {
		w.Header().Set("WWW-Authenticate", "Bearer")
		return http.StatusUnauthorized, "the token is not that of this chain"
	}
	select {
	case g.slots <- struct{}{}:
		defer func() { <-g.slots }()
	default:
		return http.StatusServiceUnavailable, "too many calls at a time"
	}
	if strings.Contains(strings.ToLower(r.Header.Get("Connection")), "upgrade") {
		g.next.ServeHTTP(w, r)
		return 0, ""
	}
	if r.Method != http.MethodPost {
		return http.StatusMethodNotAllowed, "use POST"
	}
	if typ, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || typ != "application/json" {
		return http.StatusUnsupportedMediaType, "the content type must be application/json"
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(bodyTimeout))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return http.StatusRequestEntityTooLarge, "the body is too large"
	case err != nil:
		return http.StatusRequestTimeout, "the body did not come"
	}
	_ = control.SetReadDeadline(time.Time{})
	var call struct{ Method string }
	if json.Unmarshal(body, &call) != nil {
		return http.StatusBadRequest, "want one JSON-RPC request, not a batch"
	}
	if g.c.cfg.Before != nil {
		if err := g.c.cfg.Before(r.Context(), call.Method); err != nil {
			return http.StatusServiceUnavailable, err.Error()
		}
	}
	if !strings.HasPrefix(call.Method, devNamespace+".") {
		g.c.delay(r.Context())
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	g.next.ServeHTTP(w, r)
	return 0, ""
}

// quietLibrary stops go-jsonrpc's own logger, which prints whole requests.
var quietLibrary = sync.OnceFunc(func() { _ = logging.SetLogLevel("rpc", "fatal") })
