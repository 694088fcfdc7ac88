package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/tallystick/tally/host"
	"github.com/tallystick/tally/host/repo"
)

// realDeps joins the commands to the parts that this build has. It is the only
// place that does.
func realDeps() Deps {
	return systemIO(Deps{
		Version:    host.Version,
		StartNode:  startNode,
		CheckStore: host.CheckStore,
	})
}

// startNode runs a peer with package host.
func startNode(ctx context.Context, r *repo.Repo, opts StartOptions) (RunningPeer, error) {
	d, err := host.Start(ctx, r, opts.Logger)
	if err != nil {
		return nil, err
	}
	if len(d.Addrs()) == 0 && len(r.Config().Listen) > 0 {
		return nil, errors.Join(fmt.Errorf("the peer listens nowhere, although listen names %v", r.Config().Listen), d.Close(ctx))
	}
	return d, nil
}
