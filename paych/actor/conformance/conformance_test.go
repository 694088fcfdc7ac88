package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/crypto"
	"github.com/filecoin-project/go-state-types/exitcode"
	"github.com/filecoin-project/specs-actors/v8/actors/builtin"
	"github.com/filecoin-project/specs-actors/v8/actors/builtin/paych"
	"github.com/ipfs/go-cid"
	"golang.org/x/crypto/blake2b"

	"github.com/tallystick/tally/paych/actor"
)

// world is what both actors see around them.
type world struct {
	self, from, to address.Address // ids
	names          map[address.Address]address.Address
}

// The people of every world: ids 101 to 104 with keys, of whom 104 is no
// account, and a key that nobody has heard of.
var (
	selfID, selfLong = idAddr(100), longAddr("channel")
	people           = []address.Address{idAddr(101), idAddr(102), idAddr(103), idAddr(104)}
	keys             = []address.Address{keyAddr("a"), keyAddr("b"), keyAddr("c"), keyAddr("d")}
	unknown          = keyAddr("unknown")
	secrets          = [][]byte{nil, {1}, bytes.Repeat([]byte{2}, 32), bytes.Repeat([]byte{3}, 256), bytes.Repeat([]byte{4}, 257)}
)

func newWorld() *world {
	w := &world{self: selfID, names: map[address.Address]address.Address{selfLong: selfID}}
	for i := range people {
		w.names[keys[i]] = people[i]
	}
	return w
}

func (w *world) resolve(a address.Address) (address.Address, bool) { r, ok := w.names[a]; return r, ok }

func (w *world) account(id address.Address) (account, found bool) {
	i := slices.Index(people, id)
	return i >= 0 && i < 3, i >= 0
}

// sign is a signature that says who gave it and over what.
func (w *world) sign(signer address.Address, msg []byte) *crypto.Signature {
	h := blake2b.Sum256(msg)
	return &crypto.Signature{Type: crypto.SigTypeSecp256k1, Data: append(signer.Bytes(), h[:]...)}
}

func (w *world) verify(signer address.Address, sig crypto.Signature, msg []byte) error {
	if !bytes.Equal(sig.Data, w.sign(signer, msg).Data) {
		return errors.New("another signature")
	}
	return nil
}

// extra answers with the method number, if the data are what was asked for.
func (w *world) extra(x *actor.ModVerifyParams) exitcode.ExitCode {
	if !bytes.Equal(x.Data, []byte{0x80}) {
		return exitcode.ErrSerialization
	}
	return exitcode.ExitCode(x.Method)
}

func (w *world) env() actor.Env {
	return actor.Env{Self: w.self, Resolve: w.resolve, Account: w.account, Verify: w.verify, Extra: w.extra}
}

// source is where choices come from: a seeded generator, or a fuzzer's bytes.
type source interface{ Uint64() uint64 }

// tape is a fuzzer's bytes, one a choice, and zeros when they are spent.
type tape struct{ data []byte }

func (t *tape) Uint64() (n uint64) {
	if len(t.data) > 0 {
		n, t.data = uint64(t.data[0]), t.data[1:]
	}
	return n
}

// run is one sequence through both actors.
type run struct {
	source
	w     *world
	vm    *vm
	st    *actor.State // ours
	log   []string
	noted bool // keep a log: it costs a quarter of a run, and only a failure is read
	stats map[string]int
	bal   big.Int
	epoch abi.ChainEpoch
}

func (r *run) n(below int) int             { return int(r.Uint64() % uint64(below)) }
func (r *run) one(in int) bool             { return r.n(in) == 0 }
func (r *run) pick(of ...int64) int64      { return of[r.n(len(of))] }
func (r *run) pickU(of ...uint64) uint64   { return of[r.n(len(of))] }
func (r *run) count(what string, n ...any) { r.stats[fmt.Sprintf(what, n...)]++ }

func (r *run) note(f string, args ...any) {
	if r.noted {
		r.log = append(r.log, fmt.Sprintf(f, args...))
	}
}

// play runs a sequence and returns the first difference.
func play(src source, stats map[string]int) error {
	return (&run{source: src, w: newWorld(), stats: stats}).play()
}

// playAgain is play with a log of every message.
func playAgain(src source) (log string, err error) {
	r := &run{source: src, w: newWorld(), stats: map[string]int{}, noted: true}
	err = r.play()
	return strings.Join(r.log, "\n"), err
}

func (r *run) play() error {
	if err := r.construct(); err != nil || r.st == nil {
		return err
	}
	for range 1 + r.n(40) {
		if err := r.step(); err != nil {
			return err
		}
		if r.st == nil {
			break
		}
	}
	return nil
}

func (r *run) construct() error {
	any := append(slices.Concat(people, keys), unknown, address.Undef, idAddr(999))
	from, to := keys[0], keys[1]
	if r.one(10) {
		from, to = any[r.n(len(any))], any[r.n(len(any))]
	}
	r.bal = big.NewInt(r.pick(0, 1, 100, 1000, 1000, 1000, 1000, math.MaxInt64))
	if r.one(50) {
		r.bal = big.Lsh(big.NewInt(3), 90) // more than there is
	}
	r.epoch = abi.ChainEpoch(r.pick(0, 1, 1000, 1000, 5e6))
	r.vm = &vm{world: r.w, epoch: r.epoch, balance: r.bal, caller: builtin.InitActorAddr, store: map[cid.Cid][]byte{}}
	theirs, text := r.vm.call(func() {
		new(paych.Actor).Constructor(r.vm, &paych.ConstructorParams{From: from, To: to})
	})
	ours := actor.Construct(from, to, r.w.env())
	r.note("construct %s %s with %v at %d: exit %d %s | %d %v", from, to, r.bal, r.epoch, theirs, text, ours.ExitCode, ours.Err)
	r.count("construct exit %d", theirs)
	if ours.ExitCode != theirs {
		return fmt.Errorf("exit %d, the actor says %d", ours.ExitCode, theirs)
	}
	if theirs == exitcode.Ok {
		r.st = ours.State
		return r.compare()
	}
	return nil
}

// step sends one message to both.
func (r *run) step() error {
	r.epoch += abi.ChainEpoch(r.pick(0, 0, 0, 1, 1, 2, 10, 100, 719, 1440, 1441))
	if r.st.SettlingAt > r.epoch && r.st.SettlingAt < 1<<50 && r.one(6) {
		r.epoch = max(r.epoch, r.st.SettlingAt+abi.ChainEpoch(r.pick(-2, -1, -1, 0, 1)))
	}
	caller := r.st.To
	switch r.n(10) {
	case 0:
		caller = people[r.n(len(people))]
	case 1, 2, 3:
		caller = r.st.From
	}
	msg := actor.Msg{Method: actor.MethodUpdateChannelState}
	switch k := r.n(40); {
	case k < 2:
		msg = actor.Settle()
	case k < 5:
		msg = actor.Collect()
	case k < 7:
		msg = actor.Msg{Method: actor.MethodSend}
		r.bal = big.Add(r.bal, big.NewInt(r.pick(0, 1, 50, 500)))
	case k < 8:
		msg = actor.Msg{Method: abi.MethodNum(5 + r.n(3))}
	default:
		sv, secret := r.voucher(caller)
		msg = actor.Redeem(sv, secret)
	}
	params, err := msg.Params()
	if err != nil {
		return nil // a message that nobody can send
	}

	r.vm.epoch, r.vm.balance, r.vm.caller, r.vm.pays = r.epoch, r.bal, caller, nil
	theirs, text := r.vm.send(msg.Method, params)

	// Ours reads the same bytes.
	read, code := actor.DecodeMsg(msg.Method, params)
	if code == exitcode.Ok {
		before := r.st.Clone()
		ours := actor.Apply(r.st, r.bal, r.epoch, paych.SettleDelay, caller, read, r.w.env())
		if d := differ(before, r.st); d != "" {
			return fmt.Errorf("the input changed: %s", d)
		}
		if r.noted {
			r.note("%d: %s sends %s to balance %v: exit %d %s | %d %v", r.epoch, caller, describe(msg), r.bal, theirs, text, ours.ExitCode, ours.Err)
		}
		code, r.st = ours.ExitCode, ours.State
		if d := differPays(ours.Pays, r.vm.pays); d != "" {
			return errors.New(d)
		}
		if ours.Deleted != r.vm.gone {
			return fmt.Errorf("deleted %t, the actor says %t", ours.Deleted, r.vm.gone)
		}
	}
	r.tally(msg, caller, theirs)
	if code != theirs {
		return fmt.Errorf("exit %d, the actor says %d (%s)", code, theirs, text)
	}
	if r.st != nil {
		if err := r.st.Check(r.bal); err != nil {
			return err
		}
	}
	return r.compare()
}

// voucher makes one that is likely to be taken, and spoils it now and then.
func (r *run) voucher(caller address.Address) (actor.SignedVoucher, []byte) {
	lanes := []uint64{0, 1, 2, 3, 4, 7, 8, 63, 64, 1 << 40, math.MaxInt64 - 1, math.MaxInt64}
	lane := lanes[r.n(6)]
	if r.one(10) {
		lane = lanes[r.n(len(lanes))]
	}
	if len(r.st.Lanes) > 0 && r.one(2) {
		lane = r.st.Lanes[r.n(len(r.st.Lanes))].Lane
	}
	own, _ := r.st.Lane(lane)
	room := big.Sub(r.bal, r.st.ToSend)
	amount := big.Add(big.Add(own.Redeemed, big.Zero()), big.NewInt(r.pick(0, 1, 1, 5, 10, 50, 100, -1, -10)))
	switch r.n(20) {
	case 0:
		amount = big.Add(own.Redeemed, room) // to the last
	case 1:
		amount = big.Add(big.Add(own.Redeemed, room), big.NewInt(1))
	case 2:
		amount = big.Zero() // a cancel
	case 3:
		amount = big.Sub(own.Redeemed, r.st.ToSend) // down to nothing
	case 4:
		amount = big.Sub(big.Sub(own.Redeemed, r.st.ToSend), big.NewInt(1))
	}
	sv := actor.SignedVoucher{
		ChannelAddr: selfLong, Lane: lane, Nonce: own.Nonce + r.pickU(1, 1, 1, 1, 2, 100, 0), Amount: amount,
	}
	if r.one(3) {
		sv.ChannelAddr = selfID
	}
	if r.one(8) {
		sv.TimeLockMin = r.epoch + abi.ChainEpoch(r.pick(-100, -1, 0, 1, 100))
	}
	if r.one(6) {
		sv.TimeLockMax = r.epoch + abi.ChainEpoch(r.pick(-100, -1, 0, 1, 100))
	}
	if r.one(6) {
		sv.MinSettleHeight = r.epoch + abi.ChainEpoch(r.pick(-100, 0, 100, 1439, 1440, 1441, 5000))
	}
	var secret []byte
	if r.one(4) {
		s := secrets[r.n(len(secrets))]
		h := blake2b.Sum256(s)
		sv.SecretHash, secret = h[:], s
		if r.one(4) {
			secret = secrets[r.n(len(secrets))]
		}
		if r.one(12) {
			sv.SecretHash = sv.SecretHash[:r.n(33)]
		}
	}
	if r.one(8) {
		sv.Extra = &actor.ModVerifyParams{Actor: people[r.n(len(people))], Method: abi.MethodNum(r.pick(1, 0, 0, 0, 16, 33)), Data: []byte{0x80}}
		// Method 0 without value is a plain call; the data are what it checks.
		if r.one(6) {
			sv.Extra.Data = []byte{0x81, 0}
		}
	}
	if r.one(4) {
		for range 1 + r.n(3) {
			m := actor.Merge{Lane: lanes[r.n(len(lanes))], Nonce: 1}
			if len(r.st.Lanes) > 0 && !r.one(6) {
				m.Lane = r.st.Lanes[r.n(len(r.st.Lanes))].Lane
			}
			other, _ := r.st.Lane(m.Lane)
			m.Nonce = other.Nonce + r.pickU(1, 1, 1, 2, 0)
			sv.Merges = append(sv.Merges, m)
			if !r.one(5) {
				// What was redeemed there is in the new total.
				sv.Amount = big.Add(sv.Amount, other.Redeemed)
			}
		}
	}
	if r.one(12) {
		r.hostile(&sv)
	}

	signer := r.st.From
	if caller == r.st.From {
		signer = r.st.To
	}
	if r.one(15) {
		signer = people[r.n(len(people))]
	}
	msg, err := sv.SigningBytes()
	if err == nil && !r.one(40) {
		sv.Signature = r.w.sign(signer, msg)
		switch r.n(60) {
		case 0:
			sv.Nonce++ // changed after it was signed
		case 1:
			sv.Signature.Data = sv.Signature.Data[:r.n(len(sv.Signature.Data))]
		case 2:
			sv.Signature.Type = crypto.SigTypeBLS // the verifiers here do not look
		}
	}
	return sv, secret
}

// hostile puts a value that should break something in one field.
func (r *run) hostile(sv *actor.SignedVoucher) {
	switch r.n(9) {
	case 0:
		sv.Lane = r.pickU(1<<63, 1<<63+1, math.MaxUint64, math.MaxInt64, math.MaxInt64-1)
	case 1:
		sv.Nonce = r.pickU(0, math.MaxUint64, math.MaxUint64-1, 1<<63)
	case 2:
		sv.Amount = big.Lsh(big.NewInt(r.pick(1, -1)), uint(r.pick(63, 64, 100, 1000)))
	case 3:
		sv.Amount = big.NewInt(r.pick(-1, math.MinInt64, math.MaxInt64))
	case 4:
		sv.MinSettleHeight = abi.ChainEpoch(r.pick(1<<62, math.MaxInt64, math.MinInt64, -1))
	case 5:
		sv.TimeLockMin = abi.ChainEpoch(r.pick(math.MinInt64, math.MaxInt64, -1))
	case 6:
		sv.TimeLockMax = abi.ChainEpoch(r.pick(math.MinInt64, math.MaxInt64, -1))
	case 7:
		sv.ChannelAddr = []address.Address{people[0], keys[0], unknown, idAddr(999)}[r.n(4)]
	case 8:
		sv.Merges = append(sv.Merges, actor.Merge{
			Lane:  r.pickU(sv.Lane, sv.Lane, 1<<63, math.MaxUint64, 12345),
			Nonce: r.pickU(0, math.MaxUint64, 1<<63),
		})
	}
}

// compare holds our state against the actor's.
func (r *run) compare() error {
	if d := differ(r.vm.state(), r.st); d != "" {
		return errors.New(d)
	}
	return nil
}

// tally counts what the sequences reached.
func (r *run) tally(msg actor.Msg, caller address.Address, code exitcode.ExitCode) {
	r.count("method %d exit %d", msg.Method, code)
	if code != exitcode.Ok || msg.Update == nil {
		return
	}
	sv := &msg.Update.Sv
	switch {
	case len(sv.Merges) > 0:
		r.count("merged")
	case caller == r.st.From:
		r.count("by the payer")
	case r.st.SettlingAt != 0:
		r.count("while settling")
	}
	if len(sv.SecretHash) > 0 {
		r.count("opened")
	}
	if sv.Extra != nil {
		r.count("with extra")
	}
	if sv.MinSettleHeight > 0 {
		r.count("with min settle height")
	}
}

func differ(a, b *actor.State) string {
	switch {
	case a == nil || b == nil:
		if a != b {
			return fmt.Sprintf("one is gone: %v %v", a, b)
		}
		return ""
	case a.From != b.From || a.To != b.To:
		return fmt.Sprintf("parties %s %s and %s %s", a.From, a.To, b.From, b.To)
	case !a.ToSend.Equals(b.ToSend):
		return fmt.Sprintf("ToSend %v and %v", a.ToSend, b.ToSend)
	case a.SettlingAt != b.SettlingAt:
		return fmt.Sprintf("SettlingAt %d and %d", a.SettlingAt, b.SettlingAt)
	case a.MinSettleHeight != b.MinSettleHeight:
		return fmt.Sprintf("MinSettleHeight %d and %d", a.MinSettleHeight, b.MinSettleHeight)
	case len(a.Lanes) != len(b.Lanes):
		return fmt.Sprintf("lanes %v and %v", a.Lanes, b.Lanes)
	}
	for i, x := range a.Lanes {
		if y := b.Lanes[i]; x.Lane != y.Lane || x.Nonce != y.Nonce || !x.Redeemed.Equals(y.Redeemed) {
			return fmt.Sprintf("lane %+v and %+v", x, y)
		}
	}
	return ""
}

func differPays(a, b []actor.Payment) string {
	same := slices.EqualFunc(a, b, func(x, y actor.Payment) bool { return x.To == y.To && x.Amount.Equals(y.Amount) })
	if !same {
		return fmt.Sprintf("pays %v, the actor %v", a, b)
	}
	return ""
}

func describe(msg actor.Msg) string {
	if msg.Update == nil {
		return fmt.Sprintf("method %d", msg.Method)
	}
	sv := msg.Update.Sv
	signer := "nobody"
	if sv.Signature != nil {
		signer = fmt.Sprintf("%x", sv.Signature.Data)
	}
	return fmt.Sprintf("voucher %+v signed %s secret %x", sv, signer, msg.Update.Secret)
}

// sequences is how many the test plays unless CONFORMANCE says otherwise.
const sequences = 100_000

// TestConformance plays sequences from a seed, on all cores. A failure prints the
// sequence and what plays it again.
func TestConformance(t *testing.T) {
	total, seed := uint64(sequences), uint64(1)
	if s := os.Getenv("CONFORMANCE"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("CONFORMANCE: %v", err)
		}
		total, seed = n, rand.Uint64()
	} else if testing.Short() {
		total /= 20
	}
	if s := os.Getenv("CONFORMANCE_SEED"); s != "" {
		var i uint64
		if _, err := fmt.Sscanf(s, "%d:%d", &seed, &i); err != nil {
			t.Fatalf("CONFORMANCE_SEED: %v", err)
		}
		log, err := playAgain(rand.NewPCG(seed, i))
		t.Logf("%s\n%v", log, err)
		if err != nil {
			t.Fail()
		}
		return
	}
	// All that lives is one sequence; with the usual setting half of the time
	// would go into collecting a heap of a few megabytes.
	defer debug.SetGCPercent(debug.SetGCPercent(1600))
	start := time.Now()
	stats := playAll(t, seed, total)
	messages := 0
	var lines []string
	for what, n := range stats {
		if strings.HasPrefix(what, "method") {
			messages += n
		}
		lines = append(lines, fmt.Sprintf("%9d %s", n, what))
	}
	slices.Sort(lines)
	t.Logf("%d sequences, %d messages, %v, seed %d\n%s", total, messages, time.Since(start).Round(time.Millisecond), seed, strings.Join(lines, "\n"))
	// A generator that no longer reaches these proves nothing.
	for _, must := range []string{
		"method 2 exit 0", "method 2 exit 8", "method 2 exit 16", "method 2 exit 32", "method 2 exit 33",
		"method 3 exit 0", "method 3 exit 8", "method 3 exit 20", "method 4 exit 0", "method 4 exit 8", "method 4 exit 18",
		"construct exit 0", "construct exit 16", "construct exit 18", "construct exit 20",
		"merged", "by the payer", "while settling", "opened", "with extra", "with min settle height",
	} {
		if total >= 4000 && stats[must] < 40 {
			t.Errorf("%q only %d times", must, stats[must])
		}
	}
}

// playAll plays the sequences 0 to total-1 of a seed and counts what they reached.
func playAll(t *testing.T, seed, total uint64) map[string]int {
	var (
		next   atomic.Uint64
		failed atomic.Bool
		mu     sync.Mutex // guards sum
		sum    = map[string]int{}
		wg     sync.WaitGroup
	)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() { // ends with the last sequence, or with the first difference
			stats := map[string]int{}
			for i := next.Add(1) - 1; i < total && !failed.Load(); i = next.Add(1) - 1 {
				if play(rand.NewPCG(seed, i), stats) == nil {
					continue
				}
				failed.Store(true)
				log, err := playAgain(rand.NewPCG(seed, i))
				t.Errorf("%v\nafter:\n%s\nagain: CONFORMANCE_SEED=%d:%d go test -v", err, log, seed, i)
			}
			mu.Lock()
			defer mu.Unlock()
			for what, n := range stats {
				sum[what] += n
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return sum
}

// FuzzConformance lets the fuzzer choose.
func FuzzConformance(f *testing.F) {
	for i := range byte(8) {
		f.Add(bytes.Repeat([]byte{i, 3 * i, 255 - i}, 200))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if play(&tape{data}, map[string]int{}) != nil {
			log, err := playAgain(&tape{data})
			t.Fatalf("%v\nafter:\n%s", err, log)
		}
	})
}

func idAddr(n uint64) address.Address { return must(address.NewIDAddress(n)) }

func longAddr(name string) address.Address { return must(address.NewActorAddress([]byte(name))) }

func keyAddr(name string) address.Address {
	key := blake2b.Sum512([]byte(name))
	return must(address.NewSecp256k1Address(append([]byte{4}, key[:]...)))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
