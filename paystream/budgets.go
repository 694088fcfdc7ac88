package paystream

import (
	"time"

	"github.com/tallystick/tally"
)

// join enters a socket into its token's budget.
func (e *Endpoint) join(id TokenID, g Grant, socket SocketID) (low, high Limit, err error) {
	e.budgetMu.Lock()
	defer e.budgetMu.Unlock()
	b := e.budgets[id]
	if b == nil {
		if len(e.budgets) >= maxBudgets {
			return Limit{}, Limit{}, ErrTooMany
		}
		b = NewBudget(g, time.Now())
		e.budgets[id] = b
	}
	b.SetGrant(g)
	return b.Join(time.Now(), socket)
}

// leave takes a socket out of its token's budget, and forgets an unused one.
func (e *Endpoint) leave(id TokenID, socket SocketID) {
	e.budgetMu.Lock()
	defer e.budgetMu.Unlock()
	if b := e.budgets[id]; b != nil {
		b.Leave(socket)
		if len(b.live) == 0 && !b.Moved() {
			delete(e.budgets, id)
			if b.written {
				e.saveLater(e.eraser(nil, []TokenID{id}))
			}
		}
	}
}

func (c *Conn) budgetHold(now time.Duration, n tally.Amount) error {
	if c.ident.role != RoleServer {
		return nil
	}
	c.e.budgetMu.Lock()
	defer c.e.budgetMu.Unlock()
	if b := c.e.budgets[c.tokenID]; b != nil {
		return b.Hold(c.e.at(now), c.ident.id, n)
	}
	return ErrSpent
}

func (c *Conn) budgetSettle(n tally.Amount, ok bool) {
	if c.ident.role != RoleServer {
		return
	}
	c.e.budgetMu.Lock()
	defer c.e.budgetMu.Unlock()
	if b := c.e.budgets[c.tokenID]; b != nil {
		b.Settle(n, ok)
	}
}

func (c *Conn) budgetReceive(now time.Duration, n, tolerance tally.Amount) error {
	if c.ident.role != RoleServer {
		return nil
	}
	c.e.budgetMu.Lock()
	defer c.e.budgetMu.Unlock()
	if b := c.e.budgets[c.tokenID]; b != nil {
		return b.Receive(c.e.at(now), c.ident.id, n, tolerance)
	}
	return ErrSpent
}
