package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Connect joins two boxes by a link besides the child's uplink: another way to the core.
func (l *Lab) Connect(ctx context.Context, parent, child string) (*link, error) {
	p, c := l.Boxes[parent], l.Boxes[child]
	if p == nil || c == nil {
		return nil, fmt.Errorf("no box %s or %s", parent, child)
	}
	n := l.links
	l.links++
	return join(ctx, n, p.ns, c.ns)
}

// Replace takes a box away for good, and puts another one with an empty disk in its
// place, with the same links. It is not started yet.
func (l *Lab) Replace(old, name string) (*Box, error) {
	b := l.Boxes[old]
	if b == nil {
		return nil, fmt.Errorf("no box %s", old)
	}
	if err := errors.Join(b.PowerCut(), unmountBelow(b.Dir()), os.RemoveAll(b.Dir())); err != nil {
		return nil, err
	}
	delete(l.Boxes, old)
	b.Name, l.Boxes[name] = name, b
	l.order[slices.Index(l.order, old)] = name
	for _, child := range l.Boxes {
		if child.Parent == old {
			child.Parent = name
		}
	}
	return b, nil
}

// Task finds the process of a service's running container: its name begins with
// "<app>-<service>-".
func (b *Box) Task(ctx context.Context, app, service string) (pid int, err error) {
	out, err := b.Ctr(ctx, "task", "ls")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) == 3 && f[2] == "RUNNING" && strings.HasPrefix(f[0], app+"-"+service+"-") {
			return strconv.Atoi(f[1])
		}
	}
	return 0, fmt.Errorf("%s: %s/%s does not run: %s", b.Name, app, service, out)
}
