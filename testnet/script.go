package testnet

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/swap"
)

// A scenario is a text file, one statement a line. Words are parted by blanks,
// "…" holds words together, # begins a comment. Statements:
//
//	title TEXT                       once, first
//	peers NAME… [key=value…]         start peers; keys of policies, and store
//	import PEER COUNT|FILE           messages into the peer's own store
//	connect A B                      dial, and shake hands
//	disconnect A B
//	query A B [limit=N] [page=N]     A asks B for messages, from the oldest on
//	settle A B                       A pays what it owes B, and waits for the ack
//	stop P · start P                 clean stop; next life
//	kill P [torn=SEED]               power loss; the seed keeps part of what was
//	                                 not synced
//	erase P                          lose the disk of a peer that is down
//	policy P key=value…              from the next life on
//	clock P back|ahead DURATION      set the wall clock of a peer that is down
//	wait DURATION
//	drop|twice|cut P KIND COUNT      the next frames of that kind that P sends
//	hostile NAME TARGET alpha1|native THRESHOLD
//	                                 a peer that announces this: a number, or
//	                                 0x… bytes, or nothing
//	flood TARGET streams|handshakes|garbage|identities|sockets COUNT
//	try STATEMENT                    its failure does not end the scenario
//	check "NAME" [within D] CLAIM    count and go on, whatever comes out
//	repeat N … end                   the lines between, N times
//	crash P saves|sends … end        the lines between, each time on a new
//	                                 network, with a crash of P at every write
//	                                 or frame after `arm P`, before and after
//	                                 it, until none strikes
//	partition A B, heal A B          the wire between them delivers nothing, or again
//	cashout A B                      A puts B's voucher on the chain
//	close A B                        A settles its channel to B
//	pay A B UNITS [timeout=S]        A pays an invoice of B in parts, and waits
//	begin A B UNITS [timeout=S] [hold=yes] [signature=yes]
//	                                 the same, and goes on when a part has left; hold
//	                                 leaves it to B to claim or refuse it; with signature
//	                                 A buys one of B for it
//	claim B, refuse B                what waits at B for its decision
//	invoice A B UNITS                the one that the next part of this total is for
//	jam A B UNITS N via=P            N parts that B never claims
//	near A B N                       blocks until the last lock of A at B ends in N
//	part A B UNITS via=P total=N number=N
//	                                 one part of such a payment; one total is one
//	                                 invoice until it is paid
//	chain kill|stop|start            the node of the chain
//	mine N                           N blocks at once
//	reorg N kept|lost                the chain takes N blocks back, and their messages
//	                                 wait again, or are lost
//	uri NAME P KIND N [key=value…]   P makes a URI, as tally uri create does
//	open S A URI [via=H+H] [key=…]   A opens the socket S with it; without min and max
//	                                 with what is usual for the URI
//	hold P H E N DURATION            P binds N units at the holder H for the payee E
//	room E H P N DURATION            E keeps room of the holder H's channel for P's mails
//	buy P H E N DURATION             P buys H's voucher for E, once the chain shows the guard
//	take E P                         E takes the last that P bought for it, by hand
//	limits S client|server MIN MAX   one end sets its limits
//	shut S                           its client closes it
//	each A,B V,W V,W … end           the lines between, once for each V,W, with V in
//	                                 place of $A and W in place of $B
//	arm P                            in crash: count from here
//	recover P                        in crash: kill and start P where it struck
//
// Claims:
//
//	books-agree A B                  two books are each other's negatives
//	conserved P…                     what all of them have on all their tabs sums to zero
//	fails STATEMENT                  STATEMENT must not work
//	FIGURE A [B] ==|!=|<=|>=|<|> N   see Figures
//	FIGURE S client|server == N      of one end of a socket
//
// A line `mode mock` after the title has the peers run as processes of their own,
// `mode hard` also on a chain, whose keys epoch=DURATION, settle-delay=EPOCHS and
// finality=EPOCHS say what it is like.
type script struct {
	file  string
	mode  string // empty: in this process; mock: on processes; hard: and a chain
	chain chainKeys
	title string
	body  []statement
	peers []string
}

// chainKeys are what a scenario says of its chain; 0 leaves it to whoever runs it.
type chainKeys struct {
	epoch                 time.Duration
	settleDelay, finality int64
}

// set reads one key of the line `mode hard`.
func (k *chainKeys) set(word string) bool {
	key, value, _ := strings.Cut(word, "=")
	n, err := strconv.ParseInt(value, 10, 32)
	switch key {
	case "epoch":
		k.epoch, err = time.ParseDuration(value)
		return err == nil && k.epoch > 0 && k.epoch <= time.Minute
	case "settle-delay":
		k.settleDelay = n
	case "finality":
		k.finality = n
	default:
		return false
	}
	return err == nil && n > 0
}

func (k *chainKeys) apply(c *ClusterConfig) {
	if k.epoch != 0 {
		c.BlockTime = k.epoch
	}
	if k.settleDelay != 0 {
		c.SettleDelay = k.settleDelay
	}
	if k.finality != 0 {
		c.Finality = k.finality
	}
}

// statement is one line, or a block of them.
type statement struct {
	line  int
	text  string
	verb  string
	args  []string
	keys  map[string]string
	name  string        // of a check
	limit time.Duration // within
	inner *statement    // of try and of a check that something fails
	body  []statement   // of a block
}

// ScriptError is a scenario that cannot run.
type ScriptError struct {
	File   string
	Line   int
	Cause  string
	Remedy string
}

func (e *ScriptError) Error() string {
	return fmt.Sprintf("%s:%d: %s; %s", e.File, e.Line, e.Cause, e.Remedy)
}

// verb says what a statement takes. Words of args are: peer (a declared one),
// new (a name), dur, num, or text; a choice is written a|b.
type verb struct {
	args  []string
	keys  []string
	rest  string // of further args
	block bool
	doc   string
}

var policyKeys = []string{
	"mode", "payment", "disconnect", "early", "min-peer", "max-peer", "max-debt", "max-exposure", "max-exposure-total", "strangers",
	"deposit", "top-up", "cashout", "fee-base", "fee-ppm",
}

var verbs = map[string]verb{
	"peers":      {args: []string{"new"}, rest: "new", keys: append([]string{"store"}, policyKeys...), doc: "peers NAME… [key=value…]"},
	"import":     {args: []string{"peer", "text"}, doc: "import PEER COUNT|FILE"},
	"connect":    {args: []string{"peer", "peer"}, doc: "connect A B"},
	"disconnect": {args: []string{"peer", "peer"}, doc: "disconnect A B"},
	"query":      {args: []string{"peer", "peer"}, keys: []string{"limit", "page"}, doc: "query A B [limit=N] [page=N]"},
	"settle":     {args: []string{"peer", "peer"}, doc: "settle A B"},
	"stop":       {args: []string{"peer"}, doc: "stop PEER"},
	"start":      {args: []string{"peer"}, doc: "start PEER"},
	"kill":       {args: []string{"peer"}, keys: []string{"torn"}, doc: "kill PEER [torn=SEED]"},
	"erase":      {args: []string{"peer"}, doc: "erase PEER"},
	"policy":     {args: []string{"peer"}, keys: policyKeys, doc: "policy PEER key=value…"},
	"clock":      {args: []string{"peer", "back|ahead", "dur"}, doc: "clock PEER back|ahead DURATION"},
	"wait":       {args: []string{"dur"}, doc: "wait DURATION"},
	"drop":       {args: []string{"peer", kindWords, "num"}, doc: "drop PEER KIND COUNT"},
	"twice":      {args: []string{"peer", kindWords, "num"}, doc: "twice PEER KIND COUNT"},
	"cut":        {args: []string{"peer", kindWords, "num"}, doc: "cut PEER KIND COUNT"},
	"hostile":    {args: []string{"new", "peer", "alpha1|native", "threshold"}, doc: "hostile NAME TARGET alpha1|native THRESHOLD"},
	"flood":      {args: []string{"peer", floodWords, "num"}, doc: "flood TARGET " + floodWords + " COUNT"},
	"repeat":     {args: []string{"num"}, block: true, doc: "repeat N … end"},
	"crash":      {args: []string{"peer", "saves|sends"}, block: true, doc: "crash PEER saves|sends … end"},
	"partition":  {args: []string{"peer", "peer"}, doc: "partition A B"},
	"heal":       {args: []string{"peer", "peer"}, doc: "heal A B"},
	"cashout":    {args: []string{"peer", "peer"}, doc: "cashout A B"},
	"close":      {args: []string{"peer", "peer"}, doc: "close A B"},
	"pay":        {args: []string{"peer", "peer", "num"}, keys: []string{"timeout"}, doc: "pay A B UNITS [timeout=SECONDS]"},
	"begin":      {args: []string{"peer", "peer", "num"}, keys: []string{"timeout", "hold", "signature"}, doc: "begin A B UNITS [timeout=SECONDS] [hold=yes] [signature=yes]"},
	"claim":      {args: []string{"peer"}, doc: "claim PAYEE"},
	"refuse":     {args: []string{"peer"}, doc: "refuse PAYEE"},
	"invoice":    {args: []string{"peer", "peer", "num"}, doc: "invoice A B UNITS"},
	"jam":        {args: []string{"peer", "peer", "num", "num"}, keys: []string{"via"}, doc: "jam A B UNITS COUNT via=P"},
	"near":       {args: []string{"peer", "peer", "num"}, doc: "near A B EPOCHS"},
	"part":       {args: []string{"peer", "peer", "num"}, keys: []string{"via", "total", "number"}, doc: "part A B UNITS via=P total=N number=N"},
	"chain":      {args: []string{"kill|stop|start"}, doc: "chain kill|stop|start"},
	"mine":       {args: []string{"num"}, doc: "mine N"},
	"reorg":      {args: []string{"num", "kept|lost"}, doc: "reorg N kept|lost"},
	"uri":        {args: []string{"label", "peer", "gift|invoice|pull|deposit|push", "num"}, keys: []string{"min", "max", "period"}, doc: "uri NAME PEER KIND AMOUNT [min=N] [max=N] [period=SECONDS]"},
	"open":       {args: []string{"label", "peer", "label"}, keys: []string{"via", "min", "max", "refunds", "whole"}, doc: "open SOCKET PEER URI [via=A+B] [min=N max=N] [refunds=yes] [whole=yes]"},
	"hold":       {args: []string{"peer", "peer", "peer", "num", "dur"}, doc: "hold PAYER HOLDER PAYEE AMOUNT DURATION"},
	"room":       {args: []string{"peer", "peer", "peer", "num", "dur"}, doc: "room PAYEE HOLDER PAYER AMOUNT DURATION"},
	"buy":        {args: []string{"peer", "peer", "peer", "num", "dur"}, doc: "buy PAYER HOLDER PAYEE AMOUNT DURATION"},
	"take":       {args: []string{"peer", "peer"}, doc: "take PAYEE PAYER"},
	"limits":     {args: []string{"label", "client|server", "limit", "limit"}, doc: "limits SOCKET client|server MIN MAX"},
	"shut":       {args: []string{"label"}, doc: "shut SOCKET"},
	"arm":        {args: []string{"peer"}, doc: "arm PEER"},
	"recover":    {args: []string{"peer"}, doc: "recover PEER"},
}

const floodWords = "streams|handshakes|garbage|identities|sockets"

const kindWords = "handshake|cheque|ack|statement|refusal"

// parser reads one script.
type parser struct {
	file   string
	lines  []string
	at     int // lines read
	known  map[string]bool
	checks map[string]int // name to line
	crash  string         // the peer of the block we are in
}

// parseScript reads a scenario. Errors are *ScriptError.
func parseScript(file, text string) (*script, error) {
	p := &parser{file: file, lines: strings.Split(text, "\n"), known: make(map[string]bool), checks: make(map[string]int)}
	s := &script{file: file}
	body, err := p.block(s, 0)
	if err != nil {
		return nil, err
	}
	s.body = body
	if s.title == "" {
		return nil, p.fail(1, "there is no title", "begin with a line: title TEXT")
	}
	if len(p.checks) == 0 {
		return nil, p.fail(len(p.lines), "there is no check, so nothing could fail", `add a line: check "NAME" CLAIM`)
	}
	return s, nil
}

func (p *parser) fail(line int, cause, remedy string, args ...any) *ScriptError {
	return &ScriptError{File: p.file, Line: line, Cause: cause, Remedy: fmt.Sprintf(remedy, args...)}
}

// block reads statements until the end of the file or, where opened is the line
// of a block, its end.
func (p *parser) block(s *script, opened int) ([]statement, error) {
	var body []statement
	for p.at < len(p.lines) {
		p.at++
		line := p.at
		words, err := splitWords(p.lines[line-1])
		if err != nil {
			return nil, p.fail(line, err.Error(), "close the quote")
		}
		if len(words) == 0 {
			continue
		}
		switch words[0] {
		case "end":
			if opened == 0 || len(words) != 1 {
				return nil, p.fail(line, "end without a block", "remove it")
			}
			if len(body) == 0 {
				return nil, p.fail(line, "the block is empty", "put statements between its first line and end")
			}
			return body, nil
		case "mode":
			if s.mode != "" || len(body) > 0 || opened != 0 || len(words) < 2 || words[1] != "hard" && (words[1] != "mock" || len(words) > 2) {
				return nil, p.fail(line, "mode is given once, before all statements, and is mock or hard", "write: mode hard")
			}
			s.mode = words[1]
			for _, word := range words[2:] {
				if !s.chain.set(word) {
					return nil, p.fail(line, fmt.Sprintf("%q says nothing of a chain", word), "write: mode hard [epoch=DURATION] [settle-delay=EPOCHS] [finality=EPOCHS]")
				}
			}
			continue
		case "each":
			each, err := p.each(line, words[1:], opened)
			if err != nil {
				return nil, err
			}
			body = append(body, each...)
			continue
		case "title":
			if s.title != "" || len(body) > 0 || opened != 0 || len(words) < 2 {
				return nil, p.fail(line, "title is given once, on the first line, and not empty", "write: title TEXT")
			}
			s.title = strings.Join(words[1:], " ")
			continue
		}
		st, err := p.statement(line, words)
		if err != nil {
			return nil, err
		}
		if st.verb == "peers" {
			s.peers = append(s.peers, st.args...)
		}
		if v := verbs[st.verb]; v.block {
			if opened != 0 {
				return nil, p.fail(line, "a block in a block", "end the first one before")
			}
			known := p.known
			if st.verb == "crash" { // a network of its own
				p.known, p.crash = map[string]bool{st.args[0]: false}, st.args[0]
			}
			if st.body, err = p.block(s, line); err != nil {
				return nil, err
			}
			if st.verb == "crash" {
				p.known, p.crash = known, ""
			}
		}
		body = append(body, st)
	}
	if opened != 0 {
		return nil, p.fail(opened, "the block has no end", "add a line: end")
	}
	return body, nil
}

// statement reads one line that is not title or end.
func (p *parser) statement(line int, words []string) (statement, error) {
	st := statement{line: line, text: strings.TrimSpace(p.lines[line-1]), verb: words[0], keys: make(map[string]string)}
	rest := words[1:]
	switch st.verb {
	case "try":
		if len(rest) == 0 || rest[0] == "check" || rest[0] == "try" || verbs[rest[0]].block {
			return st, p.fail(line, "try needs one plain statement", "write: try query A B")
		}
		inner, err := p.statement(line, rest)
		st.inner = &inner
		return st, err
	case "check":
		return p.check(st, rest)
	}
	v, ok := verbs[st.verb]
	if !ok {
		return st, p.fail(line, fmt.Sprintf("unknown statement %q", st.verb), "use one of: %s", strings.Join(verbNames(), ", "))
	}
	for _, word := range rest {
		if key, value, ok := strings.Cut(word, "="); ok && isName(key) && !strings.HasPrefix(word, "0x") {
			if !slices.Contains(v.keys, key) {
				return st, p.fail(line, fmt.Sprintf("%s has no key %q", st.verb, key), "write: %s", v.doc)
			}
			if _, twice := st.keys[key]; twice {
				return st, p.fail(line, fmt.Sprintf("key %q is given twice", key), "remove one")
			}
			st.keys[key] = value
			continue
		}
		st.args = append(st.args, word)
	}
	if len(st.args) < len(v.args) || v.rest == "" && len(st.args) > len(v.args) {
		return st, p.fail(line, fmt.Sprintf("%s has %d arguments", st.verb, len(st.args)), "write: %s", v.doc)
	}
	for i, arg := range st.args {
		kind := v.rest
		if i < len(v.args) {
			kind = v.args[i]
		}
		if err := p.arg(line, kind, arg); err != nil {
			return st, err
		}
	}
	if err := p.keys(line, st.keys); err != nil {
		return st, err
	}
	if (st.verb == "arm" || st.verb == "recover") && p.crash != st.args[0] {
		return st, p.fail(line, st.verb+" is for the peer of a crash block", "put it between crash and end")
	}
	if st.verb == "crash" && p.crash != "" {
		return st, p.fail(line, "crash in a crash block", "end the first one before")
	}
	return st, nil
}

func (p *parser) arg(line int, kind, arg string) error {
	switch kind {
	case "peer":
		// The peer of a crash block is declared inside it.
		if _, ok := p.known[arg]; !ok && !(isName(arg) && p.lineIsCrash(line)) {
			return p.fail(line, fmt.Sprintf("no peer %q up to here", arg), "start it before with: peers %s", arg)
		}
	case "new":
		if !isName(arg) {
			return p.fail(line, fmt.Sprintf("%q is no name", arg), "use letters, digits and -")
		}
		if p.known[arg] {
			return p.fail(line, fmt.Sprintf("there is a peer %q already", arg), "choose another name")
		}
		p.known[arg] = true
	case "dur":
		if d, err := time.ParseDuration(arg); err != nil || d < 0 || d > 24*time.Hour {
			return p.fail(line, fmt.Sprintf("%q is no duration up to a day", arg), "write it as 300ms, 5s or 1h")
		}
	case "num":
		if n, err := strconv.Atoi(arg); err != nil || n < 1 || n > maxCount {
			return p.fail(line, fmt.Sprintf("%q is no number from 1 to %d", arg, maxCount), "write a number")
		}
	case "threshold":
		if _, err := parseThreshold(arg); err != nil {
			return p.fail(line, err.Error(), "write a number, 0x and up to 64 bytes in hex, or empty")
		}
	case "label":
		if !isName(arg) {
			return p.fail(line, fmt.Sprintf("%q is no name", arg), "use letters, digits and -")
		}
	case "limit":
		if _, err := rpc.Limit(arg).Parse(); err != nil {
			return p.fail(line, fmt.Sprintf("%q is no limit", arg), "write a whole number, inf or -inf")
		}
	case "text":
	default:
		if !slices.Contains(strings.Split(kind, "|"), arg) {
			return p.fail(line, fmt.Sprintf("%q is none of %s", arg, kind), "write one of these words")
		}
	}
	return nil
}

func (p *parser) lineIsCrash(line int) bool {
	return strings.HasPrefix(strings.TrimSpace(p.lines[line-1]), "crash ")
}

// maxCount bounds the numbers of a scenario: what it makes stays in this machine.
const maxCount = 1_000_000

func (p *parser) keys(line int, keys map[string]string) error {
	for key, value := range keys {
		var err error
		switch key {
		case "mode":
			_, err = swap.ParseMode(value)
		case "store":
			if k := StoreKind(value); k != StorePebble && k != StoreCrash && k != StoreMem {
				err = fmt.Errorf("store %q: want pebble, crash or mem", value)
			}
		case "min", "max":
			_, err = rpc.Limit(value).Parse()
		case "via":
			if value == noVia {
				break
			}
			for _, name := range strings.Split(value, "+") {
				if err := p.arg(line, "peer", name); err != nil {
					return err
				}
			}
		case "refunds", "whole", "hold", "signature":
			if value != "yes" {
				err = fmt.Errorf("want yes")
			}
		default:
			_, err = strconv.ParseUint(value, 10, 63)
		}
		if err != nil {
			return p.fail(line, fmt.Sprintf("%s=%s: %v", key, value, err), "give another value")
		}
	}
	return nil
}

// check reads: "NAME" [within D] CLAIM.
func (p *parser) check(st statement, words []string) (statement, error) {
	const form = `check "NAME" [within DURATION] CLAIM`
	if len(words) < 2 {
		return st, p.fail(st.line, "the check has no claim", "write: %s", form)
	}
	st.name = words[0]
	if first, ok := p.checks[st.name]; ok {
		return st, p.fail(st.line, fmt.Sprintf("the check %q is on line %d already", st.name, first), "choose another name")
	}
	p.checks[st.name] = st.line
	words = words[1:]
	if words[0] == "within" {
		if len(words) < 3 {
			return st, p.fail(st.line, "within needs a duration and a claim", "write: %s", form)
		}
		if err := p.arg(st.line, "dur", words[1]); err != nil {
			return st, err
		}
		st.limit, _ = time.ParseDuration(words[1]) // checked above
		words = words[2:]
	}
	switch words[0] {
	case "fails":
		if len(words) < 2 || words[1] == "check" || words[1] == "try" || verbs[words[1]].block {
			return st, p.fail(st.line, "fails needs one plain statement", `write: check "NAME" fails query A B`)
		}
		inner, err := p.statement(st.line, words[1:])
		st.inner = &inner
		return st, err
	case "books-agree":
		if len(words) != 3 {
			return st, p.fail(st.line, "books-agree has two peers", "write: books-agree A B")
		}
		st.args = words
	case "conserved":
		if len(words) < 3 {
			return st, p.fail(st.line, "conserved has two peers or more", "write: conserved A B C")
		}
		st.args = words
	default:
		f, ok := figures[words[0]]
		if !ok {
			return st, p.fail(st.line, fmt.Sprintf("unknown figure %q", words[0]), "use books-agree, fails, or one of: %s", strings.Join(Figures(), ", "))
		}
		peers := 1
		if f.tab != nil {
			peers = 2
		}
		if f.socket != nil {
			return p.socketCheck(st, words)
		}
		if len(words) != peers+3 || !slices.Contains(operators[:], words[peers+1]) {
			return st, p.fail(st.line, fmt.Sprintf("%s takes %d peers, a comparison and a number", words[0], peers),
				"write: %s %s == 0", words[0], strings.Join([]string{"A", "B"}[:peers], " "))
		}
		if _, err := strconv.ParseInt(words[peers+2], 10, 64); err != nil {
			return st, p.fail(st.line, fmt.Sprintf("%q is no number", words[peers+2]), "write a whole number")
		}
		st.args = words
	}
	for _, arg := range st.args[1:] {
		if slices.Contains(operators[:], arg) {
			break
		}
		if err := p.arg(st.line, "peer", arg); err != nil {
			return st, err
		}
	}
	return st, nil
}

// socketCheck reads: FIGURE SOCKET client|server OPERATOR NUMBER.
func (p *parser) socketCheck(st statement, words []string) (statement, error) {
	if len(words) != 5 || !isName(words[1]) || words[2] != "client" && words[2] != "server" || !slices.Contains(operators[:], words[3]) {
		return st, p.fail(st.line, words[0]+" takes a socket, client or server, a comparison and a number", "write: %s S client == 0", words[0])
	}
	if _, err := strconv.ParseInt(words[4], 10, 64); err != nil {
		return st, p.fail(st.line, fmt.Sprintf("%q is no number", words[4]), "write a whole number")
	}
	st.args = words
	return st, nil
}

// maxEach bounds the values of an each block.
const maxEach = 64

// each reads the lines up to its end once for each value.
func (p *parser) each(line int, words []string, opened int) ([]statement, error) {
	if opened != 0 {
		return nil, p.fail(line, "each in a block", "end the block before")
	}
	if len(words) < 2 || len(words) > maxEach+1 {
		return nil, p.fail(line, "each takes names and values", "write: each NAME,NAME VALUE,VALUE VALUE,VALUE")
	}
	names := strings.Split(words[0], ",")
	first, last := p.at, p.at
	for ; last < len(p.lines); last++ {
		if strings.TrimSpace(p.lines[last]) == "end" {
			break
		}
	}
	if last == len(p.lines) || last == first {
		return nil, p.fail(line, "each has no end, or nothing before it", "add a line: end")
	}
	var body []statement
	for _, word := range words[1:] {
		values := strings.Split(word, ",")
		if len(values) != len(names) {
			return nil, p.fail(line, fmt.Sprintf("%q are not %d values", word, len(names)), "write as many as there are names")
		}
		var swaps []string
		for i, name := range names {
			swaps = append(swaps, "$"+name, values[i])
		}
		put := strings.NewReplacer(swaps...)
		for at := first; at < last; at++ {
			words, err := splitWords(put.Replace(p.lines[at]))
			if err != nil {
				return nil, p.fail(at+1, err.Error(), "close the quote")
			}
			if len(words) == 0 {
				continue
			}
			if v := verbs[words[0]]; v.block || words[0] == "peers" || words[0] == "each" {
				return nil, p.fail(at+1, words[0]+" in an each block", "put it before or after")
			}
			st, err := p.statement(at+1, words)
			if err != nil {
				return nil, err
			}
			st.text = strings.TrimSpace(put.Replace(p.lines[at]))
			body = append(body, st)
		}
	}
	p.at = last + 1
	return body, nil
}

var operators = [...]string{"==", "!=", "<=", ">=", "<", ">"}

// compare is got op want.
func compare(got int64, op string, want int64) bool {
	switch op {
	case "==":
		return got == want
	case "!=":
		return got != want
	case "<=":
		return got <= want
	case ">=":
		return got >= want
	case "<":
		return got < want
	default:
		return got > want
	}
}

func verbNames() []string {
	names := []string{"title", "try", "check", "each", "end"}
	for name := range verbs {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func isName(s string) bool {
	if s == "" || len(s) > 32 {
		return false
	}
	for _, r := range s {
		if r != '-' && (r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r)) {
			return false
		}
	}
	return true
}

// splitWords parts a line. A quote begins and ends a word.
func splitWords(line string) ([]string, error) {
	var words []string
	for {
		line = strings.TrimLeftFunc(line, unicode.IsSpace)
		switch {
		case line == "" || line[0] == '#':
			return words, nil
		case line[0] == '"':
			end := strings.IndexByte(line[1:], '"')
			if end < 0 {
				return nil, fmt.Errorf("a quote is open")
			}
			words = append(words, line[1:1+end])
			line = line[end+2:]
		default:
			end := strings.IndexFunc(line, unicode.IsSpace)
			if end < 0 {
				end = len(line)
			}
			words = append(words, line[:end])
			line = line[end:]
		}
	}
}

// policyOf turns keys into a policy, on top of base.
func policyOf(base swap.Policy, keys map[string]string) swap.Policy {
	for key, value := range keys {
		n, _ := strconv.ParseUint(value, 10, 63) // checked by the parser
		a := tally.Amount(n)
		switch key {
		case "mode":
			base.Mode, _ = swap.ParseMode(value) // checked by the parser
		case "payment":
			base.PaymentThreshold = a
		case "disconnect":
			base.DisconnectThreshold = a
		case "early":
			base.EarlyPaymentPercent = uint8(min(n, 255))
		case "min-peer":
			base.MinPeerThreshold = a
		case "max-peer":
			base.MaxPeerThreshold = a
		case "max-debt":
			base.MaxDebt = a
		case "max-exposure":
			base.MaxExposure = a
		case "max-exposure-total":
			base.MaxExposureTotal = a
		case "strangers":
			base.StrangersExposure = a
		}
	}
	return base
}
