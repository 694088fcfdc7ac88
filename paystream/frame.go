package paystream

import (
	"errors"
	"math"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/pbfield"
)

// Bounds of the inner packet. Every length is checked against them before
// anything is kept.
const (
	// MaxInner is the largest inner packet: one Data frame of MaxData, and room
	// for everything else.
	MaxInner = 20 << 10
	// MaxData is the largest piece of an application's stream in one packet.
	MaxData = 16 << 10
	// MaxVia is the longest way back, in peers: the most hops that a packet may
	// take.
	MaxVia = 20
	// MaxMemo bounds the text of a proposal, and maxAsset that of an asset.
	MaxMemo  = 256
	maxAsset = 64
	// maxPeerID fits every kind of libp2p peer id in use.
	maxPeerID = 64
	// maxFrames bounds what a reader handles for one packet.
	maxFrames = 64
	// maxSignature fits the signatures of all libp2p key types but large RSA.
	maxSignature = 512
)

// ErrFrame: an inner packet that does not follow the format. It came from
// somebody who has the socket's secret.
var ErrFrame = errors.New("paystream: malformed packet")

// Kind is what a packet is.
type Kind uint8

// The kinds of packets.
const (
	KindPrepare Kind = iota + 1
	KindFulfil
	KindReject
)

// String names the kind.
func (k Kind) String() string {
	if k < KindPrepare || k > KindReject {
		return "?"
	}
	return [...]string{"prepare", "fulfil", "reject"}[k-1]
}

// Code is the reason that a sealed reply gives.
type Code uint8

// The codes of docs/protocol/paystream.md.
const (
	CodeUnset Code = iota
	CodeRead
	CodeReopen
	CodeRefused
	CodeTooLittle
	CodeFull
	CodeThin
	CodeBusy
	CodeClosed
)

// Packet is the plain text of a packet: what the two ends tell each other.
// Decode fills it again and again without allocation; byte slices point into what
// was decoded.
type Packet struct {
	Kind      Kind
	Code      Code
	RequestID uint64
	Amount    tally.Amount // prepare: least to take; reply: what arrived
	Sent      tally.Amount // prepare: what the payer gives
	Again     bool         // reply: not all Data of the request was taken

	// At most one of each; the flags say which are there.
	Has          Has
	Open         OpenFrame
	State        StateFrame
	NewAddress   ViaFrame
	AssetDetails AssetFrame
	Close        CloseFrame
	// Up to maxFrames together with the others.
	Proposals []ProposalFrame
	Replies   []ProposalReplyFrame
	Money     []MoneyFrame
	Data      []DataFrame
	Credits   []CreditFrame
	Receipts  []ReceiptFrame
	Requests  []ReceiptRequestFrame
}

// Has is the set of the single frames that a packet carries.
type Has uint8

// The single frames.
const (
	HasOpen Has = 1 << iota
	HasState
	HasNewAddress
	HasAssetDetails
	HasClose
)

// ViaFrame is a way back: peer ids, the last one where it ends.
type ViaFrame struct {
	n   int
	ids [MaxVia][]byte
}

// Via returns the peer ids.
func (v *ViaFrame) Via() [][]byte { return v.ids[:v.n] }

// Add appends a peer id; false where there is no room or it is no peer id.
func (v *ViaFrame) Add(id []byte) bool {
	if v.n == MaxVia || len(id) == 0 || len(id) > maxPeerID {
		return false
	}
	v.ids[v.n] = id
	v.n++
	return true
}

// The frames, as in paystream.proto.
type (
	// OpenFrame begins a session.
	OpenFrame struct {
		Asset []byte
		Suite uint32
		Idle  uint32
		ViaFrame
	}
	// StateFrame tells totals.
	StateFrame struct {
		Seq, Seen uint64
		Totals    Totals
		Received  tally.Amount
	}
	// ProposalFrame asks the reader to move its limits.
	ProposalFrame struct {
		ID                 [16]byte
		MinDelta, MaxDelta int64
		Memo               []byte
	}
	// ProposalReplyFrame answers one.
	ProposalReplyFrame struct {
		ID       [16]byte
		Accepted bool
	}
	// MoneyFrame divides the packet's amount among streams.
	MoneyFrame struct{ Stream, Shares uint64 }
	// DataFrame is a piece of a stream.
	DataFrame struct {
		Stream, Offset uint64
		Data           []byte
		Fin            bool
	}
	// CreditFrame lets the reader send up to Limit; of stream 0 it is the limit of
	// every stream that has none of its own. End: the teller reads no more.
	CreditFrame struct {
		Stream, Limit uint64
		End           bool
	}
	// AssetFrame names the teller's asset.
	AssetFrame struct {
		Code  []byte
		Scale uint32
	}
	// ReceiptFrame is a signed statement.
	ReceiptFrame struct {
		Nonce     [16]byte
		Total     tally.Amount
		Time      uint64
		Signature []byte
	}
	// ReceiptRequestFrame asks for one.
	ReceiptRequestFrame struct{ Nonce [16]byte }
	// CloseFrame ends the socket for the teller.
	CloseFrame struct {
		Code           uint32
		Sent, Received tally.Amount
	}
)

// Numbers of Frame's oneof.
const (
	frameOpen protowire.Number = iota + 1
	frameState
	frameProposal
	frameProposalReply
	frameMoney
	frameData
	frameCredit
	frameNewAddress
	frameAssetDetails
	frameReceipt
	frameClose
	frameReceiptRequest
)

// Reset empties p and keeps its memory.
func (p *Packet) Reset() {
	p.Kind, p.Code, p.RequestID, p.Amount, p.Sent, p.Has, p.Again = 0, 0, 0, 0, 0, 0, false
	p.Proposals, p.Replies, p.Money = p.Proposals[:0], p.Replies[:0], p.Money[:0]
	p.Data, p.Credits = p.Data[:0], p.Credits[:0]
	p.Receipts, p.Requests = p.Receipts[:0], p.Requests[:0]
}

// Append encodes p behind dst: the bytes that protobuf's own encoder makes of the
// same message, with the frames in the order of their numbers.
func (p *Packet) Append(dst []byte) []byte {
	dst = appendUint(dst, 1, uint64(p.Kind))
	dst = appendUint(dst, 2, p.RequestID)
	dst = appendUint(dst, 3, uint64(p.Amount))
	dst = appendUint(dst, 4, uint64(p.Sent))
	dst = appendUint(dst, 5, uint64(p.Code))
	if p.Has&HasOpen != 0 {
		var at mark
		dst, at = beginFrame(dst, frameOpen)
		dst = appendBytes(dst, 1, p.Open.Asset)
		dst = appendUint(dst, 2, uint64(p.Open.Suite))
		dst = appendUint(dst, 3, uint64(p.Open.Idle))
		for _, id := range p.Open.Via() {
			dst = appendAlways(dst, 4, id)
		}
		dst = endFrame(dst, at)
	}
	if p.Has&HasState != 0 {
		var at mark
		dst, at = beginFrame(dst, frameState)
		t := &p.State.Totals
		dst = appendUint(dst, 1, p.State.Seq)
		dst = appendUint(dst, 2, p.State.Seen)
		dst = appendUint(dst, 3, uint64(t.Expected))
		dst = appendUint(dst, 4, uint64(t.Wanted.N))
		dst = appendBool(dst, 5, t.Wanted.Open)
		dst = appendUint(dst, 6, uint64(t.Offer.N))
		dst = appendBool(dst, 7, t.Offer.Open)
		dst = appendUint(dst, 8, uint64(p.State.Received))
		dst = endFrame(dst, at)
	}
	for i := range p.Proposals {
		f := &p.Proposals[i]
		var at mark
		dst, at = beginFrame(dst, frameProposal)
		dst = appendAlways(dst, 1, f.ID[:])
		dst = appendUint(dst, 2, protowire.EncodeZigZag(f.MinDelta))
		dst = appendUint(dst, 3, protowire.EncodeZigZag(f.MaxDelta))
		dst = appendBytes(dst, 4, f.Memo)
		dst = endFrame(dst, at)
	}
	for i := range p.Replies {
		var at mark
		dst, at = beginFrame(dst, frameProposalReply)
		dst = appendAlways(dst, 1, p.Replies[i].ID[:])
		dst = appendBool(dst, 2, p.Replies[i].Accepted)
		dst = endFrame(dst, at)
	}
	for _, f := range p.Money {
		var at mark
		dst, at = beginFrame(dst, frameMoney)
		dst = appendUint(dst, 1, f.Stream)
		dst = appendUint(dst, 2, f.Shares)
		dst = endFrame(dst, at)
	}
	for i := range p.Data {
		f := &p.Data[i]
		var at mark
		dst, at = beginFrame(dst, frameData)
		dst = appendUint(dst, 1, f.Stream)
		dst = appendUint(dst, 2, f.Offset)
		dst = appendBytes(dst, 3, f.Data)
		dst = appendBool(dst, 4, f.Fin)
		dst = endFrame(dst, at)
	}
	for _, f := range p.Credits {
		var at mark
		dst, at = beginFrame(dst, frameCredit)
		dst = appendUint(dst, 1, f.Stream)
		dst = appendUint(dst, 2, f.Limit)
		dst = appendBool(dst, 3, f.End)
		dst = endFrame(dst, at)
	}
	if p.Has&HasNewAddress != 0 {
		var at mark
		dst, at = beginFrame(dst, frameNewAddress)
		for _, id := range p.NewAddress.Via() {
			dst = appendAlways(dst, 1, id)
		}
		dst = endFrame(dst, at)
	}
	if p.Has&HasAssetDetails != 0 {
		var at mark
		dst, at = beginFrame(dst, frameAssetDetails)
		dst = appendBytes(dst, 1, p.AssetDetails.Code)
		dst = appendUint(dst, 2, uint64(p.AssetDetails.Scale))
		dst = endFrame(dst, at)
	}
	for i := range p.Receipts {
		f := &p.Receipts[i]
		var at mark
		dst, at = beginFrame(dst, frameReceipt)
		dst = appendAlways(dst, 1, f.Nonce[:])
		dst = appendUint(dst, 2, uint64(f.Total))
		dst = appendUint(dst, 3, f.Time)
		dst = appendBytes(dst, 4, f.Signature)
		dst = endFrame(dst, at)
	}
	if p.Has&HasClose != 0 {
		var at mark
		dst, at = beginFrame(dst, frameClose)
		dst = appendUint(dst, 1, uint64(p.Close.Code))
		dst = appendUint(dst, 2, uint64(p.Close.Sent))
		dst = appendUint(dst, 3, uint64(p.Close.Received))
		dst = endFrame(dst, at)
	}
	for i := range p.Requests {
		var at mark
		dst, at = beginFrame(dst, frameReceiptRequest)
		dst = appendAlways(dst, 1, p.Requests[i].Nonce[:])
		dst = endFrame(dst, at)
	}
	return appendBool(dst, 7, p.Again)
}

func appendUint(dst []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return dst
	}
	return protowire.AppendVarint(protowire.AppendTag(dst, num, protowire.VarintType), v)
}

func appendBool(dst []byte, num protowire.Number, v bool) []byte {
	if !v {
		return dst
	}
	return appendUint(dst, num, 1)
}

func appendBytes(dst []byte, num protowire.Number, b []byte) []byte {
	if len(b) == 0 {
		return dst
	}
	return appendAlways(dst, num, b)
}

func appendAlways(dst []byte, num protowire.Number, b []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(dst, num, protowire.BytesType), b)
}

// mark is where a frame began: its two lengths are written once they are known.
type mark struct {
	at  int
	num protowire.Number
}

func beginFrame(dst []byte, num protowire.Number) ([]byte, mark) {
	return dst, mark{at: len(dst), num: num}
}

// endFrame puts the tags and lengths of Frame and of its kind before the body.
func endFrame(dst []byte, m mark) []byte {
	body := len(dst) - m.at
	inner := protowire.SizeTag(m.num) + protowire.SizeBytes(body)
	var head [2 * (1 + 5)]byte // two tags of a byte, two lengths
	h := protowire.AppendTag(head[:0], 6, protowire.BytesType)
	h = protowire.AppendVarint(h, uint64(inner))
	h = protowire.AppendTag(h, m.num, protowire.BytesType)
	h = protowire.AppendVarint(h, uint64(body))
	dst = append(dst, h...)
	copy(dst[m.at+len(h):], dst[m.at:m.at+body])
	copy(dst[m.at:], h)
	return dst
}

// Decode fills p from b. Unknown fields and frames are skipped; a second one of a
// single frame, a number out of its range or a length out of its bound is
// ErrFrame.
func (p *Packet) Decode(b []byte) error {
	p.Reset()
	if len(b) > MaxInner {
		return ErrFrame
	}
	frames := 0
	for len(b) > 0 {
		f, rest, err := nextField(b)
		if err != nil {
			return err
		}
		b = rest
		switch f.Num {
		case 1:
			p.Kind = Kind(f.small(&err, uint64(KindReject)))
		case 2:
			p.RequestID = f.uint(&err)
		case 3:
			p.Amount = tally.Amount(f.small(&err, math.MaxInt64))
		case 4:
			p.Sent = tally.Amount(f.small(&err, math.MaxInt64))
		case 5:
			// A code of a later version is a refusal like any other.
			if c := f.uint(&err); c <= uint64(CodeClosed) {
				p.Code = Code(c)
			} else {
				p.Code = CodeRefused
			}
		case 6:
			if frames++; frames > maxFrames {
				return ErrFrame
			}
			err = p.decodeFrame(f.bytes(&err, MaxInner), err)
		case 7:
			p.Again = f.uint(&err) != 0
		}
		if err != nil {
			return err
		}
	}
	if p.Kind < KindPrepare {
		return ErrFrame
	}
	return nil
}

func (p *Packet) decodeFrame(b []byte, err error) error {
	if err != nil {
		return err
	}
	for known := false; len(b) > 0; {
		f, rest, err := nextField(b)
		if err != nil {
			return err
		}
		b = rest
		if f.Num < frameOpen || f.Num > frameReceiptRequest {
			continue
		}
		if known {
			return ErrFrame // a oneof has one member
		}
		known = true
		body := f.bytes(&err, MaxInner)
		if err == nil {
			err = p.decodeKind(f.Num, body)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// single notes a frame that may be there once.
func (p *Packet) single(h Has) error {
	if p.Has&h != 0 {
		return ErrFrame
	}
	p.Has |= h
	return nil
}

func (p *Packet) decodeKind(num protowire.Number, b []byte) error {
	switch num {
	case frameOpen:
		p.Open = OpenFrame{}
		return errors.Join(p.single(HasOpen), eachField(b, p.Open.field))
	case frameState:
		p.State = StateFrame{}
		return errors.Join(p.single(HasState), eachField(b, p.State.field))
	case frameNewAddress:
		p.NewAddress = ViaFrame{}
		return errors.Join(p.single(HasNewAddress), eachField(b, p.NewAddress.field))
	case frameAssetDetails:
		p.AssetDetails = AssetFrame{}
		return errors.Join(p.single(HasAssetDetails), eachField(b, p.AssetDetails.field))
	case frameClose:
		p.Close = CloseFrame{}
		return errors.Join(p.single(HasClose), eachField(b, p.Close.field))
	case frameProposal:
		p.Proposals = append(p.Proposals, ProposalFrame{})
		f := &p.Proposals[len(p.Proposals)-1]
		return needID(eachField(b, f.field), f.ID)
	case frameProposalReply:
		p.Replies = append(p.Replies, ProposalReplyFrame{})
		f := &p.Replies[len(p.Replies)-1]
		return needID(eachField(b, f.field), f.ID)
	case frameMoney:
		p.Money = append(p.Money, MoneyFrame{})
		return eachField(b, p.Money[len(p.Money)-1].field)
	case frameData:
		p.Data = append(p.Data, DataFrame{})
		return eachField(b, p.Data[len(p.Data)-1].field)
	case frameCredit:
		p.Credits = append(p.Credits, CreditFrame{})
		return eachField(b, p.Credits[len(p.Credits)-1].field)
	case frameReceipt:
		p.Receipts = append(p.Receipts, ReceiptFrame{})
		f := &p.Receipts[len(p.Receipts)-1]
		return needID(eachField(b, f.field), f.Nonce)
	default:
		p.Requests = append(p.Requests, ReceiptRequestFrame{})
		f := &p.Requests[len(p.Requests)-1]
		return needID(eachField(b, f.field), f.Nonce)
	}
}

// needID refuses a frame whose id is missing: nothing could answer it.
func needID(err error, id [16]byte) error {
	if err == nil && id == [16]byte{} {
		return ErrFrame
	}
	return err
}

func (o *OpenFrame) field(f field) (err error) {
	switch f.Num {
	case 1:
		o.Asset = f.bytes(&err, maxAsset)
	case 2:
		o.Suite = uint32(f.small(&err, math.MaxUint32))
	case 3:
		o.Idle = uint32(f.small(&err, math.MaxUint32))
	case 4:
		if id := f.bytes(&err, maxPeerID); err == nil && !o.Add(id) {
			return ErrFrame
		}
	}
	return err
}

func (v *ViaFrame) field(f field) (err error) {
	if f.Num == 1 {
		if id := f.bytes(&err, maxPeerID); err == nil && !v.Add(id) {
			return ErrFrame
		}
	}
	return err
}

func (s *StateFrame) field(f field) (err error) {
	t := &s.Totals
	switch f.Num {
	case 1:
		s.Seq = f.uint(&err)
	case 2:
		s.Seen = f.uint(&err)
	case 3:
		t.Expected = tally.Amount(f.small(&err, math.MaxInt64))
	case 4:
		t.Wanted.N = tally.Amount(f.small(&err, math.MaxInt64))
	case 5:
		t.Wanted.Open = f.uint(&err) != 0
	case 6:
		t.Offer.N = tally.Amount(f.small(&err, math.MaxInt64))
	case 7:
		t.Offer.Open = f.uint(&err) != 0
	case 8:
		s.Received = tally.Amount(f.small(&err, math.MaxInt64))
	}
	return err
}

func (p *ProposalFrame) field(f field) (err error) {
	switch f.Num {
	case 1:
		f.id(&err, &p.ID)
	case 2:
		p.MinDelta = protowire.DecodeZigZag(f.uint(&err))
	case 3:
		p.MaxDelta = protowire.DecodeZigZag(f.uint(&err))
	case 4:
		p.Memo = f.bytes(&err, MaxMemo)
	}
	return err
}

func (p *ProposalReplyFrame) field(f field) (err error) {
	switch f.Num {
	case 1:
		f.id(&err, &p.ID)
	case 2:
		p.Accepted = f.uint(&err) != 0
	}
	return err
}

func (m *MoneyFrame) field(f field) (err error) {
	switch f.Num {
	case 1:
		m.Stream = f.uint(&err)
	case 2:
		m.Shares = f.uint(&err)
	}
	return err
}

func (c *CreditFrame) field(f field) (err error) {
	switch f.Num {
	case 1:
		c.Stream = f.uint(&err)
	case 2:
		c.Limit = f.uint(&err)
	case 3:
		c.End = f.uint(&err) != 0
	}
	return err
}

func (d *DataFrame) field(f field) (err error) {
	switch f.Num {
	case 1:
		d.Stream = f.uint(&err)
	case 2:
		d.Offset = f.small(&err, math.MaxInt64)
	case 3:
		d.Data = f.bytes(&err, MaxData)
	case 4:
		d.Fin = f.uint(&err) != 0
	}
	return err
}

func (a *AssetFrame) field(f field) (err error) {
	switch f.Num {
	case 1:
		a.Code = f.bytes(&err, maxAsset)
	case 2:
		a.Scale = uint32(f.small(&err, math.MaxUint8))
	}
	return err
}

func (r *ReceiptFrame) field(f field) (err error) {
	switch f.Num {
	case 1:
		f.id(&err, &r.Nonce)
	case 2:
		r.Total = tally.Amount(f.small(&err, math.MaxInt64))
	case 3:
		r.Time = f.uint(&err)
	case 4:
		r.Signature = f.bytes(&err, maxSignature)
	}
	return err
}

func (r *ReceiptRequestFrame) field(f field) (err error) {
	if f.Num == 1 {
		f.id(&err, &r.Nonce)
	}
	return err
}

func (c *CloseFrame) field(f field) (err error) {
	switch f.Num {
	case 1:
		c.Code = uint32(f.small(&err, math.MaxUint32))
	case 2:
		c.Sent = tally.Amount(f.small(&err, math.MaxInt64))
	case 3:
		c.Received = tally.Amount(f.small(&err, math.MaxInt64))
	}
	return err
}

func eachField(b []byte, fn func(field) error) error {
	for len(b) > 0 {
		f, rest, err := nextField(b)
		if err != nil {
			return err
		}
		if err := fn(f); err != nil {
			return err
		}
		b = rest
	}
	return nil
}

// field is one field of a message, with what it may be.
type field struct{ pbfield.Field }

func nextField(b []byte) (f field, rest []byte, err error) {
	split, rest, ok := pbfield.Next(b)
	if !ok {
		return field{}, nil, ErrFrame
	}
	return field{split}, rest, nil
}

func (f field) uint(err *error) uint64 {
	if f.Type != protowire.VarintType {
		*err = ErrFrame
	}
	return f.N
}

// small is uint for a field that has a largest value.
func (f field) small(err *error, most uint64) uint64 {
	n := f.uint(err)
	if n > most {
		*err = ErrFrame
		return 0
	}
	return n
}

func (f field) bytes(err *error, most int) []byte {
	if f.Type != protowire.BytesType || len(f.B) > most {
		*err = ErrFrame
		return nil
	}
	return f.B
}

func (f field) id(err *error, id *[16]byte) {
	if b := f.bytes(err, len(id)); *err == nil {
		if len(b) != len(id) {
			*err = ErrFrame
			return
		}
		copy(id[:], b)
	}
}
