package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func (a *app) manCmd() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "man [COMMAND]...",
		Short: "Print or write the manual pages",
		Long: `Prints the manual page of a command, of tally itself where none is named. With
--dir it writes a page for each command into a folder instead.`,
		Example: "  tally man store query | man -l -\n  tally man --dir /usr/local/share/man/man1",
		RunE: func(cmd *cobra.Command, args []string) error {
			if dir != "" {
				if len(args) > 0 {
					return usagef("leave out the command", "--dir writes all pages")
				}
				return writeMan(cmd.Root(), dir)
			}
			c, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return usagef("tally --help", "there is no command %q", strings.Join(args, " "))
			}
			return manPage(a.deps.Stdout, c)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "folder to write all pages into")
	return cmd
}

func writeMan(c *cobra.Command, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // G301: manual pages are for all users
		return err
	}
	f, err := os.Create(filepath.Join(dir, manName(c)+".1"))
	if err != nil {
		return err
	}
	if err := manPage(f, c); err != nil {
		_ = f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			if err := writeMan(sub, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

func manName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// manPage writes one page in the man macros of roff. Cobra's own writer would
// bring a Markdown converter along for the same thing.
func manPage(w io.Writer, c *cobra.Command) error {
	var b strings.Builder
	section := func(name string) { fmt.Fprintf(&b, ".SH %s\n", name) }
	block := func(text string) { fmt.Fprintf(&b, ".nf\n%s\n.fi\n", roff(text)) }
	fmt.Fprintf(&b, ".TH %q 1 \"\" \"tally\" \"tally manual\"\n", strings.ToUpper(manName(c)))
	section("NAME")
	fmt.Fprintf(&b, "%s \\- %s\n", roff(manName(c)), roff(c.Short))
	section("SYNOPSIS")
	block(c.UseLine())
	section("DESCRIPTION")
	block(c.Long)
	flags := func(title string, set *pflag.FlagSet) {
		if !set.HasAvailableFlags() {
			return
		}
		section(title)
		block(strings.TrimRight(set.FlagUsages(), "\n"))
	}
	flags("OPTIONS", c.NonInheritedFlags())
	flags("GLOBAL OPTIONS", c.InheritedFlags())
	if subs := c.Commands(); len(subs) > 0 {
		section("COMMANDS")
		for _, sub := range subs {
			if sub.IsAvailableCommand() {
				fmt.Fprintf(&b, ".TP\n.B %s\n%s\n", roff(sub.Name()), roff(sub.Short))
			}
		}
	}
	section("EXAMPLES")
	block(c.Example)
	if c.HasParent() {
		section("SEE ALSO")
		fmt.Fprintf(&b, ".BR %s (1)\n", roff(manName(c.Parent())))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// roff escapes text: backslashes, dashes, and lines that would be commands.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}
