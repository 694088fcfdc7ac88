package testnet

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/forward"
	"github.com/tallystick/tally/protocols/packetnet"
)

// floodSockets opens sockets with target that it has no secret for: packets of our
// own format, each of another socket and token, that open for nobody.
func (a *attackers) floodSockets(ctx context.Context, target string, count int) (err error) {
	h, err := a.newHost()
	if err != nil {
		return err
	}
	engine, err := forward.New(ctx, forward.Config{Self: h.ID(), Tabs: freeTabs{}, Memory: true})
	if err != nil {
		return err
	}
	net, err := packetnet.New(h, engine, packetnet.Config{})
	if err != nil {
		return err
	}
	engine.Start(net)
	defer func() { err = errors.Join(err, net.Close(), engine.Close()) }()
	if err := net.Start(); err != nil {
		return err
	}
	id, err := a.reach(ctx, h, target)
	if err != nil {
		return err
	}
	for {
		if _, ok := net.Info(id); ok {
			break
		}
		if sleep(ctx, lookEvery); ctx.Err() != nil {
			return fmt.Errorf("testnet: %s takes no packets of a stranger: %w", target, ctx.Err())
		}
	}
	const atOnce = 500
	var arrived atomic.Int64
	slots := make(chan struct{}, atOnce)
	for range count {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		err := engine.Send(strangerOpen(id), func(r *forward.Result) {
			if r.Code == forward.CodeRefused { // its endpoint has looked at it
				arrived.Add(1)
			}
			<-slots
		})
		if err != nil {
			return err
		}
	}
	for range atOnce { // all are answered
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if n := arrived.Load(); n < int64(count)/2 {
		return fmt.Errorf("testnet: only %d of %d opens reached the endpoint of %s: the flood shows nothing", n, count, target)
	}
	return nil
}

// strangerOpen is a packet that looks like the first of a socket.
func strangerOpen(to peer.ID) *forward.Packet {
	const (
		header = 60
		sealed = 80
	)
	token := make([]byte, paystream.TokenSize)
	data := make([]byte, header+sealed)
	_, _ = rand.Read(token)
	_, _ = rand.Read(data)
	copy(data, []byte{1, 1, 1, 1})    // version, suite, kdf, prepare
	clear(data[4+16+16 : 4+16+16+16]) // receiver
	clear(data[header-8 : header])    // counter
	var lock tally.Hashlock
	_, _ = rand.Read(lock[:])
	return &forward.Packet{
		Dest: to, Token: token, Expires: time.Now().Add(30 * time.Second), Condition: forward.Blake2b(lock), Data: data,
	}
}

// freeTabs are the tabs of somebody who means to pay nobody.
type freeTabs struct{}

var _ forward.Tabs = freeTabs{}

func (freeTabs) Hold(peer.ID, uint64, forward.Dir, tally.Amount) error { return nil }
func (freeTabs) Commit(peer.ID, uint64, forward.Dir) error             { return nil }
func (freeTabs) Release(peer.ID, uint64, forward.Dir) error            { return nil }
func (freeTabs) Restore([]forward.Held) error                          { return nil }
func (freeTabs) Save(*durable.Batch)                                   {}
func (freeTabs) Done(error)                                            {}
