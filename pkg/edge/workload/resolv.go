package workload

import (
	"bytes"
	"io"
	"net/netip"
	"os"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// defaultResolv are the files in which a device keeps its resolvers: what programs read,
// and what systemd-resolved, which listens on 127.0.0.53, got from the uplinks
// (systemd-resolved.service(8), /etc/resolv.conf).
var defaultResolv = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}

// resolvFor makes a container's resolv.conf: the device's own on the device's own
// network; elsewhere the first that names a resolver which the container can reach,
// without those that it cannot. nil where the device has none: names of the app resolve
// all the same.
func (m *Manager) resolvFor(s *api.Service) []byte {
	var first []byte
	for i, path := range m.cfg.Resolv {
		b, err := readBounded(path, 64<<10)
		if err != nil {
			continue
		}
		if s.NetworkMode == "host" {
			return b
		}
		b, reachable := withoutLoopback(b)
		if reachable {
			return b
		}
		if i == 0 {
			first = b
		}
	}
	return first
}

// withoutLoopback drops resolvers on the device's loopback, which is not the container's.
func withoutLoopback(b []byte) (out []byte, reachable bool) {
	for line := range bytes.Lines(b) {
		fields := strings.Fields(string(line))
		if len(fields) > 1 && fields[0] == "nameserver" {
			addr, err := netip.ParseAddr(fields[1])
			if err == nil && (addr.Unmap().IsLoopback() || addr.IsUnspecified()) {
				continue
			}
			reachable = true
		}
		out = append(out, line...)
	}
	return out, reachable
}

func readBounded(path string, limit int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, limit))
}
