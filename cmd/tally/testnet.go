package main

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) testnetCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "testnet",
		Short:   "Run a local network of peers through a scenario",
		Long:    `Runs networks of peers on this machine, on loopback only.`,
		Example: "  tally testnet run tab",
		RunE:    group,
	}
	cmd.AddCommand(a.testnetRunCmd())
	return cmd
}

func (a *app) testnetRunCmd() *cobra.Command {
	var verbose bool
	var peers map[string]string
	long := `Runs a scenario and prints its checks; the last line is "N passed, N failed". It
exits with 0 only if none failed. SCENARIO is a file or a name that ships`
	if len(a.deps.Scenarios) > 0 {
		long += ":\n\n  " + strings.Join(a.deps.Scenarios, ", ")
	}
	cmd := &cobra.Command{
		Use:       "run SCENARIO",
		Short:     "Run a scenario and its checks",
		Long:      long + ".",
		Example:   "  tally testnet run threshold\n  tally testnet run ./mine.txt -o json",
		Args:      nArgs(1, "SCENARIO"),
		ValidArgs: a.deps.Scenarios,
		RunE: func(cmd *cobra.Command, args []string) error {
			if a.deps.Testnet == nil {
				return failf("use a complete build", "this build has no test network")
			}
			logger := slog.New(slog.DiscardHandler)
			if verbose {
				logger = slog.New(slog.NewTextHandler(a.deps.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
			}
			show, end := a.progress()
			result, err := a.deps.Testnet(cmd.Context(), TestnetOptions{Scenario: args[0], Peers: peers, Progress: show, Logger: logger})
			end()
			if err != nil {
				return err
			}
			if result.Checks == nil {
				result.Checks = []TestnetCheck{}
			}
			if err := a.printTestnet(result); err != nil {
				return err
			}
			if result.Failed > 0 {
				return fmt.Errorf("%d checks of %s failed", result.Failed, result.Scenario)
			}
			return nil
		},
	}
	cmd.Flags().StringToStringVar(&peers, "peer", nil, "NAME=REPO of a running peer to use instead of one of our own; may be repeated")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "log what the peers do to standard error")
	return cmd
}

func (a *app) printTestnet(r TestnetResult) error {
	if a.out.format != formatTable {
		return a.out.one(r, nil)
	}
	t := newTable("CHECK", "RESULT", "DETAIL")
	for _, c := range r.Checks {
		word := "FAILED"
		if c.Passed {
			word = "passed"
		}
		t.add(c.Name, word, c.Detail)
	}
	if err := t.write(a.out.w); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.out.w, "%d passed, %d failed\n", r.Passed, r.Failed)
	return err
}
