package testnet

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tallystick/tally/paystream/payments/route"
)

//go:embed scenarios/*.txt
var shipped embed.FS

// queryWithin bounds one statement that waits for a peer: longer than a way is left out
// whose hop failed, so that a payment may follow a kill.
const queryWithin = route.Rest + 30*time.Second

// ErrScenario: no scenario of that name ships, and no such file is there.
var ErrScenario = errors.New("testnet: no such scenario")

// Options of RunScenario. The zero value runs in this process.
type Options struct {
	// Peers are live peers, by the name that the scenario gives them: the folder
	// of each one's repo. Empty: peers in this process.
	Peers map[string]string
	// Hard runs the peers as processes of their own in mode hard, on a devnet, as a
	// scenario with the line `mode hard` always does. Cluster is how.
	Hard    bool
	Cluster ClusterConfig
	// Network is the network of a run in this process.
	Network NetworkConfig
	// Progress is called as statements begin. Nil is allowed.
	Progress func(ScenarioProgress)
	// Logger of the peers. Default: none.
	Logger *slog.Logger

	// breakIt spoils a run on purpose: a test shows with it that a check can
	// fail.
	breakIt func(driver) driver
	// crashPoints bounds the points of a crash block; 0: all.
	crashPoints int
	// gentle divides the counts of floods; 0: not at all.
	gentle int
}

// ScenarioProgress is how far a scenario is. Lines of blocks count once.
type ScenarioProgress struct {
	Statement   string
	Line        int
	Done, Total int
}

// CheckResult is one named check.
type CheckResult struct {
	Name   string `json:"name"`
	Line   int    `json:"line"`
	Passed bool   `json:"passed"`
	// Times is how often it was looked at; all of them passed, or the detail is
	// that of the first one that did not.
	Times  int    `json:"times"`
	Detail string `json:"detail"`
}

// Report is the outcome of a scenario.
type Report struct {
	Scenario  string        `json:"scenario"`
	Title     string        `json:"title"`
	Checks    []CheckResult `json:"checks"`
	Passed    int           `json:"passed"`
	Failed    int           `json:"failed"`
	ElapsedMS int64         `json:"elapsed_ms"`
}

// Write prints the report: each check, and last "N passed, N failed".
func (r *Report) Write(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", r.Scenario, r.Title)
	for _, c := range r.Checks {
		word := "ok  "
		if !c.Passed {
			word = "FAIL"
		}
		fmt.Fprintf(&b, "%s  %s", word, c.Name)
		if c.Times > 1 {
			fmt.Fprintf(&b, " (%d times)", c.Times)
		}
		if c.Detail != "" {
			fmt.Fprintf(&b, ": %s", c.Detail)
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "%d passed, %d failed\n", r.Passed, r.Failed)
	_, err := io.WriteString(w, b.String())
	return err
}

// ListScenarios returns the names of the scenarios that ship.
func ListScenarios() []string {
	files, err := shipped.ReadDir("scenarios")
	if err != nil {
		panic("testnet: embedded scenarios: " + err.Error())
	}
	var names []string
	for _, f := range files {
		names = append(names, strings.TrimSuffix(f.Name(), ".txt"))
	}
	return names
}

// ScenarioText returns the text of a scenario that ships, or of a file. An error
// wraps ErrScenario.
func ScenarioText(nameOrPath string) (file, text string, err error) {
	if slices.Contains(ListScenarios(), nameOrPath) {
		raw, err := shipped.ReadFile(path.Join("scenarios", nameOrPath+".txt"))
		return nameOrPath, string(raw), err
	}
	raw, err := os.ReadFile(nameOrPath)
	if err != nil {
		return "", "", fmt.Errorf("%w: %w; the names are: %s", ErrScenario, err, strings.Join(ListScenarios(), ", "))
	}
	return nameOrPath, string(raw), nil
}

// RunScenario runs a scenario by its name or path. The report says which checks
// passed; an error says that it could not run: ErrScenario, a *ScriptError, or
// that ctx ended.
func RunScenario(ctx context.Context, nameOrPath string, opt Options) (report Report, err error) {
	file, text, err := ScenarioText(nameOrPath)
	if err != nil {
		return Report{}, err
	}
	s, err := parseScript(file, text)
	if err != nil {
		return Report{}, err
	}
	if opt.Progress == nil {
		opt.Progress = func(ScenarioProgress) {}
	}
	if opt.Logger != nil {
		opt.Network.Logger = opt.Logger
	}
	if len(opt.Peers) > 0 {
		if err := s.fitsLive(opt.Peers); err != nil {
			return Report{}, err
		}
	} else if err := s.fits(s.place(opt.Hard)); err != nil {
		return Report{}, err
	}
	begin := time.Now()
	r := &runner{opt: opt, script: s, ctx: ctx, results: make(map[string]*CheckResult), total: count(s.body)}
	defer func() { err = errors.Join(err, r.close()) }()
	if r.driver, err = r.newDriver(); err != nil {
		return Report{}, err
	}
	err = r.run(ctx, s.body)
	if ctx.Err() != nil {
		return Report{}, fmt.Errorf("testnet: scenario %s: %w", nameOrPath, ctx.Err())
	}
	report = r.report(err)
	report.ElapsedMS = time.Since(begin).Milliseconds()
	return report, nil // the deferred close may add that peers did not end well
}

func count(body []statement) int {
	n := len(body)
	for _, st := range body {
		n += len(st.body)
	}
	return n
}

// fitsLive refuses a scenario that live peers cannot run, before it begins.
func (s *script) fitsLive(peers map[string]string) error {
	fail := func(st *statement, cause, remedy string) error {
		return &ScriptError{File: s.file, Line: st.line, Cause: cause, Remedy: remedy}
	}
	var look func(body []statement) error
	look = func(body []statement) error {
		for i := range body {
			st := &body[i]
			if st.inner != nil {
				if err := look([]statement{*st.inner}); err != nil {
					return err
				}
			}
			if st.verb == "check" && st.inner == nil {
				if f := figures[st.args[0]]; f.local || f.procs || f.socket != nil {
					return fail(st, "the figure "+st.args[0]+" cannot be read over RPC", "run it without live peers")
				}
				continue
			}
			if st.verb == "peers" {
				for _, name := range st.args {
					if peers[name] == "" {
						return fail(st, "no live peer is named "+name, "add --peer "+name+"=REPO")
					}
				}
				continue
			}
			if st.verb != "try" && st.verb != "check" && !liveVerbs[st.verb] {
				return fail(st, st.verb+" cannot be done to live peers", "run it without live peers")
			}
			if err := look(st.body); err != nil {
				return err
			}
		}
		return nil
	}
	return look(s.body)
}

// place is where the peers of a run are.
type place uint8

const (
	inside      place = iota // this process
	onProcesses              // processes of their own
	onChain                  // and a chain
)

func (s *script) place(hard bool) place {
	switch {
	case hard || s.mode == "hard":
		return onChain
	case s.mode == "mock":
		return onProcesses
	default:
		return inside
	}
}

// fits refuses a scenario that processes, or peers in this process, cannot run.
func (s *script) fits(at place) error {
	var look func(body []statement) error
	look = func(body []statement) error {
		for i := range body {
			st := &body[i]
			fail := func(cause, remedy string) error {
				return &ScriptError{File: s.file, Line: st.line, Cause: cause, Remedy: remedy}
			}
			if st.inner != nil {
				if err := look([]statement{*st.inner}); err != nil {
					return err
				}
				continue
			}
			if st.verb == "check" {
				switch f := figures[st.args[0]]; {
				case at != inside && f.local:
					return fail("the figure "+st.args[0]+" cannot be read of processes", "run it without --hard")
				case at == inside && (f.procs || f.socket != nil || st.args[0] == "conserved"):
					return fail("the figure "+st.args[0]+" needs processes", "add the line: mode mock")
				case at != onChain && f.chain:
					return fail("the figure "+st.args[0]+" needs a chain", "add the line: mode hard")
				}
				continue
			}
			if at == inside && (st.keys["fee-base"] != "" || st.keys["fee-ppm"] != "") {
				return fail("peers in this process carry no packets, so that they take no fees", "add the line: mode mock")
			}
			if at == onChain && st.keys["mode"] == "soft" {
				return fail("a peer in mode soft counts another asset than those in mode hard, and they do not meet", "run it without --hard")
			}
			if at != inside && !processVerbs[st.verb] {
				return fail(st.verb+" cannot be done to processes", "run it without --hard; `tally testnet chaos` kills processes anywhere")
			}
			if at == inside && socketVerbs[st.verb] {
				return fail(st.verb+" needs processes", "add the line: mode mock")
			}
			if at != onChain && chainVerbs[st.verb] {
				return fail(st.verb+" needs processes and a chain", "add the line: mode hard")
			}
			if err := look(st.body); err != nil {
				return err
			}
		}
		return nil
	}
	return look(s.body)
}

// chainVerbs need processes and a chain, socketVerbs processes.
var (
	chainVerbs = map[string]bool{
		"cashout": true, "close": true, "chain": true, "mine": true, "reorg": true, "near": true, "room": true, "buy": true, "take": true,
	}
	socketVerbs = map[string]bool{
		"hold": true, "uri": true, "open": true, "limits": true, "shut": true, "partition": true, "heal": true,
		"pay": true, "begin": true, "part": true, "invoice": true, "claim": true, "refuse": true, "jam": true,
	}
)

// liveVerbs make sense over RPC.
var liveVerbs = map[string]bool{
	"peers": true, "import": true, "connect": true, "query": true, "settle": true, "wait": true, "repeat": true,
}

// runner is a scenario under way.
type runner struct {
	ctx     context.Context // of the whole run: a driver may take a while to start
	opt     Options
	script  *script
	driver  driver
	results map[string]*CheckResult
	where   string // of a crash block: which point
	crash   *crashPoint
	struck  bool
	done    int
	total   int
}

// crashPoint is where a crash block strikes this time.
type crashPoint struct {
	at    string // saves or sends
	n     int
	after bool
}

func (p *crashPoint) String() string {
	side := "before"
	if p.after {
		side = "after"
	}
	return fmt.Sprintf("crash %s %s %d", side, strings.TrimSuffix(p.at, "s"), p.n)
}

func (r *runner) newDriver() (driver, error) {
	if len(r.opt.Peers) > 0 {
		d, err := newLive(r.opt.Peers)
		if err != nil {
			return nil, err
		}
		return d, nil
	}
	if at := r.script.place(r.opt.Hard); at != inside {
		r.opt.Cluster.NoChain = at != onChain
		r.script.chain.apply(&r.opt.Cluster)
		d, err := newProcs(r.ctx, r.opt.Cluster)
		if err != nil {
			return nil, err
		}
		d.attacker.gentle = max(1, r.opt.gentle)
		return d, nil
	}
	d, err := newLocal(r.opt.Network)
	if err != nil {
		return nil, err
	}
	d.attacker.gentle = max(1, r.opt.gentle)
	if r.opt.breakIt != nil {
		return r.opt.breakIt(d), nil
	}
	return d, nil
}

func (r *runner) close() error {
	if r.driver == nil {
		return nil
	}
	return r.driver.close()
}

// stepError is a statement that failed.
type stepError struct {
	st  *statement
	err error
}

func (e *stepError) Error() string {
	return fmt.Sprintf("line %d: %s: %v", e.st.line, e.st.text, e.err)
}
func (e *stepError) Unwrap() error { return e.err }

func (r *runner) run(ctx context.Context, body []statement) error {
	for i := range body {
		st := &body[i]
		r.done = max(r.done, i+1)
		r.opt.Progress(ScenarioProgress{Statement: st.text, Line: st.line, Done: min(r.done, r.total), Total: r.total})
		if err := r.step(ctx, st); err != nil {
			return err
		}
	}
	return nil
}

func (r *runner) step(ctx context.Context, st *statement) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	switch st.verb {
	case "check":
		r.check(ctx, st)
		return nil
	case "try":
		_ = r.do(ctx, st.inner)
		return nil
	case "repeat":
		n, _ := strconv.Atoi(st.args[0]) // checked by the parser
		for range n {
			if err := r.run(ctx, st.body); err != nil {
				return err
			}
		}
		return nil
	case "crash":
		return r.crashBlock(ctx, st)
	}
	if err := r.do(ctx, st); err != nil {
		return &stepError{st, err}
	}
	return nil
}

// do carries out one plain statement.
func (r *runner) do(ctx context.Context, st *statement) error {
	switch st.verb {
	case "arm":
		return r.driver.arm(ctx, st.args[0], *r.crash)
	case "recover":
		struck, err := r.driver.recover(ctx, st.args[0])
		r.struck = r.struck || struck
		return err
	case "wait":
		d, _ := time.ParseDuration(st.args[0]) // checked by the parser
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	ctx, cancel := context.WithTimeout(ctx, queryWithin)
	defer cancel()
	return r.driver.do(ctx, st)
}

// maxCrashPoints ends a crash block that never runs free of crashes.
const maxCrashPoints = 500

// crashBlock runs the block on a new network for each point, until no crash
// strikes before its end.
func (r *runner) crashBlock(ctx context.Context, st *statement) error {
	outer := r.driver
	defer func() { r.driver, r.crash, r.where = outer, nil, "" }()
	limit := maxCrashPoints
	if r.opt.crashPoints > 0 {
		limit = r.opt.crashPoints
	}
	for _, after := range [...]bool{false, true} {
		for n := 1; ; n++ {
			point := crashPoint{at: st.args[1], n: n, after: after}
			struck, err := r.crashOnce(ctx, st, point)
			if err != nil {
				return fmt.Errorf("%v: %w", &point, err)
			}
			if !struck || n >= limit && r.opt.crashPoints > 0 {
				break
			}
			if n >= limit {
				return &stepError{st, fmt.Errorf("a crash strikes even at point %d", n)}
			}
		}
	}
	return nil
}

func (r *runner) crashOnce(ctx context.Context, st *statement, point crashPoint) (struck bool, err error) {
	if r.driver, err = r.newDriver(); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, r.driver.close()) }()
	r.crash, r.where, r.struck = &point, point.String(), false
	err = r.run(ctx, st.body)
	return r.struck, err
}

// check looks at a claim until it holds or its time is over.
func (r *runner) check(ctx context.Context, st *statement) {
	res := r.results[st.name]
	if res == nil {
		res = &CheckResult{Name: st.name, Line: st.line, Passed: true}
		r.results[st.name] = res
	}
	res.Times++
	begin := time.Now()
	for {
		changed := r.driver.changed()
		ok, detail := r.claim(ctx, st)
		if ok || time.Since(begin) >= st.limit || ctx.Err() != nil {
			if !ok && r.where != "" {
				detail = r.where + ": " + detail
			}
			if !res.Passed {
				return // what failed first is told
			}
			if !ok {
				if why := r.driver.why(ctx); why != "" {
					detail += "; begun and not complete: " + why
				}
			}
			res.Detail, res.Passed = detail, ok
			return
		}
		timer := time.NewTimer(lookEvery)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// lookEvery is the pause of a check that has time, where nothing tells it to
// look again.
const lookEvery = 50 * time.Millisecond

// claim evaluates a check once.
func (r *runner) claim(ctx context.Context, st *statement) (ok bool, detail string) {
	if st.inner != nil {
		err := r.do(ctx, st.inner)
		if err == nil {
			return false, "it worked"
		}
		return true, firstLine(err.Error())
	}
	if st.args[0] == "books-agree" {
		a, b, err := r.tabs(ctx, st.args[1], st.args[2])
		if err != nil {
			return false, firstLine(err.Error())
		}
		return a.mirrors(&b), fmt.Sprintf("%s %d, %s %d; served and consumed %d %d and %d %d, paid and received %d %d and %d %d",
			st.args[1], a.Balance, st.args[2], b.Balance, a.Served, a.Consumed, b.Served, b.Consumed, a.Paid, a.Received, b.Paid, b.Received)
	}
	if st.args[0] == "conserved" {
		return r.conserved(ctx, st.args[1:])
	}
	f := figures[st.args[0]]
	var got int64
	var why string
	rest := st.args[2:]
	if f.socket != nil {
		row, err := r.driver.socket(ctx, st.args[1], st.args[2])
		if err != nil {
			return false, firstLine(err.Error())
		}
		got, rest, why = f.socket(&row), st.args[3:], row.Note
	} else if f.tab != nil {
		tab, err := r.driver.tab(ctx, st.args[1], st.args[2])
		if err != nil {
			return false, firstLine(err.Error())
		}
		got, rest, why = f.tab(&tab), st.args[3:], tab.Why
	} else {
		stats, err := r.driver.stats(ctx, st.args[1])
		if err != nil {
			return false, firstLine(err.Error())
		}
		got, why = f.peer(&stats), stats.Why
	}
	if why != "" {
		why = " (" + firstLine(why) + ")"
	}
	want, _ := strconv.ParseInt(rest[1], 10, 64) // checked by the parser
	return compare(got, rest[0], want), fmt.Sprintf("%s is %d, want %s %d%s", st.args[0], got, rest[0], want, why)
}

// conserved sums what peers have on all their tabs.
func (r *runner) conserved(ctx context.Context, names []string) (ok bool, detail string) {
	var sum int64
	var parts []string
	for _, name := range names {
		s, err := r.driver.stats(ctx, name)
		if err != nil {
			return false, firstLine(err.Error())
		}
		sum += s.Net
		parts = append(parts, fmt.Sprintf("%s %d", name, s.Net))
	}
	return sum == 0, fmt.Sprintf("%s: sum %d", strings.Join(parts, ", "), sum)
}

func (r *runner) tabs(ctx context.Context, a, b string) (tabA, tabB Tab, err error) {
	if tabA, err = r.driver.tab(ctx, a, b); err == nil {
		tabB, err = r.driver.tab(ctx, b, a)
	}
	return tabA, tabB, err
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

// report lists the checks in the order of the file. One that was never reached
// has failed, and so has the statement that ended the run.
func (r *runner) report(err error) Report {
	rep := Report{Scenario: r.script.file, Title: r.script.title, Checks: []CheckResult{}}
	add := func(c CheckResult) {
		rep.Checks = append(rep.Checks, c)
		if c.Passed {
			rep.Passed++
		} else {
			rep.Failed++
		}
	}
	var list func(body []statement)
	list = func(body []statement) {
		for i := range body {
			st := &body[i]
			if step, ok := errors.AsType[*stepError](err); ok && step.st == st {
				add(CheckResult{Name: "line " + strconv.Itoa(st.line), Line: st.line, Times: 1, Detail: firstLine(err.Error())})
			}
			if st.verb == "check" {
				if res := r.results[st.name]; res != nil {
					add(*res)
				} else {
					add(CheckResult{Name: st.name, Line: st.line, Detail: "not reached"})
				}
			}
			list(st.body)
		}
	}
	list(r.script.body)
	if _, ok := errors.AsType[*stepError](err); err != nil && !ok {
		add(CheckResult{Name: "the run", Times: 1, Detail: firstLine(err.Error())})
	}
	return rep
}
