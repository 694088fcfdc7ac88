package main

import (
	"errors"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func (a *app) benchCmd() *cobra.Command {
	var duration time.Duration
	long := `Measures one part of the program on this machine. Each figure stands beside the
limit of the same machine from the same run, and their ratio. NAME is one of:

`
	var names []string
	for _, b := range a.deps.Benches {
		names = append(names, b.Name)
		long += "  " + b.Name + strings.Repeat(" ", max(1, 14-len(b.Name))) + b.Short + "\n"
	}
	long += "  all           every one of them\n\nWith -o json one figure is one object, several are an array."
	cmd := &cobra.Command{
		Use:       "bench NAME",
		Short:     "Measure a part of the program",
		Long:      long,
		Example:   "  tally bench acct\n  tally bench all -o json",
		Args:      nArgs(1, "NAME"),
		ValidArgs: append(names, "all"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if duration <= 0 {
				return usagef("use a time such as --duration 1s", "duration %v is not above zero", duration)
			}
			var chosen []Bench
			for _, b := range a.deps.Benches {
				if b.Name == args[0] || args[0] == "all" {
					chosen = append(chosen, b)
				}
			}
			if len(chosen) == 0 {
				return usagef("use one of: "+strings.Join(append(names, "all"), ", "), "there is no bench %q", args[0])
			}
			show, end := a.progress()
			defer end()
			var results []BenchResult
			for _, b := range chosen {
				r, err := b.Run(cmd.Context(), BenchOptions{Duration: duration, Progress: show})
				if err != nil {
					return err
				}
				results = append(results, r...)
			}
			end()
			if len(results) == 0 {
				return errors.New("the bench gave no figure")
			}
			draw := func() *table {
				t := newTable("NAME", ">FIGURE", "UNIT", ">LIMIT", ">RATIO")
				for _, r := range results {
					limit, ratio := "", ""
					if r.Limit != 0 {
						limit, ratio = cell(r.Limit), cell(r.Ratio)
					}
					t.add(r.Name, r.Figure, r.Unit, limit, ratio)
				}
				return t
			}
			if len(results) == 1 {
				return a.out.one(results[0], draw)
			}
			return rows(a.out, results, draw)
		},
	}
	cmd.Flags().DurationVar(&duration, "duration", time.Second, "how long to measure each figure")
	return cmd
}
