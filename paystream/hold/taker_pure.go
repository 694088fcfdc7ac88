package hold

import (
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// Stated is a statement of ours: room of a channel that we keep.
type Stated struct {
	LaneStatement
	// Used is what mails have taken of the room.
	Used tally.Amount
	// Ends is when the statement does, in milliseconds since 1970.
	Ends int64
}

// left is what is kept for it still.
func (s *Stated) left() tally.Amount { return s.Room.SaturatingSub(s.Used) }

// Taken is a mail that we took: its voucher and preimage are with the channel's
// account, whose watcher submits it in time.
type Taken struct {
	Purchase
	Serial  uint64
	At      int64 // ms since 1970
	Until   int64 // the deadline on the wall clock
	Voucher []byte
	// Drew is what it took of the statement's room.
	Drew tally.Amount
}

// Bounds of what a payee keeps.
const (
	// MaxStated bounds the statements of ours that are not over.
	MaxStated = 1024
	// MaxTaken bounds the mails that are listed; the oldest that are over go first.
	MaxTaken = 4096
)

// TakeKind names what happened to a payee of mails.
type TakeKind uint8

// Kinds of event.
const (
	// TakeState: Stated, signed, is handed out.
	TakeState TakeKind = iota + 1
	// TakeMail: Taken is with the channel's account.
	TakeMail
	// TakeTick: some time passed.
	TakeTick
)

// TakeEvent is one input of Step.
type TakeEvent struct {
	Kind   TakeKind
	Stated *Stated
	Taken  *Taken
}

// Taker is the core of a payee of mails: what room it promised, and what came. It is
// pure.
type Taker struct {
	self   peer.ID
	stated map[uint64]*Stated
	taken  map[ID]*Taken
	serial uint64 // the highest that was ever used
}

// NewTaker returns a core without statements.
func NewTaker(self peer.ID) *Taker {
	return &Taker{self: self, stated: make(map[uint64]*Stated), taken: make(map[ID]*Taken)}
}

// Next is the serial of the next statement.
func (t *Taker) Next() uint64 { return t.serial + 1 }

// Kept is what has to stay free of a channel.
func (t *Taker) Kept(channel string) (sum tally.Amount) {
	for _, s := range t.stated {
		if s.Channel == channel {
			sum = sum.SaturatingAdd(s.left())
		}
	}
	return sum
}

// Channels are those of which something is kept.
func (t *Taker) Channels() []string {
	var list []string
	for _, s := range t.stated {
		if !slices.Contains(list, s.Channel) {
			list = append(list, s.Channel)
		}
	}
	slices.Sort(list)
	return list
}

// Draw is what a mail may take of the room that was kept for it.
func (t *Taker) Draw(serial uint64, channel string, payer peer.ID, amount tally.Amount) tally.Amount {
	s := t.stated[serial]
	if s == nil || s.Channel != channel || s.Payer != "" && s.Payer != payer {
		return 0
	}
	return min(amount, s.left())
}

// Get returns a mail that we took.
func (t *Taker) Get(id ID) (Taken, bool) {
	if r := t.taken[id]; r != nil {
		return *r, true
	}
	return Taken{}, false
}

// List returns the mails that we took, the oldest first.
func (t *Taker) List() []Taken {
	list := make([]Taken, 0, len(t.taken))
	for _, r := range t.taken {
		list = append(list, *r)
	}
	slices.SortFunc(list, func(a, b Taken) int { return byAge(a.At, b.At, a.ID, b.ID) })
	return list
}

// Step applies one event. now is in milliseconds since 1970. On an error nothing has
// changed.
func (t *Taker) Step(now int64, ev *TakeEvent, fx []Effect) ([]Effect, error) {
	switch ev.Kind {
	case TakeState:
		s := ev.Stated
		switch {
		case s.LaneStatement.Validate() != nil || s.Payee != t.self || s.Used != 0 || s.Ends <= now:
			return fx, ErrTerms
		case s.Serial <= t.serial:
			return fx, ErrConflict
		case len(t.stated) >= MaxStated:
			return fx, ErrBound
		}
		cp := *s
		t.stated[s.Serial], t.serial = &cp, s.Serial
		return append(fx, saveRecord(statedOurs(s.Serial), cp.record())), nil
	case TakeMail:
		return t.mail(now, ev.Taken, fx)
	case TakeTick:
		return t.tick(now, fx), nil
	default:
		return fx, ErrTerms
	}
}

func (t *Taker) mail(now int64, m *Taken, fx []Effect) ([]Effect, error) {
	if m.Validate() != nil || m.Payee != t.self {
		return fx, ErrTerms
	}
	if have := t.taken[m.ID]; have != nil {
		if have.Purchase != m.Purchase {
			return fx, ErrConflict
		}
		return fx, nil
	}
	if len(t.taken) >= MaxTaken {
		if fx = t.dropOldest(now, fx); len(t.taken) >= MaxTaken {
			return fx, ErrBound
		}
	}
	cp := *m
	cp.At = now
	if s := t.stated[m.Serial]; s != nil && cp.Drew > 0 {
		s.Used = min(s.Room, s.Used.SaturatingAdd(cp.Drew))
		fx = append(fx, saveRecord(statedOurs(s.Serial), s.record()))
	}
	t.taken[m.ID] = &cp
	fx = append(fx, saveRecord(takenKey(m.ID), cp.record()))
	return append(fx, Effect{Kind: FxKeep, Key: m.Channel, Amount: t.Kept(m.Channel)}), nil
}

func (t *Taker) dropOldest(now int64, fx []Effect) []Effect {
	var oldest *Taken
	for _, r := range t.taken {
		if now >= r.Until && (oldest == nil || byAge(r.At, oldest.At, r.ID, oldest.ID) < 0) {
			oldest = r
		}
	}
	if oldest == nil {
		return fx
	}
	delete(t.taken, oldest.ID)
	return append(fx, saveRecord(takenKey(oldest.ID), nil))
}

// tick ends statements, and forgets mails that are long over. The newest statement
// stays, so that its serial is not used again.
func (t *Taker) tick(now int64, fx []Effect) []Effect {
	var over []uint64
	for serial, s := range t.stated {
		if now >= s.Ends && (serial != t.serial || s.left() > 0) {
			over = append(over, serial)
		}
	}
	slices.Sort(over)
	freed := make(map[string]bool)
	for _, serial := range over {
		s := t.stated[serial]
		freed[s.Channel] = true
		if serial == t.serial {
			s.Used = s.Room
			fx = append(fx, saveRecord(statedOurs(serial), s.record()))
			continue
		}
		delete(t.stated, serial)
		fx = append(fx, saveRecord(statedOurs(serial), nil))
	}
	for _, r := range t.List() {
		if now-r.Until >= keptPayer {
			delete(t.taken, r.ID)
			fx = append(fx, saveRecord(takenKey(r.ID), nil))
		}
	}
	var list []string
	for channel := range freed {
		list = append(list, channel)
	}
	slices.Sort(list)
	for _, channel := range list {
		fx = append(fx, Effect{Kind: FxKeep, Key: channel, Amount: t.Kept(channel)})
	}
	return fx
}

// Check returns the first broken invariant, by name.
func (t *Taker) Check() error {
	if len(t.stated) > MaxStated || len(t.taken) > MaxTaken {
		return broken("bounds", "%d statements, %d mails", len(t.stated), len(t.taken))
	}
	for serial, s := range t.stated {
		switch {
		case s.Serial != serial || serial > t.serial:
			return broken("index", "statement %d is kept as %d of %d", s.Serial, serial, t.serial)
		case s.Used > s.Room:
			return broken("within-room", "statement %d over %d has %d used", serial, s.Room, s.Used)
		}
	}
	for id, r := range t.taken {
		if r.ID != id {
			return broken("index", "mail %s is kept as %s", r.ID, id)
		}
	}
	return nil
}
