package rpc

import (
	"errors"
	"testing"

	"github.com/filecoin-project/go-state-types/big"
	"pgregory.net/rapid"
)

func TestParseFIL(t *testing.T) {
	for in, want := range map[string]string{
		"0": "0", "7": "7", "007": "7", "1 FIL": "1000000000000000000", "1.5FIL": "1500000000000000000", "0.0 FIL": "0",
		"3 nanoFIL": "3000000000", "3 nanofil": "3000000000", "1.50 attoFIL": "", "2.0 attoFIL": "2", "1.000 ": "1",
		"0.000000000000000001 FIL": "1", "0.0000000000000000001 FIL": "", "0.0000000000000000010 FIL": "1",
		"1e3": "", "-1": "", "+1": "", "": "", "FIL": "", " FIL": "", ".5 FIL": "", "1. FIL": "", "1 nano FIL": "", "1,000": "", "1 kFIL": "",
		"0x10": "", "1 FIL FIL": "", "١ FIL": "", "2 milliFIL": "2000000000000000", "1.2.3 FIL": "",
		"2000000000 FIL": "2000000000000000000000000000", "2000000000000 FIL": "",
	} {
		got, err := ParseFIL(in)
		if (err == nil) != (want != "") || err == nil && got.String() != want {
			t.Errorf("%q: %v, %v; want %s", in, got, err, want)
		}
		var e *Error
		if err != nil && (!errors.As(err, &e) || e.Code != CodeBadArgument || e.Remedy == "") {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func TestFormatFIL(t *testing.T) {
	for in, want := range map[string]string{
		"0": "0 attoFIL", "999999999": "999999999 attoFIL", "1000000000": "1 nanoFIL", "1500000000000000000": "1.5 FIL",
		"1000000000000000001": "1.000000000000000001 FIL", "-2500000000": "-2.5 nanoFIL", "": "", "x": "x",
	} {
		if got := FormatFIL(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

// What is shown is what is read, to the attoFIL.
func TestFILRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := big.Mul(big.NewIntUnsigned(rapid.Uint64().Draw(t, "n")), big.NewIntUnsigned(rapid.Uint64Range(0, 1e9).Draw(t, "m")))
		got, err := ParseFIL(FormatFIL(n.String()))
		if err != nil || !got.Equals(n) {
			t.Fatalf("%v became %v, %v", n, got, err)
		}
	})
}

func FuzzParseFIL(f *testing.F) {
	for _, s := range []string{"1.5 FIL", "3 nanoFIL", "0", "1."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseFIL(s)
		if err != nil {
			return
		}
		if again, err := ParseFIL(FormatFIL(n.String())); err != nil || !again.Equals(n) || n.Sign() < 0 {
			t.Fatalf("%q: %v, %v, %v", s, n, again, err)
		}
	})
}
