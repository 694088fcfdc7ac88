package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/repo"
)

// raceEnv has options of the race detector. It has every program wait for a second at
// its end, and these tests run hundreds of them.
const raceEnv = "GORACE"

func TestMain(m *testing.M) {
	if os.Getenv(raceEnv) == "" {
		_ = os.Setenv(raceEnv, "atexit_sleep_ms=0")
	}
	if os.Getenv(processEnv) != "" {
		os.Exit(run(realDeps()))
	}
	testscript.Main(m, map[string]func(){
		"tally": func() { os.Exit(run(fakeDeps())) },
	})
}

// Every script is a transcript of one command against a peer that runs in
// another process, with a fake behind its RPC.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv(repo.EnvPath, filepath.Join(e.WorkDir, "peer"))
			e.Setenv("BOB", bob)
			e.Setenv(raceEnv, os.Getenv(raceEnv))
			e.Setenv("TZ", "UTC")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"waitfor": waitFor,
			"replace": replaceIn,
			"jsonenv": jsonEnv,
		},
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
	})
}

// waitFor waits until a file is there: waitfor FILE.
func waitFor(ts *testscript.TestScript, neg bool, args []string) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 6000 {
		if _, err := os.Stat(ts.MkAbs(args[0])); (err == nil) != neg {
			return
		}
		<-tick.C
	}
	ts.Fatalf("%s: not in time", args[0])
}

// replaceIn replaces text in a file: replace OLD NEW FILE.
func replaceIn(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[2])
	data, err := os.ReadFile(path)
	ts.Check(err)
	if !bytes.Contains(data, []byte(args[0])) {
		ts.Fatalf("%s has no %q", args[2], args[0])
	}
	ts.Check(os.WriteFile(path, bytes.ReplaceAll(data, []byte(args[0]), []byte(args[1])), 0o600))
}

// jsonEnv puts a text of a JSON object into the environment: jsonenv FILE KEY NAME.
func jsonEnv(ts *testscript.TestScript, _ bool, args []string) {
	var object map[string]any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &object))
	text, ok := object[args[1]].(string)
	if !ok || text == "" {
		ts.Fatalf("%s has no text %q", args[0], args[1])
	}
	ts.Setenv(args[2], text)
}

// Every command is reachable by its path and says what it does, at length and
// by example; every flag is explained.
func TestEveryCommandIsDocumented(t *testing.T) {
	root := NewRoot(fakeDeps())
	root.InitDefaultHelpCmd()
	count := 0
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			walk(sub)
		}
		if c.Name() == "help" {
			return
		}
		count++
		path := strings.Fields(c.CommandPath())[1:]
		found, rest, err := root.Find(path)
		if err != nil || found != c || len(rest) != 0 {
			t.Errorf("%s is not reachable: %v", c.CommandPath(), err)
		}
		if c.Short == "" || len(c.Long) < len(c.Short)/2 || c.Long == "" || !strings.Contains(c.Example, "tally") {
			t.Errorf("%s: Short, Long or Example is missing", c.CommandPath())
		}
		if c.RunE == nil {
			t.Errorf("%s does nothing", c.CommandPath())
		}
		if c.Args == nil && !c.HasSubCommands() && c.Name() != "man" {
			t.Errorf("%s does not check its arguments", c.CommandPath())
		}
		for _, line := range strings.Split(c.Long+"\n"+c.Example, "\n") {
			if len([]rune(line)) > 100 {
				t.Errorf("%s: line over 100 columns: %s", c.CommandPath(), line)
			}
		}
		if usages := c.LocalFlags().FlagUsages(); strings.Contains(usages, "  \n") {
			t.Errorf("%s has a flag without words:\n%s", c.CommandPath(), usages)
		}
	}
	walk(root)
	// A script whose name begins with that of the command shows it at work.
	if count < 25 {
		t.Errorf("only %d commands", count)
	}
	for _, c := range root.Commands() {
		if c.Name() == "help" {
			continue
		}
		if scripts, _ := filepath.Glob("testdata/" + c.Name() + "*.txtar"); len(scripts) == 0 {
			t.Errorf("no transcript of tally %s", c.Name())
		}
	}
}

func TestHuman(t *testing.T) {
	for v, want := range map[any]string{
		0: "0", 999: "999", 1000: "1,000", -1234567: "-1,234,567", uint64(1 << 63): "9,223,372,036,854,775,808",
		int64(-1 << 63): "-9,223,372,036,854,775,808", 1234.5: "1,234.5", -0.25: "-0.25", 1e6: "1,000,000", "": "-", true: "yes",
		"a\x1b[31mb\nc": "a?[31mb?c", (*time.Time)(nil): "-",
	} {
		if got := cell(v); got != want {
			t.Errorf("%v: %q, want %q", v, got, want)
		}
	}
}

// A hook that a build has not is an error of words, never a crash.
func TestBuildWithoutHooks(t *testing.T) {
	for _, args := range [][]string{{"start", "--dev"}, {"devnet"}, {"devnet", "mine"}, {"demo"}, {"bench", "acct"}, {"testnet", "run", "tab"}} {
		var stderr bytes.Buffer
		if code := Execute(t.Context(), Deps{Stdout: &bytes.Buffer{}, Stderr: &stderr}, args); code == exitDone {
			t.Errorf("%v: done", args)
		}
		if !strings.HasPrefix(stderr.String(), "error: ") || !strings.Contains(stderr.String(), "try: ") {
			t.Errorf("%v: %s", args, stderr.String())
		}
	}
}
