package testnet

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/tallystick/tally/host/rpc"
)

// maxPrice is what a hold or a sale of a scenario may cost.
const maxPrice = 1000

// mail carries out the statements about vouchers that are bought and mailed.
func (d *procs) mail(ctx context.Context, st *statement) error {
	who := make([]*proc, min(len(st.args), 3))
	for i := range who {
		p, err := d.peer(st.args[i])
		if err != nil {
			return err
		}
		who[i] = p
	}
	if st.verb == "take" { // by hand: the payer may be away
		text := d.mails[way2{who[1].Name, who[0].Name}]
		if text == "" {
			return fmt.Errorf("testnet: %s has bought nothing for %s", who[1].Name, who[0].Name)
		}
		_, err := callOf(who[0].Member, func(c *rpc.Client) (rpc.MailRow, error) { return c.HoldTake(ctx, text) })
		return err
	}
	n, _ := strconv.ParseUint(st.args[3], 10, 63) // checked by the parser, as the next
	wait, _ := time.ParseDuration(st.args[4])
	if st.verb == "room" {
		_, err := callOf(who[0].Member, func(c *rpc.Client) (rpc.RoomRow, error) {
			return c.HoldRoom(ctx, rpc.RoomOptions{Holder: who[1].ID, Payer: who[2].ID, Room: n, TimeSeconds: uint64(wait / time.Second)})
		})
		return err
	}
	row, err := buy(ctx, who[0], rpc.BuyOptions{
		Holder: who[1].ID, Payee: who[2].ID, Amount: n, TimeSeconds: uint64(wait / time.Second), MaxPrice: maxPrice,
	})
	if err == nil {
		d.mails[way2{who[0].Name, who[2].Name}] = row.Mail
	}
	return err
}

// buy buys a voucher, once the chain shows the guard of the payee's room.
func buy(ctx context.Context, p *proc, o rpc.BuyOptions) (rpc.MailRow, error) {
	client, err := p.RPC()
	if err != nil {
		return rpc.MailRow{}, err
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		row, err := client.HoldBuy(ctx, o)
		if err == nil {
			return row, nil
		}
		if e := rpc.Explain(err); e.Code != rpc.CodeHoldGuard {
			return row, fmt.Errorf("%s: %w", p.Name, e)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return row, fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

// addMails counts the mails of a peer.
func (s *Stats) addMails(ctx context.Context, p *proc) error {
	list, err := callOf(p.Member, func(c *rpc.Client) ([]rpc.MailRow, error) { return c.HoldMails(ctx, "") })
	s.MailRows = make(map[string]int)
	for i := range list {
		s.MailRows[list[i].Role+" "+list[i].Status]++
	}
	return err
}
