package lotus

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/lotus/wire"
)

// Token is a bearer token. It prints redacted.
type Token string

const redacted = "[redacted]"

// String redacts.
func (Token) String() string { return redacted }

// GoString redacts.
func (Token) GoString() string { return redacted }

// Format redacts under every verb.
func (Token) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue redacts.
func (Token) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText redacts.
func (Token) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Facts of Filecoin where the node does not tell them.
const (
	defaultSettleDelay abi.ChainEpoch = 1440
	defaultFinality    abi.ChainEpoch = 900
)

// Config says which node, which network and how.
type Config struct {
	// URL of the node's /rpc/v1, http or https.
	URL string
	// Token that the node wants; empty sends none. Over plain http it goes to
	// this machine only, unless AllowPlain is set.
	Token      Token
	AllowPlain bool

	// Wallet signs messages. Nil: the node's own wallet does.
	Wallet paych.Wallet

	// Network and Genesis, where set, must be those of the node. A voucher of a
	// play-money chain is worth nothing on another.
	Network string
	Genesis cid.Cid

	// SettleDelay and Finality, in epochs. Default: what the embedded chain says
	// of itself, else those of Filecoin, 1440 and 900.
	SettleDelay, Finality abi.ChainEpoch

	// Poll is how often the head is asked for while somebody waits. Default a
	// tenth of the epoch, at least 50 ms and at most 3 s.
	Poll time.Duration
	// CallTimeout ends one request. Default 30 s.
	CallTimeout time.Duration
	// Lookback is how many epochs back a message is searched for. Default: the
	// whole chain; public gateways take less by themselves.
	Lookback abi.ChainEpoch
	// ListSpan is over how many epochs Calls looks at every message; over more it
	// looks at those that changed the channel. Default 240.
	ListSpan abi.ChainEpoch
	// MaxFee is the most that one message may cost in gas, in attoFIL. Default
	// 0.1 FIL.
	MaxFee big.Int
	// PrepareTTL is how long a prepared message that nobody published keeps its
	// nonce. Default 5 min.
	PrepareTTL time.Duration
	// Logger. Default: nothing is logged.
	Logger *slog.Logger
}

// Validate fills in the defaults and reports what cannot be. It does no IO.
func (c *Config) Validate() error {
	u, err := url.Parse(c.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return errors.New("lotus: the node's URL must begin with http:// or https://") // it may hold a secret
	}
	if u.Scheme == "http" && c.Token != "" && !c.AllowPlain && !loopback(u.Hostname()) {
		return fmt.Errorf("lotus: the token would go to %s in the clear: use https or a tunnel such as ssh -L", u.Host)
	}
	if c.SettleDelay < 0 || c.Finality < 0 || c.Poll < 0 || c.CallTimeout < 0 || c.ListSpan < 0 || c.PrepareTTL < 0 {
		return errors.New("lotus: times and epochs of the config must not be below 0")
	}
	if c.CallTimeout == 0 {
		c.CallTimeout = 30 * time.Second
	}
	if c.Lookback <= 0 {
		c.Lookback = wire.LookbackNoLimit
	}
	if c.ListSpan == 0 {
		c.ListSpan = 240
	}
	if c.MaxFee.Int == nil {
		c.MaxFee = big.NewInt(100_000_000_000_000_000)
	}
	if c.PrepareTTL == 0 {
		c.PrepareTTL = 5 * time.Minute
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// ParseAPIInfo reads Lotus' FULLNODE_API_INFO: TOKEN:ADDRESS or an address alone,
// which is a multiaddr such as /ip4/127.0.0.1/tcp/1234/http or a URL.
func ParseAPIInfo(s string) (apiURL string, token Token, err error) {
	s = strings.TrimSpace(s)
	addr := s
	if i := strings.IndexByte(s, ':'); i >= 0 && !strings.HasPrefix(s, "/") && !strings.HasPrefix(s[i:], "://") {
		token, addr = Token(s[:i]), s[i+1:]
	}
	bad := errors.New("lotus: want TOKEN:/ip4/HOST/tcp/PORT/http or TOKEN:URL")
	if strings.HasPrefix(addr, "/") {
		part := strings.Split(strings.TrimSuffix(addr, "/"), "/")
		if len(part) < 5 || part[3] != "tcp" {
			return "", "", bad
		}
		switch part[1] {
		case "ip4", "ip6", "dns", "dns4", "dns6":
		default:
			return "", "", bad
		}
		scheme := "http"
		for _, p := range part[5:] {
			switch p {
			case "http", "ws":
			case "https", "wss", "tls":
				scheme = "https"
			default:
				return "", "", bad
			}
		}
		addr = scheme + "://" + net.JoinHostPort(part[2], part[4])
	}
	u, err := url.Parse(addr)
	if err != nil || u.Host == "" {
		return "", "", bad
	}
	switch u.Scheme {
	case "ws":
		u.Scheme = "http"
	case "wss":
		u.Scheme = "https"
	case "http", "https":
	default:
		return "", "", bad
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/rpc/v1"
	}
	return u.String(), token, nil
}
