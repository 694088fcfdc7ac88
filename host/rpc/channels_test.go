package rpc

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/exitcode"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/paychtest"
)

func atto(n int64) big.Int { return big.NewInt(n) }

func codeOf(err error) Code {
	if err == nil {
		return 0
	}
	return Explain(err).Code
}

// town is a chain that moves by Mine alone, and a payer and a payee with real
// managers behind real servers.
type town struct {
	t            *testing.T
	chain        *paychtest.Chain
	payer, payee *townNode
	all          Secret
	tick         *time.Ticker // between two looks
}

type townNode struct {
	*Client
	channels *Channels
	key      address.Address
	addr     string
}

func newTown(t *testing.T) *town {
	t.Helper()
	w := &town{t: t, chain: paychtest.NewChain(paychtest.DefaultParams()), all: issueAll(t), tick: time.NewTicker(time.Millisecond)}
	t.Cleanup(w.tick.Stop)
	w.payer, w.payee = w.node("payer"), w.node("payee")
	return w
}

func issueAll(t *testing.T) Secret { return token(t, AllPerms...) }

func (w *town) node(name string) *townNode {
	w.t.Helper()
	wallet := paychtest.NewWallet(name)
	n := &townNode{key: wallet.MustNew()}
	w.chain.Fund(n.key, 1_000_000)
	store := durabletest.NewMem()
	m, err := paych.Open(context.Background(), store, w.chain, wallet, paych.Config{NoAutoCollect: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := errors.Join(m.Close(), store.Close()); err != nil {
			w.t.Error(err)
		}
	})
	n.channels = &Channels{Manager: m, Wallet: wallet, Chain: w.chain}
	node := newFakeNode()
	node.channels = n.channels
	n.addr = serve(w.t, node, Config{})
	n.Client = dial(w.t, n.addr, w.all)
	return n
}

// receipt mines until a message has its receipt.
func (w *town) receipt(n *townNode, id string) MessageRow {
	w.t.Helper()
	w.chain.Mine(3)
	m, err := n.WaitReady(w.t.Context(), id, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

func (w *town) mined(c *lotusClient, id cid.Cid) {
	w.t.Helper()
	w.chain.Mine(3)
	if _, err := c.PaychGetWaitReady(w.t.Context(), id); err != nil {
		w.t.Fatal(err)
	}
}

func (w *town) open(amount int64) address.Address {
	w.t.Helper()
	m, err := w.payer.PaychCreate(w.t.Context(), w.payer.key.String(), w.payee.key.String(), fmt.Sprint(amount), "")
	if err != nil {
		w.t.Fatal(err)
	}
	ch, err := address.NewFromString(w.receipt(w.payer, m.Cid).Channel)
	if err != nil {
		w.t.Fatal(err)
	}
	return ch
}

// untilState looks at a channel, and mines, until ok is content.
func (w *town) untilState(n *townNode, ch address.Address, ok func(ChannelRow) bool) ChannelRow {
	w.t.Helper()
	for range 5000 {
		row, err := n.PaychStatus(w.t.Context(), ch.String())
		if err != nil {
			w.t.Fatal(err)
		}
		if ok(row) {
			return row
		}
		if len(row.Operations) > 0 || row.State == "collected" {
			w.chain.Mine(1)
		}
		<-w.tick.C
	}
	w.t.Fatal("the channel does not get there")
	return ChannelRow{}
}

// untilSubmitted mines until the payee has put its vouchers on the chain by
// itself, after Settle.
func (w *town) untilSubmitted(ch address.Address, toSend int64) {
	w.t.Helper()
	for range 5000 {
		st, _, err := w.chain.Channel(w.t.Context(), ch, 0)
		if err != nil {
			w.t.Fatal(err)
		}
		if st.ToSend.Int64() == toSend {
			return
		}
		if list, err := w.payee.PaychPending(w.t.Context()); err != nil || len(list) > 0 {
			w.chain.Mine(1)
		}
		<-w.tick.C
	}
	w.t.Fatal("the payee does not submit its vouchers")
}

// pending waits until so many messages are under way.
func (w *town) pending(n *townNode, want int) {
	w.t.Helper()
	for range 5000 {
		if list, err := n.PaychPending(w.t.Context()); err != nil || len(list) == want {
			return
		}
		<-w.tick.C
	}
	w.t.Fatalf("not %d messages under way", want)
}

func (w *town) lotusFunds(c *lotusClient, ch address.Address, confirmed, free, pending int64) {
	w.t.Helper()
	f, err := c.PaychAvailableFunds(w.t.Context(), ch)
	if err != nil {
		w.t.Fatal(err)
	}
	if f.Channel == nil || *f.Channel != ch || f.ConfirmedAmt.Int64() != confirmed || f.NonReservedAmt.Int64() != free || f.PendingAmt.Int64() != pending {
		w.t.Errorf("confirmed %v, free %v, pending %v; want %d, %d, %d", f.ConfirmedAmt, f.NonReservedAmt, f.PendingAmt, confirmed, free, pending)
	}
}

// state is all that the RPC shows of a channel, without the head of the chain.
func (w *town) state(n *townNode, ch address.Address) string {
	w.t.Helper()
	row, err := n.PaychStatus(w.t.Context(), ch.String())
	if err != nil {
		w.t.Fatal(err)
	}
	row.Epoch, row.SettlingLeft, row.SettlingTime = 0, 0, nil
	vouchers, err := n.PaychVoucherRecords(w.t.Context(), ch.String())
	if err != nil {
		w.t.Fatal(err)
	}
	data, err := json.MarshalIndent([]any{row, vouchers}, "", " ")
	if err != nil {
		w.t.Fatal(err)
	}
	return string(data)
}

func (w *town) voucher(ch address.Address, amount string, lane uint64) string {
	w.t.Helper()
	r, err := w.payer.PaychVoucherCreate(w.t.Context(), ch.String(), amount, lane)
	if err != nil || r.Voucher == nil {
		w.t.Fatal(r, err)
	}
	return r.Voucher.Voucher
}

// forged makes a voucher that no manager makes, signed by the key of n.
func (w *town) forged(n *townNode, sv paych.SignedVoucher) string {
	w.t.Helper()
	signed, err := paych.Sign(w.t.Context(), n.channels.Wallet, n.key, &sv)
	if err != nil {
		w.t.Fatal(err)
	}
	text, err := paych.FormatVoucher(signed)
	if err != nil {
		w.t.Fatal(err)
	}
	return text
}

// Every error that package paych exports has a code of its own, crosses the wire
// with it, and is on the other side what errors.Is asks for.
func TestEveryErrorOfChannelsHasACode(t *testing.T) {
	exported := map[string]bool{}
	files, err := filepath.Glob("../../paych/*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(gotoken.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			gen, ok := decl.(*ast.GenDecl)
			if !ok || gen.Tok != gotoken.VAR {
				continue
			}
			for _, spec := range gen.Specs {
				for _, name := range spec.(*ast.ValueSpec).Names {
					if strings.HasPrefix(name.Name, "Err") {
						exported[name.Name] = true
					}
				}
			}
		}
	}
	if len(exported) < 40 {
		t.Fatalf("found only %d errors", len(exported))
	}
	table, err := parser.ParseFile(gotoken.NewFileSet(), "channel_errors.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(table, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Name == "paych" {
				delete(exported, sel.Sel.Name)
			}
		}
		return true
	})
	for name := range exported {
		t.Errorf("paych.%s has no code", name)
	}

	node := newFakeNode()
	c := dial(t, serve(t, node, Config{}), issueAll(t))
	seen := map[Code]error{}
	for _, x := range channelCauses {
		if other := seen[x.code]; other != nil && x.code != CodeManagerClosed {
			t.Errorf("%v and %v share code %d", other, x.cause, x.code)
		}
		seen[x.code] = x.cause
		node.fail = fmt.Errorf("pay: %w", x.cause)
		_, err := c.Settle(t.Context(), testPeer)
		if e := Explain(err); e.Code != x.code || e.Remedy == "" || !strings.Contains(e.Message, x.cause.Error()) || !errors.Is(err, x.cause) {
			t.Errorf("%v crossed as %d %v", x.cause, e.Code, err)
		}
	}
	for _, info := range channelCodes[1:] {
		if seen[info.Code] == nil {
			t.Errorf("code %d %s has no cause", info.Code, info.Name)
		}
	}
}

// The figures of the typed errors arrive as numbers, not only as words.
func TestDetailsCrossTheWire(t *testing.T) {
	node := newFakeNode()
	c := dial(t, serve(t, node, Config{}), issueAll(t))
	id := paychtest.DefaultParams().Genesis
	for _, x := range []struct {
		err  error
		want Details
	}{
		{&paych.ShortfallError{Shortfall: atto(7)}, Details{Shortfall: "7"}},
		{&paych.TooEarlyError{Now: 5, SettlingAt: 9}, Details{Epoch: 5, SettlingAt: 9}},
		{&paych.DeltaError{Delta: atto(1), Min: atto(2)}, Details{Delta: "1", MinDelta: "2"}},
		{&paych.OverBalanceError{Total: atto(3), Balance: atto(2)}, Details{Total: "3", Balance: "2"}},
		{&paych.MessageError{Cid: id, Kind: "settle", Exit: 20}, Details{Cid: id.String(), Kind: "settle", ExitCode: 20}},
	} {
		node.fail = fmt.Errorf("call: %w", x.err)
		_, err := c.Settle(t.Context(), testPeer)
		if got := Explain(err).Details; got == nil || *got != x.want {
			t.Errorf("%v: %+v", x.err, got)
		}
	}
}

// Every misuse gets its own error over the RPC, and leaves both sides as they
// were.
func TestChannelMisuse(t *testing.T) {
	w := newTown(t)
	ctx := t.Context()
	ch, other := w.open(100), w.open(100)
	c := ch.String()
	if _, err := w.payer.PaychReserveFunds(ctx, c, "10"); err != nil {
		t.Fatal(err)
	}
	held := w.voucher(ch, "30", 1)
	if _, err := w.payee.PaychVoucherAdd(ctx, c, held, "", "0"); err != nil {
		t.Fatal(err)
	}
	strange := w.voucher(other, "5", 1)
	base := paych.SignedVoucher{ChannelAddr: ch, Lane: 2, Nonce: 1, Amount: atto(5)}
	with := func(change func(*paych.SignedVoucher)) string {
		sv := base
		change(&sv)
		return w.forged(w.payer, sv)
	}
	add := func(text string) func() error {
		return func() error { _, err := w.payee.PaychVoucherAdd(ctx, c, text, "", "0"); return err }
	}
	lock := tally.Preimage{1}.Hashlock()
	huge := uint64(1) << 63
	cases := []struct {
		name string
		call func() error
		want Code
	}{
		{"release too much", func() error { _, err := w.payer.PaychReleaseFunds(ctx, c, "11"); return err }, CodeNotReserved},
		{"release nothing", func() error { _, err := w.payer.PaychReleaseFunds(ctx, c, "0"); return err }, CodeZeroAmount},
		{"create over nothing", func() error {
			_, err := w.payer.PaychCreate(ctx, w.payer.key.String(), w.payee.key.String(), "0", "")
			return err
		}, CodeZeroAmount},
		{"create without a key", func() error {
			_, err := w.payer.PaychCreate(ctx, w.payee.key.String(), w.payer.key.String(), "1", "")
			return err
		}, CodeNoKey},
		{"create over the account", func() error {
			_, err := w.payer.PaychCreate(ctx, w.payer.key.String(), w.payee.key.String(), "1000000000", "")
			return err
		}, CodeAccountBalance},
		{"add nothing", func() error { _, err := w.payer.PaychAddFunds(ctx, c, "0"); return err }, CodeZeroAmount},
		{"payee adds funds", func() error { _, err := w.payee.PaychAddFunds(ctx, c, "1"); return err }, CodeChannelInbound},
		{"voucher over nothing", func() error { _, err := w.payer.PaychVoucherCreate(ctx, c, "0", 3); return err }, CodeZeroAmount},
		{"voucher that does not rise", func() error { _, err := w.payer.PaychVoucherCreate(ctx, c, "30", 1); return err }, CodeVoucherAmount},
		{"voucher on a lane over the maximum", func() error { _, err := w.payer.PaychVoucherCreate(ctx, c, "1", huge); return err }, CodeVoucherLane},
		{"shortfall", func() error {
			r, err := w.payer.PaychVoucherCreate(ctx, c, "101", 1)
			if err == nil && (r.Voucher != nil || r.Shortfall != "1") {
				t.Errorf("shortfall: %+v", r)
			}
			return err
		}, 0},
		{"wrong signer", add(w.forged(w.payee, base)), CodeVoucherSigner},
		{"wrong channel", add(strange), CodeVoucherChannel},
		{"over the balance", add(with(func(sv *paych.SignedVoucher) { sv.Amount = atto(71) })), CodeOverBalance},
		{"lane over the maximum", add(with(func(sv *paych.SignedVoucher) { sv.Lane = huge })), CodeVoucherLane},
		{"zero amount", add(with(func(sv *paych.SignedVoucher) { sv.Amount = atto(0) })), CodeZeroAmount},
		{"used nonce", add(with(func(sv *paych.SignedVoucher) { sv.Lane, sv.Amount = 1, atto(40) })), CodeVoucherNonce},
		{"merges", add(with(func(sv *paych.SignedVoucher) { sv.Merges = []paych.Merge{{Lane: 1, Nonce: 9}} })), CodeVoucherMerges},
		{"extra", add(with(func(sv *paych.SignedVoucher) { sv.Extra = &paych.ModVerifyParams{Actor: ch, Method: 1} })), CodeVoucherExtra},
		{"MinSettleHeight for ever", add(with(func(sv *paych.SignedVoucher) { sv.MinSettleHeight = 1 << 62 })), CodeMinSettleHeight},
		{"expired", add(with(func(sv *paych.SignedVoucher) { sv.TimeLockMax = 1 })), CodeVoucherTimeLock},
		{"short lock", add(with(func(sv *paych.SignedVoucher) { sv.SecretHash = []byte{1} })), CodeVoucherLock},
		{"too little", func() error {
			_, err := w.payee.PaychVoucherAdd(ctx, c, with(func(*paych.SignedVoucher) {}), "", "6")
			return err
		}, CodeVoucherDelta},
		{"wrong secret", func() error {
			_, err := w.payee.PaychVoucherAdd(ctx, c, with(func(sv *paych.SignedVoucher) { sv.SecretHash = lock[:] }), strings.Repeat("00", 32), "0")
			return err
		}, CodeVoucherSecret},
		{"no voucher", add("AAAA"), CodeVoucherFormat},
		{"own voucher", func() error { _, err := w.payer.PaychVoucherSubmit(ctx, c, held, ""); return err }, CodeOwnVoucher},
		{"submit with Extra", func() error {
			_, err := w.payee.PaychVoucherSubmit(ctx, c, with(func(sv *paych.SignedVoucher) { sv.Extra = &paych.ModVerifyParams{Actor: ch, Method: 1} }), "")
			return err
		}, CodeVoucherExtra},
		{"submit what the chain refuses", func() error {
			_, err := w.payee.PaychVoucherSubmit(ctx, c, with(func(sv *paych.SignedVoucher) { sv.Amount = atto(5000) }), "")
			return err
		}, CodeNotSpendable},
		{"collect before settling", func() error { _, err := w.payer.PaychCollect(ctx, c); return err }, CodeChannelNotSettling},
		{"no such channel", func() error {
			_, err := w.payer.PaychStatus(ctx, "f2aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")
			return err
		}, CodeBadArgument},
		{"no account", func() error { _, err := w.payer.PaychStatus(ctx, w.payee.key.String()); return err }, CodeAddressKind},
		{"unknown message", func() error {
			_, err := w.payer.PaychStatusByMsg(ctx, paychtest.DefaultParams().Genesis.String())
			return err
		}, CodeNotOnChain},
		{"odd amount", func() error { _, err := w.payer.PaychAddFunds(ctx, c, "-1"); return err }, CodeBadArgument},
		{"odd lock", func() error {
			_, err := w.payer.PaychVoucherCreateSpec(ctx, c, VoucherSpec{Amount: "1", SecretHash: "00"})
			return err
		}, CodeBadArgument},
		{"epoch below 0", func() error {
			_, err := w.payer.PaychVoucherCreateSpec(ctx, c, VoucherSpec{Amount: "1", TimeLockMax: -1})
			return err
		}, CodeBadArgument},
		{"failed top-up", func() error {
			w.chain.FailNext(exitcode.SysErrOutOfGas)
			r, err := w.payer.PaychReserveFunds(ctx, c, "500")
			if err != nil || r.Message == nil {
				t.Fatal(r, err)
			}
			w.chain.Mine(3)
			_, err = w.payer.WaitReady(ctx, r.Message.Cid, nil)
			if d := Explain(err).Details; d == nil || d.ExitCode != int64(exitcode.SysErrOutOfGas) || d.Cid != r.Message.Cid {
				t.Errorf("details %+v", d)
			}
			return err
		}, CodeTopUpFailed},
	}
	lastError := func(s string) string { // a failed message stays visible
		i := strings.Index(s, `"last_error"`)
		return s[:i] + s[i+strings.Index(s[i:], "\n"):]
	}
	for _, x := range cases {
		payer, payee := lastError(w.state(w.payer, ch)), lastError(w.state(w.payee, ch))
		if got := codeOf(x.call()); got != x.want {
			t.Errorf("%s: code %d %s, want %d", x.name, got, got.Name(), x.want)
		}
		if after := lastError(w.state(w.payer, ch)); after != payer {
			t.Errorf("%s changed the payer\n%s\n%s", x.name, payer, after)
		}
		if after := lastError(w.state(w.payee, ch)); after != payee {
			t.Errorf("%s changed the payee\n%s\n%s", x.name, payee, after)
		}
	}
	if row, err := w.payer.PaychStatus(ctx, c); err != nil || row.LastError == "" {
		t.Errorf("the failed top-up is forgotten: %+v %v", row, err)
	}

	// Settling closes it.
	late := with(func(*paych.SignedVoucher) {})
	m, err := w.payer.PaychSettle(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	again, err := w.payer.PaychSettle(ctx, c)
	if err != nil || again.Cid != m.Cid {
		t.Errorf("second settle of our own: %v %v", again, err)
	}
	w.receipt(w.payer, m.Cid)
	w.untilSubmitted(ch, 30)
	w.untilState(w.payee, ch, func(r ChannelRow) bool { return r.State == "settling" && len(r.Operations) == 0 })
	for _, x := range []struct {
		name string
		call func() error
		want Code
	}{
		{"second settle", func() error { _, err := w.payee.PaychSettle(ctx, c); return err }, CodeChannelSettling},
		{"collect too early", func() error { _, err := w.payer.PaychCollect(ctx, c); return err }, CodeCollectTooEarly},
		{"funds while settling", func() error { _, err := w.payer.PaychAddFunds(ctx, c, "1"); return err }, CodeChannelSettling},
		{"voucher while settling", func() error { _, err := w.payer.PaychVoucherCreate(ctx, c, "50", 1); return err }, CodeChannelSettling},
	} {
		payer, payee := w.state(w.payer, ch), w.state(w.payee, ch)
		if got := codeOf(x.call()); got != x.want {
			t.Errorf("%s: code %d %s, want %d", x.name, got, got.Name(), x.want)
		}
		if w.state(w.payer, ch) != payer || w.state(w.payee, ch) != payee {
			t.Errorf("%s changed something", x.name)
		}
	}
	row := w.untilState(w.payer, ch, func(ChannelRow) bool { return true })
	if row.SettlingAt == 0 || row.SettlingLeft != row.SettlingAt-row.Epoch || row.SettlingTime == nil {
		t.Errorf("%+v", row)
	}
	w.chain.Mine(45)
	w.untilState(w.payee, ch, func(r ChannelRow) bool { return r.SettlingLeft == 0 })
	before := w.state(w.payee, ch)
	if got := codeOf(add(late)()); got != CodeChannelSettling {
		t.Errorf("voucher after settling: %d %s", got, got.Name())
	}
	if after := w.state(w.payee, ch); after != before {
		t.Errorf("voucher after settling changed\n%s\n%s", before, after)
	}
}

// A lock is opened by its secret, and every field of a voucher is shown.
func TestVoucherWithLock(t *testing.T) {
	w := newTown(t)
	ctx := t.Context()
	ch := w.open(100).String()
	secret := tally.Preimage{7}
	lock := secret.Hashlock()
	r, err := w.payer.PaychVoucherCreateSpec(ctx, ch, VoucherSpec{Lane: 3, Amount: "40", SecretHash: hex.EncodeToString(lock[:]), TimeLockMax: 500})
	if err != nil || r.Voucher == nil {
		t.Fatal(r, err)
	}
	v := *r.Voucher
	if v.Channel != ch || v.Lane != 3 || v.Amount != "40" || v.SecretHash != hex.EncodeToString(lock[:]) || v.TimeLockMax != 500 ||
		v.Signer != w.payer.key.String() || len(v.SigningDigest) != 64 || v.SignatureError != "" {
		t.Errorf("%+v", v)
	}
	if again, err := InspectVoucher(v.Voucher); err != nil || fmt.Sprint(again) != fmt.Sprint(v) {
		t.Errorf("%+v %v", again, err)
	}
	if got, err := w.payee.PaychVoucherCheckValid(ctx, ch, v.Voucher); err != nil || got.Voucher != v.Voucher {
		t.Error(got, err)
	}
	if got, err := w.payee.PaychVoucherAdd(ctx, ch, v.Voucher, "", "0"); err != nil || got.Delta != "0" {
		t.Error("locked:", got, err)
	}
	if s, err := w.payee.PaychVoucherCheckSpendable(ctx, ch, v.Voucher, ""); err != nil || s.Spendable {
		t.Error("spendable without its secret:", s, err)
	}
	if got, err := w.payee.PaychVoucherSecret(ctx, ch, hex.EncodeToString(secret[:])); err != nil || got.Delta != "40" {
		t.Error("opened:", got, err)
	}
	rows, err := w.payee.PaychVoucherRecords(ctx, ch)
	if err != nil || len(rows) != 1 || rows[0].Origin != "received" || !rows[0].Live || !rows[0].Opened || rows[0].Voucher != v.Voucher {
		t.Errorf("%+v %v", rows, err)
	}
	m, err := w.payee.PaychVoucherSubmit(ctx, ch, v.Voucher, hex.EncodeToString(secret[:]))
	if err != nil || m.Kind != "submit" || m.Deadline.Before(m.Since) {
		t.Fatal(m, err)
	}
	if m = w.receipt(w.payee, m.Cid); m.State != "done" || m.Height == 0 {
		t.Errorf("%+v", m)
	}
	// The payee gives some of it back, with a voucher of its own over less.
	refund, err := w.payee.PaychVoucherCreate(ctx, ch, "15", 3)
	if err != nil || refund.Voucher == nil || refund.Voucher.Signer != w.payee.key.String() {
		t.Fatal(refund, err)
	}
	if _, err := w.payer.PaychVoucherAdd(ctx, ch, refund.Voucher.Voucher, "", "0"); err != nil {
		t.Error(err)
	}
	rows, err = w.payer.PaychVoucherRecords(ctx, ch)
	if err != nil || len(rows) != 2 || rows[0].Origin != "given" || rows[1].Origin != "refund" {
		t.Errorf("%+v %v", rows, err)
	}
}

// What another part of the peer owns is closed to the RPC: its lanes, and the
// funds that it reserved.
func TestOwnedChannelIsClosed(t *testing.T) {
	w := newTown(t)
	ctx := t.Context()
	id, err := w.payer.channels.Manager.PaychCreateSpec(ctx, paych.CreateSpec{
		From: w.payer.key, To: w.payee.key, Amount: atto(100), Tag: "tab", Owned: true, Reserve: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	ch := w.receipt(w.payer, id.String()).Channel
	for name, call := range map[string]func() error{
		"lane of the tab": func() error { _, err := w.payer.PaychVoucherCreate(ctx, ch, "1", 0); return err },
		"guard":           func() error { _, err := w.payer.PaychVoucherCreate(ctx, ch, "1", 65); return err },
		"reserve":         func() error { _, err := w.payer.PaychReserveFunds(ctx, ch, "1"); return err },
		"release":         func() error { _, err := w.payer.PaychReleaseFunds(ctx, ch, "1"); return err },
	} {
		if err := call(); codeOf(err) != CodeChannelOwned {
			t.Errorf("%s: %v", name, err)
		}
	}
	if lane, err := w.payer.PaychAllocateLane(ctx, ch); err != nil || lane.Lane <= 65 {
		t.Errorf("allocated %v, %v", lane, err)
	}
	// A tag of the RPC is never one of theirs.
	m, err := w.payer.PaychCreate(ctx, w.payer.key.String(), w.payee.key.String(), "5", "tab")
	if err != nil || m.Cid == id.String() {
		t.Errorf("%+v %v", m, err)
	}
	again, err := w.payer.PaychCreate(ctx, w.payer.key.String(), w.payee.key.String(), "5", "tab")
	if err != nil || again.Cid != m.Cid {
		t.Errorf("a tag made two channels: %v %v", again, err)
	}
	w.receipt(w.payer, m.Cid)
	// Lotus' Get leaves the owned one alone, although it holds more.
	info, err := dialLotus(t, w.payer.addr, w.all).PaychGet(ctx, w.payer.key, w.payee.key, atto(2), lotusOpts{})
	if err != nil || info.Channel.String() == ch || info.WaitSentinel.Defined() {
		t.Errorf("%+v %v", info, err)
	}
	rows, err := w.payer.PaychInfo(ctx)
	if err != nil || len(rows) != 2 || !rows[0].Owned || rows[1].Tag != "rpc/tab" {
		t.Errorf("%+v %v", rows, err)
	}
}

// Waiting for the chain is bounded in time, in number, and by the server's end,
// and leaves room for the calls that work.
func TestWaitingForTheChain(t *testing.T) {
	w := newTown(t)
	ctx, cancel := context.WithCancel(t.Context())
	m, err := w.payer.PaychCreate(ctx, w.payer.key.String(), w.payee.key.String(), "10", "")
	if err != nil {
		t.Fatal(err)
	}
	wait, err := w.payer.PaychWaitReady(ctx, m.Cid, 1)
	if err != nil || wait.Done || wait.Message.Cid != m.Cid || wait.Message.Channel != "" || wait.Message.ChannelState != "creating" {
		t.Errorf("%+v %v", wait, err)
	}
	rows, err := w.payer.PaychInfo(ctx)
	if err != nil || len(rows) != 1 || rows[0].Channel != "" || rows[0].State != "creating" || rows[0].Pending != "10" || rows[0].PendingCid != m.Cid || len(rows[0].Operations) != 1 {
		t.Errorf("%+v %v", rows, err)
	}
	if _, err := w.payer.PaychWaitReady(ctx, m.Cid, 60_001); codeOf(err) != CodeBadArgument {
		t.Error(err)
	}
	ended := make(chan error, maxChainWaits)
	id := cid.MustParse(m.Cid)
	for range maxChainWaits {
		c := dialLotus(t, w.payer.addr, w.all)
		go func() { // ends with cancel
			_, err := c.PaychGetWaitReady(ctx, id)
			for codeOf(err) == CodeBusy && ctx.Err() == nil { // the look below had the last place
				_, err = c.PaychGetWaitReady(ctx, id)
			}
			ended <- err
		}()
	}
	busy := false
	for range 5000 {
		if _, err := w.payer.PaychWaitReady(ctx, m.Cid, 0); codeOf(err) == CodeBusy {
			busy = true
			break
		}
		<-w.tick.C
	}
	if !busy {
		t.Error("waiting is not bounded")
	}
	if _, err := w.payer.PaychPending(ctx); err != nil {
		t.Errorf("those that wait take the places of those that work: %v", err)
	}
	cancel()
	for range maxChainWaits {
		if err := <-ended; err == nil {
			t.Error("ended without a receipt")
		}
	}
	// Their places are free again.
	w.chain.Mine(3)
	for range 5000 {
		if wait, err = w.payer.PaychWaitReady(t.Context(), m.Cid, 1000); codeOf(err) != CodeBusy {
			break
		}
		<-w.tick.C
	}
	if err != nil || !wait.Done || wait.Message.Channel == "" {
		t.Errorf("%+v %v", wait, err)
	}
}

// A peer without a chain says what to do about it.
func TestNoChain(t *testing.T) {
	addr := serve(t, newFakeNode(), Config{})
	c, l := dial(t, addr, issueAll(t)), dialLotus(t, addr, issueAll(t))
	_, err1 := c.PaychInfo(t.Context())
	_, err2 := c.WalletNew(t.Context())
	_, err3 := l.PaychList(t.Context())
	for _, err := range []error{err1, err2, err3} {
		if e := Explain(err); e.Code != CodeNoChain || !strings.Contains(e.Remedy, "--chain") {
			t.Errorf("%v", err)
		}
	}
}

func TestWalletOverRPC(t *testing.T) {
	w := newTown(t)
	ctx := t.Context()
	made, err := w.payer.WalletNew(ctx)
	if err != nil || made.Balance != "0" {
		t.Fatal(made, err)
	}
	list, err := w.payer.WalletList(ctx)
	if err != nil || !slices.Contains(list, made) || !slices.Contains(list, WalletRow{w.payer.key.String(), "1000000"}) {
		t.Errorf("%v %v", list, err)
	}
	if got, err := w.payer.WalletBalance(ctx, w.payee.key.String()); err != nil || got.Balance != "1000000" {
		t.Errorf("%v %v", got, err)
	}
	if _, err := w.payer.WalletBalance(ctx, "f1"); codeOf(err) != CodeBadArgument {
		t.Error(err)
	}
	if got, err := w.payer.PaychLookup(ctx, w.payer.key.String(), w.payee.key.String()); codeOf(err) != CodeNoChannel {
		t.Error(got, err)
	}
	ch := w.open(3)
	if got, err := w.payer.PaychLookup(ctx, w.payer.key.String(), w.payee.key.String()); err != nil || got.Channel != ch.String() {
		t.Error(got, err)
	}
	if list, err := w.payer.PaychList(ctx); err != nil || !slices.Equal(list, []string{ch.String()}) {
		t.Error(list, err)
	}
	texts, err := w.payer.PaychVoucherList(ctx, ch.String())
	if err != nil || len(texts) != 0 {
		t.Error(texts, err)
	}
	text := w.voucher(ch, "2", 0)
	if texts, err = w.payer.PaychVoucherList(ctx, ch.String()); err != nil || !slices.Equal(texts, []string{text}) {
		t.Error(texts, err)
	}
}
