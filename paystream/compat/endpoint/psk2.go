package endpoint

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"iter"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/compat"
	"github.com/tallystick/tally/paystream/compat/envelope"
	"github.com/tallystick/tally/paystream/compat/ilp"
	"github.com/tallystick/tally/paystream/compat/psk2"
)

// PSK2Config is what a PSK2 endpoint needs.
type PSK2Config struct {
	Address ilp.Address     // ours; addresses of requests lie under it
	Secret  envelope.Secret // derives the secrets of our tokens
	Via     compat.Handler  // takes what we send; may be nil where we only receive

	// Receive books a request, saved when it returns, and returns the data of the
	// answer. It is called at the same time from many goroutines. An error rejects
	// the request, as one whose ID was booked before has to be. A probe is asked,
	// too, and never books.
	Receive func(context.Context, PSK2Request) ([]byte, error)

	// SecretOf, where set, gives the secret of a token whose secret is not ours: one
	// of a socket that we opened. Else it is derived.
	SecretOf func(token string) (envelope.Secret, bool)

	Journal   Journal                 // may be nil where we only receive
	Undecided iter.Seq[envelope.Mark] // what Journal had when we stopped; may be nil
}

// PSK2Request is a request that arrived.
type PSK2Request struct {
	ID        envelope.Mark // names the packet, for ever
	Token     string        // the segment of the address after ours
	RequestID uint32
	Amount    tally.Amount
	Probe     bool // unfulfillable, or too little: nothing will be paid
	Data      []byte
}

// PSK2 is an endpoint of PSK2. It implements compat.Handler.
type PSK2 struct {
	cfg  PSK2Config
	link *link
}

// NewPSK2 returns an endpoint.
func NewPSK2(cfg PSK2Config) (*PSK2, error) {
	if err := cfg.Address.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if cfg.Receive == nil {
		return nil, fmt.Errorf("%w: nothing books requests", ErrConfig)
	}
	return &PSK2{cfg: cfg, link: newLink(cfg.Via, cfg.Journal, cfg.Undecided)}, nil
}

// Open returns a new address of ours and the secret to share for it. Nothing is
// kept.
func (e *PSK2) Open() (Peer, error) { return e.At(newToken()) }

// At returns the address of a token that the caller drew, of at most 192 bytes, and
// the secret to share for it.
func (e *PSK2) At(token []byte) (Peer, error) {
	address, err := e.cfg.Address.Join(segmentOf(token))
	return Peer{Address: address, Secret: psk2.SharedSecret(e.cfg.Secret, token)}, err
}

// Own returns the peer whose address has this token's segment, as Open or At made it.
func (e *PSK2) Own(segment string) (Peer, error) {
	token, err := base64.RawURLEncoding.Strict().DecodeString(segment)
	if err != nil {
		return Peer{}, err
	}
	return e.At(token)
}

// Prepare answers a request.
func (e *PSK2) Prepare(ctx context.Context, p *ilp.Prepare) ilp.Reply {
	segment, token, ok := tokenOf(p.Destination, e.cfg.Address)
	if !ok {
		return e.reject(ilp.CodeUnreachable, nil)
	}
	if _, err := p.Amount.Balance(); err != nil {
		return e.reject(ilp.CodeInvalidAmount, nil)
	}
	if !inTime(p) {
		return e.reject(ilp.CodeInsufficientTimeout, nil)
	}
	if e.link.reflected(p.Data) {
		return e.reject(ilp.CodeApplication, nil)
	}
	secret, foreign := envelope.Secret{}, false
	if e.cfg.SecretOf != nil {
		secret, foreign = e.cfg.SecretOf(segment)
	}
	if !foreign {
		secret = psk2.SharedSecret(e.cfg.Secret, token)
	}
	keys := psk2.NewKeys(secret)
	plain, err := keys.Open(p.Data)
	if err != nil {
		return e.reject(ilp.CodeUnexpectedPayment, nil)
	}
	q, err := psk2.DecodePacket(plain)
	if err != nil || q.Type != psk2.TypeRequest {
		return e.reject(ilp.CodeUnexpectedPayment, nil)
	}
	fulfilment, code := keys.Fulfilment(p.Data), ilp.CodeApplication
	fulfillable := p.Amount >= q.Amount
	if !fulfilment.Opens(p.Condition) {
		fulfillable, code = false, ilp.CodeWrongCondition
	}
	data, err := e.cfg.Receive(ctx, PSK2Request{
		ID: envelope.MarkOf(p.Data), Token: segment, RequestID: q.RequestID,
		Amount: p.Amount, Probe: !fulfillable, Data: q.Data,
	})
	answer := psk2.Packet{Type: psk2.TypeError, RequestID: q.RequestID, Amount: p.Amount, Data: data}
	if fulfillable && err == nil {
		answer.Type = psk2.TypeResponse
	}
	sealed, sealErr := sealPSK2(keys, &answer)
	if answer.Type == psk2.TypeResponse {
		// Booked: it is fulfilled, also where the answer's data does not fit.
		return &ilp.Fulfil{Fulfilment: fulfilment, Data: sealed}
	}
	if sealErr != nil {
		return e.reject(ilp.CodeInternal, nil)
	}
	return e.reject(code, sealed)
}

func sealPSK2(keys *envelope.Keys, p *psk2.Packet) ([]byte, error) {
	plain, err := p.Append(nil)
	if err != nil {
		return nil, err
	}
	return seal(keys, plain)
}

func (e *PSK2) reject(code ilp.Code, data []byte) ilp.Reply {
	return &ilp.Reject{Code: code, TriggeredBy: e.cfg.Address, Data: data}
}

// PSK2Result is how a request ended.
type PSK2Result struct {
	Fulfilled bool
	Code      ilp.Code     // of a reject
	Authentic bool         // the peer's own word: Delivered and Data are good
	Delivered tally.Amount // what arrived
	Data      []byte
}

// Request sends one request of the amount, of which at least the least must
// arrive. It is decided when Request returns without an error; ErrWrongFulfilment
// decides it, too.
func (e *PSK2) Request(ctx context.Context, to Peer, amount, least tally.Amount, data []byte) (PSK2Result, error) {
	return e.request(ctx, to, amount, least, data, false)
}

// Probe sends a request that cannot be fulfilled, to learn what arrives.
func (e *PSK2) Probe(ctx context.Context, to Peer, amount tally.Amount, data []byte) (PSK2Result, error) {
	return e.request(ctx, to, amount, 0, data, true)
}

func (e *PSK2) request(ctx context.Context, to Peer, amount, least tally.Amount, data []byte, probe bool) (PSK2Result, error) {
	if e.cfg.Via == nil {
		return PSK2Result{}, fmt.Errorf("%w: this endpoint only receives", ErrConfig)
	}
	var id [4]byte
	_, _ = rand.Read(id[:]) // never fails
	q := psk2.Packet{Type: psk2.TypeRequest, RequestID: binary.BigEndian.Uint32(id[:]), Amount: least, Data: data}
	plain, err := q.Append(nil)
	if err != nil {
		return PSK2Result{}, err
	}
	reply, opened, err := e.link.send(ctx, psk2.NewKeys(to.Secret), to.Address, amount, plain, probe)
	if err != nil {
		return PSK2Result{}, err
	}
	var res PSK2Result
	want := psk2.TypeError
	switch r := reply.(type) {
	case *ilp.Fulfil:
		res.Fulfilled, want = true, psk2.TypeResponse
	case *ilp.Reject:
		res.Code = r.Code
	}
	// An answer to another request, which a hop may put here, says nothing.
	if a, err := psk2.DecodePacket(opened); err == nil && a.Type == want && a.RequestID == q.RequestID {
		res.Authentic, res.Delivered, res.Data = true, a.Amount, a.Data
	}
	return res, nil
}
