// Package netlist answers: which interfaces and addresses has this machine now, whole?
//
// The kernel says of a list that something changed while it was read; containers that come
// and go do that all the time. Such a list is read again.
package netlist

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// tries bound how often a list is read. The last counts as it is: of the change that
// interrupted it the kernel tells by itself.
const tries = 10

// Links are all interfaces.
func Links() ([]netlink.Link, error) { return whole(netlink.LinkList) }

// Addrs are the addresses of one interface: of one family, or netlink.FAMILY_ALL.
func Addrs(link netlink.Link, family int) ([]netlink.Addr, error) {
	return whole(func() ([]netlink.Addr, error) { return netlink.AddrList(link, family) })
}

func whole[T any](read func() ([]T, error)) (list []T, err error) {
	for range tries {
		if list, err = read(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return list, err
		}
	}
	return list, nil
}
