package host

import (
	"fmt"
	"time"

	"github.com/tallystick/tally/host/rpc"
)

// locksOff says why there are no new locks; empty where there are.
func (n *Node) locksOff() string {
	switch {
	case n.locks == nil && n.noLocks == "":
		return "this node carries no packets"
	case n.locks == nil:
		return n.noLocks
	case n.locks.Off() != nil:
		return n.locks.Off().Error()
	default:
		return ""
	}
}

// locksCheck says whether there are locks, and why not.
func (n *Node) locksCheck() rpc.Check {
	if why := n.locksOff(); why != "" {
		return rpc.Check{Name: "locks", State: rpc.CheckSkip, Detail: "off: " + why}
	}
	t, epoch := n.locks.Terms(), n.locks.epoch()
	return rpc.Check{Name: "locks", State: rpc.CheckOK, Detail: fmt.Sprintf("on: %d stand; %d slots a channel, up to %v ahead, %v for each hop",
		len(n.locks.List()), t.Slots, (time.Duration(t.Horizon(0)) * epoch).Round(time.Second), (time.Duration(t.Delta()) * epoch).Round(time.Second))}
}
