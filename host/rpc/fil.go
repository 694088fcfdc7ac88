package rpc

import (
	"fmt"
	"strings"

	"github.com/filecoin-project/go-state-types/big"
)

// maxAttoDigits bounds an amount: all FIL there will ever be, 2·10^9, have 28
// digits in attoFIL.
const maxAttoDigits = 30

// filUnits are the words for amounts of FIL and how many digits of attoFIL they
// stand for.
var filUnits = []struct {
	name   string
	digits int
}{
	{"FIL", 18}, {"milliFIL", 15}, {"microFIL", 12}, {"nanoFIL", 9}, {"picoFIL", 6}, {"femtoFIL", 3}, {"attoFIL", 0},
}

// ParseFIL reads an amount as a person writes it and returns it in attoFIL: a
// whole number is of attoFIL, and "1.5 FIL" or "3 nanoFIL" are exact. What does
// not come out in whole attoFIL is refused, never rounded.
func ParseFIL(s string) (big.Int, error) {
	number, digits := strings.TrimSpace(s), 0
	for _, u := range filUnits {
		if len(number) > len(u.name) && strings.EqualFold(number[len(number)-len(u.name):], u.name) &&
			isDigit(strings.TrimRight(number[:len(number)-len(u.name)], " ")) {
			number, digits = strings.TrimRight(number[:len(number)-len(u.name)], " "), u.digits
			break
		}
	}
	whole, frac, dot := strings.Cut(number, ".")
	text := whole + frac
	dangling := dot && frac == ""
	frac = strings.TrimRight(frac, "0")
	switch {
	case whole == "" || dangling || strings.Trim(text, "0123456789") != "":
		return big.Int{}, NewError(CodeBadArgument, "%q is not an amount", clip(s)).
			WithRemedy("use a whole number of attoFIL, or a number with a unit such as \"1.5 FIL\" or \"3 nanoFIL\"")
	case len(frac) > digits:
		return big.Int{}, NewError(CodeBadArgument, "%q does not come out in whole attoFIL", clip(s)).
			WithRemedy("1 FIL is 10^18 attoFIL, 1 nanoFIL is 10^9")
	}
	text = strings.TrimLeft(whole+frac+strings.Repeat("0", digits-len(frac)), "0")
	if text == "" {
		return big.Zero(), nil
	}
	if len(text) > maxAttoDigits {
		return big.Int{}, NewError(CodeBadArgument, "%q is more than all FIL", clip(s)).WithRemedy("check the unit: a number without one is of attoFIL")
	}
	return big.FromString(text)
}

// isDigit reports whether s ends in a digit: "5 nanoFIL" is not "5 nano" of FIL.
func isDigit(s string) bool {
	return s != "" && s[len(s)-1] >= '0' && s[len(s)-1] <= '9'
}

// FormatFIL writes an amount of attoFIL for people, exactly, in the unit of FIL,
// nanoFIL and attoFIL that has the fewest zeros before it. ParseFIL reads it.
func FormatFIL(atto string) string {
	sign := ""
	if strings.HasPrefix(atto, "-") {
		sign, atto = "-", atto[1:]
	}
	if atto == "" || strings.Trim(atto, "0123456789") != "" {
		return sign + atto
	}
	for _, u := range filUnits {
		if u.name != "FIL" && u.name != "nanoFIL" && u.name != "attoFIL" || len(atto) <= u.digits && u.digits > 0 {
			continue
		}
		whole, frac := atto[:len(atto)-u.digits], strings.TrimRight(atto[len(atto)-u.digits:], "0")
		if frac != "" {
			frac = "." + frac
		}
		return fmt.Sprintf("%s%s%s %s", sign, whole, frac, u.name)
	}
	return sign + atto
}

// parseAtto reads an amount of the RPC: decimal digits, in attoFIL.
func parseAtto(s string) (big.Int, error) {
	if s == "" || len(s) > maxAttoDigits || strings.Trim(s, "0123456789") != "" {
		return big.Int{}, NewError(CodeBadArgument, "amount %q: want attoFIL in decimal digits, at most %d", clip(s), maxAttoDigits)
	}
	return big.FromString(s)
}
