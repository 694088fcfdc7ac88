package swapnet

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/tallystick/tally/pb/swappb"
	"github.com/tallystick/tally/protocols/internal/wire"
	"github.com/tallystick/tally/swap"
)

// errOtherLayout: a cheque in the layout that go-waku gave to the same id.
// Read as nwaku's, its date would be the amount.
var errOtherLayout = errors.New("swapnet: beta1 cheque in go-waku's layout (issuerAddress = 1, beneficiary = 2, date = 3, amount = 4, signature = 5); only nwaku's is read")

// decodeBeta1Cheque reads the one cheque of a beta1 stream to self, in nwaku's
// layout: the seed's fields, and a signature as hex text.
//
// No node ever set the beneficiary: nwaku sends only amount and signature. An
// empty one therefore stands for the peer at the end of the stream. The
// signature is by an Ethereum key that the protocol binds to nothing; like the
// seed's cheque, this one counts for what it says.
func decodeBeta1Cheque(b []byte, self peer.ID) (*swap.KarmaCheque, error) {
	if err := checkBeta1Layout(b); err != nil {
		return nil, err
	}
	var c swappb.Beta1Cheque
	if err := wire.Unmarshal(b, &c); err != nil {
		return nil, err
	}
	if n := len(c.GetBeneficiary()); n > MaxBeneficiary {
		return nil, malformed("beta1 cheque: beneficiary of %d bytes", n)
	}
	if n := len(c.GetSignature()); n > swap.MaxSignature {
		return nil, malformed("beta1 cheque: signature of %d bytes", n)
	}
	out := &swap.KarmaCheque{Beneficiary: nonEmpty(c.GetBeneficiary()), Date: c.GetDate(), Amount: c.GetAmount()}
	if out.Beneficiary == nil {
		out.Beneficiary = []byte(self)
	}
	return out, nil
}

// checkBeta1Layout tells go-waku's layout by its wire types: there field 2 is
// bytes and field 4 a number, in nwaku's it is the other way round. Field 4
// counts too because either side leaves out an empty field.
func checkBeta1Layout(b []byte) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("%w: %w", wire.ErrGarbage, protowire.ParseError(n))
		}
		if (num == 2 && typ == protowire.BytesType) || (num == 4 && typ == protowire.VarintType) {
			return errOtherLayout
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return fmt.Errorf("%w: %w", wire.ErrGarbage, protowire.ParseError(n))
		}
		b = b[n:]
	}
	return nil
}

// handleBeta1 takes the one cheque of a beta1 stream.
func (s *Service) handleBeta1(st network.Stream) {
	if !s.enter() {
		_ = st.ResetWithError(StatusClosed.resetCode())
		return
	}
	defer s.wg.Done()
	status, err := s.reserve(st, true)
	if status == StatusOK {
		status, err = s.takeBeta1(st)
		s.unreserve(st.Conn().RemotePeer())
	}
	if status == StatusOK {
		_ = st.Close()
	} else {
		_ = st.ResetWithError(status.resetCode())
	}
	s.ended(st, true, status, err)
	s.mu.Lock()
	s.forget(st.Conn().RemotePeer())
	s.mu.Unlock()
}

func (s *Service) takeBeta1(st network.Stream) (Status, error) {
	stop := context.AfterFunc(s.netCtx, func() { _ = st.ResetWithError(StatusClosed.resetCode()) })
	defer stop()
	r := wire.NewReader(st, MaxAlpha1Frame)
	r.SetTimeout(s.lim.HandshakeTimeout, s.lim.FrameTimeout)
	b, err := r.ReadFrame()
	if err != nil {
		if s.netCtx.Err() != nil {
			return StatusClosed, nil
		}
		if errors.Is(err, io.EOF) {
			return StatusGone, err // a clean end is no cheque
		}
		return readStatus(err), err
	}
	s.count.framesIn.Add(1)
	m, err := decodeBeta1Cheque(b, s.host.ID())
	if err != nil {
		return readStatus(err), err
	}
	p := st.Conn().RemotePeer()
	if err := s.book.Receive(s.bookCtx, p, m); err != nil {
		_, status := refusalOf(err)
		s.count.refused.Add(1)
		return status, err
	}
	return StatusOK, nil
}
