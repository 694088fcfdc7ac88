package btpws

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"github.com/tallystick/tally/paystream/compat"
	"github.com/tallystick/tally/paystream/compat/btp"
	"github.com/tallystick/tally/paystream/compat/ilp"
)

const (
	// MaxClients bounds the clients of a server.
	MaxClients = 1024
	// MaxHandshakes bounds the connections that have not said who they are.
	MaxHandshakes = 64
	// MaxInFlight bounds the packets of one client on the way, each way.
	MaxInFlight = 64

	authTimeout = 5 * time.Second  // for the first message
	maxHold     = 60 * time.Second // of a packet, whatever its expiry
	idleTimeout = 60 * time.Second // without any frame or pong
	pingEvery   = 20 * time.Second
	writeLimit  = 10 * time.Second // for one frame
)

// ErrConfig: a configuration that cannot be served.
var ErrConfig = errors.New("btpws: configuration")

// Client is who may connect.
type Client struct {
	Name   string        // unique; what the client may give as user name
	Token  btp.TokenHash // unique
	Config ilp.Config    // what the client is told: its address and asset
}

// Config is what a Server needs.
type Config struct {
	Clients []Client
	// Address is who rejects: the connector's own address.
	Address ilp.Address
	// Serve returns what takes the packets that a client sends. It is called once
	// for each connection. ILDCP, expired packets and amounts of 2^63 and more do
	// not get there.
	Serve func(Client) compat.Handler
	// Logger may be nil.
	Logger *slog.Logger
}

// Validate returns what is wrong with c.
func (c *Config) Validate() error {
	if c.Serve == nil {
		return fmt.Errorf("%w: nothing serves packets", ErrConfig)
	}
	if err := c.Address.Validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return nil
}

// account is a client, and what it has at work over all its connections: a packet
// outlives the connection that brought it.
type account struct {
	Client
	serving chan struct{} // one of MaxInFlight packets of the client
}

// Server is an http.Handler that takes clients.
type Server struct {
	cfg      Config
	log      *slog.Logger
	upgrader websocket.Upgrader
	starting chan struct{} // one of MaxHandshakes

	ctx    context.Context // ends with the server, not with a call
	cancel context.CancelFunc
	wg     sync.WaitGroup // connections and their goroutines

	mu      sync.Mutex // guards the fields below
	closed  bool
	byToken map[btp.TokenHash]*account
	byName  map[string]*account
	live    map[string]*conn // by the client's name
}

// New returns a server of the clients in cfg.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, log: cfg.Logger,
		byToken:  make(map[btp.TokenHash]*account),
		byName:   make(map[string]*account),
		starting: make(chan struct{}, MaxHandshakes),
		live:     make(map[string]*conn),
		// A page of another origin has no token, and tokens come in the first
		// message, never from a cookie.
		upgrader: websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for _, c := range cfg.Clients {
		if err := s.Add(c); err != nil {
			return nil, err
		}
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// Add lets a client connect.
func (s *Server) Add(c Client) error {
	if err := c.Config.Validate(); err != nil {
		return fmt.Errorf("%w: client %q: %w", ErrConfig, c.Name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case len(s.byName) >= MaxClients:
		return fmt.Errorf("%w: at most %d clients", ErrConfig, MaxClients)
	case c.Name == "" || s.byName[c.Name] != nil:
		return fmt.Errorf("%w: client %q: want a name of its own", ErrConfig, c.Name)
	case c.Token == btp.TokenHash{} || s.byToken[c.Token] != nil:
		return fmt.Errorf("%w: client %q: want a token of its own", ErrConfig, c.Name)
	}
	for _, other := range s.byName {
		if other.Config.Address == c.Config.Address {
			return fmt.Errorf("%w: client %q: another client has its address", ErrConfig, c.Name)
		}
	}
	a := &account{Client: c, serving: make(chan struct{}, MaxInFlight)}
	s.byToken[c.Token], s.byName[c.Name] = a, a
	return nil
}

// Remove ends a client's connection and lets it connect no more. Its packets on the
// way are decided all the same.
func (s *Server) Remove(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.byName[name]; a != nil {
		delete(s.byToken, a.Token)
		delete(s.byName, name)
	}
	if c := s.live[name]; c != nil {
		c.end(errRemoved)
	}
}

// Connected reports whether a client is connected.
func (s *Server) Connected(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live[name] != nil
}

// Close ends all connections and waits for them. Packets on the way to a client
// are rejected.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
}

// ServeHTTP takes a connection, and returns when it ends.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		http.Error(w, "shutting down", http.StatusServiceUnavailable)
		return
	}
	s.wg.Add(1)
	s.mu.Unlock()
	defer s.wg.Done()
	select {
	case s.starting <- struct{}{}:
	default:
		http.Error(w, "too many connections at the door", http.StatusServiceUnavailable)
		return
	}
	ws, client, err := s.handshake(w, r)
	<-s.starting
	if err != nil {
		s.log.Debug("bridge client refused", "err", err)
		return
	}
	c := newConn(s, ws, client)
	if !s.enter(c) {
		_ = ws.Close()
		return
	}
	s.log.Info("bridge client connected", "client", client.Name)
	err = c.run()
	s.leave(c)
	s.log.Info("bridge client gone", "client", client.Name, "err", err)
}

// handshake upgrades the connection and reads the first message.
func (s *Server) handshake(w http.ResponseWriter, r *http.Request) (*websocket.Conn, *account, error) {
	ws, err := s.upgrader.Upgrade(w, r, nil)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(s.ctx, func() { _ = ws.Close() })
	defer stop()
	client, err := s.authenticate(ws)
	if err != nil {
		_ = ws.Close()
		return nil, nil, err
	}
	return ws, client, nil
}

func (s *Server) authenticate(ws *websocket.Conn) (*account, error) {
	ws.SetReadLimit(btp.MaxFrame)
	if err := ws.SetReadDeadline(time.Now().Add(authTimeout)); err != nil {
		return nil, err
	}
	f, err := readFrame(ws)
	if err != nil {
		return nil, err
	}
	auth, err := btp.AuthOf(f)
	var client *account
	if err == nil {
		client, err = s.lookup(auth)
	}
	answer := &btp.Frame{Type: btp.TypeResponse, RequestID: f.RequestID}
	if err != nil {
		answer = refusal(f.RequestID, "no client of this name and token")
	}
	b, encErr := answer.Append(nil)
	if encErr != nil {
		return nil, encErr
	}
	_ = ws.SetWriteDeadline(time.Now().Add(authTimeout))
	return client, errors.Join(err, ws.WriteMessage(websocket.BinaryMessage, b))
}

// errUnknown: nobody's name and token.
var errUnknown = errors.New("btpws: no client of this name and token")

// lookup finds the client by the hash of its token, so that the time it takes
// tells nothing of the tokens.
func (s *Server) lookup(a btp.Auth) (*account, error) {
	s.mu.Lock()
	client := s.byToken[a.Token.Hash()]
	s.mu.Unlock()
	if client == nil {
		return nil, errUnknown
	}
	if a.Username != "" && a.Username != client.Name {
		return nil, errUnknown
	}
	return client, nil
}

// enter makes c the connection of its client, in place of an older one.
func (s *Server) enter(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.byName[c.client.Name] != c.client { // removed while it knocked
		return false
	}
	if old := s.live[c.client.Name]; old != nil {
		old.end(errReplaced)
	}
	s.live[c.client.Name] = c
	return true
}

func (s *Server) leave(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live[c.client.Name] == c {
		delete(s.live, c.client.Name)
	}
}

// Client returns what takes packets to a client, connected or not.
func (s *Server) Client(name string) compat.Handler {
	return compat.HandlerFunc(func(ctx context.Context, p *ilp.Prepare) ilp.Reply {
		s.mu.Lock()
		c := s.live[name]
		s.mu.Unlock()
		if c == nil {
			return s.reject(ilp.CodePeerUnreachable, "client is not connected")
		}
		return c.call(ctx, p)
	})
}

func (s *Server) reject(code ilp.Code, message string) *ilp.Reject {
	return &ilp.Reject{Code: code, TriggeredBy: s.cfg.Address, Message: message}
}

func refusal(id uint32, why string) *btp.Frame {
	return &btp.Frame{Type: btp.TypeError, RequestID: id, Error: &btp.Error{
		Code: ilp.CodeBadRequest, Name: "NotAcceptedError", TriggeredAt: time.Now(), Data: why,
	}}
}
