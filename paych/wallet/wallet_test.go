package wallet_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/filecoin-project/go-address"
	gocrypto "github.com/filecoin-project/go-crypto"
	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"
	"golang.org/x/crypto/blake2b"

	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/wallet"
)

var (
	_ paych.LocalWallet = (*wallet.Store)(nil)
	_ paych.LocalWallet = (*wallet.Mem)(nil)

	testKey  = bytes.Repeat([]byte{0x42}, 32)
	mainnet  = chain("mainnet", "genesis")
	dev      = chain("dev", "monday")
	tomorrow = chain("dev", "tuesday") // the same name, another genesis
)

func chain(name, genesis string) wallet.Chain {
	h, err := mh.Sum([]byte(genesis), mh.SHA2_256, -1)
	if err != nil {
		panic(err)
	}
	return wallet.Chain{Network: name, Genesis: cid.NewCidV1(cid.DagCBOR, h)}
}

// lotusKey is testKey as `lotus wallet export` prints it.
func lotusKey() wallet.Secret {
	data, _ := json.Marshal(map[string]any{"Type": "secp256k1", "PrivateKey": testKey})
	return wallet.NewSecret(hex.EncodeToString(data) + "\n")
}

func testAddr(t testing.TB) address.Address {
	t.Helper()
	a, err := address.NewSecp256k1Address(gocrypto.PublicKey(testKey))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func open(t testing.TB, dir string, c wallet.Chain) *wallet.Store {
	t.Helper()
	s, err := wallet.Open(dir, c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// files lists what is in a directory.
func files(t testing.TB, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// Both wallets do what paych asks of one.
func TestWallets(t *testing.T) {
	type full interface {
		paych.Wallet
		Import(ctx context.Context, s wallet.Secret) (address.Address, error)
		Export(ctx context.Context, a address.Address) (wallet.Secret, error)
	}
	for name, w := range map[string]full{"memory": wallet.NewMem(), "directory": open(t, t.TempDir(), mainnet)} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			a, err := w.New(ctx)
			if err != nil {
				t.Fatal(err)
			}
			b, err := w.Import(ctx, lotusKey())
			if err != nil || b != testAddr(t) {
				t.Fatalf("imported %s (%v), want %s", b, err, testAddr(t))
			}
			if again, err := w.Import(ctx, lotusKey()); err != nil || again != b {
				t.Fatalf("second import: %s, %v", again, err)
			}
			list, err := w.List(ctx)
			if err != nil || len(list) != 2 || !slices.Contains(list, a) || !slices.Contains(list, b) {
				t.Fatalf("list %v, %v", list, err)
			}
			for _, x := range list {
				if ok, err := w.Has(ctx, x); !ok || err != nil || x.Protocol() != address.SECP256K1 {
					t.Errorf("has %s: %t, %v", x, ok, err)
				}
				sig, err := w.Sign(ctx, x, []byte("message"))
				if err != nil {
					t.Fatal(err)
				}
				if err := paych.VerifySignature(sig, x, []byte("message")); err != nil {
					t.Errorf("signature of %s: %v", x, err)
				}
			}
			// Lotus' library takes our signature.
			sig, err := w.Sign(ctx, b, []byte("message"))
			if err != nil {
				t.Fatal(err)
			}
			digest := blake2b.Sum256([]byte("message"))
			if !gocrypto.Verify(gocrypto.PublicKey(testKey), digest[:], sig.Data) {
				t.Error("go-crypto refuses the signature")
			}
			secret, err := w.Export(ctx, a)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := wallet.NewMem().Import(ctx, secret); err != nil || got != a {
				t.Errorf("exported %s, imported %s (%v)", a, got, err)
			}

			other, err := wallet.NewMem().New(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if ok, err := w.Has(ctx, other); ok || err != nil {
				t.Errorf("has another's key: %t, %v", ok, err)
			}
			if _, err := w.Sign(ctx, other, nil); !errors.Is(err, wallet.ErrNoKey) {
				t.Errorf("sign with another's key: %v", err)
			}
			if _, err := w.Export(ctx, other); !errors.Is(err, wallet.ErrNoKey) {
				t.Errorf("export another's key: %v", err)
			}
		})
	}
}

// A voucher is signed through the wallet and verifies.
func TestSignVoucher(t *testing.T) {
	w := wallet.NewMem(testKey)
	ch, err := address.NewActorAddress([]byte("channel"))
	if err != nil {
		t.Fatal(err)
	}
	sv, err := paych.Sign(t.Context(), w, testAddr(t), &paych.SignedVoucher{ChannelAddr: ch, Nonce: 1})
	if err != nil || paych.Verify(sv, testAddr(t)) != nil {
		t.Fatalf("%v %v", sv, err)
	}
}

func TestStoreSurvives(t *testing.T) {
	ctx, dir := t.Context(), filepath.Join(t.TempDir(), "a", "keys")
	s := open(t, dir, mainnet)
	var want []address.Address
	for range 3 {
		a, err := s.New(ctx)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, a)
	}
	if _, err := s.Import(ctx, lotusKey()); err != nil {
		t.Fatal(err)
	}
	want = append(want, testAddr(t))
	for _, name := range files(t, dir) {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || !strings.HasPrefix(name, "f1") || !strings.HasSuffix(name, ".key") {
			t.Fatalf("file %s: %v", name, err)
		}
		if runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", name, info.Mode().Perm())
		}
	}
	if info, err := os.Stat(dir); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v %v", info.Mode(), err)
	}
	got, err := open(t, dir, mainnet).List(ctx)
	if err != nil || len(got) != len(want) {
		t.Fatalf("%d keys after a restart (%v), want %d", len(got), err, len(want))
	}
	for _, a := range want {
		if !slices.Contains(got, a) {
			t.Errorf("%s is gone", a)
		}
	}
}

// Files have one name, whatever prefix addresses print with.
func TestStoreUnderTestnetPrefix(t *testing.T) {
	dir := t.TempDir()
	was := address.CurrentNetwork
	address.CurrentNetwork = address.Testnet
	defer func() { address.CurrentNetwork = was }()
	if _, err := open(t, dir, mainnet).Import(t.Context(), lotusKey()); err != nil {
		t.Fatal(err)
	}
	open(t, dir, mainnet)
	address.CurrentNetwork = address.Mainnet
	if names := files(t, dir); len(names) != 1 || names[0] != testAddr(t).String()+".key" {
		t.Errorf("files %v", names)
	}
	open(t, dir, mainnet)
}

func TestStoreRefusesAnotherChain(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	s := open(t, dir, dev)
	a, err := s.New(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []wallet.Chain{mainnet, tomorrow} {
		if _, err := wallet.Open(dir, c); !errors.Is(err, wallet.ErrOtherChain) || !strings.Contains(err.Error(), a.String()) {
			t.Errorf("open for %s: %v", c, err)
		}
	}
	for _, c := range []wallet.Chain{{}, {Network: "dev"}, {Genesis: dev.Genesis}} {
		if _, err := wallet.Open(dir, c); err == nil {
			t.Errorf("open for %s", c)
		}
	}
	// A chain that was renamed is the same chain.
	open(t, dir, wallet.Chain{Network: "renamed", Genesis: dev.Genesis})

	secret, err := s.Export(ctx, a)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, t.TempDir(), mainnet).Import(ctx, secret); !errors.Is(err, wallet.ErrOtherChain) {
		t.Errorf("import from another chain: %v", err)
	}
	if got, err := open(t, t.TempDir(), dev).Import(ctx, secret); err != nil || got != a {
		t.Errorf("import from the same chain: %s, %v", got, err)
	}
}

func TestStoreRefusesPermissions(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("permissions are kept elsewhere")
	}
	ctx, dir := t.Context(), t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	a, err := open(t, dir, mainnet).New(ctx)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, a.String()+".key")
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o666, 0o777} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := wallet.Open(dir, mainnet); !errors.Is(err, wallet.ErrPermissions) || !strings.Contains(err.Error(), path) {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
	for _, mode := range []os.FileMode{0o600, 0o400} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		open(t, dir, mainnet)
	}
	for _, mode := range []os.FileMode{0o720, 0o702, 0o777} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := wallet.Open(dir, mainnet); !errors.Is(err, wallet.ErrPermissions) {
			t.Errorf("directory of mode %o: %v", mode, err)
		}
	}
}

func TestStoreRefusesDamage(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	a, err := open(t, dir, mainnet).New(ctx)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, a.String()+".key")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	if err := json.Unmarshal(good, &v); err != nil {
		t.Fatal(err)
	}
	with := func(field string, value any) []byte {
		c := map[string]any{}
		for k, x := range v {
			c[k] = x
		}
		c[field] = value
		data, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for name, c := range map[string]struct {
		data []byte
		err  error // nil: any
	}{
		"empty":            {nil, wallet.ErrDamaged},
		"torn":             {good[:len(good)/2], wallet.ErrDamaged},
		"zeros":            {make([]byte, len(good)), wallet.ErrDamaged},
		"too long":         {append(bytes.Clone(good), bytes.Repeat([]byte{' '}, 5000)...), wallet.ErrDamaged},
		"another key":      {with("PrivateKey", testKey), wallet.ErrDamaged},
		"short key":        {with("PrivateKey", testKey[1:]), wallet.ErrDamaged},
		"no key":           {with("PrivateKey", nil), wallet.ErrDamaged},
		"key 0":            {with("PrivateKey", make([]byte, 32)), wallet.ErrDamaged},
		"key out of range": {with("PrivateKey", bytes.Repeat([]byte{0xff}, 32)), wallet.ErrDamaged},
		"another address":  {with("Address", testAddr(t).String()), wallet.ErrDamaged},
		"no genesis":       {with("Genesis", ""), wallet.ErrOtherChain},
		"version 0":        {with("Version", 0), wallet.ErrDamaged},
		"newer version":    {with("Version", 2), nil},
	} {
		if err := os.WriteFile(path, c.data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := wallet.Open(dir, mainnet)
		if err == nil || c.err != nil && !errors.Is(err, c.err) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, secret := range []string{hex.EncodeToString(testKey), fmt.Sprint(v["PrivateKey"])} {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%s: the error tells the key", name)
			}
		}
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, dir, mainnet)
	// Under another name, or through a link, it is another matter.
	other := filepath.Join(dir, testAddr(t).String()+".key")
	if err := os.Rename(path, other); err != nil {
		t.Fatal(err)
	}
	if _, err := wallet.Open(dir, mainnet); !errors.Is(err, wallet.ErrDamaged) {
		t.Errorf("renamed: %v", err)
	}
	outside := filepath.Join(t.TempDir(), "key")
	if err := os.Rename(other, outside); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, path); err != nil {
		t.Skip("no symbolic links here")
	}
	if _, err := wallet.Open(dir, mainnet); !errors.Is(err, wallet.ErrDamaged) {
		t.Errorf("through a link: %v", err)
	}
}

// A crash while a key is written leaves a file that nobody reads, and that goes
// once it is old.
func TestStoreAfterCrash(t *testing.T) {
	dir := t.TempDir()
	fresh, old := filepath.Join(dir, ".new-1"), filepath.Join(dir, ".new-2")
	for _, path := range []string{fresh, old} {
		if err := os.WriteFile(path, []byte("half a k"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	long := time.Now().Add(-time.Hour)
	if err := os.Chtimes(old, long, long); err != nil {
		t.Fatal(err)
	}
	if list, err := open(t, dir, mainnet).List(t.Context()); err != nil || len(list) != 0 {
		t.Fatalf("%v %v", list, err)
	}
	if names := files(t, dir); !slices.Equal(names, []string{".new-1"}) {
		t.Errorf("left %v", names)
	}
}

// A key whose file cannot be written is not used, and leaves nothing behind.
func TestStoreThatCannotWrite(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	s := open(t, dir, mainnet)
	// The name is taken by something that is no key.
	path := filepath.Join(dir, testAddr(t).String()+".key")
	if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Import(ctx, lotusKey()); !errors.Is(err, wallet.ErrDamaged) {
		t.Errorf("import over another file: %v", err)
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "{}" {
		t.Errorf("the file is now %q, %v", data, err)
	}
	if ok, _ := s.Has(ctx, testAddr(t)); ok {
		t.Error("has a key that is not on disk")
	}
	if names := files(t, dir); len(names) != 1 {
		t.Errorf("left %v", names)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := s.New(ctx); err == nil {
		t.Error("made a key without a directory")
	}
	if list, _ := s.List(ctx); len(list) != 0 {
		t.Errorf("has %v", list)
	}
}

// Two processes import one key into one directory.
func TestStoreShared(t *testing.T) {
	dir := t.TempDir()
	a, b := open(t, dir, mainnet), open(t, dir, mainnet)
	var wg sync.WaitGroup
	for _, s := range []*wallet.Store{a, b, a, b} {
		wg.Go(func() {
			if got, err := s.Import(t.Context(), lotusKey()); err != nil || got != testAddr(t) {
				t.Errorf("%s, %v", got, err)
			}
			if _, err := s.New(t.Context()); err != nil {
				t.Error(err)
			}
			if _, err := s.Sign(t.Context(), testAddr(t), nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if names := files(t, dir); len(names) != 5 {
		t.Errorf("files %v", names)
	}
}

func TestImportRefuses(t *testing.T) {
	pack := func(v any) string { data, _ := json.Marshal(v); return hex.EncodeToString(data) }
	for name, text := range map[string]string{
		"empty":     "",
		"no hex":    "zz" + hex.EncodeToString(testKey),
		"raw key":   hex.EncodeToString(testKey),
		"BLS":       pack(map[string]any{"Type": "bls", "PrivateKey": testKey}),
		"no type":   pack(map[string]any{"PrivateKey": testKey}),
		"short key": pack(map[string]any{"Type": "secp256k1", "PrivateKey": testKey[1:]}),
		"key 0":     pack(map[string]any{"Type": "secp256k1", "PrivateKey": make([]byte, 32)}),
		"no base64": pack(map[string]any{"Type": "secp256k1", "PrivateKey": "!"}),
		"too long":  pack(map[string]any{"Type": "secp256k1", "PrivateKey": make([]byte, 4000)}),
	} {
		for _, w := range []interface {
			Import(context.Context, wallet.Secret) (address.Address, error)
		}{wallet.NewMem(), open(t, t.TempDir(), mainnet)} {
			if a, err := w.Import(t.Context(), wallet.NewSecret(text)); err == nil {
				t.Errorf("%s: imported %s", name, a)
			} else if strings.Contains(err.Error(), hex.EncodeToString(testKey)) {
				t.Errorf("%s: the error tells the key", name)
			}
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("a key that is none was taken")
		}
	}()
	wallet.NewMem(testKey[1:])
}

// Nothing prints a key: not the secret, not the wallets, by any verb or encoder.
func TestSecretsAreRedacted(t *testing.T) {
	ctx := t.Context()
	store := open(t, t.TempDir(), mainnet)
	if _, err := store.Import(ctx, lotusKey()); err != nil {
		t.Fatal(err)
	}
	mem := wallet.NewMem(testKey)
	secret, err := store.Export(ctx, testAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	holder := struct {
		S wallet.Secret
		P *wallet.Secret
	}{secret, &secret}
	var log bytes.Buffer
	for _, v := range []any{secret, &secret, holder, store, mem, []any{secret, mem}, lotusKey()} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%c", "%b"} {
			fmt.Fprintf(&log, verb+"\n", v)
		}
		for _, h := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
			slog.New(h).Info("x", "v", v)
		}
		if data, err := json.Marshal(v); err == nil {
			log.Write(data)
		}
	}
	printed := strings.ToLower(log.String())
	for name, form := range map[string]string{
		"hex":     hex.EncodeToString(testKey),
		"export":  secret.Reveal(),
		"base64":  "QkJCQkJCQkJC",
		"decimal": "66 66 66 66",
		"Go":      "0x42, 0x42, 0x42",
		"chars":   "BBBBBBBB",
		"limbs":   "4774451407313060418", // 8 bytes of the key as a number
	} {
		if strings.Contains(printed, strings.ToLower(form)) {
			t.Errorf("the key was printed (%s)", name)
		}
	}
	if !strings.Contains(printed, "private key") {
		t.Error("nothing was printed in its place")
	}
}

func BenchmarkSign(b *testing.B) {
	ctx, w, a := b.Context(), wallet.NewMem(testKey), testAddr(b)
	for b.Loop() {
		if _, err := w.Sign(ctx, a, testKey); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSignGoCrypto(b *testing.B) {
	for b.Loop() {
		digest := blake2b.Sum256(testKey)
		if _, err := gocrypto.Sign(testKey, digest[:]); err != nil {
			b.Fatal(err)
		}
	}
}
