package repo

import (
	"errors"
	"fmt"
)

var (
	// ErrNoRepo: the folder is not a repo yet.
	ErrNoRepo = errors.New("repo: not a repo")
	// ErrExists: Init found a repo.
	ErrExists = errors.New("repo: exists already")
	// ErrLocked: another process uses the repo.
	ErrLocked = errors.New("repo: in use")
	// ErrPermissions: others on the machine could read or replace a secret.
	ErrPermissions = errors.New("repo: permissions too wide")
	// ErrConfig: a setting is unknown, of the wrong type or cannot work.
	ErrConfig = errors.New("repo: config")
	// ErrVersion: the repo is of another layout than this program knows.
	ErrVersion = errors.New("repo: version")
	// ErrNotRunning: no peer runs on this repo.
	ErrNotRunning = errors.New("repo: no peer runs")
)

// Error says what is wrong with a repo and what to do about it.
type Error struct {
	// Kind is one of the errors above.
	Kind   error
	Cause  string
	remedy string
}

func fail(kind error, remedy, format string, args ...any) *Error {
	return &Error{Kind: kind, Cause: fmt.Sprintf(format, args...), remedy: remedy}
}

func (e *Error) Error() string { return e.Cause }

// Unwrap returns the kind.
func (e *Error) Unwrap() error { return e.Kind }

// Remedy says what to do about it.
func (e *Error) Remedy() string { return e.remedy }
