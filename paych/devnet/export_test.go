package devnet

import (
	"context"

	"github.com/filecoin-project/go-state-types/abi"
)

// Keep sets how many heights are kept.
func (c *Chain) Keep(ctx context.Context, n abi.ChainEpoch) error {
	return c.do(ctx, func() error { c.keep = n; return nil })
}

// Floor is the lowest height that is kept whole.
func (c *Chain) Floor() abi.ChainEpoch { return abi.ChainEpoch(c.floor.Load()) }

// Kept is how many heights are kept.
func (c *Chain) Kept() abi.ChainEpoch { return c.kept() }

// API are the methods that Handler serves.
func (c *Chain) API() *api { return &api{c} }
