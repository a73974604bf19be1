package workload

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// peer is one container in the eyes of the hosts files.
type peer struct {
	Service  string
	Hostname string
	Networks []string
	Addrs    []string // by network
	Host     bool     // on the host's own network
}

// hostsFile writes a container's /etc/hosts: itself, and each service of its app
// that shares a network with it, by the address on the first such network.
func hostsFile(self peer, others []peer) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	if len(self.Addrs) > 0 {
		line(&b, self.Addrs[0], self.Hostname, self.Service)
	} else if self.Hostname != "" {
		line(&b, "127.0.1.1", self.Hostname)
	}
	slices.SortFunc(others, func(x, y peer) int { return strings.Compare(x.Service, y.Service) })
	for _, o := range others {
		switch {
		case o.Host && self.Host:
			line(&b, "127.0.0.1", o.Service, o.Hostname)
		case o.Host && len(self.Addrs) > 0:
			line(&b, gateway(self.Addrs[0]), o.Service, o.Hostname)
		}
		for i, n := range o.Networks {
			// A container on the host's own network reaches every bridge.
			if i < len(o.Addrs) && (self.Host || slices.Contains(self.Networks, n)) {
				line(&b, o.Addrs[i], o.Service, o.Hostname)
				break
			}
		}
	}
	return b.Bytes()
}

// gateway is the host's address on the network of addr: every network is a /24 whose
// first address is the bridge.
func gateway(addr string) string {
	a, err := netip.ParseAddr(addr)
	if err != nil || !a.Is4() {
		return "127.0.0.1"
	}
	b := a.As4()
	b[3] = 1
	return netip.AddrFrom4(b).String()
}

func line(b *bytes.Buffer, addr string, names ...string) {
	fmt.Fprintf(b, "%s\t%s\n", addr, strings.Join(slices.Compact(names), " "))
}

func (t *tracked) peer() peer {
	p := peer{Service: t.in.Key.Service, Hostname: hostname(&t.svc), Networks: networksOf(&t.svc), Host: t.svc.NetworkMode == "host"}
	for _, a := range t.addrs {
		p.Addrs = append(p.Addrs, a.String())
	}
	return p
}

// writeHosts writes one container's hosts file from what is active now, and its
// resolv.conf from what the device has now.
func (m *Manager) writeHosts(t *tracked) {
	m.mu.Lock()
	self := t.peer()
	others := m.peersOf(t)
	m.mu.Unlock()
	dir, mode := m.root.files(t.in.Key.App, t.in.ID), api.Mount{Mode: 0o644}
	err := errors.Join(
		rewrite(filepath.Join(dir, "hosts"), hostsFile(self, others), mode),
		rewrite(filepath.Join(dir, "resolv.conf"), m.resolvFor(&t.svc), mode),
	)
	if err != nil {
		m.cfg.Log.Warn("hosts file or resolv.conf cannot be written", "container", t.in.ID, "err", err)
	}
}

// peersOf lists the active containers of the app's other services. m.mu is held.
func (m *Manager) peersOf(t *tracked) []peer {
	var out []peer
	for key, id := range m.active {
		o := m.instances[id]
		if key.App == t.in.Key.App && key.Service != t.in.Key.Service && o != nil && o.in.Phase == phaseRunning {
			out = append(out, o.peer())
		}
	}
	return out
}

// fileSum tells apart the contents that a service's config and secret mounts have
// had.
func fileSum(a *App, s *api.Service) string {
	h := sha256.New()
	enc := json.NewEncoder(h)
	for _, mt := range s.Mounts {
		if mt.Kind != api.MountConfig && mt.Kind != api.MountSecret {
			continue
		}
		one, set, err := content(a, mt)
		_ = enc.Encode([]any{mt, one, set, err == nil})
	}
	return hex.EncodeToString(h.Sum(nil)[:12])
}

// refreshFiles brings hosts, config and secret files of running containers up to
// date, without touching the containers.
func (m *Manager) refreshFiles() {
	m.mu.Lock()
	apps := map[string]*App{}
	for i := range m.apps {
		apps[m.apps[i].Bundle.App] = &m.apps[i]
	}
	var list []*tracked
	for _, t := range m.instances {
		if t.in.Phase == phaseRunning && !m.busy[t.in.Key] {
			list = append(list, t)
		}
	}
	m.mu.Unlock()
	var failed []string
	for _, t := range list {
		m.writeHosts(t)
		app := apps[t.in.Key.App]
		if app == nil {
			continue
		}
		sum := fileSum(app, &t.svc)
		m.mu.Lock()
		same := sum == t.files
		m.mu.Unlock()
		if same {
			continue
		}
		if _, err := m.root.writeFiles(app, t.in.ID, &t.svc); err != nil {
			failed = append(failed, t.in.Key.String()+": "+strings.ReplaceAll(err.Error(), "\n", "; "))
			continue // tried again at the next step, which comes within a minute
		}
		m.mu.Lock()
		t.files = sum
		m.mu.Unlock()
	}
	slices.Sort(failed)
	m.warnOfFiles(failed)
}

// warnOfFiles names the containers that show old content, or ends the warning.
func (m *Manager) warnOfFiles(failed []string) {
	const name = "config-not-written"
	m.mu.Lock()
	was := m.warnings[name].Message
	m.mu.Unlock()
	text := ""
	if len(failed) > 0 {
		text = brief(errors.New("running containers show old files: " + strings.Join(failed, "; ")))
	}
	if text == was {
		return
	}
	m.warn(name, api.Degraded, text)
	if text != "" {
		m.cfg.Log.Warn("config files cannot be written", "containers", strings.Join(failed, "; "))
	}
	m.notify()
}
