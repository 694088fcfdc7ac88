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
	dst = pbfield.AppendUint(dst, 1, uint64(p.Kind))
	dst = pbfield.AppendUint(dst, 2, p.RequestID)
	dst = pbfield.AppendUint(dst, 3, uint64(p.Amount))
	dst = pbfield.AppendUint(dst, 4, uint64(p.Sent))
	dst = pbfield.AppendUint(dst, 5, uint64(p.Code))
	if p.Has&HasOpen != 0 {
		var at mark
		dst, at = beginFrame(dst, frameOpen)
		dst = appendBytes(dst, 1, p.Open.Asset)
		dst = pbfield.AppendUint(dst, 2, uint64(p.Open.Suite))
		dst = pbfield.AppendUint(dst, 3, uint64(p.Open.Idle))
		for _, id := range p.Open.Via() {
			dst = pbfield.AppendBytes(dst, 4, id)
		}
		dst = endFrame(dst, at)
	}
	if p.Has&HasState != 0 {
		var at mark
		dst, at = beginFrame(dst, frameState)
		t := &p.State.Totals
		dst = pbfield.AppendUint(dst, 1, p.State.Seq)
		dst = pbfield.AppendUint(dst, 2, p.State.Seen)
		dst = pbfield.AppendUint(dst, 3, uint64(t.Expected))
		dst = pbfield.AppendUint(dst, 4, uint64(t.Wanted.N))
		dst = appendBool(dst, 5, t.Wanted.Open)
		dst = pbfield.AppendUint(dst, 6, uint64(t.Offer.N))
		dst = appendBool(dst, 7, t.Offer.Open)
		dst = pbfield.AppendUint(dst, 8, uint64(p.State.Received))
		dst = endFrame(dst, at)
	}
	for i := range p.Proposals {
		f := &p.Proposals[i]
		var at mark
		dst, at = beginFrame(dst, frameProposal)
		dst = pbfield.AppendBytes(dst, 1, f.ID[:])
		dst = pbfield.AppendUint(dst, 2, protowire.EncodeZigZag(f.MinDelta))
		dst = pbfield.AppendUint(dst, 3, protowire.EncodeZigZag(f.MaxDelta))
		dst = appendBytes(dst, 4, f.Memo)
		dst = endFrame(dst, at)
	}
	for i := range p.Replies {
		var at mark
		dst, at = beginFrame(dst, frameProposalReply)
		dst = pbfield.AppendBytes(dst, 1, p.Replies[i].ID[:])
		dst = appendBool(dst, 2, p.Replies[i].Accepted)
		dst = endFrame(dst, at)
	}
	for _, f := range p.Money {
		var at mark
		dst, at = beginFrame(dst, frameMoney)
		dst = pbfield.AppendUint(dst, 1, f.Stream)
		dst = pbfield.AppendUint(dst, 2, f.Shares)
		dst = endFrame(dst, at)
	}
	for i := range p.Data {
		f := &p.Data[i]
		var at mark
		dst, at = beginFrame(dst, frameData)
		dst = pbfield.AppendUint(dst, 1, f.Stream)
		dst = pbfield.AppendUint(dst, 2, f.Offset)
		dst = appendBytes(dst, 3, f.Data)
		dst = appendBool(dst, 4, f.Fin)
		dst = endFrame(dst, at)
	}
	for _, f := range p.Credits {
		var at mark
		dst, at = beginFrame(dst, frameCredit)
		dst = pbfield.AppendUint(dst, 1, f.Stream)
		dst = pbfield.AppendUint(dst, 2, f.Limit)
		dst = appendBool(dst, 3, f.End)
		dst = endFrame(dst, at)
	}
	if p.Has&HasNewAddress != 0 {
		var at mark
		dst, at = beginFrame(dst, frameNewAddress)
		for _, id := range p.NewAddress.Via() {
			dst = pbfield.AppendBytes(dst, 1, id)
		}
		dst = endFrame(dst, at)
	}
	if p.Has&HasAssetDetails != 0 {
		var at mark
		dst, at = beginFrame(dst, frameAssetDetails)
		dst = appendBytes(dst, 1, p.AssetDetails.Code)
		dst = pbfield.AppendUint(dst, 2, uint64(p.AssetDetails.Scale))
		dst = endFrame(dst, at)
	}
	for i := range p.Receipts {
		f := &p.Receipts[i]
		var at mark
		dst, at = beginFrame(dst, frameReceipt)
		dst = pbfield.AppendBytes(dst, 1, f.Nonce[:])
		dst = pbfield.AppendUint(dst, 2, uint64(f.Total))
		dst = pbfield.AppendUint(dst, 3, f.Time)
		dst = appendBytes(dst, 4, f.Signature)
		dst = endFrame(dst, at)
	}
	if p.Has&HasClose != 0 {
		var at mark
		dst, at = beginFrame(dst, frameClose)
		dst = pbfield.AppendUint(dst, 1, uint64(p.Close.Code))
		dst = pbfield.AppendUint(dst, 2, uint64(p.Close.Sent))
		dst = pbfield.AppendUint(dst, 3, uint64(p.Close.Received))
		dst = endFrame(dst, at)
	}
	for i := range p.Requests {
		var at mark
		dst, at = beginFrame(dst, frameReceiptRequest)
		dst = pbfield.AppendBytes(dst, 1, p.Requests[i].Nonce[:])
		dst = endFrame(dst, at)
	}
	return appendBool(dst, 7, p.Again)
}

func appendBool(dst []byte, num protowire.Number, v bool) []byte {
	if !v {
		return dst
	}
	return pbfield.AppendUint(dst, num, 1)
}

func appendBytes(dst []byte, num protowire.Number, b []byte) []byte {
	if len(b) == 0 {
		return dst
	}
	return pbfield.AppendBytes(dst, num, b)
}

// mark is where a frame began: its two lengths are written once they are known.
type mark struct {
	at  int
	num protowire.Number
}

// frameHead is the length of two tags and two lengths of a byte each, which are those
// of Frame and of its kind. A longer body is moved.
const frameHead = 4

func beginFrame(dst []byte, num protowire.Number) ([]byte, mark) {
	return append(dst, make([]byte, frameHead)...), mark{at: len(dst), num: num}
}

// endFrame writes the tags and lengths before the body.
func endFrame(dst []byte, m mark) []byte {
	body := len(dst) - m.at - frameHead
	inner := 1 + protowire.SizeBytes(body)
	var long [2 * (1 + 5)]byte
	h := append(long[:0], tagFrame)
	h = protowire.AppendVarint(h, uint64(inner))
	h = append(h, byte(m.num<<3)|byte(protowire.BytesType))
	h = protowire.AppendVarint(h, uint64(body))
	if more := len(h) - frameHead; more > 0 {
		dst = append(dst, h[:more]...) // room
		copy(dst[m.at+len(h):], dst[m.at+frameHead:])
	}
	copy(dst[m.at:], h)
	return dst
}

// tagFrame is the tag of a frame in a packet, field 6.
const tagFrame = 6<<3 | byte(protowire.BytesType)

// Decode fills p from b. Unknown fields and frames are skipped; a second one of a
// single frame, a number out of its range or a length out of its bound is
// ErrFrame.
func (p *Packet) Decode(b []byte) error {
	p.Reset()
	if len(b) > MaxInner {
		return ErrFrame
	}
	frames := 0
	r := reader{rest: b}
	for r.next() {
		switch r.Num {
		case 1:
			p.Kind = Kind(r.small(uint64(KindReject)))
		case 2:
			p.RequestID = r.uint()
		case 3:
			p.Amount = r.amount()
		case 4:
			p.Sent = r.amount()
		case 5:
			// A code of a later version is a refusal like any other.
			if c := r.uint(); c <= uint64(CodeClosed) {
				p.Code = Code(c)
			} else {
				p.Code = CodeRefused
			}
		case 6:
			if frames++; frames > maxFrames {
				return ErrFrame
			}
			r.bad = !p.decodeFrame(r.bytes(MaxInner)) || r.bad
		case 7:
			p.Again = r.bool()
		}
	}
	if r.bad || p.Kind < KindPrepare {
		return ErrFrame
	}
	return nil
}

// decodeFrame reads a frame; false where it is malformed.
func (p *Packet) decodeFrame(b []byte) bool {
	r := reader{rest: b}
	for known := false; r.next(); {
		if r.Num < frameOpen || r.Num > frameReceiptRequest {
			continue
		}
		if known {
			return false // a oneof has one member
		}
		known = true
		kind := r.Num
		if body := r.bytes(MaxInner); !r.bad {
			r.bad = !p.decodeKind(kind, body)
		}
	}
	return !r.bad
}

// single notes a frame that may be there once.
func (p *Packet) single(h Has) bool {
	again := p.Has&h != 0
	p.Has |= h
	return !again
}

// decodeKind reads the body of a frame. A frame whose id is missing is malformed, because
// nothing could answer it.
func (p *Packet) decodeKind(num protowire.Number, b []byte) bool {
	none := [16]byte{}
	switch num {
	case frameOpen:
		return p.single(HasOpen) && p.Open.decode(b)
	case frameState:
		return p.single(HasState) && p.State.decode(b)
	case frameNewAddress:
		return p.single(HasNewAddress) && p.NewAddress.decode(b)
	case frameAssetDetails:
		return p.single(HasAssetDetails) && p.AssetDetails.decode(b)
	case frameClose:
		return p.single(HasClose) && p.Close.decode(b)
	case frameProposal:
		f := grown(&p.Proposals)
		return f.decode(b) && f.ID != none
	case frameProposalReply:
		f := grown(&p.Replies)
		return f.decode(b) && f.ID != none
	case frameMoney:
		return grown(&p.Money).decode(b)
	case frameData:
		return grown(&p.Data).decode(b)
	case frameCredit:
		return grown(&p.Credits).decode(b)
	case frameReceipt:
		f := grown(&p.Receipts)
		return f.decode(b) && f.Nonce != none
	default:
		f := grown(&p.Requests)
		return f.decode(b) && f.Nonce != none
	}
}

// grown adds an empty frame to a list.
func grown[F any](list *[]F) *F {
	*list = append(*list, *new(F))
	return &(*list)[len(*list)-1]
}

func (o *OpenFrame) decode(b []byte) bool {
	*o = OpenFrame{}
	r := reader{rest: b}
	for r.next() {
		switch r.Num {
		case 1:
			o.Asset = r.bytes(maxAsset)
		case 2:
			o.Suite = uint32(r.small(math.MaxUint32))
		case 3:
			o.Idle = uint32(r.small(math.MaxUint32))
		case 4:
			r.bad = !o.Add(r.bytes(maxPeerID))
		}
	}
	return !r.bad
}

func (v *ViaFrame) decode(b []byte) bool {
	*v = ViaFrame{}
	r := reader{rest: b}
	for r.next() {
		if r.Num == 1 {
			r.bad = !v.Add(r.bytes(maxPeerID))
		}
	}
	return !r.bad
}

func (s *StateFrame) decode(b []byte) bool {
	*s = StateFrame{}
	r := reader{rest: b}
	t := &s.Totals
	for r.next() {
		switch r.Num {
		case 1:
			s.Seq = r.uint()
		case 2:
			s.Seen = r.uint()
		case 3:
			t.Expected = r.amount()
		case 4:
			t.Wanted.N = r.amount()
		case 5:
			t.Wanted.Open = r.bool()
		case 6:
			t.Offer.N = r.amount()
		case 7:
			t.Offer.Open = r.bool()
		case 8:
			s.Received = r.amount()
		}
	}
	return !r.bad
}

func (p *ProposalFrame) decode(b []byte) bool {
	*p = ProposalFrame{}
	r := reader{rest: b}
	for r.next() {
		switch r.Num {
		case 1:
			r.id(&p.ID)
		case 2:
			p.MinDelta = protowire.DecodeZigZag(r.uint())
		case 3:
			p.MaxDelta = protowire.DecodeZigZag(r.uint())
		case 4:
			p.Memo = r.bytes(MaxMemo)
		}
	}
	return !r.bad
}

func (p *ProposalReplyFrame) decode(b []byte) bool {
	*p = ProposalReplyFrame{}
	r := reader{rest: b}
	for r.next() {
		switch r.Num {
		case 1:
			r.id(&p.ID)
		case 2:
			p.Accepted = r.bool()
		}
	}
	return !r.bad
}

func (m *MoneyFrame) decode(b []byte) bool {
	*m = MoneyFrame{}
	r := reader{rest: b}
	for r.next() {
		switch r.Num {
		case 1:
			m.Stream = r.uint()
		case 2:
			m.Shares = r.uint()
		}
	}
	return !r.bad
}

func (c *CreditFrame) decode(b []byte) bool {
	*c = CreditFrame{}
	r := reader{rest: b}
	for r.next() {
		switch r.Num {
		case 1:
			c.Stream = r.uint()
		case 2:
			c.Limit = r.uint()
		case 3:
			c.End = r.bool()
		}
	}
	return !r.bad
}

func (d *DataFrame) decode(b []byte) bool {
	*d = DataFrame{}
	r := reader{rest: b}
	for r.next() {
		switch r.Num {
		case 1:
			d.Stream = r.uint()
		case 2:
			d.Offset = r.small(math.MaxInt64)
		case 3:
			d.Data = r.bytes(MaxData)
		case 4:
			d.Fin = r.bool()
		}
	}
	return !r.bad
}

func (a *AssetFrame) decode(b []byte) bool {
	*a = AssetFrame{}
	r := reader{rest: b}
	for r.next() {
		switch r.Num {
		case 1:
			a.Code = r.bytes(maxAsset)
		case 2:
			a.Scale = uint32(r.small(math.MaxUint8))
		}
	}
	return !r.bad
}

func (f *ReceiptFrame) decode(b []byte) bool {
	*f = ReceiptFrame{}
	r := reader{rest: b}
	for r.next() {
		switch r.Num {
		case 1:
			r.id(&f.Nonce)
		case 2:
			f.Total = r.amount()
		case 3:
			f.Time = r.uint()
		case 4:
			f.Signature = r.bytes(maxSignature)
		}
	}
	return !r.bad
}

func (f *ReceiptRequestFrame) decode(b []byte) bool {
	*f = ReceiptRequestFrame{}
	r := reader{rest: b}
	for r.next() {
		if r.Num == 1 {
			r.id(&f.Nonce)
		}
	}
	return !r.bad
}

func (c *CloseFrame) decode(b []byte) bool {
	*c = CloseFrame{}
	r := reader{rest: b}
	for r.next() {
		switch r.Num {
		case 1:
			c.Code = uint32(r.small(math.MaxUint32))
		case 2:
			c.Sent = r.amount()
		case 3:
			c.Received = r.amount()
		}
	}
	return !r.bad
}

// reader goes through the fields of a message. What does not fit ends it, with bad set.
type reader struct {
	pbfield.Field
	rest []byte
	bad  bool
}

// next reads a field, and is false after the last one.
func (r *reader) next() bool {
	if r.bad || len(r.rest) == 0 {
		return false
	}
	rest, ok := r.Read(r.rest)
	r.rest, r.bad = rest, !ok
	return ok
}

func (r *reader) uint() uint64 {
	r.bad = r.bad || r.Type != protowire.VarintType
	return r.N
}

func (r *reader) bool() bool { return r.uint() != 0 }

// small is uint for a field that has a largest value.
func (r *reader) small(most uint64) uint64 {
	if r.uint() > most {
		r.bad = true
		return 0
	}
	return r.N
}

func (r *reader) amount() tally.Amount { return tally.Amount(r.small(math.MaxInt64)) }

func (r *reader) bytes(most int) []byte {
	if r.Type != protowire.BytesType || len(r.B) > most {
		r.bad = true
		return nil
	}
	return r.B
}

func (r *reader) id(id *[16]byte) {
	b := r.bytes(len(id))
	r.bad = r.bad || len(b) != len(id)
	copy(id[:], b)
}
