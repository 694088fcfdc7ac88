package testnet

import (
	"context"
	"strconv"
	"time"

	"github.com/tallystick/tally/host/rpc"
)

// hold pays a payee, who may be stopped, through a holder.
func (d *procs) hold(ctx context.Context, st *statement) error {
	var who [3]*proc
	for i := range who {
		p, err := d.peer(st.args[i])
		if err != nil {
			return err
		}
		who[i] = p
	}
	n, _ := strconv.ParseUint(st.args[3], 10, 63) // checked by the parser, as the next
	wait, _ := time.ParseDuration(st.args[4])
	_, err := callOf(who[0].Member, func(c *rpc.Client) (rpc.HoldRow, error) {
		return c.HoldPay(ctx, rpc.HoldOptions{
			Holder: who[1].ID, Payee: who[2].ID, Amount: n, TimeSeconds: uint64(wait / time.Second), MaxPrice: maxPrice,
		})
	})
	return err
}
