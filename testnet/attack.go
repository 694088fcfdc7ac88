package testnet

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	libp2phost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/tallystick/tally/protocols/storenet"
	"github.com/tallystick/tally/protocols/swapnet"
	"github.com/tallystick/tally/swap"
)

// attackWithin bounds one move of an attacker: what hangs is cut off.
const attackWithin = 5 * time.Second

// attackers are hosts that do not run our code: they speak bytes.
type attackers struct {
	find    func(name string) (peer.AddrInfo, error) // a target
	makeOne func(crypto.PrivKey) (libp2phost.Host, error)
	realm   swap.Realm
	gentle  int // divides the counts of floods

	// mu guards the fields below.
	mu    sync.Mutex
	named map[string]libp2phost.Host
	hosts []libp2phost.Host
}

func newAttackers(find func(string) (peer.AddrInfo, error), makeOne func(crypto.PrivKey) (libp2phost.Host, error), realm swap.Realm) *attackers {
	return &attackers{find: find, makeOne: makeOne, realm: realm, gentle: 1, named: make(map[string]libp2phost.Host)}
}

func (a *attackers) close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs []error
	for _, h := range a.hosts {
		errs = append(errs, h.Close())
	}
	return errors.Join(errs...)
}

func (a *attackers) has(name string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.named[name] != nil
}

func (a *attackers) id(name string) (peer.ID, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if h := a.named[name]; h != nil {
		return h.ID(), true
	}
	return "", false
}

// newHost makes an attacker, which lives until close.
func (a *attackers) newHost() (libp2phost.Host, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, err
	}
	h, err := a.makeOne(key)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hosts = append(a.hosts, h)
	return h, nil
}

// reach connects h to a peer of the network.
func (a *attackers) reach(ctx context.Context, h libp2phost.Host, target string) (peer.ID, error) {
	info, err := a.find(target)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, attackWithin)
	defer cancel()
	return info.ID, h.Connect(ctx, info)
}

// connect lets a named attacker connect again.
func (a *attackers) connect(ctx context.Context, name, target string) error {
	a.mu.Lock()
	h := a.named[name]
	a.mu.Unlock()
	_, err := a.reach(ctx, h, target)
	return err
}

// hostile makes a peer that shakes hands with target and announces threshold. It
// returns once the target has answered, or has refused.
func (a *attackers) hostile(ctx context.Context, name, target, proto, threshold string) error {
	announced, err := parseThreshold(threshold)
	if err != nil {
		return err
	}
	h, err := a.newHost()
	if err != nil {
		return err
	}
	a.mu.Lock()
	a.named[name] = h
	a.mu.Unlock()
	id, err := a.reach(ctx, h, target)
	if err != nil {
		return err
	}
	first, via := alpha1Handshake(announced), swapnet.ProtocolAlpha1
	if proto == "native" {
		first, via = nativeHandshake(announced, a.realm), swapnet.ProtocolNative
	}
	// The stream stays open: the session lasts as long as the scenario.
	_, err = say(ctx, h, id, via, first, true)
	var cut *cutError
	if errors.As(err, &cut) {
		return nil // refused, as the checks may want
	}
	return err
}

// cutError: the target ended the stream.
type cutError struct{ err error }

func (e *cutError) Error() string { return "testnet: the target ended the stream: " + e.err.Error() }
func (e *cutError) Unwrap() error { return e.err }

// say opens a stream and sends bytes. With answer it waits until the target has
// sent two frames, or one and nothing more, or ended the stream: then what was
// said is booked.
func say(ctx context.Context, h libp2phost.Host, to peer.ID, via protocol.ID, what []byte, answer bool) (network.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, attackWithin)
	defer cancel()
	st, err := h.NewStream(ctx, to, via)
	if err != nil {
		return nil, &cutError{err}
	}
	if _, err := st.Write(what); err != nil {
		return nil, &cutError{err}
	}
	if !answer {
		return st, nil
	}
	_ = st.SetReadDeadline(time.Now().Add(attackWithin))
	buf := make([]byte, 4096)
	if _, err := st.Read(buf); err != nil {
		return nil, &cutError{err}
	}
	// The handshake of the target may leave before ours is read. Whatever comes
	// next, an answer or the end, comes after it.
	_ = st.SetReadDeadline(time.Now().Add(settleDown))
	if _, err := st.Read(buf); err != nil && !isTimeout(err) {
		return nil, &cutError{err}
	}
	return st, nil
}

// settleDown is how long a target has to object to a handshake.
const settleDown = 300 * time.Millisecond

func isTimeout(err error) bool {
	t, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	return ok && t.Timeout()
}

// frame puts the length in front.
func frame(b []byte) []byte { return append(binary.AppendUvarint(nil, uint64(len(b))), b...) }

// alpha1Handshake is the seed's, with any bytes as the threshold.
func alpha1Handshake(threshold []byte) []byte {
	var b []byte
	if len(threshold) > 0 {
		b = protowire.AppendBytes(protowire.AppendTag(b, 1, protowire.BytesType), threshold)
	}
	return frame(b)
}

// nativeHandshake announces the last eight bytes of threshold; any more are put
// in as they are, in a field of the wrong kind.
func nativeHandshake(threshold []byte, in swap.Realm) []byte {
	if in.Network == "" {
		in.Network = "tally"
	}
	if in.Asset == "" {
		in.Asset = "karma"
	}
	var realm []byte
	realm = protowire.AppendString(protowire.AppendTag(realm, 1, protowire.BytesType), in.Network)
	if in.Genesis != "" {
		realm = protowire.AppendString(protowire.AppendTag(realm, 2, protowire.BytesType), in.Genesis)
	}
	realm = protowire.AppendString(protowire.AppendTag(realm, 3, protowire.BytesType), in.Asset)
	var b []byte
	b = protowire.AppendBytes(protowire.AppendTag(b, 1, protowire.BytesType), realm)
	if len(threshold) <= 8 {
		var n uint64
		for _, c := range threshold {
			n = n<<8 | uint64(c)
		}
		b = protowire.AppendVarint(protowire.AppendTag(b, 2, protowire.VarintType), n)
		b = protowire.AppendVarint(protowire.AppendTag(b, 3, protowire.VarintType), n)
	} else {
		b = protowire.AppendBytes(protowire.AppendTag(b, 2, protowire.BytesType), threshold)
	}
	b = protowire.AppendVarint(protowire.AppendTag(b, 4, protowire.VarintType), 2) // mode mock
	return frame(protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), b))
}

// flood makes count attacks of a kind on target. That attacks fail is what the
// target should see to: an error says only that none could be made.
func (a *attackers) flood(ctx context.Context, target, kind string, count int) error {
	count = max(1, count/a.gentle)
	switch kind {
	case "identities":
		return a.floodIdentities(ctx, target, count)
	case "sockets":
		return a.floodSockets(ctx, target, count)
	}
	h, err := a.newHost()
	if err != nil {
		return err
	}
	id, err := a.reach(ctx, h, target)
	if err != nil {
		return err
	}
	protocols := [...]protocol.ID{swapnet.ProtocolNative, swapnet.ProtocolAlpha1, swapnet.ProtocolBeta1}
	for i := range count {
		if err := ctx.Err(); err != nil {
			return err
		}
		if h.Network().Connectedness(id) != network.Connected {
			if _, err := a.reach(ctx, h, target); err != nil {
				return nil //nolint:nilerr // the target does not take it any more: bounded
			}
		}
		via := protocols[i%len(protocols)]
		switch kind {
		case "streams": // opened, and held without a word
			_, _ = say(ctx, h, id, via, nil, false)
		case "handshakes": // a session, and another, and another
			first := alpha1Handshake([]byte{100})
			if via == swapnet.ProtocolNative {
				first = nativeHandshake([]byte{100}, a.realm)
			}
			if st, err := say(ctx, h, id, via, first, false); err == nil {
				_ = st.Close()
			}
		case "garbage":
			junk := make([]byte, 1+i%5000)
			_, _ = rand.Read(junk)
			if i%3 == 0 {
				junk = append(binary.AppendUvarint(nil, 1<<40), junk...) // a frame that never ends
			}
			if st, err := say(ctx, h, id, via, junk, false); err == nil {
				_ = st.CloseWrite()
				_ = st.SetReadDeadline(time.Now().Add(attackWithin))
				_, _ = io.Copy(io.Discard, io.LimitReader(st, 1<<20))
				_ = st.Reset()
			}
		}
	}
	return nil
}

// floodIdentities takes service under one new identity after another, and pays
// for none.
func (a *attackers) floodIdentities(ctx context.Context, target string, count int) error {
	info, err := a.find(target)
	if err != nil {
		return err
	}
	one := func() error {
		key, _, err := crypto.GenerateEd25519Key(rand.Reader)
		if err != nil {
			return err
		}
		h, err := a.makeOne(key)
		if err != nil {
			return err
		}
		defer func() { _ = h.Close() }()
		ctx, cancel := context.WithTimeout(ctx, attackWithin)
		defer cancel()
		if err := h.Connect(ctx, info); err != nil {
			return err
		}
		client := storenet.NewClient(h, storenet.ClientConfig{})
		_, err = client.Query(ctx, info.ID, storenet.Query{PageSize: 100, Limit: 200}, func(storenet.Hash, *storenet.Message) error { return nil })
		return err
	}
	const atOnce = 8
	var wg sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	var mu sync.Mutex
	tried, came := 0, 0
	for range count {
		if ctx.Err() != nil {
			break
		}
		slots <- struct{}{}
		wg.Go(func() { // ends when the identity is used up
			defer func() { <-slots }()
			err := one()
			mu.Lock()
			defer mu.Unlock()
			tried++
			if _, refused := errors.AsType[*storenet.RefusedError](err); err == nil || refused {
				came++
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return err
	}
	if came < tried/2 {
		return fmt.Errorf("testnet: only %d of %d identities reached the target: the flood shows nothing", came, tried)
	}
	return nil
}
