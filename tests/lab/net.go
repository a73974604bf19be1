// Package lab answers: how does a whole Tributary tree of real processes stand on one machine?
//
// Each box is a network namespace with its own containerd, its own edged and its own
// folder. Boxes are joined by veth pairs and nothing routes between them, so a child
// reaches its parent and nobody else. Everything that a lab makes carries the lab's
// name, and Close takes it all away again.
package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// run executes a command and returns its standard output; the error holds what it
// wrote to standard error.
func run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}

// namespace is one box's network: lo is up, and links are added by join.
type namespace struct{ name string }

func newNamespace(ctx context.Context, name string) (*namespace, error) {
	if _, err := run(ctx, "ip", "netns", "add", name); err != nil {
		return nil, err
	}
	ns := &namespace{name}
	_, err := run(ctx, "ip", "-n", name, "link", "set", "lo", "up")
	return ns, err
}

func (n *namespace) delete() error {
	_, err := run(context.Background(), "ip", "netns", "del", n.name)
	return err
}

// argv prefixes a command so that it runs in the namespace. It enters the network
// namespace alone: `ip netns exec` would also mount a fresh /sys, and with it hide
// the cgroups.
func (n *namespace) argv(argv ...string) []string {
	return append([]string{"nsenter", "--net=/run/netns/" + n.name, "--"}, argv...)
}

// link is a veth pair between a parent and a child.
type link struct {
	parent, child         *namespace
	parentDev, childDev   string
	ParentAddr, ChildAddr string
}

// join makes the n-th link of the lab: 10.77.n.1 on the parent, 10.77.n.2 on the child.
func join(ctx context.Context, n int, parent, child *namespace) (*link, error) {
	l := &link{parent: parent, child: child, parentDev: "down" + strconv.Itoa(n), childDev: "up" + strconv.Itoa(n),
		ParentAddr: fmt.Sprintf("10.77.%d.1", n), ChildAddr: fmt.Sprintf("10.77.%d.2", n)}
	steps := [][]string{
		{"link", "add", l.parentDev, "netns", parent.name, "type", "veth", "peer", "name", l.childDev, "netns", child.name},
		{"-n", parent.name, "addr", "add", l.ParentAddr + "/30", "dev", l.parentDev},
		{"-n", child.name, "addr", "add", l.ChildAddr + "/30", "dev", l.childDev},
		{"-n", parent.name, "link", "set", l.parentDev, "up"},
		{"-n", child.name, "link", "set", l.childDev, "up"},
	}
	for _, s := range steps {
		if _, err := run(ctx, "ip", s...); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// Cut takes the link down at the parent's end; Heal brings it up again.
func (l *link) Cut(ctx context.Context) error  { return l.set(ctx, "down") }
func (l *link) Heal(ctx context.Context) error { return l.set(ctx, "up") }

func (l *link) set(ctx context.Context, state string) error {
	_, err := run(ctx, "ip", "-n", l.parent.name, "link", "set", l.parentDev, state)
	return err
}

// Bytes returns what the child's end received from above and sent upward, as the
// kernel counted it (Ethernet frames included).
func (l *link) Bytes(ctx context.Context) (down, up uint64, err error) {
	out, err := run(ctx, "ip", "-n", l.child.name, "-s", "-o", "link", "show", "dev", l.childDev)
	if err != nil {
		return 0, 0, err
	}
	return parseLinkBytes(out)
}

// parseLinkBytes reads the RX and TX byte counters of `ip -s -o link show`.
func parseLinkBytes(out string) (rx, tx uint64, err error) {
	counters := func(mark string) (uint64, error) {
		_, rest, ok := strings.Cut(out, mark)
		if !ok {
			return 0, errors.New("no " + mark + " in the output of ip -s link")
		}
		for _, field := range strings.Fields(rest) {
			if v, err := strconv.ParseUint(field, 10, 64); err == nil {
				return v, nil
			}
		}
		return 0, errors.New("no number after " + mark)
	}
	if rx, err = counters("RX:"); err != nil {
		return
	}
	tx, err = counters("TX:")
	return
}

// Root reports why a lab cannot stand here, or nil.
func Root() error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: it makes network namespaces and runs containerd")
	}
	for _, tool := range []string{"ip", "nsenter", "containerd", "runc"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("needs %s: run make deps", tool)
		}
	}
	return nil
}
