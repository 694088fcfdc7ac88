package devnet

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/paych/lotus/wire"
)

// Bounds of the pool.
const (
	// maxPool bounds pending messages, and maxPoolBytes their memory.
	maxPool      = 5000
	maxPoolBytes = 16 << 20
	// maxPoolSender bounds those of one sender, as Lotus does for local ones.
	maxPoolSender = 1000
	// maxNonceGap bounds how far ahead of its turn a message may come; a hole
	// in between keeps it waiting for ever.
	maxNonceGap = maxPoolSender
	// rbfPercent is by how much the premium must rise for a message to take the
	// place of another, in percent of it.
	rbfPercent = 125
)

// What the pool answers; the texts are those of Lotus, which clients of real
// nodes have to tell apart by text.
var (
	ErrTooBig      = errors.New("message too big")
	ErrNonceTooLow = errors.New("message nonce too low")
	ErrNonceGap    = errors.New("unfulfilled nonce gap")
	ErrFunds       = errors.New("not enough funds to execute transaction")
	ErrPremium     = errors.New("replace by fee has too low GasPremium")
	ErrExists      = errors.New("validation failure")
	ErrPoolFull    = errors.New("too many pending messages for actor")
)

// pending is a message that waits for a block.
type pending struct {
	msg  *wire.SignedMessage
	cid  cid.Cid
	size int
	seq  uint64 // order of arrival
}

// pool is owned by the owner goroutine.
type pool struct {
	bySender map[address.Address]map[uint64]*pending
	count    int
	bytes    int
	seq      uint64
}

func newPool() *pool { return &pool{bySender: map[address.Address]map[uint64]*pending{}} }

// check reports why p cannot enter, beside what the state says.
func (p *pool) check(m *pending) error {
	from, nonce := m.msg.Message.From, m.msg.Message.Nonce
	if old, ok := p.bySender[from][nonce]; ok {
		if old.cid == m.cid {
			return fmt.Errorf("message from %s with nonce %d already in mpool: %w", from, nonce, ErrExists)
		}
		least := minPremium(old.msg.Message.GasPremium)
		if nonNil(m.msg.Message.GasPremium).LessThan(least) {
			return fmt.Errorf("message from %s with nonce %d already in mpool, increase GasPremium to %s from %s to trigger replace by fee: %w",
				from, nonce, least, nonNil(m.msg.Message.GasPremium), ErrPremium)
		}
		return nil
	}
	if p.count >= maxPool || p.bytes+m.size > maxPoolBytes || len(p.bySender[from]) >= maxPoolSender {
		return fmt.Errorf("%d messages are pending, %d of %s: %w", p.count, len(p.bySender[from]), from, ErrPoolFull)
	}
	return nil
}

// minPremium is what a replacement must offer at least. Above 0, so that a
// chain without fees has an order too.
func minPremium(old big.Int) big.Int {
	least := big.Div(big.Mul(nonNil(old), big.NewInt(rbfPercent)), big.NewInt(100))
	if !least.GreaterThan(nonNil(old)) {
		least = big.Add(nonNil(old), big.NewInt(1))
	}
	return least
}

// add puts m in, in place of what has its nonce.
func (p *pool) add(m *pending) {
	from, nonce := m.msg.Message.From, m.msg.Message.Nonce
	p.remove(from, nonce)
	if p.bySender[from] == nil {
		p.bySender[from] = map[uint64]*pending{}
	}
	p.seq++
	m.seq = p.seq
	p.bySender[from][nonce] = m
	p.count++
	p.bytes += m.size
}

func (p *pool) remove(from address.Address, nonce uint64) {
	old, ok := p.bySender[from][nonce]
	if !ok {
		return
	}
	delete(p.bySender[from], nonce)
	if len(p.bySender[from]) == 0 {
		delete(p.bySender, from)
	}
	p.count--
	p.bytes -= old.size
}

// next is the nonce of a new message of a sender whose turn is at nonce.
func (p *pool) next(from address.Address, nonce uint64) uint64 {
	for p.bySender[from][nonce] != nil {
		nonce++
	}
	return nonce
}

// turns are the first messages of each sender, best premium first, then by
// arrival. used has the nonces that the block took already.
func (p *pool) turns(used map[address.Address]uint64) []*pending {
	var first []*pending
	for from, byNonce := range p.bySender {
		nonce, ok := used[from]
		if !ok {
			nonce = slices.Min(slices.Collect(maps.Keys(byNonce)))
		} else {
			nonce++
		}
		if m := byNonce[nonce]; m != nil {
			first = append(first, m)
		}
	}
	slices.SortFunc(first, func(a, b *pending) int {
		if c := nonNil(b.msg.Message.GasPremium).Int.Cmp(nonNil(a.msg.Message.GasPremium).Int); c != 0 {
			return c
		}
		return cmp.Compare(a.seq, b.seq)
	})
	return first
}

// all are the pending messages by sender and nonce.
func (p *pool) of(from address.Address) []*pending {
	return slices.SortedFunc(maps.Values(p.bySender[from]), func(a, b *pending) int {
		if a.msg.Message.Nonce < b.msg.Message.Nonce {
			return -1
		}
		return 1
	})
}
