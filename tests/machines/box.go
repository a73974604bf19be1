package machines

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/disk/fat"
	"tributary.dev/tributary/pkg/edge/boot/hostport"
	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/vm"
)

// diskSize is larger than what is flashed: DATA grows into the rest on the first boot.
const diskSize = 4 << 30

// appPort is the one of the box at which the demo's app answers.
const appPort = 8080

// Box is one machine with its disk and cables.
type Box struct {
	BoxSpec
	tree *Tree
	// number tells children of one relay apart: 10.77.0.<number>.
	number int
	// wire carries the uplink of a box under the core; children hang on their relay's wires.
	wire    *wire
	below   *vm.Switch
	above   *vm.Switch
	machine *vm.Machine
	asking  sync.Mutex
}

func (t *Tree) add(i int, spec BoxSpec) error {
	b := &Box{BoxSpec: spec, tree: t, number: i + 1}
	t.boxes[spec.Name] = b
	if spec.Relay {
		b.below = vm.NewSwitch()
	}
	if spec.Parent == "core" {
		var err error
		b.wire, err = newWire()
		return err
	}
	parent, ok := t.boxes[spec.Parent]
	if !ok || parent.below == nil {
		return fmt.Errorf("box %s: its parent %s is no relay before it", spec.Name, spec.Parent)
	}
	b.above = parent.below
	return os.MkdirAll(filepath.Join(t.Dir, spec.Name), 0o755)
}

func (b *Box) path(name string) string { return filepath.Join(b.tree.Dir, b.Name, name) }

// Disk is the file of the box's disk; it outlives the machine.
func (b *Box) Disk() string { return b.path("disk.raw") }

func (b *Box) flash(token string, birth []byte) error {
	if err := os.MkdirAll(b.path(""), 0o755); err != nil {
		return err
	}
	if err := vm.CopyDisk(filepath.Join(b.tree.Images, Profiles[archOf(b.BoxSpec)], "disk.raw"), b.Disk(), diskSize); err != nil {
		return err
	}
	var more []fat.File
	if birth != nil {
		more = append(more, fat.File{Path: "idevid.pem", Content: bytes.NewReader(birth)})
	}
	return vm.WriteConfig(b.Disk(), b.config(token), more...)
}

// config is what a person writes on the partition CONFIG of a box: the addresses of a network
// without DHCP, and a token if it joins by that, or where a box asks for its owner that stands
// alone. A relay's first card leads up, its second to its children; a child's first leads up.
func (b *Box) config(token string) string {
	var s strings.Builder
	parent := fmt.Sprintf("10.77.0.%d", 1)
	up := fmt.Sprintf("{match: {mac: %q}, addresses: [10.77.0.%d/24]}", b.mac(0), b.number)
	if b.wire != nil {
		parent = b.wire.ports()
		up = fmt.Sprintf("{match: {mac: %q}, dhcp: true}", b.mac(0))
		if b.Site != nil { // whose servers alone name others
			up = fmt.Sprintf("{match: {mac: %q}, addresses: [10.0.2.15/24], gateway: 10.0.2.2, metric: 900}", b.mac(0))
		}
	} else if p := b.tree.boxes[b.Parent]; p != nil {
		parent = fmt.Sprintf("10.77.0.%d:8883,8443", p.number)
	}
	switch {
	case b.tree.Keys != "" && !b.Alone: // its owner names it
		servers := slices.Clone(b.Bootstrap)
		if b.wire != nil && !b.Silent {
			servers = slices.Insert(servers, 0, fmt.Sprintf("https://10.0.2.2:%d", b.wire.bootstrap.port))
		}
		if len(servers) > 0 {
			fmt.Fprintf(&s, "bootstrap: [\"%s\"]\n", strings.Join(servers, `", "`))
		}
	case b.Alone:
		fmt.Fprintf(&s, "name: %s\n", b.Name)
	default:
		fmt.Fprintf(&s, "name: %s\njoin: {token: %q, parent: %q}\n", b.Name, token, parent)
	}
	if b.Relay {
		fmt.Fprintln(&s, "relay: true")
	}
	fmt.Fprintf(&s, "network:\n  uplinks:\n    - %s\n", up)
	second := fmt.Sprintf("{match: {mac: %q}, addresses: [10.0.3.15/24], metric: 900}", b.mac(1)) // where the host asks for the app
	if b.Site != nil {
		second = fmt.Sprintf("{match: {mac: %q}, dhcp: true, metric: 50}", b.mac(1))
	}
	if b.Relay {
		second = fmt.Sprintf("{match: {mac: %q}, addresses: [10.77.0.%d/24], metric: 900}", b.mac(1), b.number)
	}
	for _, u := range append([]string{second}, b.Uplinks...) {
		fmt.Fprintf(&s, "    - %s\n", u)
	}
	return s.String()
}

func (b *Box) mac(card int) string { return vm.MAC(b.Name, card) }

// cards are the machine's, in the order of config.
func (b *Box) cards() []vm.NIC {
	up := vm.NIC{Switch: b.above}
	if b.wire != nil {
		up = vm.NIC{}
	}
	second := vm.NIC{Alone: true, Forward: []int{appPort}}
	if b.Site != nil {
		second = vm.NIC{Switch: b.Site}
	}
	if b.Relay {
		second = vm.NIC{Switch: b.below}
	}
	return []vm.NIC{up, second}
}

// ParentName is the parent's name, or "core".
func (b *Box) ParentName() string { return b.Parent }

// Start powers the box up; it does not wait for what the box does then.
func (b *Box) Start(ctx context.Context) error {
	arch, memory := archOf(b.BoxSpec), b.MemoryMiB
	accel := b.tree.Accel
	if b.Arch != "" && b.Arch != archOf(BoxSpec{}) {
		accel = ""
	}
	if memory == 0 {
		memory = 768
	}
	spec := vm.Spec{Name: b.Name, Arch: arch, Accel: accel, MemoryMiB: memory, CPUs: 1, Disks: []vm.Disk{{Path: b.Disk(), Log: b.DiskLog}},
		Vars: b.path("vars.fd"), NICs: b.cards(), Ports: []string{hostport.Name}, Watchdog: true, Clock: b.Clock, VSock: b.VSock, Extra: b.Extra, Life: time.Hour}
	if b.Secure {
		spec.SecureBoot, spec.TPM = true, b.path("tpm")
	}
	m, err := vm.Start(ctx, spec)
	if err != nil {
		return err
	}
	b.machine = m
	return nil
}

// bootWait bounds a boot that takes some twenty seconds by itself, emulated beside others.
const bootWait = 4 * time.Minute

// Up waits until process 1 has been through its list.
func (b *Box) Up(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootWait)
	defer cancel()
	said, err := b.machine.Expect(ctx, `up after [0-9.]+ s|cannot start its system: .*|the box cannot start: .*`)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(said[0], "up after") {
		return fmt.Errorf("%s: %s", b.Name, strings.TrimSpace(said[0]))
	}
	return nil
}

// PowerCut ends the machine at once.
func (b *Box) PowerCut() error {
	if b.machine == nil {
		return nil
	}
	err := errors.Join(b.keepLog(), b.machine.Close())
	b.machine = nil
	return err
}

// keepLog adds what the serial line said to the box's log.
func (b *Box) keepLog() error {
	f, err := os.OpenFile(b.path("serial.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.WriteString(f, b.machine.Console.String())
	return errors.Join(err, f.Close())
}

func (b *Box) close() error {
	err := b.PowerCut()
	if b.below != nil {
		b.below.Close()
	}
	if b.wire != nil {
		b.wire.close()
	}
	return err
}

// CutUplink silences the uplink; HealUplink ends that.
func (b *Box) CutUplink(context.Context) error  { b.cut(true); return nil }
func (b *Box) HealUplink(context.Context) error { b.cut(false); return nil }

func (b *Box) cut(cut bool) {
	switch {
	case b.wire != nil:
		b.wire.cut(cut)
	case cut:
		b.above.Cut(b.Name)
	default:
		b.above.Heal(b.Name)
	}
}

// LinkBytes is what the uplink carried. Below a relay these are Ethernet frames; at the core
// it is what TCP carried, since the emulated network has no cable to count on.
func (b *Box) LinkBytes(context.Context) (down, up uint64, err error) {
	if b.wire != nil {
		down, up = b.wire.bytes()
		return down, up, nil
	}
	down, up = b.above.Bytes(b.Name)
	return down, up, nil
}

// AskApp gets the demo's app.
func (b *Box) AskApp(ctx context.Context) (string, error) {
	if b.machine == nil {
		return "", errors.New(b.Name + " has no power")
	}
	port, err := b.machine.Forwarded(ctx, appPort)
	if err != nil {
		return "", err
	}
	return get(ctx, "http://"+loopback(port)+"/")
}

// Local asks edged's local API.
func (b *Box) Local(ctx context.Context, path string) ([]byte, error) {
	if b.machine == nil {
		return nil, errors.New(b.Name + " has no power")
	}
	b.asking.Lock()
	defer b.asking.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return b.machine.Get(ctx, hostport.Name, path)
}

// Records reads the box's own log.
func (b *Box) Records(ctx context.Context) ([]lab.Record, error) {
	text, err := b.Local(ctx, "/records")
	if err != nil {
		return nil, err
	}
	return lab.ParseRecords(string(text))
}

func readAll(res *http.Response) (string, error) {
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %.200s", res.Status, body)
	}
	return string(body), err
}
