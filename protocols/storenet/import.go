package storenet

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/tallystick/tally/internal/durable"
)

const (
	// MaxLineBytes bounds a line of an import file: a message of the largest
	// size in base64, two topics, and names.
	MaxLineBytes = 512 << 10

	// importBatch is how many messages, and importBatchBytes how many bytes of
	// them, go to disk in one commit: enough that a sync is no cost, and little
	// memory.
	importBatch      = 1000
	importBatchBytes = 1 << 20
)

// LineError names the line of an import file that is bad, from 1, and why.
type LineError struct {
	Line int
	Err  error
}

func (e *LineError) Error() string { return fmt.Sprintf("line %d: %v", e.Line, e.Err) }

// Unwrap returns the cause.
func (e *LineError) Unwrap() error { return e.Err }

// ErrLine: a line that is no message. ErrMessage is the cause where it is one
// that the store refuses.
var ErrLine = errors.New("storenet: bad line")

// ImportOptions changes the defaults of an import.
type ImportOptions struct {
	// Topic gives messages without pubsub_topic theirs. Default:
	// FixedTopic(DefaultPubsubTopic).
	Topic Topic

	// Progress is called now and then, and at the end of each pass, on the
	// goroutine of Import. It must not call the store.
	Progress func(ImportProgress)
}

// ImportProgress is how far an import is.
type ImportProgress struct {
	Storing bool  // false: the file is being checked, nothing is written yet
	Lines   int   // lines read in this pass
	Bytes   int64 // bytes of them
}

// ImportResult is what an import did.
type ImportResult struct {
	Messages   int // in the file
	Added      int // new to the store
	Duplicates int // in the store before, or twice in the file
}

// Import reads newline-delimited JSON, a Message a line (empty lines are
// skipped), and stores it: all of it, or nothing. The file is read twice. The
// first pass checks every line and writes nothing; a bad line ends it with a
// LineError. The second stores.
//
// All or nothing holds across a crash too. The second pass writes records of a
// new generation, which no page shows, in many commits; one last commit makes
// the generation visible. An import that ends before that is removed: by Import
// itself, or, after a crash, by the next OpenStore, which finds the staging
// record that was written before the first message. A generation is used again
// only when nothing of it is left, so nothing of a failed import can ever show.
// A message that Add stores meanwhile counts at once and for good.
//
// One import at a time: ErrImporting. Memory is bounded by a batch, not by the
// file. An error means that nothing of the file is stored, unless it wraps
// durable.ErrUncertain: the disk failed in the last commit, which may have
// landed.
func (s *Store) Import(ctx context.Context, file io.ReadSeeker, opt ImportOptions) (ImportResult, error) {
	if opt.Topic == nil {
		opt.Topic = FixedTopic(DefaultPubsubTopic)
	}
	select {
	case s.importing <- struct{}{}:
		defer func() { <-s.importing }()
	default:
		return ImportResult{}, ErrImporting
	}
	start, err := file.Seek(0, io.SeekCurrent)
	if err != nil {
		return ImportResult{}, fmt.Errorf("import: %w", err)
	}
	var res ImportResult
	err = eachLine(ctx, file, opt, false, func(*Message, int) error {
		res.Messages++
		return nil
	})
	if err != nil {
		return ImportResult{}, fmt.Errorf("import, nothing stored: %w", err)
	}
	if res.Messages == 0 {
		return res, nil
	}
	if _, err := file.Seek(start, io.SeekStart); err != nil {
		return ImportResult{}, fmt.Errorf("import: %w", err)
	}
	added, err := s.stage(ctx, file, opt, res.Messages)
	if errors.Is(err, durable.ErrUncertain) {
		return ImportResult{}, fmt.Errorf("import, the next start tells whether it is stored: %w", err)
	}
	if err != nil {
		return ImportResult{}, fmt.Errorf("import, nothing stored: %w", err)
	}
	res.Added, res.Duplicates = added, res.Messages-added
	return res, nil
}

// stage is the second pass. The caller holds importing.
func (s *Store) stage(ctx context.Context, file io.Reader, opt ImportOptions, want int) (added int, err error) {
	if s.dirty {
		if err := s.sweep(ctx); err != nil {
			return 0, err
		}
	}
	// A commit that ctx cuts off may land later, behind the sweep that should
	// have removed it: ctx is looked at between the commits.
	detached := context.WithoutCancel(ctx)
	gen := s.visible.Load() + 1
	var begin durable.Batch
	putNumber(&begin, keyStaging, gen)
	s.dirty = true
	if err := s.disk.Commit(detached, &begin); err != nil {
		return 0, err
	}
	defer func() {
		if err == nil || errors.Is(err, durable.ErrUncertain) {
			return
		}
		// Whatever ended the import, what it wrote has to go. Where that fails
		// too (the disk is gone) it goes at the next import or start.
		if serr := s.sweep(detached); serr != nil {
			err = errors.Join(err, fmt.Errorf("staged messages stay, unseen, until the next start: %w", serr))
		}
	}()

	var batch []*Message
	size, total := 0, 0
	flush := func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := s.put(detached, gen, batch)
		added += n
		clear(batch)
		batch, size = batch[:0], 0
		return err
	}
	err = eachLine(ctx, file, opt, true, func(m *Message, n int) error {
		batch = append(batch, m)
		size += n
		total++
		if len(batch) < importBatch && size < importBatchBytes {
			return nil
		}
		return flush()
	})
	if err == nil && total != want {
		err = fmt.Errorf("the file changed while it was read: %d messages, then %d", want, total)
	}
	if err == nil {
		err = flush()
	}
	if err != nil {
		return 0, err
	}

	var end durable.Batch
	putNumber(&end, keyVisible, gen)
	end.Delete(keyStaging)
	s.mu.Lock() // a writer compares generations with visible
	defer s.mu.Unlock()
	if err := s.disk.Commit(detached, &end); err != nil {
		return 0, fmt.Errorf("%w: %w", durable.ErrUncertain, err)
	}
	s.visible.Store(gen)
	s.dirty = false
	return added, nil
}

// sweep removes the records of generations that do not count, and the staging
// record last. The caller holds importing, or is OpenStore.
func (s *Store) sweep(ctx context.Context) error {
	// What is on disk decides: the last commit of an import may have landed
	// although it was reported as failed.
	visible, _, err := s.number(ctx, keyVisible)
	if err != nil {
		return err
	}
	s.visible.Store(visible)
	after := ""
	for {
		var found []Hash
		err := s.disk.Scan(ctx, keyHash, after, func(key string, value []byte) error {
			after = key
			rec, err := decodeHashRecord(key, value)
			if err != nil || rec.gen <= visible {
				return err
			}
			raw, err := durable.ParseKeyID(key[len(keyHash):])
			if err != nil || len(raw) != len(Hash{}) {
				return fmt.Errorf("%w: key %q", durable.ErrDamaged, key)
			}
			found = append(found, Hash(raw))
			if len(found) == importBatch {
				return durable.ErrStop
			}
			return nil
		})
		if err != nil {
			return err
		}
		if err := s.remove(ctx, found); err != nil {
			return err
		}
		if len(found) < importBatch {
			break
		}
	}
	var b durable.Batch
	b.Delete(keyStaging)
	if err := s.disk.Commit(ctx, &b); err != nil {
		return err
	}
	s.dirty = false
	return nil
}

// remove deletes those of hashes that still do not count: an Add may have come
// between.
func (s *Store) remove(ctx context.Context, hashes []Hash) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b durable.Batch
	for _, hash := range hashes {
		rec, err := s.hashRecord(ctx, hash)
		if errors.Is(err, durable.ErrNotFound) || err == nil && rec.gen <= s.visible.Load() {
			continue
		}
		if err != nil {
			return err
		}
		keys := rec.keys(hash)
		b.Delete(keys.time)
		b.Delete(keys.pubsub)
		b.Delete(keys.content)
		b.Delete(keys.hash)
	}
	return s.disk.Commit(ctx, &b)
}

// eachLine calls fn with each message of file and the size of its line.
func eachLine(ctx context.Context, file io.Reader, opt ImportOptions, storing bool, fn func(m *Message, size int) error) error {
	const progressEvery = 10_000
	lines := bufio.NewScanner(file)
	lines.Buffer(make([]byte, 0, 64<<10), MaxLineBytes+1)
	at := ImportProgress{Storing: storing}
	report := func() {
		if opt.Progress != nil {
			opt.Progress(at)
		}
	}
	for lines.Scan() {
		at.Lines++
		at.Bytes += int64(len(lines.Bytes())) + 1
		if at.Lines%progressEvery == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			report()
		}
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		m, err := ParseLine(line, opt.Topic)
		if err != nil {
			return &LineError{Line: at.Lines, Err: err}
		}
		if err := fn(m, len(line)); err != nil {
			return err
		}
	}
	switch err := lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return &LineError{Line: at.Lines + 1, Err: fmt.Errorf("%w: above %d bytes", ErrLine, MaxLineBytes)}
	case err != nil:
		return fmt.Errorf("read line %d: %w", at.Lines+1, err)
	}
	report()
	return ctx.Err()
}

// ParseLine reads one line of an import file. content_topic, payload and
// timestamp must be there; unknown names are refused, so that a misspelt one is
// not lost in silence. topic is asked where pubsub_topic is missing. Errors wrap
// ErrLine or ErrMessage.
func ParseLine(line []byte, topic Topic) (*Message, error) {
	var in struct {
		ContentTopic   *string `json:"content_topic"`
		Payload        *[]byte `json:"payload"`
		Timestamp      *int64  `json:"timestamp"`
		PubsubTopic    string  `json:"pubsub_topic"`
		Meta           []byte  `json:"meta"`
		Version        uint32  `json:"version"`
		RateLimitProof []byte  `json:"rate_limit_proof"`
		Ephemeral      bool    `json:"ephemeral"`
	}
	if len(line) > MaxLineBytes {
		return nil, fmt.Errorf("%w: above %d bytes", ErrLine, MaxLineBytes)
	}
	if !utf8.Valid(line) {
		return nil, fmt.Errorf("%w: it is not UTF-8", ErrLine) // encoding/json would repair it in silence
	}
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("%w: it ends inside the JSON object", ErrLine)
		}
		return nil, fmt.Errorf("%w: %w", ErrLine, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: more than one JSON object", ErrLine)
	}
	switch {
	case in.ContentTopic == nil:
		return nil, fmt.Errorf("%w: content_topic is missing", ErrLine)
	case in.Payload == nil:
		return nil, fmt.Errorf("%w: payload is missing", ErrLine)
	case in.Timestamp == nil:
		return nil, fmt.Errorf("%w: timestamp is missing", ErrLine)
	}
	m := &Message{
		ContentTopic: *in.ContentTopic, Payload: *in.Payload, Timestamp: *in.Timestamp,
		PubsubTopic: in.PubsubTopic, Meta: in.Meta, Version: in.Version,
		RateLimitProof: in.RateLimitProof, Ephemeral: in.Ephemeral,
	}
	if m.PubsubTopic == "" {
		var err error
		if m.PubsubTopic, err = topic(m.ContentTopic); err != nil {
			return nil, err
		}
	}
	if err := m.Check(); err != nil {
		return nil, err
	}
	return m, nil
}
