package main

import "github.com/spf13/cobra"

func (a *app) completionCmd() *cobra.Command {
	return &cobra.Command{
		Use:       "completion SHELL",
		Short:     "Print the completion script of a shell",
		Long:      `Prints the script that completes commands, flags and names in bash, zsh, fish or powershell.`,
		Example:   "  source <(tally completion bash)\n  tally completion fish > ~/.config/fish/completions/tally.fish",
		Args:      nArgs(1, "SHELL"),
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		RunE: func(cmd *cobra.Command, args []string) error {
			root, w := cmd.Root(), a.deps.Stdout
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(w, true)
			case "zsh":
				return root.GenZshCompletion(w)
			case "fish":
				return root.GenFishCompletion(w, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(w)
			default:
				return usagef("use bash, zsh, fish or powershell", "no completion for %q", args[0])
			}
		},
	}
}
