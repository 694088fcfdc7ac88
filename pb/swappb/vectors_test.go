package swappb_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tally/pb/swappb"
)

// TestVectors reads every good frame of testdata as its message, and writes it
// back: what is canonical is written as it was. The meaning of the fields is
// checked by protocols/swapnet, which also writes the files of our own protocol.
func TestVectors(t *testing.T) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) != 3 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var vectors []struct {
			Name, Protocol, Message, Frame, Error string
			Canonical                             bool
		}
		if err := json.Unmarshal(raw, &vectors); err != nil {
			t.Fatal(err)
		}
		for _, v := range vectors {
			t.Run(filepath.Base(file)+"/"+v.Name, func(t *testing.T) {
				b, err := hex.DecodeString(v.Frame)
				if err != nil {
					t.Fatal(err)
				}
				if v.Error != "" {
					return
				}
				size, n := binary.Uvarint(b)
				if n <= 0 || uint64(len(b)-n) != size {
					t.Fatalf("%d bytes announced in a frame of %d", size, len(b)-n)
				}
				var m proto.Message
				switch v.Protocol + " " + v.Message {
				case "/vac/waku/swap/2.0.0-alpha1 Handshake":
					m = &swappb.Alpha1Handshake{}
				case "/vac/waku/swap/2.0.0-alpha1 Cheque":
					m = &swappb.Alpha1Cheque{}
				case "/vac/waku/swap/2.0.0-beta1 Cheque":
					m = &swappb.Beta1Cheque{}
				default:
					m = &swappb.Frame{}
				}
				if err := proto.Unmarshal(b[n:], m); err != nil {
					t.Fatal(err)
				}
				out, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
				if err != nil {
					t.Fatal(err)
				}
				if v.Canonical && !bytes.Equal(out, b[n:]) {
					t.Fatalf("written back as %x", out)
				}
			})
		}
	}
}
