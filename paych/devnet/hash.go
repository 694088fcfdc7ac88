package devnet

import (
	"bytes"

	"github.com/ipfs/go-cid"
	cbg "github.com/whyrusleeping/cbor-gen"

	"github.com/tallystick/tally/paych/lotus/wire"
)

// encode returns the CBOR of v.
func encode(v cbg.CBORMarshaler) ([]byte, error) {
	var buf bytes.Buffer
	if err := v.MarshalCBOR(&buf); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// hashAll is the cid of a list of byte strings. It stands for the roots of
// messages and receipts, which on Filecoin are arrays with their own nodes.
func hashAll(items [][]byte) (cid.Cid, error) {
	var buf bytes.Buffer
	if err := cbg.WriteMajorTypeHeader(&buf, cbg.MajArray, uint64(len(items))); err != nil {
		return cid.Undef, err
	}
	for _, item := range items {
		if err := cbg.WriteByteArray(&buf, item); err != nil {
			return cid.Undef, err
		}
	}
	return wire.Cid(buf.Bytes())
}
