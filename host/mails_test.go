package host_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/tallystick/tally/host"
	"github.com/tallystick/tally/paystream/hold"
)

// The second form over the channels that the tabs have opened: the payee promises room of
// one and goes, the payer buys a voucher for more than its tab carries, so that what pays
// for it goes under a lock, and the payee has it when it is back.
func TestMailOverTheTabsChannels(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	n := newLockNetWith(ctx, t, 3, 20_000, func(i int, c *host.Config) {
		c.Holds = &host.HoldsConfig{Policy: hold.Policy{Offer: i == 1, PriceBase: 2}}
	})
	n.open(ctx)
	payer, holder, payee := n.nodes[0], n.nodes[1], n.nodes[2]
	st, err := payee.held().Room(ctx, hold.RoomRequest{Holder: holder.id(), Payer: payer.id(), Room: 2000, Time: 20 * time.Minute})
	if err != nil || !st.Given || st.Total != 150 {
		t.Fatalf("%+v %v", st, err)
	}
	order := hold.BuyRequest{Holder: holder.id(), Payee: payee.id(), Amount: 1500, Time: 10 * time.Minute, MaxPrice: 2}
	var got hold.Bought
	away := false
	n.until(ctx, "the guard", func() bool {
		if got, err = payer.held().Buy(ctx, order); errors.Is(err, hold.ErrNoGuard) {
			if !away {
				away = true
				payee.leave() // the guard is on its way
			}
			return false
		}
		return true
	})
	if err != nil || got.Status != hold.BuyBought && got.Status != hold.BuyMailed || got.Price != 2 {
		t.Fatalf("%+v %v", got, err)
	}
	n.until(ctx, "the lock that paid for it", func() bool { return n.paid(ctx, 0) == 1500 })
	if !away {
		payee.leave() // the chain was faster than the first look
	}
	payee.back()
	payee.meet(ctx, holder)
	payee.meet(ctx, payer)
	n.until(ctx, "the mail", func() bool {
		list, err := payee.held().Mails(ctx)
		return err == nil && len(list) == 1 && list[0].ID == got.ID && list[0].Amount == 1500
	})
	n.until(ctx, "the payee's word", func() bool {
		list, err := payer.held().Bought(ctx)
		return err == nil && len(list) == 1 && list[0].Status == hold.BuyMailed
	})
}
