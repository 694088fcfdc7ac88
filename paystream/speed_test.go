package paystream_test

import (
	"testing"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream"
)

// loop is the carrier of two endpoints without anything between them. Its packets
// are handed on by one goroutine, as a hop engine does.
type loop struct {
	ends [2]*paystream.Endpoint
	lane [2]chan *paystream.Outgoing
}

type loopEnd struct {
	*loop
	self int
}

func (l loopEnd) Send(p *paystream.Outgoing) error {
	l.lane[l.self] <- p
	return nil
}

func (l loopEnd) Save(paystream.Record) error { return nil }

func (l *loop) run(from int) {
	payer, payee := l.ends[from], l.ends[1-from]
	for p := range l.lane[from] {
		d := payee.Packet(&paystream.Incoming{ID: p.ID, Token: p.Dest.Token, Amount: p.Amount, Expires: p.Expires, Condition: p.Condition, Data: p.Data})
		if d.Fulfil && !d.Preimage.Opens(p.Condition) {
			panic("fulfilled without the preimage")
		}
		payer.Answer(&paystream.Answer{ID: p.ID, Sent: p, Fulfilled: d.Fulfil, Data: d.Data, Kind: paystream.RejectLimit})
	}
}

// BenchmarkEndpointPacket is what two endpoints cost a packet of one unit, without a
// carrier.
func BenchmarkEndpointPacket(b *testing.B) {
	l := &loop{lane: [2]chan *paystream.Outgoing{make(chan *paystream.Outgoing, 4096), make(chan *paystream.Outgoing, 4096)}}
	for i := range l.ends {
		_, id := keyOf(b, byte(i+1))
		e, err := paystream.Open(b.Context(), paystream.Config{Self: id, Key: paystream.ServerKey{byte(i)}, Memory: true, Logger: quiet, LargestPacket: 1})
		if err != nil {
			b.Fatal(err)
		}
		l.ends[i] = e
	}
	for i, e := range l.ends {
		e.Start(loopEnd{l, i})
		go l.run(i) // ends when its lane is closed
	}
	defer func() {
		for i, e := range l.ends {
			_ = e.Close()
			close(l.lane[i])
		}
	}()
	u, err := l.ends[1].Issue(paystream.Grant{Use: paystream.UsePush, Min: at(0), Max: paystream.NoMax})
	if err != nil {
		b.Fatal(err)
	}
	c, err := l.ends[0].Dial(b.Context(), u, nil, paystream.Terms{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	if err := c.Pay(tally.Amount(b.N)); err != nil {
		b.Fatal(err)
	}
	if err := c.WaitBalance(b.Context(), -tally.Balance(b.N)); err != nil {
		b.Fatal(err)
	}
}
