package rpc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/filecoin-project/go-jsonrpc"
	logging "github.com/ipfs/go-log/v2"
	"golang.org/x/net/netutil"
)

// Path is where the server answers.
const Path = "/rpc/v1"

// Limits of the server. A local program with a bug, or a web page that reaches
// for the port, must cost little.
const (
	// maxBody bounds one request. The largest is a chunk of an import, which
	// the client fills to a quarter of this.
	maxBody = 4 << 20
	// maxHeader bounds the header; a token has about 200 bytes.
	maxHeader = 8 << 10
	// maxConns bounds open connections, known or not.
	maxConns = 256
	// maxCalls bounds calls at work, those that wait for events included.
	maxCalls = 64
	// headerTimeout ends a connection that does not send its header.
	headerTimeout = 5 * time.Second
	// bodyTimeout ends one that does not send its body.
	bodyTimeout = 30 * time.Second
	// writeTimeout ends one that does not read its answer.
	writeTimeout = 30 * time.Second
	// idleTimeout ends one that is not used.
	idleTimeout = time.Minute
	// callTimeout ends a call; longer than any settlement or page takes.
	callTimeout = 2 * time.Minute
)

// Config is what a server may be told beside its node and key.
type Config struct {
	// Logger takes the calls at debug and the refusals at warn, never
	// parameters or tokens. Default: nothing is logged.
	Logger *slog.Logger
	// Hosts are the values of the Host header that are answered, such as
	// 127.0.0.1:5001. A name that an attacker rebound to 127.0.0.1 is not among
	// them. Serve adds those of its listener.
	Hosts []string
	// Origins are the web origins that may call, none by default. A program
	// sends no Origin and is not concerned.
	Origins []string
	// HeaderTimeout and BodyTimeout default to 5 s and 30 s.
	HeaderTimeout, BodyTimeout time.Duration
}

// statuses documents every refusal that comes before JSON-RPC.
var statuses = []struct {
	status int
	cause  string
}{
	{http.StatusBadRequest, "batch, websocket or not JSON-RPC"},
	{http.StatusUnauthorized, "no bearer token, or one that this peer did not issue"},
	{http.StatusForbidden, "the Host or Origin header is not one of ours (DNS rebinding, cross-site request)"},
	{http.StatusNotFound, "another path than " + Path},
	{http.StatusMethodNotAllowed, "not a POST"},
	{http.StatusRequestTimeout, "the body did not come in time"},
	{http.StatusRequestEntityTooLarge, "the body is over 4 MiB"},
	{http.StatusUnsupportedMediaType, "the content type is not application/json"},
	{http.StatusInternalServerError, "the body has an error of JSON-RPC itself"},
	{http.StatusServiceUnavailable, "too many calls at a time"},
}

// Server answers for one node.
type Server struct {
	guard *guard
	http  *http.Server
	// stop ends calls that wait for events, so that Shutdown need not.
	stop context.CancelFunc
}

// NewServer returns a server for node. Tokens are checked with key. It does no
// IO before Serve.
func NewServer(node Node, key Secret, cfg Config) (*Server, error) {
	if len(key.text) < minSecretBytes {
		return nil, errWeakSecret
	}
	quietLibrary()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.HeaderTimeout == 0 {
		cfg.HeaderTimeout = headerTimeout
	}
	if cfg.BodyTimeout == 0 {
		cfg.BodyTimeout = bodyTimeout
	}
	inner := jsonrpc.NewServer(jsonrpc.WithServerErrors(wireErrors()), jsonrpc.WithMaxRequestSize(maxBody))
	ctx, stop := context.WithCancel(context.Background())
	a := &api{
		stop: ctx, node: node, log: cfg.Logger, timeout: callTimeout,
		imports: newImportSet(), waiting: make(chan struct{}, maxWaiting), chainWaits: make(chan struct{}, maxChainWaits),
		payWaits: make(chan struct{}, maxPayWaits),
	}
	inner.Register(Namespace, a)
	inner.Register(LotusNamespace, &lotusAPI{a})
	g := &guard{
		key: key, log: cfg.Logger, next: inner, bodyTimeout: cfg.BodyTimeout,
		hosts: slices.Clone(cfg.Hosts), origins: slices.Clone(cfg.Origins), slots: make(chan struct{}, maxCalls),
	}
	return &Server{guard: g, stop: stop, http: &http.Server{
		ReadHeaderTimeout: cfg.HeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
	}}, nil
}

// Serve answers on l until Shutdown; then it returns nil. Call it once.
func (s *Server) Serve(l net.Listener) error {
	g := *s.guard
	g.hosts = slices.Concat(g.hosts, hostsOf(l.Addr()))
	s.http.Handler = &g
	err := s.http.Serve(netutil.LimitListener(l, maxConns))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Shutdown ends the calls that wait, lets the others finish until ctx ends, and
// closes the listener.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	if err := s.http.Shutdown(ctx); err != nil {
		return errors.Join(err, s.http.Close())
	}
	return nil
}

// ServeHTTP answers one request with all guards, for a page that is served
// from a listener of its own; that listener's host must be in Config.Hosts.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.guard.ServeHTTP(w, r) }

// hostsOf returns the Host headers that mean the listener.
func hostsOf(addr net.Addr) []string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return []string{"localhost"} // a unix socket has no name; curl wants one
	}
	_, port, _ := net.SplitHostPort(tcp.String())
	var hosts []string
	for _, h := range []string{"localhost", "127.0.0.1", "::1", tcp.IP.String()} {
		hosts = append(hosts, net.JoinHostPort(h, port))
	}
	return hosts
}

// guard refuses what is not a call of a program that holds a token, before the
// body is decoded. See statuses for the list.
type guard struct {
	key            Secret
	log            *slog.Logger
	next           http.Handler
	bodyTimeout    time.Duration
	hosts, origins []string
	slots          chan struct{}
}

func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	status, cause := g.serve(w, r)
	if status == 0 {
		return
	}
	g.log.Warn("rpc request refused", "status", status, "cause", cause)
	w.Header().Set("Connection", "close") // whatever else it sends is not read
	http.Error(w, cause, status)
}

// serve returns 0 where the request was answered, else the refusal.
func (g *guard) serve(w http.ResponseWriter, r *http.Request) (status int, cause string) {
	if !slices.Contains(g.hosts, strings.ToLower(r.Host)) {
		return http.StatusForbidden, "this Host is not ours"
	}
	if origin, ok := r.Header["Origin"]; ok && !(len(origin) == 1 && slices.Contains(g.origins, origin[0])) {
		return http.StatusForbidden, "this Origin may not call"
	}
	if site := r.Header.Get("Sec-Fetch-Site"); site == "cross-site" || site == "same-site" {
		return http.StatusForbidden, "a request from another site"
	}
	if r.URL.Path != Path {
		return http.StatusNotFound, "the path is " + Path
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return http.StatusMethodNotAllowed, "use POST"
	}
	if r.Header.Get("Upgrade") != "" || strings.Contains(strings.ToLower(r.Header.Get("Connection")), "upgrade") {
		return http.StatusBadRequest, "no websockets"
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		w.Header().Set("WWW-Authenticate", "Bearer")
		return http.StatusUnauthorized, "a bearer token is needed"
	}
	perms, err := VerifyToken(g.key, token)
	if err != nil {
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		return http.StatusUnauthorized, "the token is not one of this peer"
	}
	if typ, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || typ != "application/json" {
		return http.StatusUnsupportedMediaType, "the content type must be application/json"
	}
	if r.ContentLength > maxBody {
		return http.StatusRequestEntityTooLarge, "the body is too large"
	}
	select {
	case g.slots <- struct{}{}:
		defer func() { <-g.slots }()
	default:
		w.Header().Set("Retry-After", "1")
		return http.StatusServiceUnavailable, "too many calls at a time"
	}

	// The deadline is for the body alone: one on the whole request would end
	// the calls that wait for events.
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(g.bodyTimeout))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return http.StatusRequestEntityTooLarge, "the body is too large"
	case err != nil:
		return http.StatusRequestTimeout, "the body did not come"
	}
	_ = control.SetReadDeadline(time.Time{})
	if body = bytes.TrimSpace(body); len(body) == 0 || body[0] != '{' {
		return http.StatusBadRequest, "want one JSON-RPC request, not a batch" // a batch would be many calls in one slot
	}
	r = r.WithContext(withPerms(r.Context(), perms))
	r.Body = io.NopCloser(bytes.NewReader(body))
	g.next.ServeHTTP(&deadlineWriter{ResponseWriter: w, control: control}, r)
	return 0, ""
}

// deadlineWriter gives the answer its deadline when it begins, because a call
// may wait long before.
type deadlineWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	set     bool
}

func (w *deadlineWriter) Write(p []byte) (int, error) {
	if !w.set {
		w.set = true
		_ = w.control.SetWriteDeadline(time.Now().Add(writeTimeout))
	}
	return w.ResponseWriter.Write(p)
}

// quietLibrary stops go-jsonrpc's own logger, which prints whole requests to
// standard error. We log method, code and time ourselves.
var quietLibrary = sync.OnceFunc(func() { _ = logging.SetLogLevel("rpc", "fatal") })
