package rpc

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/filecoin-project/go-jsonrpc"
)

// Code is the stable number of a cause. Numbers never change their meaning: add
// at the end of a group. 200 to 299 are of payments, as other systems number
// them already; 300 to 359 are of payment channels.
type Code int

// The causes a caller can act on.
const (
	CodeFailed           Code = 1
	CodeBadArgument      Code = 10
	CodeBadPeer          Code = 11
	CodeBadAddress       Code = 12
	CodePermission       Code = 20
	CodeBusy             Code = 21
	CodeTimeout          Code = 22
	CodeStopping         Code = 23
	CodeUnsupported      Code = 24
	CodeUnknownPeer      Code = 30
	CodeNotConnected     Code = 31
	CodeConnectFailed    Code = 32
	CodeBlocked          Code = 33
	CodeHandshake        Code = 34
	CodeNothingOwed      Code = 40
	CodeSettlementBlock  Code = 41
	CodeChequeRefused    Code = 42
	CodeOverThreshold    Code = 43
	CodeTooLarge         Code = 44
	CodeRefusedByPeer    Code = 50
	CodeBadMessage       Code = 51
	CodeImportTooLarge   Code = 52
	CodeImportSession    Code = 53
	CodeStore            Code = 54
	CodeRemoteProtocol   Code = 55
	CodeNothingToResolve Code = 56
	CodeNothingToCash    Code = 57
	CodeNoSockets        Code = 60
	CodeNoSocket         Code = 61
	CodeSocketLimits     Code = 62
	CodeBadURI           Code = 63
	CodeIncompatible     Code = 64
	CodeSocketRefused    Code = 65
	CodeNoWay            Code = 66
	CodeSocketStalled    Code = 67
	CodeSpent            Code = 68
	CodeSocketClosed     Code = 69
	CodeNoBridge         Code = 70
	CodeNoClient         Code = 71
	CodeClientExists     Code = 72
	CodeNotEven          Code = 73
	CodeNoReader         Code = 74
	CodeNoPointer        Code = 75
	CodePointerExists    Code = 76
	CodeUnresolved       Code = 77
	CodeMovedShort       Code = 78
)

// CodeInfo documents a code.
type CodeInfo struct {
	Code   Code
	Name   string
	Cause  string
	Remedy string
}

// Codes lists every code, in order. The text is what the documentation prints;
// an error itself may say more.
var Codes = slices.Concat(peerCodes, paymentCodes, channelCodes, holdCodes, mailCodes)

var peerCodes = []CodeInfo{
	{CodeFailed, "failed", "a cause without a code of its own", "read the message; the log of the peer has more"},
	{CodeBadArgument, "bad_argument", "an argument is missing, of the wrong form or out of bounds", "correct the argument that the message names"},
	{CodeBadPeer, "bad_peer", "not a peer id", "use the text that `tally id` prints, such as 12D3KooW…"},
	{CodeBadAddress, "bad_address", "not a multiaddr that ends in /p2p/<peer id>", "use an address that `tally id` of the other peer prints"},
	{CodePermission, "permission", "the token does not allow this method", "use a token with the permission that the message names"},
	{CodeBusy, "busy", "too many calls at a time", "try again later"},
	{CodeTimeout, "timeout", "the call did not finish in time", "try again; look at `tally status`"},
	{CodeStopping, "stopping", "the peer is shutting down", "start it again: tally start"},
	{CodeUnsupported, "unsupported", "this version cannot do it", "see the message"},
	{CodeUnknownPeer, "unknown_peer", "there is no account with this peer", "list the accounts: tally balances"},
	{CodeNotConnected, "not_connected", "the peer is not connected", "connect first: tally peers connect ADDRESS"},
	{CodeConnectFailed, "connect_failed", "the peer could not be dialled", "check the address and that the peer runs"},
	{CodeBlocked, "blocked", "the peer is blocked", "wait for the end of the block, or: tally peers unblock PEER"},
	{CodeHandshake, "handshake", "the peer speaks no swap protocol of ours, or refused the handshake", "check network, mode and thresholds on both sides"},
	{CodeNothingOwed, "nothing_owed", "we owe this peer nothing", "nothing has to be done"},
	{CodeSettlementBlock, "settlement_blocked", "the debt cannot be settled now", "see settlement_blocked_by in `tally balances PEER`"},
	{CodeChequeRefused, "cheque_refused", "the peer refused the cheque", "see the reason; `tally cheques PEER` shows the state"},
	{CodeOverThreshold, "over_threshold", "the debt would pass what the peer or we allow", "settle first: tally settle PEER"},
	{CodeTooLarge, "too_large", "one request is larger than the whole threshold", "ask for less at a time"},
	{CodeRefusedByPeer, "refused_by_peer", "the peer refused to serve", "the message has the reason that the peer gave"},
	{CodeBadMessage, "bad_message", "a message to import is malformed; nothing was imported", "correct the line that the error names"},
	{CodeImportTooLarge, "import_too_large", "the import is larger than one session may hold; nothing was imported", "split the file"},
	{CodeImportSession, "import_session", "the import session is unknown, expired or out of order; nothing was imported", "start the import again"},
	{CodeStore, "store", "our own store failed", "run `tally doctor`"},
	{CodeRemoteProtocol, "remote_protocol", "the peer broke the protocol", "ask its operator; `tally peers block PEER` keeps it away"},
	{CodeNothingToResolve, "nothing_to_resolve", "the two books do not need a person to resolve them", "nothing has to be done"},
	{CodeNothingToCash, "nothing_to_cash", "no cheque of the peer is left that is not on the chain", "nothing has to be done"},
	{CodeNoSockets, "no_sockets", "this peer has no payment sockets", "see the message"},
	{CodeNoSocket, "no_socket", "no socket of this id is known", "list them: tally socket ls"},
	{CodeSocketLimits, "socket_limits", "the minimum is above the maximum, or a limit is out of bounds", "use a minimum at or below the maximum, both within 2^60; without refunds what was paid stays paid"},
	{CodeBadURI, "bad_uri", "not a tally: URI, or not a whole one", "copy the whole text, with what is behind #; quote it in a shell"},
	{CodeIncompatible, "incompatible", "the limits of the two sides cannot meet; nothing moved", "ask for less, or agree on other limits"},
	{CodeSocketRefused, "socket_refused", "the other side takes no socket without a URI", "ask its operator for one: tally uri create"},
	{CodeNoWay, "no_way", "no packet comes through to the other side", "connect to it: tally peers connect ADDRESS; or name the peers on the way with --via"},
	{CodeSocketStalled, "socket_stalled", "nothing has moved for some time, or nearly all packets were rejected", "look at the tabs on the way: tally balances; setting limits tries again"},
	{CodeSpent, "spent", "the URI is used up, in use or expired", "ask for a new one"},
	{CodeSocketClosed, "socket_closed", "the socket is closed", "open a new one: tally socket open"},
	{CodeNoBridge, "no_bridge", "this peer has no Interledger bridge", "see the message"},
	{CodeNoClient, "no_client", "the bridge has no client of this name", "list them: tally bridge client ls"},
	{CodeClientExists, "client_exists", "the bridge has a client of this name", "choose another name, or remove it first: tally bridge client remove NAME"},
	{CodeNotEven, "not_even", "the client's account is not even, or packets are on the way", "settle it: tally bridge client settle NAME --help"},
	{CodeNoReader, "no_reader", "nobody at the other side reads the data", "have it read: tally socket recv-data, or an application that accepts streams"},
	{CodeNoPointer, "no_pointer", "there is no payment pointer of this path", "list them: tally bridge pointer ls"},
	{CodePointerExists, "pointer_exists", "there is a payment pointer of this path", "choose another path, or remove it first: tally bridge pointer remove PATH"},
	{CodeUnresolved, "unresolved", "the payment pointer does not resolve, or asks for nothing any more", "check the pointer; its host has to answer over HTTPS"},
	{CodeMovedShort, "moved_short", "not all of the money moved", "the message says how much did; try again for the rest"},
}

// Name returns the word of the code.
func (c Code) Name() string {
	for _, info := range Codes {
		if info.Code == c {
			return info.Name
		}
	}
	return "failed"
}

// Remedy returns what an operator does about the code.
func (c Code) Remedy() string {
	for _, info := range Codes {
		if info.Code == c {
			return info.Remedy
		}
	}
	return ""
}

// Error is a failure with a stable code. It crosses the wire whole: the client
// gets back what the Node returned, without the wrapped error.
type Error struct {
	Code    Code
	Message string
	// Remedy is what to do about it; empty means that of the code.
	Remedy string
	// Details are the figures of the error, nil where it has none.
	Details *Details

	wrapped error
}

// NewError returns an error with a code and the remedy of that code. A %w in
// format is kept for errors.Is on this side of the wire.
func NewError(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), Remedy: code.Remedy(), wrapped: errors.Unwrap(err)}
}

// WithRemedy returns e with a remedy of its own.
func (e *Error) WithRemedy(format string, args ...any) *Error {
	c := *e
	c.Remedy = fmt.Sprintf(format, args...)
	return &c
}

func (e *Error) Error() string { return e.Message }

// Unwrap returns the error that NewError wrapped.
func (e *Error) Unwrap() error { return e.wrapped }

// errorMeta travels beside code and message.
type errorMeta struct {
	Name   string `json:"name"`
	Remedy string `json:"remedy"`
	// Details are the figures of the error.
	Details *Details `json:"details,omitempty"`
}

// ToJSONRPCError implements jsonrpc.RPCErrorCodec.
func (e *Error) ToJSONRPCError() (jsonrpc.JSONRPCError, error) {
	meta, err := json.Marshal(errorMeta{Name: e.Code.Name(), Remedy: e.Remedy, Details: e.Details})
	if err != nil {
		return jsonrpc.JSONRPCError{}, err
	}
	return jsonrpc.JSONRPCError{Code: jsonrpc.ErrorCode(e.Code), Message: e.Message, Meta: meta}, nil
}

// FromJSONRPCError implements jsonrpc.RPCErrorCodec.
func (e *Error) FromJSONRPCError(j jsonrpc.JSONRPCError) error {
	*e = Error{Code: Code(j.Code), Message: j.Message}
	var meta errorMeta
	if len(j.Meta) > 0 {
		if err := json.Unmarshal(j.Meta, &meta); err != nil {
			return err
		}
	}
	e.Remedy, e.Details = meta.Remedy, meta.Details
	return nil
}

// wireErrors tells go-jsonrpc that every code is an *Error.
func wireErrors() jsonrpc.Errors {
	errs := jsonrpc.NewErrors()
	for _, info := range Codes {
		errs.Register(jsonrpc.ErrorCode(info.Code), new(*Error))
	}
	return errs
}
