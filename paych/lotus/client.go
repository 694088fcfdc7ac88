package lotus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-jsonrpc"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/crypto"
	"github.com/filecoin-project/go-state-types/exitcode"
	"github.com/ipfs/go-cid"
	logging "github.com/ipfs/go-log/v2"

	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/lotus/wire"
)

const (
	// maxResponse bounds an answer. The largest is a tipset's messages.
	maxResponse = 64 << 20
	// maxCause bounds what is kept of an answer that is no JSON-RPC.
	maxCause = 300
	// devnetVersion begins the version of the embedded chain.
	devnetVersion = "tally-devnet"
)

// methods are those of the node that are used, under their names there.
type methods struct {
	Version                func(ctx context.Context) (wire.APIVersion, error)
	StateNetworkName       func(ctx context.Context) (string, error)
	StateNetworkVersion    func(ctx context.Context, key wire.TipSetKey) (uint, error)
	StateActorCodeCIDs     func(ctx context.Context, version uint) (map[string]cid.Cid, error)
	ChainGetGenesis        func(ctx context.Context) (*wire.TipSet, error)
	ChainHead              func(ctx context.Context) (*wire.TipSet, error)
	ChainGetTipSetByHeight func(ctx context.Context, h abi.ChainEpoch, key wire.TipSetKey) (*wire.TipSet, error)

	ChainGetMessagesInTipset func(ctx context.Context, key wire.TipSetKey) ([]wire.CidMessage, error)
	ChainGetParentMessages   func(ctx context.Context, block cid.Cid) ([]wire.CidMessage, error)
	ChainGetParentReceipts   func(ctx context.Context, block cid.Cid) ([]*wire.Receipt, error)
	ChainReadObj             func(ctx context.Context, id cid.Cid) ([]byte, error)

	StateListMessages func(ctx context.Context, match *wire.MessageMatch, key wire.TipSetKey, toHeight abi.ChainEpoch) ([]cid.Cid, error)
	StateGetActor     func(ctx context.Context, a address.Address, key wire.TipSetKey) (*wire.Actor, error)
	StateReadState    func(ctx context.Context, a address.Address, key wire.TipSetKey) (*wire.ActorState, error)
	StateAccountKey   func(ctx context.Context, a address.Address, key wire.TipSetKey) (address.Address, error)
	StateLookupID     func(ctx context.Context, a address.Address, key wire.TipSetKey) (address.Address, error)
	StateSearchMsg    func(ctx context.Context, from wire.TipSetKey, id cid.Cid, limit abi.ChainEpoch, allowReplaced bool) (*wire.MsgLookup, error)

	MpoolGetNonce         func(ctx context.Context, a address.Address) (uint64, error)
	MpoolPush             func(ctx context.Context, s *wire.SignedMessage) (cid.Cid, error)
	GasEstimateMessageGas func(ctx context.Context, m *wire.Message, spec *wire.MessageSendSpec, key wire.TipSetKey) (*wire.Message, error)

	WalletNew         func(ctx context.Context, typ string) (address.Address, error)
	WalletHas         func(ctx context.Context, a address.Address) (bool, error)
	WalletList        func(ctx context.Context) ([]address.Address, error)
	WalletSign        func(ctx context.Context, a address.Address, data []byte) (*crypto.Signature, error)
	WalletSignMessage func(ctx context.Context, a address.Address, m *wire.Message) (*wire.SignedMessage, error)
	WalletBalance     func(ctx context.Context, a address.Address) (big.Int, error)
}

// Dev are the methods that only the embedded chain has.
type Dev struct {
	DevParams   func(ctx context.Context) (wire.DevParams, error)
	DevMine     func(ctx context.Context, n int) (abi.ChainEpoch, error)
	DevFaucet   func(ctx context.Context, to address.Address, amount big.Int) (cid.Cid, error)
	DevReorg    func(ctx context.Context, n int, drop bool) (abi.ChainEpoch, error)
	DevFailNext func(ctx context.Context, code exitcode.ExitCode, count int) (bool, error)
	DevLatency  func(ctx context.Context, nanos int64) (bool, error)
}

// Client is a node. Its methods may be called at the same time.
type Client struct {
	cfg    Config
	log    *slog.Logger
	node   methods
	dev    Dev
	params paych.Params
	devnet bool // the node is an embedded chain
	// suspect is set when the node was not reached: what answers next may be
	// another one.
	suspect atomic.Bool
	closers []func()

	stop     chan struct{}
	stopOnce sync.Once
	running  sync.WaitGroup

	heads  tracker
	nonces nonces
	sent   sent
}

var (
	_ paych.Chain      = (*Client)(nil)
	_ paych.ActorCoder = (*Client)(nil)
	_ paych.Filler     = (*Client)(nil)
)

// Open connects to a node and makes sure that it is on the right network.
func Open(ctx context.Context, cfg Config) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	quietLibrary()
	c := &Client{cfg: cfg, log: cfg.Logger, stop: make(chan struct{})}
	c.nonces.ttl = cfg.PrepareTTL
	if err := c.connect(); err != nil {
		return nil, err
	}
	if err := c.meet(ctx); err != nil {
		c.disconnect()
		return nil, err
	}
	c.heads.wake = make(chan struct{}, 1)
	c.heads.cur = &headNode{next: make(chan struct{})}
	c.running.Go(c.poll) // ends with Close
	return c, nil
}

// connect makes the callable methods. It does no IO.
func (c *Client) connect() error {
	header := http.Header{}
	if c.cfg.Token != "" {
		header.Set("Authorization", "Bearer "+string(c.cfg.Token))
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = nil // a token never goes through a proxy
	transport.MaxIdleConnsPerHost = 8
	client := &http.Client{
		Transport: &transportGuard{next: transport, client: c},
		Timeout:   c.cfg.CallTimeout,
		// A redirect would carry the token elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	c.closers = append(c.closers, transport.CloseIdleConnections)
	for ns, out := range map[string]any{"Filecoin": &c.node, "Tally": &c.dev} {
		closer, err := jsonrpc.NewMergeClient(context.Background(), c.cfg.URL, ns, []any{out}, header, jsonrpc.WithHTTPClient(client))
		if err != nil {
			return fmt.Errorf("lotus: %w", err)
		}
		c.closers = append(c.closers, closer)
	}
	return nil
}

func (c *Client) disconnect() {
	for _, f := range c.closers {
		f()
	}
}

// Close ends the client. Calls that wait return.
func (c *Client) Close() error {
	c.stopOnce.Do(func() {
		close(c.stop)
		c.running.Wait()
		c.disconnect()
	})
	return nil
}

// transportGuard bounds answers, and makes an error of one that is no JSON-RPC.
type transportGuard struct {
	next   http.RoundTripper
	client *Client
}

func (t *transportGuard) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.next.RoundTrip(r)
	if err != nil {
		t.client.suspect.Store(true)
		if r.Context().Err() != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusInternalServerError || resp.StatusCode == http.StatusBadRequest {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxResponse), resp.Body}
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }()
	cause, _ := io.ReadAll(io.LimitReader(resp.Body, maxCause))
	err = fmt.Errorf("lotus: the node answered %s: %s", resp.Status, strings.TrimSpace(string(cause)))
	if resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden {
		err = fmt.Errorf("%w: %w", ErrDenied, err)
	}
	return nil, err
}

// identify asks the node for its network.
func (c *Client) identify(ctx context.Context) (string, cid.Cid, error) {
	name, err := c.node.StateNetworkName(ctx)
	if err != nil {
		return "", cid.Undef, fmt.Errorf("lotus: network name: %w", err)
	}
	first, err := c.node.ChainGetGenesis(ctx)
	if noMethod(err) {
		first, err = c.node.ChainGetTipSetByHeight(ctx, 0, nil)
	}
	if err != nil {
		return "", cid.Undef, fmt.Errorf("lotus: genesis: %w", err)
	}
	if first == nil || len(first.Cids) != 1 {
		return "", cid.Undef, errors.New("lotus: genesis: the node has none")
	}
	return name, first.Cids[0], nil
}

// meet learns the facts of the chain.
func (c *Client) meet(ctx context.Context) error {
	version, err := c.node.Version(ctx)
	if err != nil {
		return fmt.Errorf("lotus: version: %w", err)
	}
	name, genesis, err := c.identify(ctx)
	if err != nil {
		return err
	}
	if c.cfg.Network != "" && name != c.cfg.Network || c.cfg.Genesis.Defined() && genesis != c.cfg.Genesis {
		return fmt.Errorf("%w: it is %q with genesis %s", ErrWrongNetwork, name, genesis)
	}
	c.params = paych.Params{
		Network: name, Genesis: genesis, SettleDelay: defaultSettleDelay, Finality: defaultFinality,
		Epoch: time.Duration(version.BlockDelay) * time.Second,
	}
	if version.BlockDelay == 0 || version.BlockDelay > 3600 {
		return fmt.Errorf("lotus: the node says that an epoch has %d s", version.BlockDelay)
	}
	if c.devnet = strings.HasPrefix(version.Version, devnetVersion); c.devnet {
		dev, err := c.dev.DevParams(ctx)
		if err != nil {
			return fmt.Errorf("lotus: %w", err)
		}
		c.params.SettleDelay, c.params.Finality, c.params.Epoch = dev.SettleDelay, dev.Finality, time.Duration(dev.EpochNanos)
	}
	if c.cfg.SettleDelay > 0 {
		c.params.SettleDelay = c.cfg.SettleDelay
	}
	if c.cfg.Finality > 0 {
		c.params.Finality = c.cfg.Finality
	}
	if c.cfg.Poll == 0 {
		c.cfg.Poll = min(max(c.params.Epoch/10, 50*time.Millisecond), 3*time.Second)
	}
	c.suspect.Store(false)
	return nil
}

// trust makes sure, after the node was away, that it is the same chain.
func (c *Client) trust(ctx context.Context) error {
	if !c.suspect.Load() {
		return nil
	}
	name, genesis, err := c.identify(ctx)
	if err != nil {
		return err
	}
	if name != c.params.Network || genesis != c.params.Genesis {
		return fmt.Errorf("%w: it was %q with genesis %s and is %q with %s", ErrWrongNetwork, c.params.Network, c.params.Genesis, name, genesis)
	}
	c.suspect.Store(false)
	return nil
}

// Params implements paych.Chain.
func (c *Client) Params() paych.Params { return c.params }

// Devnet reports whether the node is an embedded chain.
func (c *Client) Devnet() bool { return c.devnet }

// Dev are the methods of the embedded chain; on another node they fail.
func (c *Client) Dev() *Dev { return &c.dev }

// PaychCode is the code of payment channels at the head; it changes with the
// network's version.
func (c *Client) PaychCode(ctx context.Context) (cid.Cid, error) {
	version, err := c.node.StateNetworkVersion(ctx, nil)
	if err != nil {
		return cid.Undef, fmt.Errorf("lotus: network version: %w", err)
	}
	codes, err := c.node.StateActorCodeCIDs(ctx, version)
	if err != nil {
		return cid.Undef, fmt.Errorf("lotus: codes of actors: %w", err)
	}
	id, ok := codes["paymentchannel"]
	if !ok || !id.Defined() {
		return cid.Undef, fmt.Errorf("lotus: network version %d has no payment channels", version)
	}
	return id, nil
}

// Head implements paych.Chain.
func (c *Client) Head(ctx context.Context) (abi.ChainEpoch, error) {
	ts, err := c.head(ctx)
	if err != nil {
		return 0, err
	}
	return ts.Height, nil
}

// head asks for the head.
func (c *Client) head(ctx context.Context) (*wire.TipSet, error) {
	if err := c.trust(ctx); err != nil {
		return nil, err
	}
	ts, err := c.node.ChainHead(ctx)
	if err == nil {
		err = whole(ts)
	}
	if err != nil {
		return nil, fmt.Errorf("lotus: head: %w", err)
	}
	return ts, nil
}

// at returns the tipset at height h, or the first one below it, on the chain of
// key.
func (c *Client) at(ctx context.Context, h abi.ChainEpoch, key wire.TipSetKey) (*wire.TipSet, error) {
	ts, err := c.node.ChainGetTipSetByHeight(ctx, h, key)
	if err == nil {
		err = whole(ts)
	}
	if err == nil && ts.Height > h {
		err = fmt.Errorf("the node answered with %d", ts.Height)
	}
	if lookback(err) {
		return nil, fmt.Errorf("%w: tipset at %d: %w", ErrLookback, h, err)
	}
	if err != nil {
		return nil, fmt.Errorf("lotus: tipset at %d: %w", h, err)
	}
	return ts, nil
}

// whole reports a tipset that cannot be worked with.
func whole(ts *wire.TipSet) error {
	if ts == nil || len(ts.Cids) == 0 || len(ts.Blocks) == 0 || ts.Blocks[0] == nil {
		return errors.New("the node sent no tipset")
	}
	return nil
}

// ResolveKey implements paych.Chain.
func (c *Client) ResolveKey(ctx context.Context, a address.Address) (address.Address, error) {
	switch a.Protocol() {
	case address.SECP256K1, address.BLS:
		return a, nil
	}
	key, err := c.node.StateAccountKey(ctx, a, nil)
	switch {
	case actorNotFound(err), says(err, "not account", "not an account"):
		return address.Undef, fmt.Errorf("%w: account %s", paych.ErrNotFound, a)
	case err != nil:
		return address.Undef, fmt.Errorf("lotus: key of %s: %w", a, err)
	}
	return key, nil
}

// Balance implements paych.Chain.
func (c *Client) Balance(ctx context.Context, a address.Address) (big.Int, error) {
	v, err := c.node.WalletBalance(ctx, a)
	switch {
	case actorNotFound(err):
		return big.Zero(), nil
	case err != nil:
		return big.Zero(), fmt.Errorf("lotus: balance of %s: %w", a, err)
	}
	return nonNil(v), nil
}

func nonNil(v big.Int) big.Int {
	if v.Int == nil {
		return big.Zero()
	}
	return v
}

// Object implements wire.Objects.
func (c *Client) Object(ctx context.Context, id cid.Cid) ([]byte, error) {
	return c.node.ChainReadObj(ctx, id)
}

// NodeWallet is the wallet of the node. Its keys may be used by others too.
func (c *Client) NodeWallet() paych.Wallet { return nodeWallet{c} }

type nodeWallet struct{ c *Client }

func (w nodeWallet) Has(ctx context.Context, a address.Address) (bool, error) {
	return w.c.node.WalletHas(ctx, a)
}

func (w nodeWallet) List(ctx context.Context) ([]address.Address, error) {
	return w.c.node.WalletList(ctx)
}

func (w nodeWallet) New(ctx context.Context) (address.Address, error) {
	return w.c.node.WalletNew(ctx, "secp256k1")
}

// Sign checks what the node signed: a wrong signature on a cheque would be taken
// for ours.
func (w nodeWallet) Sign(ctx context.Context, a address.Address, data []byte) (*crypto.Signature, error) {
	sig, err := w.c.node.WalletSign(ctx, a, data)
	if err != nil {
		return nil, fmt.Errorf("lotus: sign with %s: %w", a, err)
	}
	if sig == nil {
		return nil, fmt.Errorf("lotus: sign with %s: the node sent no signature", a)
	}
	if a.Protocol() == address.SECP256K1 {
		if err := wire.Verify(a, *sig, bytes.Clone(data)); err != nil {
			return nil, fmt.Errorf("lotus: the node signed wrongly: %w", err)
		}
	}
	return sig, nil
}

// quietLibrary stops go-jsonrpc's own logger, which prints whole requests.
var quietLibrary = sync.OnceFunc(func() { _ = logging.SetLogLevel("rpc", "fatal") })
