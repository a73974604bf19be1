package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// This file moves interfaces of hardware (virtual functions) into containers' networks and
// back. An interface is known by the function of the bus that it is on, since its name
// changes on the way. What it was like is on the disk before it is touched, and the kernel
// gives an interface of hardware back to the first namespace when its own ends: whoever is
// killed when, it is found again and made as it was.

// away is what an interface was like before it went into a container.
type away struct {
	PCI       string `json:"pci"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	MAC       string `json:"mac,omitempty"`
	MTU       int    `json:"mtu,omitempty"`
	Up        bool   `json:"up,omitempty"`
	// Renewed says that it came back, and that its driver made another since.
	Renewed bool `json:"renewed,omitempty"`
}

// parentOf names the bus's function that an interface is on. Tests, on machines without
// such cards, put another in its place.
func parentOf(l netlink.Link) string { return l.Attrs().ParentDev }

func (m *Manager) linkDir() string { return filepath.Join(m.cfg.Run, "links") }

func (m *Manager) recordOf(pci string) string {
	return filepath.Join(m.linkDir(), strings.ReplaceAll(pci, "/", "_")+".json")
}

// maxAway bounds one record in bytes.
const maxAway = 4 << 10

// aways lists what is in containers, or was when somebody was killed. A record that is torn
// is of a move that had not begun.
func (m *Manager) aways() ([]away, error) {
	files, err := os.ReadDir(m.linkDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []away
	for _, f := range files {
		name := filepath.Join(m.linkDir(), f.Name())
		raw, err := os.ReadFile(name)
		var a away
		if err != nil || len(raw) > maxAway || json.Unmarshal(raw, &a) != nil || m.recordOf(a.PCI) != name {
			continue
		}
		out = append(out, a)
	}
	return out, nil
}

// Away tells which functions' interfaces are in containers, by the container's id.
func (m *Manager) Away() (map[string]string, error) {
	list, err := m.aways()
	out := map[string]string{}
	for _, a := range list {
		out[a.PCI] = filepath.Base(a.Namespace)
	}
	return out, err
}

// enterLinks runs f with a handle on the links of a namespace.
func enterLinks(path string, f func(*netlink.Handle) error) error {
	return Enter(path, func() error { return withHandle(f) })
}

func withHandle(f func(*netlink.Handle) error) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	return f(h)
}

// Links lists the interfaces of a namespace. A list during which others came or went is cut
// short by the kernel (NLM_F_DUMP_INTR), and asked for again.
func Links(h *netlink.Handle) (links []netlink.Link, err error) {
	for range 20 {
		if links, err = h.LinkList(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return links, err
}

// linkOn finds the interface of a function; nil when it is not in this namespace.
func (m *Manager) linkOn(h *netlink.Handle, pci string) (netlink.Link, error) {
	links, err := Links(h)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(links, func(a, b netlink.Link) int { return a.Attrs().Index - b.Attrs().Index })
	for _, l := range links {
		if m.parent(l) == pci {
			return l, nil
		}
	}
	return nil, nil
}

// linkPatience is how long the kernel may take to give an interface back whose namespace
// has ended: it does so beside what it is asked for.
const linkPatience = 10 * time.Second

// moveIn has a function's interface in a container's namespace as it shall be there. It may
// be repeated.
func (m *Manager) moveIn(ctx context.Context, ns string, want api.DeviceLink) error {
	m.moving.Lock()
	defer m.moving.Unlock()
	there := false
	err := enterLinks(ns, func(h *netlink.Handle) error {
		l, err := m.linkOn(h, want.PCI)
		there = l != nil
		return err
	})
	if err != nil {
		return err
	}
	if !there {
		if err := m.moveOver(ctx, ns, want.PCI); err != nil {
			return fmt.Errorf("network: %s does not go into its container: %w", want.PCI, err)
		}
	}
	if err := enterLinks(ns, func(h *netlink.Handle) error { return m.settle(h, want) }); err != nil {
		return fmt.Errorf("network: %s is not as it shall be in its container: %w", want.PCI, err)
	}
	return nil
}

// moveOver takes an interface from the box's own namespace to a container's.
func (m *Manager) moveOver(ctx context.Context, ns, pci string) error {
	if err := m.await(ctx, pci); err != nil {
		return err
	}
	fd, err := unix.Open(ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return withHandle(func(h *netlink.Handle) error {
		l, err := m.linkOn(h, pci)
		if err != nil || l == nil {
			return errors.Join(err, fmt.Errorf("it has no interface here"))
		}
		at := l.Attrs()
		rec := away{PCI: pci, Namespace: ns, Name: at.Name, MAC: at.HardwareAddr.String(), MTU: at.MTU, Up: at.Flags&net.FlagUp != 0}
		if err := m.record(rec); err != nil {
			return err
		}
		return m.cross(h, l, fd)
	})
}

// cross moves a link to the namespace of fd, under a name that is nobody's in either.
func (m *Manager) cross(h *netlink.Handle, l netlink.Link, fd int) error {
	if err := h.LinkSetDown(l); err != nil {
		return err
	}
	if err := h.LinkSetName(l, fmt.Sprintf("trf%d", l.Attrs().Index)); err != nil {
		return err
	}
	return h.LinkSetNsFd(l, fd)
}

// await sees to it that a function's interface is here and as it was before it last went
// away. What is in a container that lives is nobody else's.
func (m *Manager) await(ctx context.Context, pci string) error {
	ctx, cancel := context.WithTimeout(ctx, linkPatience)
	defer cancel()
	for {
		pending, err := m.giveBack(pci)
		if err != nil || !pending {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("it is in no namespace that is known: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// giveBack makes interfaces as they were that are here again though a record says that they
// are away: that of pci, or all. pending says that one is neither here nor in a container.
func (m *Manager) giveBack(pci string) (pending bool, err error) {
	list, err := m.aways()
	if err != nil {
		return false, err
	}
	var errs []error
	for _, a := range list {
		if pci != "" && a.PCI != pci {
			continue
		}
		back, err := m.restoreLink(a)
		errs = append(errs, err)
		if back || err != nil {
			continue
		}
		inside := false
		if isNamespace(a.Namespace) {
			err = enterLinks(a.Namespace, func(h *netlink.Handle) error {
				l, err := m.linkOn(h, a.PCI)
				inside = l != nil
				return err
			})
			errs = append(errs, err)
		}
		if inside && pci != "" {
			errs = append(errs, fmt.Errorf("it is in the container %s", filepath.Base(a.Namespace)))
		}
		pending = pending || !inside
	}
	return pending, errors.Join(errs...)
}

// Recover makes interfaces as they were that came back by themselves, since the namespace
// that they were in has ended. It may be called at any time.
func (m *Manager) Recover() error {
	m.moving.Lock()
	defer m.moving.Unlock()
	_, err := m.giveBack("")
	return err
}

// restoreLink makes an interface that is here as its record says, and forgets the record. What
// a container made of it (promiscuous, with filters, programs and names beside) ends with the
// interface: its driver makes another. A name or an MTU that cannot be put back is told, and
// costs nobody the function.
func (m *Manager) restoreLink(a away) (back bool, err error) {
	err = withHandle(func(h *netlink.Handle) error {
		l, err := m.linkOn(h, a.PCI)
		if err != nil || l == nil {
			return errors.Join(err, m.drive(a.PCI))
		}
		if err := h.LinkSetDown(l); err != nil {
			return err
		}
		if !a.Renewed {
			if err := m.renew(&a); err != nil {
				return err
			}
			if l, err = m.linkOn(h, a.PCI); err != nil || l == nil {
				return err // some drivers make it soon after they began
			}
		}
		back = true
		m.asBefore(h, l, a)
		return nil
	})
	if err != nil || !back {
		return back, err
	}
	return true, os.Remove(m.recordOf(a.PCI))
}

// asBefore gives an interface back what it was like.
func (m *Manager) asBefore(h *netlink.Handle, l netlink.Link, a away) {
	try := func(what string, was any, is bool, set func() error) {
		if is {
			return
		}
		if err := set(); err != nil {
			m.cfg.Log.Warn("an interface that came back from a container is not as it was", "function", a.PCI, "what", what, "was", was, "err", err)
		}
	}
	at := l.Attrs()
	hw, err := net.ParseMAC(a.MAC)
	try("address", a.MAC, err != nil || hw.String() == at.HardwareAddr.String(), func() error { return h.LinkSetHardwareAddr(l, hw) })
	try("MTU", a.MTU, a.MTU <= 0 || a.MTU == at.MTU, func() error { return h.LinkSetMTU(l, a.MTU) })
	try("name", a.Name, a.Name == at.Name, func() error { return h.LinkSetName(l, a.Name) })
	try("on", true, !a.Up, func() error { return h.LinkSetUp(l) })
}

// renew has the driver of a function make another interface, and writes that down: it may
// take a while until that is here (Linux, Documentation/ABI/testing/sysfs-bus-pci).
func (m *Manager) renew(a *away) error {
	driver, err := filepath.EvalSymlinks(filepath.Join(m.pci, "devices", a.PCI, "driver"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // one of software
	}
	for _, name := range []string{"unbind", "bind"} {
		if err == nil {
			err = os.WriteFile(filepath.Join(driver, name), []byte(a.PCI), 0)
		}
	}
	if err != nil {
		return fmt.Errorf("a new interface for %s: %w", a.PCI, err)
	}
	a.Renewed = true
	return m.record(*a)
}

// drive gives a function its driver that has none: somebody was killed between two words to
// its driver.
func (m *Manager) drive(pci string) error {
	at := filepath.Join(m.pci, "devices", pci)
	if _, err := os.Lstat(at); err != nil {
		return nil // it is gone
	}
	if _, err := os.Lstat(filepath.Join(at, "driver")); err == nil {
		return nil
	}
	return os.WriteFile(filepath.Join(m.pci, "drivers_probe"), []byte(pci), 0)
}

// record writes down what an interface was like.
func (m *Manager) record(a away) error {
	raw, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(m.linkDir(), 0o755), atomicfile.Write(m.recordOf(a.PCI), raw, 0o644))
}

// moveOut gives all interfaces of hardware in a namespace back.
func (m *Manager) moveOut(ns string) error {
	m.moving.Lock()
	defer m.moving.Unlock()
	list, err := m.aways()
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(a away) bool { return a.Namespace != ns })
	if len(list) == 0 {
		return nil
	}
	if isNamespace(ns) {
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(home)
		err = enterLinks(ns, func(h *netlink.Handle) error {
			var errs []error
			for _, a := range list {
				l, err := m.linkOn(h, a.PCI)
				if err == nil && l != nil {
					err = m.cross(h, l, home)
				}
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		})
		if err != nil {
			return fmt.Errorf("network: interfaces of %s: %w", filepath.Base(ns), err)
		}
	}
	var errs []error
	for _, a := range list {
		_, err := m.restoreLink(a)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Release gives back the interfaces of hardware that a container has; its other networks
// stay. It may be repeated.
func (m *Manager) Release(id string) error { return m.moveOut(m.Namespace(id)) }

// settle gives an interface in its container's namespace its name, addresses and routes.
// What the container added is left alone.
func (m *Manager) settle(h *netlink.Handle, want api.DeviceLink) error {
	l, err := m.linkOn(h, want.PCI)
	if err != nil || l == nil {
		return errors.Join(err, errors.New("it is not there"))
	}
	if want.Inside != "" && l.Attrs().Name != want.Inside {
		if err := errors.Join(h.LinkSetDown(l), h.LinkSetName(l, want.Inside)); err != nil {
			return fmt.Errorf("name %s: %w", want.Inside, err)
		}
	}
	if want.MTU > 0 && l.Attrs().MTU != want.MTU {
		if err := h.LinkSetMTU(l, want.MTU); err != nil {
			return fmt.Errorf("MTU %d: %w", want.MTU, err)
		}
	}
	for _, text := range want.Addresses {
		addr, err := netlink.ParseAddr(text)
		if err == nil {
			err = h.AddrReplace(l, addr)
		}
		if err != nil {
			return fmt.Errorf("address %s: %w", text, err)
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		return err
	}
	for _, text := range want.Routes {
		r, err := routeOf(text)
		if err == nil {
			r.LinkIndex = l.Attrs().Index
			err = h.RouteReplace(r)
		}
		if err != nil {
			return fmt.Errorf("route %s: %w", text, err)
		}
	}
	return nil
}

// routeOf reads "CIDR via ADDRESS", or "CIDR" for what is on the link itself.
func routeOf(text string) (*netlink.Route, error) {
	dst, via, routed := strings.Cut(text, " via ")
	p, err := netip.ParsePrefix(dst)
	if err != nil {
		return nil, err
	}
	p = p.Masked()
	r := &netlink.Route{Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}, Scope: netlink.SCOPE_LINK}
	if routed {
		gw, err := netip.ParseAddr(via)
		if err != nil {
			return nil, err
		}
		r.Gw, r.Scope = gw.AsSlice(), netlink.SCOPE_UNIVERSE
	}
	return r, nil
}
