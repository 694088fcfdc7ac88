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
	c := rpc.Check{Name: "locks", State: rpc.CheckOK, Detail: fmt.Sprintf("on: %d stand; %d slots a channel, up to %v ahead, %v for each hop",
		len(n.locks.List()), t.Slots, (time.Duration(t.Horizon(0)) * epoch).Round(time.Second), (time.Duration(t.Delta()) * epoch).Round(time.Second))}
	if full := n.locks.keeper.Full(); full > 0 {
		c.State, c.Detail = rpc.CheckWarn, fmt.Sprintf("%s; no free slot in %d of our channels", c.Detail, full)
		c.Next = "see who fills them: tally lock ls; each is free again when its lock ends"
	}
	return c
}
