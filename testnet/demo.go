package testnet

import (
	"bytes"
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	libp2phost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/host"
	"github.com/tallystick/tally/protocols/storenet"
	"github.com/tallystick/tally/swap"
)

// sample is what the demo imports where no file is named: 345 messages, so that
// three cheques over 100 go over and 45 units stay on the tab.
//
//go:embed sample.ndjson
var sample []byte

const (
	// defaultPage is the page of the demo, the usual default of Waku stores.
	defaultPage = 20
	// loopback is where all hosts of this package listen.
	loopback = "/ip4/127.0.0.1/tcp/0"
	// meetWithin bounds a dial with both handshakes.
	meetWithin = 20 * time.Second
)

var (
	// ErrBooksDiffer: the demo ended and the two books do not agree. The result
	// is valid and shows how.
	ErrBooksDiffer = errors.New("testnet: the books of the two peers do not agree")
	// ErrChainDiffers: the chain did not pay what the cheques said. The result is
	// valid and shows how.
	ErrChainDiffers = errors.New("testnet: the chain did not pay what the cheques said")
)

// DemoOptions of Demo. The zero value is the demo as it ships.
type DemoOptions struct {
	// Mode is soft, mock or hard. Default hard: on an embedded chain, with a
	// channel that is settled and collected at the end.
	Mode swap.Mode
	// Messages is a file of newline-delimited JSON, as `tally store import`
	// reads it, and Input is one that is open already. Default: a sample that
	// ships with the program.
	Messages string
	Input    io.ReadSeeker
	// PageSize is what the client asks for at once. Default 20.
	PageSize int
	// Policy of both peers; its mode is overwritten. Default swap.DefaultPolicy.
	Policy swap.Policy
	// SettleRest pays what is left on the tab at the end. By default it stays,
	// as between any two peers that go on, so that the table shows two balances
	// that are not zero and negatives of each other.
	SettleRest bool
	// Dir holds the stores of both peers below a folder that is removed at the
	// end. Default: the system's folder for temporary files.
	Dir string
	// Progress is called now and then, on the goroutine of Demo. Nil is allowed.
	Progress func(DemoProgress)
	// Logger of both peers. Default: none.
	Logger *slog.Logger
}

// DemoStage is a part of the demo.
type DemoStage string

// The stages of the demo, in order.
const (
	StageStart   DemoStage = "start"   // chain, stores, hosts, handshake
	StageCheck   DemoStage = "check"   // the server reads the file for errors
	StageImport  DemoStage = "import"  // the server stores the messages
	StageQuery   DemoStage = "query"   // the client asks page by page
	StageCompare DemoStage = "compare" // both wait for the last ack, and compare
	StageSettle  DemoStage = "settle"  // hard: the server settles the channel
	StageCollect DemoStage = "collect" // hard: its voucher is on the chain, it collects
)

// DemoProgress is how far a demo is. Done and Total count messages; Total is 0
// while it is unknown.
type DemoProgress struct {
	Stage       DemoStage
	Done, Total int
	Cheques     int // acked so far
}

// DemoCheque is the last cheque as one side has it.
type DemoCheque struct {
	Serial     uint64 `json:"serial"`
	Cumulative uint64 `json:"cumulative"`
	State      string `json:"state"`
}

// DemoSide is one of the two books.
type DemoSide struct {
	Peer string `json:"peer"`
	// Balance above zero means that the other side owes this one.
	Balance  int64  `json:"balance"`
	Served   uint64 `json:"served"`
	Consumed uint64 `json:"consumed"`
	// Paid and Received are the sums of cheques sent and received.
	Paid     uint64 `json:"paid"`
	Received uint64 `json:"received"`
	// LastCheque is null where there was none.
	LastCheque *DemoCheque `json:"last_cheque"`
	// Row is the whole tab, for whoever prints more of it.
	Row swap.Row `json:"-"`
}

// DemoResult is what a demo shows.
type DemoResult struct {
	Messages int `json:"messages"`
	Pages    int `json:"pages"`
	// ServerCredit and ClientDebit are all units ever served and consumed, in
	// the words of the SWAP document.
	ServerCredit uint64 `json:"server_credit"`
	ClientDebit  uint64 `json:"client_debit"`
	ChequesSent  uint64 `json:"cheques_sent"`
	ChequesAcked uint64 `json:"cheques_acked"`
	BooksAgree   bool   `json:"books_agree"`
	Mode         string `json:"mode"`
	ElapsedMS    int64  `json:"elapsed_ms"`

	// PaymentThreshold is what the server announced.
	PaymentThreshold uint64   `json:"payment_threshold"`
	Client           DemoSide `json:"client"`
	Server           DemoSide `json:"server"`

	// Of mode hard, in attoFIL as decimal text; empty in other modes. VoucherTotal
	// is what the last voucher says, and the balances are those of the server's
	// payout address on the chain, before the first cheque and after Collect.
	Channel            string `json:"channel"`
	VoucherTotal       string `json:"voucher_total"`
	PayeeBalanceBefore string `json:"payee_balance_before"`
	PayeeBalanceAfter  string `json:"payee_balance_after"`
	// ChainPaid: the payee's balance rose by exactly what the voucher says.
	ChainPaid bool `json:"chain_paid"`
}

// Demo lets one peer query another's messages until cheques flow, and compares
// the books. Both peers are real ones, on 127.0.0.1, with stores on disk. On
// ErrBooksDiffer the result is valid; on any other error it is not.
func Demo(ctx context.Context, opt DemoOptions) (_ DemoResult, err error) {
	begin := time.Now()
	if opt.Mode == swap.ModeUnset {
		opt.Mode = swap.ModeHard
	}
	if opt.PageSize == 0 {
		opt.PageSize = defaultPage
	}
	if opt.PageSize < 1 || opt.PageSize > storenet.DefaultLimits().MaxPage {
		return DemoResult{}, fmt.Errorf("testnet: page size %d: want 1 to %d", opt.PageSize, storenet.DefaultLimits().MaxPage)
	}
	if opt.Progress == nil {
		opt.Progress = func(DemoProgress) {}
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	opt.Policy.Mode = opt.Mode
	file, closeFile, err := opt.open()
	if err != nil {
		return DemoResult{}, err
	}
	defer closeFile()

	dir, err := os.MkdirTemp(opt.Dir, "tally-demo-")
	if err != nil {
		return DemoResult{}, fmt.Errorf("testnet: folder for the demo: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	d := demo{opt: opt, acked: make(chan struct{}, 1)}
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.start(ctx, dir); err != nil {
		return DemoResult{}, err
	}
	result, err := d.run(ctx, file)
	if err != nil {
		return DemoResult{}, err
	}
	result.ElapsedMS = time.Since(begin).Milliseconds()
	switch {
	case !result.BooksAgree:
		return result, ErrBooksDiffer
	case opt.Mode == swap.ModeHard && !result.ChainPaid:
		return result, ErrChainDiffers
	default:
		return result, nil
	}
}

// open returns the messages and what closes them.
func (opt *DemoOptions) open() (io.ReadSeeker, func(), error) {
	if opt.Input != nil {
		return opt.Input, func() {}, nil
	}
	if opt.Messages == "" {
		return bytes.NewReader(sample), func() {}, nil
	}
	f, err := os.Open(opt.Messages)
	if err != nil {
		return nil, nil, fmt.Errorf("testnet: messages of the demo: %w", err)
	}
	return f, func() { _ = f.Close() }, nil
}

// demo is a demo under way.
type demo struct {
	opt            DemoOptions
	client, server *host.Node
	hosts          []libp2phost.Host
	acked          chan struct{} // a cheque of the client was acked
	chain          *demoChain    // of mode hard
}

func (d *demo) start(ctx context.Context, dir string) error {
	d.opt.Progress(DemoProgress{Stage: StageStart})
	if d.opt.Mode == swap.ModeHard {
		var err error
		if d.chain, err = startDemoChain(ctx, filepath.Join(dir, "chain"), d.opt.Logger); err != nil {
			return err
		}
	}
	for _, side := range [...]struct {
		name   string
		node   **host.Node
		notify func(swap.Notice)
	}{{"client", &d.client, d.notify}, {"server", &d.server, nil}} {
		key, _, err := crypto.GenerateEd25519Key(rand.Reader)
		if err != nil {
			return fmt.Errorf("testnet: key of the %s: %w", side.name, err)
		}
		h, err := host.Listen(key, []string{loopback}, nil)
		if err != nil {
			return fmt.Errorf("testnet: start the %s: %w", side.name, err)
		}
		d.hosts = append(d.hosts, h)
		*side.node, err = host.New(h, host.Config{
			Dir: filepath.Join(dir, side.name), Policy: d.opt.Policy, Messages: &host.MessagesConfig{},
			Chain: d.chain.config(), Notify: side.notify, Logger: d.opt.Logger,
		})
		if err != nil {
			return fmt.Errorf("testnet: start the %s: %w", side.name, err)
		}
	}
	if d.chain != nil {
		if err := d.chain.fund(ctx, d.client, d.server); err != nil {
			return err
		}
	}
	return meet(ctx, d.client, d.server)
}

// meet dials and waits until both sides read the other's handshake.
func meet(ctx context.Context, from, to *host.Node) error {
	ctx, cancel := context.WithTimeout(ctx, meetWithin)
	defer cancel()
	info := peer.AddrInfo{ID: to.Host().ID(), Addrs: to.Host().Addrs()}
	if err := from.Host().Connect(ctx, info); err != nil {
		return fmt.Errorf("testnet: connect: %w", err)
	}
	for _, way := range [...]struct{ at, of *host.Node }{{from, to}, {to, from}} {
		if err := way.at.Book().WaitSession(ctx, way.of.Host().ID()); err != nil {
			return fmt.Errorf("testnet: swap handshake: %w", err)
		}
	}
	return nil
}

// notify wakes whoever waits for an ack.
func (d *demo) notify(n swap.Notice) {
	if n.Kind != swap.NoticeChequeAcked {
		return
	}
	select {
	case d.acked <- struct{}{}:
	default:
	}
}

func (d *demo) run(ctx context.Context, file io.ReadSeeker) (DemoResult, error) {
	imported, err := d.server.Import(ctx, file, func(p storenet.ImportProgress) {
		stage := StageCheck
		if p.Storing {
			stage = StageImport
		}
		d.opt.Progress(DemoProgress{Stage: stage, Done: p.Lines})
	})
	if err != nil {
		return DemoResult{}, fmt.Errorf("testnet: import: %w", err)
	}
	server := d.server.Host().ID()
	done := 0
	report := func() {
		d.opt.Progress(DemoProgress{
			Stage: StageQuery, Done: done, Total: imported.Added,
			Cheques: int(d.client.Book().Stats().ChequesAcked),
		})
	}
	report()
	got, err := d.client.Query(ctx, server, storenet.Query{
		PageSize: d.opt.PageSize,
		OnPage:   func(n int) { done += n; report() },
	}, func(*storenet.Message) error { return nil })
	if err != nil {
		return DemoResult{}, fmt.Errorf("testnet: query: %w", ended(ctx, err))
	}
	d.opt.Progress(DemoProgress{Stage: StageCompare, Done: done, Total: imported.Added})
	if d.opt.SettleRest {
		if _, err := d.client.Book().SettleAndWait(ctx, server); err != nil && !errors.Is(err, swap.ErrNothingOwed) && !errors.Is(err, swap.ErrSoft) {
			return DemoResult{}, fmt.Errorf("testnet: settle: %w", err)
		}
	}
	result, err := d.compare(ctx, got)
	if err != nil || d.chain == nil || !result.BooksAgree {
		return result, err
	}
	return result, d.chain.finish(ctx, d, &result)
}

// ended puts ctx's error first where ctx is why something failed: a stream that
// was cut only says that it was.
func ended(ctx context.Context, err error) error {
	if cause := ctx.Err(); cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

// compare waits for the ack of the last cheque and reads both books.
func (d *demo) compare(ctx context.Context, got storenet.Result) (DemoResult, error) {
	ours, err := d.client.Book().Row(d.server.Host().ID())
	for err == nil && ours.LastChequeSent != nil && ours.LastChequeSent.State != swap.ChequeAcked {
		select {
		case <-d.acked:
		case <-ctx.Done():
			return DemoResult{}, fmt.Errorf("testnet: wait for the last ack: %w", ctx.Err())
		}
		ours, err = d.client.Book().Row(d.server.Host().ID())
	}
	if err != nil {
		return DemoResult{}, fmt.Errorf("testnet: read the client's book: %w", err)
	}
	theirs, err := d.server.Book().Row(d.client.Host().ID())
	if err != nil {
		return DemoResult{}, fmt.Errorf("testnet: read the server's book: %w", err)
	}
	stats := d.client.Book().Stats()
	return DemoResult{
		Messages: got.Messages, Pages: got.Pages,
		ServerCredit: uint64(theirs.Served), ClientDebit: uint64(ours.Consumed),
		ChequesSent: stats.ChequesSent, ChequesAcked: stats.ChequesAcked,
		BooksAgree: Agree(&ours, &theirs), Mode: d.opt.Mode.String(),
		PaymentThreshold: uint64(theirs.PaymentThreshold),
		Client:           demoSide(d.client, &ours, ours.LastChequeSent),
		Server:           demoSide(d.server, &theirs, theirs.LastChequeReceived),
	}, nil
}

func demoSide(n *host.Node, r *swap.Row, last *swap.ChequeMark) DemoSide {
	side := DemoSide{
		Peer: n.Host().ID().String(), Balance: int64(r.Balance),
		Served: uint64(r.Served), Consumed: uint64(r.Consumed), Paid: uint64(r.Paid), Received: uint64(r.Received),
		Row: *r,
	}
	if last != nil {
		side.LastCheque = &DemoCheque{Serial: last.Serial, Cumulative: uint64(last.Cumulative), State: string(last.State)}
	}
	return side
}

// Agree reports whether two rows of one tab, one from each side, are the same
// tab: balances, service and payments each way mirror each other. It is meant
// for a tab at rest.
func Agree(a, b *swap.Row) bool {
	return a.Balance == -b.Balance &&
		a.Served == b.Consumed && a.Consumed == b.Served &&
		a.Paid == b.Received && a.Received == b.Paid
}

// close ends both peers, each before its host, so that sessions end politely.
func (d *demo) close() error {
	var errs []error
	for _, n := range [...]*host.Node{d.client, d.server} {
		if n != nil {
			errs = append(errs, n.Close())
		}
	}
	for _, h := range d.hosts {
		errs = append(errs, h.Close())
	}
	if d.chain != nil {
		errs = append(errs, d.chain.close())
	}
	return errors.Join(errs...)
}
