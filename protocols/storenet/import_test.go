package storenet

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
)

func ndjson(t testing.TB, messages ...*Message) string {
	t.Helper()
	var b strings.Builder
	for _, m := range messages {
		line, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(line)
		b.WriteByte('\n')
	}
	return b.String()
}

func numberedFile(t testing.TB, from, to int) string {
	t.Helper()
	var all []*Message
	for i := from; i < to; i++ {
		all = append(all, numbered(i))
	}
	return ndjson(t, all...)
}

// count pages through everything that shows.
func count(t testing.TB, s *Store) int {
	t.Helper()
	n := 0
	var cursor *Hash
	for {
		page, err := s.Page(context.Background(), PageRequest{Limit: 100, Cursor: cursor, NoData: true})
		if err != nil {
			t.Fatal(err)
		}
		n += len(page.Entries)
		if !page.More {
			if counted, err := s.Count(context.Background()); err != nil || counted != n {
				t.Errorf("Count says %d, pages show %d: %v", counted, n, err)
			}
			return n
		}
		cursor = &page.last(false).Hash
	}
}

func records(t testing.TB, disk *durable.Store) map[string]string {
	t.Helper()
	recs, err := durabletest.Records(context.Background(), disk)
	if err != nil {
		t.Fatal(err)
	}
	for key := range recs {
		if !strings.HasPrefix(key, "/store/") {
			delete(recs, key)
		}
	}
	return recs
}

func TestImport(t *testing.T) {
	s := newStore(t)
	ctx := context.Background()
	line := `{"content_topic":"/tally/1/demo/proto","payload":"` + base64.StdEncoding.EncodeToString([]byte("hello")) + `","timestamp":1700000000000000001}`
	file := "\n" + line + "\r\n\n" + line + "\n" + numberedFile(t, 0, 3) + strings.TrimSuffix(numberedFile(t, 3, 4), "\n")
	var seen []ImportProgress
	res, err := s.Import(ctx, strings.NewReader(file), ImportOptions{
		Topic:    FixedTopic("/waku/2/rs/9/9"),
		Progress: func(p ImportProgress) { seen = append(seen, p) },
	})
	if want := (ImportResult{Messages: 6, Added: 5, Duplicates: 1}); err != nil || res != want {
		t.Fatalf("%+v, %v", res, err)
	}
	if len(seen) != 2 || seen[0].Storing || !seen[1].Storing || seen[1].Lines != 8 {
		t.Fatalf("progress %+v", seen)
	}
	page, err := s.Page(ctx, PageRequest{Limit: 9, Filter: Filter{PubsubTopic: "/waku/2/rs/9/9"}})
	if err != nil || len(page.Entries) != 1 {
		t.Fatalf("%+v, %v", page, err)
	}
	if m := page.Entries[0].Message; string(m.Payload) != "hello" || m.Timestamp != 1700000000000000001 {
		t.Fatalf("%+v", m)
	}
	res, err = s.Import(ctx, strings.NewReader(file), ImportOptions{Topic: FixedTopic("/waku/2/rs/9/9")})
	if want := (ImportResult{Messages: 6, Duplicates: 6}); err != nil || res != want {
		t.Fatalf("again: %+v, %v", res, err)
	}
	// Without a topic the default one is taken, and that is another message.
	res, err = s.Import(ctx, strings.NewReader(line), ImportOptions{})
	if err != nil || res.Added != 1 {
		t.Fatalf("default topic: %+v, %v", res, err)
	}
	if res, err := s.Import(ctx, strings.NewReader("\n\n"), ImportOptions{}); err != nil || res != (ImportResult{}) {
		t.Fatalf("empty file: %+v, %v", res, err)
	}
}

func TestImportBadLine(t *testing.T) {
	good := strings.TrimSuffix(numberedFile(t, 0, 1), "\n")
	for _, tc := range []struct {
		name, line, want string
		is               error
	}{
		{"no JSON", `hello`, "invalid character", ErrLine},
		{"cut", `{"content_topic":"/a/1/b/c","payl`, "ends inside", ErrLine},
		{"array", `[]`, "cannot unmarshal array", ErrLine},
		{"two objects", good + good, "more than one", ErrLine},
		{"no topic", `{"payload":"","timestamp":1}`, "content_topic is missing", ErrLine},
		{"empty topic", `{"content_topic":"","payload":"","timestamp":1}`, "content_topic is missing", ErrMessage},
		{"no payload", `{"content_topic":"c","timestamp":1}`, "payload is missing", ErrLine},
		{"null payload", `{"content_topic":"c","payload":null,"timestamp":1}`, "payload is missing", ErrLine},
		{"no base64", `{"content_topic":"c","payload":"%%","timestamp":1}`, "illegal base64", ErrLine},
		{"no timestamp", `{"content_topic":"c","payload":""}`, "timestamp is missing", ErrLine},
		{"fraction", `{"content_topic":"c","payload":"","timestamp":1.5}`, "number 1.5", ErrLine},
		{"too late", `{"content_topic":"c","payload":"","timestamp":9223372036854775808}`, "9223372036854775808", ErrLine},
		{"unknown name", `{"content_topic":"c","payload":"","timestamp":1,"pubsubtopics":"p"}`, "unknown field", ErrLine},
		{"not UTF-8", `{"content_topic":"` + "\xff" + `","payload":"","timestamp":1}`, "not UTF-8", ErrLine},
		{"ephemeral", `{"content_topic":"c","payload":"","timestamp":1,"ephemeral":true}`, "ephemeral", ErrMessage},
		{"long line", `{"content_topic":"` + strings.Repeat("x", MaxLineBytes) + `"}`, "above 524288 bytes", ErrLine},
		{"large message", `{"content_topic":"c","timestamp":1,"payload":"` + strings.Repeat("AAAA", MaxMessageBytes/3) + `"}`, "bytes encoded", ErrMessage},
	} {
		t.Run(tc.name, func(t *testing.T) {
			disk := durabletest.NewMem()
			defer disk.Close()
			s := openStore(t, disk)
			for line := range 4 {
				lines := []string{good, good, good, good}
				lines[line] = tc.line
				_, err := s.Import(context.Background(), strings.NewReader(strings.Join(lines, "\n")), ImportOptions{})
				bad, ok := errors.AsType[*LineError](err)
				if !ok || bad.Line != line+1 || !errors.Is(err, tc.is) || !strings.Contains(err.Error(), tc.want) {
					t.Fatalf("line %d: got %v, want %q", line+1, err, tc.want)
				}
			}
			if n := len(records(t, disk)); n != 0 {
				t.Fatalf("%d records written", n)
			}
		})
	}
}

// changing gives other bytes when it is read a second time.
type changing struct {
	io.ReadSeeker
	second io.ReadSeeker
}

func (c *changing) Seek(offset int64, whence int) (int64, error) {
	if whence == io.SeekStart {
		c.ReadSeeker = c.second
	}
	return c.ReadSeeker.Seek(offset, whence)
}

func TestImportFileChanges(t *testing.T) {
	disk := durabletest.NewMem()
	defer disk.Close()
	s := openStore(t, disk)
	for _, second := range []string{"", numberedFile(t, 0, 2500), numberedFile(t, 0, 2000) + "bad", numberedFile(t, 0, 3001)} {
		file := &changing{strings.NewReader(numberedFile(t, 0, 3000)), strings.NewReader(second)}
		if _, err := s.Import(context.Background(), file, ImportOptions{}); err == nil {
			t.Fatal("no error")
		}
		for key := range records(t, disk) {
			t.Errorf("left behind: %s", key)
		}
	}
	// The next one finds everything clean.
	res, err := s.Import(context.Background(), strings.NewReader(numberedFile(t, 0, 3000)), ImportOptions{})
	if err != nil || res.Added != 3000 || count(t, s) != 3000 {
		t.Fatalf("%+v, %v", res, err)
	}
}

// TestImportUnseenUntilTheEnd looks at the store from inside an import: nothing
// of the file shows, cursors into it are unknown, an Add of one of its messages
// shows at once, and a second import is refused.
func TestImportUnseenUntilTheEnd(t *testing.T) {
	for _, failing := range []bool{false, true} {
		t.Run(fmt.Sprintf("failing=%v", failing), func(t *testing.T) {
			s := newStore(t)
			fill(t, s, 10)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			const n = 25_000
			staged := numbered(15)
			looked := 0
			res, err := s.Import(ctx, strings.NewReader(numberedFile(t, 0, n)), ImportOptions{Progress: func(p ImportProgress) {
				if !p.Storing || p.Lines != 10_000 {
					return
				}
				looked++
				if got := count(t, s); got != 10 {
					t.Errorf("%d messages show", got)
				}
				h := staged.Hash()
				if _, err := s.Page(context.Background(), PageRequest{Limit: 1, Cursor: &h}); !errors.Is(err, ErrCursor) {
					t.Errorf("cursor into the import: %v", err)
				}
				page, err := s.Page(context.Background(), PageRequest{Limit: 1, Filter: Filter{Hashes: []Hash{h}}})
				if err != nil || len(page.Entries) != 0 {
					t.Errorf("look-up into the import: %v, %v", page, err)
				}
				if added, err := s.Add(context.Background(), staged); err != nil || added != 1 {
					t.Errorf("added %d, %v", added, err)
				}
				if got := count(t, s); got != 11 {
					t.Errorf("%d messages show after Add", got)
				}
				if _, err := s.Import(context.Background(), strings.NewReader(""), ImportOptions{}); !errors.Is(err, ErrImporting) {
					t.Errorf("second import: %v", err)
				}
				if failing {
					cancel()
				}
			}})
			if looked != 1 {
				t.Fatal("did not look")
			}
			want := n
			if failing {
				want = 11
				if !errors.Is(err, context.Canceled) {
					t.Fatal(err)
				}
			} else if err != nil || res.Added+res.Duplicates != n {
				t.Fatalf("%+v, %v", res, err)
			}
			if got := count(t, s); got != want {
				t.Fatalf("%d messages, want %d", got, want)
			}
		})
	}
}

// TestImportCrash stops an import before and after each of its commits, and at
// each opens what is left: all of the file, or nothing of it and no record of it
// either, and what was there before is there. Then it imports again.
func TestImportCrash(t *testing.T) {
	const before, n = 5, 2500
	file := numberedFile(t, before, before+n)
	run := func(c *durabletest.Crash, arm func(first int)) error {
		s, err := OpenStore(context.Background(), c)
		if err != nil {
			return err
		}
		fill(t, s, before)
		if arm != nil {
			arm(c.Commits())
		}
		_, err = s.Import(context.Background(), strings.NewReader(file), ImportOptions{})
		return err
	}
	whole := durabletest.NewMemCrash()
	first := 0
	if err := run(whole, func(n int) { first = n }); err != nil {
		t.Fatal(err)
	}
	commits := whole.Commits() - first
	clean := len(records(t, whole.Store))
	_ = whole.Close()
	if commits < 5 {
		t.Fatalf("only %d commits", commits)
	}
	for at := 1; at <= commits; at++ {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("commit %d after=%v", at, after), func(t *testing.T) {
				c := durabletest.NewMemCrash()
				err := run(c, func(first int) {
					if after {
						c.CrashAfter(first + at)
					} else {
						c.CrashBefore(first + at)
					}
				})
				if !errors.Is(err, durable.ErrFailed) {
					t.Fatal(err)
				}
				if last := at == commits; errors.Is(err, durable.ErrUncertain) != last {
					t.Fatalf("last commit %v: %v", last, err)
				}
				left := c.Clone()
				_ = c.Close()
				defer left.Close()
				s := openStore(t, left)
				want := before
				if at == commits && after {
					want += n
				}
				if got := count(t, s); got != want {
					t.Fatalf("%d messages, want %d", got, want)
				}
				if recs := records(t, left.Store); want == before && len(recs) != 4*before {
					t.Fatalf("%d records left, want %d", len(recs), 4*before)
				}
				if _, err := s.Import(context.Background(), strings.NewReader(file), ImportOptions{}); err != nil {
					t.Fatal(err)
				}
				if got := count(t, s); got != before+n {
					t.Fatalf("after the second import %d messages", got)
				}
				if got := len(records(t, left.Store)); got != clean {
					t.Fatalf("%d records, want %d", got, clean)
				}
			})
		}
	}
}

// failing is a reader that breaks off.
type failing struct{ io.ReadSeeker }

func (f failing) Read(b []byte) (int, error) {
	n, err := f.ReadSeeker.Read(b)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func TestImportReadError(t *testing.T) {
	s := newStore(t)
	_, err := s.Import(context.Background(), failing{bytes.NewReader([]byte(numberedFile(t, 0, 2)))}, ImportOptions{})
	if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "line 3") {
		t.Fatal(err)
	}
}
