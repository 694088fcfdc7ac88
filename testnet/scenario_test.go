package testnet

import (
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	libp2phost "github.com/libp2p/go-libp2p/core/host"

	"github.com/tallystick/tally/internal/durable"
)

// gentle is how much of a flood the tests of scenarios make: the whole of it
// adds processor time and nothing that could fail.
const gentle = 10

// brokenPoints is at how many points a broken crash is tried: the first cheque
// is among them.
const brokenPoints = 12

func runInBubble(t *testing.T, name string, opt Options) (report Report) {
	t.Helper()
	inBubble(t, bubbleLatency, func(t *testing.T, newHost func(crypto.PrivKey) (libp2phost.Host, error)) {
		opt.Network = NetworkConfig{Dir: t.TempDir(), Host: newHost}
		opt.gentle = gentle
		var err error
		if report, err = RunScenario(t.Context(), name, opt); err != nil {
			t.Fatal(err)
		}
	})
	return report
}

func printed(t *testing.T, r *Report) string {
	t.Helper()
	var b strings.Builder
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// Every scenario that ships holds, in simulated time.
func TestScenarios(t *testing.T) {
	for _, name := range ListScenarios() {
		if needsProcesses(t, name) || raceEnabled && name == "flood" {
			continue // many hosts start at once, and simnet v0.0.7 races there
		}
		t.Run(name, func(t *testing.T) {
			opt := Options{}
			if raceEnabled {
				opt.crashPoints = 4
			}
			r := runInBubble(t, name, opt)
			if r.Failed != 0 || r.Passed == 0 {
				t.Errorf("\n%s", printed(t, &r))
			}
		})
	}
}

// Those that need not wait for long hold on loopback as well.
func TestScenariosOnLoopback(t *testing.T) {
	for _, name := range []string{"tab", "threshold", "hostile-threshold"} {
		t.Run(name, func(t *testing.T) {
			r, err := RunScenario(t.Context(), name, Options{})
			if err != nil || r.Failed != 0 || r.Passed == 0 {
				t.Errorf("%v\n%s", err, printed(t, &r))
			}
		})
	}
}

// spoiled is a driver that does something else than it was told.
type spoiled struct {
	*local
	before func(l *local, st *statement)                // may change a copy of the statement
	after  func(l *local, st *statement)                // once it is done
	onBack func(ctx context.Context, name string) error // instead of starting a crashed peer
}

func (s spoiled) do(ctx context.Context, st *statement) error {
	cp := *st
	cp.keys = maps.Clone(st.keys)
	if s.before != nil {
		s.before(s.local, &cp)
	}
	err := s.local.do(ctx, &cp)
	if err == nil && s.after != nil {
		s.after(s.local, &cp)
	}
	return err
}

func (s spoiled) recover(ctx context.Context, name string) (bool, error) {
	if s.onBack == nil {
		return s.local.recover(ctx, name)
	}
	p := must(s.net.Peer(name))
	select {
	case <-p.Killed():
	default:
		return s.local.recover(ctx, name)
	}
	if err := p.Kill(ctx); err != nil {
		return true, err
	}
	if err := s.onBack(ctx, name); err != nil {
		return true, err
	}
	return true, p.Start(ctx)
}

func setKeys(keys ...string) func(*local, *statement) {
	return func(_ *local, st *statement) {
		if st.verb == "peers" && slices.Contains(st.args, "b") {
			for i := 0; i < len(keys); i += 2 {
				st.keys[keys[i]] = keys[i+1]
			}
		}
	}
}

// editLedger changes the ledger records on the disk of a peer that is down, word
// by word.
func editLedger(p *Peer, edit func(words []uint64)) error {
	line, err := p.disk.open()
	if err != nil {
		return err
	}
	var b durable.Batch
	err = line.store.Scan(context.Background(), "/swap/", "", func(key string, value []byte) error {
		if !strings.Contains(key, "/l/") {
			return nil
		}
		_, payload, err := durable.Unseal(key, ledgerRecord, value)
		if err != nil {
			return err
		}
		words := make([]uint64, ledgerUsedAt+1)
		for i := range words {
			words[i] = binary.BigEndian.Uint64(payload[8*i:])
		}
		edit(words)
		out := make([]byte, 0, len(payload))
		for _, w := range words {
			out = binary.BigEndian.AppendUint64(out, w)
		}
		b.Put(key, durable.Seal(nil, key, ledgerRecord, append(out, payload[len(out):]...)))
		return nil
	})
	if err == nil {
		err = line.store.Commit(context.Background(), &b)
	}
	return errors.Join(err, p.disk.close(0))
}

// Words of a ledger record, for editLedger.
const (
	wordOwed     = 0
	wordReceived = 6
	wordCovered  = 7
	wordBlock    = 17
)

// Each scenario is run on something that is broken in the way that it is there
// to find, and the check that finds it fails.
func TestScenariosCanFail(t *testing.T) {
	for _, tc := range []struct {
		scenario, how string
		broken        spoiled
		check         string // that fails, at least
	}{
		{
			"tab", "cheques are lost on the way",
			spoiled{after: func(l *local, st *statement) {
				if st.verb == "peers" {
					must(l.net.Peer("a")).Tap(func(f Frame) Fate {
						if f.Kind == FrameCheque || f.Kind == FrameHandshake {
							return Drop
						}
						return Pass
					})
				}
			}},
			"the client has all messages",
		},
		{
			"tab", "a server counts twice",
			spoiled{after: func(l *local, st *statement) {
				if st.verb == "query" {
					node := must(must(l.net.Peer(st.args[1])).Node())
					_ = node.Book().Debit(must(l.net.Peer(st.args[0])).ID, "store", 60)
				}
			}},
			"the books agree",
		},
		{"threshold", "a threshold is not announced as it was set", spoiled{before: setKeys("payment", "500", "disconnect", "600")}, "the announced threshold is read"},
		{"disconnect", "a creditor counts only", spoiled{before: setKeys("mode", "soft")}, "service stops at the disconnect threshold"},
		{
			"restart", "a creditor forgets at each stop",
			spoiled{after: func(l *local, st *statement) {
				if p := must(l.net.Peer(st.args[0])); (st.verb == "stop" || st.verb == "kill") && p.Name == "b" {
					_ = p.Erase()
				}
			}},
			"service goes on",
		},
		{
			"crash", "a cheque is stored and not credited",
			spoiled{}, // set below: it needs the local driver
			"creditor, writes: the books agree",
		},
		{
			"clock", "a clock that was set back prolongs a block",
			spoiled{after: func(l *local, st *statement) {
				if st.verb == "clock" {
					if err := editLedger(must(l.net.Peer("b")), func(w []uint64) {
						if w[wordBlock] > 0 {
							w[wordBlock] += uint64(time.Hour)
						}
					}); err != nil {
						panic(err)
					}
				}
			}},
			"a block is not a second longer",
		},
		{"hostile-threshold", "any threshold is taken", spoiled{before: setKeys("max-peer", "1000000000", "min-peer", "1")}, "32 bytes of ff are clamped"},
		{"flood", "each stranger has a credit of its own", spoiled{before: setKeys("strangers", "1000000")}, "what they took is within it"},
	} {
		t.Run(tc.scenario+": "+tc.how, func(t *testing.T) {
			opt := Options{crashPoints: brokenPoints, breakIt: func(d driver) driver {
				broken := tc.broken
				broken.local = d.(*local)
				if tc.scenario == "crash" {
					broken.onBack = func(_ context.Context, name string) error {
						return editLedger(must(broken.net.Peer(name)), func(w []uint64) {
							w[wordOwed] += w[wordReceived]
							w[wordReceived], w[wordCovered] = 0, 0
						})
					}
				}
				return broken
			}}
			r := runInBubble(t, tc.scenario, opt)
			found := slices.IndexFunc(r.Checks, func(c CheckResult) bool { return c.Name == tc.check })
			if found < 0 || r.Checks[found].Passed || r.Failed == 0 {
				t.Errorf("the check %q did not fail:\n%s", tc.check, printed(t, &r))
			}
		})
	}
}

// A statement that fails ends the run; what was not reached has failed.
func TestReport(t *testing.T) {
	file := filepath.Join(t.TempDir(), "s.txt")
	text := `title Reports
peers a b store=mem
check "first" got a == 0
check "second" fails settle a b
repeat 3
  check "third" balance a b == 0
end
check "fourth" balance a b == 7
import a no-such-file
check "fifth" got a == 0
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var lines []int
	r, err := RunScenario(t.Context(), file, Options{Progress: func(p ScenarioProgress) { lines = append(lines, p.Line) }})
	if err != nil {
		t.Fatal(err)
	}
	got := printed(t, &r)
	for _, want := range []string{
		file + ": Reports\n", "\nok    first: got is 0, want == 0\n", "\nok    second: ", "\nok    third (3 times): balance is 0, want == 0\n",
		"\nFAIL  fourth: balance is 0, want == 7\n", "\nFAIL  line 9: ", "\nFAIL  fifth: not reached\n", "\n3 passed, 3 failed\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if r.Passed != 3 || r.Failed != 3 || !slices.Equal(lines, []int{2, 3, 4, 5, 6, 6, 6, 8, 9}) {
		t.Errorf("%d passed, %d failed, lines %v", r.Passed, r.Failed, lines)
	}
}

func TestScenarioNames(t *testing.T) {
	want := []string{
		"chain-down", "clock", "cog", "crash", "disconnect", "drain", "flood", "gift", "hold-restart", "hold-voucher", "hold", "hostile-threshold", "hub",
		"jam", "lock-cancel", "lock-chain-claim", "lock-hub",
		"multipath-restart", "multipath-timeout", "multipath", "partition", "pull",
		"refund", "reorg", "restart", "settle-offline", "settle-while-locked", "signature", "socket-crash", "socket-flood", "tab", "three-hops", "threshold", "usecases",
	}
	if got := ListScenarios(); !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	if _, err := RunScenario(t.Context(), "no-such", Options{}); !errors.Is(err, ErrScenario) || !strings.Contains(err.Error(), "tab, three-hops, threshold") {
		t.Error(err)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	_, err := RunScenario(ctx, "tab", Options{Progress: func(p ScenarioProgress) {
		if strings.HasPrefix(p.Statement, "query") {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// An error of a script names file and line, the cause and the remedy.
func TestScriptErrors(t *testing.T) {
	const head = "title T\npeers a b\n"
	const tail = "\ncheck \"x\" got a == 0\n"
	for _, tc := range []struct{ text, line, cause string }{
		{"peers a\ncheck \"x\" got a == 0", "1", "there is no title"},
		{"title T\npeers a\n", "3", "there is no check"},
		{"title T\ntitle U\n", "2", "title is given once"},
		{"title T\nmode hard colour=red\n", "2", "says nothing of a chain"},
		{"title T\nmode hard epoch=0s\n", "2", "says nothing of a chain"},
		{"title T\nmode hard finality=x\n", "2", "says nothing of a chain"},
		{"title T\nmode mock finality=1\n", "2", "mode is given once"},
		{head + "near a b soon" + tail, "3", `"soon" is no number`},
		{head + "begin a b 5 hold=no" + tail, "3", "want yes"},
		{head + "dance a b" + tail, "3", `unknown statement "dance"`},
		{head + "connect a" + tail, "3", "connect has 1 arguments"},
		{head + "connect a b a" + tail, "3", "connect has 3 arguments"},
		{head + "connect a c" + tail, "3", `no peer "c"`},
		{head + "peers a" + tail, "3", `there is a peer "a" already`},
		{head + "peers a=" + tail, "3", "peers has no key \"a\""},
		{head + "peers c payment=x" + tail, "3", "payment=x"},
		{head + "peers c mode=gold" + tail, "3", "mode=gold"},
		{head + "peers c store=tape" + tail, "3", "store=tape"},
		{head + "peers c payment=1 payment=2" + tail, "3", "given twice"},
		{head + "query a b size=3" + tail, "3", `query has no key "size"`},
		{head + "wait long" + tail, "3", `"long" is no duration`},
		{head + "wait 25h" + tail, "3", "is no duration up to a day"},
		{head + "repeat 0" + tail + "end", "3", `"0" is no number`},
		{head + "repeat 2" + tail, "3", "the block has no end"},
		{head + "repeat 2\nend" + tail, "4", "the block is empty"},
		{head + "repeat 2\nrepeat 2\nwait 1s\nend\nend" + tail, "4", "a block in a block"},
		{head + "end" + tail, "3", "end without a block"},
		{head + "arm a" + tail, "3", "arm is for the peer of a crash block"},
		{head + "crash c reads\nwait 1s\nend" + tail, "3", `"reads" is none of saves|sends`},
		{head + "crash c saves\npeers d\narm d\nend" + tail, "5", "arm is for the peer of a crash block"},
		{head + "drop a letter 1" + tail, "3", `"letter" is none of`},
		{head + "hostile h a alpha1 0xf" + tail, "3", "two hex digits"},
		{head + "hostile h a alpha1 lots" + tail, "3", "is no number"},
		{head + "clock a slow 1h" + tail, "3", `"slow" is none of back|ahead`},
		{head + "try check \"x\" got a == 0" + tail, "3", "try needs one plain statement"},
		{head + "try" + tail, "3", "try needs one plain statement"},
		{head + `check "x"` + tail, "3", "the check has no claim"},
		{head + `check "x" got a == 0` + tail, "4", `the check "x" is on line 3 already`},
		{head + `check "y" wealth a == 0` + tail, "3", `unknown figure "wealth"`},
		{head + `check "y" got a b == 0` + tail, "3", "got takes 1 peers"},
		{head + `check "y" balance a == 0` + tail, "3", "balance takes 2 peers"},
		{head + `check "y" balance a b = 0` + tail, "3", "balance takes 2 peers"},
		{head + `check "y" balance a b == much` + tail, "3", `"much" is no number`},
		{head + `check "y" balance a c == 1` + tail, "3", `no peer "c"`},
		{head + `check "y" within 5s` + tail, "3", "within needs"},
		{head + `check "y" within soon got a == 0` + tail, "3", `"soon" is no duration`},
		{head + `check "y" books-agree a` + tail, "3", "books-agree has two peers"},
		{head + `check "y" fails repeat 2` + tail, "3", "fails needs one plain statement"},
		{head + `check "y got a == 0` + tail, "3", "a quote is open"},
	} {
		_, err := parseScript("s.txt", tc.text)
		e, ok := errors.AsType[*ScriptError](err)
		if !ok || !strings.HasPrefix(err.Error(), "s.txt:"+tc.line+": ") || !strings.Contains(e.Cause, tc.cause) || e.Remedy == "" {
			t.Errorf("%q: %v, want line %s: %s", tc.text, err, tc.line, tc.cause)
		}
	}
}

// What cannot be done to live peers is said before anything is.
func TestLiveRefusesWhatOnlyWeCanDo(t *testing.T) {
	peers := map[string]string{"a": "/nowhere", "b": "/nowhere", "c": "/nowhere", "d": "/nowhere", "s": "/nowhere"}
	for _, name := range []string{"crash", "flood", "disconnect", "restart", "clock", "hostile-threshold"} {
		if _, err := RunScenario(t.Context(), name, Options{Peers: peers}); !errors.As(err, new(*ScriptError)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	delete(peers, "b")
	if _, err := RunScenario(t.Context(), "tab", Options{Peers: peers}); err == nil || !strings.Contains(err.Error(), "--peer b=REPO") {
		t.Error(err)
	}
}

func FuzzParseScript(f *testing.F) {
	for _, name := range ListScenarios() {
		_, text, err := ScenarioText(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseScript("f", text)
		if err != nil && !errors.As(err, new(*ScriptError)) {
			t.Fatal(err)
		}
		if err == nil && (s.title == "" || len(s.body) == 0) {
			t.Fatal("an empty script was taken")
		}
	})
}
