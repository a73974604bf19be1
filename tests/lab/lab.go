package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Spec tells what tree to build. Boxes come after their parents.
type Spec struct {
	// Name prefixes namespaces; at most 8 characters. Unique per machine.
	Name string
	// Bin holds cored, edged, edgectl, edged-log and cni/.
	Bin string
	// Dir is where everything is kept; it must not exist or be empty.
	Dir   string
	Boxes []BoxSpec
	// CoredArgs are added to cored's command line.
	CoredArgs []string
	// Broker carries the core's link: empty for cored's own, or Mosquitto.
	Broker string
}

// BoxSpec is one box of a Spec.
type BoxSpec struct {
	Name, Parent string
	Relay        bool
	// Role is the value of the label "role" that the box's join token gives.
	Role      string
	EdgedArgs []string
	// Alone: the box is told neither a parent nor a join token.
	Alone bool
}

// Tree is the tree of the demo: a core, an aggregation relay, an access relay and
// three field devices.
func Tree() []BoxSpec {
	field := func(n string) BoxSpec {
		return BoxSpec{Name: n, Parent: "access-1", Role: "field"}
	}
	return []BoxSpec{
		{Name: "agg-1", Parent: "core", Relay: true, Role: "aggregation"},
		{Name: "access-1", Parent: "agg-1", Relay: true, Role: "access"},
		field("field-1"), field("field-2"), field("field-3"),
	}
}

// Lab is a standing tree.
type Lab struct {
	Spec
	// Admin's edgectl runs in the core's network.
	Admin
	RunDir string
	Boxes  map[string]*Box
	order  []string
	core   *namespace
	cored  *process
	broker *process
	links  int
}

// New makes the namespaces and links; nothing runs yet.
func New(ctx context.Context, spec Spec) (*Lab, error) {
	if err := Root(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(spec.Dir, 0o755); err != nil {
		return nil, err
	}
	runDir, err := os.MkdirTemp("/run", "tb-"+spec.Name+"-")
	if err != nil {
		return nil, err
	}
	l := &Lab{Spec: spec, RunDir: runDir, Boxes: map[string]*Box{}}
	if l.core, err = newNamespace(ctx, spec.Name+"-core"); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	l.Admin = Admin{Program: filepath.Join(l.Bin, "edgectl"), Prefix: l.CorePrefix(), Server: "https://127.0.0.1:8443", Data: l.CoreDir(), Home: l.Dir}
	for _, bs := range spec.Boxes {
		if err := l.Add(ctx, bs); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

// Add makes one more box; it is not started yet.
func (l *Lab) Add(ctx context.Context, bs BoxSpec) error {
	parent := l.core
	if bs.Parent != "core" {
		p, ok := l.Boxes[bs.Parent]
		if !ok {
			return fmt.Errorf("box %s: its parent %s is not there yet", bs.Name, bs.Parent)
		}
		parent = p.ns
	}
	ns, err := newNamespace(ctx, l.Name+"-"+bs.Name)
	if err != nil {
		return err
	}
	b := &Box{Name: bs.Name, Relay: bs.Relay, Parent: bs.Parent, Role: bs.Role, EdgedArgs: bs.EdgedArgs, Alone: bs.Alone, lab: l, ns: ns}
	l.Boxes[bs.Name] = b
	l.order = append(l.order, bs.Name)
	b.Uplink, err = join(ctx, l.links, parent, ns)
	l.links++
	return err
}

// CoreDir is cored's folder.
func (l *Lab) CoreDir() string { return filepath.Join(l.Dir, "core") }

// coreNames is how the core can be reached, for its certificates.
func (l *Lab) coreNames() string {
	names := []string{"localhost", "127.0.0.1"}
	for _, b := range l.Boxes {
		if b.Parent == "core" {
			names = append(names, b.Uplink.ParentAddr)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ",")
}

// StartCore starts cored, and its broker if that is not running, and waits until it
// answers.
func (l *Lab) StartCore(ctx context.Context) error {
	if err := os.MkdirAll(l.CoreDir(), 0o700); err != nil {
		return err
	}
	if l.Broker == Mosquitto && !l.broker.alive() {
		if err := l.StartBroker(ctx); err != nil {
			return err
		}
	}
	argv := append([]string{filepath.Join(l.Bin, "cored"), "run", "--data", l.CoreDir(), "--listen-https", ":8443", "--names", l.coreNames()}, l.coredBroker()...)
	argv = append(argv, l.CoredArgs...)
	var err error
	if l.cored, err = start("cored", filepath.Join(l.Dir, "cored.log"), l.core.argv(argv...)); err != nil {
		return err
	}
	return Until(ctx, "cored answers", 2*time.Minute, func(ctx context.Context) error {
		if !l.cored.alive() {
			return fmt.Errorf("cored ended; see %s", filepath.Join(l.Dir, "cored.log"))
		}
		_, err := l.CoreCommand(ctx, "curl", "-sfk", "https://127.0.0.1:8443/healthz")
		return err
	})
}

// KillCore ends cored as a crash would; StopCore asks it to end.
func (l *Lab) KillCore() { l.cored.kill() }

// StopCore ends cored in order.
func (l *Lab) StopCore() { l.cored.stop(20 * time.Second) }

// CoreCommand runs a program in the core's network.
func (l *Lab) CoreCommand(ctx context.Context, argv ...string) (string, error) {
	full := l.core.argv(argv...)
	return run(ctx, full[0], full[1:]...)
}

// CorePrefix is what a command line starts with to run in the core's network.
func (l *Lab) CorePrefix() []string { return l.core.argv() }

func (l *Lab) tokenFile(role string) string { return filepath.Join(l.Dir, "join-"+role+".token") }

// Join makes a join token for each role, and writes it where the boxes find it.
func (l *Lab) Join(ctx context.Context) error {
	made := map[string]bool{}
	for _, b := range l.Boxes {
		if made[b.Role] || b.Alone {
			continue
		}
		made[b.Role] = true
		token, err := l.JoinToken(ctx, b.Role, b.Role)
		if err != nil {
			return err
		}
		if err := os.WriteFile(l.tokenFile(b.Role), []byte(token+"\n"), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// StartBoxes starts every box, parents first.
func (l *Lab) StartBoxes(ctx context.Context) error {
	for _, name := range l.order {
		if err := l.Boxes[name].Start(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Close ends every process of the lab, and removes mounts, namespaces and /run.
// What was written to Dir stays for a look, but for the containers' own data.
func (l *Lab) Close() error {
	var errs []error
	for i := len(l.order) - 1; i >= 0; i-- {
		errs = append(errs, l.Boxes[l.order[i]].PowerCut())
	}
	l.cored.stop(10 * time.Second)
	l.broker.stop(5 * time.Second)
	errs = append(errs, unmountBelow(l.Dir), unmountBelow(l.RunDir), os.RemoveAll(l.RunDir))
	for _, b := range l.Boxes {
		errs = append(errs, b.ns.delete())
	}
	if l.core != nil {
		errs = append(errs, l.core.delete())
	}
	return errors.Join(errs...)
}
