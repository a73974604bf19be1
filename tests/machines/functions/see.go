//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/network"
	"tributary.dev/tributary/pkg/edge/network/sriov"
)

func card() (sriov.Card, error) {
	s := (sriov.Kernel{}).Look()
	if len(s.Cards) != 1 {
		return sriov.Card{}, fmt.Errorf("%d cards", len(s.Cards))
	}
	return s.Cards[0], nil
}

// away tells whether a function's interface is in a container, by what edge wrote down.
func away(pci string) bool {
	_, err := os.Stat("/run/box/net/links/" + pci + ".json")
	return err == nil
}

// made remembers functions as they are when a driver serves all of them. The kernel's shows an
// interface soon after it began.
func (b *box) made(n int, driver string) error {
	c, err := card()
	if err != nil {
		return err
	}
	if len(c.Functions) != n {
		return fmt.Errorf("%d functions", len(c.Functions))
	}
	for _, f := range c.Functions {
		if f.Driver != driver || f.MAC != sriov.StableMAC(c.MAC, f.Index) {
			return fmt.Errorf("function %+v", f)
		}
		if driver != api.DriverVFIO && (f.Name == "") != away(f.PCI) {
			return fmt.Errorf("function %+v is in a container (%t), or on its way", f, away(f.PCI))
		}
	}
	b.first = c.Functions
	return nil
}

// whole holds the functions against what they were: each is at home under its own name, or
// in a container that runs; inside says whether one shall be.
func (b *box) whole(inside bool) error {
	c, err := card()
	if err != nil {
		return err
	}
	if len(c.Functions) != len(b.first) {
		return fmt.Errorf("%d functions of %d", len(c.Functions), len(b.first))
	}
	gone := 0
	for i, f := range c.Functions {
		switch is := away(f.PCI); {
		case is && f.Name == "":
			gone++
		case is != (f.Name == ""):
			return fmt.Errorf("function %+v is in a container (%t), or on its way", f, is)
		case b.first[i].Name == "": // it was in a container when it was first seen
			b.first[i] = f
		case f.Name != b.first[i].Name || f.MAC != b.first[i].MAC || f.MTU != b.first[i].MTU:
			return fmt.Errorf("function %d is %+v and was %+v", i, f, b.first[i])
		}
		if err := spoiled(f.Name); err != nil {
			return err
		}
	}
	want := map[bool]int{true: 1}[inside]
	if run := min(1, len(apps())); gone != want || run != want {
		return fmt.Errorf("%d functions are away, not %d; processes of containers: %v", gone, want, apps())
	}
	return nil
}

// alias is what spoil leaves.
const alias = "left by the one before"

// spoil does to the container's interface what must not stay on it.
func spoil() error {
	return network.Enter(spaces()[0], func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		l, err := h.LinkByName("fast")
		if err != nil {
			return err
		}
		return errors.Join(h.SetPromiscOn(l), h.LinkSetAllmulticastOn(l), h.LinkSetAlias(l, alias), h.LinkSetTxQLen(l, 7))
	})
}

// spoiled tells what is left of it at home; of an interface that a container has, nothing.
func spoiled(name string) error {
	if name == "" {
		return nil
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if at := l.Attrs(); at.Promisc != 0 || at.Allmulti != 0 || at.Alias != "" || at.TxQLen == 7 {
		return fmt.Errorf("%s comes from a container as %+v", name, at)
	}
	return nil
}

// spaces are the namespaces of containers.
func spaces() []string {
	paths, _ := filepath.Glob("/run/box/net/ns/*")
	return paths
}

// reach asks the other end's container from this end's.
func reach(address string) error {
	paths := spaces()
	if len(paths) != 1 {
		return fmt.Errorf("%d containers", len(paths))
	}
	return network.Enter(paths[0], func() error {
		conn, err := net.DialTimeout("tcp", address, 2*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		req, err := http.NewRequest(http.MethodGet, "http://"+address+"/id", nil)
		if err == nil {
			err = req.Write(conn)
		}
		if err != nil {
			return err
		}
		res, err := http.ReadResponse(bufio.NewReader(conn), req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		_, err = io.Copy(io.Discard, res.Body)
		return err
	})
}

// forget removes what the third self said, which says it again.
func forget() {
	for _, pid := range apps() {
		_ = os.Remove(fmt.Sprintf("/proc/%d/root/said", pid)) // it may have said nothing yet
	}
}

// programDrives holds what the third self says in its container against what it was given.
func programDrives() error {
	pids := apps()
	if len(pids) == 0 {
		return errors.New("no container")
	}
	root := fmt.Sprintf("/proc/%d/", pids[0])
	said, err := os.ReadFile(root + "root/said")
	if err != nil || !strings.HasPrefix(string(said), "well") {
		return fmt.Errorf("the program says %q, %w", said, err)
	}
	files, err := filepath.Glob(root + "root/dev/vfio/*")
	if err != nil || len(files) != 2 {
		return fmt.Errorf("device files %q, %w", files, err)
	}
	for file, want := range map[string]string{"limits": "Max locked memory         unlimited", "status": "Cpus_allowed_list:\t1\n", "cgroup": "tributary"} {
		b, err := os.ReadFile(root + file)
		if err != nil || !strings.Contains(string(b), want) {
			return fmt.Errorf("%s: %s, %w", file, b, err)
		}
	}
	c, err := card()
	if err != nil || !strings.HasSuffix(string(said), c.MAC) {
		return fmt.Errorf("the program says %q, and the card is %s, %w", said, c.MAC, err)
	}
	fmt.Printf("functions: the program says: %s\n", said)
	return nil
}

// held says of each container, from its own view, what its program has, when all programs drive their functions.
func held(n int) error {
	var lines []string
	for _, pid := range apps() {
		root := fmt.Sprintf("/proc/%d/", pid)
		read := func(file, pattern string) string {
			b, _ := os.ReadFile(root + file) // one that ended has none
			found := regexp.MustCompile(pattern).FindSubmatch(b)
			if found == nil {
				return "?"
			}
			return string(found[1])
		}
		if said := read("root/said", `^(well)`); said != "well" {
			return fmt.Errorf("the program of %s says %q", read("environ", `\bAPP=(\w+)`), read("root/said", `(.*)`))
		}
		group := strings.TrimPrefix(read("cgroup", `0::/?(\S+)`), "../")
		pages, err := os.ReadFile("/sys/fs/cgroup/" + group + "/hugetlb.2MB.max")
		if err != nil {
			return err
		}
		lines = append(lines, fmt.Sprintf("%s: function %s, processor %s, %s bytes of huge pages", read("environ", `\bAPP=(\w+)`), read("environ", `\bPCIDEVICE_FAST=([0-9a-f:.]+)`),
			read("status", `Cpus_allowed_list:\s*(\S+)`), strings.TrimSpace(string(pages))))
	}
	if len(lines) != n {
		return fmt.Errorf("%d programs: %q", len(lines), lines)
	}
	slices.Sort(lines)
	fmt.Printf("functions: held %s.\n", strings.Join(lines, "; "))
	return nil
}

func asFound() error {
	c, err := card()
	if err != nil {
		return err
	}
	if len(c.Functions) != 0 || !c.Probe || c.MTU != 1500 || c.Up {
		return fmt.Errorf("it is %+v", c)
	}
	return nil
}

// tell says what is where, for who looks for what went wrong.
func (b *box) tell() {
	c, err := card()
	fmt.Printf("functions: %+v %v, apps %v, containers %q\n", c, err, apps(), spaces())
	files, _ := filepath.Glob("/run/box/net/links/*")
	for _, f := range files {
		text, _ := os.ReadFile(f)
		fmt.Printf("functions: %s: %s\n", f, text)
	}
}
