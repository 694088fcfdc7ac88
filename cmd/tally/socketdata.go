package main

import (
	"errors"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/rpc"
)

// sentRow is what `tally socket send-data` prints.
type sentRow struct {
	ID     string `json:"id"`
	Stream uint64 `json:"stream"`
	Bytes  uint64 `json:"bytes"`
}

func (a *app) socketSendDataCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "send-data ID [FILE]",
		Short: "Send a file, or what comes in, over a socket",
		Long: `Sends the bytes of FILE, or of standard input, to the other side of a socket, in order
and beside the money: packets lost on the way are sent again. It returns when the other
side has all of them, and needs somebody there who reads: tally socket recv-data.`,
		Example: "  tally socket send-data 5f0c… letter.txt\n  echo hello | tally socket send-data 5f0c…",
		Args:    nArgs(1, "ID", "FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := io.Reader(os.Stdin)
			if len(args) == 2 && args[1] != "-" {
				f, err := os.Open(args[1])
				if err != nil {
					return usagef("name a file that can be read", "%w", err)
				}
				defer func() { _ = f.Close() }() // it was only read
				in = f
			}
			r, err := a.remote()
			if err != nil {
				return err
			}
			defer r.stop()
			row := sentRow{ID: args[0]}
			buf := make([]byte, rpc.MaxStreamData)
			for {
				n, err := io.ReadFull(in, buf)
				end := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
				if err != nil && !end {
					return err
				}
				sent, err := r.SocketSend(cmd.Context(), row.ID, row.Stream, buf[:n], end)
				if err != nil {
					return r.explain(err)
				}
				row.Stream = sent.Stream
				row.Bytes += uint64(n)
				if end {
					break
				}
			}
			return a.out.one(row, func() *table {
				return newCard().add("id", row.ID).add("stream", row.Stream).add("bytes", row.Bytes)
			})
		},
	}
}

func (a *app) socketRecvDataCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "recv-data ID",
		Short: "Write what the other side sends over a socket",
		Long: `Waits until the other side of a socket sends data, and writes it to standard output as
it is, up to its end. Until this has been called nobody sends anything, so it may begin
first or last.`,
		Example: "  tally socket recv-data 5f0c… > letter.txt",
		Args:    nArgs(1, "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.remote()
			if err != nil {
				return err
			}
			defer r.stop()
			for row := (rpc.StreamRow{}); !row.End; {
				next, err := r.SocketReceive(cmd.Context(), args[0], row.Stream)
				if err != nil {
					if cmd.Context().Err() != nil {
						return cmd.Context().Err()
					}
					return r.explain(err)
				}
				if _, err := a.out.w.Write(next.Data); err != nil {
					return err
				}
				row = next
			}
			return nil
		},
	}
}
