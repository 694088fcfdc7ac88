package repo

import (
	"errors"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/tallystick/tally/swap"
)

func TestTemplateIsTheDefaults(t *testing.T) {
	asIs, err := ParseConfig("config.toml", Template())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(asIs, DefaultConfig()) {
		t.Errorf("template gives %+v", asIs)
	}
	uncommented := regexp.MustCompile(`(?m)^#([a-z_]+ = )`).ReplaceAll(Template(), []byte("$1"))
	on, err := ParseConfig("config.toml", uncommented)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(on, DefaultConfig()) {
		t.Errorf("uncommented template gives %+v", on)
	}
	for _, s := range settings {
		if s.key == "" || s.doc == "" {
			t.Errorf("setting %+v has no key or no doc", s)
		}
	}
	again, err := ParseConfig("config.toml", DefaultConfig().Encode())
	if err != nil || !reflect.DeepEqual(again, DefaultConfig()) {
		t.Errorf("Encode: %v, %+v", err, again)
	}
}

// The ledger has defaults of its own; two lists must not drift apart.
func TestDefaultsAreThoseOfSwap(t *testing.T) {
	c, p := DefaultConfig(), swap.DefaultPolicy()
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, pair := range []struct {
		name string
		ours uint64
		core uint64
	}{
		{"payment_threshold", c.PaymentThreshold, uint64(p.PaymentThreshold)},
		{"disconnect_threshold", c.DisconnectThreshold, uint64(p.DisconnectThreshold)},
		{"early_payment_percent", c.EarlyPaymentPercent, uint64(p.EarlyPaymentPercent)},
		{"min_peer_threshold", c.MinPeerThreshold, uint64(p.MinPeerThreshold)},
		{"max_peer_threshold", c.MaxPeerThreshold, uint64(p.MaxPeerThreshold)},
		{"max_debt", c.MaxDebt, uint64(p.MaxDebt)},
		{"max_exposure", c.MaxExposure, uint64(p.MaxExposure)},
		{"max_exposure_total", c.MaxExposureTotal, uint64(p.MaxExposureTotal)},
		{"strangers_exposure", c.StrangersExposure, uint64(p.StrangersExposure)},
	} {
		if pair.ours != pair.core {
			t.Errorf("%s: %d here, %d in swap", pair.name, pair.ours, pair.core)
		}
	}
	if c.ModeFor(false) != p.Mode.String() || c.ModeFor(true) != swap.ModeHard.String() {
		t.Errorf("mode: %s and %s here, %s in swap", c.ModeFor(false), c.ModeFor(true), p.Mode)
	}
}

func TestDerivedDefaults(t *testing.T) {
	c, err := ParseConfig("f", []byte("payment_threshold = 1000\nmax_debt = 5000\n"))
	if err != nil {
		t.Fatal(err)
	}
	if c.DisconnectThreshold != 1250 || c.MaxExposure != 5000 || c.MaxExposureTotal != 1_250_000 || c.StrangersExposure != 100_000 {
		t.Errorf("derived %+v", c)
	}
	if c.MaxDebt != 5000 {
		t.Errorf("a setting was overruled by a derived default: %d", c.MaxDebt)
	}
}

func TestBadConfigNamesPlaceAndRemedy(t *testing.T) {
	for _, tt := range []struct{ name, text, place, cause, remedy string }{
		{"unknown key", "mode = \"mock\"\npayment_treshold = 5\n", "f:2", "payment_treshold: unknown key", "config show --default"},
		{"near miss", "paymentthreshold = 5\n", "f:1", "unknown key", "did you mean payment_threshold?"},
		{"unknown table", "\n\n[bridge]\nx = 1\n", "f:3", "bridge: unknown key", ""},
		{"wrong type", "# hi\npayment_threshold = \"5\"\n", "f:2", "payment_threshold: wrong type", "a whole number"},
		{"text wanted", "mode = 5\n", "f:1", "mode: wrong type", "text in quotes"},
		{"list wanted", "listen = \"/ip4/127.0.0.1/tcp/0\"\n", "f:1", "listen: wrong type", "a list"},
		{"negative", "max_debt = -5\n", "f:1", "max_debt: wrong type or out of range", "at least 0"},
		{"zero", "payment_threshold = 0\n", "f:1", "payment_threshold: 0 is out of bounds", "use 1 to"},
		{"thresholds", "payment_threshold = 100\ndisconnect_threshold = 100\n", "f:2", "not above payment_threshold 100", "at least 101"},
		{"bounds crossed", "min_peer_threshold = 20\nmax_peer_threshold = 10\nmax_debt = 30\n", "f:1", "above max_peer_threshold", ""},
		{"mode", "mode = \"Hard\"\n", "f:1", `mode: "Hard" is not a mode`, "soft, mock or hard"},
		{"percent", "early_payment_percent = 101\n", "f:1", "out of bounds", "1 to 100"},
		{"multiaddr", "listen = [\n \"/ip4/127.0.0.1/tcp/0\",\n \"localhost:80\",\n]\n", "f:1", `"localhost:80" is not a multiaddr`, "/ip4/127.0.0.1"},
		{"rpc not loopback", "rpc = \"0.0.0.0:5001\"\n", "f:1", "not loopback", "127.0.0.1"},
		{"rpc without port", "rpc = \"127.0.0.1\"\n", "f:1", "want unix or HOST:PORT", ""},
		{"http", "http = \"9100\"\n", "f:1", "not HOST:PORT", ""},
		{"chain", "chain = \"lotus\"\n", "f:1", "not the address of a JSON-RPC server", "http://"},
		{"two tokens", "chain = \"abc:/ip4/127.0.0.1/tcp/1234/http\"\nchain_token_file = \"t\"\n", "f:2", "chain has a token in it already", "leave out one"},
		{"wallet", "wallet = \"ledger\"\n", "f:1", `"ledger" is not a wallet`, "local or node"},
		{"level", "log_level = \"verbose\"\n", "f:1", "not a level", ""},
		{"shards", "shards = [1, 1]\n", "f:1", "there twice", ""},
		{"syntax", "mode = \"mock\"\nmax_debt == 5\n", "f:2", "", "correct the line"},
		{"twice", "mode = \"mock\"\nmode = \"soft\"\n", "f:2", "mode", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := ParseConfig("f", []byte(tt.text))
			if !errors.Is(err, ErrConfig) {
				t.Fatalf("got %v", err)
			}
			if !reflect.DeepEqual(c, Config{}) {
				t.Error("returned settings with an error")
			}
			var e *Error
			errors.As(err, &e)
			if !strings.HasPrefix(e.Error(), tt.place+": ") || !strings.Contains(e.Error(), tt.cause) {
				t.Errorf("cause %q", e)
			}
			if e.Remedy() == "" || !strings.Contains(e.Remedy(), tt.remedy) {
				t.Errorf("remedy %q", e.Remedy())
			}
		})
	}
}

func TestPasswordOfTheChainIsNotShown(t *testing.T) {
	c, err := ParseConfig("f", []byte("chain = \"http://me:hunter2@127.0.0.1:1234/rpc/v1\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	if shown := string(c.Encode()); strings.Contains(shown, "hunter2") || !strings.Contains(shown, "127.0.0.1:1234") {
		t.Errorf("shown: %s", shown)
	}
	if strings.Contains(c.Show()["chain"].(string), "hunter2") {
		t.Error("Show has the password")
	}
	if c.Chain != "http://me:hunter2@127.0.0.1:1234/rpc/v1" {
		t.Error("showing changed the setting")
	}
	_, err = ParseConfig("f", []byte("chain = \"me:hunter2@127.0.0.1\"\n"))
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("error %v", err)
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add(Template())
	f.Add([]byte("listen = [\"/ip4/127.0.0.1/tcp/1\"]\n[x.y]\nz=1"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseConfig("f", data)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Remedy() == "" {
				t.Fatalf("error without a remedy: %v", err)
			}
			return
		}
		again, err := ParseConfig("f", c.Encode())
		if err != nil {
			t.Fatalf("valid settings do not read back: %v\n%s", err, c.Encode())
		}
		if c.Chain == again.Chain && !reflect.DeepEqual(normal(c), normal(again)) {
			t.Fatalf("%+v became %+v", c, again)
		}
	})
}

// normal makes empty lists equal.
func normal(c Config) Config {
	if len(c.Listen) == 0 {
		c.Listen = nil
	}
	if len(c.Shards) == 0 {
		c.Shards = nil
	}
	return c
}
