package bridge

import (
	"fmt"
	"math"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/compat/ilp"
	"github.com/tallystick/tally/paystream/forward"
)

// overHops writes an end's reject as the data of a hop's, whole. What does not fit
// goes without its words, and if need be without its data.
func overHops(r *ilp.Reject) []byte {
	for _, try := range []*ilp.Reject{r, {Code: r.Code, TriggeredBy: r.TriggeredBy, Data: r.Data}, {Code: r.Code}} {
		if b, err := try.Append(nil); err == nil && len(b) <= forward.MaxData {
			return b
		}
	}
	return nil
}

// codes are what a hop's reject is to Interledger.
var codes = map[forward.Code]ilp.Code{
	forward.CodeRefused:       ilp.CodeUnreachable,
	forward.CodeNoRoute:       ilp.CodeUnreachable,
	forward.CodeTooLarge:      ilp.CodeAmountTooLarge,
	forward.CodeTooSmall:      ilp.CodeInsufficientSource,
	forward.CodeExpiryTooSoon: ilp.CodeInsufficientTimeout,
	forward.CodeExpiryTooFar:  ilp.CodeBadRequest,
	forward.CodeTooManyHops:   ilp.CodeUnreachable,
	forward.CodeLoop:          ilp.CodeUnreachable,
	forward.CodeBusy:          ilp.CodeConnectorBusy,
	forward.CodeLinkLost:      ilp.CodePeerUnreachable,
	forward.CodeTimeout:       ilp.CodeTransferTimedOut,
	forward.CodeUnsupported:   ilp.CodeUnreachable,
}

// fromHops turns the reject of a packet of amount into ILP's. by is who says so
// where an end does not: us, because a hop has no address.
func fromHops(r *forward.Result, amount tally.Amount, by ilp.Address) *ilp.Reject {
	switch r.Code {
	case forward.CodeApplication:
		if reply, err := ilp.DecodeReply(r.Data); err == nil {
			if j, ok := reply.(*ilp.Reject); ok {
				return j
			}
		}
		return &ilp.Reject{Code: ilp.CodeUnreachable, TriggeredBy: by, Message: "the other end answered no ILP packet"}
	case forward.CodeHeadroom, forward.CodeHeadroomFinal:
		// No lock can stand in for the credit that lacks: a channel has no SHA-256.
		if r.Code == forward.CodeHeadroomFinal && r.Headroom > 0 {
			return tooLarge(by, amount, r.Headroom)
		}
		return &ilp.Reject{
			Code: ilp.CodeInsufficientLiquidity, TriggeredBy: by,
			Message: fmt.Sprintf("room for %d on the way now", r.Headroom),
			Data:    ilp.TooLarge{Received: amount, Maximum: r.Headroom}.Append(nil),
		}
	case forward.CodeTooLarge:
		if r.Headroom > 0 {
			return tooLarge(by, amount, r.Headroom)
		}
	}
	code := codes[r.Code]
	if code == "" {
		code = ilp.CodeInternal
	}
	return &ilp.Reject{Code: code, TriggeredBy: by, Message: r.Code.String()}
}

// tooLarge tells how much would pass.
func tooLarge(by ilp.Address, amount, most tally.Amount) *ilp.Reject {
	return &ilp.Reject{
		Code: ilp.CodeAmountTooLarge, TriggeredBy: by, Message: fmt.Sprintf("at most %d pass", most),
		Data: ilp.TooLarge{Received: amount, Maximum: most}.Append(nil),
	}
}

// tooBig reports an amount that no Balance holds.
func tooBig(a tally.Amount) bool { return a > math.MaxInt64 }
