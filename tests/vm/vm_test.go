package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/edge/boot/hostport"
	"tributary.dev/tributary/tests/wait"
)

// root is the top of the checkout, seen from this folder.
const root = "../.."

func TestMain(m *testing.M) { wait.Leaks(m) }

// patience is what a test gives a guest that needs seconds on a quiet machine.
const patience = 3 * time.Minute

func needQEMU(t *testing.T, arch string) {
	t.Helper()
	if _, err := exec.LookPath(platforms[arch].program); err != nil {
		t.Skipf("needs %s: run tests/install-deps vm", platforms[arch].program)
	}
}

// start boots a guest and ends it with the test; what it said is logged when the test fails.
func start(t *testing.T, ctx context.Context, spec Spec) *Machine {
	t.Helper()
	m, err := Start(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the serial line of %s:\n%s", m.Name, m.Console.Tail(100))
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func expect(t *testing.T, ctx context.Context, m *Machine, pattern string) {
	t.Helper()
	if _, err := m.Expect(ctx, pattern); err != nil {
		t.Fatal(err)
	}
}

func send(t *testing.T, m *Machine, line string) {
	t.Helper()
	if err := m.Send(line + "\n"); err != nil {
		t.Fatal(err)
	}
}

// Two guests boot without firmware, talk through a switch that can be cut, answer their
// host, and end by themselves.
func TestGuests(t *testing.T) {
	needQEMU(t, runtime.GOARCH)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	kernel, err := TestKernel(ctx, root, runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	wires := NewSwitch()
	t.Cleanup(wires.Close)
	guest := func(name, addr string) *Machine {
		return start(t, ctx, Spec{Name: name, MemoryMiB: 256, Kernel: kernel.Image, Initrd: kernel.Initrd, NoReboot: true, Life: patience,
			Cmdline: SerialCmdline(runtime.GOARCH) + " quiet guest.ip=" + addr + "/24", NICs: []NIC{{Switch: wires}}, Ports: []string{hostport.Name}})
	}
	a, b := guest("a", "10.77.0.1"), guest("b", "10.77.0.2")
	for _, m := range []*Machine{a, b} {
		expect(t, ctx, m, "guest: ready")
	}
	send(t, a, "dial 10.77.0.2:7 hello 1m")
	expect(t, ctx, a, "guest: got hello")
	if down, up := wires.Bytes("b"); down == 0 || up == 0 {
		t.Errorf("the switch counted %d bytes to b and %d from it", down, up)
	}
	wires.Cut("b")
	send(t, a, "dial 10.77.0.2:7 anybody 2s")
	expect(t, ctx, a, "guest: error: dial")
	wires.Heal("b")
	send(t, a, "dial 10.77.0.2:7 again 1m")
	expect(t, ctx, a, "guest: got again")

	send(t, b, "serve")
	expect(t, ctx, b, "guest: serving")
	for _, path := range []string{"/status", "/metrics"} {
		if body, err := b.Get(ctx, hostport.Name, path); err != nil || string(body) != path {
			t.Errorf("on its port it answers %q, %v", body, err)
		}
	}
	send(t, b, "off")
	if err := b.Wait(ctx); err != nil {
		t.Errorf("b ended with %v", err)
	}
	if err := a.Reset(ctx); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.Event(ctx, "SHUTDOWN"), a.Wait(ctx)); err != nil { // NoReboot: a reset is its end
		t.Error(err)
	}
}

// Two machines forward the same port of theirs, each from a port that nobody else has. They stand still: QEMU answers.
func TestForwarded(t *testing.T) {
	needQEMU(t, runtime.GOARCH)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	kernel, err := TestKernel(ctx, root, runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for _, name := range []string{"a", "b"} {
		m := start(t, ctx, Spec{Name: name, MemoryMiB: 256, Kernel: kernel.Image, NICs: []NIC{{}, {Alone: true, Forward: []int{80, 8080}}}, Life: patience, Extra: []string{"-S"}})
		for _, port := range []int{80, 8080} {
			host, err := m.Forwarded(ctx, port)
			if err != nil {
				t.Fatal(err)
			}
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", host))
			if err != nil {
				t.Fatal(err)
			}
			_ = c.Close()
			seen[host] = true
		}
		if host, err := m.Forwarded(ctx, 81); err == nil {
			t.Errorf("port 81 is at %d, which nobody asked for", host)
		}
	}
	if len(seen) != 4 {
		t.Errorf("four ports are reached at %v", seen)
	}
}

// A guest that says nothing is ended by its life, and whoever waits is told what it said.
func TestLife(t *testing.T) {
	needQEMU(t, runtime.GOARCH)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	kernel, err := TestKernel(ctx, root, runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	m := start(t, ctx, Spec{MemoryMiB: 256, Kernel: kernel.Image, Cmdline: "quiet", Life: time.Second})
	if _, err := m.Expect(ctx, "never said"); err == nil || !strings.Contains(err.Error(), "the machine ended") {
		t.Errorf("waiting for a machine that was ended: %v", err)
	}
	if err := m.Do(ctx, "query-status", nil, nil); !errors.Is(err, errMonitorEnded) {
		t.Errorf("its monitor says %v", err)
	}
}

func TestStartRefuses(t *testing.T) {
	for name, spec := range map[string]Spec{
		"architecture": {Arch: "mips", Kernel: "k"},
		"address":      {Kernel: "k", NICs: []NIC{{MAC: "no"}}},
	} {
		if _, err := Start(t.Context(), spec); err == nil {
			t.Errorf("a wrong %s is taken", name)
		}
	}
}

func TestArguments(t *testing.T) {
	line := func(s Spec, nics ...int) string {
		t.Helper()
		argv, err := arguments(s, handles{qmp: 3, nics: nics})
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(argv, " ")
	}
	full := line(Spec{Name: "n", Arch: "amd64", MemoryMiB: 1, CPUs: 1, Dir: "/d", Vars: "/v,1", SecureBoot: true, TPM: "/t", Watchdog: true, Screen: true,
		Disks: []Disk{{Path: "/a,b", ReadOnly: true}, {Path: "/c", Format: "qcow2", Log: "/log", BootIndex: 2}, {Path: "/u", USB: true}},
		NICs:  []NIC{{Forward: []int{80}, Alone: true}, {Switch: NewSwitch(), MAC: "52:54:00:00:00:01"}}}, 0, 4)
	for _, want := range []string{"-accel tcg,thread=multi", "smm=on", "cfi.pflash01,property=secure", "file=/v,,1", "filename=/a,,b,read-only=on,locking=off", "driver=qcow2,node-name=disk1",
		"driver=blklogwrites", "drive=logged1,bootindex=2", "usb-storage,bus=usb.0", "restrict=on,net=10.0.3.0/24,hostfwd=tcp:127.0.0.1:0-:80", "addr.type=fd,addr.str=4", "mac=52:54:00:00:00:01", "tpm-crb", "watchdog=reset"} {
		if !strings.Contains(full, want) {
			t.Errorf("no %q in %s", want, full)
		}
	}
	if direct := line(Spec{Arch: "arm64", Kernel: "/k", Cmdline: "c d", Accel: "kvm"}); strings.Contains(direct, "pflash") || !strings.Contains(direct, "-accel kvm -cpu host") {
		t.Errorf("a direct boot has %s", direct)
	}
	if MAC("a", 0) == MAC("b", 0) || MAC("a", 0) == MAC("a", 1) {
		t.Error("cards share addresses")
	}
}

func TestConsole(t *testing.T) {
	var log bytes.Buffer
	c := newConsole(&log)
	_, _ = c.Write([]byte("one\x1b[1m two\r\nthree"))
	for _, want := range []string{"o(n)e", "t(w)o", "thr(e)e"} {
		got, err := c.expect(t.Context(), regexp.MustCompile(want))
		if err != nil || len(got) != 2 {
			t.Errorf("%s: %q, %v", want, got, err)
		}
	}
	if c.Tail(1) != "three" || c.Tail(9) != "one two\nthree" || log.String() != c.String() {
		t.Errorf("the line's end is %q", c.Tail(9))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.expect(ctx, regexp.MustCompile("one")); !errors.Is(err, context.Canceled) {
		t.Errorf("what was matched before is matched again: %v", err)
	}
	c.end("broken")
	if _, err := c.expect(t.Context(), regexp.MustCompile("x")); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("after its end: %v", err)
	}
	_, _ = c.Write(bytes.Repeat([]byte("x"), consoleMax+10))
	if len(c.String()) != consoleMax {
		t.Errorf("%d bytes are kept", len(c.String()))
	}
}

func TestProbe(t *testing.T) {
	needQEMU(t, runtime.GOARCH)
	first, err := Probe(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	if first != "" && first != "kvm" {
		t.Errorf("the probe says %q", first)
	}
	if again, err := Probe(t.Context(), root); err != nil || again != first {
		t.Errorf("the second time it says %q, %v", again, err)
	}
}
