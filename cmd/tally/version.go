package main

import "github.com/spf13/cobra"

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Show the version of this program",
		Long:    `Shows the version of this program. It needs no repo and no running peer.`,
		Example: "  tally version\n  tally version -o json",
		Args:    nArgs(0),
		RunE: func(*cobra.Command, []string) error {
			b := buildVersion(a.deps.Version)
			v := struct {
				Version string `json:"version"`
				Commit  string `json:"commit"`
				Go      string `json:"go"`
				API     string `json:"api"`
			}{b.Version, b.Commit, b.Go, b.API}
			return a.out.one(v, func() *table {
				return newCard().add("version", v.Version).add("commit", v.Commit).add("go", v.Go).add("api", v.API)
			})
		},
	}
}
