package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/crypto"

	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/paychtest"
	"github.com/tallystick/tally/paych/wallet"
)

const (
	voucherCreateGoal = 8000
	voucherAddGoal    = 6000
	// voucherGrowth is by how much the 10^6-th voucher of a lane may cost more
	// than the 10th.
	voucherGrowth = 1.1
	// voucherStock is how many vouchers a second are made ahead for adds; a run
	// that is faster ends its rounds early.
	voucherStock = 16_000
	// A lane counts as new from its 10th voucher on, for laneYouth more: a multiple
	// of stepsAtOnce, which are timed together.
	laneTenth   = 9
	laneYouth   = 512
	stepsAtOnce = 8
	// roadAmount is what each channel holds, in attoFIL: more than all vouchers
	// of a run ask for.
	roadAmount = 1 << 50
)

// benchVoucher measures what two managers of payment channels do a voucher.
func benchVoucher(ctx context.Context, o *Options) ([]Figure, error) {
	var all []Figure
	for _, part := range []func(context.Context, *Options) ([]Figure, error){
		voucherMemory, voucherGrown, voucherDisk,
	} {
		figures, err := part(ctx, o)
		if err != nil {
			return nil, err
		}
		all = append(all, figures...)
	}
	return all, nil
}

// pen is the wallet of the program, held in memory. While scribble is set it
// gives a signature of nobody at once, in order to come to the n-th voucher of a
// lane; that the manager believes its own wallet makes it possible.
type pen struct {
	*wallet.Mem
	scribble atomic.Bool
}

var nobody = append(make([]byte, 31), append([]byte{1}, append(make([]byte, 31), 1, 0)...)...)

// Sign implements paych.Wallet.
func (p *pen) Sign(ctx context.Context, a address.Address, msg []byte) (*crypto.Signature, error) {
	if p.scribble.Load() {
		return &crypto.Signature{Type: crypto.SigTypeSecp256k1, Data: nobody}, nil
	}
	return p.Mem.Sign(ctx, a, msg)
}

// road is a payer and a payee with channels from one to the other.
type road struct {
	payer, payee *paych.Manager
	stores       [2]*durable.Store // of payer and payee
	chain        *paychtest.Chain
	pen          *pen        // of the payer
	wallet       *wallet.Mem // of the payee
	from         address.Address
	lanes        []*lane
}

var quiet = paych.Config{Logger: slog.New(slog.DiscardHandler)}

// lane is one lane of one channel. It has one user at a time.
type lane struct {
	road   *road
	ch     address.Address
	id     uint64
	amount int64
	stock  []*paych.SignedVoucher // made and not yet added
}

// newRoad opens both managers on stores of their own and channels between them,
// each with some lanes.
func newRoad(ctx context.Context, channels, lanes int, store func(name string) (*durable.Store, error)) (_ *road, err error) {
	r := &road{chain: paychtest.NewChain(paychtest.DefaultParams()), pen: &pen{Mem: wallet.NewMem()}, wallet: wallet.NewMem()}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	var to address.Address
	for i, side := range []struct {
		name    string
		wallet  paych.Wallet
		key     *address.Address
		manager **paych.Manager
	}{{"payer", r.pen, &r.from, &r.payer}, {"payee", r.wallet, &to, &r.payee}} {
		if *side.key, err = side.wallet.New(ctx); err != nil {
			return nil, err
		}
		r.chain.Fund(*side.key, 1<<62)
		if r.stores[i], err = store(side.name); err != nil {
			return nil, err
		}
		if *side.manager, err = paych.Open(ctx, r.stores[i], r.chain, side.wallet, quiet); err != nil {
			return nil, err
		}
	}
	for range channels {
		id, err := r.payer.PaychCreate(ctx, r.from, to, big.NewInt(roadAmount))
		if err != nil {
			return nil, err
		}
		r.chain.Mine(4)
		ch, err := r.payer.PaychWaitReady(ctx, id)
		if err != nil {
			return nil, err
		}
		for i := range lanes {
			r.lanes = append(r.lanes, &lane{road: r, ch: ch, id: uint64(i)})
		}
	}
	return r, nil
}

// close ends what there is, managers before stores.
func (r *road) close() error {
	var errs []error
	for _, m := range [...]*paych.Manager{r.payer, r.payee} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	for _, s := range r.stores {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	return errors.Join(errs...)
}

// create makes the lane's next voucher.
func (l *lane) create(ctx context.Context) (*paych.SignedVoucher, error) {
	l.amount++
	res, err := l.road.payer.PaychVoucherCreate(ctx, l.ch, big.NewInt(l.amount), l.id)
	if err == nil && res.Voucher == nil {
		err = fmt.Errorf("short of %v attoFIL", res.Shortfall)
	}
	if err != nil {
		return nil, fmt.Errorf("create voucher %d of lane %d: %w", l.amount, l.id, err)
	}
	return res.Voucher, nil
}

// createOne is create for a measurement of it alone.
func (l *lane) createOne(ctx context.Context) (bool, error) {
	_, err := l.create(ctx)
	return true, err
}

// refill makes n vouchers for addOne.
func (l *lane) refill(ctx context.Context, n int) error {
	l.stock = make([]*paych.SignedVoucher, 0, n)
	for range n {
		sv, err := l.create(ctx)
		if err != nil {
			return err
		}
		l.stock = append(l.stock, sv)
	}
	return nil
}

// addOne takes the next voucher of the stock; false where there is none.
func (l *lane) addOne(ctx context.Context) (bool, error) {
	if len(l.stock) == 0 {
		return false, nil
	}
	sv := l.stock[0]
	l.stock = l.stock[1:]
	delta, err := l.road.payee.PaychVoucherAdd(ctx, l.ch, sv, nil, big.Zero())
	if err == nil && delta.Sign() <= 0 {
		err = errors.New("it brings nothing")
	}
	if err != nil {
		return false, fmt.Errorf("add voucher %d of lane %d: %w", sv.Nonce, l.id, err)
	}
	return true, nil
}

// fill makes what all lanes together can take in the time of one figure.
func (r *road) fill(ctx context.Context, o *Options, cores int) error {
	n := int(o.Duration.Seconds()*voucherStock)*cores/len(r.lanes) + 1
	return each(len(r.lanes), 2*runtime.GOMAXPROCS(0), func(i int) error { return r.lanes[i].refill(ctx, n) })
}

// flow is the probe of all lanes at once, each with a caller that does one after
// the other.
func (r *road) flow(one func(*lane, context.Context) (bool, error)) probe {
	return func(ctx context.Context, d time.Duration) (float64, error) {
		return together(len(r.lanes), d, func(i int) (bool, error) { return one(r.lanes[i], ctx) })
	}
}

// together is how often a second callers can do one together, each one after the
// other for d, or until the first has nothing left to do.
func together(callers int, d time.Duration, one func(i int) (bool, error)) (float64, error) {
	var (
		total atomic.Int64
		over  atomic.Bool
	)
	begin := time.Now()
	err := each(callers, callers, func(i int) error {
		n := int64(0)
		for time.Since(begin) < d && !over.Load() {
			ok, err := one(i)
			if err != nil {
				over.Store(true)
				return err
			}
			if !ok {
				over.Store(true)
				break
			}
			n++
		}
		total.Add(n)
		return nil
	})
	return float64(total.Load()) / time.Since(begin).Seconds(), err
}

// stamp is what the cryptography of vouchers is measured with.
type stamp struct {
	from address.Address
	pen  *pen
	text []byte
	sig  *crypto.Signature
}

// stampOf takes a voucher of the road.
func (r *road) stampOf(ctx context.Context) (*stamp, error) {
	sv, err := r.lanes[0].create(ctx)
	if err != nil {
		return nil, err
	}
	text, err := paych.SigningBytes(sv)
	return &stamp{from: r.from, pen: r.pen, text: text, sig: sv.Signature}, err
}

// sign is the probe of signatures by themselves, on some cores.
func (s *stamp) sign(callers int) probe {
	return func(ctx context.Context, d time.Duration) (float64, error) {
		return together(callers, d, func(int) (bool, error) {
			_, err := s.pen.Sign(ctx, s.from, s.text)
			return true, err
		})
	}
}

// check is the probe of the recovery of the signer by itself.
func (s *stamp) check(callers int) probe {
	return func(_ context.Context, d time.Duration) (float64, error) {
		return together(callers, d, func(int) (bool, error) {
			return true, paych.VerifySignature(s.sig, s.from, s.text)
		})
	}
}

// synced is the probe of one caller with the crypto of one voucher and one
// fdatasync in a row, and of many: the lesser of all cores on the crypto and
// Pebble's synced records.
func synced(o *Options, callers int, alone func(callers int) probe) probe {
	return func(ctx context.Context, d time.Duration) (float64, error) {
		rate, err := alone(min(callers, runtime.GOMAXPROCS(0)))(ctx, d/4)
		if err != nil {
			return 0, err
		}
		fig, err := durable.BenchJournal(ctx, o.Dir, callers, d/4)
		if err != nil {
			return 0, err
		}
		if callers == 1 {
			return 1 / (1/rate + 1/fig.Fdatasync), nil
		}
		return min(rate, fig.Pebble), nil
	}
}

func inMemory(string) (*durable.Store, error) { return durabletest.NewMem(), nil }

// voucherMemory is one caller, then one a core on channels of their own.
func voucherMemory(ctx context.Context, o *Options) (_ []Figure, err error) {
	var all []Figure
	cores := runtime.GOMAXPROCS(0)
	for _, v := range []struct {
		name    string
		callers int
		of      string
	}{{"serial", 1, "one core"}, {"parallel", cores, "all cores"}} {
		o.say("voucher: %s, in memory", v.name)
		figures, err := voucherPair(ctx, o, v.callers, 1, inMemory, func(_ int, alone func(int) probe) probe { return alone(v.callers) })
		if err != nil {
			return nil, err
		}
		for i, what := range []string{"signature", "recovery of the signer"} {
			f := rate("voucher/"+figures[i].what+"/"+v.name, "vouchers/s", figures[i].ours, figures[i].limit,
				v.of+" on one "+what+" a voucher, of the same library", figures[i].goal).
				with("callers", v.callers).withCPU(figures[i].ours, figures[i].limit)
			all = append(all, f)
		}
	}
	return all, nil
}

// measured is one of the two figures of a pair.
type measured struct {
	what        string
	goal        float64
	ours, limit series
}

// voucherPair measures create and add of all lanes of a new road.
func voucherPair(ctx context.Context, o *Options, channels, lanes int, store func(string) (*durable.Store, error),
	limit func(callers int, alone func(int) probe) probe,
) (_ []measured, err error) {
	r, err := newRoad(ctx, channels, lanes, store)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	s, err := r.stampOf(ctx)
	if err != nil {
		return nil, err
	}
	callers := len(r.lanes)
	creates, err := rounds(ctx, o, r.flow((*lane).createOne), limit(callers, s.sign))
	if err != nil {
		return nil, err
	}
	if err := r.fill(ctx, o, min(callers, runtime.GOMAXPROCS(0))); err != nil {
		return nil, err
	}
	adds, err := rounds(ctx, o, r.flow((*lane).addOne), limit(callers, s.check))
	return []measured{
		{"create", voucherCreateGoal, creates[0], creates[1]},
		{"add", voucherAddGoal, adds[0], adds[1]},
	}, err
}

// voucherGrown holds the 10^6-th voucher of a lane against the 10th.
func voucherGrown(ctx context.Context, o *Options) (_ []Figure, err error) {
	n := scale(o, 1_000_000, 200)
	r, err := newRoad(ctx, 2, 1, inMemory)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	old, young := r.lanes[0], r.lanes[1]
	for _, l := range r.lanes { // so that the payee knows both channels
		if err := l.refill(ctx, 1); err != nil {
			return nil, err
		}
		if _, err := l.addOne(ctx); err != nil {
			return nil, err
		}
	}

	o.say("voucher: the first %d of a lane", n)
	if err := old.scribbleTo(ctx, n); err != nil {
		return nil, err
	}
	// A young lane that has grown up makes place for the next.
	creates, err := rounds(ctx, o,
		old.steps(func(context.Context) error { return nil }, (*lane).createOne),
		young.steps(func(ctx context.Context) error {
			if young.amount < laneYouth {
				return nil
			}
			young.next()
			return young.scribbleTo(ctx, laneTenth)
		}, (*lane).createOne))
	if err != nil {
		return nil, err
	}

	o.say("voucher: what a payee takes after the first %d", n)
	if err := r.inherit(ctx, old); err != nil {
		return nil, err
	}
	adds, err := rounds(ctx, o,
		old.steps(func(ctx context.Context) error {
			if len(old.stock) > 0 {
				return nil
			}
			return old.refill(ctx, laneYouth)
		}, (*lane).addOne),
		young.steps(func(ctx context.Context) error {
			if len(young.stock) > 0 {
				return nil
			}
			young.next()
			if err := young.refill(ctx, laneTenth+laneYouth); err != nil {
				return err
			}
			for range laneTenth {
				if _, err := young.addOne(ctx); err != nil {
					return err
				}
			}
			return nil
		}, (*lane).addOne))
	if err != nil {
		return nil, err
	}
	grown := func(what string, m []series) Figure {
		return cost(fmt.Sprintf("voucher/%s/n=%d", what, n), "ns", m[0], m[1], "the same at the 10th of a new lane", 0).
			wantRatio(1 / voucherGrowth)
	}
	return []Figure{
		grown("create", creates).note("the vouchers before were made without a signature"),
		grown("add", adds).note("the payee began with the lane as the payer's store had it, which is as its own would be"),
	}, nil
}

// steps is the probe of one voucher after the other on l, in nanoseconds of one.
// before sees to it that the next stepsAtOnce can be done; what it takes falls on
// few blocks, and the median leaves it out.
func (l *lane) steps(before func(context.Context) error, one func(*lane, context.Context) (bool, error)) probe {
	return func(ctx context.Context, d time.Duration) (ns float64, err error) {
		ns = stepsFor(d, stepsAtOnce, func(n int) {
			if err == nil {
				err = before(ctx)
			}
			for range n {
				if err != nil {
					return
				}
				_, err = one(l, ctx)
			}
		})
		return ns, err
	}
}

// next makes l the next lane of its channel, as new.
func (l *lane) next() { *l = lane{road: l.road, ch: l.ch, id: l.id + 1} }

// scribbleTo makes the vouchers up to the n-th without a signature.
func (l *lane) scribbleTo(ctx context.Context, n int) error {
	l.road.pen.scribble.Store(true)
	defer l.road.pen.scribble.Store(false)
	for l.amount < int64(n) {
		if _, err := l.create(ctx); err != nil {
			return err
		}
	}
	return nil
}

// inherit opens the payee again with the payer's lanes, as if it had taken all
// their vouchers: two minutes of checking signatures, for old alone. Both number
// their channels alike.
func (r *road) inherit(ctx context.Context, old *lane) error {
	if err := r.payee.Close(); err != nil {
		return err
	}
	var b durable.Batch
	if err := r.stores[0].Scan(ctx, "/paych/l/", "", func(key string, rec []byte) error {
		b.Put(key, bytes.Clone(rec))
		return nil
	}); err != nil {
		return err
	}
	if err := r.stores[1].Commit(ctx, &b); err != nil {
		return err
	}
	payee, err := paych.Open(ctx, r.stores[1], r.chain, r.wallet, quiet)
	if err != nil {
		return err
	}
	r.payee = payee
	list, err := payee.PaychVoucherList(ctx, old.ch)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(list, func(sv *paych.SignedVoucher) bool { return sv.Lane == old.id && sv.Nonce == uint64(old.amount) }) {
		return fmt.Errorf("the payee has no voucher %d", old.amount)
	}
	return nil
}

// voucherDisk is one caller, then many on lanes of several channels, with both
// sides on disk.
func voucherDisk(ctx context.Context, o *Options) (_ []Figure, err error) {
	var all []Figure
	for _, v := range []struct {
		name            string
		channels, lanes int
	}{{"serial", 1, 1}, {"in-flight", scale(o, 64, 2), scale(o, 4, 2)}} {
		callers := v.channels * v.lanes
		o.say("voucher: on disk, %d at once", callers)
		dir, remove, err := o.folder()
		if err != nil {
			return nil, err
		}
		pair, err := voucherPair(ctx, o, v.channels, v.lanes,
			func(name string) (*durable.Store, error) { return openDisk(dir + "/" + name) },
			func(callers int, alone func(int) probe) probe { return synced(o, callers, alone) })
		if err := errors.Join(err, remove()); err != nil {
			return nil, err
		}
		for i, what := range []string{"signature", "recovery"} {
			limit := "one " + what + " and one fdatasync in a row"
			if callers > 1 {
				limit = fmt.Sprintf("the lesser of all cores on one %s, and Pebble's synced records by %d writers", what, callers)
			}
			f := rate("voucher/"+pair[i].what+"-durable/"+v.name, "vouchers/s", pair[i].ours, pair[i].limit, limit, 0).
				with("in_flight", callers).with("channels", v.channels).withCPU(pair[i].ours, series{})
			all = append(all, f)
		}
	}
	return all, nil
}
