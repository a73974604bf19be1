package uplink

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/natural"
)

// bonds keeps the bonds of settings (Documentation/networking/bonding.rst): made when the settings
// come in force, given their ports as these appear, and gone with the settings.
type bonds struct {
	want []api.Bond
	say  func(format string, args ...any)
	told map[string]string // the last word on a bond or port
}

// bondPause is how often ports are asked for their cable, in milliseconds.
const bondPause = 100

func newBonds(cfg *Config) *bonds {
	b := &bonds{say: cfg.Say, told: map[string]string{}}
	if cfg.Settings != nil {
		b.want = cfg.Settings.Bonds
	}
	return b
}

// bondOf is the bond whose port an interface shall be; empty for none. What is in one stays there:
// in a bond a port's address is another.
func bondOf(want []api.Bond, l Link) string {
	for i := range want {
		if l.Name == want[i].Name {
			return ""
		}
	}
	for i := range want {
		if l.Master == want[i].Name {
			return l.Master
		}
	}
	for i := range want {
		if l.Physical && !l.Wireless && slices.ContainsFunc(want[i].Ports, func(m api.UplinkMatch) bool { return m.Fits(l.Name, l.MAC, l.Driver) }) {
			return want[i].Name
		}
	}
	return ""
}

// join makes bonds and gives them their ports. It returns the interfaces that can be uplinks: bonds
// are, and their ports are not.
func (b *bonds) join(list func() []Link) (out []Link) {
	links := list()
	if b == nil || len(b.want) == 0 {
		return links
	}
	made := false
	for i := range b.want {
		made = b.tell(b.want[i].Name, b.make(&b.want[i])) || made
	}
	if made {
		links = list()
	}
	// In the order of their names: a bond has the address of its first port.
	slices.SortFunc(links, func(x, y Link) int { return natural.Compare(x.Name, y.Name) })
	for _, l := range links {
		name := bondOf(b.want, l)
		switch {
		case slices.ContainsFunc(b.want, func(w api.Bond) bool { return w.Name == l.Name }):
			l.Physical = true
			out = append(out, l)
		case name == "":
			out = append(out, l)
		case l.Master != name:
			b.tell(l.Name, enslave(l.Name, name))
		}
	}
	return out
}

// tell says what is wrong, once; it reports whether all is well.
func (b *bonds) tell(name string, err error) bool {
	word := ""
	if err != nil {
		word = err.Error()
	}
	if b.told[name] != word && word != "" {
		b.say("%s: %s", name, word)
	}
	b.told[name] = word
	return err == nil
}

// make makes a bond, unless there is one like it: that one's traffic goes on.
func (b *bonds) make(w *api.Bond) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = w.Name
	bond := netlink.NewLinkBond(attrs)
	bond.Mode, bond.Miimon = netlink.BOND_MODE_ACTIVE_BACKUP, bondPause
	if w.Mode == api.BondLACP {
		bond.Mode = netlink.BOND_MODE_802_3AD
		bond.XmitHashPolicy = netlink.BOND_XMIT_HASH_POLICY_LAYER2_3
		if w.Hash != "" {
			bond.XmitHashPolicy = netlink.StringToBondXmitHashPolicyMap[w.Hash]
		}
		bond.LacpRate, bond.MinLinks = netlink.BOND_LACP_RATE_SLOW, int(w.MinPorts)
		if w.LACPRate == "fast" {
			bond.LacpRate = netlink.BOND_LACP_RATE_FAST
		}
	}
	err := replaceBond(bond)
	if errors.Is(err, unix.EEXIST) {
		err = replaceBond(bond) // the kernel's module makes one of this name when it is loaded
	}
	if err != nil {
		return fmt.Errorf("the bond cannot be made: %w", err)
	}
	return nil
}

func replaceBond(bond *netlink.Bond) error {
	var missing netlink.LinkNotFoundError
	now, err := netlink.LinkByName(bond.Name)
	switch have, is := now.(*netlink.Bond); {
	case err != nil && !errors.As(err, &missing):
		return err
	case err != nil: // none yet
	case !is:
		return errors.New("there is an interface of that name, which is none")
	case have.Mode == bond.Mode && (bond.Mode != netlink.BOND_MODE_802_3AD || have.XmitHashPolicy == bond.XmitHashPolicy && have.LacpRate == bond.LacpRate && have.MinLinks == bond.MinLinks):
		return nil
	default:
		if err := netlink.LinkDel(have); err != nil {
			return err
		}
	}
	return netlink.LinkAdd(bond)
}

// enslave makes an interface a port of a bond; the kernel wants it off for that, and turns it on.
func enslave(port, bond string) error {
	l, err := netlink.LinkByName(port)
	if err != nil {
		return err
	}
	master, err := netlink.LinkByName(bond)
	if err != nil {
		return err
	}
	if at := l.Attrs().MasterIndex; at != 0 && at != master.Attrs().Index {
		return fmt.Errorf("it is a port of another interface, and none of %s", bond)
	}
	if err := errors.Join(netlink.LinkSetDown(l), netlink.LinkSetMaster(l, master)); err != nil {
		return fmt.Errorf("it does not become a port of %s: %w", bond, err)
	}
	return nil
}

// drop takes the bonds away; their ports are as they were.
func (b *bonds) drop() {
	for i := range b.want {
		if l, err := netlink.LinkByName(b.want[i].Name); err == nil && l.Type() == "bond" {
			if err := netlink.LinkDel(l); err != nil {
				b.say("%s: %v", b.want[i].Name, err)
			}
		}
	}
}
