package socketnet

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	mocknet "github.com/libp2p/go-libp2p/p2p/net/mock"

	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/pb/socketpb"
	"github.com/tallystick/tally/protocols/internal/wire"
)

func pair(t *testing.T, cfg Config) (asker, asked *Service) {
	t.Helper()
	net := mocknet.New()
	t.Cleanup(func() { _ = net.Close() })
	var list []*Service
	for _, c := range []Config{{}, cfg} {
		h, err := net.GenPeer()
		if err != nil {
			t.Fatal(err)
		}
		s := New(h, c)
		t.Cleanup(s.Close)
		list = append(list, s)
	}
	if err := net.LinkAll(); err != nil {
		t.Fatal(err)
	}
	if err := net.ConnectAllButSelf(); err != nil {
		t.Fatal(err)
	}
	return list[0], list[1]
}

func TestAsk(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	given := Setup{Token: paystream.Token{1, 2, 3}, Secret: paystream.Secret{4, 5, 6}}
	var from peer.ID
	asker, asked := pair(t, Config{Give: func(p peer.ID) (Setup, error) {
		from = p
		return given, nil
	}})
	got, err := asker.Ask(ctx, asked.host.ID())
	if err != nil || got != given || from != asker.host.ID() {
		t.Fatalf("asked by %s: %+v, %v", from, got, err)
	}
}

func TestRefused(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for name, cfg := range map[string]Config{
		"nobody gets one": {},
		"not this peer":   {Give: func(peer.ID) (Setup, error) { return Setup{}, errors.New("no") }},
	} {
		asker, asked := pair(t, cfg)
		if _, err := asker.Ask(ctx, asked.host.ID()); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What a peer sends instead of a question ends its stream, and nothing is asked
// of the node.
func TestHostileQuestion(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	asker, asked := pair(t, Config{Give: func(peer.ID) (Setup, error) {
		t.Error("a token for nothing")
		return Setup{}, nil
	}})
	for name, bytes := range map[string][]byte{
		"garbage":   {3, 0xff, 0xff, 0xff},
		"too large": {0xff, 0xff, 0x7f},
		"cut off":   {9, 1},
		"nothing":   {},
	} {
		st, err := asker.host.NewStream(ctx, asked.host.ID(), ID)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := st.Write(bytes); err != nil {
			t.Fatal(err)
		}
		if err := st.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		var m socketpb.SetupResponse
		if err := wire.NewReader(st, maxFrame).ReadMsg(&m); err == nil {
			t.Errorf("%s: answered %v", name, &m)
		}
	}
}

// A peer that asks more than its share at a time is reset, and has its share
// again when the others are answered.
func TestTooManyQuestions(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	asker, asked := pair(t, Config{Give: func(peer.ID) (Setup, error) { return Setup{}, nil }})
	var open []network.Stream
	for range maxAskingPeer {
		st, err := asker.host.NewStream(ctx, asked.host.ID(), ID)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := st.Write([]byte{1}); err != nil { // begins a question
			t.Fatal(err)
		}
		open = append(open, st)
	}
	for asked.gate.Working(asker.host.ID()) < maxAskingPeer {
		if ctx.Err() != nil {
			t.Fatal("the questions do not arrive")
		}
	}
	if _, err := asker.Ask(ctx, asked.host.ID()); err == nil {
		t.Fatal("one over the share was answered")
	}
	for _, st := range open {
		_ = st.Reset()
	}
	for asked.gate.Working(asker.host.ID()) > 0 && ctx.Err() == nil {
	}
	if _, err := asker.Ask(ctx, asked.host.ID()); err != nil {
		t.Fatal(err)
	}
}

func TestParseSetup(t *testing.T) {
	token, secret := bytes.Repeat([]byte{1}, paystream.TokenSize), bytes.Repeat([]byte{2}, 32)
	ok := socketpb.Status_STATUS_OK
	for name, c := range map[string]struct {
		m    *socketpb.SetupResponse
		want error
	}{
		"whole":          {&socketpb.SetupResponse{Status: ok, Token: token, Secret: secret}, nil},
		"refused":        {&socketpb.SetupResponse{Status: socketpb.Status_STATUS_REFUSED}, ErrRefused},
		"busy":           {&socketpb.SetupResponse{Status: socketpb.Status_STATUS_BUSY}, ErrBusy},
		"no status":      {&socketpb.SetupResponse{Token: token, Secret: secret}, ErrAnswer},
		"unknown status": {&socketpb.SetupResponse{Status: 77}, ErrAnswer},
		"short token":    {&socketpb.SetupResponse{Status: ok, Token: token[1:], Secret: secret}, ErrAnswer},
		"long secret":    {&socketpb.SetupResponse{Status: ok, Token: token, Secret: append(secret, 0)}, ErrAnswer},
	} {
		if _, err := parseSetup(c.m); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}
