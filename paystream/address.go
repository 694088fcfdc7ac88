package paystream

import (
	"fmt"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Asset is what one end counts in: a code, and how many digits of it a unit is
// behind the point. The peer tells it; nothing of the money rests on it, for the
// rate is measured.
type Asset struct {
	Code  string
	Scale uint8
}

// Validate reports an asset that does not fit a packet.
func (a Asset) Validate() error {
	if len(a.Code) > maxAsset {
		return fmt.Errorf("paystream: asset code of %d bytes, want at most %d", len(a.Code), maxAsset)
	}
	return nil
}

// Assets returns what we count in and what the peer said that it does. Its code is
// empty as long as it has not said so.
func (c *Conn) Assets() (own, peers Asset) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.e.cfg.Asset, c.peerAsset
}

// Reroute changes the way of a client's packets, and tells the server to send what
// it pushes back along it.
func (c *Conn) Reroute(via []peer.ID) error {
	if c.ident.role != RoleClient {
		return fmt.Errorf("paystream: the way of socket %s is its client's to change", c.ident.id)
	}
	if len(via) >= MaxVia {
		return fmt.Errorf("paystream: way of %d peers, want at most %d", len(via), MaxVia-1)
	}
	c.mu.Lock()
	if c.closed != nil {
		defer c.mu.Unlock()
		return c.closed
	}
	c.ident.via, c.dirty = slices.Clone(via), true
	c.way++
	c.tellAt = 0
	c.resume()
	c.mu.Unlock()
	c.e.save(c.record)
	c.kick()
	return nil
}

// Way returns where our packets go: the peer, and those on the way to it.
func (c *Conn) Way() (to peer.ID, via []peer.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ident.dest, slices.Clone(c.ident.via)
}

// introduce adds to a client's packet what its server has not acked: the asset and
// the way back. Called with mu held.
func (c *Conn) introduce(p *Packet, o *flight) {
	if c.ident.role != RoleClient {
		return
	}
	if !c.assetTold && c.e.cfg.Asset.Code != "" {
		o.asset = true
		c.asset(p)
	}
	if c.wayTold != c.way {
		o.way = c.way
		p.Has |= HasNewAddress
		p.NewAddress = ViaFrame{}
		c.wayBack(&p.NewAddress)
	}
}

func (c *Conn) asset(p *Packet) {
	p.Has |= HasAssetDetails
	p.AssetDetails = AssetFrame{Code: c.e.assetCode, Scale: uint32(c.e.cfg.Asset.Scale)}
}

// introduced notes that the server has read o. Called with mu held.
func (c *Conn) introduced(o *flight) {
	c.assetTold = c.assetTold || o.asset
	c.wayTold = max(c.wayTold, o.way)
}

// meetPeer takes what a fresh packet says of who the peer is and where. A way back
// counts only if no later packet has told one, so that neither a recording nor a
// packet that was overtaken brings an old way back. Called with mu held.
func (c *Conn) meetPeer(p *Packet, counter uint64) {
	if p.Has&HasAssetDetails != 0 {
		c.peerAsset = Asset{Code: string(p.AssetDetails.Code), Scale: uint8(p.AssetDetails.Scale)}
	}
	if p.Has&HasNewAddress == 0 || c.ident.role != RoleServer || counter < c.wayAt {
		return
	}
	if to, via := lastOf(&p.NewAddress); to != "" {
		c.ident.dest, c.ident.via, c.dirty = to, via, true
		c.wayAt = counter + 1
	}
}
