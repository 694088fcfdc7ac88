// Command tally runs a peer and talks to a running one. `tally help` lists the
// commands; each has a file of its own here.
//
// It leaves what a peer does to package host, how it is reached to host/rpc,
// and where it keeps its things to host/repo. What it needs of them and of the
// test network comes in through [Deps].
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() { os.Exit(run(realDeps())) }

// run is main with its joints open.
func run(deps Deps) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) > 1 && os.Args[1] == benchChildArg {
		return benchChild(ctx, os.Args[2:], deps.Stdout, deps.Stderr)
	}
	context.AfterFunc(ctx, stop) // the second signal ends the process at once
	return Execute(ctx, deps, os.Args[1:])
}
