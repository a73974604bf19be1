package sriov

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/network"
)

// Kernel takes steps on the machine that this runs on.
type Kernel struct{}

// Look reads the cards of this machine.
func (Kernel) Look() State {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return State{}
	}
	defer h.Close()
	links, err := network.Links(h)
	if err != nil {
		return State{} // without its interfaces a card is not what it seems
	}
	addrs, _ := h.AddrList(nil, netlink.FAMILY_ALL)
	used := map[int]bool{}
	for _, a := range addrs {
		used[a.LinkIndex] = used[a.LinkIndex] || a.IP.IsGlobalUnicast()
	}
	s := Look(os.DirFS("/"), func() []netlink.Link { return links })
	for i := range s.Cards {
		s.Cards[i].Used = s.Cards[i].Used || used[s.Cards[i].Link]
	}
	return s
}

// Do takes one step. It may be repeated.
func (k Kernel) Do(s Step) error {
	err := k.do(s)
	if err != nil {
		return fmt.Errorf("%s: %w", s, err)
	}
	return nil
}

// String is what a step does, in words.
func (s Step) String() string {
	which := s.Card
	if s.PCI != "" {
		which = fmt.Sprintf("%s function %d (%s)", s.Card, s.Index, s.PCI)
	}
	switch s.Op {
	case Count:
		return fmt.Sprintf("%s: %d virtual functions", which, s.Number)
	case Set:
		return fmt.Sprintf("%s: set %v", which, s.Changed)
	case Bind:
		if s.Driver == "" {
			return which + ": take its driver away"
		}
		return which + ": driver " + s.Driver
	}
	return fmt.Sprintf("%s: %s %d", which, s.Op, s.Number)
}

func (k Kernel) do(s Step) error {
	switch s.Op {
	case Count:
		return write(s.Card, "sriov_numvfs", strconv.Itoa(s.Number))
	case SetProbe:
		return write(s.Card, "sriov_drivers_autoprobe", strconv.Itoa(s.Number))
	case Bind:
		return bind(s.PCI, s.Driver)
	case SetMTU:
		pci := s.Card
		if s.PCI != "" {
			pci = s.PCI
		}
		return onLink(pci, func(h *netlink.Handle, l netlink.Link) error { return h.LinkSetMTU(l, s.Number) })
	case SetUp:
		return onLink(s.Card, func(h *netlink.Handle, l netlink.Link) error {
			if s.Number == 0 {
				return h.LinkSetDown(l)
			}
			return h.LinkSetUp(l)
		})
	case Set:
		return onLink(s.Card, func(h *netlink.Handle, l netlink.Link) error { return setFunction(h, l, s) })
	}
	return errors.New("this is no step of the kernel's")
}

func write(pci, name, text string) error {
	return os.WriteFile(filepath.Join("/", pciRoot, pci, name), []byte(text), 0)
}

func onLink(pci string, do func(*netlink.Handle, netlink.Link) error) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	links, err := network.Links(h)
	if err != nil {
		return err
	}
	l := linkOf(links, pci)
	if l == nil {
		return errors.New("its interface is not here")
	}
	return do(h, l)
}

// setFunction writes what changed; what the driver does not know is named, and the rest is
// written all the same.
func setFunction(h *netlink.Handle, card netlink.Link, s Step) error {
	w := s.Settings
	set := map[string]func() error{
		"mac": func() error {
			hw, err := net.ParseMAC(cmp.Or(w.MAC, noMAC))
			if err != nil {
				return err
			}
			return h.LinkSetVfHardwareAddr(card, s.Index, hw)
		},
		"vlan": func() error {
			protocol := protocolQ
			if w.Protocol == "802.1ad" {
				protocol = protocolAD
			}
			if err := h.LinkSetVfVlanQosProto(card, s.Index, w.VLAN, w.QoS, protocol); err != nil && protocol == protocolQ {
				return h.LinkSetVfVlanQos(card, s.Index, w.VLAN, w.QoS) // drivers that know no protocols
			} else if err != nil {
				return err
			}
			return nil
		},
		"trust":      func() error { return h.LinkSetVfTrust(card, s.Index, w.Trust) },
		"spoofCheck": func() error { return h.LinkSetVfSpoofchk(card, s.Index, w.Spoof) },
		"rate":       func() error { return h.LinkSetVfRate(card, s.Index, w.MinRate, w.MaxRate) },
		"link":       func() error { return h.LinkSetVfState(card, s.Index, uint32(max(0, slices.Index(linkStates, w.Link)))) },
	}
	var cannot, errs []error
	for _, name := range s.Changed {
		if err := set[name](); errors.Is(err, unix.EOPNOTSUPP) {
			cannot = append(cannot, fmt.Errorf("%s %w", name, errCannot))
		} else if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	if len(errs) > 0 && len(cannot) > 0 {
		return fmt.Errorf("%w; %v", errors.Join(errs...), errors.Join(cannot...)) // worth another try
	}
	return errors.Join(append(errs, cannot...)...)
}

// errCannot is what no other try changes.
var errCannot = errors.New("is nothing that this driver can set")

// bind has a driver serve a function, in place of whichever does (Linux,
// Documentation/ABI/testing/sysfs-bus-pci: driver_override).
func bind(pci, driver string) error {
	now, err := os.Readlink(filepath.Join("/", pciRoot, pci, "driver"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if now = filepath.Base(now); err != nil {
		now = ""
	}
	override := "\n"
	if driver == api.DriverVFIO {
		override = api.DriverVFIO
		if _, err := os.Stat("/sys/bus/pci/drivers/" + api.DriverVFIO); err != nil {
			return errors.New("the module vfio-pci is not loaded")
		}
	}
	fits := now == driver || driver == api.DriverKernel && now != "" && now != api.DriverVFIO
	if err := write(pci, "driver_override", override); err != nil {
		return err
	}
	if fits {
		return nil
	}
	if now != "" {
		if err := os.WriteFile("/sys/bus/pci/drivers/"+now+"/unbind", []byte(pci), 0); err != nil {
			return err
		}
	}
	if driver == "" {
		return nil
	}
	if err := os.WriteFile("/sys/bus/pci/drivers_probe", []byte(pci), 0); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join("/", pciRoot, pci, "driver")); err != nil {
		return fmt.Errorf("no driver takes it")
	}
	return nil
}
