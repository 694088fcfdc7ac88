package main

import (
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/repo"
)

func (a *app) initCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "init",
		Short: "Make the repo of a new peer",
		Long: `Makes the folder of a peer: a new identity, a config.toml that explains every
setting, and the token of the command line. A repo that is there already is left
as it is. A config.toml that lies in the folder is kept.`,
		Example: `  tally init
  tally init --repo /var/lib/tally`,
		Args: nArgs(0),
		RunE: func(*cobra.Command, []string) error {
			dir, err := a.repoDir()
			if err != nil {
				return err
			}
			id, err := repo.Init(dir)
			if err != nil {
				return err
			}
			result := struct {
				PeerID string `json:"peer_id"`
				Repo   string `json:"repo"`
				Config string `json:"config"`
			}{id.String(), dir, filepath.Join(dir, repo.ConfigFile)}
			return a.out.one(result, func() *table {
				return newCard().add("peer id", result.PeerID).add("repo", dir).add("settings", result.Config).add("next", a.startCommand())
			})
		},
	}
}
