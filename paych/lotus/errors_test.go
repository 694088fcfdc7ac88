package lotus

import (
	"errors"
	"fmt"
	"testing"

	"github.com/filecoin-project/go-jsonrpc"
)

// TestRecordedErrors sorts errors as nodes printed them.
func TestRecordedErrors(t *testing.T) {
	kinds := map[string]func(error) bool{
		"actor not found": actorNotFound, "no method": noMethod, "unknown message": unknownMessage,
		"not replacement": notReplacement, "in pool": inPool, "underpriced": underpriced, "nonce too low": nonceTooLow,
		"execution failed": executionFailed, "stale": staleTipset, "lookback": lookback,
	}
	for _, tc := range []struct {
		code int
		text string
		kind string
	}{
		{3, "actor not found", "actor not found"},
		{1, "resolution lookup failed (f2abc): resolve address f2abc: actor not found", "actor not found"},
		{1, "getting actor: actor not found", "actor not found"},
		{-32601, "method 'Filecoin.StateListMessages' not found", "no method"},
		{-32601, "Method not found", "no method"},
		{1, "method 'Filecoin.StateListMessages' not supported in this mode (no out channel support)", "no method"},
		{1, "failed to load message: blockstore: block not found", "unknown message"},
		{1, "failed to load message: ipld: could not find bafy2bzaceaaa", "unknown message"},
		{1, "loading tipset {bafy2bzaceaaa}: ipld: could not find bafy2bzaceaaa", "stale"},
		{1, "found message with equal nonce as the one we are looking for that is NOT a valid replacement message (F:bafy n 5, TS: bafy n5)", "not replacement"},
		{1, "message from f3q5vabtphr65id7zfhi7ynzefrndyxqkko2aszcyjyorrqplmcxn7d2ys4njfvonouohqem6q6xhbf5z2bjza with nonce 1 already in mpool: validation failure", "in pool"},
		{1, "failed to push new message to mempool: failed to add locked: message from f3upuh with nonce 6209 already in mpool, increase GasPremium to 923651 from 200000 to trigger replace by fee: replace by fee has too low GasPremium", "underpriced"},
		{1, "mpool push: failed to push message: minimum expected nonce is 7: message nonce too low", "nonce too low"},
		{1, "GasEstimateMessageGas error: estimating gas used: message execution failed: exit SysErrSenderStateInvalid(2), reason: actor balance less than needed: 0 FIL < 0.00000101 FIL (RetCode=2)", "execution failed"},
		{1, "estimating gas used: message execution failed: exit 16, reason: window post failed", "execution failed"},
		{1, "bad tipset height: lookbacks of more than 16h40m0s are disallowed", "lookback"},
		{1, "mpool push: failed to push message: not enough funds including pending messages (required: 2.49 FIL, balance: 2.48 FIL): validation failure", ""},
		{1, "context deadline exceeded", ""},
	} {
		err := fmt.Errorf("lotus: %w", &jsonrpc.JSONRPCError{Code: jsonrpc.ErrorCode(tc.code), Message: tc.text})
		for name, is := range kinds {
			if got := is(err); got != (name == tc.kind) {
				t.Errorf("%q is %s: %v", tc.text, name, got)
			}
		}
	}
	for name, is := range kinds {
		if is(nil) || is(errors.New("")) {
			t.Errorf("nothing is %s", name)
		}
	}
}
