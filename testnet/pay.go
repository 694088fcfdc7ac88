package testnet

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/paych/adaptor"
)

// paySeconds bound the payments of a scenario where the line does not say.
const paySeconds = 30

// pay carries out the statements about payments in parts.
func (d *procs) pay(ctx context.Context, p, to *proc, st *statement) error {
	units, _ := strconv.ParseUint(st.args[2], 10, 64) // checked by the parser
	if st.verb == "part" {
		return d.part(ctx, p, to, st, units)
	}
	seconds := uint64(paySeconds)
	if text := st.keys["timeout"]; text != "" {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			return err
		}
		seconds = n
	}
	if st.verb == "pay" {
		return payWhole(ctx, p, to, units, seconds)
	}
	hold, sale := st.keys["hold"] != "", st.keys["signature"] != ""
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		left, why, err := d.begin(ctx, p, to, units, seconds, hold, sale)
		if left || err != nil {
			return err
		}
		select { // no way was known: try again
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: no part left: %w", ctx.Err(), why)
		}
	}
}

// begin pays in the background, and returns when a part has left, or with false and why
// where the call ended before one did.
func (d *procs) begin(ctx context.Context, p, to *proc, units, seconds uint64, hold, sale bool) (left bool, why, err error) {
	text, hash, err := askedOf(ctx, to, units, hold, sale)
	if err != nil {
		return false, nil, err
	}
	client, err := p.RPC()
	if err != nil {
		return false, nil, err
	}
	calling := context.WithoutCancel(ctx) // longer than the statement
	b := &begun{from: p, to: to, units: units, hash: hash, ended: make(chan struct{})}
	d.pays.Go(func() { // ends with the call, or with the peer
		if sale {
			_, b.err = client.SignatureBuy(calling, text, rpc.SignatureBuyOptions{TimeoutSeconds: seconds})
		} else {
			_, b.err = client.Pay(calling, text, rpc.PayOptions{TimeoutSeconds: seconds})
		}
		close(b.ended)
	})
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for last := false; ; {
		parts, err := client.ListPartialPayments(ctx, hash)
		switch {
		case err == nil && len(parts) > 0:
			d.begun = append(d.begun, b)
			return true, nil, nil
		case err != nil && rpc.Explain(err).Code != rpc.CodeNoPayment:
			return false, nil, err
		case last:
			return false, b.err, nil
		}
		select {
		case <-tick.C:
		case <-b.ended:
			last = true
		case <-ctx.Done():
			return false, nil, ctx.Err()
		}
	}
}

// payWhole pays and waits. A neighbour that was met just now may not be one for the
// other side yet: where no way is known, it asks for another invoice and tries again.
func payWhole(ctx context.Context, p, to *proc, units, seconds uint64) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for try := 0; ; try++ {
		text, err := invoiceOf(ctx, to, units, false)
		if err != nil {
			return err
		}
		hash, err := rpc.InvoiceHash(text)
		if err != nil {
			return err
		}
		_, err = callOf(p.Member, func(c *rpc.Client) (rpc.PaymentRow, error) {
			row, err := c.Pay(ctx, text, rpc.PayOptions{TimeoutSeconds: seconds})
			for err != nil && rpc.Explain(err).Code == rpc.CodePaymentPending && ctx.Err() == nil {
				row, err = c.WaitPayment(ctx, hash, int((10 * time.Second).Milliseconds()))
			}
			return row, err
		})
		const tries = 10
		if err == nil || try == tries || rpc.Explain(err).Code != rpc.CodeNoPaymentRoute {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// askedOf is the text of an invoice, or of an offer of a signature, and the hash that its
// payment has.
func askedOf(ctx context.Context, p *proc, units uint64, hold, sale bool) (text, hash string, err error) {
	if !sale {
		if text, err = invoiceOf(ctx, p, units, hold); err == nil {
			hash, err = rpc.InvoiceHash(text)
		}
		return text, hash, err
	}
	row, err := callOf(p.Member, func(c *rpc.Client) (rpc.SignatureRow, error) {
		return c.SignatureSell(ctx, rpc.SignatureOptions{Message: fmt.Sprintf("%d for %s", units, p.Name), Amount: units, Hold: hold})
	})
	if err != nil {
		return "", "", err
	}
	return row.Offer, row.Point[2:], nil
}

// addSignatures counts those that a peer bought, and verifies each.
func (s *Stats) addSignatures(ctx context.Context, p *proc) error {
	rows, err := callOf(p.Member, func(c *rpc.Client) ([]rpc.SignatureRow, error) { return c.SignatureList(ctx, "buyer") })
	for i := range rows {
		if rows[i].Status != "bought" {
			continue
		}
		key, errK := hex.DecodeString(rows[i].Key)
		digest, errD := hex.DecodeString(rows[i].Digest)
		sig, errS := hex.DecodeString(rows[i].Signature)
		if errors.Join(errK, errD, errS) != nil || len(key) != 32 || len(digest) != 32 || len(sig) != 64 ||
			!adaptor.VerifySchnorr([32]byte(key), [32]byte(digest), [64]byte(sig)) {
			return fmt.Errorf("testnet: %s has bought %q, which is no signature by %s over %s", p.Name, rows[i].Signature, rows[i].Key, rows[i].Digest)
		}
		s.Signatures++
	}
	return err
}

func invoiceOf(ctx context.Context, p *proc, units uint64, hold bool) (string, error) {
	row, err := callOf(p.Member, func(c *rpc.Client) (rpc.InvoiceRow, error) {
		return c.Invoice(ctx, rpc.InvoiceOptions{Amount: units, Hold: hold})
	})
	return row.Invoice, err
}

// part sends one part, of the invoice that is made at its first.
func (d *procs) part(ctx context.Context, p, to *proc, st *statement, units uint64) error {
	via, err := d.peer(st.keys["via"])
	if err != nil {
		return err
	}
	total, err := strconv.ParseUint(st.keys["total"], 10, 63)
	if err != nil {
		return err
	}
	number, err := strconv.ParseUint(st.keys["number"], 10, 63)
	if err != nil {
		return err
	}
	key := invoiceKey(p, to, st.keys["total"])
	text := d.invoices[key]
	if text == "" {
		if text, err = invoiceOf(ctx, to, total, false); err != nil {
			return err
		}
		d.invoices[key] = text
	}
	_, err = callOf(p.Member, func(c *rpc.Client) (rpc.PartReply, error) {
		return c.SendPartialPay(ctx, text, rpc.SendPartOptions{Amount: units, Number: number, Via: []string{via.ID}})
	})
	return err
}

// arrived is what p paid to a peer in parts.
func arrived(ctx context.Context, p *proc, to string) (sum int64, err error) {
	list, err := callOf(p.Member, func(c *rpc.Client) ([]rpc.PaymentRow, error) { return c.ListPayments(ctx) })
	for i := range list {
		if list[i].Payee == to {
			sum += int64(list[i].Arrived)
		}
	}
	return sum, err
}

// paySkew is what p paid to another in parts, less what the other took of anybody.
func paySkew(ctx context.Context, arrived int64, to *proc) int64 {
	var s Stats
	if err := s.addPayments(ctx, to); err != nil {
		return math.MinInt64 // nobody can say: no check passes
	}
	return arrived - s.Taken
}

// addPayments counts the payments of a peer.
func (s *Stats) addPayments(ctx context.Context, p *proc) error {
	pays, err := callOf(p.Member, func(c *rpc.Client) ([]rpc.PaymentRow, error) { return c.ListPayments(ctx) })
	for i := range pays {
		switch pays[i].Status {
		case "pending":
			s.PayPending++
		case "complete":
			s.PayComplete++
		case "failed":
			s.PayFailed++
		}
	}
	invoices, err2 := callOf(p.Member, func(c *rpc.Client) ([]rpc.InvoiceRow, error) { return c.ListInvoices(ctx, "") })
	for i := range invoices {
		s.Taken += int64(invoices[i].Received)
		s.PartsLost += int64(invoices[i].Lost)
		s.PartsWaiting += invoices[i].Parts
	}
	return errors.Join(err, err2, s.addSignatures(ctx, p))
}
