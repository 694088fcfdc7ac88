package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/tallystick/tally/host/rpc"
)

// Output formats.
const (
	formatTable  = "table"
	formatJSON   = "json"
	formatNDJSON = "ndjson"
)

var formats = []string{formatTable, formatJSON, formatNDJSON}

// output prints results in the format that was asked for.
type output struct {
	w      io.Writer
	format string
	// asked is set where -o was given.
	asked bool
}

func newOutput(d Deps, flag string) (output, error) {
	o := output{w: d.Stdout, format: flag, asked: flag != ""}
	if flag == "" {
		o.format = formatJSON
		if d.OutTerminal {
			o.format = formatTable
		}
	}
	if !slices.Contains(formats, o.format) {
		return output{}, usagef("-o table, -o json or -o ndjson", "unknown output format %q", flag)
	}
	return o, nil
}

func (o output) json(v any, indent string) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := o.w.Write(b.Bytes())
	return err
}

// one prints a single result.
func (o output) one(v any, table func() *table) error {
	switch o.format {
	case formatJSON:
		return o.json(v, "  ")
	case formatNDJSON:
		return o.json(v, "")
	default:
		return table().write(o.w)
	}
}

// rows prints a list: one array, a line each, or a table.
func rows[T any](o output, list []T, table func() *table) error {
	if o.format != formatNDJSON {
		return o.one(list, table)
	}
	for _, v := range list {
		if err := o.json(v, ""); err != nil {
			return err
		}
	}
	return nil
}

// table is text in aligned columns. Figures stand to the right.
type table struct {
	head  []string
	right []bool
	rows  [][]string
	// empty is printed where there is no row.
	empty string
}

// newTable makes a table; a column whose name begins with > is of figures.
func newTable(columns ...string) *table {
	t := &table{}
	for _, c := range columns {
		name, right := strings.CutPrefix(c, ">")
		t.head = append(t.head, name)
		t.right = append(t.right, right)
	}
	return t
}

// newCard makes a table of one result: a line for each field.
func newCard() *table { return &table{right: []bool{false, false}} }

func (t *table) add(cells ...any) *table {
	row := make([]string, len(cells))
	for i, c := range cells {
		row[i] = cell(c)
	}
	t.rows = append(t.rows, row)
	return t
}

func (t *table) write(w io.Writer) error {
	lines := t.rows
	if t.head != nil {
		if len(t.rows) == 0 && t.empty != "" {
			_, err := fmt.Fprintln(w, t.empty)
			return err
		}
		lines = append([][]string{t.head}, t.rows...)
	}
	var width []int
	for _, line := range lines {
		for i, c := range line {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	var b strings.Builder
	for _, line := range lines {
		var text strings.Builder
		for i, c := range line {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(c))
			if i > 0 {
				text.WriteString("  ")
			}
			if i < len(t.right) && t.right[i] {
				text.WriteString(pad + c)
			} else {
				text.WriteString(c + pad)
			}
		}
		b.WriteString(strings.TrimRight(text.String(), " ") + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// cell returns a value as a person reads it.
func cell(v any) string {
	switch v := v.(type) {
	case string:
		if v == "" {
			return "-"
		}
		return printable(v)
	case bool:
		if v {
			return "yes"
		}
		return "no"
	case int:
		return human(int64(v))
	case int64:
		return human(v)
	case uint64:
		return grouped(strconv.FormatUint(v, 10))
	case float64:
		return humanFloat(v)
	case time.Time:
		if v.IsZero() {
			return "-"
		}
		return v.Local().Format(time.DateTime)
	case *time.Time:
		if v == nil {
			return "-"
		}
		return cell(*v)
	case *rpc.LastCheque:
		if v == nil {
			return "-"
		}
		return fmt.Sprintf("#%d %s %s", v.Serial, grouped(strconv.FormatUint(v.Cumulative, 10)), printable(v.State))
	case []string:
		return printable(strings.Join(v, " "))
	default:
		return printable(fmt.Sprint(v))
	}
}

// human groups the digits of an amount: 1,234,567.
func human(n int64) string {
	if n < 0 {
		return "-" + grouped(strings.TrimPrefix(strconv.FormatInt(n, 10), "-"))
	}
	return grouped(strconv.FormatInt(n, 10))
}

func grouped(digits string) string {
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

func humanFloat(f float64) string {
	whole, frac, _ := strings.Cut(strconv.FormatFloat(f, 'f', 3, 64), ".")
	sign, digits := "", whole
	if strings.HasPrefix(whole, "-") {
		sign, digits = "-", whole[1:]
	}
	if frac = strings.TrimRight(frac, "0"); frac != "" {
		frac = "." + frac
	}
	return sign + grouped(digits) + frac
}

// printable takes out what could move a terminal's cursor or hide text: names
// and reasons come from peers.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// progress returns a Progress that rewrites one line of the terminal, and what
// ends the line. Elsewhere it prints nothing.
func (a *app) progress() (Progress, func()) {
	if !a.deps.ErrTerminal {
		return func(string, int, int) {}, func() {}
	}
	var last time.Time
	shown := false
	show := func(stage string, done, total int) {
		if now := time.Now(); now.Sub(last) > 50*time.Millisecond || done == total {
			last, shown = now, true
			line := printable(stage) + " " + human(int64(done))
			if total > 0 {
				line += " of " + human(int64(total))
			}
			_, _ = fmt.Fprintf(a.deps.Stderr, "\r\033[K%s", line)
		}
	}
	return show, func() {
		if shown {
			_, _ = fmt.Fprint(a.deps.Stderr, "\r\033[K")
		}
	}
}
