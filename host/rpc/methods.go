package rpc

import (
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/paych"
)

// Namespace comes before every method name, with a dot between.
const Namespace = "Tally"

// LotusNamespace is that of the methods which Lotus has too.
const LotusNamespace = "Filecoin"

// Method describes one method for the documentation and for the check of
// permissions. Parameters are positional.
type Method struct {
	Name   string
	Perm   Perm
	Params []string
	Doc    string
}

// Methods is the method list. A test compares it with the server and the
// client, and docs/rpc.md with what it generates.
var Methods = []Method{
	{"Status", PermRead, nil, "Health as a list of checks, each with the next action."},
	{"ID", PermRead, nil, "Who the peer is and where it listens."},
	{"Version", PermRead, nil, "The build and the protocols that it speaks."},
	{"Peers", PermRead, nil, "Peers that are connected or blocked or have an account."},
	{"PeerConnect", PermWrite, []string{"multiaddr"}, "Dials a peer; the address ends in /p2p/<peer id>."},
	{"PeerBlock", PermAdmin, []string{"peer"}, "Disconnects a peer and refuses it until PeerUnblock."},
	{"PeerUnblock", PermAdmin, []string{"peer"}, "Ends any block of a peer."},
	{"PeerResolve", PermAdmin, []string{"peer"}, "Takes the peer's figure where the two books differ by more than may be forgiven without a person."},
	{"Balances", PermRead, []string{"peer"}, "All tabs, or the one of a peer. The peer may be empty."},
	{"Cheques", PermRead, []string{"peer"}, "Cheques sent and received, oldest first. The peer may be empty."},
	{"Locks", PermRead, []string{"peer"}, "The locks of channels that are not over, with all peers or with one. The peer may be empty."},
	{"LockState", PermRead, nil, "Whether this peer makes locks, with what times, and what its channels can carry under them now; or why not."},
	{"Cashout", PermSign, []string{"peer", "least"}, "Submits the best voucher of a peer to the chain, of all peers where peer is empty; less than least uncashed units are left alone."},
	{"Settle", PermSign, []string{"peer"}, "Pays what we owe a peer now and waits for its ack."},
	{"Prepay", PermSign, []string{"peer", "units"}, "Pays what we owe a peer, and units ahead of service, which the peer may credit in part."},
	{"StoreImportBegin", PermWrite, nil, "Begins an import into our own store. An import reaches the store at its commit, whole or not at all; one that is idle for a minute ends."},
	{"StoreImportChunk", PermWrite, []string{"session", "number", "messages"}, "Adds messages to an import. Chunks are numbered from 0; an error ends the import."},
	{"StoreImportCommit", PermWrite, []string{"session", "total"}, "Stores all messages of an import; total is their number."},
	{"StoreImportAbort", PermWrite, []string{"session"}, "Ends an import without storing anything."},
	{"StoreQuery", PermWrite, []string{"peer", "query"}, "Asks a peer's store for one page, which is accounted. Pass the cursor of a page to get the next; an empty cursor is the end."},
	{"SocketOpen", PermSign, []string{"target", "options"}, "Opens a payment socket to a peer, or to the maker of a tally: URI. Answers once rate and limits of the other side are known. A peer without a URI takes pushes alone, up to its socket_push_max."},
	{"SocketList", PermRead, nil, "The sockets in memory, oldest id first; an idle one leaves it after a minute."},
	{"SocketStatus", PermRead, []string{"id"}, "One socket, also one that was idle or open before a restart."},
	{"SocketLimits", PermSign, []string{"id", "min", "max"}, "Sets both limits of our balance on a socket."},
	{"SocketPay", PermSign, []string{"id", "units"}, "Pushes units more."},
	{"SocketCharge", PermSign, []string{"id", "units"}, "Asks for units more."},
	{"SocketClose", PermSign, []string{"id"}, "Ends a socket at both ends, for good. What was paid stays paid."},
	{"SocketSend", PermSign, []string{"id", "stream", "data", "end"}, "Sends bytes of an application beside the money, at most 256 KiB in base64, on a stream of the socket: a new one for 0. Answers once the peer has them, which it takes from when it first calls SocketReceive; with end the stream is closed."},
	{"SocketReceive", PermSign, []string{"id", "stream"}, "Reads what there is of a stream; of the next one that the peer has opened for 0. Waits up to 10 s where that is nothing, and answers then without data, and with stream 0 where there was none."},
	{"URICreate", PermSign, []string{"kind", "options"}, "Makes a URI that pays its bearer (gift, pull), asks it to pay (invoice), or keeps its money (deposit)."},
	{"URIRedeem", PermSign, []string{"uri", "options"}, "Opens a socket for what a URI is for, and waits up to 20 s until no money is going to move; settled says whether that is so."},
	{"Invoice", PermSign, []string{"options"}, "Makes an invoice. It is on disk before its text is returned. Whoever has the text can pay it, and on its way take parts for themselves: give it to the payer alone."},
	{"Pay", PermSign, []string{"invoice", "options"}, "Pays an invoice in as many parts as it takes, all or none, and sends again what came back. The hash names the payment: asked again it joins what is under way, and nothing is paid twice. Answers when it is complete or failed, and payment_pending at its timeout or after a minute."},
	{"SendPartialPay", PermSign, []string{"invoice", "options"}, "Sends one part of a payment over a way of the caller's. Answers when it is on disk."},
	{"WaitPartialPay", PermRead, []string{"id", "timeout_ms"}, "Waits until a part is decided, at most a minute; then payment_pending."},
	{"WaitPayment", PermRead, []string{"payment_hash", "timeout_ms"}, "Waits until a payment is decided, and while it is tried, at most a minute; then payment_pending."},
	{"ListPayments", PermRead, nil, "One line a payment, oldest first."},
	{"ListPartialPayments", PermRead, []string{"id_or_hash"}, "Every attempt to send a part: all, the one of an id, or those of a payment."},
	{"ListInvoices", PermRead, []string{"payment_hash"}, "Is it paid, how much, when: all invoices, oldest first, or one. The hash may be empty."},
	{"ListPartialInvoices", PermRead, []string{"payment_hash"}, "Parts that arrived and are not claimed. The hash may be empty."},
	{"SettleInvoice", PermSign, []string{"payment_hash", "preimage"}, "Takes a held invoice, all of it. The preimage, 64 hex digits, where it was not known; else empty."},
	{"CancelInvoice", PermSign, []string{"payment_hash"}, "Gives an invoice up, with what waits for it."},
	{"SignatureKey", PermSign, nil, "The key whose BIP 340 signatures this peer sells. It is made where there is none, and is used for nothing else."},
	{"SignatureSell", PermSign, []string{"options"}, "Offers a signature over a message: its buyer gets it by paying, and for nothing less. The offer is on disk before it is answered; the same id gives the same text. The text holds a secret: give it to the buyer alone."},
	{"SignatureBuy", PermSign, []string{"offer", "options"}, "Pays for the signature that an offer names, under its point, over locks alone, and answers with the signature, verified. To buy an offer again joins what is under way, and what is bought is never paid twice. Where it is not decided within a minute: payment_pending; see SignatureWait."},
	{"SignatureWait", PermRead, []string{"id", "timeout_ms"}, "Waits until a signature is sold or bought, at most a minute."},
	{"SignatureList", PermRead, []string{"role"}, "Signatures that are sold and bought, oldest first of each; the role, seller or buyer, may be empty for all. Without the texts of offers."},
	{"SignatureShow", PermSign, []string{"id"}, "One signature, by the seller's id or by its point, with the text of the offer."},
	{"HoldPay", PermSign, []string{"options"}, "Pays a payee that may be offline: binds our money at a holder, a neighbour of both, until the payee comes or the time is over. Answers when the holder has agreed; the row says by when we have to be back. Not idempotent: what is called twice is paid twice."},
	{"HoldQuote", PermRead, []string{"options"}, "Asks the holder what HoldPay with the same options would cost. Nothing is bound."},
	{"HoldWait", PermRead, []string{"id", "timeout_ms"}, "Waits until a hold of ours is complete or failed, at most a minute; then hold_pending."},
	{"HoldList", PermRead, []string{"role"}, "Holds of ours as payer, as holder or as payee; the role may be empty for all."},
	{"HoldCancel", PermSign, []string{"id"}, "Asks the holder for our money back, or as holder gives a hold back. While it is offered to the payee, the offer decides first."},
	{"HoldPromise", PermSign, []string{"payer", "amount", "expiry_seconds"}, "Gives one payer a hash of ours for one hold, so that the preimage proves the payment; 0 seconds is 28 days."},
	{"HoldCollect", PermSign, []string{"peer"}, "Asks a holder now for what it holds for us, and takes it. It is done by itself when a holder connects."},
	{"HoldRoom", PermSign, []string{"options"}, "Keeps room of a holder's channel to us for vouchers that payers buy while we are away, and says so in a signed statement. Where the channel could end too soon, the holder is asked for a guard, and that is sent to the chain."},
	{"HoldBuy", PermSign, []string{"options"}, "Buys a voucher of the holder's own channel to a payee that may be offline, and mails it. Answers when the money has changed hands. What the chain does not show, or the payee did not say, is refused before anything is paid. Not idempotent: what is called twice is paid twice."},
	{"HoldTake", PermSign, []string{"mail"}, "Takes the text of a mail: a voucher to us, with what opens it. It is submitted in time by itself. The same mail again changes nothing."},
	{"HoldMails", PermRead, []string{"role"}, "Vouchers that we bought as payer, sold as holder, or were mailed as payee; the role may be empty for all."},
	{"BridgeClientAdd", PermAdmin, []string{"name", "limits"}, "Lets an Interledger client connect over BTP. Its token is shown here and never again: the peer keeps a hash. Limits may be null: then they are those of the settings."},
	{"BridgeClientList", PermRead, nil, "The clients of the bridge with their accounts."},
	{"BridgeClientRemove", PermAdmin, []string{"name"}, "Ends a client whose account is even."},
	{"BridgeClientSettle", PermAdmin, []string{"name", "paid_in", "paid_out"}, "Books what a client paid us outside of the bridge (paid_in), and what we paid it (paid_out). Not idempotent: what is called twice is booked twice."},
	{"BridgeClientLimits", PermAdmin, []string{"name", "limits"}, "Sets what a client's account may reach. What is beyond stays."},
	{"PointerAdd", PermSign, []string{"path", "kind", "units"}, "Answers for a payment pointer of ours at pointer_listen. Kinds: push takes up to units from each payer, invoice asks all payers together for units, voucher pays them to whoever reads it. The path is empty for $host, or as /shop."},
	{"PointerList", PermRead, nil, "The payment pointers with what they have moved."},
	{"PointerRemove", PermSign, []string{"path"}, "Ends a payment pointer; addresses that it gave live up to an hour more."},
	{"PointerFollow", PermSign, []string{"pointer", "options"}, "Resolves a payment pointer over HTTPS and does what it is for: sends a push, pays an invoice, takes a voucher."},
	{"ILPCreate", PermSign, []string{"kind", "options"}, "Makes an Interledger address of ours with its secret, for a kind of URI: STREAM for what is paid to us, PSK2 for what pays out."},
	{"EventsSince", PermRead, []string{"cursor", "timeout_ms"}, "Events after a cursor (0: all that are kept). Waits up to timeout_ms, at most a minute, when there is none."},
	{"ConfigShow", PermRead, nil, "The settings in force, without secrets."},
	{"Shutdown", PermAdmin, nil, "Stops the peer. The answer comes before it stops."},

	{"PaychCreate", PermSign, []string{"from", "to", "amount", "tag"}, "Creates a channel each time and deposits amount, above 0. With a tag, which may be empty, there is one channel for it: the same call again returns the same message. Answers when the message is saved and published."},
	{"PaychAddFunds", PermSign, []string{"channel", "amount"}, "Deposits amount. Calls that meet a pending top-up wait for it and are merged into the next message; one that ends while it waits is taken back."},
	{"PaychReserveFunds", PermSign, []string{"channel", "amount"}, "Sets free funds aside, and tops up what is missing. Not on an owned channel."},
	{"PaychReleaseFunds", PermSign, []string{"channel", "amount"}, "Gives reserved funds back, at most what is reserved. Not on an owned channel."},
	{"PaychStatus", PermRead, []string{"channel"}, "All that is known of a channel. One that we did not know is taken up where a side of it is ours."},
	{"PaychInfo", PermRead, nil, "All channels, in the order in which they were taken up; also those without an address, which are being created or failed to be."},
	{"PaychLookup", PermRead, []string{"from", "to"}, "The open outbound channel between two addresses with the most free funds."},
	{"PaychList", PermRead, nil, "The addresses of all channels."},
	{"PaychSettle", PermSign, []string{"channel"}, "Starts the closing. Called again it returns the same message. The payee submits its vouchers by itself before settling_at."},
	{"PaychCollect", PermSign, []string{"channel"}, "Pays out a channel that has settled; this happens by itself too."},
	{"PaychAllocateLane", PermSign, []string{"channel"}, "Takes a lane that nobody used."},
	{"PaychVoucherCheckValid", PermRead, []string{"channel", "voucher"}, "Checks all that can be known of a voucher before it is submitted, and shows it. A voucher is its text."},
	{"PaychVoucherCheckSpendable", PermRead, []string{"channel", "voucher", "secret"}, "Whether the chain would take the voucher now. The secret is 32 bytes in hex and may be empty."},
	{"PaychVoucherCreate", PermSign, []string{"channel", "amount", "lane"}, "Signs a voucher; amount is the lane's new total. Where the channel holds too little the voucher is null and shortfall says how much. On an inbound channel it is a refund, over less."},
	{"PaychVoucherCreateSpec", PermSign, []string{"channel", "spec"}, "PaychVoucherCreate with hash lock, time locks and min_settle_height."},
	{"PaychVoucherAdd", PermWrite, []string{"channel", "voucher", "secret", "min_delta"}, "Keeps a voucher that we were given, if it adds at least min_delta. One that we hold already adds 0. A locked one counts once its secret is known."},
	{"PaychVoucherSecret", PermWrite, []string{"channel", "secret"}, "Opens the locks that the secret fits."},
	{"PaychVoucherList", PermRead, []string{"channel"}, "The texts of the vouchers that can still bring something, and of the last ones."},
	{"PaychVoucherRecords", PermRead, []string{"channel"}, "PaychVoucherList with every field, the origin and the state of each."},
	{"PaychVoucherSubmit", PermSign, []string{"channel", "voucher", "secret"}, "Puts a voucher of the other side on the chain. One that the chain would refuse is not sent."},
	{"PaychWaitReady", PermRead, []string{"cid", "timeout_ms"}, "Waits for the receipt of a message, at most timeout_ms, at most a minute; call it again while done is false. A message that failed is an error."},
	{"PaychStatusByMsg", PermRead, []string{"cid"}, "A message that a call returned, and the state of its channel."},
	{"PaychPending", PermRead, nil, "All messages without a receipt, each with its deadline."},
	{"WalletNew", PermWrite, nil, "Makes a secp256k1 key."},
	{"WalletList", PermRead, nil, "The keys of the wallet with their balances."},
	{"WalletBalance", PermRead, []string{"address"}, "The balance of any account."},
}

func methodByName(list []Method, name string) (Method, bool) {
	for _, m := range list {
		if m.Name == name {
			return m, true
		}
	}
	return Method{}, false
}

// Reference returns docs/rpc.md: every method, row, code and status, from the
// types that the server uses.
func Reference() string {
	var b strings.Builder
	b.WriteString("# RPC\n\n" +
		"<!-- Generated by host/rpc (go test ./host/rpc -update). Do not edit. -->\n\n" +
		"JSON-RPC 2.0 over HTTP POST to `" + Path + "`, on the unix socket or the loopback address that `<repo>/api` names, " +
		"with `Content-Type: application/json` and `Authorization: Bearer <token>`, the token from `<repo>/token`. " +
		"Parameters are positional. Batches and websockets are not served; events come by long poll.\n\n" +
		"```\ncurl --unix-socket ~/.tally/rpc.sock -H \"Authorization: Bearer $(cat ~/.tally/token)\" \\\n" +
		"  -H 'Content-Type: application/json' \\\n" +
		"  -d '{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"Tally.Balances\",\"params\":[\"\"]}' http://localhost" + Path + "\n```\n\n" +
		"## Methods\n\n")
	rows := &typeList{}
	methodTable(&b, rows, Namespace, Methods, reflect.TypeFor[*api]())
	b.WriteString("\n## Methods of Lotus\n\n" +
		"The payment channels also answer to the names, parameters and permissions of the Lotus API, so that its clients can drive them. " +
		"Amounts are attoFIL in decimal digits, bytes base64, a cid is `{\"/\": text}`, or null for none.\n\n")
	methodTable(&b, rows, LotusNamespace, LotusMethods, reflect.TypeFor[*lotusAPI]())
	b.WriteString("\n## Types\n\nAmounts of tabs are integers in units, amounts of channels attoFIL in decimal digits, times RFC 3339. A balance above zero means that the peer owes us.\n")
	rows.name(reflect.TypeFor[Details]())
	for i := 0; i < len(rows.types); i++ { // name appends while we go
		t := rows.types[i]
		fmt.Fprintf(&b, "\n### %s\n\n| key | type |\n|---|---|\n", t.Name())
		for _, f := range fields(t) {
			key, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
			typ := rows.name(f.Type)
			if opts == "omitempty" {
				typ += ", may be absent"
			}
			fmt.Fprintf(&b, "| `%s` | %s |\n", key, typ)
		}
	}
	b.WriteString("\n## Error codes\n\nAn error is `{\"code\", \"message\", \"meta\": {\"name\", \"remedy\", \"details\"}}`; details are of the type below and may be absent. Codes never change their meaning.\n\n" +
		"| code | name | cause | remedy |\n|---|---|---|---|\n")
	for _, c := range Codes {
		fmt.Fprintf(&b, "| %d | %s | %s | %s |\n", c.Code, c.Name, c.Cause, c.Remedy)
	}
	b.WriteString("| -32700 to -32600 | | the request is not JSON-RPC 2.0, the method is unknown, or the parameters do not fit | as in the specification of JSON-RPC |\n")
	b.WriteString("\n## HTTP status\n\n| status | cause |\n|---|---|\n")
	for _, s := range statuses {
		fmt.Fprintf(&b, "| %d | %s |\n", s.status, s.cause)
	}
	return b.String()
}

// methodTable writes one namespace.
func methodTable(b *strings.Builder, rows *typeList, namespace string, list []Method, api reflect.Type) {
	b.WriteString("| method | permission | parameters | result |\n|---|---|---|---|\n")
	for _, m := range list {
		fn, ok := api.MethodByName(m.Name)
		if !ok {
			panic("rpc: " + m.Name + " is listed but not served")
		}
		var params []string
		for i, name := range m.Params {
			params = append(params, name+" "+rows.name(fn.Type.In(2+i)))
		}
		result := "null" // an error alone
		if fn.Type.NumOut() > 1 {
			out := fn.Type.Out(0)
			if out.Kind() == reflect.Pointer {
				out = out.Elem() // null only beside an error
			}
			result = rows.name(out)
		}
		fmt.Fprintf(b, "| `%s.%s` | %s | %s | %s |\n", namespace, m.Name, m.Perm, strings.Join(params, ", "), result)
	}
	b.WriteString("\n")
	for _, m := range list {
		fmt.Fprintf(b, "- **%s**: %s\n", m.Name, m.Doc)
	}
}

// fields are the exported JSON fields of t, those of embedded rows included.
func fields(t reflect.Type) (list []reflect.StructField) {
	for _, f := range reflect.VisibleFields(t) {
		if f.Tag.Get("json") != "" {
			list = append(list, f)
		}
	}
	return list
}

// typeList collects the structs that a reader has to know, in order of use.
type typeList struct{ types []reflect.Type }

func (l *typeList) name(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return "time"
	case t == reflect.TypeFor[[]byte]():
		return "base64"
	case t == reflect.TypeFor[Limit]():
		return "integer, inf or -inf"
	case t == reflect.TypeFor[address.Address]():
		return "address"
	case t == reflect.TypeFor[cid.Cid]():
		return "cid"
	case t == reflect.TypeFor[big.Int]():
		return "attoFIL"
	case t == reflect.TypeFor[paych.SignedVoucher]():
		return "[voucher](protocol/voucher.md)"
	case t == reflect.TypeFor[paych.ModVerifyParams]():
		return "object"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return l.name(t.Elem()) + " or null"
	case reflect.Slice:
		return "array of " + l.name(t.Elem())
	case reflect.Map:
		return "object"
	case reflect.Struct:
		known := false
		for _, k := range l.types {
			known = known || k == t
		}
		if !known {
			l.types = append(l.types, t)
		}
		return "[" + t.Name() + "](#" + strings.ToLower(t.Name()) + ")"
	case reflect.Bool:
		return "bool"
	case reflect.Float64:
		return "number"
	case reflect.String:
		return "text"
	case reflect.Int, reflect.Int64:
		return "integer"
	case reflect.Uint64:
		return "integer ≥ 0"
	default:
		panic("rpc: no word for " + t.String())
	}
}
