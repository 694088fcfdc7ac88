package hold

import (
	"crypto/subtle"
	"encoding/base32"
	"errors"
	"strings"

	"golang.org/x/crypto/blake2b"
)

// Texts that people copy: promises, lane statements, mails.
//
//	prefix ‖ base32hex, lower case, no padding (body ‖ check 4)

var (
	textEncoding = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)
	errDamaged   = errors.New("damaged, or cut off")
)

const textCheck = 4

func writeText(prefix string, body []byte) string {
	return prefix + textEncoding.EncodeToString(append(body[:len(body):len(body)], checkOf(prefix, body)...))
}

func checkOf(prefix string, b []byte) []byte {
	sum := blake2b.Sum256(append([]byte(prefix), b...))
	return sum[:textCheck]
}

// readText reads exactly what writeText writes. The caller has checked the length.
func readText(prefix, text string) ([]byte, error) {
	rest, ok := strings.CutPrefix(text, prefix)
	if !ok {
		return nil, errors.New("want " + prefix + " in front, in lower case")
	}
	raw, err := textEncoding.DecodeString(rest)
	if err != nil || len(raw) < textCheck {
		return nil, errDamaged
	}
	body, check := raw[:len(raw)-textCheck], raw[len(raw)-textCheck:]
	if subtle.ConstantTimeCompare(checkOf(prefix, body), check) != 1 {
		return nil, errDamaged
	}
	if writeText(prefix, body) != text { // the decoder skips line ends and spare bits
		return nil, errors.New("not canonical")
	}
	return body, nil
}
