package rpc

import (
	"encoding/json"
	"flag"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write testdata anew")

// Server, client and list have the same methods with the same types.
func TestMethodList(t *testing.T) {
	server, client := reflect.TypeFor[*api](), reflect.TypeFor[Client]()
	checkServed(t, Methods, server)
	for _, m := range Methods {
		field, ok := client.FieldByName(m.Name)
		if !ok {
			t.Errorf("%s is not in the client", m.Name)
			continue
		}
		if served := reflect.ValueOf(&api{}).MethodByName(m.Name); served.IsValid() && field.Type != served.Type() {
			t.Errorf("%s: client has %s, server %s", m.Name, field.Type, served.Type())
		}
	}
	if client.NumField() != len(Methods) {
		t.Errorf("%d listed, %d in the client", len(Methods), client.NumField())
	}
	checkServed(t, LotusMethods, reflect.TypeFor[*lotusAPI]())
}

func checkServed(t *testing.T, list []Method, server reflect.Type) {
	t.Helper()
	for _, m := range list {
		if !slices.Contains(AllPerms, m.Perm) || m.Doc == "" {
			t.Errorf("%s has no permission or doc", m.Name)
		}
		fn, ok := server.MethodByName(m.Name)
		if !ok {
			t.Errorf("%s is not served", m.Name)
			continue
		}
		if got := fn.Type.NumIn() - 2; got != len(m.Params) {
			t.Errorf("%s has %d parameters, the list says %d", m.Name, got, len(m.Params))
		}
	}
	if server.NumMethod() != len(list) {
		t.Errorf("%d listed, %d served", len(list), server.NumMethod())
	}
}

func TestCodesAreStable(t *testing.T) {
	seen := map[string]bool{}
	last := Code(0)
	for _, c := range Codes {
		if c.Code <= last || seen[c.Name] || c.Cause == "" || c.Remedy == "" {
			t.Errorf("code %d %s: out of order, twice or without words", c.Code, c.Name)
		}
		last, seen[c.Name] = c.Code, true
	}
	if got := CodeOverThreshold; got != 43 || got.Name() != "over_threshold" {
		t.Errorf("over_threshold is %d", got)
	}
	if CodePaymentPending != 200 || CodePaymentConflict != 201 || CodePaymentFailed != 203 || CodeNoPaymentRoute != 205 ||
		CodeNoPayment != 208 || CodePaymentBound != 211 || CodePaymentInvalid != 212 {
		t.Error("codes of payments moved")
	}
	if CodeNoChain != 300 || CodeShortfall != 314 || CodeCollected != 341 || CodeChainBusy != 349 {
		t.Errorf("codes of channels moved: %d %d %d %d", CodeNoChain, CodeShortfall, CodeCollected, CodeChainBusy)
	}
}

func TestReference(t *testing.T) { golden(t, "../../docs/rpc.md", Reference()) }

// The keys of every row, in order: scripts rely on them.
func TestRowKeys(t *testing.T) {
	var b strings.Builder
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, row := range []any{
		Status{StartedAt: now, Checks: []Check{{}}},
		Identity{},
		Version{},
		PeerRow{},
		ChequeRow{Date: now, AckedAt: &now},
		BalanceRow{LastChequeSent: &LastCheque{}, LastChequeReceived: &LastCheque{}, Services: []ServiceCount{{}}},
		SettleResult{},
		ImportResult{},
		StoreQuery{},
		StorePage{Messages: []Message{{PubsubTopic: "x"}}},
		EventBatch{Events: []Event{{Time: now, Fields: map[string]any{"serial": 1}}}},
		ImportSession{},
		ChannelRow{SettlingTime: &now, Result: &ChannelResult{}, Operations: []MessageRow{{Since: now, Deadline: now}}},
		VoucherRow{VoucherInfo: VoucherInfo{Merges: []VoucherMerge{{}}, Extra: &VoucherExtra{}}},
		VoucherResult{},
		VoucherSpec{},
		VoucherAdded{},
		Spendable{},
		Reservation{},
		Lane{},
		MessageWait{Message: MessageRow{Since: now, Deadline: now}},
		WalletRow{},
		SocketOptions{Min: "-1", Max: "inf", Via: []string{"x"}},
		RedeemOptions{},
		URIOptions{},
		URIRow{Expires: &now},
		BridgeLimits{},
		BridgeTokenRow{},
		BridgeClientRow{},
		PointerRow{},
		FollowOptions{},
		MovedRow{},
		ILPRow{Expires: &now},
		SocketRow{Min: "-inf", Max: "7", Wanted: "inf"},
		InvoiceOptions{},
		InvoiceRow{CreatedAt: now, ExpiresAt: now, PaidAt: &now},
		PartialInvoiceRow{ReceivedAt: now, Deadline: now},
		PayOptions{MaxFee: new(uint64)},
		PaymentRow{CreatedAt: now, DecidedAt: &now, CertainBy: &now},
		SendPartOptions{Via: []string{"x"}},
		PartReply{},
		PartRow{Via: []string{}, CreatedAt: now, DecidedAt: &now, ExpiresAt: now, CertainBy: now},
		SignatureKey{},
		SignatureOptions{},
		SignatureBuyOptions{MaxFee: new(uint64)},
		SignatureRow{CreatedAt: now, ExpiresAt: now, DecidedAt: &now, CertainBy: &now},
		LockRow{ExpiresAt: &now},
		LockState{Channels: []LockChannel{{}}},
		HoldOptions{},
		RoomOptions{},
		RoomRow{},
		BuyOptions{},
		MailRow{DeadlineAt: now, ChangedAt: now},
		HoldQuote{},
		HoldRow{ChangedAt: now, ExpiresAt: &now, ReturnBy: &now, CertainBy: &now},
		PromiseRow{ExpiresAt: now},
		Details{"1", "2", "3", "4", "5", 6, 7, "8", "9", 10},
		Done{},
	} {
		data, err := json.MarshalIndent(row, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(reflect.TypeOf(row).Name() + " " + string(data) + "\n")
	}
	golden(t, "testdata/rows.txt", b.String())
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs from what the code gives; go test ./host/rpc -update, and read the diff", path)
	}
}
