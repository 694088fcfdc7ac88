package testnet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/filecoin-project/go-state-types/big"

	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/protocols/storenet"
	"github.com/tallystick/tally/swap"
)

var update = flag.Bool("update", false, "write the generated files of this package anew")

// demoIn runs the demo and wants an empty folder after it.
func demoIn(t *testing.T, opt DemoOptions) (DemoResult, error) {
	t.Helper()
	opt.Dir = t.TempDir()
	res, err := Demo(t.Context(), opt)
	left, rerr := os.ReadDir(opt.Dir)
	if rerr != nil || len(left) != 0 {
		t.Errorf("the demo left %v, %v", left, rerr)
	}
	return res, err
}

func TestDemoShowsBothBooks(t *testing.T) {
	for _, tc := range []struct {
		name                 string
		opt                  DemoOptions
		cheques              uint64
		balance              int64
		serial, cumulativeAt uint64
	}{
		{"mock", DemoOptions{Mode: swap.ModeMock}, 3, 45, 3, 300},
		{"mock, settled", DemoOptions{Mode: swap.ModeMock, SettleRest: true}, 4, 0, 4, 345},
		{"soft", DemoOptions{Mode: swap.ModeSoft}, 0, 345, 0, 0},
		{"soft, settled", DemoOptions{Mode: swap.ModeSoft, SettleRest: true}, 0, 345, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			res, err := demoIn(t, tc.opt)
			if err != nil {
				t.Fatal(err)
			}
			if res.Messages != 345 || res.Pages != 18 || res.ServerCredit != 345 || res.ClientDebit != 345 || !res.BooksAgree {
				t.Errorf("service: %+v", res)
			}
			if res.ChequesSent != tc.cheques || res.ChequesAcked != tc.cheques {
				t.Errorf("%d cheques sent, %d acked, want %d", res.ChequesSent, res.ChequesAcked, tc.cheques)
			}
			if res.Server.Balance != tc.balance || res.Client.Balance != -tc.balance {
				t.Errorf("balances: client %d, server %d", res.Client.Balance, res.Server.Balance)
			}
			if tc.serial == 0 {
				if res.Client.LastCheque != nil || res.Server.LastCheque != nil {
					t.Errorf("cheques: %+v, %+v", res.Client.LastCheque, res.Server.LastCheque)
				}
				return
			}
			want := DemoCheque{tc.serial, tc.cumulativeAt, "acked"}
			if *res.Client.LastCheque != want {
				t.Errorf("client's last cheque %+v, want %+v", *res.Client.LastCheque, want)
			}
			if *res.Server.LastCheque != want {
				t.Errorf("server's last cheque %+v, want %+v", *res.Server.LastCheque, want)
			}
		})
	}
}

// The demo as it ships: cheques carry vouchers, and the chain pays what they say,
// to the attoFIL.
func TestDemoOnAChain(t *testing.T) {
	for _, tc := range []struct {
		name  string
		opt   DemoOptions
		total string
	}{
		{"as it ships", DemoOptions{}, "300000000000"},
		{"settled", DemoOptions{SettleRest: true}, "345000000000"},
		{"less than a threshold", DemoOptions{Input: bytes.NewReader(messageLines(10))}, "0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			res, err := demoIn(t, tc.opt)
			if err != nil {
				t.Fatal(err)
			}
			if !res.BooksAgree || !res.ChainPaid || res.VoucherTotal != tc.total || (res.Channel == "") != (tc.total == "0") {
				t.Errorf("%+v", res)
			}
			before, err := big.FromString(res.PayeeBalanceBefore)
			if err != nil {
				t.Fatal(err)
			}
			after, err := big.FromString(res.PayeeBalanceAfter)
			if err != nil || big.Sub(after, before).String() != tc.total {
				t.Errorf("the balance went from %s to %s, %v", before, after, err)
			}
		})
	}
}

// Scripts read these keys.
func TestDemoResultKeys(t *testing.T) {
	raw, err := json.Marshal(DemoResult{})
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"books_agree", "chain_paid", "channel", "cheques_acked", "cheques_sent", "client", "client_debit", "elapsed_ms", "messages",
		"mode", "pages", "payee_balance_after", "payee_balance_before", "payment_threshold", "server", "server_credit", "voucher_total",
	}
	if keys := slices.Sorted(maps.Keys(got)); !slices.Equal(keys, want) {
		t.Errorf("keys %v", keys)
	}
}

func TestDemoOfAFile(t *testing.T) {
	const n = 1050
	file := filepath.Join(t.TempDir(), "messages.ndjson")
	if err := os.WriteFile(file, messageLines(n), 0o600); err != nil {
		t.Fatal(err)
	}
	if res, err := demoIn(t, DemoOptions{Mode: swap.ModeMock, Input: bytes.NewReader(messageLines(10))}); err != nil || res.Messages != 10 {
		t.Errorf("%+v, %v", res, err)
	}
	var seen []DemoStage
	last := DemoProgress{}
	res, err := demoIn(t, DemoOptions{
		Mode: swap.ModeMock, Messages: file, PageSize: 50,
		Progress: func(p DemoProgress) {
			if p.Stage != last.Stage {
				seen = append(seen, p.Stage)
			} else if p.Done < last.Done {
				t.Errorf("progress went back: %+v after %+v", p, last)
			}
			last = p
		},
	})
	if err != nil || res.Messages != n || res.Pages != n/50 || res.ChequesAcked != n/100 {
		t.Errorf("%+v, %v", res, err)
	}
	if want := []DemoStage{StageStart, StageCheck, StageImport, StageQuery, StageCompare}; !slices.Equal(seen, want) {
		t.Errorf("stages %v", seen)
	}
}

func TestDemoRefuses(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.ndjson")
	if err := os.WriteFile(bad, append(messageLines(3), "{}\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		opt  DemoOptions
		want error
	}{
		"no such file": {DemoOptions{Messages: bad + "x"}, fs.ErrNotExist},
		"bad line":     {DemoOptions{Messages: bad}, storenet.ErrLine},
		"bad policy":   {DemoOptions{Policy: swap.Policy{PaymentThreshold: 100, DisconnectThreshold: 100}}, swap.ErrPolicy},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := demoIn(t, tc.opt); !errors.Is(err, tc.want) {
				t.Errorf("%v, want %v", err, tc.want)
			}
		})
	}
	if _, err := demoIn(t, DemoOptions{PageSize: 101}); err == nil {
		t.Error("a page of 101 was taken")
	}
}

func TestDemoEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dir := t.TempDir()
	_, err := Demo(ctx, DemoOptions{Mode: swap.ModeMock, Dir: dir, Progress: func(p DemoProgress) {
		if p.Stage == StageQuery && p.Done > 100 {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("the demo left %v, %v", left, err)
	}
}

// The shipped file is what sampleLines writes, and every importer takes it.
func TestSample(t *testing.T) {
	want := sampleLines()
	if *update {
		if err := os.WriteFile("sample.ndjson", want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(sample, want) && !*update {
		t.Error("sample.ndjson is not what sampleLines writes: go test ./testnet -run Sample -update")
	}
	lines := bytes.Split(bytes.TrimSpace(want), []byte("\n"))
	if len(lines) != 345 {
		t.Errorf("%d lines", len(lines))
	}
	for i, line := range lines {
		if _, err := rpc.ParseMessage(line); err != nil {
			t.Errorf("line %d: %v", i+1, err)
		}
	}
}

// sampleLines writes the log of a small harbour.
func sampleLines() []byte {
	ships := [...]string{"Alma", "Bryggen", "Corrie", "Dorothea", "Esker", "Fulmar", "Grisella", "Hallsand"}
	const at = 1_767_225_600_000_000_000 // 2026-01-01
	var b bytes.Buffer
	for i := range 345 {
		ship, other := ships[(5*i+i/8)%8], ships[(3*i+1+i/8)%8]
		if ship == other {
			other = ships[(3*i+2+i/8)%8]
		}
		text := [...]string{
			"asks for a berth", fmt.Sprintf("is fast at berth %d", 1+i%6), "takes on water",
			fmt.Sprintf("lands %d barrels of herring", 3+37*i%60), fmt.Sprintf("lands %d bales of wool", 3+37*i%60),
			"clears for the north", "is sighted off the mole", "lends two hands to the " + other,
		}[(7*i+i/5)%8]
		payload := fmt.Sprintf(`{"n":%d,"ship":%q,"text":%q}`, i+1, ship, ship+" "+text)
		writeLine(&b, "/tally-demo/1/harbour-log/json", payload, at+int64(i)*97_000_000_000)
	}
	return b.Bytes()
}

func writeLine(b *bytes.Buffer, topic, payload string, at int64) {
	line, err := json.Marshal(rpc.Message{ContentTopic: topic, Payload: []byte(payload), Timestamp: at})
	if err != nil {
		panic(err)
	}
	b.Write(append(line, '\n'))
}

// messageLines is a file of n messages.
func messageLines(n int) []byte {
	var b bytes.Buffer
	for i := range n {
		writeLine(&b, "/tally/1/test/proto", fmt.Sprintf("message %d", i), 1_700_000_000_000_000_000+int64(i))
	}
	return b.Bytes()
}

// TestDemoLarge is the demo of a file as large as a script may give it; it tells
// the rate.
func TestDemoLarge(t *testing.T) {
	n := 50_000
	if testing.Short() || raceEnabled {
		n = 5_000
	}
	file := filepath.Join(t.TempDir(), "messages.ndjson")
	if err := os.WriteFile(file, messageLines(n), 0o600); err != nil {
		t.Fatal(err)
	}
	res, err := demoIn(t, DemoOptions{Mode: swap.ModeMock, Messages: file})
	if err != nil || res.Messages != n || res.ChequesAcked != uint64(n/100) {
		t.Fatalf("%+v, %v", res, err)
	}
	t.Logf("%d messages, %d cheques in %d ms: %d messages/s", n, res.ChequesAcked, res.ElapsedMS, int64(n)*1000/res.ElapsedMS)
}
