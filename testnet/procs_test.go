package testnet

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tallystick/tally/host/rpc"
)

// needsProcesses reports whether a scenario that ships does not run in this process.
func needsProcesses(t *testing.T, name string) bool {
	t.Helper()
	file, text, err := ScenarioText(name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := parseScript(file, text)
	if err != nil {
		t.Fatal(err)
	}
	return s.place(false) != inside
}

// One scenario that needs a chain, and one that runs on it unchanged. The rest of
// them wait for calls to time out, which is what they show: `tally testnet run`.
func TestScenariosOfProcesses(t *testing.T) {
	for _, name := range []string{"settle-offline", "tab"} {
		t.Run(name, func(t *testing.T) {
			r, err := RunScenario(t.Context(), name, Options{Hard: true, Cluster: processes(t)})
			if err != nil || r.Failed != 0 || r.Passed < 10 {
				t.Errorf("%v\n%s", err, printed(t, &r))
			}
		})
	}
}

// What cannot be done is said before anything starts.
func TestScenariosThatDoNotFit(t *testing.T) {
	for name, tt := range map[string]struct {
		hard       bool
		text, want string
	}{
		"chain in one process":   {false, "title T\npeers a b\nmine 3\ncheck \"c\" balance a b == 0", "needs processes"},
		"figure without chain":   {false, "title T\npeers a b\ncheck \"c\" earned a == 0", "needs a chain"},
		"points of a process":    {true, "title T\ncrash a saves\n  peers a b\n  arm a\nend\ncheck \"c\" fails chain stop", "cannot be done to processes"},
		"figure of a process":    {true, "title T\npeers a\ncheck \"c\" sessions a == 0", "cannot be read"},
		"another asset":          {true, "title T\npeers a mode=soft\ncheck \"c\" accounts a == 0", "another asset"},
		"sockets in one process": {false, "title T\npeers a b\nuri u a gift 10\ncheck \"c\" balance a b == 0", "needs processes"},
		"figure of a socket":     {false, "title T\npeers a b\ncheck \"c\" socket-balance s client == 0", "needs processes"},
		"fees in one process":    {false, "title T\npeers a fee-base=1\ncheck \"c\" accounts a == 0", "no packets"},
		"hold in one process":    {false, "title T\npeers a b\nclaim b\ncheck \"c\" balance a b == 0", "needs processes"},
		"locks without chain":    {false, "title T\nmode mock\npeers a b\nnear a b 3\ncheck \"c\" balance a b == 0", "needs processes and a chain"},
		"slots without chain":    {false, "title T\nmode mock\npeers a b\ncheck \"c\" slots-paid a b == 0", "needs a chain"},
		"mode after statements":  {true, "title T\npeers a\nmode hard\ncheck \"c\" accounts a == 0", "before all statements"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := parseScript("f", tt.text)
			if err == nil {
				err = s.fits(s.place(tt.hard))
			}
			var bad *ScriptError
			if !errors.As(err, &bad) || !strings.Contains(bad.Cause+bad.Remedy, tt.want) || bad.Line == 0 {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	for _, name := range ListScenarios() {
		file, text, err := ScenarioText(name)
		if err != nil {
			t.Fatal(err)
		}
		s, err := parseScript(file, text)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.fits(s.place(false)); err != nil {
			t.Error(err)
		}
	}
}

// Payer, holder and payee are processes of their own that come and go.
func TestScenariosOfHolds(t *testing.T) {
	if os.Getenv("TALLY_LONG") == "" {
		t.Skip("set TALLY_LONG=1: it waits for peers that come and go, and for the end of a hold")
	}
	for name, checks := range map[string]int{"hold": 7, "hold-restart": 6, "hold-voucher": 28} {
		t.Run(name, func(t *testing.T) {
			r, err := RunScenario(t.Context(), name, Options{Cluster: processes(t)})
			if err != nil || r.Failed != 0 || r.Passed < checks {
				t.Errorf("%v\n%s", err, printed(t, &r))
			}
		})
	}
}

// Payments in parts: over a diamond, with what comes back after its time, and with
// kills under them, which wait for what nobody decides any more.
func TestScenariosOfPayments(t *testing.T) {
	if os.Getenv("TALLY_LONG") == "" {
		t.Skip("set TALLY_LONG=1: it waits for parts that go back, and for peers that come back")
	}
	for name, checks := range map[string]int{"multipath": 10, "multipath-timeout": 8, "multipath-restart": 40} {
		t.Run(name, func(t *testing.T) {
			r, err := RunScenario(t.Context(), name, Options{Hard: true, Cluster: processes(t)})
			if err != nil || r.Failed != 0 || r.Passed < checks {
				t.Errorf("%v\n%s", err, printed(t, &r))
			}
		})
	}
}

// A check that fails says how payments stand that were begun.
func TestFailedCheckTellsOfPayments(t *testing.T) {
	file := filepath.Join(t.TempDir(), "s.txt")
	text := `title Tells
mode mock
peers a b
connect a b
begin a b 40 hold=yes
check "it waits" within 30s waiting-parts b == 1
check "it is taken" taken b == 40
refuse b
check "it fails" within 30s failed-payments a == 1
check "it was taken" taken b == 40
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := processes(t)
	r, err := RunScenario(t.Context(), file, Options{Cluster: cfg})
	if err != nil || r.Passed != 2 || r.Failed != 2 {
		t.Fatalf("%v\n%s", err, printed(t, &r))
	}
	for i, want := range map[int]string{
		1: "40 of a to b: under way, part 1 over 40 pending",
		3: "part 1 over 40 failed: refused at hop ",
	} {
		if got := r.Checks[i].Detail; !strings.Contains(got, want) {
			t.Errorf("%q does not say %q", got, want)
		}
	}
}

// Payments under locks that fail leave nothing behind. What waits for adverts, for the
// end of locks and for channels that settle runs with TALLY_LONG=1.
func TestScenariosOfLocks(t *testing.T) {
	scenarios := map[string]int{"lock-cancel": 26}
	if os.Getenv("TALLY_LONG") != "" {
		scenarios["lock-hub"] = 39
		scenarios["lock-chain-claim"] = 45
		scenarios["settle-while-locked"] = 34
		scenarios["jam"] = 35
		scenarios["signature"] = 38
	}
	for name, checks := range scenarios {
		t.Run(name, func(t *testing.T) {
			r, err := RunScenario(t.Context(), name, Options{Cluster: processes(t)})
			if err != nil || r.Failed != 0 || r.Passed < checks {
				t.Errorf("%v\n%s", err, printed(t, &r))
			}
		})
	}
}

// A slot counts what its last voucher says that can be had, and a guard nothing.
func TestSlotsOfATab(t *testing.T) {
	row := func(lane, nonce uint64, units, hash, origin string, redeemed bool) rpc.VoucherRow {
		return rpc.VoucherRow{
			VoucherInfo: rpc.VoucherInfo{Lane: lane, Nonce: nonce, Amount: units + "000000000", SecretHash: hash, Signature: "01"},
			Origin:      origin, Redeemed: redeemed,
		}
	}
	underPoint := row(1, 3, "90", "", "received", false)
	underPoint.Signature = ""
	unlocked := []rpc.VoucherRow{row(1, 1, "70", "aa", "received", false), row(1, 2, "70", "", "received", false)}
	for name, tt := range map[string]struct {
		rows []rpc.VoucherRow
		want Tab
	}{
		"unlocked":           {unlocked, Tab{SlotsPaid: 70}},
		"then locked":        {append(unlocked, row(1, 3, "90", "bb", "received", false)), Tab{SlotsPaid: 70}},
		"then under a point": {append(unlocked, underPoint), Tab{SlotsPaid: 70}},
		"then claimed":       {append(unlocked, row(1, 3, "90", "bb", "received", true)), Tab{SlotsPaid: 90, SlotsRedeemed: 90}},
		"then cancelled":     {append(unlocked, row(1, 3, "90", "bb", "received", false), row(1, 4, "70", "", "refund", false)), Tab{SlotsPaid: 70}},
		"cancel submitted":   {append(unlocked, row(1, 3, "90", "bb", "received", true), row(1, 4, "70", "", "refund", true)), Tab{SlotsPaid: 70, SlotsRedeemed: 70, CancelsOnChain: 1}},
		"guard":              {[]rpc.VoucherRow{row(guardLane, 1, "0", "", "received", true)}, Tab{Guarded: true}},
		"guard, not needed":  {[]rpc.VoucherRow{row(guardLane, 1, "0", "", "received", false)}, Tab{}},
		"mails":              {append(unlocked, row(firstMail, 1, "7", "cc", "received", true), row(firstMail+9, 1, "8", "dd", "received", false)), Tab{SlotsPaid: 70, MailsPaid: 7}},
		"two slots":          {append(unlocked, row(2, 2, "5", "", "received", true)), Tab{SlotsPaid: 75, SlotsRedeemed: 5}},
	} {
		t.Run(name, func(t *testing.T) {
			var got Tab
			if err := got.addSlots(tt.rows); err != nil || got != tt.want {
				t.Errorf("%+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
}

// Each row of the table of use cases ends in its balances between two processes,
// over none, one and three others. The other scenarios of sockets wait for kills,
// stalls and floods: they run with TALLY_LONG=1.
func TestScenariosOfSockets(t *testing.T) {
	names := []string{"usecases"}
	if os.Getenv("TALLY_LONG") != "" {
		names = append(names, "gift", "refund", "pull", "cog", "drain", "three-hops", "socket-crash", "socket-flood")
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			r, err := RunScenario(t.Context(), name, Options{Cluster: processes(t)})
			if err != nil || r.Failed != 0 || r.Passed < 8 {
				t.Errorf("%v\n%s", err, printed(t, &r))
			}
		})
	}
}
