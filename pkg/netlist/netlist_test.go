package netlist

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

// A list that changed while it was read is read again; at last it counts as it is, and an
// error is one at once.
func TestWhole(t *testing.T) {
	torn, broken := fmt.Errorf("links: %w", netlink.ErrDumpInterrupted), errors.New("broken")
	for _, c := range []struct {
		say   []error
		list  []int
		reads int
		err   error
	}{
		{[]error{nil}, []int{1}, 1, nil},
		{[]error{torn, torn, nil}, []int{3}, 3, nil},
		{slices.Repeat([]error{torn}, 2*tries), []int{tries}, tries, nil},
		{[]error{torn, broken}, nil, 2, broken},
	} {
		reads := 0
		list, err := whole(func() ([]int, error) {
			reads++
			if err := c.say[reads-1]; err == nil || err == torn {
				return []int{reads}, err
			}
			return nil, c.say[reads-1]
		})
		if !slices.Equal(list, c.list) || reads != c.reads || !errors.Is(err, c.err) {
			t.Errorf("%v: %v after %d reads, %v", c.say, list, reads, err)
		}
	}
}

func TestLinks(t *testing.T) {
	links, err := Links()
	if err != nil {
		t.Skipf("needs the kernel's word on interfaces: %v", err)
	}
	for _, l := range links {
		if l.Attrs().Name != "lo" {
			continue
		}
		if _, err := Addrs(l, netlink.FAMILY_ALL); err != nil {
			t.Error(err)
		}
		return
	}
	t.Errorf("no lo among %v", links)
}
