package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/crypto"
	"github.com/ipfs/go-cid"
	cbg "github.com/whyrusleeping/cbor-gen"

	"github.com/tallystick/tally/paych/actor"
)

const (
	// MaxMessageBytes bounds a signed message, as the pool of a Lotus node does.
	MaxMessageBytes = 64 << 10
	// MaxParamsBytes bounds the parameters of a message. The largest of ours is
	// a voucher with a secret, far below 4 KiB.
	MaxParamsBytes = 32 << 10
	// BlockGasLimit is the most gas that one message may ask for.
	BlockGasLimit int64 = 10_000_000_000
)

// ErrMessage is wrapped by what is said of a message that no node would take.
var ErrMessage = errors.New("wire: bad message")

// Message is an unsigned message of the chain.
type Message struct {
	Version    uint64
	To         address.Address
	From       address.Address
	Nonce      uint64
	Value      big.Int
	GasLimit   int64
	GasFeeCap  big.Int
	GasPremium big.Int
	Method     abi.MethodNum
	Params     []byte
}

// MarshalCBOR writes the array of ten.
func (m *Message) MarshalCBOR(w io.Writer) error {
	cw := cbg.NewCborWriter(w)
	if err := cw.WriteMajorTypeHeader(cbg.MajArray, 10); err != nil {
		return err
	}
	if err := cw.WriteMajorTypeHeader(cbg.MajUnsignedInt, m.Version); err != nil {
		return err
	}
	if err := m.To.MarshalCBOR(cw); err != nil {
		return err
	}
	if err := m.From.MarshalCBOR(cw); err != nil {
		return err
	}
	if err := cw.WriteMajorTypeHeader(cbg.MajUnsignedInt, m.Nonce); err != nil {
		return err
	}
	if err := m.Value.MarshalCBOR(cw); err != nil {
		return err
	}
	if err := cbg.CborInt(m.GasLimit).MarshalCBOR(cw); err != nil {
		return err
	}
	if err := m.GasFeeCap.MarshalCBOR(cw); err != nil {
		return err
	}
	if err := m.GasPremium.MarshalCBOR(cw); err != nil {
		return err
	}
	if err := cw.WriteMajorTypeHeader(cbg.MajUnsignedInt, uint64(m.Method)); err != nil {
		return err
	}
	return cbg.WriteByteArray(cw, m.Params)
}

// UnmarshalCBOR reads what MarshalCBOR wrote. Use DecodeSigned for bytes of
// strangers.
func (m *Message) UnmarshalCBOR(r io.Reader) error {
	cr := cbg.NewCborReader(r)
	if err := wantArray(cr, 10); err != nil {
		return err
	}
	var err error
	if m.Version, err = readUint(cr); err != nil {
		return err
	}
	if err = m.To.UnmarshalCBOR(cr); err != nil {
		return err
	}
	if err = m.From.UnmarshalCBOR(cr); err != nil {
		return err
	}
	if m.Nonce, err = readUint(cr); err != nil {
		return err
	}
	if err = m.Value.UnmarshalCBOR(cr); err != nil {
		return err
	}
	var gas cbg.CborInt
	if err = gas.UnmarshalCBOR(cr); err != nil {
		return err
	}
	m.GasLimit = int64(gas)
	if err = m.GasFeeCap.UnmarshalCBOR(cr); err != nil {
		return err
	}
	if err = m.GasPremium.UnmarshalCBOR(cr); err != nil {
		return err
	}
	method, err := readUint(cr)
	if err != nil {
		return err
	}
	m.Method = abi.MethodNum(method)
	if m.Params, err = cbg.ReadByteArray(cr, MaxParamsBytes); err != nil {
		return err
	}
	if len(m.Params) == 0 {
		m.Params = nil // as Lotus has it
	}
	return nil
}

// Cid is the cid of the unsigned message: what its sender signs.
func (m *Message) Cid() (cid.Cid, error) { return cborCid(m) }

// EqualCall reports whether o is m but for its gas: then one may replace the
// other.
func (m *Message) EqualCall(o *Message) bool {
	return m.Version == o.Version && m.To == o.To && m.From == o.From && m.Nonce == o.Nonce &&
		amount(m.Value).Equals(amount(o.Value)) && m.Method == o.Method && bytes.Equal(m.Params, o.Params)
}

// Check reports what keeps a message out of every block, whatever the state.
func (m *Message) Check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrMessage, fmt.Sprintf(format, args...))
	}
	switch {
	case m.Version != 0:
		return bad("version %d", m.Version)
	case m.To == address.Undef:
		return bad("'To' address cannot be empty")
	case m.From == address.Undef:
		return bad("'From' address cannot be empty")
	case amount(m.Value).Sign() < 0:
		return bad("'Value' field cannot be negative")
	case amount(m.Value).GreaterThan(totalSupply):
		return bad("'Value' field cannot be greater than total filecoin supply")
	case amount(m.GasPremium).Sign() < 0:
		return bad("'GasPremium' field cannot be negative")
	case amount(m.GasPremium).GreaterThan(amount(m.GasFeeCap)):
		return bad("'GasFeeCap' less than 'GasPremium'")
	case m.GasLimit < 0 || m.GasLimit > BlockGasLimit:
		return bad("'GasLimit' field must be 0 to %d", BlockGasLimit)
	case len(m.Params) > MaxParamsBytes:
		return bad("parameters of %d bytes, at most %d", len(m.Params), MaxParamsBytes)
	}
	return nil
}

// rawMessage is a Message without its methods.
type rawMessage Message

// MarshalJSON adds the cid, as Lotus does. A message that has none yet, for
// want of an address, goes without.
func (m Message) MarshalJSON() ([]byte, error) {
	raw := rawMessage(m)
	// An amount that was never set would be printed as no number.
	raw.Value, raw.GasFeeCap, raw.GasPremium = amount(m.Value), amount(m.GasFeeCap), amount(m.GasPremium)
	c, err := m.Cid()
	if err != nil {
		return json.Marshal(&raw)
	}
	return json.Marshal(struct {
		*rawMessage
		CID cid.Cid
	}{&raw, c})
}

// SignedMessage is what a pool takes.
type SignedMessage struct {
	Message   Message
	Signature crypto.Signature
}

// MarshalCBOR writes the pair.
func (s *SignedMessage) MarshalCBOR(w io.Writer) error {
	if err := cbg.WriteMajorTypeHeader(w, cbg.MajArray, 2); err != nil {
		return err
	}
	if err := s.Message.MarshalCBOR(w); err != nil {
		return err
	}
	return s.Signature.MarshalCBOR(w)
}

// UnmarshalCBOR reads what MarshalCBOR wrote. Use DecodeSigned for bytes of
// strangers.
func (s *SignedMessage) UnmarshalCBOR(r io.Reader) error {
	cr := cbg.NewCborReader(r)
	if err := wantArray(cr, 2); err != nil {
		return err
	}
	if err := s.Message.UnmarshalCBOR(cr); err != nil {
		return err
	}
	return s.Signature.UnmarshalCBOR(cr)
}

// Cid is the cid under which the message is known on the chain: that of the
// unsigned message where the signature is BLS, because those are aggregated.
func (s *SignedMessage) Cid() (cid.Cid, error) {
	if s.Signature.Type == crypto.SigTypeBLS {
		return s.Message.Cid()
	}
	return cborCid(s)
}

// Bytes returns the CBOR.
func (s *SignedMessage) Bytes() ([]byte, error) {
	var buf bytes.Buffer
	if err := s.MarshalCBOR(&buf); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	return buf.Bytes(), nil
}

// rawSigned is a SignedMessage without its methods.
type rawSigned SignedMessage

// MarshalJSON adds the cid, as Lotus does.
func (s SignedMessage) MarshalJSON() ([]byte, error) {
	c, err := s.Cid()
	if err != nil {
		return nil, err
	}
	return json.Marshal(struct {
		Message   *Message
		Signature crypto.Signature
		CID       cid.Cid
	}{&s.Message, s.Signature, c})
}

// UnmarshalJSON reads a signed message; the cid is not believed, but computed.
func (s *SignedMessage) UnmarshalJSON(data []byte) error {
	return json.Unmarshal(data, (*rawSigned)(s))
}

// DecodeSigned reads a signed message. It takes one spelling only, because a
// second one would be a second cid of one message.
func DecodeSigned(data []byte) (*SignedMessage, error) {
	if len(data) > MaxMessageBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrMessage, len(data), MaxMessageBytes)
	}
	if err := actor.WellFormed(data); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	var s SignedMessage
	if err := s.UnmarshalCBOR(bytes.NewReader(data)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	again, err := s.Bytes()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, data) {
		return nil, fmt.Errorf("%w: not in canonical form", ErrMessage)
	}
	return &s, nil
}

// totalSupply is all the FIL there will ever be, in attoFIL.
var totalSupply = big.Mul(big.NewInt(2_000_000_000), big.NewInt(1_000_000_000_000_000_000))

// amount is v, or 0 where v was never set.
func amount(v big.Int) big.Int {
	if v.Int == nil {
		return big.Zero()
	}
	return v
}

func wantArray(cr *cbg.CborReader, n uint64) error {
	maj, got, err := cr.ReadHeader()
	if err != nil {
		return err
	}
	if maj != cbg.MajArray || got != n {
		return fmt.Errorf("wire: want an array of %d", n)
	}
	return nil
}

func readUint(cr *cbg.CborReader) (uint64, error) {
	maj, v, err := cr.ReadHeader()
	if err != nil {
		return 0, err
	}
	if maj != cbg.MajUnsignedInt {
		return 0, errors.New("wire: want an unsigned integer")
	}
	return v, nil
}

// cborCid hashes the CBOR of v.
func cborCid(v cbg.CBORMarshaler) (cid.Cid, error) {
	var buf bytes.Buffer
	if err := v.MarshalCBOR(&buf); err != nil {
		return cid.Undef, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	return Cid(buf.Bytes())
}

// Cid is the cid of a dag-cbor object.
func Cid(data []byte) (cid.Cid, error) { return abi.CidBuilder.Sum(data) }
