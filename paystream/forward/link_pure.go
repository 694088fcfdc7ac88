package forward

import "github.com/libp2p/go-libp2p/core/peer"

// link is the relation with one neighbour.
type link struct {
	peer peer.ID
	up   bool
	// window is how many packets the neighbour takes from us.
	window int
	// outBytes is the data of the packets in out.
	outBytes int
	in       circuits // by its id: live, or fulfilled and not acked
	out      circuits // by our id: not decided
	lastIn   uint64   // highest id of this session

	// asked and answered count syncs that we asked for and got whole.
	asked, answered uint64
	known           map[uint64]struct{} // of the sync that is being read
	knownIDs        int

	acks []uint64 // of fulfils that were booked, to be sent

	asks  int   // left to the neighbour
	askAt int64 // when asks was last filled

	locks      *lockSide // nil: none
	laneSyncs  int       // left to the neighbour
	laneSyncAt int64
}

func (l *link) put(c *circuit) {
	l.out.Put(c.key, c)
	l.outBytes += c.size
}

func (l *link) take(c *circuit) {
	l.out.Delete(c.key)
	l.outBytes -= c.size
}

func (h *Hop) link(p peer.ID) *link {
	l := h.links[p]
	if l == nil {
		l = &link{peer: p}
		h.links[p] = l
	}
	return l
}

// drop forgets a link that has nothing, so that nothing grows with the number
// of peers ever seen.
func (h *Hop) drop(l *link) {
	if !l.up && l.in.Len()+l.out.Len() == 0 && l.locks.empty() {
		delete(h.links, l.peer)
	}
}
