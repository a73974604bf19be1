package hardware

import (
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/netlist"
)

// Host is the machine this runs on; data is a folder on the data disk.
func Host(data string) Source {
	return Source{
		Root:  os.DirFS("/"),
		Links: hostLinks,
		Asked: askKernel(),
		Disk: func() int64 {
			var st unix.Statfs_t
			if unix.Statfs(data, &st) != nil {
				return 0
			}
			return int64(st.Blocks) * int64(st.Bsize)
		},
	}
}

func hostLinks() []Link {
	list, err := netlist.Links()
	if err != nil {
		return nil
	}
	var out []Link
	for _, l := range list {
		a := l.Attrs()
		out = append(out, Link{Name: a.Name, MAC: a.HardwareAddr.String(), Kind: l.Type(), Port: a.MasterIndex != 0,
			Loopback: a.RawFlags&unix.IFF_LOOPBACK != 0})
	}
	return out
}

// Addresses are the box's own global addresses, without those of bridges, which
// belong to containers. They are where children and people may reach it.
func Addresses() []string {
	list, err := netlist.Links()
	if err != nil {
		return nil
	}
	var out []string
	for _, l := range list {
		a := l.Attrs()
		if a.RawFlags&unix.IFF_LOOPBACK != 0 || a.RawFlags&unix.IFF_UP == 0 || l.Type() == "bridge" {
			continue
		}
		addrs, err := netlist.Addrs(l, netlink.FAMILY_ALL)
		if err != nil {
			continue
		}
		for _, addr := range addrs {
			if addr.IP.IsGlobalUnicast() {
				out = append(out, addr.IP.String())
			}
		}
	}
	return out
}
