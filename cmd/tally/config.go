package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/repo"
	"github.com/tallystick/tally/host/rpc"
)

func (a *app) configCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "config",
		Short:   "Show the settings",
		Long:    `The settings are in <repo>/config.toml. A change takes effect at the next start.`,
		Example: "  tally config show\n  tally config show --default",
		RunE:    group,
	}
	cmd.AddCommand(a.configShowCmd())
	return cmd
}

func (a *app) configShowCmd() *cobra.Command {
	var defaults bool
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the settings in force, without secrets",
		Long: `Shows the settings in force: those of the running peer with its flags, or where
none runs those of config.toml. The form is that of config.toml unless -o json or
-o ndjson is given. --default shows the template with every key explained; it
needs no repo.`,
		Example: "  tally config show\n  tally config show --default > config.toml\n  tally config show -o json",
		Args:    nArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			asTOML := !a.out.asked || a.out.format == formatTable
			if defaults {
				if asTOML {
					_, err := a.out.w.Write(repo.Template())
					return err
				}
				return a.out.one(repo.DefaultConfig().Show(), nil)
			}
			dir, err := a.repoDir()
			if err != nil {
				return err
			}
			config, err := repo.ReadConfig(dir)
			if err != nil {
				return err
			}
			live, err := ask(cmd.Context(), a, func(ctx context.Context, r *remote) (map[string]any, error) { return r.ConfigShow(ctx) })
			var noDaemon *cliError
			switch {
			case errors.As(err, &noDaemon) && noDaemon.code == exitNoDaemon:
				live = config.Show()
			case err != nil:
				return err
			}
			if !asTOML {
				return a.out.one(live, nil)
			}
			return a.showTOML(config, live)
		},
	}
	cmd.Flags().BoolVar(&defaults, "default", false, "show the template with all defaults")
	return cmd
}

// showTOML prints the settings of the running peer in the order of the file.
func (a *app) showTOML(config repo.Config, live map[string]any) error {
	shown, err := config.With(live)
	if err != nil {
		return rpc.NewError(rpc.CodeFailed, "the running peer has other settings than this program knows: %w", err).WithRemedy("restart it with this version, or use -o json")
	}
	_, err = a.out.w.Write(shown.Encode())
	return err
}
