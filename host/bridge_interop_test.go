//go:build interop

package host

import (
	"context"
	"encoding/hex"
	"errors"
	"testing"
	"time"

	"github.com/tallystick/tally/host/repo"
	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/interop/js/jsilp"
	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/compat/bridge"
)

// TestInteropBridge runs stock JavaScript clients (ilp-plugin-btp, ilp-protocol-psk2,
// ilp-protocol-stream) as clients of two daemons that are neighbours: they pay each
// other through both, and pay the endpoints of the other daemon, by STREAM (suite 2)
// and by PSK2 (suite 3). It needs node, npm and the npm registry.
func TestInteropBridge(t *testing.T) {
	dir := jsilp.Install(t)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	change := func(c *repo.Config) {
		c.BTPListen = "127.0.0.1:0"
		c.BridgeCredit, c.BridgeDebt = 1_000_000, 1_000_000
		c.PaymentThreshold, c.DisconnectThreshold, c.MaxPeerThreshold = 1_000_000, 1_250_000, 2_000_000
		c.MaxDebt, c.MaxExposure, c.MaxExposureTotal, c.StrangersExposure = 10_000_000, 10_000_000, 100_000_000, 100_000_000
		c.FeeBase = 1
	}
	a, stopA := startDaemon(t, newRepo(t), change)
	defer stopA()
	b, stopB := startDaemon(t, newRepo(t), change)
	defer stopB()
	if _, err := a.PeerConnect(ctx, addrInfo(t, b)); err != nil {
		t.Fatal(err)
	}
	if err := a.node.WaitNeighbour(ctx, b.host.ID()); err != nil {
		t.Fatal(err)
	}
	join := func(d *Daemon, name string) string {
		t.Helper()
		api, err := d.Bridge()
		if err != nil {
			t.Fatal(err)
		}
		row, err := api.AddClient(ctx, name, nil)
		if err != nil || row.URL == "" {
			t.Fatal(row, err)
		}
		return row.URL
	}
	alice, bob := join(a, "alice"), join(b, "bob")
	// moved checks what a client's account and the tab of the two daemons say since the
	// last call, and settles the account.
	var tab int64
	moved := func(d *Daemon, name string, owes int64) {
		t.Helper()
		c, err := d.node.bridge.Client(name)
		if err != nil || int64(c.Balance()) != owes {
			t.Fatalf("%s owes %d, want %d: %v", name, c.Balance(), owes, err)
		}
		if owes > 0 {
			_, err = d.node.bridge.Paid(name, c.Balance().Owed(), 0)
		} else {
			_, err = d.node.bridge.Paid(name, 0, c.Balance().Debt())
		}
		if err = errors.Join(err, d.node.bridge.Check()); err != nil {
			t.Fatal(err)
		}
	}
	served := func(want int64) {
		t.Helper()
		row, err := b.node.book.Row(a.host.ID())
		if err != nil || int64(row.Served)-int64(row.Consumed)-tab != want {
			t.Fatalf("tab moved by %d, want %d: %v", int64(row.Served)-int64(row.Consumed)-tab, want, err)
		}
		tab += want
	}

	t.Run("JavaScript pays JavaScript, STREAM", func(t *testing.T) {
		payee := jsilp.Start(t, dir, bob, "stream-receive", "10000000")
		at := payee.Next()
		if at["asset"] != "karma" || at["scale"] != 9.0 {
			t.Fatalf("ILDCP: %v", at)
		}
		sent := jsilp.Start(t, dir, alice, "stream-send", at["address"].(string), at["secret"].(string), "300000").End()
		got := payee.Stop()
		t.Log("payer", sent, "payee", got)
		// Packets of one unit are too small for the fees; each that was sent paid two.
		if sent["sent"] != "300000" || sent["delivered"] != got["received"] {
			t.Fatal(sent, got)
		}
		c, err := b.node.bridge.Client("bob")
		if err != nil || c.Balance() >= -299_000 {
			t.Fatal(c, err)
		}
		served((300_000-int64(c.Balance().Debt()))/2 + int64(c.Balance().Debt()))
		moved(a, "alice", 300_000)
		moved(b, "bob", int64(c.Balance()))
	})

	t.Run("JavaScript pays JavaScript, PSK2", func(t *testing.T) {
		payee := jsilp.Start(t, dir, bob, "psk2-receive")
		at := payee.Next()
		sent := jsilp.Start(t, dir, alice, "psk2-send", at["address"].(string), at["secret"].(string), "1000", "5", "998").End()
		got := payee.Stop()
		t.Log("payer", sent, "payee", got)
		if sent["delivered"] != "4990" || sent["answer"] != "got hi" || got["received"] != "4990" || sent["probe"] != "998" {
			t.Fatal(sent, got)
		}
		moved(a, "alice", 5000)
		moved(b, "bob", -4990)
		served(4995)
	})

	grant := paystream.Grant{Use: paystream.UsePush, Max: paystream.At(500_000)}
	t.Run("JavaScript pays our STREAM endpoint", func(t *testing.T) {
		to, err := b.node.bridge.Issue(bridge.KindStream, grant)
		if err != nil {
			t.Fatal(err)
		}
		sent := jsilp.Start(t, dir, alice, "stream-send", string(to.Address), hex.EncodeToString(to.Secret[:]), "200000").End()
		t.Log("payer", sent)
		if sent["sent"] != "200000" || sent["asset"] != "karma" || sent["scale"] != 9.0 {
			t.Fatal(sent)
		}
		moved(a, "alice", 200_000)
	})

	t.Run("JavaScript pays our PSK2 endpoint", func(t *testing.T) {
		row, err := b.node.book.Row(a.host.ID())
		if err != nil {
			t.Fatal(err)
		}
		tab = int64(row.Served) - int64(row.Consumed)
		to, err := b.node.bridge.Issue(bridge.KindPSK2, grant)
		if err != nil {
			t.Fatal(err)
		}
		sent := jsilp.Start(t, dir, alice, "psk2-send", string(to.Address), hex.EncodeToString(to.Secret[:]), "1000", "7", "999").End()
		t.Log("payer", sent)
		if sent["delivered"] != "6993" || sent["too_little"] != "F99" || sent["arrived"] != "999" || sent["probe_code"] != "F05" {
			t.Fatal(sent)
		}
		moved(a, "alice", 7000)
		served(6993)
	})

	t.Run("an account that is full", func(t *testing.T) {
		limits := rpc.BridgeLimits{Credit: 600, Debt: 0}
		api, err := a.Bridge()
		if err != nil {
			t.Fatal(err)
		}
		if _, err = api.SetLimits(ctx, "alice", limits); err != nil {
			t.Fatal(err)
		}
		to, err := b.node.bridge.Issue(bridge.KindStream, grant)
		if err != nil {
			t.Fatal(err)
		}
		sent := jsilp.Start(t, dir, alice, "stream-send", string(to.Address), hex.EncodeToString(to.Secret[:]), "600").End()
		if sent["sent"] != "600" {
			t.Fatal(sent)
		}
		moved(a, "alice", 600)
	})
}
