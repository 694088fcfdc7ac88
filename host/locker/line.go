package locker

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host/settler"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paystream/lock"
)

// maxWaiting bounds the events that wait for a line. A neighbour has at most a few
// for each of 64 slots.
const maxWaiting = 4096

// line is our side of one channel's slots, with one goroutine that owns them.
type line struct {
	k    *Locker
	ch   address.Address
	peer peer.ID
	role lock.Role
	tag  string

	wake chan struct{} // capacity 1

	// mu guards the fields below.
	mu     sync.Mutex
	inbox  []item
	failed error
	now    int64 // the head's height, of the newest view; 0: none yet
	list   []lock.Lock
	gone   bool
	// submitting are the vouchers on their way, by lane.
	submitting map[uint64]bool
	from, to   address.Address // whose signatures count
	free       tally.Amount    // of the channel, at the last look
	room       int             // locks that still find a slot
	closing    bool            // the channel settles, or is gone

	// Of the goroutine.
	slots *lock.Slots
	saved bool // the line's own record is on disk
}

// item is one entry of the inbox.
type item struct {
	ev     lock.Event
	record func(*durable.Batch)
	done   func(error)
	tell   bool // say what we have
	ask    bool // and ask for the same
}

// job is an item that was stepped: what is left of its duties.
type job struct {
	fx     []lock.Effect
	record func(*durable.Batch)
	done   func(error)
	err    error
}

func (k *Locker) newLine(ch address.Address, p peer.ID, role lock.Role, tag string) *line {
	return &line{
		k: k, ch: ch, peer: p, role: role, tag: tag, wake: make(chan struct{}, 1),
		submitting: make(map[uint64]bool), slots: lock.New(role, k.terms),
	}
}

// load reads the slots. The guard is the highest lane, and the rest is checked when
// all is read.
func (l *line) load(ctx context.Context) error {
	l.saved = true
	dir := slotDir(l.ch)
	err := l.k.store.Scan(ctx, dir, "", func(key string, rec []byte) error {
		_, payload, err := durable.Unseal(key, lock.RecordVersion, rec)
		if err != nil {
			return err
		}
		lane, err := durable.ParseKeyUint(key[len(dir):])
		if err != nil {
			return err
		}
		return l.slots.Restore(lane, payload)
	})
	if err == nil {
		err = l.slots.Check()
	}
	if err != nil {
		return fmt.Errorf("locker: slots of channel %s: %w", l.ch, err)
	}
	l.list, l.room = l.slots.Locks(), l.slots.Room()
	return nil
}

// resume does again what a stop may have left out.
func (l *line) resume() {
	for _, e := range l.slots.Resume(nil) {
		if _, err := l.k.paych.PaychVoucherSecret(l.k.ctx, l.ch, e.Preimage); err != nil && l.k.ctx.Err() == nil {
			l.k.log.Error("preimage not with the chain's watcher; the line claims by itself", "channel", l.ch, "err", err)
		}
	}
}

func (l *line) ctx(ctx context.Context) context.Context { return paych.WithTag(ctx, l.tag) }

func (l *line) locks() []lock.Lock {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]lock.Lock(nil), l.list...)
}

// ended reports whether the channel is gone for good.
func (l *line) ended() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.gone
}

func (l *line) has(id uint64) bool {
	for _, x := range l.locks() {
		if x.ID == id {
			return true
		}
	}
	return false
}

// put queues an item.
func (l *line) put(it item) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.failed != nil:
		return l.failed
	case l.k.ctx.Err() != nil:
		return ErrClosed
	case len(l.inbox) >= maxWaiting:
		return ErrBusy
	}
	l.inbox = append(l.inbox, it)
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return nil
}

// ask queues an item and waits until its duties are done. Where ctx ends first it
// goes on, and its outcome is told to the carrier.
func (l *line) ask(ctx context.Context, it item) error {
	got := make(chan error, 1)
	it.done = func(err error) { got <- err }
	if err := l.put(it); err != nil {
		return err
	}
	select {
	case err := <-got:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-l.k.ctx.Done():
		return ErrClosed
	}
}

// see takes the chain's view, and what preimages it shows, before it.
func (l *line) see(ctx context.Context) error {
	head, final, err := l.k.paych.PaychViews(ctx, l.ch)
	if err != nil {
		return fmt.Errorf("locker: channel %s: %w", l.ch, err)
	}
	l.k.saw(int64(head.Height))
	l.count(ctx)
	l.mu.Lock()
	same, list, known := l.now == int64(head.Height), l.list, l.from != address.Undef
	from, to := l.from, l.to
	l.mu.Unlock()
	if same && known {
		return nil
	}
	if !known {
		info, err := l.k.paych.PaychInfo(ctx, l.ch)
		if err != nil {
			return fmt.Errorf("locker: channel %s: %w", l.ch, err)
		}
		from, to = info.From, info.To
	}
	if l.role == lock.Payer {
		for _, x := range list {
			secret, err := l.shown(ctx, &x)
			if err != nil {
				return err
			}
			if secret != nil && x.Phase == lock.Locked {
				if err := l.put(item{ev: lock.Event{Kind: lock.EvPreimage, ID: x.ID, Preimage: *secret, OnChain: true}}); err != nil {
					return err
				}
			}
		}
	}
	err = l.ask(ctx, item{ev: lock.Event{
		Kind: lock.EvChain, Head: viewOf(&head, l.k.terms.Slots), Final: viewOf(&final, l.k.terms.Slots),
	}})
	if err == nil && !known && !l.ended() {
		l.mu.Lock()
		l.from, l.to = from, to
		l.mu.Unlock()
		err = l.put(item{tell: true, ask: true}) // what came before was not heard
	}
	return err
}

// shown is what opens a lock of ours, where the chain has shown it.
func (l *line) shown(ctx context.Context, x *lock.Lock) (*tally.Preimage, error) {
	if x.Point != 0 {
		return l.k.paych.PaychSecretOfPoint(ctx, l.ch, pointOf(x.Point, x.Hash))
	}
	return l.k.paych.PaychSecretOf(ctx, l.ch, x.Hash)
}

// ready makes sure that the chain was seen.
func (l *line) ready(ctx context.Context) error {
	l.mu.Lock()
	seen := l.from != address.Undef
	l.mu.Unlock()
	if seen {
		return nil
	}
	return l.see(ctx)
}

// count looks at what the channel has left.
func (l *line) count(ctx context.Context) {
	info, err := l.k.paych.PaychInfo(ctx, l.ch)
	if err != nil {
		return // the last figures stand, and an offer looks again
	}
	free := tally.Amount(0)
	if f := info.Funds.Free(); f.Sign() > 0 {
		free = floor(f)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.free = free
}

// receive checks who signed what, and queues it.
func (l *line) receive(m *Msg) error {
	payer := l.role == lock.Payer
	fromPayer := m.Send == lock.SendLock || m.Send == lock.SendUnlock || m.Send == lock.SendCancelAck
	if !m.Sync && m.Send != lock.SendShow && fromPayer == payer {
		return fmt.Errorf("%w: %d from the %s's neighbour", ErrMessage, m.Send, l.role)
	}
	it := item{ev: lock.Event{ID: m.ID, Amount: m.Amount, Preimage: m.Preimage}}
	ev := &it.ev
	l.mu.Lock()
	ours, theirs := l.from, l.to
	l.mu.Unlock()
	if !payer {
		ours, theirs = theirs, ours
	}
	if ours == address.Undef {
		return ErrUnseen
	}
	voucher := func(raw []byte, signer address.Address, v *lock.Voucher) error {
		sv, got, err := decode(raw)
		if err != nil {
			return err
		}
		if sv.ChannelAddr != l.ch {
			return fmt.Errorf("%w: voucher of channel %s", ErrMessage, sv.ChannelAddr)
		}
		if err := paych.Verify(sv, signer); err != nil {
			return fmt.Errorf("%w: %w", ErrSigner, err)
		}
		*v = got
		return nil
	}
	// A LOCK may be one under a point: what cannot be completed is no lock.
	locked := func(raw []byte, signer address.Address, v *lock.Voucher) error {
		if !paych.IsPointLock(raw) {
			return voucher(raw, signer, v)
		}
		p, got, err := decodePoint(raw)
		if err != nil {
			return err
		}
		t := pointTerms(&got)
		t.Channel, t.From = l.ch, signer
		if err := p.Check(&t); err != nil {
			return fmt.Errorf("%w: %w", ErrSigner, err)
		}
		*v = got
		return nil
	}
	var err error
	switch {
	case m.Sync:
		if uint64(len(m.Lanes)) > l.k.terms.Slots {
			return fmt.Errorf("%w: a sync of %d lanes", ErrMessage, len(m.Lanes))
		}
		ev.Kind, ev.Lanes = lock.EvSync, m.Lanes
	case m.Send == lock.SendLock:
		ev.Kind = lock.EvLock
		err = locked(m.Voucher, theirs, &ev.Voucher)
		if err == nil && len(m.Guard) != 0 {
			err = voucher(m.Guard, theirs, &ev.Guard)
		}
	case m.Send == lock.SendLockAck:
		ev.Kind = lock.EvAcked
	case m.Send == lock.SendFulfil:
		ev.Kind = lock.EvPreimage
	case m.Send == lock.SendUnlock:
		ev.Kind = lock.EvUnlock
		err = voucher(m.Voucher, theirs, &ev.Voucher)
	case m.Send == lock.SendUnlockAck:
		ev.Kind = lock.EvUnlockAcked
	case m.Send == lock.SendCancel:
		ev.Kind = lock.EvCancel
		err = voucher(m.Voucher, theirs, &ev.Voucher)
	case m.Send == lock.SendCancelAck:
		ev.Kind = lock.EvCancelAcked
	case m.Send == lock.SendShow:
		ev.Kind = lock.EvShown
		err = locked(m.Voucher, ours, &ev.Voucher)
	default:
		err = fmt.Errorf("%w: kind %d", ErrMessage, m.Send)
	}
	if err != nil {
		return err
	}
	it.done = func(err error) {
		if err != nil {
			l.k.log.Debug("message about a lock not taken", "peer", l.peer, "channel", l.ch, "kind", int(m.Send), "lock", m.ID, "err", err)
		}
	}
	return l.put(it)
}

// run steps what came, all at once, until Close.
func (l *line) run() {
	for {
		select {
		case <-l.wake:
		case <-l.k.ctx.Done():
			return
		}
		l.mu.Lock()
		items := l.inbox
		l.inbox = nil
		l.mu.Unlock()
		switch err := l.work(items); {
		case err == nil:
		case errors.Is(err, errBuried):
			l.end(ErrNoChannel)
			return
		default:
			l.stop(err)
			return
		}
	}
}

// stop ends the line: what it cannot save it must not say.
func (l *line) stop(cause error) {
	if l.k.ctx.Err() != nil {
		return
	}
	err := fmt.Errorf("%w: %w", ErrStopped, cause)
	l.end(err)
	l.k.log.Error("locks of a channel are kept no more", "channel", l.ch, "peer", l.peer, "err", err)
}

// end refuses all that waits for the line, and all that is still to come.
func (l *line) end(err error) {
	l.mu.Lock()
	l.failed = err
	items := l.inbox
	l.inbox = nil
	l.mu.Unlock()
	for i := range items {
		if items[i].done != nil {
			items[i].done(err)
		}
	}
}

// work steps items and does what comes of them. Those that are together are about
// different lanes: an event is stepped when all is done that the one before it on its
// lane asked for. Else a message could leave before what it says is on disk, as the
// UNLOCK does that a FULFIL asks for a second time; and a save would keep half of what
// the next one has to keep whole.
func (l *line) work(items []item) error {
	for len(items) > 0 {
		n, jobs := l.step(items)
		items = items[n:]
		if err := l.finish(jobs); err != nil {
			l.mu.Lock()
			l.inbox = append(items, l.inbox...) // end tells them
			l.mu.Unlock()
			return err
		}
	}
	return nil
}

// step steps the first items, as many as may be together, and returns their number.
func (l *line) step(items []item) (n int, jobs []*job) {
	var g group
	for n < len(items) && g.admits(l, &items[n]) {
		it := &items[n]
		n++
		if it.tell {
			l.k.wire.Send(l.peer, &Msg{Channel: l.ch, Sync: true, Ask: it.ask, Lanes: l.slots.States()})
			continue
		}
		if it.ev.Kind == lock.EvChain {
			l.mu.Lock()
			l.now = it.ev.Head.Height
			l.gone = it.ev.Final.Gone
			l.closing = it.ev.Head.SettlingAt != 0 || it.ev.Head.Gone
			l.mu.Unlock()
		}
		fx, err := l.slots.Step(l.now, &it.ev, nil)
		j := &job{fx: fx, record: it.record, done: it.done, err: err}
		if err == nil && it.ev.Kind == lock.EvPreimage && len(fx) == 0 {
			j.err = lock.ErrUnknown
		}
		g.stepped(l, fx)
		jobs = append(jobs, j)
	}
	return n, jobs
}

// group is what its items, which are stepped together, are about.
type group struct {
	n     int
	alone bool
	lanes map[uint64]bool
	freed bool // one of the lanes is open: an offer could take it
}

// admits reports whether an item may be stepped with those before it, and adds it.
func (g *group) admits(l *line, it *item) bool {
	lane, one := l.slots.LaneOf(&it.ev)
	offer := !it.tell && !one && it.ev.Kind == lock.EvOffer && !it.ev.Long
	alone := it.tell || !one && !offer
	switch {
	case g.n == 0:
	case alone, g.alone, one && g.lanes[lane], offer && g.freed:
		return false
	}
	g.n++
	g.alone = alone
	if one && !alone {
		g.take(lane)
	}
	return true
}

func (g *group) take(lane uint64) {
	if g.lanes == nil {
		g.lanes = make(map[uint64]bool)
	}
	g.lanes[lane] = true
}

// stepped notes what an item of the group has asked for.
func (g *group) stepped(l *line, fx []lock.Effect) {
	for i := range fx {
		g.take(fx[i].Lane) // that of an offer is known now
	}
	for lane := range g.lanes {
		g.freed = g.freed || l.slots.IsOpen(lane)
	}
}

// finish does the duties of jobs, and tells who waits for them.
func (l *line) finish(jobs []*job) error {
	err := l.carryOut(jobs)
	if l.role == lock.Payer {
		l.count(l.k.ctx)
	}
	l.mu.Lock()
	l.list, l.room = l.slots.Locks(), l.slots.Room()
	over := l.gone && len(l.list) == 0
	l.mu.Unlock()
	if err == nil && over {
		err = l.bury()
	}
	for _, j := range jobs {
		switch {
		case j.done == nil:
		case errors.Is(err, errBuried):
			j.done(j.err)
		default:
			j.done(errors.Join(j.err, err))
		}
	}
	return err
}

// carryOut does the duties of all jobs, each in its own order. What is slow is done
// beside each other, and all that is to be saved at one time is one batch.
func (l *line) carryOut(jobs []*job) error {
	for {
		var slow, save []*job
		for _, j := range jobs {
			for j.err == nil && len(j.fx) > 0 && l.quick(&j.fx[0]) {
				j.fx = j.fx[1:]
			}
			switch {
			case j.err != nil || len(j.fx) == 0:
			case batched(j.fx[0].Kind):
				save = append(save, j)
			default:
				slow = append(slow, j)
			}
		}
		switch {
		case len(slow) > 0:
			var wait sync.WaitGroup
			more := make([][]lock.Effect, len(slow))
			events := make([]*lock.Event, len(slow))
			for i, j := range slow {
				wait.Go(func() { events[i], j.err = l.slow(&j.fx[0]) })
			}
			wait.Wait()
			for i, j := range slow {
				if j.err != nil && events[i] == nil {
					if k := j.fx[0].Kind; k == lock.FxKeep || k == lock.FxSecret {
						return j.err // the core is ahead of what is kept
					}
					continue // it is signed at the next look at the chain
				}
				j.fx = j.fx[1:]
				if events[i] == nil {
					continue
				}
				refused := j.err
				j.err = nil
				fx, err := l.slots.Step(l.now, events[i], nil)
				if err != nil {
					j.err = errors.Join(refused, err)
					continue
				}
				more[i] = fx
				if refused != nil {
					// What came of a refusal is done, and the caller still told.
					done := j.done
					j.fx, j.done = nil, nil
					if done != nil {
						defer done(refused)
					}
				}
				j.fx = append(more[i], j.fx...)
			}
		case len(save) > 0:
			if err := l.save(save); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}

func batched(k lock.EffectKind) bool {
	switch k {
	case lock.FxSave, lock.FxForget, lock.FxFulfilled, lock.FxFailed, lock.FxEnded, lock.FxLost:
		return true
	}
	return false
}

// save writes all that waits for it in one batch, with the carrier's records.
func (l *line) save(jobs []*job) error {
	var b durable.Batch
	if !l.saved {
		key := lineKey(l.ch)
		b.Put(key, durable.Seal(nil, key, lineVersion, l.record()))
	}
	var told []func()
	add := func(record func(*durable.Batch), saved func()) {
		if record != nil {
			record(&b)
		}
		if saved != nil {
			told = append(told, saved)
		}
	}
	lanes := make(map[uint64]bool)
	for _, j := range jobs {
		add(j.record, nil)
		j.record = nil
		for len(j.fx) > 0 && batched(j.fx[0].Kind) {
			e := &j.fx[0]
			switch e.Kind {
			case lock.FxSave, lock.FxForget:
				lanes[e.Lane] = true
			case lock.FxFulfilled:
				preimage := e.Preimage
				add(l.k.carrier.Decided(l.peer, e.ID, &preimage, nil))
			case lock.FxFailed:
				add(l.k.carrier.Decided(l.peer, e.ID, nil, e.Err))
			case lock.FxEnded:
				var paid *tally.Preimage
				if e.Preimage != (tally.Preimage{}) {
					preimage := e.Preimage
					paid = &preimage
				}
				add(l.k.carrier.Ended(l.peer, e.ID, paid, e.Err))
			case lock.FxLost:
				l.k.log.Error("a lock was not taken by the chain in time", "peer", l.peer, "channel", l.ch, "lock", e.ID)
				add(l.k.carrier.Ended(l.peer, e.ID, nil, ErrLost))
			}
			j.fx = j.fx[1:]
		}
	}
	for lane := range lanes {
		key := slotKey(l.ch, lane)
		b.Put(key, durable.Seal(nil, key, lock.RecordVersion, l.slots.Record(lane)))
	}
	if err := l.k.store.Commit(context.WithoutCancel(l.k.ctx), &b); err != nil {
		return fmt.Errorf("save locks of channel %s: %w", l.ch, err)
	}
	l.saved = true
	for _, saved := range told {
		saved()
	}
	return nil
}

// quick does what does not wait, and says whether e was of that kind.
func (l *line) quick(e *lock.Effect) bool {
	switch e.Kind {
	case lock.FxSend:
		if e.Voucher.Nonce != 0 && e.Voucher.Raw == "" {
			return false // it has to be looked up
		}
		l.send(e)
	case lock.FxTaken:
		list := l.slots.Locks()
		l.mu.Lock()
		l.list = list // who is told may ask for it at once
		l.mu.Unlock()
		for _, x := range list {
			if x.ID == e.ID {
				l.k.carrier.Taken(l.peer, x)
			}
		}
	case lock.FxConflict:
		l.k.log.Warn("a slot takes no new lock: one side has lost what it knew of it", "peer", l.peer, "channel", l.ch, "lane", e.Lane)
	case lock.FxSubmit:
		l.submit(*e)
	default:
		return false
	}
	return true
}

func (l *line) send(e *lock.Effect) {
	m := &Msg{Channel: l.ch, Send: e.Send, ID: e.ID, Preimage: e.Preimage}
	if e.Voucher.Raw != "" {
		m.Voucher = []byte(e.Voucher.Raw)
	}
	if e.Guard.Raw != "" {
		m.Guard = []byte(e.Guard.Raw)
	}
	if e.Send == lock.SendLock {
		for _, x := range l.slots.Locks() {
			if x.ID == e.ID {
				m.Amount = x.Amount
			}
		}
	}
	l.k.wire.Send(l.peer, m)
}

// slow does what waits for disk or signature. The event is what the core has to be
// told of it.
func (l *line) slow(e *lock.Effect) (*lock.Event, error) {
	ctx := l.ctx(context.WithoutCancel(l.k.ctx))
	switch e.Kind {
	case lock.FxKeep:
		err := l.keep(ctx, &e.Voucher)
		if l.role == lock.Payer && (errors.Is(err, paych.ErrAmount) || errors.Is(err, paych.ErrNonce)) {
			return nil, nil // nothing is left that the CANCEL is against
		}
		if err != nil && l.role == lock.Payee && e.ID != 0 && l.k.terms.KindOf(&e.Voucher) != lock.KindPlain {
			return &lock.Event{Kind: lock.EvFailed, ID: e.ID, Voucher: e.Voucher}, err
		}
		return nil, err
	case lock.FxSecret:
		_, err := l.k.paych.PaychVoucherSecret(ctx, l.ch, e.Preimage)
		return nil, err
	case lock.FxSign:
		v := e.Voucher
		raw, err := l.sign(ctx, &v)
		if err != nil {
			if l.role == lock.Payer && l.k.terms.KindOf(&v) != lock.KindPlain {
				return &lock.Event{Kind: lock.EvFailed, ID: e.ID, Voucher: v}, err
			}
			return nil, err
		}
		v.Raw = string(raw)
		return &lock.Event{Kind: lock.EvSigned, ID: e.ID, Voucher: v}, nil
	case lock.FxSend:
		sv, err := l.k.paych.PaychVoucherAt(ctx, l.ch, e.Voucher.Lane, e.Voucher.Nonce)
		if err != nil || sv == nil {
			return nil, err // the chain has it
		}
		raw, err := paych.EncodeVoucher(sv)
		if err != nil {
			return nil, err
		}
		found := *e
		found.Voucher.Raw = string(raw)
		l.send(&found)
		return nil, nil
	}
	return nil, fmt.Errorf("locker: effect %d", e.Kind)
}

// keep puts a voucher into the channel's account.
func (l *line) keep(ctx context.Context, v *lock.Voucher) error {
	if v.Point != 0 {
		p, err := paych.DecodePointLock([]byte(v.Raw))
		switch {
		case err != nil:
			return err
		case l.role == lock.Payer:
			return l.k.paych.PaychPointLockImport(ctx, l.ch, p)
		}
		return l.k.paych.PaychPointLockAdd(ctx, l.ch, pointTerms(v), p)
	}
	sv, err := paych.DecodeVoucher([]byte(v.Raw))
	if err != nil {
		return err
	}
	if l.k.terms.KindOf(v) == lock.KindPlain || l.role == lock.Payer {
		return l.k.paych.PaychVoucherImport(ctx, l.ch, sv)
	}
	_, err = l.k.paych.PaychVoucherAdd(ctx, l.ch, sv, nil, big.Zero())
	return err
}

// sign returns the voucher's bytes, the same however often it is asked for.
func (l *line) sign(ctx context.Context, v *lock.Voucher) ([]byte, error) {
	if v.Point != 0 {
		p, err := l.k.paych.PaychPointLockCreate(ctx, l.ch, pointTerms(v))
		if err != nil {
			return nil, fmt.Errorf("locker: lock under a point on lane %d of channel %s: %w", v.Lane, l.ch, err)
		}
		return paych.EncodePointLock(p)
	}
	r, err := l.k.paych.PaychVoucherCreateSpec(ctx, l.ch, spec(v))
	if err != nil {
		return nil, fmt.Errorf("locker: sign on lane %d of channel %s: %w", v.Lane, l.ch, err)
	}
	if r.Voucher == nil {
		return nil, fmt.Errorf("%w: %v attoFIL are missing", ErrFunds, r.Shortfall)
	}
	return paych.EncodeVoucher(r.Voucher)
}

// submit sends a voucher to the chain, beside the line. It is due again in the next
// epoch where that fails.
func (l *line) submit(e lock.Effect) {
	l.mu.Lock()
	busy := l.submitting[e.Lane]
	l.submitting[e.Lane] = true
	l.mu.Unlock()
	if busy {
		return
	}
	l.k.mu.Lock()
	defer l.k.mu.Unlock()
	if l.k.closed {
		return
	}
	l.k.tasks.Go(func() { // ends when it is published, or with Close
		err := l.publish(&e)
		l.mu.Lock()
		delete(l.submitting, e.Lane)
		l.mu.Unlock()
		if err != nil && l.k.ctx.Err() == nil && !errors.Is(err, paych.ErrUnderWay) {
			l.k.log.Warn("voucher of a lock not submitted, will be tried again", "channel", l.ch, "lane", e.Lane, "err", err)
		}
	})
}

func (l *line) publish(e *lock.Effect) error {
	ctx := l.ctx(l.k.ctx)
	if e.Voucher.Point != 0 {
		// It is completed, and that saved, before it goes; it was so when the secret was
		// shown, unless that failed.
		if _, err := l.k.paych.PaychVoucherSecret(ctx, l.ch, e.Preimage); err != nil {
			return err
		}
	}
	sv, err := l.k.paych.PaychVoucherAt(ctx, l.ch, e.Voucher.Lane, e.Voucher.Nonce)
	if err != nil || sv == nil {
		return err
	}
	var secret []byte
	if e.Preimage != (tally.Preimage{}) && e.Voucher.Point == 0 {
		secret = e.Preimage[:]
	}
	_, err = l.k.paych.PaychVoucherSubmit(ctx, l.ch, sv, secret, nil)
	return err
}

// bury takes a line away whose channel is gone and whose locks are all decided.
func (l *line) bury() error {
	var b durable.Batch
	b.Delete(lineKey(l.ch))
	for lane := uint64(1); lane <= l.k.terms.Guard(); lane++ {
		b.Delete(slotKey(l.ch, lane))
	}
	if err := l.k.store.Commit(context.WithoutCancel(l.k.ctx), &b); err != nil {
		return fmt.Errorf("save locks of channel %s: %w", l.ch, err)
	}
	l.k.forget(l)
	return errBuried
}

// errBuried ends the goroutine of a line.
var errBuried = errors.New("locker: channel is gone")

// floor is an amount of attoFIL in whole units.
func floor(x big.Int) tally.Amount {
	n := big.Div(x, big.NewInt(settler.AttoPerUnit))
	if !n.IsUint64() {
		return ^tally.Amount(0)
	}
	return tally.Amount(n.Uint64())
}
