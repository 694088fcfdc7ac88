package repo

import (
	"errors"
	"io/fs"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/tallystick/tally/paych/lotus"
)

// The environment of the chain. The second is Lotus' own.
const (
	EnvChainToken = "TALLY_CHAIN_TOKEN"
	EnvLotus      = "FULLNODE_API_INFO"
)

// Values of the setting wallet.
const (
	WalletLocal = "local"
	WalletNode  = "node"
)

// ChainNode is the node of a chain that a peer is to speak to.
type ChainNode struct {
	// URL of its JSON-RPC; empty: no chain is configured.
	URL   string
	Token lotus.Token
	// From is the setting or variable that named it.
	From string
}

// ChainNode finds the node of the chain. The setting chain comes first, then
// FULLNODE_API_INFO. The token is that of TALLY_CHAIN_TOKEN, else the one beside
// the address, else, for the setting chain alone, that of chain_token_file, so
// that no node is sent the token of another. A relative path is one in dir.
func (c Config) ChainNode(dir string, getenv func(string) string) (ChainNode, error) {
	n := ChainNode{From: "chain"}
	text := c.Chain
	if text == "" {
		n.From, text = EnvLotus, getenv(EnvLotus)
	}
	if text == "" {
		return ChainNode{}, nil
	}
	var err error
	if n.URL, n.Token, err = lotus.ParseAPIInfo(text); err != nil {
		return ChainNode{}, fail(ErrConfig, "use TOKEN:/ip4/HOST/tcp/PORT/http, or unset it", "%s is not the address of a node", n.From)
	}
	if token := strings.TrimSpace(getenv(EnvChainToken)); token != "" {
		n.Token = lotus.Token(token)
	} else if n.Token == "" && c.Chain != "" && c.ChainTokenFile != "" {
		if n.Token, err = readToken(dir, c.ChainTokenFile); err != nil {
			return ChainNode{}, err
		}
	}
	if strings.ContainsFunc(string(n.Token), func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return ChainNode{}, fail(ErrConfig, "a token is one word, such as `lotus auth create-token` prints", "the token of the chain holds something else than a token")
	}
	return n, nil
}

func readToken(dir, path string) (lotus.Token, error) {
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	text, err := readSecret(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fail(ErrConfig, "correct chain_token_file; a devnet writes its own to <its repo>/token", "there is no file %s with the token of the chain", path)
	}
	if err != nil {
		return "", err
	}
	token := lotus.Token(strings.TrimSpace(string(text)))
	if token == "" {
		return "", fail(ErrConfig, "correct chain_token_file", "%s is empty", path)
	}
	return token, nil
}

// HasToken reports whether the address of a chain has its token in it.
func HasToken(chain string) bool {
	_, token, err := lotus.ParseAPIInfo(chain)
	return err == nil && token != ""
}

// redactChain hides what is secret in the address of a chain, so that what is
// left is still one.
func redactChain(chain string) string {
	head := ""
	if HasToken(chain) {
		_, rest, _ := strings.Cut(chain, ":")
		head, chain = "[redacted]:", rest
	}
	if u, err := url.Parse(chain); err == nil && (u.User != nil || u.RawQuery != "") {
		if u.RawQuery != "" {
			u.RawQuery = "redacted" // public nodes take keys there
		}
		chain = u.Redacted()
	}
	return head + chain
}

// checkConfigMode refuses a config.toml with a token in it that others may read.
func checkConfigMode(path string, c Config) error {
	if !HasToken(c.Chain) {
		return nil
	}
	return checkPath(path, secretPerm)
}
