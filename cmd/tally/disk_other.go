//go:build !linux && !darwin && !freebsd

package main

import "errors"

// freeBytes cannot be told on this system.
func freeBytes(string) (uint64, error) { return 0, errors.ErrUnsupported }
