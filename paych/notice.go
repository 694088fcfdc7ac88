package paych

import (
	"github.com/filecoin-project/go-address"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally"
)

// NoticeKind says what happened.
type NoticeKind string

// Kinds of notices. The words are part of the API.
const (
	NoticeOpened    NoticeKind = "opened"
	NoticeFunded    NoticeKind = "funded"
	NoticeFailed    NoticeKind = "message failed"
	NoticeSettling  NoticeKind = "settling"
	NoticeSubmitted NoticeKind = "voucher submitted"
	NoticeSecret    NoticeKind = "secret seen"
	NoticeCollected NoticeKind = "collected"
	// NoticeCover: what an inbound channel's vouchers would pay fell, by a
	// reorganisation, a voucher that the chain refuses, or a time that ran out.
	NoticeCover NoticeKind = "cover fell"
)

// Notice is one thing that happened without a call.
type Notice struct {
	Kind    NoticeKind
	Channel address.Address
	Cid     cid.Cid         // of the message, where there is one
	Err     error           // of NoticeFailed
	Secret  *tally.Preimage // of NoticeSecret: it was seen on the chain
	Final   *Final          // of NoticeCollected
	Cover   *Cover          // of NoticeCover: of all lanes together; PaychCover has one lane's
}
