package network

import (
	"errors"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Cable is how a container's first interface hangs on the box.
type Cable struct {
	// Host is the index of the host's end, MAC the address of the container's, and Gateway that of
	// the bridge between.
	Host         int
	MAC, Gateway net.HardwareAddr
}

// ErrNoCable says that a container's first interface is no end of a cable: a virtual function, say.
var ErrNoCable = errors.New("network: the container hangs on no bridge")

// CableOf looks at the container whose namespace is at path.
func CableOf(path string) (c Cable, err error) {
	err = Enter(path, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		l, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		if l.Type() != "veth" {
			return ErrNoCable
		}
		c.Host, c.MAC = l.Attrs().ParentIndex, l.Attrs().HardwareAddr
		return nil
	})
	if err != nil {
		return c, err
	}
	host, err := netlink.LinkByIndex(c.Host)
	if err != nil {
		return c, err
	}
	bridge, err := netlink.LinkByIndex(host.Attrs().MasterIndex)
	if err != nil {
		return c, ErrNoCable
	}
	c.Gateway = bridge.Attrs().HardwareAddr
	return c, nil
}
