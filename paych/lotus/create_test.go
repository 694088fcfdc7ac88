package lotus_test

import (
	"bytes"
	"testing"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/builtin"
	inittypes "github.com/filecoin-project/go-state-types/builtin/v8/init"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/actor"
)

// createMessage makes a channel.
func createMessage(t testing.TB, code cid.Cid, from, to address.Address, value big.Int) paych.Message {
	t.Helper()
	var ctor, exec bytes.Buffer
	if err := (&actor.ConstructorParams{From: from, To: to}).MarshalCBOR(&ctor); err != nil {
		t.Fatal(err)
	}
	if err := (&inittypes.ExecParams{CodeCID: code, ConstructorParams: ctor.Bytes()}).MarshalCBOR(&exec); err != nil {
		t.Fatal(err)
	}
	return paych.Message{From: from, To: builtin.InitActorAddr, Value: value, Method: builtin.MethodsInit.Exec, Params: exec.Bytes()}
}

// createdBy reads the address of the channel that a message made.
func createdBy(t testing.TB, r *paych.Receipt) address.Address {
	t.Helper()
	var ret inittypes.ExecReturn
	if err := ret.UnmarshalCBOR(bytes.NewReader(r.Return)); err != nil {
		t.Fatal(err)
	}
	return ret.RobustAddress
}
