package holdnet

import (
	"errors"
	"fmt"
	"math"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/hold"
	"github.com/tallystick/tally/pb/holdpb"
)

// ErrMalformed: a message that no peer of this protocol sends.
var ErrMalformed = errors.New("holdnet: malformed message")

func malformed(what string) error { return fmt.Errorf("%w: %s", ErrMalformed, what) }

const maxPeerID = 64

// clock translates between a peer's clock and ours: offset is what the peer's shows
// more. What a message takes on its way counts as a difference.
type clock struct{ offset int64 }

func clockOf(now int64, peerMS uint64) (clock, error) {
	if peerMS > math.MaxInt64/4 {
		return clock{}, malformed("clock")
	}
	return clock{int64(peerMS) - now}, nil
}

// ours brings a time of the peer's clock to ours; 0 where it is none.
func (c clock) ours(ms uint64) int64 {
	if ms > math.MaxInt64/4 {
		return 0
	}
	return max(0, int64(ms)-c.offset)
}

func peerOf(b []byte) (peer.ID, error) {
	if len(b) == 0 || len(b) > maxPeerID {
		return "", malformed("peer id")
	}
	p, err := peer.IDFromBytes(b)
	if err != nil {
		return "", malformed("peer id")
	}
	return p, nil
}

func idOf(b []byte) (hold.ID, error) {
	if len(b) != len(hold.ID{}) {
		return hold.ID{}, malformed("id")
	}
	return hold.ID(b), nil
}

// wireHold is t as it travels, times on our clock.
func wireHold(t *hold.Terms, withPayer bool) *holdpb.Hold {
	h := &holdpb.Hold{
		Id: t.ID[:], Payee: []byte(t.Payee), Hash: t.Hash[:], Amount: uint64(t.Amount),
		ExpiresMs: uint64(max(0, t.Expires)), UntilMs: uint64(max(0, t.Until)), PleasePoll: t.Poll, Box: t.Box,
	}
	if withPayer {
		h.Payer = []byte(t.Payer)
	}
	return h
}

// termsOf reads a hold. payer is who sent it, or empty where the message names it.
func termsOf(h *holdpb.Hold, payer, holder peer.ID, c clock) (*hold.Terms, error) {
	t := &hold.Terms{
		Payer: payer, Holder: holder, Amount: tally.Amount(h.GetAmount()), Expires: c.ours(h.GetExpiresMs()),
		Until: c.ours(h.GetUntilMs()), Poll: h.GetPleasePoll(), Box: h.GetBox(),
	}
	var err error
	if t.ID, err = idOf(h.GetId()); err != nil {
		return nil, err
	}
	if t.Payee, err = peerOf(h.GetPayee()); err != nil {
		return nil, err
	}
	if payer == "" {
		if t.Payer, err = peerOf(h.GetPayer()); err != nil {
			return nil, err
		}
	}
	if len(h.GetHash()) != tally.HashlockSize {
		return nil, malformed("hash")
	}
	t.Hash = tally.Hashlock(h.GetHash())
	if len(t.Box) == 0 {
		t.Box = nil
	}
	return t, nil
}

// statuses pairs what the service says with what travels. The first that fits.
var statuses = [...]struct {
	err    error
	status holdpb.Status
}{
	{hold.ErrPrice, holdpb.Status_STATUS_PRICE},
	{hold.ErrNoCredit, holdpb.Status_STATUS_NO_CREDIT},
	{hold.ErrBound, holdpb.Status_STATUS_BOUND},
	{hold.ErrConflict, holdpb.Status_STATUS_CONFLICT},
	{hold.ErrNoHold, holdpb.Status_STATUS_NO_HOLD},
	{hold.ErrTooLate, holdpb.Status_STATUS_TOO_LATE},
	{hold.ErrTerms, holdpb.Status_STATUS_TERMS},
	{hold.ErrBusy, holdpb.Status_STATUS_BUSY},
	{hold.ErrStatement, holdpb.Status_STATUS_STATEMENT},
	{hold.ErrStale, holdpb.Status_STATUS_STALE},
	{hold.ErrChannel, holdpb.Status_STATUS_CHANNEL},
	{hold.ErrLaneRoom, holdpb.Status_STATUS_ROOM},
	{hold.ErrMail, holdpb.Status_STATUS_MAIL},
	{hold.ErrVoucher, holdpb.Status_STATUS_VOUCHER},
	{hold.ErrNoChannels, holdpb.Status_STATUS_UNSUPPORTED},
}

// statusOf is an error as a peer hears it. What it does not have to know is
// "internal".
func statusOf(err error) holdpb.Status {
	if err == nil {
		return holdpb.Status_STATUS_OK
	}
	for _, s := range statuses {
		if errors.Is(err, s.err) {
			return s.status
		}
	}
	return holdpb.Status_STATUS_INTERNAL
}

// RefusedError is what a peer answered.
type RefusedError struct {
	Remote peer.ID
	Status holdpb.Status
	cause  error
}

// Error names who refused, and why.
func (e *RefusedError) Error() string {
	if e.cause != nil {
		return fmt.Sprintf("%s says: %v", e.Remote, e.cause)
	}
	return fmt.Sprintf("%s says: %s", e.Remote, e.Status)
}

// Unwrap gives the error of package hold that the status stands for.
func (e *RefusedError) Unwrap() error { return e.cause }

// errOf is a status as callers of package hold know it.
func errOf(from peer.ID, s holdpb.Status) error {
	if s == holdpb.Status_STATUS_OK {
		return nil
	}
	e := &RefusedError{Remote: from, Status: s}
	for _, m := range statuses {
		if m.status == s {
			e.cause = m.err
			break
		}
	}
	return e
}
