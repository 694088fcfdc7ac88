package host

import (
	"fmt"
	"time"

	"github.com/tallystick/tally/host/rpc"
)

// locksCheck says whether there are locks, and why not.
func (n *Node) locksCheck() rpc.Check {
	c := rpc.Check{Name: "locks", State: rpc.CheckSkip}
	switch {
	case n.locks == nil && n.noLocks == "":
		c.Detail = "off: this node carries no packets"
	case n.locks == nil:
		c.Detail = "off: " + n.noLocks
	case n.locks.Off() != nil:
		c.Detail = "off: " + n.locks.Off().Error()
	default:
		t, epoch := n.locks.Terms(), n.locks.epoch()
		c.State = rpc.CheckOK
		c.Detail = fmt.Sprintf("on: %d stand; %d slots a channel, up to %v ahead, %v for each hop",
			len(n.locks.List()), t.Slots, (time.Duration(t.Horizon(0)) * epoch).Round(time.Second), (time.Duration(t.Delta()) * epoch).Round(time.Second))
	}
	return c
}
