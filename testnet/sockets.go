package testnet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/tallystick/tally/host/rpc"
)

// errNoSockets: the peers of a run have none that a scenario could drive.
var errNoSockets = errors.New("testnet: sockets are driven on processes alone; add the line: mode mock")

// noVia is a way without anybody on it.
const noVia = "none"

// madeURI is a URI that a peer made.
type madeURI struct {
	by  *proc
	uri string
}

// openSocket is a socket that a peer opened.
type openSocket struct {
	client, server *proc
	id             string
}

// end returns one of its ends.
func (s *openSocket) end(word string) *proc {
	if word == "server" {
		return s.server
	}
	return s.client
}

// onSocket carries out the statements about sockets.
func (d *procs) onSocket(ctx context.Context, st *statement) error {
	switch st.verb {
	case "uri":
		return d.makeURI(ctx, st)
	case "open":
		return d.openSocket(ctx, st)
	}
	s, ok := d.sockets[st.args[0]]
	if !ok {
		return fmt.Errorf("testnet: no socket %q was opened", st.args[0])
	}
	if st.verb == "shut" {
		_, err := callOf(s.client.Member, func(c *rpc.Client) (rpc.SocketRow, error) { return c.SocketClose(ctx, s.id) })
		return err
	}
	_, err := callOf(s.end(st.args[1]).Member, func(c *rpc.Client) (rpc.SocketRow, error) {
		return c.SocketLimits(ctx, s.id, rpc.Limit(st.args[2]), rpc.Limit(st.args[3]))
	})
	return err
}

func (d *procs) makeURI(ctx context.Context, st *statement) error {
	p, err := d.peer(st.args[1])
	if err != nil {
		return err
	}
	n, _ := strconv.ParseUint(st.args[3], 10, 63)             // checked by the parser
	period, _ := strconv.ParseUint(st.keys["period"], 10, 63) // checked, or empty
	row, err := callOf(p.Member, func(c *rpc.Client) (rpc.URIRow, error) {
		return c.URICreate(ctx, st.args[2], rpc.URIOptions{
			Amount: n, Min: rpc.Limit(st.keys["min"]), Max: rpc.Limit(st.keys["max"]), PeriodSeconds: period,
		})
	})
	if err == nil {
		d.uris[st.args[0]] = madeURI{p, row.URI}
	}
	return err
}

func (d *procs) openSocket(ctx context.Context, st *statement) error {
	p, err := d.peer(st.args[1])
	if err != nil {
		return err
	}
	u, ok := d.uris[st.args[2]]
	if !ok {
		return fmt.Errorf("testnet: no URI %q was made", st.args[2])
	}
	var via []string
	if way := st.keys["via"]; way != "" && way != noVia {
		for _, name := range strings.Split(way, "+") {
			hop, err := d.peer(name)
			if err != nil {
				return err
			}
			via = append(via, hop.ID)
		}
	}
	low, high := rpc.Limit(st.keys["min"]), rpc.Limit(st.keys["max"])
	row, err := callOf(p.Member, func(c *rpc.Client) (rpc.SocketRow, error) {
		if low == "" || high == "" {
			return c.URIRedeem(ctx, u.uri, rpc.RedeemOptions{Min: low, Max: high, Via: via})
		}
		return c.SocketOpen(ctx, u.uri, rpc.SocketOptions{Min: low, Max: high, Via: via, Refunds: st.keys["refunds"] == "yes", AllOrNothing: st.keys["whole"] == "yes"})
	})
	if err == nil {
		d.sockets[st.args[0]] = openSocket{p, u.by, row.ID}
	}
	return err
}

func (d *procs) socket(ctx context.Context, name, end string) (rpc.SocketRow, error) {
	s, ok := d.sockets[name]
	if !ok {
		return rpc.SocketRow{}, fmt.Errorf("testnet: no socket %q was opened", name)
	}
	return callOf(s.end(end).Member, func(c *rpc.Client) (rpc.SocketRow, error) { return c.SocketStatus(ctx, s.id) })
}

// socketStats adds to s what only processes are asked for.
func (p *proc) socketStats(ctx context.Context, s *Stats) error {
	rows, err := callOf(p.Member, func(c *rpc.Client) ([]rpc.BalanceRow, error) { return c.Balances(ctx, "") })
	if err != nil {
		return err
	}
	for i := range rows {
		s.Net += int64(rows[i].Served) - int64(rows[i].Consumed)
	}
	list, err := callOf(p.Member, func(c *rpc.Client) ([]rpc.SocketRow, error) { return c.SocketList(ctx) })
	if err != nil {
		return err
	}
	s.Sockets = len(list)
	holds, err := callOf(p.Member, func(c *rpc.Client) ([]rpc.HoldRow, error) { return c.HoldList(ctx, "") })
	if err != nil {
		return err
	}
	s.HoldRows = make(map[string]int)
	for i := range holds {
		s.HoldRows[holds[i].Role+" "+holds[i].Status]++
	}
	if pid := p.PID(); pid != 0 {
		s.Growth = (residentOf(pid) - p.rss) >> 20
	}
	return nil
}

// residentOf is the memory of a process in bytes; 0 where the system does not tell.
func residentOf(pid int) int64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(raw))
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize())
}
