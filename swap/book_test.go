package swap

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestTabOfTwoBooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newNode(t, 0), newNode(t, 1)
		w := wireUp(t, a, b)
		mustServe(t, a, b, 20, 50)
		synctest.Wait()
		if got := a.Stats().ChequesAcked; got != 10 {
			t.Errorf("%d cheques acked", got)
		}
		agree(t, a, b)
		if r := a.row(b); r.Consumed != 1000 || r.Paid != 1000 || r.Services[0].Consumed != 1000 {
			t.Errorf("%+v", r)
		}
		a.check()
		b.check()
		w.hangUp()
		a.stop()
		b.stop()
		agree(t, a, b)
		time.Sleep(time.Minute) // bubble
		a.check()
		b.check()
	})
}
