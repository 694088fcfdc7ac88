package lotus_test

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/filecoin-project/go-address"
	gocrypto "github.com/filecoin-project/go-crypto"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/crypto"
	"github.com/filecoin-project/go-state-types/exitcode"
	"go.uber.org/goleak"

	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paych/devnet"
	"github.com/tallystick/tally/paych/devnet/chaintest"
	"github.com/tallystick/tally/paych/lotus"
	"github.com/tallystick/tally/paych/lotus/wire"
)

func TestMain(m *testing.M) {
	// A worker of a library of go-jsonrpc runs for ever.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
	os.Exit(0)
}

const token = "0123456789abcdef0123456789abcdef"

func fil(n int64) big.Int { return big.Mul(big.NewInt(n), big.NewInt(1e18)) }

// keyring is a local wallet.
type keyring struct {
	mu   sync.Mutex
	keys map[address.Address][]byte
}

func (k *keyring) Has(_ context.Context, a address.Address) (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.keys[a] != nil, nil
}

func (k *keyring) Sign(_ context.Context, a address.Address, msg []byte) (*crypto.Signature, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.keys[a] == nil {
		return nil, errors.New("no key")
	}
	return wire.Sign(k.keys[a], msg)
}

func (k *keyring) List(context.Context) ([]address.Address, error) { return nil, nil }

func (k *keyring) New(context.Context) (address.Address, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key, err := gocrypto.GenerateKey()
	if err != nil {
		return address.Undef, err
	}
	a, err := wire.KeyAddress(key)
	if err != nil {
		return address.Undef, err
	}
	if k.keys == nil {
		k.keys = map[address.Address][]byte{}
	}
	k.keys[a] = key
	return a, nil
}

// node is a devnet behind HTTP.
type node struct {
	*devnet.Chain
	addr string
	stop func()
}

func url(addr string) string { return "http://" + addr + devnet.Path }

// serve answers for a chain at addr, a free port where it is empty.
func serve(t testing.TB, c *devnet.Chain, addr string) *node {
	t.Helper()
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	s, err := devnet.NewServer(c, token)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }() // ends with Shutdown
	n := &node{Chain: c, addr: l.Addr().String(), stop: sync.OnceFunc(func() {
		// A connection that was opened and not used counts as busy for 5 s.
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := errors.Join(s.Shutdown(ctx), <-ended); err != nil {
			t.Error(err)
		}
	})}
	t.Cleanup(n.stop)
	return n
}

func newChain(t testing.TB, cfg devnet.Config) *devnet.Chain {
	t.Helper()
	store := durabletest.NewMem()
	if cfg.BlockTime == 0 {
		cfg.BlockTime = devnet.Manual
	}
	c, err := devnet.Open(t.Context(), store, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(c.Close(), store.Close()); err != nil {
			t.Error(err)
		}
	})
	return c
}

func open(t testing.TB, addr string, cfg lotus.Config) *lotus.Client {
	t.Helper()
	cfg.URL, cfg.Token = url(addr), token
	if cfg.Poll == 0 {
		cfg.Poll = 2 * time.Millisecond
	}
	c, err := lotus.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func (n *node) mine(t testing.TB, blocks int) {
	t.Helper()
	if err := n.Mine(context.WithoutCancel(t.Context()), blocks); err != nil {
		t.Error(err)
	}
	if err := n.Check(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
}

// under is a chain behind the adapter. Without a wallet the node signs.
func under(t testing.TB, cfg lotus.Config) (*chaintest.Under, *node, *lotus.Client) {
	t.Helper()
	n := serve(t, newChain(t, devnet.Config{SettleDelay: 5}), "")
	c := open(t, n.addr, cfg)
	w := c.NodeWallet()
	if cfg.Wallet != nil {
		w = cfg.Wallet
	}
	code, err := c.PaychCode(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return &chaintest.Under{
		Chain: c, Code: code,
		Account: func(t testing.TB, amount big.Int) address.Address {
			t.Helper()
			a, err := w.New(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if has, err := w.Has(t.Context(), a); err != nil || !has {
				t.Fatalf("wallet has not %s: %v", a, err)
			}
			if _, err := c.Dev().DevFaucet(t.Context(), a, amount); err != nil {
				t.Fatal(err)
			}
			n.mine(t, 2)
			return a
		},
		Sign: func(t testing.TB, a address.Address, data []byte) *crypto.Signature {
			t.Helper()
			sig, err := w.Sign(t.Context(), a, data)
			if err != nil {
				t.Fatal(err)
			}
			return sig
		},
		Mine: n.mine,
		Reorg: func(t testing.TB, blocks int) {
			t.Helper()
			if _, err := c.Dev().DevReorg(t.Context(), blocks, false); err != nil {
				t.Fatal(err)
			}
		},
		FailNext: func(t testing.TB, code exitcode.ExitCode) {
			t.Helper()
			if _, err := c.Dev().DevFailNext(t.Context(), code, 1); err != nil {
				t.Fatal(err)
			}
		},
	}, n, c
}

func TestConformanceNodeWallet(t *testing.T) {
	chaintest.Run(t, func(t testing.TB) *chaintest.Under {
		u, _, _ := under(t, lotus.Config{})
		return u
	})
}

func TestConformanceLocalWallet(t *testing.T) {
	chaintest.Run(t, func(t testing.TB) *chaintest.Under {
		u, _, _ := under(t, lotus.Config{Wallet: &keyring{}})
		return u
	})
}
