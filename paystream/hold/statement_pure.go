package hold

import (
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/crypto/blake2b"
	"golang.org/x/crypto/cryptobyte"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/payments"
)

const (
	// MaxStatementText bounds the text of a lane statement.
	MaxStatementText = 900
	maxChannelText   = 64
	statementPrefix  = "tallylane1"
	// maxEpoch bounds epochs, so that sums of them do not overflow.
	maxEpoch = int64(1) << 48
)

var (
	// ErrStatement: not a lane statement, damaged, not signed by the payee, or about
	// another payer, holder or network.
	ErrStatement = errors.New("hold: not the payee's word about its lanes for us")
	// ErrStale: the payee keeps the room for less long than is asked for.
	ErrStale = errors.New("hold: the payee's statement ends before the deadline")
)

// LaneStatement is a payee's word about a holder's channel to it: what all lanes come
// to, and how much beside that stays free, for one payer, until an epoch. The payee
// takes no other voucher that would use the room, so that a voucher which is bought
// over it is sure to be paid by the channel.
//
// A statement without a payer is for whoever comes. A holder may sell its room twice.
type LaneStatement struct {
	// Realm is the network and asset of the amounts.
	Realm         string
	Payee, Holder peer.ID
	// Payer is empty where the statement is for whoever comes.
	Payer   peer.ID
	Channel string
	// Serial of the payee: never used twice, and rising.
	Serial uint64
	// Total is what the payee's vouchers of all lanes come to, what is redeemed
	// included, rounded up; Room what stays free beside that.
	Total, Room tally.Amount
	// Until is the last epoch of the room.
	Until int64
	// Signature is of the payee's identity key over SigningBytes.
	Signature []byte
}

func (s *LaneStatement) body() []byte {
	var b cryptobyte.Builder
	for _, v := range [...]string{s.Realm, string(s.Payee), string(s.Holder), string(s.Payer), s.Channel} {
		addShort(&b, []byte(v))
	}
	addUints(&b, s.Serial, uint64(s.Total), uint64(s.Room), uint64(s.Until))
	return b.BytesOrPanic()
}

// SigningBytes is what the payee signs, in a domain of its own.
func (s *LaneStatement) SigningBytes() []byte {
	sum := blake2b.Sum256(append([]byte("tally lane statement 1\x00"), s.body()...))
	return sum[:]
}

// Validate reports a statement that has no text.
func (s *LaneStatement) Validate() error {
	bad := func(what string) error { return fmt.Errorf("%w: %s", ErrStatement, what) }
	switch {
	case s.Realm == "" || len(s.Realm) > maxRealm:
		return bad("realm")
	case !goodPeer(s.Payee) || !goodPeer(s.Holder) || s.Payee == s.Holder:
		return bad("payee and holder")
	case s.Payer != "" && (!goodPeer(s.Payer) || s.Payer == s.Payee || s.Payer == s.Holder):
		return bad("payer")
	case s.Channel == "" || len(s.Channel) > maxChannelText:
		return bad("channel")
	case s.Room == 0 || s.Room >= payments.MaxTotal || s.Total >= payments.MaxTotal:
		return bad("amounts")
	case s.Serial == 0 || s.Until <= 0 || s.Until > maxEpoch:
		return bad("serial and end")
	case len(s.Signature) == 0 || len(s.Signature) > maxSignature:
		return bad("signature")
	}
	return nil
}

// Verify reports whether the payee said this: ErrStatement. Whom it is for is not
// looked at.
func (s *LaneStatement) Verify(realm string) error {
	if err := s.Validate(); err != nil {
		return err
	}
	key, err := s.Payee.ExtractPublicKey()
	if err != nil {
		return fmt.Errorf("%w: the payee's id holds no key", ErrStatement)
	}
	if ok, err := key.Verify(s.SigningBytes(), s.Signature); err != nil || !ok {
		return fmt.Errorf("%w: the signature is not the payee's", ErrStatement)
	}
	if s.Realm != realm {
		return fmt.Errorf("%w: it is for %q, we are on %q", ErrStatement, s.Realm, realm)
	}
	return nil
}

// For reports whether the statement is one that payer may buy on: ErrStatement. shared
// allows one that is for whoever comes.
func (s *LaneStatement) For(payer peer.ID, shared bool) error {
	switch {
	case s.Payer == payer:
		return nil
	case s.Payer != "":
		return fmt.Errorf("%w: it is for another payer; ask the payee for one of your own", ErrStatement)
	case !shared:
		return fmt.Errorf("%w: it is for whoever comes, and the holder may sell its room twice; ask the payee for one of your own, or allow a shared one", ErrStatement)
	}
	return nil
}

// String returns the text of a statement. It holds no secret.
//
//	tallylane1 ‖ base32hex(body ‖ signature length ‖ signature ‖ check 4)
func (s *LaneStatement) String() string {
	b := cryptobyte.NewBuilder(s.body())
	addShort(b, s.Signature)
	return writeText(statementPrefix, b.BytesOrPanic())
}

// ParseStatement reads exactly what String writes. Whose it is, Verify says.
func ParseStatement(text string) (LaneStatement, error) {
	bad := func(what string) (LaneStatement, error) {
		return LaneStatement{}, fmt.Errorf("%w: %s", ErrStatement, what)
	}
	if len(text) > MaxStatementText {
		return bad(fmt.Sprintf("longer than %d", MaxStatementText))
	}
	body, err := readText(statementPrefix, text)
	if err != nil {
		return bad(err.Error())
	}
	r := reader{String: body}
	s := r.statement()
	if r.bad || !r.Empty() {
		return bad("not canonical")
	}
	return s, s.Validate()
}

func (r *reader) statement() LaneStatement {
	s := LaneStatement{Realm: r.short(), Payee: peer.ID(r.short()), Holder: peer.ID(r.short()), Payer: peer.ID(r.short()), Channel: r.short()}
	s.Serial, s.Total, s.Room, s.Until = r.uint(), tally.Amount(r.uint()), tally.Amount(r.uint()), r.time()
	s.Signature = []byte(r.short())
	return s
}
