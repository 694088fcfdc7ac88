package rpc

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// ListenUnix is the setting that means a unix socket in the repo.
const ListenUnix = "unix"

// CheckListen reports whether s may be listened on: "unix", or HOST:PORT with a
// loopback host. Anything else would carry tokens in the clear over a network.
func CheckListen(s string) error {
	if s == ListenUnix {
		return nil
	}
	_, err := loopback(s)
	return err
}

// loopback returns s with its host as an address.
func loopback(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", fmt.Errorf("rpc address %q: want unix or HOST:PORT", s)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", fmt.Errorf("rpc address %q: port must be 0 to 65535", s)
	}
	if host == "localhost" {
		host = "127.0.0.1" // never what a resolver makes of it
	}
	ip, err := netip.ParseAddr(host)
	if err != nil || !ip.IsLoopback() {
		return "", fmt.Errorf("rpc address %q is not loopback: use 127.0.0.1 or ::1, and a tunnel such as ssh -L from elsewhere", s)
	}
	return net.JoinHostPort(ip.String(), port), nil
}

// Listen opens the socket for a server: socketPath where setting is "unix",
// else the loopback address. A socket file that nobody answers on is replaced;
// the caller holds the lock of the repo, so no living peer owns it.
func Listen(setting, socketPath string) (net.Listener, error) {
	if setting != ListenUnix {
		addr, err := loopback(setting)
		if err != nil {
			return nil, err
		}
		return net.Listen("tcp", addr)
	}
	info, err := os.Lstat(socketPath)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s is in the way of the rpc socket: move it away", socketPath)
	default:
		if conn, err := net.Dial("unix", socketPath); err == nil {
			_ = conn.Close()
			return nil, fmt.Errorf("%s: %w", socketPath, syscall.EADDRINUSE)
		}
		if err := os.Remove(socketPath); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("unix", socketPath)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(socketPath, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// AddrOf returns the multiaddr of a listener, which is what <repo>/api holds.
func AddrOf(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return "/unix" + addr.String()
	}
	family := "ip4"
	if tcp.IP.To4() == nil {
		family = "ip6"
	}
	return fmt.Sprintf("/%s/%s/tcp/%d/http", family, tcp.IP, tcp.Port)
}

// URLOf returns an address as a URL that tools such as curl understand.
func URLOf(apiAddr string) (string, error) {
	network, address, err := parseAPI(apiAddr)
	if err != nil {
		return "", err
	}
	if network == "unix" {
		return "unix://" + address, nil
	}
	return "http://" + address + Path, nil
}

// parseAPI reads the address of a server: a multiaddr as in <repo>/api, a URL
// or HOST:PORT. It takes loopback only, for the token goes there in the clear.
func parseAPI(s string) (network, address string, err error) {
	s = strings.TrimSpace(s)
	bad := fmt.Errorf("rpc address %q: want /unix/PATH, /ip4/127.0.0.1/tcp/PORT/http or HOST:PORT", s)
	switch {
	case strings.HasPrefix(s, "/unix/"):
		return "unix", strings.TrimPrefix(s, "/unix"), nil
	case strings.HasPrefix(s, "unix:"):
		return "unix", strings.TrimPrefix(strings.TrimPrefix(s, "unix:"), "//"), nil
	case strings.HasPrefix(s, "/ip4/"), strings.HasPrefix(s, "/ip6/"):
		parts := strings.Split(strings.TrimSuffix(s, "/http"), "/")
		if len(parts) != 5 || parts[3] != "tcp" {
			return "", "", bad
		}
		s = net.JoinHostPort(parts[2], parts[4])
	case strings.HasPrefix(s, "http://"):
		s = strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(s, "http://"), "/"), Path)
	case s == "":
		return "", "", bad
	}
	address, err = loopback(s)
	return "tcp", address, err
}
