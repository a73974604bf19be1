// Package vm answers: how does a test boot a machine, and watch it?
//
// A Machine is one QEMU process. Its serial line, its QMP monitor and its network are
// held by this process through inherited sockets, so there is nothing to wait for and no
// name to clash; when this process dies, the kernel ends the machine. Every machine has a
// life after which it is ended, since a guest that does not boot hangs for ever.
package vm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Spec describes a machine. The zero value of each field is a sensible one.
type Spec struct {
	// Name tells machines apart in messages and file names.
	Name string
	// Arch is amd64 or arm64; empty: the host's.
	Arch string
	// Accel is "kvm" or empty for software emulation; see Probe.
	Accel string
	// MemoryMiB is 512 if zero, CPUs 1.
	MemoryMiB, CPUs int
	// Kernel, Initrd and Cmdline boot without firmware. Without a Kernel, UEFI firmware
	// boots what the disks hold.
	Kernel, Initrd, Cmdline string
	// Vars is the file of UEFI variables that the machine reads and writes; it is made
	// from the firmware's empty store when it does not exist. Empty: one in Dir.
	Vars string
	// SecureBoot picks the firmware that checks signatures; Vars then hold the keys.
	SecureBoot bool
	// TPM is the folder of a software TPM's state, made when it is not there. Empty: none.
	TPM   string
	NICs  []NIC
	Disks []Disk
	// Ports are virtio-serial ports; the guest finds them by name, the host dials them by
	// Machine.Dial.
	Ports []string
	// VSock adds a vsock card; see DialVSock.
	VSock bool
	// Watchdog adds an i6300esb whose end resets the machine.
	Watchdog bool
	// Screen adds a display, for Screenshot.
	Screen bool
	// NoReboot ends the machine where it would reset.
	NoReboot bool
	// Clock is what the clock on the board says at power on; zero: the right time.
	Clock time.Time
	// Dir holds sockets, logs and the variable store: short, since sockets lie there.
	// Empty: a new folder in the system's temporary one, which Close removes.
	Dir string
	// Life bounds the machine; ten minutes if zero.
	Life time.Duration
	// Extra is added to QEMU's command line.
	Extra []string
}

// Disk is a virtio disk.
type Disk struct {
	Path string
	// Format is raw if empty.
	Format   string
	ReadOnly bool
	// Log is a file that receives every write and flush, in the format of dm-log-writes.
	Log string
	// USB makes it a removable stick instead.
	USB bool
	// BootIndex, from 1, has the firmware order what it boots by QEMU's word, at every
	// start. With 0 on all disks the order is the guest's own, as on a real machine.
	BootIndex int
}

// NIC is a network card: in a user-mode network of its own (Switch nil), where the host's
// loopback is 10.0.2.2, or a port of a Switch.
type NIC struct {
	MAC    string
	Switch *Switch
	// Port names the port on the Switch; the machine's name if empty.
	Port string
	// Forward are ports of the guest that the host reaches on its loopback; see Forwarded.
	Forward []int
	// Alone keeps the guest from reaching the host or anything else; forwards still work, to
	// 10.0.3.15: another network than that of a card that is not alone.
	Alone bool
	// Model is virtio-net-pci if empty.
	Model string
}

// Machine is a running guest.
type Machine struct {
	Spec
	// Console is the first serial line.
	Console *Console
	monitor *monitor
	stdin   io.WriteCloser
	qemu    *Process
	tpm     *Process
	vsock   *vsock
	life    *time.Timer
	ownDir  bool
	closed  sync.Once
	readers sync.WaitGroup
}

// Start boots a machine. The context bounds the start alone; Close ends the machine.
func Start(ctx context.Context, spec Spec) (_ *Machine, err error) {
	m := &Machine{Spec: spec}
	m.Arch = cmp.Or(m.Arch, runtime.GOARCH)
	m.Name = cmp.Or(m.Name, "guest")
	m.MemoryMiB, m.CPUs = cmp.Or(m.MemoryMiB, 512), cmp.Or(m.CPUs, 1)
	m.NICs = slices.Clone(m.NICs)
	if m.Dir == "" {
		m.ownDir = true
		if m.Dir, err = os.MkdirTemp("", "vm-"); err != nil {
			return nil, err
		}
	} else if err := os.MkdirAll(m.Dir, 0o755); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%s: %w", m.Name, err), m.Close())
		}
	}()
	if m.Kernel == "" {
		if err := m.prepareVars(); err != nil {
			return nil, err
		}
	}
	if m.TPM != "" {
		if err := m.startTPM(ctx); err != nil {
			return nil, err
		}
	}
	return m, m.startQEMU(ctx)
}

// startQEMU starts the emulator with its inherited sockets and shakes hands with its monitor.
func (m *Machine) startQEMU(ctx context.Context) error {
	var inherited []*os.File
	defer func() {
		for _, f := range inherited {
			_ = f.Close()
		}
	}()
	inherit := func(f *os.File) int {
		inherited = append(inherited, f)
		return 2 + len(inherited) // 0, 1 and 2 are taken
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	fds := handles{qmp: inherit(theirs)}
	for _, nic := range m.NICs {
		fd := 0
		if nic.Switch != nil {
			f, err := nic.Switch.plug(cmp.Or(nic.Port, m.Name))
			if err != nil {
				return errors.Join(err, ours.Close())
			}
			fd = inherit(f)
		}
		fds.nics = append(fds.nics, fd)
	}
	if m.VSock {
		card, f, err := newVSock()
		if err != nil {
			return errors.Join(err, ours.Close())
		}
		m.vsock, fds.vsock = card, inherit(f)
	}
	argv, err := arguments(m.Spec, fds)
	if err != nil {
		return errors.Join(err, ours.Close())
	}
	if _, err := exec.LookPath(argv[0]); err != nil {
		return errors.Join(fmt.Errorf("needs %s: run tests/install-deps vm", argv[0]), ours.Close())
	}
	serialLog, err := os.OpenFile(m.path("serial.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return errors.Join(err, ours.Close())
	}
	m.Console = newConsole(serialLog)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.ExtraFiles = inherited
	if m.stdin, err = cmd.StdinPipe(); err != nil {
		return errors.Join(err, ours.Close(), serialLog.Close())
	}
	cmd.Stdout = m.Console
	m.qemu, err = StartProcess(cmd)
	if err != nil {
		return errors.Join(err, ours.Close(), serialLog.Close())
	}
	m.readers.Go(func() {
		<-m.qemu.done
		m.Console.end(m.qemu.Message())
		_ = serialLog.Close()
	})
	m.life = time.AfterFunc(cmp.Or(m.Life, 10*time.Minute), m.qemu.Kill)
	m.monitor, err = newMonitor(ctx, ours, &m.readers)
	if err != nil {
		return fmt.Errorf("%w (QEMU says: %s)", err, m.qemu.Message())
	}
	return nil
}

func (m *Machine) path(name string) string { return filepath.Join(m.Dir, m.Name+"."+name) }

// SerialLog is the file of all that the serial line said.
func (m *Machine) SerialLog() string { return m.path("serial.log") }

// Expect waits until the serial line says something that matches, after what the last
// Expect matched, and returns the match and its groups.
func (m *Machine) Expect(ctx context.Context, pattern string) ([]string, error) {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return nil, err
	}
	found, err := m.Console.expect(ctx, re)
	if err != nil {
		return nil, fmt.Errorf("%s: waiting for %q: %w; its serial line ends with:\n%s", m.Name, pattern, err, m.Console.Tail(30))
	}
	return found, nil
}

// Send types on the serial line.
func (m *Machine) Send(text string) error {
	_, err := io.WriteString(m.stdin, text)
	return err
}

// Dial connects to the host's end of a port of Spec.Ports.
func (m *Machine) Dial(ctx context.Context, port string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", m.path(port+".sock"))
}

// Done is closed when the machine has ended.
func (m *Machine) Done() <-chan struct{} { return m.qemu.done }

// Wait waits for the machine's own end.
func (m *Machine) Wait(ctx context.Context) error {
	select {
	case <-m.qemu.done:
		return m.qemu.err
	case <-ctx.Done():
		return fmt.Errorf("%s still runs: %w", m.Name, ctx.Err())
	}
}

// Kill ends the machine at once. What the guest has written to its disks stays, flushed or
// not: this is a crash of the hypervisor. For a cut of power use Disk.Log.
func (m *Machine) Kill() { m.qemu.Kill() }

// PowerButton asks the guest to end in order; Reset resets it.
func (m *Machine) PowerButton(ctx context.Context) error {
	return m.Do(ctx, "system_powerdown", nil, nil)
}

// Reset is the reset button.
func (m *Machine) Reset(ctx context.Context) error { return m.Do(ctx, "system_reset", nil, nil) }

// Do runs a QMP command and reads its reply into result, if that is not nil.
func (m *Machine) Do(ctx context.Context, command string, arguments, result any) error {
	if err := m.monitor.do(ctx, command, arguments, result); err != nil {
		return fmt.Errorf("%s: QMP %s: %w", m.Name, command, err)
	}
	return nil
}

// Event waits for a QMP event that has not been waited for yet, such as RESET, SHUTDOWN
// or WATCHDOG.
func (m *Machine) Event(ctx context.Context, name string) error {
	if err := m.monitor.event(ctx, name); err != nil {
		return fmt.Errorf("%s: waiting for event %s: %w", m.Name, name, err)
	}
	return nil
}

// Written counts the bytes that the guest has written to its disks since it was started.
func (m *Machine) Written(ctx context.Context) (n uint64, err error) {
	var devices []struct {
		Stats struct {
			Bytes uint64 `json:"wr_bytes"`
		} `json:"stats"`
	}
	err = m.Do(ctx, "query-blockstats", nil, &devices)
	for _, d := range devices {
		n += d.Stats.Bytes
	}
	return n, err
}

// forwards is a line of QEMU's table of a user-mode network: the host's port, and the guest's.
var forwards = regexp.MustCompile(`TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+(\d+)\s`)

// Forwarded is where the host's loopback leads to a port of the guest: a port that the system gave QEMU at this start.
func (m *Machine) Forwarded(ctx context.Context, port int) (host int, err error) {
	var table string
	if err := m.Do(ctx, "human-monitor-command", map[string]string{"command-line": "info usernet"}, &table); err != nil {
		return 0, err
	}
	for _, found := range forwards.FindAllStringSubmatch(table, -1) {
		if found[2] == strconv.Itoa(port) {
			return strconv.Atoi(found[1])
		}
	}
	return 0, fmt.Errorf("%s: no port of the host leads to its port %d:\n%s", m.Name, port, table)
}

// Screenshot writes what the display shows as PNG.
func (m *Machine) Screenshot(ctx context.Context, path string) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	return m.Do(ctx, "screendump", map[string]string{"filename": abs, "format": "png"}, nil)
}

// Close ends the machine and its TPM, and removes the folder that Start made. It may be
// called many times.
func (m *Machine) Close() error {
	var err error
	m.closed.Do(func() {
		if m.life != nil {
			m.life.Stop()
		}
		m.qemu.Kill()
		if m.monitor != nil {
			_ = m.monitor.conn.Close()
		}
		if m.vsock != nil {
			m.vsock.close()
		}
		m.readers.Wait()
		if m.tpm != nil {
			m.tpm.end(3 * time.Second)
		}
		if m.ownDir {
			err = os.RemoveAll(m.Dir)
		}
	})
	return err
}
