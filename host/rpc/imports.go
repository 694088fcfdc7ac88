package rpc

import (
	"crypto/rand"
	"encoding/hex"
	"sync"
	"time"
)

const (
	// maxImportSessions bounds imports at a time: one operator runs one or two.
	maxImportSessions = 4
	// maxImportBytes bounds what all sessions hold in memory until they
	// commit.
	maxImportBytes = 256 << 20
	// importIdle ends a session whose client went away.
	importIdle = time.Minute
	// messageOverhead is what a message costs in memory beside its bytes.
	messageOverhead = 96
)

// ImportSession names an import under way.
type ImportSession struct {
	Session string `json:"session"`
}

// importSet holds the imports under way. A file arrives in chunks, because one
// request has a bounded body, and reaches the store in one piece at the end or
// not at all.
type importSet struct {
	limit int64 // maxImportBytes but in tests

	mu       sync.Mutex
	sessions map[string]*importSession
	bytes    int64
}

type importSession struct {
	next     uint64 // number of the chunk to come
	messages []Message
	bytes    int64
	expire   *time.Timer
}

func newImportSet() *importSet {
	return &importSet{limit: maxImportBytes, sessions: make(map[string]*importSession)}
}

func (s *importSet) begin() (ImportSession, error) {
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return ImportSession{}, err
	}
	name := hex.EncodeToString(id[:])
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sessions) >= maxImportSessions {
		return ImportSession{}, NewError(CodeBusy, "%d imports are under way", len(s.sessions))
	}
	s.sessions[name] = &importSession{expire: time.AfterFunc(importIdle, func() { s.abort(name) })}
	return ImportSession{name}, nil
}

// chunk adds messages. Any error ends the session: a caller that is wrong once
// must not commit the rest.
func (s *importSet) chunk(name string, number uint64, messages []Message) (err error) {
	defer func() {
		if err != nil {
			s.abort(name)
		}
	}()
	s.mu.Lock()
	defer s.mu.Unlock()
	session := s.sessions[name]
	if session == nil {
		return NewError(CodeImportSession, "no such import session")
	}
	if number != session.next {
		return NewError(CodeImportSession, "chunk %d came where %d was due", number, session.next)
	}
	var size int64
	for i, m := range messages {
		if err := m.Validate(); err != nil {
			return NewError(CodeBadMessage, "message %d: %w", len(session.messages)+i+1, err)
		}
		size += int64(len(m.ContentTopic)+len(m.PubsubTopic)+len(m.Payload)) + messageOverhead
	}
	if s.bytes+size > s.limit {
		return NewError(CodeImportTooLarge, "imports under way hold more than %d bytes", s.limit)
	}
	session.next++
	session.messages = append(session.messages, messages...)
	session.bytes += size
	s.bytes += size
	session.expire.Reset(importIdle)
	return nil
}

// take ends the session and returns all its messages.
func (s *importSet) take(name string, total int) ([]Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	session := s.sessions[name]
	if session == nil {
		return nil, NewError(CodeImportSession, "no such import session")
	}
	s.drop(name, session)
	if len(session.messages) != total {
		return nil, NewError(CodeImportSession, "%d of %d messages arrived", len(session.messages), total)
	}
	return session.messages, nil
}

func (s *importSet) abort(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if session := s.sessions[name]; session != nil {
		s.drop(name, session)
	}
}

// drop forgets a session. Caller holds mu.
func (s *importSet) drop(name string, session *importSession) {
	session.expire.Stop()
	delete(s.sessions, name)
	s.bytes -= session.bytes
}
