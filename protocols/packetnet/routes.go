package packetnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/tallystick/tally/pb/routepb"
	"github.com/tallystick/tally/protocols/internal/gate"
	"github.com/tallystick/tally/protocols/internal/wire"
)

const (
	// RoutesProtocol is the libp2p protocol of adverts.
	RoutesProtocol protocol.ID = "/tally/routes/1.0.0"

	// maxRouteFrame bounds a frame: the digests of one bucket that is full.
	maxRouteFrame = 48 << 10
	// advertBytes bounds the adverts of one frame.
	advertBytes = 40 << 10
	// maxHaveBytes bounds the digests of one pull.
	maxHaveBytes = 32 << 10
	// maxPulls bounds the questions of one stream: each bucket twice.
	maxPulls = 512
	// maxRouteStreams and maxRouteStreamsPeer bound the streams, of which four times as
	// many may be open (package gate): an exchange that is over for who asked may not be
	// over here yet, and is no reason to refuse the next.
	maxRouteStreams     = 16
	maxRouteStreamsPeer = 4
	// routeTime bounds one exchange on either side.
	routeTime = 30 * time.Second
)

// AdvertTable is what a node knows of who carries what. Its methods may be called at
// the same time.
type AdvertTable interface {
	Digest() []byte
	Differ(words []byte) ([]byte, error)
	Have(bucket byte) []byte
	Missing(bucket byte, have []byte, size int) [][]byte
	// Told is called when a peer that asks has news itself.
	Told(from peer.ID)
	// Offer takes an advert that a peer gave, verifies it and keeps it. It reports
	// whether it was news; an error ends the exchange.
	Offer(ctx context.Context, from peer.ID, raw []byte) (bool, error)
}

// Routes serves adverts to neighbours and pulls theirs.
type Routes struct {
	host  host.Host
	table AdvertTable
	log   *slog.Logger

	ctx    context.Context
	cancel context.CancelFunc
	gate   *gate.Gate
}

// NewRoutes serves the protocol on h until Close.
func NewRoutes(h host.Host, table AdvertTable, log *slog.Logger) *Routes {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r := &Routes{host: h, table: table, log: log, gate: gate.New(gate.Limits{Total: maxRouteStreams, Peer: maxRouteStreamsPeer})}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	h.SetStreamHandler(RoutesProtocol, r.handle)
	return r
}

// Close ends all exchanges.
func (r *Routes) Close() {
	r.host.RemoveStreamHandler(RoutesProtocol)
	r.cancel()
	r.gate.Shut()
}

// open makes a stream ready: its service, its memory, its end.
func (r *Routes) open(st network.Stream) (*wire.Reader, *wire.Writer, error) {
	if err := st.Scope().SetService(ServiceName); err != nil {
		return nil, nil, err
	}
	if err := st.Scope().ReserveMemory(2*maxRouteFrame, network.ReservationPriorityLow); err != nil {
		return nil, nil, err
	}
	if err := st.SetDeadline(time.Now().Add(routeTime)); err != nil {
		return nil, nil, err
	}
	in, out := wire.NewReader(st, maxRouteFrame), wire.NewWriter(st, maxRouteFrame)
	in.SetTimeout(routeTime, routeTime)
	out.SetTimeout(routeTime)
	return in, out, nil
}

// handle answers one asker.
func (r *Routes) handle(st network.Stream) {
	from := st.Conn().RemotePeer()
	pass := r.gate.Enter(from)
	if pass == nil {
		_ = st.Reset()
		return
	}
	defer pass.Leave()
	stop := context.AfterFunc(r.ctx, func() { _ = st.Reset() })
	defer stop()
	if err := r.serve(st, from); err != nil {
		r.log.Debug("adverts not served", "peer", from, "err", err)
		_ = st.Reset()
		return
	}
	_ = st.Close()
}

func (r *Routes) serve(st network.Stream, from peer.ID) error {
	in, out, err := r.open(st)
	if err != nil {
		return err
	}
	for range maxPulls {
		var m routepb.RouteMsg
		if err := in.ReadMsg(&m); err != nil {
			if readStatus(err) == StatusOK {
				return nil
			}
			return err
		}
		reply := new(routepb.RouteMsg)
		switch k := m.GetKind().(type) {
		case *routepb.RouteMsg_DigestAsk:
			if k.DigestAsk.GetNews() {
				r.table.Told(from)
			}
			reply.Kind = &routepb.RouteMsg_Digest{Digest: &routepb.Digest{Words: r.table.Digest()}}
		case *routepb.RouteMsg_Pull:
			if k.Pull.GetBucket() > 255 || len(k.Pull.GetHave()) > maxHaveBytes || len(k.Pull.GetHave())%8 != 0 {
				return malformed("pull")
			}
			reply.Kind = &routepb.RouteMsg_Adverts{Adverts: &routepb.Adverts{
				Adverts: r.table.Missing(byte(k.Pull.GetBucket()), k.Pull.GetHave(), advertBytes),
			}}
		default:
			return malformed("kind of a question")
		}
		if err := errors.Join(out.WriteMsg(reply), out.Flush()); err != nil {
			return err
		}
	}
	return malformed("too many questions")
}

// Pull asks a connected peer for what it knows and we do not, and returns how many
// adverts were news. tell says that we have news as well, for the peer to ask us.
func (r *Routes) Pull(ctx context.Context, from peer.ID, tell bool) (news int, err error) {
	ctx, cancel := context.WithTimeout(ctx, routeTime)
	defer cancel()
	st, err := r.host.NewStream(network.WithNoDial(ctx, "adverts come from connected peers"), from, RoutesProtocol)
	if err != nil {
		return 0, fmt.Errorf("packetnet: ask %s for adverts: %w", from, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = st.Reset() })
	defer stop()
	if news, err = r.pull(ctx, st, from, tell); err != nil {
		_ = st.Reset()
		return news, fmt.Errorf("packetnet: adverts of %s: %w", from, err)
	}
	return news, st.Close()
}

func (r *Routes) pull(ctx context.Context, st network.Stream, from peer.ID, tell bool) (news int, err error) {
	in, out, err := r.open(st)
	if err != nil {
		return 0, err
	}
	ask := func(m *routepb.RouteMsg) (*routepb.RouteMsg, error) {
		if err := errors.Join(out.WriteMsg(m), out.Flush()); err != nil {
			return nil, err
		}
		reply := new(routepb.RouteMsg)
		return reply, in.ReadMsg(reply)
	}
	reply, err := ask(&routepb.RouteMsg{Kind: &routepb.RouteMsg_DigestAsk{DigestAsk: &routepb.DigestAsk{News: tell}}})
	if err != nil {
		return 0, err
	}
	buckets, err := r.table.Differ(reply.GetDigest().GetWords())
	if err != nil {
		return 0, err
	}
	questions := 1
	for _, bucket := range buckets {
		for fresh := true; fresh; { // again while a full frame brought news
			if questions++; questions >= maxPulls {
				return news, nil // the rest comes with the next exchange
			}
			reply, err := ask(&routepb.RouteMsg{Kind: &routepb.RouteMsg_Pull{Pull: &routepb.Pull{
				Bucket: uint32(bucket), Have: r.table.Have(bucket),
			}}})
			if err != nil {
				return news, err
			}
			fresh = false
			size := 0
			for _, raw := range reply.GetAdverts().GetAdverts() {
				is, err := r.table.Offer(ctx, from, raw)
				if err != nil {
					return news, err
				}
				if size += len(raw); is {
					news, fresh = news+1, true
				}
			}
			fresh = fresh && size > advertBytes/2
		}
	}
	return news, nil
}
