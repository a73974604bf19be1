// Package network answers: how does a container get an address, peers, and ports
// on the host?
//
// Each network of an app is one bridge with a /24 of its own. The work is done by
// the ordinary CNI plugins (bridge, host-local, portmap); this package chooses
// names and subnets, keeps the container's network namespace, and separates apps
// from each other with nftables.
package network

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containernetworking/cni/libcni"
	"github.com/vishvananda/netlink"

	"tributary.dev/tributary/pkg/api"
)

// Config says where things lie.
type Config struct {
	Bin   string // folder of the CNI plugins
	State string // which network has which subnet; outlives reboots
	Run   string // namespaces, leases and CNI's cache; cleared by a reboot
	Pool  string // prefix that subnets are cut from, at most /24
	Log   *slog.Logger
}

// Port publishes a container's port on the host.
type Port struct {
	HostIP    string
	Host      int
	Container int
	Protocol  string // tcp or udp
}

// Request asks for the networks of one container.
type Request struct {
	ID       string // of the container
	App      string
	Networks []string // of the app; the first becomes eth0
	Ports    []Port
	// Links are interfaces of hardware that the container gets beside its networks.
	Links []api.DeviceLink
	// Hold leaves the ports to Publish.
	Hold bool
}

// Result is what a container got: one address per network, in the order asked.
type Result struct {
	Addresses []netip.Addr
}

// Manager attaches containers. Its methods may be called from any goroutine, and
// Attach and Detach may be repeated.
type Manager struct {
	cfg  Config
	pool netip.Prefix
	cni  *libcni.CNIConfig
	nft  bool // published ports by nftables; else iptables

	mu        sync.Mutex
	book      book
	separated string // the bridges that the firewall knows

	moving sync.Mutex // interfaces of hardware go one by one
	parent func(netlink.Link) string
	pci    string // where the kernel shows that bus
}

// New prepares folders and reads which subnets are given out.
func New(cfg Config) (*Manager, error) {
	pool, err := netip.ParsePrefix(cfg.Pool)
	if err != nil || !pool.Addr().Is4() || pool.Bits() > 24 {
		return nil, fmt.Errorf("network: pool %q is not an IPv4 prefix of /24 or wider", cfg.Pool)
	}
	for _, dir := range []string{cfg.State, filepath.Join(cfg.Run, "ns"), filepath.Join(cfg.Run, "ipam"), filepath.Join(cfg.Run, "cni")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	m := &Manager{parent: parentOf, pci: "/sys/bus/pci", cfg: cfg, pool: pool.Masked(), cni: libcni.NewCNIConfigWithCacheDir([]string{cfg.Bin}, filepath.Join(cfg.Run, "cni"), nil)}
	_, err = exec.LookPath("nft")
	m.nft = err == nil
	m.book, err = readBook(filepath.Join(cfg.State, "networks.json"))
	return m, err
}

// Namespace is the path of a container's network namespace, there or not.
func (m *Manager) Namespace(id string) string { return filepath.Join(m.cfg.Run, "ns", id) }

// Attach makes the container's namespace and joins it to its networks. When the
// namespace is already there and joined, it returns the addresses it has.
func (m *Manager) Attach(ctx context.Context, r Request) (Result, error) {
	var out Result
	path := m.Namespace(r.ID)
	had, err := m.cached(r)
	switch there := isNamespace(path); {
	case there && err == nil:
		return had, m.moveAllIn(ctx, r)
	case there || err == nil:
		// Half of an attachment, e.g. after a power cut with leases still on disk:
		// begin anew, or host-local would refuse a second address.
		if err := m.Detach(ctx, r); err != nil {
			return out, err
		}
	}
	if _, err := makeNamespace(path); err != nil {
		return out, err
	}
	for i, name := range r.Networks {
		addr, err := m.join(ctx, r, i, name)
		if err != nil {
			return out, errors.Join(err, m.Detach(ctx, r))
		}
		out.Addresses = append(out.Addresses, addr)
	}
	if err := m.moveAllIn(ctx, r); err != nil {
		return out, errors.Join(err, m.Detach(ctx, r))
	}
	return out, nil
}

func (m *Manager) moveAllIn(ctx context.Context, r Request) error {
	for _, l := range r.Links {
		if err := m.moveIn(ctx, m.Namespace(r.ID), l); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manager) join(ctx context.Context, r Request, i int, name string) (netip.Addr, error) {
	list, err := m.conf(r, name, i == 0)
	if err != nil {
		return netip.Addr{}, err
	}
	rt := m.runtime(r, i)
	res, err := m.cni.AddNetworkList(ctx, list, rt)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("network: join %s to %s: %w", r.ID, name, err)
	}
	m.separate()
	return firstAddress(res)
}

// cached returns the addresses of an attachment made before.
func (m *Manager) cached(r Request) (Result, error) {
	var out Result
	for i, name := range r.Networks {
		list, err := m.conf(r, name, i == 0)
		if err != nil {
			return out, err
		}
		res, err := m.cni.GetNetworkListCachedResult(list, m.runtime(r, i))
		if err != nil {
			return out, err
		}
		addr, err := firstAddress(res)
		if err != nil {
			return out, err
		}
		out.Addresses = append(out.Addresses, addr)
	}
	return out, nil
}

// Addresses tells what an attached container has, without touching anything.
func (m *Manager) Addresses(r Request) []netip.Addr {
	res, err := m.cached(r)
	if err != nil {
		return nil
	}
	return res.Addresses
}

// Detach gives ports and addresses back and removes the namespace.
func (m *Manager) Detach(ctx context.Context, r Request) error {
	r.Hold = false // what was held may have been published since
	errs := []error{m.moveOut(m.Namespace(r.ID))}
	for i, name := range slices.Backward(r.Networks) {
		list, err := m.conf(r, name, i == 0)
		if err == nil {
			err = m.cni.DelNetworkList(ctx, list, m.runtime(r, i))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("network: take %s from %s: %w", r.ID, name, err))
		}
	}
	return errors.Join(append(errs, removeNamespace(m.Namespace(r.ID)))...)
}

func (m *Manager) runtime(r Request, i int) *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{ContainerID: r.ID, NetNS: m.Namespace(r.ID), IfName: fmt.Sprintf("eth%d", i)}
	if i == 0 && len(r.Ports) > 0 {
		rt.CapabilityArgs = map[string]any{"portMappings": r.mappings()}
	}
	return rt
}

// conf writes the CNI configuration of one network for one container.
func (m *Manager) conf(r Request, name string, first bool) (*libcni.NetworkConfigList, error) {
	subnet, err := m.subnet(r.App, name)
	if err != nil {
		return nil, err
	}
	backend := m.backend()
	ipam := map[string]any{"type": "host-local", "dataDir": filepath.Join(m.cfg.Run, "ipam"), "ranges": [][]map[string]string{{{"subnet": subnet.String()}}}}
	bridge := map[string]any{
		"type": "bridge", "bridge": BridgeName(r.App, name), "isGateway": true, "ipMasq": true, "ipMasqBackend": backend,
		"hairpinMode": true, "ipam": ipam,
		"forceAddress": true, // a bridge that outlived the list of subnets has another one's address
	}
	if first {
		bridge["isDefaultGateway"] = true
	}
	plugins := []any{bridge}
	if first && r.publishes() && !r.Hold {
		plugins = append(plugins, m.portmap())
	}
	b, err := json.Marshal(map[string]any{"cniVersion": cniVersion, "name": BridgeName(r.App, name), "plugins": plugins})
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(b)
}

const cniVersion = "1.0.0"

func (m *Manager) backend() string {
	if m.nft {
		return "nftables"
	}
	return "iptables"
}

// bridgePrefix marks the bridges of this program.
const bridgePrefix = "trb"

// BridgeName is the name of a network's bridge: at most 15 characters (IFNAMSIZ).
func BridgeName(app, network string) string {
	sum := sha256.Sum256([]byte(app + "/" + network))
	return bridgePrefix + hex.EncodeToString(sum[:5])
}

// Drop removes the bridges and subnets of an app that is gone.
func (m *Manager) Drop(app string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for key := range m.book.Subnets {
		owner, name, _ := strings.Cut(key, "/")
		if owner != app {
			continue
		}
		bridge := BridgeName(app, name)
		if link, err := netlink.LinkByName(bridge); err == nil {
			errs = append(errs, netlink.LinkDel(link))
		}
		errs = append(errs, os.RemoveAll(filepath.Join(m.cfg.Run, "ipam", bridge)))
		delete(m.book.Subnets, key)
	}
	return errors.Join(append(errs, m.book.save(filepath.Join(m.cfg.State, "networks.json")))...)
}

// Apps lists the apps that have subnets.
func (m *Manager) Apps() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	seen := map[string]bool{}
	for key := range m.book.Subnets {
		owner, _, _ := strings.Cut(key, "/")
		seen[owner] = true
	}
	out := make([]string, 0, len(seen))
	for a := range seen {
		out = append(out, a)
	}
	return out
}
