package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/rpc"
)

// maxLine bounds one line of an import file: the largest message in base64 with
// its topics, with room for escapes.
const maxLine = 1 << 20

func (a *app) storeCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "store",
		Short: "Fill our own message store, and query that of a peer",
		Long: `The message store is the metered service: who queries a peer's store owes it one
unit for each message.`,
		Example: "  tally store import messages.ndjson\n  tally store query 12D3KooW… --topic /app/1/chat/proto",
		RunE:    group,
	}
	cmd.AddCommand(a.storeImportCmd(), a.storeQueryCmd())
	return cmd
}

func (a *app) storeImportCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "import FILE",
		Short: "Add messages from a file to our own store",
		Long: `Adds the messages of a file to the store of the running peer: all, or none. The
file has one JSON object a line:

  {"content_topic":"/app/1/chat/proto","payload":"aGk=","timestamp":1700000000000000000}

payload is base64, timestamp nanoseconds of Unix time; pubsub_topic may be added.
A bad line is named by its number, and nothing of the file is imported. FILE may
be - for standard input.`,
		Example: "  tally store import messages.ndjson\n  tally store query PEER -o ndjson | tally store import --repo /other/repo -",
		Args:    nArgs(1, "FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			messages, err := readMessages(args[0])
			if err != nil {
				return err
			}
			show, end := a.progress()
			result, err := ask(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.ImportResult, error) {
				return r.Import(ctx, messages, func(n int) { show("sent", n, len(messages)) })
			})
			end()
			if err != nil {
				return err
			}
			return a.out.one(result, func() *table {
				return newCard().add("imported", result.Imported).add("duplicates", result.Duplicates).add("stored", result.Stored)
			})
		},
	}
}

// readMessages reads a whole import file, or names the line that is bad.
func readMessages(path string) ([]rpc.Message, error) {
	in := io.Reader(os.Stdin)
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, usagef("name a file with one JSON message a line", "%w", err)
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	return parseMessages(path, in)
}

func parseMessages(name string, in io.Reader) ([]rpc.Message, error) {
	const remedy = "correct the line; nothing was imported"
	lines := bufio.NewScanner(in)
	lines.Buffer(make([]byte, 64<<10), maxLine)
	var messages []rpc.Message
	number := 0
	for lines.Scan() {
		number++
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		m, err := rpc.ParseMessage(line)
		if err != nil {
			return nil, failf(remedy, "%s:%d: %w", name, number, err)
		}
		messages = append(messages, m)
	}
	switch err := lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return nil, failf(remedy, "%s:%d: the line is over %d bytes", name, number+1, maxLine)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", name, err)
	case len(messages) == 0:
		return nil, failf("name a file with one JSON message a line", "%s has no messages", name)
	}
	return messages, nil
}

type queryFlags struct {
	topics      []string
	pubsubTopic string
	start, end  string
	pageSize    int
	backward    bool
}

func (a *app) storeQueryCmd() *cobra.Command {
	var flags queryFlags
	cmd := &cobra.Command{
		Use:   "query PEER",
		Short: "Ask a peer's store for messages, page by page",
		Long: `Asks a peer's message store and prints the messages as they come, as the same
objects that import takes: with -o json one array, with -o ndjson a line each.
Each message costs a unit; when the tab reaches the threshold it is settled and
the query goes on. It exits with 1 where it could not finish; what was printed
until then is good.

PEER is a peer id, or an address to connect to first. --start and --end take
nanoseconds of Unix time or RFC 3339, both inclusive.`,
		Example: `  tally store query 12D3KooW… --topic /app/1/chat/proto
  tally store query /ip4/127.0.0.1/tcp/4001/p2p/12D3KooW… --start 2026-01-01T00:00:00Z -o ndjson`,
		Args: nArgs(1, "PEER"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.query(cmd.Context(), args[0], flags) },
	}
	f := cmd.Flags()
	f.StringArrayVar(&flags.topics, "topic", nil, "content topic to match; may be repeated (default all)")
	f.StringVar(&flags.pubsubTopic, "pubsub-topic", "", "pubsub topic to match (default that of the settings)")
	f.StringVar(&flags.start, "start", "", "only messages from this time on")
	f.StringVar(&flags.end, "end", "", "only messages up to this time")
	f.IntVar(&flags.pageSize, "page-size", 20, "most messages of a page, 1 to "+strconv.Itoa(rpc.MaxPageSize))
	f.BoolVar(&flags.backward, "backward", false, "newest first")
	return cmd
}

func (f queryFlags) query() (rpc.StoreQuery, error) {
	q := rpc.StoreQuery{ContentTopics: f.topics, PubsubTopic: f.pubsubTopic, PageSize: f.pageSize, Backward: f.backward}
	for _, bound := range []struct {
		name, text string
		to         **int64
	}{{"--start", f.start, &q.Start}, {"--end", f.end, &q.End}} {
		if bound.text == "" {
			continue
		}
		ns, err := parseTime(bound.text)
		if err != nil {
			return q, usagef("use nanoseconds, or RFC 3339 such as 2026-01-02T15:04:05Z", "%s: %w", bound.name, err)
		}
		*bound.to = &ns
	}
	if err := q.Validate(); err != nil {
		return q, usagef("tally store query --help", "%w", err)
	}
	return q, nil
}

func parseTime(s string) (int64, error) {
	if ns, err := strconv.ParseInt(s, 10, 64); err == nil {
		return ns, nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil || t.Year() < 1678 || t.Year() > 2261 { // what int64 nanoseconds can hold
		return 0, fmt.Errorf("%q is not a time", s)
	}
	return t.UnixNano(), nil
}

func (a *app) query(ctx context.Context, target string, flags queryFlags) error {
	info, err := peerArg(target)
	if err != nil {
		return err
	}
	q, err := flags.query()
	if err != nil {
		return err
	}
	r, err := a.remote()
	if err != nil {
		return err
	}
	defer r.stop()
	if len(info.Addrs) > 0 {
		if _, err := r.PeerConnect(ctx, target); err != nil {
			return r.explain(err)
		}
	}
	show, end := a.progress()
	print := messagePrinter{out: a.out}
	units, pages := uint64(0), 0
	var failed error
	for page, err := range r.Query(ctx, info.ID.String(), q) {
		if err != nil {
			failed = err
			break
		}
		if err := print.page(page.Messages); err != nil {
			return err
		}
		pages++
		units += page.Cost
		show(fmt.Sprintf("%s units, %d pages, messages", cell(units), pages), print.count, 0)
	}
	end()
	if err := print.close(failed == nil); err != nil {
		return err
	}
	switch {
	case failed == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	default:
		return r.explain(failed)
	}
}

// messagePrinter prints messages as they come.
type messagePrinter struct {
	out   output
	count int
}

func (p *messagePrinter) page(messages []rpc.Message) error {
	t := &table{right: []bool{false, false, true, false}}
	for _, m := range messages {
		var err error
		switch p.out.format {
		case formatJSON:
			lead := ","
			if p.count == 0 {
				lead = "["
			}
			if _, err = io.WriteString(p.out.w, lead+"\n"); err == nil {
				err = p.out.json(m, "")
			}
		case formatNDJSON:
			err = p.out.json(m, "")
		default:
			t.add(time.Unix(0, m.Timestamp).UTC().Format("2006-01-02T15:04:05.000000000Z"), m.ContentTopic, len(m.Payload), preview(m.Payload))
		}
		if err != nil {
			return err
		}
		p.count++
	}
	return t.write(p.out.w)
}

// close ends the array, also of a query that could not finish: what came is
// good, and a reader wants whole JSON.
func (p *messagePrinter) close(finished bool) error {
	var text string
	switch {
	case p.out.format == formatJSON && p.count == 0:
		text = "[]\n"
	case p.out.format == formatJSON:
		text = "]\n"
	case p.out.format == formatTable && p.count == 0 && finished:
		text = "no messages match\n"
	}
	_, err := io.WriteString(p.out.w, text)
	return err
}

// preview shows the beginning of a payload.
func preview(payload []byte) string {
	const most = 48
	if len(payload) > most {
		return string(payload[:most]) + "…"
	}
	return string(payload)
}
