package boot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/pkg/api"
)

// readProfile takes the box's hardware profile from the root; without one the box does as a box of no family.
func (b *booter) readProfile(context.Context) error {
	p, err := hwprofiles.Installed(os.DirFS("/"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	b.facts.Profile = p
	return err
}

// heedProfile drops what the settings ask and the box's profile does not allow.
func (b *booter) heedProfile(context.Context) error {
	p := b.facts.Profile
	if b.facts.Settings.Relay && p.Name != "" && !p.Relay.Capable {
		b.facts.Settings.Relay = false
		b.warn(api.Warning{Name: "relay-not-capable", Severity: api.Degraded, Message: "tributary.yaml says relay: true, but a box of profile " + p.Name + " cannot serve others; it does not",
			Remedy: "take the line out of the file on the partition CONFIG, or use a box that can"})
	}
	return nil
}

// port is a network card's port as sysfs shows it.
type port struct {
	name, driver, device string // device is the PCI address, such as 0000:03:00.0
	functions, most      int64  // virtual functions, made and possible
}

// ports lists the ports that have a device of their own behind them, virtual functions not among them.
func ports(sys string) (out []port) {
	dirs, _ := filepath.Glob(filepath.Join(sys, "class/net/*/device"))
	for _, dir := range dirs {
		if _, err := os.Lstat(dir + "/physfn"); err == nil {
			continue
		}
		p := port{name: filepath.Base(filepath.Dir(dir))}
		if to, err := os.Readlink(dir); err == nil {
			p.device = filepath.Base(to)
		}
		if to, err := os.Readlink(dir + "/driver"); err == nil {
			p.driver = filepath.Base(to)
		}
		number := func(file string) int64 {
			text, _ := os.ReadFile(dir + "/" + file) // most cards have none
			n, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
			return n
		}
		p.functions, p.most = number("sriov_numvfs"), number("sriov_totalvfs")
		out = append(out, p)
	}
	return out
}

// todo is what a profile wants of a port.
type todo struct {
	port
	switchdev bool
	make      int64 // virtual functions; 0: leave them
}

// portPlan decides what is to be done with the ports. What is as it should be is left alone: a card's functions can't
// be changed while some are in use.
func portPlan(list []port, p hwprofiles.Profile) (out []todo) {
	for _, port := range list {
		policy, ok := p.NIC(port.driver)
		if !ok || policy.VirtualFunctions == 0 && !policy.Switchdev || port.functions > 0 {
			continue
		}
		t := todo{port: port, switchdev: policy.Switchdev, make: min(policy.VirtualFunctions, port.most)}
		if t.switchdev || t.make > 0 {
			out = append(out, t)
		}
	}
	return out
}

// setPorts follows the profile's policies of ports. A card that can't is said, and used as it is.
func (b *booter) setPorts(sys string) {
	for _, t := range portPlan(ports(sys), b.facts.Profile) {
		if t.switchdev {
			// Before the functions are made: drivers refuse it afterwards.
			if err := switchdev(t.device); err != nil {
				b.say("%s: its switch stays as it is: %v", t.name, err)
			}
		}
		if t.make == 0 {
			continue
		}
		file := filepath.Join(sys, "class/net", t.name, "device/sriov_numvfs")
		if err := os.WriteFile(file, fmt.Appendf(nil, "%d", t.make), 0); err != nil {
			b.say("%s: no virtual functions: %v", t.name, err)
			continue
		}
		b.say("%s: %d virtual functions", t.name, t.make)
	}
}

// switchdev shows a card's switch to the kernel (Documentation/networking/switchdev.rst), so that flows between its
// functions can be ruled.
func switchdev(pci string) error {
	dev, err := netlink.DevLinkGetDeviceByName("pci", pci)
	if err != nil {
		return err
	}
	if dev.Attrs.Eswitch.Mode == "switchdev" {
		return nil
	}
	return netlink.DevLinkSetEswitchMode(dev, "switchdev")
}
