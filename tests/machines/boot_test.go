package machines

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tributary.dev/tributary/image/keys"
	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/boot/hostport"
	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/story"
	"tributary.dev/tributary/tests/vm"
)

// root is the top of the checkout, seen from this folder.
const root = "../.."

// patience is what a boot gets that takes a quarter of a minute when nothing else runs.
const patience = 5 * time.Minute

// up is what process 1 says when its list is through.
const up = `up after [0-9.]+ s`

// images is the folder of built images.
func images() string { return cmp.Or(os.Getenv("TRIBUTARY_IMAGES"), filepath.Join(root, "build")) }

// programs is the folder of built programs.
func programs(t *testing.T) string {
	t.Helper()
	bin, err := filepath.Abs(cmp.Or(os.Getenv("TRIBUTARY_BIN"), filepath.Join(root, "bin")))
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// core are the scenarios that make test boots too, with TRIBUTARY_VMTEST=core; make vmtest
// boots all.
var core = []string{"TestUpdateSealed", "TestUpdatePowerCuts"}

// besides are the tests that run beside others already.
var besides sync.Map

// needImage skips unless the scenario is asked for, names its image, and lets it run beside
// another. It may wait for that: bound a scenario after it.
func needImage(t *testing.T, arch string) (disk string) {
	t.Helper()
	switch asked := os.Getenv("TRIBUTARY_VMTEST"); {
	case asked == "":
		t.Skip("boots machines: run make vmtest")
	case asked == "core" && !slices.Contains(core, t.Name()):
		t.Skip("needs minutes: run make vmtest")
	case asked == "core" && arch != "amd64":
		t.Skip("make test boots amd64 alone: run make vmtest")
	}
	disk, err := filepath.Abs(filepath.Join(images(), Profiles[arch], "disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(disk); err != nil {
		t.Fatalf("needs %s: run make image PROFILE=%s", disk, Profiles[arch])
	}
	if _, already := besides.LoadOrStore(t, true); !already {
		t.Parallel()
	}
	return disk
}

// power boots a machine and ends it with the test.
func power(t *testing.T, ctx context.Context, spec vm.Spec) *vm.Machine {
	t.Helper()
	m, err := vm.Start(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the serial line of %s:\n%s", m.Name, m.Console.Tail(150))
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func expect(t *testing.T, ctx context.Context, m *vm.Machine, pattern string) {
	t.Helper()
	if _, err := m.Expect(ctx, pattern); err != nil {
		t.Fatal(err)
	}
}

// flashed is a machine with a disk of its own, firmware that holds our keys, and a TPM.
func flashed(t *testing.T, arch, config string) vm.Spec {
	t.Helper()
	image, dir := needImage(t, arch), t.TempDir()
	spec := vm.Spec{Name: "box", Arch: arch, MemoryMiB: 768, Disks: []vm.Disk{{Path: filepath.Join(dir, "disk.raw")}}, Vars: filepath.Join(dir, "vars.fd"),
		TPM: filepath.Join(dir, "tpm"), Watchdog: true, Ports: []string{hostport.Name}, Life: 2 * patience}
	if err := vm.CopyDisk(image, spec.Disks[0].Path, diskSize); err != nil {
		t.Fatal(err)
	}
	if config != "" {
		if err := vm.WriteConfig(spec.Disks[0].Path, config); err != nil {
			t.Fatal(err)
		}
	}
	if arch == "amd64" {
		spec.SecureBoot = true
		enrol(t, spec.Vars)
	}
	return spec
}

// enrol makes a variable store with the keys of this checkout, and Secure Boot on.
func enrol(t *testing.T, path string) {
	t.Helper()
	set, err := keys.LoadOrCreate(filepath.Join(root, ".cache", "keys"))
	if err != nil {
		t.Fatal(err)
	}
	empty, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd")
	if err != nil {
		t.Fatal(err)
	}
	vars, err := set.OVMFVars(empty, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, vars, 0o644); err != nil {
		t.Fatal(err)
	}
}

// raise starts a core and boxes under it, and waits until they have enrolled.
func raise(t *testing.T, ctx context.Context, boxes ...BoxSpec) (*story.Story, *Tree) {
	t.Helper()
	for _, b := range boxes {
		needImage(t, archOf(b))
	}
	return raiseFrom(t, ctx, images(), boxes...)
}

// raiseFrom does so with images of the test's own.
func raiseFrom(t *testing.T, ctx context.Context, images string, boxes ...BoxSpec) (*story.Story, *Tree) {
	t.Helper()
	tree, err := New(Spec{Bin: programs(t), Images: images, Dir: t.TempDir(), Boxes: boxes, CoredArgs: story.CoredArgs, Say: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, b := range boxes {
			if m := tree.Machine(b.Name); t.Failed() && m != nil {
				t.Logf("the serial line of %s:\n%s", b.Name, m.Console.Tail(150))
			}
		}
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &story.Story{Tree: tree, Root: root, Out: os.Stderr, Wait: patience, Bear: Bear}
	if err := s.Raise(ctx); err != nil {
		t.Fatal(err)
	}
	return s, tree
}

// failures are the steps of a boot that went wrong.
func failures(m *vm.Machine) []string {
	return regexp.MustCompile(`(?m)^.*FAILED: .*$`).FindAllString(m.Console.String(), -1)
}

// A flashed disk boots with Secure Boot and a TPM; nobody gets in by its serial line, and
// no port is open, seen from another machine on its network.
func TestFirstBoot(t *testing.T) {
	spec := flashed(t, "amd64", "name: box\nnetwork: {uplinks: [{addresses: [10.77.0.1/24]}]}\n")
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	wires := vm.NewSwitch()
	t.Cleanup(wires.Close)
	spec.NICs = []vm.NIC{{Switch: wires}}
	m := power(t, ctx, spec)
	expect(t, ctx, m, up)
	if bad := failures(m); len(bad) > 0 {
		t.Errorf("steps that failed:\n%s", strings.Join(bad, "\n"))
	}
	for _, line := range []string{"", "root", "root", "admin", "id", "uname -a", ""} {
		if err := m.Send(line + "\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	if tcp, udp := openPorts(t, ctx, wires, "10.77.0.1"); tcp != "" || udp != "" {
		t.Errorf("a box that is no relay has open ports: TCP %q, UDP %q", tcp, udp)
	}
	if strings.Contains(m.Console.String(), "uid=0") || strings.Contains(m.Console.String(), "GNU/Linux") {
		t.Error("the serial line gave a shell")
	}
}

// udpPorts are those on which services of systems like this one wait: TCP can be tried as a
// whole, while a closed UDP port is told of but once a second.
const udpPorts = "7 19 53 67 68 69 111 123 137 161 500 514 546 547 631 1900 4500 5353 5355 5683 8443 8444 8472 8883 51820"

// openPorts tries all TCP ports of a machine from another one on its network, and some of UDP.
func openPorts(t *testing.T, ctx context.Context, wires *vm.Switch, addr string) (tcp, udp string) {
	t.Helper()
	kernel, err := vm.TestKernel(ctx, root, runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	other := power(t, ctx, vm.Spec{Name: "other", MemoryMiB: 256, Kernel: kernel.Image, Initrd: kernel.Initrd, NICs: []vm.NIC{{Switch: wires}}, Life: 2 * patience,
		Cmdline: vm.SerialCmdline(runtime.GOARCH) + " quiet guest.ip=10.77.0.200/24"})
	expect(t, ctx, other, "guest: ready")
	ask := func(command, pattern string) (open string) {
		t.Helper()
		if err := other.Send(command + "\n"); err != nil {
			t.Fatal(err)
		}
		found, err := other.Expect(ctx, pattern)
		if err != nil {
			t.Fatal(err)
		}
		t.Log(found[0])
		if found[1] == "0" {
			t.Fatal("nothing was refused at all: this proves nothing")
		}
		return found[2]
	}
	tcp = ask("scan "+addr, `guest: scanned \d+ ports, closed (\d+), open: \[([^\]]*)\]`)
	udp = ask("probe "+addr+" "+udpPorts, `guest: probed \d+ UDP ports, closed (\d+), open: \[([^\]]*)\]`)
	return tcp, udp
}

// A relay has the ports open on which its children, and boxes without an owner, find it,
// and no other.
func TestRelaysPorts(t *testing.T) {
	needImage(t, runtime.GOARCH)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	_, tree := raise(t, ctx, BoxSpec{Name: "relay", Parent: "core", Role: "access", Relay: true})
	b := tree.boxes["relay"]
	tcp, udp := openPorts(t, ctx, b.below, fmt.Sprintf("10.77.0.%d", b.number))
	if tcp != "8443 8444 8883" || udp != "5353" {
		t.Errorf("open ports are TCP %q, UDP %q", tcp, udp)
	}
}

// A box that is switched off in order, and one whose power goes in the middle of its first
// boot, come up again.
func TestBootsAgain(t *testing.T) {
	needImage(t, runtime.GOARCH)
	for name, at := range map[string]string{"grow": `\bgrow\b`, "state": `\bstate\b +\d`, "data": `\bdata\b +\d`, "in order": up} {
		t.Run(name, func(t *testing.T) {
			spec := flashed(t, runtime.GOARCH, "name: box\n")
			ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
			defer cancel()
			first := power(t, ctx, spec)
			expect(t, ctx, first, at)
			if at == up {
				if err := first.PowerButton(ctx); err != nil {
					t.Fatal(err)
				}
				if err := first.Wait(ctx); err != nil {
					t.Fatalf("the power button: %v", err)
				}
			}
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			second := power(t, ctx, spec)
			expect(t, ctx, second, up)
			if bad := failures(second); len(bad) > 0 {
				t.Errorf("steps that failed:\n%s", strings.Join(bad, "\n"))
			}
		})
	}
}

func TestOtherArchitectureBoots(t *testing.T) {
	spec := flashed(t, Other(), "name: box\n")
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	m := power(t, ctx, spec)
	expect(t, ctx, m, up)
	if bad := failures(m); len(bad) > 0 {
		t.Errorf("steps that failed:\n%s", strings.Join(bad, "\n"))
	}
}

// A box that joined by token has the same identity after its power was cut.
func TestKeepsIdentity(t *testing.T) {
	needImage(t, runtime.GOARCH)
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	s, tree := raise(t, ctx, BoxSpec{Name: "box", Parent: "core", Role: "field"})
	before, err := s.Devices(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.Box("box").PowerCut(); err != nil {
		t.Fatal(err)
	}
	if err := tree.Box("box").Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := tree.boxes["box"].Up(ctx); err != nil {
		t.Fatal(err)
	}
	err = lab.Until(ctx, "the box answers its host", patience, func(ctx context.Context) error {
		text, err := tree.Box("box").Local(ctx, "/status")
		if err != nil {
			return err
		}
		var status struct {
			ID        string `json:"device"`
			Connected bool   `json:"connected"`
		}
		if err := json.Unmarshal(text, &status); err != nil {
			return err
		}
		if status.ID == (api.DeviceID{}).String() {
			return errors.New("it is starting still")
		}
		if want := before["box"].Status.ID.String(); status.ID != want {
			t.Fatalf("its id was %s, and is %s", want, status.ID)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Enrolled(ctx); err != nil {
		t.Fatal(err)
	}
	if after, err := s.Devices(ctx); err != nil || len(after) != 1 {
		t.Errorf("the core knows %d boxes now: %v", len(after), err)
	}
}
