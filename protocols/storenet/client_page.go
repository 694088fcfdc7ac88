package storenet

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/pb/storepb"
)

// ErrCursorText: not a cursor that Page returned for this protocol.
var ErrCursorText = errors.New("storenet: not a cursor of an earlier page")

// QueryPage is one page of a query that the caller walks itself.
type QueryPage struct {
	Messages []*Message
	Units    tally.Amount // booked for it
	Next     string       // cursor of the next page; empty at the end
}

// Page asks p for one page of q, after the page whose Next was cursor (empty: the
// first). It is one answer of the peer: where that is shorter than asked for and
// Next is set, there is more, and what was booked is in the caller's hands before
// anything else can fail. q.Limit is not looked at. It waits, refuses and books as
// Query does.
func (c *Client) Page(ctx context.Context, p peer.ID, q Query, cursor string) (QueryPage, error) {
	if q.PageSize <= 0 {
		q.PageSize = DefaultLimits().DefaultPage
	}
	q.Limit = 0
	w := &walker{client: c, peer: p, query: q, size: q.PageSize, check: newChecker(&q), single: true}
	if err := w.resume(cursor); err != nil {
		return QueryPage{}, err
	}
	var page QueryPage
	err := w.run(ctx, func(_ Hash, m *Message) error {
		page.Messages = append(page.Messages, m)
		return nil
	})
	page.Units = w.result.Units
	if err != nil {
		return page, err
	}
	page.Next, err = w.cursorText()
	return page, err
}

// Marks of the protocol in front of a cursor's text: it is good for one only.
const (
	markQuery   = 'q'
	markHistory = 'h'
)

// resume sets the walker behind an earlier page.
func (w *walker) resume(text string) error {
	if text == "" {
		return nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(text[1:])
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCursorText, err)
	}
	switch text[0] {
	case markQuery:
		if len(raw) != len(Hash{}) {
			return fmt.Errorf("%w: %d bytes", ErrCursorText, len(raw))
		}
		hash := Hash(raw)
		w.cursor.hash, w.result.Protocol = &hash, QueryID
	case markHistory:
		index := new(storepb.Index)
		if err := proto.Unmarshal(raw, index); err != nil {
			return fmt.Errorf("%w: %w", ErrCursorText, err)
		}
		w.cursor.index, w.result.Protocol = index, HistoryID
	default:
		return ErrCursorText
	}
	return nil
}

// cursorText writes where the next page starts.
func (w *walker) cursorText() (string, error) {
	switch next := w.next; {
	case next.hash != nil:
		return string(markQuery) + base64.RawURLEncoding.EncodeToString(next.hash[:]), nil
	case next.index != nil:
		raw, err := proto.Marshal(next.index)
		if err != nil {
			return "", err
		}
		return string(markHistory) + base64.RawURLEncoding.EncodeToString(raw), nil
	default:
		return "", nil
	}
}
