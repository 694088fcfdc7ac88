package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/repo"
	"github.com/tallystick/tally/host/rpc"
)

// Exit codes. Scripts rely on them.
const (
	exitDone     = 0
	exitFailed   = 1
	exitUsage    = 2 // nothing was changed
	exitNoDaemon = 3
)

// cliError is a failure with its exit code and remedy.
type cliError struct {
	code   int
	err    error
	remedy string
}

func (e *cliError) Error() string { return e.err.Error() }
func (e *cliError) Unwrap() error { return e.err }

// usagef returns a usage error: exit 2, and nothing was changed.
func usagef(remedy, format string, args ...any) error {
	return &cliError{exitUsage, fmt.Errorf(format, args...), remedy}
}

// failf returns a failure with a remedy: exit 1.
func failf(remedy, format string, args ...any) error {
	return &cliError{exitFailed, fmt.Errorf(format, args...), remedy}
}

// app is what the commands share.
type app struct {
	deps Deps
	out  output
	// repoFlag and formatFlag are the global flags as given.
	repoFlag, formatFlag string
	// parsed is set when the command line was understood: an error before that
	// is one of usage.
	parsed bool
}

// Execute runs one command line and returns the exit code.
func Execute(ctx context.Context, deps Deps, args []string) int {
	a := &app{deps: deps}
	root := newRoot(a)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	return a.report(err)
}

// NewRoot returns the whole command tree.
func NewRoot(deps Deps) *cobra.Command { return newRoot(&app{deps: deps}) }

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "tally",
		Short: "Keep a tab with every peer and settle it",
		Long: `tally runs a peer that keeps a tab with each neighbour: what one serves the
other is counted, and before the tab grows past what the other side trusts it is
settled with a cheque.

Exit codes: 0 done, 1 failed, 2 wrong usage (nothing was changed), 3 no peer runs.
On a terminal results are tables, elsewhere JSON; -o chooses.`,
		Example: `  tally demo
  tally init && tally start
  tally balances`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs, // group names an unknown command better
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return group(cmd, args)
		},
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			out, err := newOutput(a.deps, a.formatFlag)
			if err != nil {
				return err
			}
			a.out, a.parsed = out, true
			return nil
		},
	}
	root.SetOut(a.deps.Stdout)
	root.SetErr(a.deps.Stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef(cmd.CommandPath()+" --help", "%w", err)
	})
	root.PersistentFlags().StringVar(&a.repoFlag, "repo", "", "folder of the peer (default $"+repo.EnvPath+", else ~/.tally)")
	root.PersistentFlags().StringVarP(&a.formatFlag, "output", "o", "", "table, json or ndjson (default table on a terminal, else json)")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(a.paymentCmds()...)
	root.AddCommand(
		a.initCmd(), a.startCmd(), a.statusCmd(), a.idCmd(), a.peersCmd(), a.balancesCmd(), a.chequesCmd(), a.settleCmd(), a.cashoutCmd(),
		a.channelCmd(), a.voucherCmd(), a.walletCmd(), a.socketCmd(), a.uriCmd(), a.holdCmd(), a.signatureCmd(), a.lockCmd(), a.bridgeCmd(),
		a.storeCmd(), a.configCmd(), a.doctorCmd(), a.demoCmd(), a.devnetCmd(), a.benchCmd(), a.testnetCmd(),
		a.versionCmd(), a.completionCmd(), a.manCmd(),
	)
	return root
}

// group is the RunE of a command that only has subcommands.
func group(cmd *cobra.Command, args []string) error {
	var names []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	remedy := cmd.CommandPath() + " --help"
	if len(args) == 0 {
		return usagef(remedy, "%s needs a command: %s", cmd.CommandPath(), strings.Join(names, ", "))
	}
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		remedy = cmd.CommandPath() + " " + near[0]
	}
	return usagef(remedy, "%s has no command %q; it has %s", cmd.CommandPath(), args[0], strings.Join(names, ", "))
}

// nArgs checks the number of arguments and names them in the error.
func nArgs(low int, names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < low:
			return usagef(cmd.CommandPath()+" --help", "%s needs %s", cmd.CommandPath(), names[len(args)])
		case len(args) > len(names):
			return usagef(cmd.CommandPath()+" --help", "%s has no use for %q", cmd.CommandPath(), args[len(names)])
		}
		return nil
	}
}

// report prints an error as cause and remedy, and returns its exit code.
func (a *app) report(err error) int {
	code, cause, remedy := exitFailed, err.Error(), ""
	var (
		cli     *cliError
		advised interface{ Remedy() string } // of a repo, or of a start
		coded   *rpc.Error
		refused *rpc.StatusError
	)
	switch {
	case errors.As(err, &cli):
		code, remedy = cli.code, cli.remedy
	case errors.As(err, &advised):
		remedy = advised.Remedy()
	case errors.As(err, &coded), errors.As(err, &refused):
		e := rpc.Explain(err)
		remedy = e.Remedy
		cause = fmt.Sprintf("%s (code %d, %s)", e.Message, e.Code, e.Code.Name())
		if slices.Contains([]rpc.Code{rpc.CodeBadArgument, rpc.CodeBadPeer, rpc.CodeBadAddress}, e.Code) {
			code = exitUsage
		}
	case errors.Is(err, context.Canceled):
		cause = "interrupted"
	case !a.parsed:
		code, remedy = exitUsage, "tally --help"
	}
	cause = strings.ReplaceAll(cause, "\n", "; ") // joined errors
	_, _ = fmt.Fprintf(a.deps.Stderr, "error: %s\n", printable(cause))
	if remedy != "" {
		_, _ = fmt.Fprintf(a.deps.Stderr, "try: %s\n", printable(remedy))
	}
	return code
}

// repoDir returns the folder that the flags and the environment mean.
func (a *app) repoDir() (string, error) { return repo.Path(a.repoFlag) }

// remote returns a client of the running peer. Without one the command ends
// with exit 3.
func (a *app) remote() (*remote, error) {
	dir, err := a.repoDir()
	if err != nil {
		return nil, err
	}
	addr, token, err := repo.Endpoint(dir)
	switch {
	case errors.Is(err, repo.ErrNoRepo):
		return nil, &cliError{exitNoDaemon, err, "tally init, then tally start; or name another repo with --repo"}
	case errors.Is(err, repo.ErrNotRunning):
		return nil, &cliError{exitNoDaemon, err, a.startCommand()}
	case err != nil:
		return nil, err
	}
	c, stop, err := rpc.NewClient(addr, token)
	if err != nil {
		return nil, failf(a.startCommand()+", which writes it anew", "the api file of %s: %w", dir, err)
	}
	return &remote{Client: c, app: a, dir: dir, stop: stop}, nil
}

// startCommand is the remedy where no peer runs.
func (a *app) startCommand() string {
	if a.repoFlag != "" {
		return "tally start --repo " + a.repoFlag
	}
	return "tally start"
}

// remote is a client with the words of the command line.
type remote struct {
	*rpc.Client
	app  *app
	dir  string
	stop func()
}

// explain makes the failure of a call one of the command.
func (r *remote) explain(err error) error {
	if errors.Is(err, rpc.ErrUnreachable) {
		return &cliError{exitNoDaemon, fmt.Errorf("no peer answers on %s", r.dir), r.app.startCommand()}
	}
	return err
}

// ask calls the running peer once.
func ask[T any](ctx context.Context, a *app, fn func(context.Context, *remote) (T, error)) (T, error) {
	var zero T
	r, err := a.remote()
	if err != nil {
		return zero, err
	}
	defer r.stop()
	v, err := fn(ctx, r)
	if err != nil {
		if ctx.Err() != nil {
			return zero, ctx.Err()
		}
		return zero, r.explain(err)
	}
	return v, nil
}

// askOne calls the running peer once and prints the one thing that it answers.
func askOne[T any](ctx context.Context, a *app, fn func(context.Context, *remote) (T, error), draw func(T) *table) error {
	v, err := ask(ctx, a, fn)
	if err != nil {
		return err
	}
	return a.out.one(v, func() *table { return draw(v) })
}

// askRows calls the running peer once and prints the list that it answers.
func askRows[T any](ctx context.Context, a *app, fn func(context.Context, *remote) ([]T, error), draw func([]T) *table) error {
	list, err := ask(ctx, a, fn)
	if err != nil {
		return err
	}
	return rows(a.out, list, func() *table { return draw(list) })
}
