package bridge

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/compat"
	"github.com/tallystick/tally/paystream/compat/btp"
	"github.com/tallystick/tally/paystream/compat/btpws"
	"github.com/tallystick/tally/paystream/compat/endpoint"
	"github.com/tallystick/tally/paystream/compat/envelope"
	"github.com/tallystick/tally/paystream/compat/ilp"
	"github.com/tallystick/tally/paystream/forward"
)

const (
	// assetScale is the scale of every account: a unit is 10^-9 of the asset.
	assetScale = 9
	// maxHold bounds a packet of ours or of a client, whatever its expiry.
	maxHold = time.Minute
	// forgetAtOnce bounds the tokens that one batch forgets.
	forgetAtOnce = 64
)

// Config is what a bridge needs.
type Config struct {
	Self    peer.ID
	Network string // a segment of addresses
	Asset   string // the code that clients are told
	Key     paystream.ServerKey
	// Rules has the fee that a client's packets pay here, both ways, as those of
	// neighbours do.
	Rules  forward.Rules
	Store  *durable.Store
	Logger *slog.Logger
}

// Bridge is the shell around Book. It is a forward.Handler for packets with SHA-256
// conditions. All methods may be called at the same time.
type Bridge struct {
	cfg     Config
	address ilp.Address
	log     *slog.Logger
	server  *btpws.Server
	stream  *endpoint.Stream
	psk2    *endpoint.PSK2
	engine  *forward.Engine
	tokens  paystream.ServerKey

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	wg   sync.WaitGroup // calls of clients, and payers

	mu     sync.Mutex // guards the fields below; never held over disk or network
	book   *Book
	closed bool
	wishes map[TokenID]*wish          // of bearers whom a token of ours pays
	pulls  map[string]envelope.Secret // by the segment of our address
}

// Open reads the books. Nothing is served before Start.
func Open(ctx context.Context, cfg Config) (*Bridge, error) {
	cfg.Rules = cfg.Rules.Complete()
	b := &Bridge{
		cfg: cfg, log: cfg.Logger, book: NewBook(),
		wishes: make(map[TokenID]*wish), pulls: make(map[string]envelope.Secret),
	}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if b.address, err = AddressOf(cfg.Network, cfg.Self); err != nil {
		return nil, err
	}
	if err = b.restore(ctx); err != nil {
		return nil, err
	}
	if err = b.openEnds(); err != nil {
		return nil, err
	}
	b.ctx, b.stop = context.WithCancel(context.Background())
	return b, nil
}

func (b *Bridge) restore(ctx context.Context) error {
	for _, prefix := range [...]string{prefixClients, prefixTokens, prefixPointers, prefixPackets} { // packets need their parties
		if err := b.cfg.Store.Scan(ctx, prefix, "", b.book.Restore); err != nil {
			return fmt.Errorf("bridge: rows under %s: %w", prefix, err)
		}
	}
	return b.book.Check()
}

// openEnds makes the endpoints and the door for clients.
func (b *Bridge) openEnds() error {
	seal, err := b.derive("ilp tokens")
	if err != nil {
		return err
	}
	b.tokens = seal
	secret, err := b.derive("ilp secrets")
	if err != nil {
		return err
	}
	at := func(kind string) ilp.Address { return b.address + ilp.Address("."+kind) }
	via := compat.HandlerFunc(func(ctx context.Context, p *ilp.Prepare) ilp.Reply {
		s, ok := ctx.Value(senderKey{}).(sender)
		if !ok {
			return b.reject(ilp.CodeInternal, "")
		}
		return b.send(ctx, Party{Token: s.id}, &s.grant, p)
	})
	if b.stream, err = endpoint.NewStream(endpoint.StreamConfig{
		Address: at(KindStream), Secret: envelope.Secret(secret), AssetCode: b.cfg.Asset, AssetScale: assetScale,
		Via: via, ReceiveMax: maxTotal, Room: b.room,
		Receive: func(ctx context.Context, m endpoint.StreamMoney) error {
			return b.receive(ctx, m.Token, m.Amount, m.ID)
		},
	}); err != nil {
		return err
	}
	if b.psk2, err = endpoint.NewPSK2(endpoint.PSK2Config{
		Address: at(KindPSK2), Secret: envelope.Secret(secret), Via: via, Receive: b.request, SecretOf: b.pullSecret,
	}); err != nil {
		return err
	}
	var clients []btpws.Client
	for _, c := range b.book.clients {
		clients = append(clients, b.btpClient(c))
	}
	b.server, err = btpws.New(btpws.Config{
		Clients: clients, Address: b.address, Logger: b.log,
		Serve: func(c btpws.Client) compat.Handler {
			from := Party{Client: c.Name}
			return compat.HandlerFunc(func(ctx context.Context, p *ilp.Prepare) ilp.Reply { return b.send(ctx, from, nil, p) })
		},
	})
	return err
}

func (b *Bridge) derive(label string) (key [32]byte, err error) {
	raw, err := hkdf.Key(sha256.New, b.cfg.Key[:], nil, label, len(key))
	copy(key[:], raw)
	return key, err
}

func (b *Bridge) btpClient(c *Client) btpws.Client {
	return btpws.Client{Name: c.Name, Token: c.Token, Config: ilp.Config{
		Address: b.ClientAddress(c.Name), AssetScale: assetScale, AssetCode: b.cfg.Asset,
	}}
}

// Start begins to send over an engine that was told of Packet and Decided.
func (b *Bridge) Start(engine *forward.Engine) { b.engine = engine }

// Close ends all connections of clients, then what they and the endpoints have at
// work. The engine is closed after: what is in flight is decided after the next
// start.
func (b *Bridge) Close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.server.Close()
	b.stop()
	b.wg.Wait()
}

// Address returns the node's address.
func (b *Bridge) Address() ilp.Address { return b.address }

// ClientAddress returns the address of a client.
func (b *Bridge) ClientAddress(name string) ilp.Address {
	return b.address + ilp.Address("."+KindClient+"."+name)
}

// ServeHTTP takes a client's connection.
func (b *Bridge) ServeHTTP(w http.ResponseWriter, r *http.Request) { b.server.ServeHTTP(w, r) }

func (b *Bridge) reject(code ilp.Code, message string) *ilp.Reject {
	return &ilp.Reject{Code: code, TriggeredBy: b.address, Message: message}
}

// refusal is the reject for what the book says of a packet.
func (b *Bridge) refusal(err error, amount tally.Amount) *ilp.Reject {
	var room *RoomError
	switch {
	case errors.As(err, &room) && room.Room > 0:
		return tooLarge(b.address, amount, room.Room) // settled by people, not while a payment waits
	case errors.As(err, &room):
		return b.reject(ilp.CodeInsufficientLiquidity, "no room on the account")
	case errors.Is(err, ErrFull):
		return b.reject(ilp.CodeConnectorBusy, "too many packets")
	default: // no such client, or a token that does not open: one answer
		return b.reject(ilp.CodeUnreachable, "")
	}
}

// hop is p as it goes on from here: less the fee, which a client's packet pays, and
// less a hop's time.
func (b *Bridge) hop(p *ilp.Prepare, fees bool) (*ilp.Prepare, *ilp.Reject) {
	q := *p
	if fees {
		fee, fits := b.cfg.Rules.Fee(p.Amount)
		if !fits || fee > p.Amount || fee == p.Amount && fee > 0 {
			return nil, b.reject(ilp.CodeInsufficientSource, "nothing is left after the fee")
		}
		q.Amount -= fee
	}
	now := time.Now()
	if latest := now.Add(maxHold); q.ExpiresAt.After(latest) {
		q.ExpiresAt = latest
	}
	if q.ExpiresAt = q.ExpiresAt.Add(-b.cfg.Rules.HopDelta); !now.Before(q.ExpiresAt) {
		return nil, b.reject(ilp.CodeInsufficientTimeout, "")
	}
	return &q, nil
}

// send takes a packet of a party to wherever its destination is.
func (b *Bridge) send(ctx context.Context, from Party, g *paystream.Grant, p *ilp.Prepare) ilp.Reply {
	if tooBig(p.Amount) {
		return b.reject(ilp.CodeInvalidAmount, "amount of 2^63 or more")
	}
	node, rest, ok := split(p.Destination, b.cfg.Network)
	if !ok || len(rest) > forward.MaxToken {
		return b.reject(ilp.CodeUnreachable, "no address of this network")
	}
	q, refused := b.hop(p, from.Client != "")
	if refused != nil {
		return refused
	}
	if node == b.cfg.Self {
		return b.here(ctx, from, g, p.Amount, q, rest)
	}
	return b.over(ctx, from, g, p.Amount, q, node, rest)
}

// over sends a packet over the hops. amount is what its sender is to owe, q what
// goes on.
func (b *Bridge) over(ctx context.Context, from Party, g *paystream.Grant, amount tally.Amount, q *ilp.Prepare, node peer.ID, rest string) ilp.Reply {
	var id PacketID
	_, _ = rand.Read(id[:])     // never fails
	data := bytes.Clone(q.Data) // the packet may outlive the call
	b.mu.Lock()
	err := b.book.Leave(id, from, amount, envelope.MarkOf(data), g)
	b.mu.Unlock()
	if err != nil {
		return b.refusal(err, amount)
	}
	answer := make(chan forward.Result, 1)
	err = b.engine.Send(&forward.Packet{
		Dest: node, Token: []byte(rest), Amount: q.Amount,
		Expires:   time.UnixMilli(b.engine.Now()).Add(time.Until(q.ExpiresAt)), // the engine's clock is its own
		Condition: forward.Condition{Kind: forward.ConditionSHA256, Digest: q.Condition},
		Part:      forward.PartID(id), Data: data,
		Record: func(batch *durable.Batch) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.book.SavePacket(batch, id)
		},
		Decided: func(r *forward.Result) func(*durable.Batch) {
			record, _ := b.Decided(r)
			return record
		},
	}, func(r *forward.Result) {
		cp := *r
		cp.Data = bytes.Clone(r.Data)
		answer <- cp
	})
	if err != nil {
		b.mu.Lock()
		b.book.End(id, false)
		b.mu.Unlock()
		if errors.Is(err, forward.ErrBusy) {
			return b.reject(ilp.CodeConnectorBusy, "")
		}
		return b.reject(ilp.CodeInternal, "")
	}
	given := ctx.Done()
	if from.Client == "" {
		given = b.ctx.Done() // our own ends wait for the truth: what they take for failed they send again
	}
	select {
	case r := <-answer:
		return b.replyOf(&r, q.Amount)
	case <-given:
	}
	b.mu.Lock()
	waits := b.book.Lost(id)
	b.mu.Unlock()
	if !waits { // decided in this moment: it is being saved
		select {
		case r := <-answer:
			return b.replyOf(&r, q.Amount)
		case <-b.ctx.Done():
		}
	}
	return b.reject(ilp.CodeTransferTimedOut, "")
}

func (b *Bridge) replyOf(r *forward.Result, amount tally.Amount) ilp.Reply {
	if r.Fulfilled {
		return &ilp.Fulfil{Fulfilment: ilp.Fulfilment(r.Preimage), Data: r.Data}
	}
	return fromHops(r, amount, b.address)
}

// Decided is told what became of a packet, on the engine's goroutine, also of one
// from before a restart; ours is false where it is not the bridge's. The record goes
// into the batch that makes the engine forget the packet.
func (b *Bridge) Decided(r *forward.Result) (record func(*durable.Batch), ours bool) {
	id := PacketID(r.Part)
	b.mu.Lock()
	from, saved, ok := b.book.End(id, r.Fulfilled)
	b.mu.Unlock()
	if !ok || !saved {
		return nil, ok
	}
	fulfilled := r.Fulfilled
	return func(batch *durable.Batch) {
		DeletePacket(batch, id)
		if fulfilled {
			b.save(batch, from)
		}
	}, true
}

func (b *Bridge) save(batch *durable.Batch, list ...Party) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range list {
		b.book.Save(batch, p)
	}
}

// booking is what a packet that gets to a party here has held for it.
type booking struct {
	to     Party
	amount tally.Amount
	held   bool
}

type bookingKey struct{}

// end gives the room of a booking back, or books it.
func (b *Bridge) end(k *booking, fulfilled bool) {
	if k.held {
		b.mu.Lock()
		b.book.EndGet(k.to, k.amount, fulfilled)
		b.mu.Unlock()
		k.held = false
	}
}

// here gives a packet of one of our parties to another.
func (b *Bridge) here(ctx context.Context, from Party, g *paystream.Grant, amount tally.Amount, q *ilp.Prepare, rest string) ilp.Reply {
	b.mu.Lock()
	err := b.book.HoldSend(from, amount, g)
	b.mu.Unlock()
	if err != nil {
		return b.refusal(err, amount)
	}
	end := func(fulfilled bool) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.book.EndSend(from, amount, fulfilled, false)
	}
	k, call, refused := b.arrive(q, rest, from.Client == "")
	var reply ilp.Reply = refused
	if refused == nil {
		reply = call(ctx)
	}
	f, ok := reply.(*ilp.Fulfil)
	if !ok {
		end(false)
		b.end(k, false)
		return reply
	}
	end(true)
	b.end(k, true)
	if err := b.engine.SaveWait(func(batch *durable.Batch) { b.save(batch, from, k.to) }); err != nil {
		return b.reject(ilp.CodeInternal, "") // nothing is saved any more: say nothing of it
	}
	return f
}

// arrive finds who gets a packet at this node and takes room for it, less the fee of
// a client's packet that has paid none here. call asks it, and may wait for a client.
func (b *Bridge) arrive(p *ilp.Prepare, rest string, fee bool) (k *booking, call func(context.Context) ilp.Reply, refused *ilp.Reject) {
	k = new(booking)
	kind, segment := kindOf(rest)
	mark := envelope.MarkOf(p.Data)
	b.mu.Lock()
	closed, reflected := b.closed, b.book.Reflected(mark)
	b.mu.Unlock()
	switch {
	case closed:
		return k, nil, b.reject(ilp.CodePeerUnreachable, "")
	case reflected:
		b.log.Warn("bridge refuses a packet that is one of ours, sent back", "destination", p.Destination)
		return k, nil, b.reject(ilp.CodeApplication, "")
	case kind == KindStream || kind == KindPSK2:
		var to compat.Handler = b.stream
		if kind == KindPSK2 {
			to = b.psk2
		}
		return k, func(ctx context.Context) ilp.Reply {
			return to.Prepare(context.WithValue(ctx, bookingKey{}, k), p)
		}, nil
	case kind != KindClient || CheckName(segment) != nil:
		return k, nil, b.reject(ilp.CodeUnreachable, "")
	}
	q, refused := b.hop(p, fee)
	if refused != nil {
		return k, nil, refused
	}
	k.to, k.amount = Party{Client: segment}, q.Amount
	b.mu.Lock()
	err := b.book.HoldGet(k.to, k.amount, mark, nil)
	b.mu.Unlock()
	if err != nil {
		return k, nil, b.refusal(err, p.Amount)
	}
	k.held = true
	return k, func(ctx context.Context) ilp.Reply { return b.server.Client(segment).Prepare(ctx, q) }, nil
}

// Packet implements forward.Handler: a packet with a SHA-256 condition for this node.
// Endpoints answer at once, clients in their time.
func (b *Bridge) Packet(d *forward.Delivery) (forward.Decision, bool) {
	to, err := ilp.ParseAddress(string(b.address) + "." + string(d.Token))
	if err != nil || d.Condition.Kind != forward.ConditionSHA256 || tooBig(d.Amount) {
		return forward.Decision{Code: forward.CodeRefused}, true
	}
	p := &ilp.Prepare{
		Amount: d.Amount, ExpiresAt: time.Now().Add(d.Expires.Sub(time.UnixMilli(b.engine.Now()))),
		Condition: d.Condition.Digest, Destination: to, Data: d.Data,
	}
	rest := string(d.Token)
	if kind, _ := kindOf(rest); kind == KindClient {
		p.Data = bytes.Clone(d.Data)
	}
	k, call, refused := b.arrive(p, rest, true)
	if refused != nil {
		return rejectWith(refused), true
	}
	if k.to.Client == "" {
		reply := call(context.Background())
		if f, ok := reply.(*ilp.Fulfil); ok {
			return forward.Decision{
				Fulfil: true, Preimage: tally.Preimage(f.Fulfilment), Data: f.Data, Record: b.booked(k),
			}, true
		}
		b.end(k, false)
		return rejectWith(reply.(*ilp.Reject)), true
	}
	if !b.begin() {
		b.end(k, false)
		return rejectWith(b.reject(ilp.CodePeerUnreachable, "")), true
	}
	from, id := d.From, d.ID
	go func() { // ends with the packet's time, or with the server
		defer b.wg.Done()
		b.answer(from, id, k, call(b.ctx))
	}()
	return forward.Decision{}, false
}

// begin counts a goroutine that Close waits for, unless it waits already.
func (b *Bridge) begin() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.wg.Add(1)
	}
	return !b.closed
}

// booked books what has come, in the batch that is saved before the preimage leaves.
func (b *Bridge) booked(k *booking) func(*durable.Batch) {
	if !k.held { // without an amount
		return nil
	}
	return func(batch *durable.Batch) {
		b.end(k, true)
		b.save(batch, k.to)
	}
}

// answer passes a client's answer on to the hop that the packet came from.
func (b *Bridge) answer(from peer.ID, id uint64, k *booking, reply ilp.Reply) {
	f, ok := reply.(*ilp.Fulfil)
	if !ok {
		b.end(k, false)
		d := rejectWith(reply.(*ilp.Reject))
		_ = b.engine.Decide(from, id, &d, nil) // a closed engine decides after the next start
		return
	}
	err := b.engine.Decide(from, id, &forward.Decision{
		Fulfil: true, Preimage: tally.Preimage(f.Fulfilment), Data: f.Data, Record: b.booked(k),
	}, func(err error) {
		if err != nil {
			b.end(k, false)
			b.log.Warn("a bridge client's fulfilment came too late", "client", k.to.Client, "amount", k.amount, "err", err)
		}
	})
	if err != nil {
		b.end(k, false)
	}
}

func rejectWith(j *ilp.Reject) forward.Decision {
	return forward.Decision{Code: forward.CodeApplication, Data: overHops(j)}
}

// grantOf reads the token of an address. Of its random bytes the first are the id of
// its budget, which several tokens may share.
func (b *Bridge) grantOf(segment string) (id TokenID, g paystream.Grant, err error) {
	raw, err := base64.RawURLEncoding.DecodeString(segment)
	if err != nil || len(raw) != paystream.TokenSize {
		return id, g, paystream.ErrToken
	}
	t := paystream.Token(raw)
	g, err = b.tokens.Grant(&t, time.Now())
	return TokenID(t[:len(id)]), g, err
}

// receive books what a token is to get, within the packet's booking.
func (b *Bridge) receive(ctx context.Context, segment string, amount tally.Amount, mark envelope.Mark) error {
	k, ok := ctx.Value(bookingKey{}).(*booking)
	if !ok {
		return ErrRefused
	}
	id, g, err := b.grantOf(segment)
	if err != nil {
		return err
	}
	k.to, k.amount = Party{Token: id}, amount
	b.mu.Lock()
	err = b.book.HoldGet(k.to, amount, mark, &g)
	b.mu.Unlock()
	if errors.Is(err, ErrFull) {
		b.forget()
	}
	k.held = err == nil
	return err
}

// forget makes room for tokens, for the packets that come next.
func (b *Bridge) forget() {
	b.mu.Lock()
	gone := b.book.Forget(time.Now(), forgetAtOnce)
	b.mu.Unlock()
	if len(gone) == 0 {
		return
	}
	_ = b.engine.Save(func(batch *durable.Batch) { // or with the next Forget, after a restart
		for _, id := range gone {
			b.save(batch, Party{Token: id})
		}
	})
}

// room is what a token may get now.
func (b *Bridge) room(segment string) tally.Amount {
	id, g, err := b.grantOf(segment)
	if err != nil {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	get, _, _ := b.book.Rooms(id, &g)
	return get
}

// sender is whose packets an endpoint sends.
type sender struct {
	id    TokenID
	grant paystream.Grant
}

type senderKey struct{}

// AddClient enters a client, saved when it returns, and returns its token, of which
// only a hash is kept.
func (b *Bridge) AddClient(name string, l Limits) (btp.Token, error) {
	var raw [24]byte
	_, _ = rand.Read(raw[:]) // never fails
	token := btp.Token(base64.RawURLEncoding.EncodeToString(raw[:]))
	b.mu.Lock()
	err := b.book.Add(name, token.Hash(), l)
	var c *Client
	if err == nil && len(b.book.clients) > btpws.MaxClients {
		delete(b.book.clients, name)
		err = ErrFull
	}
	if err == nil {
		c = b.book.clients[name]
	}
	b.mu.Unlock()
	if err != nil {
		return "", err
	}
	if err := b.saveWait(Party{Client: name}); err != nil {
		return "", err
	}
	return token, b.server.Add(b.btpClient(c))
}

// RemoveClient forgets a client whose account is even and ends its connection.
func (b *Bridge) RemoveClient(name string) error {
	b.mu.Lock()
	err := b.book.Remove(name)
	b.mu.Unlock()
	if err != nil {
		return err
	}
	b.server.Remove(name)
	return b.saveWait(Party{Client: name})
}

// Paid books what a client paid us, and we it, by other means.
func (b *Bridge) Paid(name string, in, out tally.Amount) (ClientRow, error) {
	return b.change(name, func() error { return b.book.Paid(name, in, out) })
}

// SetLimits changes what a client's account may reach.
func (b *Bridge) SetLimits(name string, l Limits) (ClientRow, error) {
	return b.change(name, func() error { return b.book.SetLimits(name, l) })
}

// change changes a client's account, saved when it returns.
func (b *Bridge) change(name string, fn func() error) (ClientRow, error) {
	b.mu.Lock()
	err := fn()
	b.mu.Unlock()
	if err == nil {
		err = b.saveWait(Party{Client: name})
	}
	if err != nil {
		return ClientRow{}, err
	}
	return b.Client(name)
}

func (b *Bridge) saveWait(p Party) error {
	return b.engine.SaveWait(func(batch *durable.Batch) { b.save(batch, p) })
}

func (b *Bridge) savePointer(path string) error {
	return b.engine.SaveWait(func(batch *durable.Batch) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.book.SavePointer(batch, path)
	})
}

// ClientRow is a client's account as it is now.
type ClientRow struct {
	Client
	Address   ilp.Address
	Connected bool
}

// Client returns one client.
func (b *Bridge) Client(name string) (ClientRow, error) {
	b.mu.Lock()
	c, err := b.book.Client(name)
	b.mu.Unlock()
	return ClientRow{c, b.ClientAddress(name), b.server.Connected(name)}, err
}

// Clients returns all clients.
func (b *Bridge) Clients() []ClientRow {
	b.mu.Lock()
	rows := make([]ClientRow, 0, len(b.book.clients))
	for _, c := range b.book.clients {
		rows = append(rows, ClientRow{Client: *c})
	}
	b.mu.Unlock()
	for i := range rows {
		rows[i].Address, rows[i].Connected = b.ClientAddress(rows[i].Name), b.server.Connected(rows[i].Name)
	}
	return rows
}

// Issue makes an address of ours, with its secret, that gives its bearers a grant
// over STREAM or PSK2. Nothing is kept until money moves.
func (b *Bridge) Issue(kind string, g paystream.Grant) (endpoint.Peer, error) {
	var budget TokenID
	_, _ = rand.Read(budget[:]) // never fails
	return b.issue(kind, g, budget)
}

func (b *Bridge) issue(kind string, g paystream.Grant, budget TokenID) (endpoint.Peer, error) {
	var random [32]byte
	_, _ = rand.Read(random[copy(random[:], budget[:]):]) // never fails; no two tokens have one key
	t, err := b.tokens.Issue(random, g)
	if err != nil {
		return endpoint.Peer{}, err
	}
	switch kind {
	case KindStream:
		return b.stream.At(t[:])
	case KindPSK2:
		return b.psk2.At(t[:])
	default:
		return endpoint.Peer{}, ErrRefused
	}
}

// Check returns the first invariant of the book that is broken.
func (b *Bridge) Check() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.book.Check()
}
