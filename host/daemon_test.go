package host

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/host/repo"
	"github.com/tallystick/tally/host/rpc"
)

func startDaemon(t *testing.T, dir string, change func(*repo.Config)) (*Daemon, func()) {
	t.Helper()
	r, err := repo.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	cfg := r.Config()
	cfg.Listen = []string{"/ip4/127.0.0.1/tcp/0"}
	if change != nil {
		change(&cfg)
	}
	if err := r.SetConfig(cfg); err != nil {
		t.Fatal(err)
	}
	d, err := Start(context.Background(), r, StartConfig{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(errors.Join(err, r.Close()))
	}
	return d, func() {
		if err := errors.Join(d.Close(context.Background()), r.Close()); err != nil {
			t.Error(err)
		}
	}
}

func newRepo(t *testing.T) string {
	t.Helper()
	dir := t.TempDir() + "/repo"
	if _, err := repo.Init(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func addrInfo(t *testing.T, d *Daemon) peer.AddrInfo {
	t.Helper()
	info, err := rpc.ParseAddr(d.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func code(err error) rpc.Code {
	var e *rpc.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return 0
}

func TestDaemonsServeQueryAndRemember(t *testing.T) {
	dirA, dirB := newRepo(t), newRepo(t)
	a, stopA := startDaemon(t, dirA, nil)
	b, stopB := startDaemon(t, dirB, nil)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	messages := make([]rpc.Message, 45)
	for i := range messages {
		messages[i] = rpc.Message{ContentTopic: "/t/1/x/proto", Payload: []byte{byte(i)}, Timestamp: int64(i + 1)}
	}
	res, err := b.StoreImport(ctx, messages)
	if err != nil || res.Imported != 45 || res.Stored != 45 {
		t.Fatalf("import: %+v, %v", res, err)
	}
	row, err := a.PeerConnect(ctx, addrInfo(t, b))
	if err != nil || row.SwapProtocol != "/tally/swap/1.0.0" || row.Mode != "mock" {
		t.Fatalf("connect: %+v, %v", row, err)
	}
	got, cursor := 0, ""
	for pages := 0; pages == 0 || cursor != ""; pages++ {
		page, err := a.StoreQuery(ctx, b.host.ID(), rpc.StoreQuery{PageSize: 20, Cursor: cursor})
		if err != nil || pages > 3 {
			t.Fatalf("page %d: %v", pages, err)
		}
		got, cursor = got+len(page.Messages), page.Cursor
		if page.Balance != -int64(got) {
			t.Fatalf("balance %d after %d messages", page.Balance, got)
		}
	}
	if got != 45 {
		t.Fatalf("got %d messages", got)
	}
	settled, err := a.Settle(ctx, b.host.ID())
	if err != nil || settled.Paid != 45 || settled.Balance != 0 || settled.State != "acked" {
		t.Fatalf("settle: %+v, %v", settled, err)
	}
	if _, err := a.Settle(ctx, b.host.ID()); code(err) != rpc.CodeNothingOwed {
		t.Fatalf("second settle: %v", err)
	}
	ahead, err := a.Prepay(ctx, b.host.ID(), 500)
	if err != nil || ahead.Paid != 100 || ahead.Balance != 100 { // one threshold of karma ahead, and no more
		t.Fatalf("prepay: %+v, %v", ahead, err)
	}
	batch, err := a.EventsSince(ctx, 0)
	if err != nil || len(batch.Events) < 3 {
		t.Fatalf("events: %+v, %v", batch, err)
	}
	idA := a.host.ID()
	stopA()
	stopB()

	b, stopB = startDaemon(t, dirB, nil)
	defer stopB()
	rows, err := b.Balances(ctx, idA)
	if err != nil || len(rows) != 1 || rows[0].Served != 45 || rows[0].Balance != -100 || rows[0].Connected ||
		rows[0].LastChequeReceived == nil || rows[0].LastChequeReceived.Cumulative != 545 {
		t.Fatalf("after the restart: %+v, %v", rows, err)
	}
	if got := rows[0].Services; len(got) != 1 || got[0].Service != "store" || got[0].Served != 45 {
		t.Fatalf("services after the restart: %+v", got)
	}
	cheques, err := b.Cheques(ctx, "")
	if err != nil || len(cheques) != 1 || cheques[0].Direction != rpc.ChequeReceived || cheques[0].Credited != 145 {
		t.Fatalf("cheques: %+v, %v", cheques, err)
	}
}

func TestTheOperatorsBlockHoldsOverARestart(t *testing.T) {
	dirA, dirB := newRepo(t), newRepo(t)
	a, stopA := startDaemon(t, dirA, nil)
	b, stopB := startDaemon(t, dirB, nil)
	defer stopB()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	other := addrInfo(t, b)
	if err := a.PeerBlock(ctx, other.ID); err != nil {
		t.Fatal(err)
	}
	stopA()
	a, stopA = startDaemon(t, dirA, nil)
	defer stopA()
	if _, err := a.PeerConnect(ctx, other); code(err) != rpc.CodeBlocked {
		t.Fatalf("connect to a blocked peer: %v", err)
	}
	rows, err := a.Peers(ctx)
	if err != nil || len(rows) != 1 || !rows[0].Blocked || rows[0].BlockedUntil != nil {
		t.Fatalf("peers: %+v, %v", rows, err)
	}
	if err := a.PeerUnblock(ctx, other.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := a.PeerConnect(ctx, other); err != nil {
		t.Fatal(err)
	}
}

func TestErrorsHaveTheirCodes(t *testing.T) {
	a, stop := startDaemon(t, newRepo(t), nil)
	defer stop()
	ctx := context.Background()
	stranger := newHost(t).ID()
	self := addrInfo(t, a)
	for _, c := range []struct {
		name string
		call func() error
		want rpc.Code
	}{
		{"balance of nobody", func() error { _, err := a.Balances(ctx, stranger); return err }, rpc.CodeUnknownPeer},
		{"settle with nobody", func() error { _, err := a.Settle(ctx, stranger); return err }, rpc.CodeNothingOwed},
		{"resolve with nobody", func() error { _, err := a.PeerResolve(ctx, stranger); return err }, rpc.CodeNotConnected},
		{"connect to ourselves", func() error { _, err := a.PeerConnect(ctx, self); return err }, rpc.CodeBadAddress},
		{"bad cursor", func() error {
			_, err := a.StoreQuery(ctx, stranger, rpc.StoreQuery{PageSize: 20, Cursor: "zzzz"})
			return err
		}, rpc.CodeBadArgument},
		{"bad message", func() error {
			_, err := a.StoreImport(ctx, []rpc.Message{{ContentTopic: "/t/1/x/proto", Timestamp: 1}, {}})
			return err
		}, rpc.CodeBadMessage},
	} {
		if err := c.call(); code(err) != c.want {
			t.Errorf("%s: %v, want code %d", c.name, err, c.want)
		}
	}
}

func TestMonitoringTellsNoPeers(t *testing.T) {
	d, stop := startDaemon(t, newRepo(t), func(c *repo.Config) { c.HTTP = "127.0.0.1:0" })
	defer stop()
	w := httptest.NewRecorder()
	d.http.Handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
	text := w.Body.String()
	for _, name := range []string{"tally_exposure_units", "tally_cheques_sent_total", "tally_store_failed 0", "go_goroutines", "tally_sockets 0", "tally_packet_sessions 0", "tally_socket_sent_units_total 0"} {
		if !strings.Contains(text, name) {
			t.Errorf("no %s in /metrics", name)
		}
	}
	if strings.Contains(text, d.host.ID().String()) || strings.Contains(text, "peer=") {
		t.Error("/metrics names a peer")
	}
}
