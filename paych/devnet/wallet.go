package devnet

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/filecoin-project/go-address"
	gocrypto "github.com/filecoin-project/go-crypto"

	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paych/lotus/wire"
)

// maxKeys bounds the node's wallet.
const maxKeys = 10_000

// errNoKey: the text is that of Lotus.
var errNoKey = errors.New("key not found")

// The node's own wallet, as a Lotus node has one. Its keys lie open in the
// store: they are of play money.

func (c *Chain) newKey(ctx context.Context) (address.Address, error) {
	all, err := c.keys(ctx)
	if err != nil {
		return address.Undef, err
	}
	if len(all) >= maxKeys {
		return address.Undef, fmt.Errorf("%w: %d keys", ErrLimit, len(all))
	}
	key, err := gocrypto.GenerateKey()
	if err != nil {
		return address.Undef, fmt.Errorf("devnet: make key: %w", err)
	}
	a, err := wire.KeyAddress(key)
	if err != nil {
		return address.Undef, fmt.Errorf("devnet: make key: %w", err)
	}
	var b durable.Batch
	putBytes(&b, keyOfAddr(keyKey, a), key)
	return a, c.store.Commit(ctx, &b)
}

// keys lists the wallet, without the faucet.
func (c *Chain) keys(ctx context.Context) ([]address.Address, error) {
	all := []address.Address{}
	err := c.store.Scan(ctx, keyKey, "", func(key string, _ []byte) error {
		raw, err := durable.ParseKeyID(strings.TrimPrefix(key, keyKey))
		if err != nil {
			return err
		}
		a, err := address.NewFromBytes(raw)
		if err != nil {
			return err
		}
		if a != c.meta.Faucet {
			all = append(all, a)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("devnet: list keys: %w", err)
	}
	return all, nil
}

// key is the private key of a; the faucet's is not given out.
func (c *Chain) key(ctx context.Context, a address.Address) ([]byte, error) {
	if a == c.meta.Faucet || a == address.Undef {
		return nil, errNoKey
	}
	key, err := c.getBytes(ctx, keyOfAddr(keyKey, a))
	if errors.Is(err, durable.ErrNotFound) {
		return nil, fmt.Errorf("%w: %s", errNoKey, a)
	}
	return key, err
}
