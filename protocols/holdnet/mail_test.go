package holdnet

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/hold"
)

// What is about vouchers arrives as it left, and under the asker's name.
func TestVouchers(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	asker, asked, _, theirs := pair(t)
	me, holder := asker.host.ID(), asked.host.ID()
	st := hold.LaneStatement{
		Realm: "tally/FIL", Payee: me, Holder: holder, Channel: "t2channel", Serial: 3, Total: 4, Room: 5, Until: 600, Signature: []byte{1, 2},
	}
	m := hold.Mail{Realm: "tally/FIL", ID: hold.ID{1}, Payer: me, Serial: 3, Voucher: []byte{9, 8}, Preimage: tally.Preimage{7}}
	p := hold.Purchase{ID: hold.ID{2}, Payer: me, Holder: holder, Payee: me, Channel: "t2channel", Amount: 50, Deadline: 700}
	theirs.statement, theirs.voucher = st, []byte{5, 6}

	if err := asker.Deposit(ctx, holder, &st); err != nil {
		t.Fatal(err)
	}
	if got, err := asker.Statement(ctx, holder, me); err != nil || !reflect.DeepEqual(got, st) {
		t.Fatalf("%+v %v", got, err)
	}
	if got, err := asker.Guard(ctx, holder, 650); err != nil || !bytes.Equal(got, theirs.voucher) {
		t.Fatal(got, err)
	}
	want := hold.SoldReply{Price: 3, Charged: true, Hash: tally.Hashlock{4}, Voucher: theirs.voucher}
	if got, err := asker.Buy(ctx, &p, 8, false); err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v %v", got, err)
	}
	if got, err := asker.Buy(ctx, &p, 8, true); err != nil || got.Price != 3 || got.Charged {
		t.Fatalf("%+v %v", got, err)
	}
	if err := asker.Mail(ctx, holder, &m); err != nil {
		t.Fatal(err)
	}
	calls := []any{me, st, me, me, me, int64(650), me, p, tally.Amount(8), false, me, p, tally.Amount(8), true, m}
	if !reflect.DeepEqual(theirs.calls, calls) {
		t.Fatalf("%+v\nwant %+v", theirs.calls, calls)
	}

	// A voucher that is none is no answer.
	for _, raw := range [][]byte{nil, make([]byte, maxVoucher+1)} {
		theirs.voucher = raw
		if _, err := asker.Guard(ctx, holder, 650); !errors.Is(err, ErrMalformed) {
			t.Error(err)
		}
		if _, err := asker.Buy(ctx, &p, 8, false); !errors.Is(err, ErrMalformed) {
			t.Error(err)
		}
	}
	theirs.err = hold.ErrLaneRoom
	if got, err := asker.Buy(ctx, &p, 8, false); !errors.Is(err, hold.ErrLaneRoom) || got.Price != 3 {
		t.Error(got, err)
	}
	theirs.err = hold.ErrNoHold
	if _, err := asker.Statement(ctx, holder, me); !errors.Is(err, hold.ErrNoHold) {
		t.Error(err)
	}
}
