package sim

import (
	"github.com/tallystick/tally"
	"github.com/tallystick/tally/swap"
)

// liar is a hostile client: it takes what it gets, admits less than it took, pays
// now and then to be served again, and plays old cheques over.
type liar struct {
	w    *world
	self *party
	with map[*party]*swindle
}

// swindle is what a liar keeps about one victim.
type swindle struct {
	took   tally.Amount
	told   swap.Totals // the victim's last
	paid   tally.Amount
	serial uint64
	old    []*swap.Cheque
}

func newLiar(w *world, self *party) *liar {
	return &liar{w: w, self: self, with: make(map[*party]*swindle)}
}

func (l *liar) of(p *party) *swindle {
	s := l.with[p]
	if s == nil {
		s = &swindle{}
		l.with[p] = s
	}
	return s
}

// got counts what it took.
func (l *liar) got(from *party, units tally.Amount) { l.of(from).took += units }

// totals admits up to W and a few less than it took, in knowledge of what the
// victim told: a final figure.
func (l *liar) totals(p *party) swap.Totals {
	s := l.of(p)
	lie := tally.Amount(l.w.rng.IntN(40))
	return swap.Totals{
		Consumed: s.took - min(s.took, lie), SeenServed: s.told.Served, SeenConsumed: s.told.Consumed, AtRest: true,
	}
}

func (l *liar) hello(p *party) *swap.Handshake {
	h := &swap.Handshake{
		Realm: realm,
		Terms: swap.Terms{
			PaymentThreshold: tally.Amount(l.w.rng.IntN(1 << 30)), DisconnectThreshold: 1 << 31, Mode: swap.ModeMock, Native: true,
		},
		Totals: l.totals(p),
	}
	if s := l.of(p); len(s.old) > 0 && l.w.chance(50) {
		h.ChequeSent = s.old[l.w.rng.IntN(len(s.old))]
	}
	return h
}

func (l *liar) begin(p *party, h *swap.Handshake) {
	l.of(p).told = h.Totals
	l.play(p)
}

func (l *liar) receive(from *party, m swap.Message) {
	if st, ok := m.(*swap.Statement); ok {
		l.of(from).told = st.Totals
		if l.w.chance(50) {
			l.play(from)
		}
	}
}

// play is its next move.
func (l *liar) play(p *party) {
	s := l.of(p)
	switch roll := l.w.rng.IntN(10); {
	case roll < 4:
		l.w.post(l.self, p, &swap.Statement{Totals: l.totals(p)})
	case roll < 6: // pay something, so that the tab opens again
		s.serial++
		s.paid += tally.Amount(1 + l.w.rng.IntN(120))
		l.cheque(p, s.serial, s.paid)
	case roll < 7 && s.serial > 0: // two cheques with one serial
		s.paid += 5
		l.cheque(p, s.serial, s.paid)
	case len(s.old) > 0:
		l.w.post(l.self, p, s.old[l.w.rng.IntN(len(s.old))])
	}
}

func (l *liar) cheque(p *party, serial uint64, cumulative tally.Amount) {
	s := l.of(p)
	c := &swap.Cheque{
		Issuer: l.self.id, Beneficiary: p.id, Serial: serial, Cumulative: cumulative, Consumed: s.took,
	}
	sig, err := l.self.key.Sign(c.SigningBytes(realm))
	if err != nil {
		panic("sim: " + err.Error())
	}
	c.Signature = sig
	s.old = append(s.old, c)
	l.w.post(l.self, p, c)
}
