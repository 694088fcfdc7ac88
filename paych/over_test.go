package paych

import (
	"slices"
	"testing"

	"github.com/filecoin-project/go-state-types/big"
)

// A stop between the burial of a channel and the reading of its result: the channel
// is looked at again, and the look asks for the result.
func TestBuriedWithoutResultIsLookedAt(t *testing.T) {
	c := openChannel(PCHInbound, 100)
	mustStep(c, 200, evViewed{Gone: true, Buried: true})
	again, err := decodeChannel(channelVersion, encodeChannel(c), testRules())
	if err != nil {
		t.Fatal(err)
	}
	if !again.Buried || again.over() {
		t.Fatalf("buried %v, over %v", again.Buried, again.over())
	}
	fx, err := again.Step(201, evViewed{Gone: true, Buried: true})
	if err != nil || !slices.ContainsFunc(fx, func(f Effect) bool { return f.Kind == FxArchive }) {
		t.Errorf("%+v, %v", fx, err)
	}
	mustStep(again, 202, evFinished{Final: Final{Height: 200, ToSend: big.NewInt(1), Rest: big.NewInt(99)}})
	if !again.over() {
		t.Error("not over with its result")
	}
}
