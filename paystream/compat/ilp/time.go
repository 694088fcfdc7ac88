package ilp

import (
	"errors"
	"time"
)

// timeSize is the length of a time: YYYYMMDDHHMMSSfff.
const timeSize = 17

// ErrTime: not 17 digits of a time that exists, or outside of the years 0 to 9999.
var ErrTime = errors.New("ilp: not a time of 17 digits, YYYYMMDDHHMMSSfff in UTC")

// appendTime appends t to the millisecond, rounded down.
func appendTime(dst []byte, t time.Time) ([]byte, error) {
	t = t.UTC()
	year, month, day := t.Date()
	hour, minute, sec := t.Clock()
	if year < 0 || year > 9999 {
		return nil, ErrTime
	}
	dst = appendDigits(dst, year, 4)
	for _, v := range [...]int{int(month), day, hour, minute, sec} {
		dst = appendDigits(dst, v, 2)
	}
	return appendDigits(dst, t.Nanosecond()/int(time.Millisecond), 3), nil
}

// decodeTime reads what appendTime writes. A time that does not exist, such as
// the 31st of February, is refused, not carried over.
func decodeTime(b []byte) (time.Time, error) {
	if len(b) != timeSize {
		return time.Time{}, ErrTime
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return time.Time{}, ErrTime
		}
	}
	t := time.Date(digits(b[:4]), time.Month(digits(b[4:6])), digits(b[6:8]),
		digits(b[8:10]), digits(b[10:12]), digits(b[12:14]), digits(b[14:])*int(time.Millisecond), time.UTC)
	var again [timeSize]byte
	if back, err := appendTime(again[:0], t); err != nil || string(back) != string(b) {
		return time.Time{}, ErrTime
	}
	return t, nil
}

func appendDigits(dst []byte, v, n int) []byte {
	at := len(dst)
	for range n {
		dst = append(dst, '0')
	}
	for i := at + n - 1; i >= at; i-- {
		dst[i] = '0' + byte(v%10)
		v /= 10
	}
	return dst
}

func digits(b []byte) (v int) {
	for _, c := range b {
		v = v*10 + int(c-'0')
	}
	return v
}
