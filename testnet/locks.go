package testnet

import (
	"context"
	"fmt"
	"math/big"
	"strconv"
	"strings"

	"github.com/tallystick/tally/host"
	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/paystream/lock"
	"github.com/tallystick/tally/paystream/payments"
)

// guardLane is that of the guard, behind the slots; from firstMail on are vouchers that
// were bought.
const (
	guardLane = lock.MaxSlots + 1
	firstMail = uint64(1) << 62
)

// lock carries out the statements about what stands under locks.
func (d *procs) lock(ctx context.Context, st *statement) error {
	p, err := d.peer(st.args[0])
	if err != nil {
		return err
	}
	switch st.verb {
	case "claim", "refuse":
		return decideHeld(ctx, p, st.verb == "claim")
	}
	to, err := d.peer(st.args[1])
	if err != nil {
		return err
	}
	n, _ := strconv.ParseUint(st.args[2], 10, 63) // checked by the parser
	switch st.verb {
	case "invoice":
		text, err := invoiceOf(ctx, to, n, false)
		if err == nil {
			d.invoices[invoiceKey(p, to, st.args[2])] = text
		}
		return err
	case "jam":
		via, err := d.peer(st.keys["via"])
		if err != nil {
			return err
		}
		parts, _ := strconv.Atoi(st.args[3]) // checked by the parser
		return jam(ctx, p, to, via, n, parts)
	default:
		return d.near(ctx, p, to, int64(n))
	}
}

// invoiceKey is for an invoice that waits for its parts.
func invoiceKey(p, to *proc, total string) string { return p.Name + " " + to.Name + " " + total }

// decideHeld has p claim what waits for its decision, or let it fail.
func decideHeld(ctx context.Context, p *proc, claim bool) error {
	list, err := callOf(p.Member, func(c *rpc.Client) ([]rpc.InvoiceRow, error) { return c.ListInvoices(ctx, "") })
	if err != nil {
		return err
	}
	found := false
	for i := range list {
		if list[i].Status != payments.InvoiceHeld.String() {
			continue
		}
		found = true
		_, err := callOf(p.Member, func(c *rpc.Client) (rpc.InvoiceRow, error) {
			if claim {
				return c.SettleInvoice(ctx, list[i].PaymentHash, "")
			}
			return c.CancelInvoice(ctx, list[i].PaymentHash)
		})
		if err != nil {
			return err
		}
	}
	if !found {
		return fmt.Errorf("testnet: nothing waits at %s for a decision", p.Name)
	}
	return nil
}

// jam sends parts to invoices that nobody will claim.
func jam(ctx context.Context, p, to, via *proc, units uint64, parts int) error {
	for parts > 0 {
		n := min(parts, payments.MaxParts)
		parts -= n
		text, err := invoiceOf(ctx, to, uint64(n)*units, true)
		if err != nil {
			return err
		}
		for number := range n {
			_, err := callOf(p.Member, func(c *rpc.Client) (rpc.PartReply, error) {
				return c.SendPartialPay(ctx, text, rpc.SendPartOptions{Amount: units, Number: uint64(number), Via: []string{via.ID}})
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// near lets blocks pass until the last lock that a gave b ends in n epochs. What is due
// before is not: the chain jumps there.
func (d *procs) near(ctx context.Context, a, b *proc, n int64) error {
	at, with, role := b, a, lock.Payee
	if b.PID() == 0 {
		at, with, role = a, b, lock.Payer
	}
	rows, err := callOf(at.Member, func(c *rpc.Client) ([]rpc.LockRow, error) { return c.Locks(ctx, with.ID) })
	if err != nil {
		return err
	}
	var end int64
	for i := range rows {
		if rows[i].Role == role.String() {
			end = max(end, rows[i].ExpiresEpoch)
		}
	}
	if end == 0 {
		return fmt.Errorf("testnet: no lock of %s stands at %s", a.Name, b.Name)
	}
	return d.cluster.Control(ctx, func(c *host.DevnetClient) error {
		head, err := c.Mine(ctx, 1)
		if left := end - n - head; err == nil && left > 0 {
			_, err = c.Mine(ctx, int(left))
		}
		return err
	})
}

// slotVouchers are those of the channel from a to b in slots and of mails, as the payee has
// them, or the payer where the payee is down. None where there is no channel.
func (d *procs) slotVouchers(ctx context.Context, a, b *proc) ([]rpc.VoucherRow, error) {
	at, with, direction := b, a, rpc.ChequeReceived
	if b.PID() == 0 {
		at, with, direction = a, b, rpc.ChequeSent
	}
	row, err := at.Tab(ctx, with.ID)
	if err != nil {
		return nil, err
	}
	var slots []rpc.VoucherRow
	for _, l := range row.Links {
		if l.Direction != direction || l.Channel == "" {
			continue
		}
		list, err := callOf(at.Member, func(c *rpc.Client) ([]rpc.VoucherRow, error) { return c.PaychVoucherRecords(ctx, l.Channel) })
		if err != nil {
			return nil, err
		}
		for i := range list {
			if l := list[i].Lane; l > 0 && l <= guardLane || l >= firstMail {
				slots = append(slots, list[i])
			}
		}
	}
	return slots, nil
}

// addSlots counts what the vouchers of the slots say that pays the owner of the tab: of
// each slot the last that needs no secret, or that the chain has. One without a signature
// is a lock under a point.
func (t *Tab) addSlots(rows []rpc.VoucherRow) error {
	type last struct {
		nonce uint64
		units int64
	}
	paid, redeemed := make(map[uint64]last), make(map[uint64]last)
	for i := range rows {
		v := &rows[i]
		if v.Lane == guardLane {
			t.Guarded = t.Guarded || v.Redeemed
			continue
		}
		atto, ok := new(big.Int).SetString(v.Amount, 10)
		if !ok {
			return fmt.Errorf("testnet: amount %q of a voucher", v.Amount)
		}
		units := atto.Quo(atto, big.NewInt(1_000_000_000)).Int64()
		if v.Lane >= firstMail {
			if v.Redeemed {
				t.MailsPaid += units
			}
			continue
		}
		here := last{v.Nonce, units}
		if (v.SecretHash == "" && v.Signature != "" || v.Redeemed) && v.Nonce >= paid[v.Lane].nonce {
			paid[v.Lane] = here
		}
		if v.Redeemed && v.Nonce >= redeemed[v.Lane].nonce {
			redeemed[v.Lane] = here
		}
		if v.Redeemed && v.Origin == "refund" {
			t.CancelsOnChain++
		}
	}
	for _, l := range paid {
		t.SlotsPaid += l.units
	}
	for _, l := range redeemed {
		t.SlotsRedeemed += l.units
	}
	return nil
}

// slotsFull reads of the status in how many channels no slot is free.
func slotsFull(st *rpc.Status) (n int) {
	for _, c := range st.Checks {
		if _, text, ok := strings.Cut(c.Detail, "no free slot in "); ok && c.Name == "locks" {
			if _, err := fmt.Sscanf(text, "%d", &n); err != nil {
				return -1 // no check passes
			}
		}
	}
	return n
}
