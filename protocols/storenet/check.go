package storenet

import (
	"bytes"
	"fmt"
)

// maxTies bounds the hashes that a checker remembers, those of one timestamp. A
// server whose order within one time is not that of the hashes may have as many
// messages of one time; ours any number.
const maxTies = 1 << 16

// checker holds what a server sends against what was asked for.
type checker struct {
	query  *Query
	topics map[string]bool
	hashes map[Hash]bool

	any  bool // a message was seen
	at   int64
	last Hash
	// ties are the hashes seen at time at. In the order of hashes a repetition
	// cannot hide; out of it, ties finds it. untold says that there were too
	// many to remember.
	ties   map[Hash]bool
	untold bool
	// page and before are the hashes of the last two pages, where there is no
	// data to see an order by.
	before map[Hash]bool
}

func newChecker(q *Query) *checker {
	c := &checker{query: q, topics: make(map[string]bool), hashes: make(map[Hash]bool), ties: make(map[Hash]bool)}
	for _, t := range q.ContentTopics {
		c.topics[t] = true
	}
	for _, h := range q.Hashes {
		c.hashes[h] = true
	}
	return c
}

// page checks the messages of one response. They are oldest first, and the page
// as a whole is behind the last one in the direction of the query.
func (c *checker) page(entries []Entry, hashes bool) error {
	if c.query.NoData {
		return c.pageOfHashes(entries)
	}
	for i := range entries {
		e := &entries[i]
		if c.query.Backward {
			e = &entries[len(entries)-1-i]
		}
		if err := c.message(e, hashes); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) message(e *Entry, hashes bool) error {
	m, q := e.Message, c.query
	switch {
	case len(c.topics) > 0 && !c.topics[m.ContentTopic]:
		return fmt.Errorf("%w: content topic %q", ErrAnswer, cut(m.ContentTopic))
	case q.PubsubTopic != "" && m.PubsubTopic != q.PubsubTopic:
		return fmt.Errorf("%w: pubsub topic %q", ErrAnswer, cut(m.PubsubTopic))
	case q.Start != 0 && m.Timestamp < q.Start, q.End != 0 && m.Timestamp > q.End:
		return fmt.Errorf("%w: time %d is out of the range", ErrAnswer, m.Timestamp)
	case hashes && !m.hashIs(e.Hash):
		return fmt.Errorf("%w: hash %s is not that of the message", ErrAnswer, e.Hash)
	case len(c.hashes) > 0 && !c.hashes[e.Hash]:
		return fmt.Errorf("%w: hash %s was not asked for", ErrAnswer, e.Hash)
	}
	return c.order(m.Timestamp, e.Hash)
}

// order checks that the next message is behind the last one. Of messages of one
// time the order may be any, but none may come twice.
func (c *checker) order(at int64, h Hash) error {
	forward := !c.query.Backward
	switch {
	case !c.any || at != c.at && at > c.at == forward:
		clear(c.ties)
		c.untold = false
	case at != c.at:
		return fmt.Errorf("%w: time %d comes behind %d", ErrAnswer, at, c.at)
	default:
		behind := bytes.Compare(h[:], c.last[:])
		if c.query.Backward {
			behind = -behind
		}
		if c.ties[h] || behind == 0 {
			return fmt.Errorf("%w: message %s comes twice", ErrAnswer, h)
		}
		if behind < 0 && c.untold {
			return fmt.Errorf("%w: more than %d messages of one time, out of order", ErrAnswer, maxTies)
		}
	}
	if len(c.ties) < maxTies {
		c.ties[h] = true
	} else {
		c.untold = true
	}
	c.any, c.at, c.last = true, at, h
	return nil
}

// pageOfHashes: without data there is no order to see; a hash must not come
// again in its page or the next.
func (c *checker) pageOfHashes(entries []Entry) error {
	seen := make(map[Hash]bool, len(entries))
	for _, e := range entries {
		switch {
		case len(c.hashes) > 0 && !c.hashes[e.Hash]:
			return fmt.Errorf("%w: hash %s was not asked for", ErrAnswer, e.Hash)
		case seen[e.Hash], c.before[e.Hash]:
			return fmt.Errorf("%w: message %s comes twice", ErrAnswer, e.Hash)
		}
		seen[e.Hash] = true
	}
	c.before = seen
	return nil
}

// Messages collects what Query hands out; it is for small results and tests.
func Messages(into *[]Message) func(Hash, *Message) error {
	return func(_ Hash, m *Message) error {
		*into = append(*into, *m)
		return nil
	}
}
