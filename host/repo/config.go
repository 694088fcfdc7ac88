package repo

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/paych/lotus"
)

// Config holds the settings of a peer. It is the only list of them: the
// template, its defaults, `config show` and the check for unknown keys are made
// from its fields and their tags. Amounts are units.
type Config struct {
	PaymentThreshold    uint64   `toml:"payment_threshold" group:"Tabs with peers. Amounts are accounting units." doc:"The debt at which a peer should pay us; we announce it."`
	DisconnectThreshold uint64   `toml:"disconnect_threshold" doc:"The debt beyond which we serve no more; must be above payment_threshold. Default: 5/4 of it."`
	EarlyPaymentPercent uint64   `toml:"early_payment_percent" doc:"We pay when our debt reaches this part of the peer's threshold, 1 to 100. Lower it so that service never waits for an ack."`
	MinPeerThreshold    uint64   `toml:"min_peer_threshold" doc:"We do not consume from a peer that announces less than this."`
	MaxPeerThreshold    uint64   `toml:"max_peer_threshold" doc:"A higher threshold of a peer counts as this."`
	MaxDebt             uint64   `toml:"max_debt" doc:"The most we let ourselves owe to one peer. Default: 10 times payment_threshold."`
	MaxExposure         uint64   `toml:"max_exposure" doc:"The most one peer may make us lose. Default: 4 times disconnect_threshold."`
	MaxExposureTotal    uint64   `toml:"max_exposure_total" doc:"The most all peers together may make us lose. Default: 1000 times disconnect_threshold."`
	StrangersExposure   uint64   `toml:"strangers_exposure" doc:"The credit that all peers that never paid share. Default: 100 times payment_threshold."`
	Mode                string   `toml:"mode" doc:"soft: count only. mock: settle with signed cheques that nobody can cash. hard: every cheque carries a channel voucher; needs a chain. auto: hard where a chain is configured, else mock."`
	Asset               string   `toml:"asset" doc:"What is counted. karma has no token. In mode hard it is FIL, and a unit is 1 nanoFIL."`
	Network             string   `toml:"network" group:"Network" doc:"Only peers of the same network and genesis settle with each other."`
	NetworkGenesis      string   `toml:"network_genesis" doc:"The cid of the genesis block of its chain; empty where there is no chain."`
	Listen              []string `toml:"listen" doc:"Multiaddrs to listen on. The default is this machine only, on free ports; /ip4/0.0.0.0/tcp/4001 opens it to the network."`
	RPC                 string   `toml:"rpc" group:"Control" doc:"Where the command line reaches the peer: unix, or HOST:PORT with a loopback host."`
	HTTP                string   `toml:"http" doc:"HOST:PORT of /metrics, /healthz, /readyz and the web page; empty is off."`
	LogLevel            string   `toml:"log_level" doc:"debug, info, warn or error."`
	Chain               string   `toml:"chain" group:"Chain" doc:"URL of the chain's JSON-RPC, or as Lotus writes it, TOKEN:/ip4/HOST/tcp/PORT/http. Empty: FULLNODE_API_INFO of the environment, else none."`
	ChainTokenFile      string   `toml:"chain_token_file" doc:"File with the bearer token for it, readable by us alone. TALLY_CHAIN_TOKEN in the environment comes first."`
	Wallet              string   `toml:"wallet" doc:"Whose keys pay and are paid. local: those in keystore. node: those of the chain's node."`
	ChainFinality       uint64   `toml:"chain_finality" doc:"Epochs after which what is on the chain counts as final. 0 is what a devnet says, and 900 (7.5 h) elsewhere; less makes the first cheque wait less, and trusts the chain more."`
	InitialDeposit      uint64   `toml:"initial_deposit" doc:"Units that go into a new channel, in mode hard; more where more is owed."`
	TopUp               uint64   `toml:"top_up" doc:"The least that is added to a channel that runs low. Half of it is kept ready in each channel."`
	MaxLocked           uint64   `toml:"max_locked" doc:"The most that is locked in the channel to one peer. Default: 100 times initial_deposit."`
	MaxLockedTotal      uint64   `toml:"max_locked_total" doc:"The most that is locked in all channels. Default: 100 times max_locked."`
	CashoutAmount       uint64   `toml:"cashout_amount" doc:"Submit a peer's voucher to the chain at this many uncashed units; 0 is never. All is submitted in time when a channel settles."`
	CashoutHours        uint64   `toml:"cashout_hours" doc:"Submit it when something is uncashed for so long; 0 is never."`
	CashoutFeeRatio     uint64   `toml:"cashout_fee_ratio" doc:"Only where the amount is at least so many times the fee."`
	FeeBase             uint64   `toml:"fee_base" group:"Packets and payment sockets" doc:"Units that a packet which passes here pays us."`
	FeePPM              uint64   `toml:"fee_ppm" doc:"What it pays besides, in parts per million of its amount."`
	Routes              []string `toml:"routes" doc:"Ways to peers that are no neighbours, each as PEER=NEIGHBOUR."`
	Advertise           string   `toml:"advertise" doc:"What others are told of whom we carry to. tabs: peers and amounts. channels: and the channel behind each tab, by which the chain shows what stands behind it, and everybody whose its addresses are. nothing: our edges are private, and found by invoices alone."`
	SocketPushMax       uint64   `toml:"socket_push_max" doc:"The most that a peer without a URI of ours may push to us on one socket; 0 lets nobody."`
	SocketsPerPeer      uint64   `toml:"sockets_per_peer" doc:"The most sockets that come through one neighbour."`
	Locks               string   `toml:"locks" group:"Locks, for what is too large for a tab. They need a chain, and mode hard." doc:"auto: where the chain's channels have room for them. off: no new ones. required: as auto, and without room the peer does not start."`
	LockGrace           uint64   `toml:"lock_grace" doc:"Epochs in which two neighbours tell each other what the chain showed one of them; 0 chooses by the chain."`
	LockMargin          uint64   `toml:"lock_margin" doc:"Epochs between the end of a lock and the end of its channel's settling; 0 is a third of the settle delay."`
	HoldMaxHours        uint64   `toml:"hold_max_hours" group:"Holds" doc:"How long we hold a payment for a payee that is offline, at most 672; 0 holds nothing for others."`
	HoldMaxPayer        uint64   `toml:"hold_max_payer" doc:"The most that we hold of one payer, in units; 0 is what its tab carries."`
	HoldPriceBase       uint64   `toml:"hold_price_base" doc:"Units that a hold costs its payer, whatever becomes of it."`
	HoldPricePPM        uint64   `toml:"hold_price_ppm" doc:"What it costs besides for each hour that has begun, in parts per million of its amount."`
	BTPListen           string   `toml:"btp_listen" group:"Interledger" doc:"HOST:PORT where Interledger clients connect over BTP; empty is off. There is no TLS: on an address that others reach, put a proxy before it that has."`
	BridgeCredit        uint64   `toml:"bridge_credit" doc:"The most that a client of the bridge may owe us, where it is added without a limit of its own. Default: payment_threshold."`
	BridgeDebt          uint64   `toml:"bridge_debt" doc:"The most that we may owe such a client, and it lose with us. Default: payment_threshold."`
	PointerListen       string   `toml:"pointer_listen" doc:"HOST:PORT where our payment pointers are answered, behind a proxy with TLS that passes on the paths; empty is off."`
	ClusterID           uint64   `toml:"cluster_id" group:"Message store" doc:"The Waku cluster, 0 to 65535."`
	Shards              []uint64 `toml:"shards" doc:"The shards of the cluster that we tell light clients, 0 to 1023."`
	PubsubTopic         string   `toml:"pubsub_topic" doc:"The topic of a message that names none. auto: the shard of its content topic, as Waku chooses it."`
}

// DefaultConfig returns the default of every setting.
func DefaultConfig() Config {
	c := Config{
		PaymentThreshold:    100,
		EarlyPaymentPercent: 100,
		MinPeerThreshold:    10,
		MaxPeerThreshold:    1_000_000,
		Mode:                ModeAuto,
		Wallet:              WalletLocal,
		Asset:               "karma",
		InitialDeposit:      10_000,
		TopUp:               10_000,
		CashoutFeeRatio:     100,
		Network:             "tally",
		Listen:              []string{"/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/0/ws", "/ip4/127.0.0.1/udp/0/quic-v1"},
		RPC:                 rpc.ListenUnix,
		LogLevel:            "info",
		Routes:              []string{},
		Advertise:           AdvertiseTabs,
		SocketPushMax:       1_000_000_000,
		Locks:               LocksAuto,
		HoldMaxHours:        168,
		HoldPriceBase:       1,
		HoldPricePPM:        100,
		SocketsPerPeer:      4096,
		PubsubTopic:         "auto",
		ClusterID:           1,
		Shards:              []uint64{0, 1, 2, 3, 4, 5, 6, 7},
	}
	c.derive(func(string) bool { return false })
	return c
}

// derive fills the settings whose default depends on others, but for those that
// were set.
func (c *Config) derive(set func(key string) bool) {
	fill := func(key string, field *uint64, value uint64) {
		if !set(key) {
			*field = value
		}
	}
	fill("disconnect_threshold", &c.DisconnectThreshold, c.PaymentThreshold+max(1, c.PaymentThreshold/4))
	fill("max_debt", &c.MaxDebt, times(c.PaymentThreshold, 10))
	fill("max_exposure", &c.MaxExposure, times(c.DisconnectThreshold, 4))
	fill("max_exposure_total", &c.MaxExposureTotal, times(c.DisconnectThreshold, 1000))
	fill("strangers_exposure", &c.StrangersExposure, times(c.PaymentThreshold, 100))
	fill("bridge_credit", &c.BridgeCredit, c.PaymentThreshold)
	fill("bridge_debt", &c.BridgeDebt, c.PaymentThreshold)
	fill("max_locked", &c.MaxLocked, times(c.InitialDeposit, 100))
	fill("max_locked_total", &c.MaxLockedTotal, times(c.MaxLocked, 100))
}

// times multiplies and stays at the largest amount a book may hold.
func times(a, b uint64) uint64 {
	if a > maxAmount/b {
		return maxAmount
	}
	return a * b
}

// What Advertise may say.
const (
	AdvertiseTabs     = "tabs"
	AdvertiseChannels = "channels"
	AdvertiseNothing  = "nothing"
)

// ModeAuto chooses the mode by whether there is a chain.
const ModeAuto = "auto"

// What locks may be.
const (
	LocksAuto     = "auto"
	LocksOff      = "off"
	LocksRequired = "required"
)

// ModeFor is the mode in force on a chain, or without one.
func (c Config) ModeFor(hasChain bool) string {
	switch {
	case c.Mode != ModeAuto:
		return c.Mode
	case hasChain:
		return "hard"
	default:
		return "mock"
	}
}

const (
	// maxThreshold and maxAmount bound settings so that no sum of a ledger can
	// overflow; package swap has the same bounds.
	maxThreshold = 1 << 40
	maxAmount    = 1 << 60
	// maxShards is that of the relay sharding specification of Waku.
	maxShards = 1024
	// maxListen bounds the listen addresses: a few for each transport.
	maxListen = 32
	// maxRoutes bounds the static table of ways.
	maxRoutes = 1 << 16
	maxName   = 64
)

// BadSetting is a setting that cannot work: which, why, and what would.
type BadSetting struct{ Key, Cause, Remedy string }

func (e *BadSetting) Error() string { return e.Key + ": " + e.Cause }

// Validate reports the first setting that cannot work.
func (c Config) Validate() error {
	if bad := c.check(); bad != nil {
		return &Error{Kind: ErrConfig, Cause: bad.Error(), remedy: bad.Remedy}
	}
	return nil
}

func (c Config) check() *BadSetting {
	bad := func(key, remedy, format string, args ...any) *BadSetting {
		return &BadSetting{key, fmt.Sprintf(format, args...), remedy}
	}
	for _, t := range []struct {
		key             string
		value, low, top uint64
	}{
		{"payment_threshold", c.PaymentThreshold, 1, maxThreshold},
		{"disconnect_threshold", c.DisconnectThreshold, 2, maxThreshold},
		{"early_payment_percent", c.EarlyPaymentPercent, 1, 100},
		{"max_peer_threshold", c.MaxPeerThreshold, 1, maxThreshold},
		{"min_peer_threshold", c.MinPeerThreshold, 1, maxThreshold},
		{"max_debt", c.MaxDebt, 1, maxAmount},
		{"max_exposure", c.MaxExposure, 1, maxAmount},
		{"max_exposure_total", c.MaxExposureTotal, 1, maxAmount},
		{"strangers_exposure", c.StrangersExposure, 1, maxAmount},
		{"chain_finality", c.ChainFinality, 0, 1 << 20},
		{"initial_deposit", c.InitialDeposit, 1, maxAmount},
		{"top_up", c.TopUp, 1, maxAmount},
		{"max_locked", c.MaxLocked, 1, maxAmount},
		{"max_locked_total", c.MaxLockedTotal, 1, maxAmount},
		{"cashout_amount", c.CashoutAmount, 0, maxAmount},
		{"cashout_hours", c.CashoutHours, 0, 1 << 20},
		{"cashout_fee_ratio", c.CashoutFeeRatio, 1, 1 << 20},
		{"fee_base", c.FeeBase, 0, maxAmount},
		{"fee_ppm", c.FeePPM, 0, 1_000_000},
		{"socket_push_max", c.SocketPushMax, 0, maxAmount},
		{"sockets_per_peer", c.SocketsPerPeer, 1, 1 << 16},
		{"lock_grace", c.LockGrace, 0, 1 << 20},
		{"lock_margin", c.LockMargin, 0, 1 << 20},
		{"hold_max_hours", c.HoldMaxHours, 0, 672},
		{"hold_max_payer", c.HoldMaxPayer, 0, maxAmount},
		{"hold_price_base", c.HoldPriceBase, 0, maxAmount},
		{"hold_price_ppm", c.HoldPricePPM, 0, 1_000_000},
		{"bridge_credit", c.BridgeCredit, 0, maxAmount},
		{"bridge_debt", c.BridgeDebt, 0, maxAmount},
		{"cluster_id", c.ClusterID, 0, math.MaxUint16},
	} {
		if t.value < t.low || t.value > t.top {
			return bad(t.key, fmt.Sprintf("use %d to %d", t.low, t.top), "%d is out of bounds", t.value)
		}
	}
	switch {
	case c.DisconnectThreshold <= c.PaymentThreshold:
		return bad("disconnect_threshold", fmt.Sprintf("raise it to at least %d, or leave it out", c.PaymentThreshold+1),
			"%d is not above payment_threshold %d: a peer would be refused before it should pay", c.DisconnectThreshold, c.PaymentThreshold)
	case c.MinPeerThreshold > c.MaxPeerThreshold:
		return bad("min_peer_threshold", "lower it, or raise max_peer_threshold", "%d is above max_peer_threshold %d", c.MinPeerThreshold, c.MaxPeerThreshold)
	case c.MaxDebt < c.MinPeerThreshold:
		return bad("max_debt", "raise it, or lower min_peer_threshold", "%d is below min_peer_threshold %d: nothing could be consumed", c.MaxDebt, c.MinPeerThreshold)
	case c.MaxExposure < c.DisconnectThreshold:
		return bad("max_exposure", fmt.Sprintf("raise it to at least %d", c.DisconnectThreshold), "%d is below disconnect_threshold %d", c.MaxExposure, c.DisconnectThreshold)
	case c.MaxExposureTotal < c.MaxExposure:
		return bad("max_exposure_total", fmt.Sprintf("raise it to at least %d", c.MaxExposure), "%d is below max_exposure %d of one peer", c.MaxExposureTotal, c.MaxExposure)
	case c.MaxLocked < c.InitialDeposit:
		return bad("max_locked", fmt.Sprintf("raise it to at least %d, or lower initial_deposit", c.InitialDeposit), "%d is below initial_deposit %d", c.MaxLocked, c.InitialDeposit)
	case c.MaxLockedTotal < c.MaxLocked:
		return bad("max_locked_total", fmt.Sprintf("raise it to at least %d", c.MaxLocked), "%d is below max_locked %d of one peer", c.MaxLockedTotal, c.MaxLocked)
	case !slices.Contains([]string{ModeAuto, "soft", "mock", "hard"}, c.Mode):
		return bad("mode", "use auto, soft, mock or hard", "%q is not a mode", c.Mode)
	case !slices.Contains([]string{LocksAuto, LocksOff, LocksRequired}, c.Locks):
		return bad("locks", "use auto, off or required", "%q is none of them", c.Locks)
	case !slices.Contains([]string{"debug", "info", "warn", "error"}, c.LogLevel):
		return bad("log_level", "use debug, info, warn or error", "%q is not a level", c.LogLevel)
	case !plainName(c.Asset):
		return bad("asset", "use a short word such as karma", "%q is not a name", c.Asset)
	case !plainName(c.Network):
		return bad("network", "use a short word such as tally", "%q is not a name", c.Network)
	case c.NetworkGenesis != "" && !plainName(c.NetworkGenesis):
		return bad("network_genesis", "use the cid of the genesis block, or leave it empty", "%q is not a cid", c.NetworkGenesis)
	case len(c.Listen) > maxListen:
		return bad("listen", fmt.Sprintf("use at most %d", maxListen), "%d addresses", len(c.Listen))
	case c.PubsubTopic == "" || len(c.PubsubTopic) > rpc.MaxTopicBytes:
		return bad("pubsub_topic", "use auto, or a topic such as /waku/2/rs/1/0", "want 1 to %d bytes", rpc.MaxTopicBytes)
	case len(c.Shards) > maxShards:
		return bad("shards", fmt.Sprintf("use at most %d", maxShards), "%d shards", len(c.Shards))
	}
	for i, s := range c.Shards {
		if s >= maxShards || slices.Contains(c.Shards[:i], s) {
			return bad("shards", fmt.Sprintf("use each of 0 to %d at most once", maxShards-1), "%d is out of bounds or there twice", s)
		}
	}
	for _, l := range c.Listen {
		addr, err := ma.NewMultiaddr(l)
		if err != nil {
			return bad("listen", "use a multiaddr such as /ip4/127.0.0.1/tcp/4001", "%q is not a multiaddr: %v", l, err)
		}
		if _, err := addr.ValueForProtocol(ma.P_P2P); err == nil {
			return bad("listen", "leave out the part from /p2p on", "%q names a peer", l)
		}
	}
	if len(c.Routes) > maxRoutes {
		return bad("routes", fmt.Sprintf("use at most %d", maxRoutes), "%d routes", len(c.Routes))
	}
	if _, err := ParseRoutes(c.Routes); err != nil {
		return bad("routes", "use PEER=NEIGHBOUR, two peer ids, each PEER once", "%v", err)
	}
	if err := rpc.CheckListen(c.RPC); err != nil {
		return bad("rpc", "use unix or 127.0.0.1:PORT", "%v", err)
	}
	for _, l := range []struct{ key, value string }{{"http", c.HTTP}, {"btp_listen", c.BTPListen}, {"pointer_listen", c.PointerListen}} {
		host, port, err := net.SplitHostPort(l.value)
		if _, portErr := strconv.ParseUint(port, 10, 16); l.value != "" && (err != nil || portErr != nil || host == "") {
			return bad(l.key, "use HOST:PORT such as 127.0.0.1:9100, or leave it empty", "%q is not HOST:PORT", l.value)
		}
	}
	if c.Chain != "" {
		_, token, err := lotus.ParseAPIInfo(c.Chain)
		if err != nil { // the text may hold a token or a password
			return bad("chain", "use http://HOST:PORT/rpc/v1, or TOKEN:/ip4/HOST/tcp/PORT/http", "not the address of a JSON-RPC server")
		}
		if token != "" && c.ChainTokenFile != "" {
			return bad("chain_token_file", "leave out one of the two", "chain has a token in it already")
		}
	}
	if c.Wallet != WalletLocal && c.Wallet != WalletNode {
		return bad("wallet", "use local or node", "%q is not a wallet", c.Wallet)
	}
	if !slices.Contains([]string{AdvertiseTabs, AdvertiseChannels, AdvertiseNothing}, c.Advertise) {
		return bad("advertise", "use tabs, channels or nothing", "%q is not one of what can be told", c.Advertise)
	}
	return nil
}

// ParseRoutes reads the static ways: peer to the neighbour that leads to it.
func ParseRoutes(list []string) (map[peer.ID]peer.ID, error) {
	routes := make(map[peer.ID]peer.ID, len(list))
	for _, text := range list {
		to, via, ok := strings.Cut(text, "=")
		dest, err := rpc.ParsePeer(to)
		if err == nil {
			var hop peer.ID
			if hop, err = rpc.ParsePeer(via); err == nil {
				if _, twice := routes[dest]; twice || !ok || hop == dest {
					return nil, fmt.Errorf("%q is no way, or the second to one peer", text)
				}
				routes[dest] = hop
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%q: %w", text, err)
		}
	}
	return routes, nil
}

// plainName keeps names to what can stand in a log, a table and a hash alike.
func plainName(s string) bool {
	return s != "" && len(s) <= maxName && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// setting is one field of Config.
type setting struct {
	key, group, doc string
	index           int
}

// settings lists the fields in order.
var settings = func() []setting {
	t := reflect.TypeFor[Config]()
	list := make([]setting, t.NumField())
	for i := range list {
		f := t.Field(i)
		list[i] = setting{f.Tag.Get("toml"), f.Tag.Get("group"), f.Tag.Get("doc"), i}
	}
	return list
}()

// Setting is one key with its value, as `config show` prints it.
type Setting struct {
	Key   string
	Value any
}

// Settings returns every key and value in the order of the file. Token and
// password in the chain's address are redacted.
func (c Config) Settings() []Setting {
	c.Chain = redactChain(c.Chain)
	v := reflect.ValueOf(c)
	out := make([]Setting, len(settings))
	for i, s := range settings {
		out[i] = Setting{s.key, v.Field(s.index).Interface()}
	}
	return out
}

// Show returns Settings as an object.
func (c Config) Show() map[string]any {
	out := make(map[string]any, len(settings))
	for _, s := range c.Settings() {
		out[s.Key] = s.Value
	}
	return out
}

// Template returns config.toml with every key explained and set to its default
// by way of a comment, so that a later version may choose a better default.
func Template() []byte {
	var b bytes.Buffer
	b.WriteString("# Settings of a tally peer. Each line that begins with # and a key shows the\n" +
		"# default; take the # away to change it. `tally config show` prints what is in force.\n")
	v := reflect.ValueOf(DefaultConfig())
	for _, s := range settings {
		if s.group != "" {
			fmt.Fprintf(&b, "\n## %s\n", s.group)
		}
		b.WriteByte('\n')
		for _, line := range wrap(s.doc, 76) {
			fmt.Fprintf(&b, "# %s\n", line)
		}
		fmt.Fprintf(&b, "#%s = %s\n", s.key, tomlValue(v.Field(s.index).Interface()))
	}
	return b.Bytes()
}

// Encode returns the settings as a config.toml without comments, secrets
// redacted as in Settings.
func (c Config) Encode() []byte {
	var b bytes.Buffer
	for _, s := range c.Settings() {
		fmt.Fprintf(&b, "%s = %s\n", s.Key, tomlValue(s.Value))
	}
	return b.Bytes()
}

func tomlValue(v any) string {
	data, err := toml.Marshal(map[string]any{"k": v})
	if err != nil {
		panic(fmt.Sprintf("repo: setting of a type that TOML has not: %v", err)) // the types of Config are ours
	}
	return strings.TrimSpace(strings.TrimPrefix(string(data), "k = "))
}

func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

// ParseConfig reads settings; name is that of the file, for errors. Every error
// names file, line and key, and says the remedy.
func ParseConfig(name string, data []byte) (Config, error) {
	at := func(line int, key, remedy, format string, args ...any) error {
		where := name
		if line > 0 {
			where += ":" + strconv.Itoa(line)
		}
		cause := fmt.Sprintf(format, args...)
		if key != "" {
			cause = key + ": " + cause
		}
		return fail(ErrConfig, remedy, "%s: %s", where, cause)
	}
	var raw map[string]toml.Primitive
	meta, err := toml.Decode(string(data), &raw)
	if err != nil {
		var parse toml.ParseError
		if errors.As(err, &parse) {
			return Config{}, at(parse.Position.Line, parse.LastKey, "correct the line; text needs quotes, lists need brackets", "%s", parse.Message)
		}
		return Config{}, at(0, "", "correct the file", "%v", err)
	}
	c := DefaultConfig()
	v := reflect.ValueOf(&c).Elem()
	lines := keyLines(data)
	for _, key := range meta.Keys() {
		if len(key) != 1 {
			continue // inside a table, which is itself an unknown key
		}
		i := slices.IndexFunc(settings, func(s setting) bool { return s.key == key[0] })
		if i < 0 {
			return Config{}, at(lines[key[0]], key[0], nearest(key[0]), "unknown key")
		}
		field := v.Field(settings[i].index)
		fresh := reflect.New(field.Type()) // a list replaces the default, it does not overwrite its beginning
		err := meta.PrimitiveDecode(raw[key[0]], fresh.Interface())
		if err == nil && field.Kind() == reflect.Uint64 && fresh.Elem().Uint() > math.MaxInt64 {
			err = errors.New("negative") // TOML has no such integer: the library wrapped a negative one round
		}
		if err != nil {
			return Config{}, at(lines[key[0]], key[0], "want "+kindWord(field.Type())+", such as "+tomlValue(field.Interface()), "wrong type or out of range")
		}
		field.Set(fresh.Elem())
	}
	c.derive(func(key string) bool { return meta.IsDefined(key) })
	if bad := c.check(); bad != nil {
		return Config{}, at(lines[bad.Key], bad.Key, bad.Remedy, "%s", bad.Cause)
	}
	return c, nil
}

func kindWord(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Uint64:
		return "a whole number of at least 0"
	case reflect.Slice:
		return "a list"
	default:
		return "text in quotes"
	}
}

// nearest returns the remedy for a key that does not exist.
func nearest(key string) string {
	squash := func(s string) string { return strings.NewReplacer("_", "", "-", "").Replace(strings.ToLower(s)) }
	for _, s := range settings {
		a, b := squash(key), squash(s.key)
		if a == b || len(a) > 3 && (strings.HasPrefix(b, a) || strings.HasPrefix(a, b)) {
			return "did you mean " + s.key + "? `tally config show --default` lists all keys"
		}
	}
	return "`tally config show --default` lists all keys"
}

var keyLine = regexp.MustCompile(`^\s*\[*\s*["']?([A-Za-z0-9_-]+)["']?\s*(?:[=.\]])`)

// keyLines finds the line of each top-level key or table. The TOML library
// keeps positions to itself; a miss costs an error its line and nothing else.
func keyLines(data []byte) map[string]int {
	lines := make(map[string]int)
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		if m := keyLine.FindStringSubmatch(line); m != nil && lines[m[1]] == 0 {
			lines[m[1]] = n
		}
	}
	return lines
}

// With returns c with the values of an object as Show makes it, after its way
// through JSON.
func (c Config) With(values map[string]any) (Config, error) {
	var text bytes.Buffer
	for _, s := range settings {
		v, ok := values[s.key]
		if !ok {
			continue
		}
		// JSON is TOML for text and whole numbers, and for lists of them.
		data, err := json.Marshal(v)
		if err != nil {
			return Config{}, err
		}
		fmt.Fprintf(&text, "%s = %s\n", s.key, data)
	}
	return ParseConfig("settings", text.Bytes())
}
