package host

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tallystick/tally/host/repo"
	"github.com/tallystick/tally/host/rpc"
)

// Whether there are locks the status says, and a start fails where they are required
// and the chain has no room for them. This one settles within 20 epochs.
func TestLocksSetting(t *testing.T) {
	n := startNet(t, filepath.Join(t.TempDir(), "net"))
	defer n.stop()
	start := func(locks string, node repo.ChainNode) (*Daemon, func(), error) {
		dir := newRepo(t)
		if err := os.WriteFile(filepath.Join(dir, repo.ConfigFile), []byte("locks = \""+locks+"\"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return on(t, dir, node)
	}
	for _, c := range []struct {
		locks string
		node  repo.ChainNode
		why   string
	}{
		{repo.LocksAuto, repo.ChainNode{}, "nothing settles on a chain"},
		{repo.LocksAuto, n.node(), "no lock fits the chain"},
		{repo.LocksOff, n.node(), "off by configuration"},
	} {
		d, stop, err := start(c.locks, c.node)
		if err != nil {
			t.Fatal(err)
		}
		if k := check(t, d, "locks"); k.State != rpc.CheckSkip || !strings.Contains(k.Detail, c.why) {
			t.Errorf("%s: %+v", c.locks, k)
		}
		s, err := d.LockState(t.Context())
		if err != nil || s.On || !strings.Contains(s.Why, c.why) {
			t.Errorf("%s: %+v, %v", c.locks, s, err)
		}
		if rows, err := d.API.Locks(t.Context(), ""); err != nil || len(rows) != 0 {
			t.Errorf("%s: %+v, %v", c.locks, rows, err)
		}
		stop()
	}
	for _, node := range []repo.ChainNode{{}, n.node()} {
		_, _, err := start(repo.LocksRequired, node)
		var refused *StartError
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), "locks are required") || refused.Remedy() == "" {
			t.Errorf("required: %v", err)
		}
	}
}
