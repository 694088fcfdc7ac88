package paystream

import "github.com/tallystick/tally"

// VerdictKind says whether the limits of two endpoints can meet.
type VerdictKind uint8

const (
	// Unknown: the peer's state, or the rate, is not known yet.
	Unknown VerdictKind = iota
	// Compatible: what each side has to send, the other wants.
	Compatible
	// PayerShort: the side that is asked does not go far enough; of an asker, that
	// the other one gives nothing more.
	PayerShort
	// PayeeFull: what one side has to get rid of, the other does not want.
	PayeeFull
)

// String is the verdict in words.
func (k VerdictKind) String() string {
	return [...]string{"unknown", "compatible", "payer short", "payee full"}[k&3]
}

// Verdict is what the two sides' limits come to before the first unit moves.
type Verdict struct {
	Kind VerdictKind
	// Short is by how much, in our units.
	Short tally.Amount
}

// Verdict compares our limits with what the peer told, at the measured rate. Each
// side judges what it would send itself; the other direction is the peer's to
// judge, at the rate it measured.
func (s *Socket) Verdict() Verdict {
	if s.peerSeq == 0 || !s.rate.Known() {
		return Verdict{}
	}
	free := s.free()
	coming := s.arrived.SaturatingAdd(s.flight)
	if above := s.max.under(free); !above.Open && above.N > s.tolerance(0) {
		if fits := s.rate.Within(s.peer.Wanted.Sub(coming)); fits < above.N {
			return Verdict{Kind: PayeeFull, Short: above.N - fits}
		}
	}
	if asked := s.peer.Expected.SaturatingSub(coming); asked > 0 {
		room := s.min.under(free)
		if need := s.rate.Enough(asked); !room.Open && room.N < need {
			// One unit of ours may be worth several of the peer's.
			if s.rate.Most(room.N) < asked {
				return Verdict{Kind: PayerShort, Short: need - room.N}
			}
		}
	}
	if ask := s.min.over(s.Balance()).N; ask > 0 && s.peer.Offer.Sub(s.gave) == 0 {
		return Verdict{Kind: PayerShort, Short: ask}
	}
	return Verdict{Kind: Compatible}
}

// Report is a socket's figures, for whoever watches it.
type Report struct {
	Min, Max        Limit
	Balance         tally.Balance
	Sent, Received  tally.Amount
	HoldOut, HoldIn tally.Amount
	Arrived         tally.Amount // of Sent, in the peer's units
	PeerExpected    tally.Amount // what the peer still asks for, in its units
	PeerWanted      Total        // what it still takes, in its units
	PeerOffer       Total        // what it still gives when asked, in its units
	InFlight        int
	Rate            Rate
	Floor           Ratio
	Verdict         Verdict
	Settled         bool
	// Back is what came back of Sent, for BackSent of the peer's units; Thin is
	// what was rejected because too much of it was lost. SettledShort: refunds
	// were wanted and stopped at the loss bound.
	Back, BackSent, Thin tally.Amount
	SettledShort         bool
}

// Report returns the socket's figures.
func (s *Socket) Report() Report {
	coming := s.arrived.SaturatingAdd(s.flight)
	wanted := s.peer.Wanted
	if !wanted.Open {
		wanted.N = wanted.Sub(coming)
	}
	offer := s.peer.Offer
	if !offer.Open {
		offer.N = offer.Sub(s.gave)
	}
	return Report{
		Min: s.min, Max: s.max, Balance: s.Balance(), Sent: s.sent, Received: s.received,
		HoldOut: s.holdOut, HoldIn: s.holdIn, Arrived: s.arrived,
		PeerExpected: s.peer.Expected.SaturatingSub(coming), PeerWanted: wanted, PeerOffer: offer,
		InFlight: s.holds.Len(), Rate: s.rate, Floor: s.floor, Verdict: s.Verdict(), Settled: s.Settled(),
		Back: s.back, BackSent: s.backSent, Thin: s.thin,
		SettledShort: s.thin > 0 && s.min.over(s.Balance()).N > 0,
	}
}
