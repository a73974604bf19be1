package vm

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Probe tells the fastest way to run the host's own architecture: "kvm" where a guest
// really boots under it, or "" for emulation. That /dev/kvm opens proves nothing: there are
// hosts whose KVM boots no ordinary kernel. The answer is kept in the checkout's cache
// until the host boots again.
func Probe(ctx context.Context, root string) (string, error) {
	dev, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return "", nil
	}
	_ = dev.Close()
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	kept := filepath.Join(root, ".cache", "vm", "kvm")
	if b, err := os.ReadFile(kept); err == nil {
		if id, accel, ok := strings.Cut(strings.TrimSpace(string(b)), " "); ok && id == strings.TrimSpace(string(boot)) {
			return strings.TrimPrefix(accel, "none"), nil
		}
	}
	k, err := TestKernel(ctx, root, runtime.GOARCH)
	if err != nil {
		return "", err
	}
	accel := "none"
	if bootsUnderKVM(ctx, k) {
		accel = "kvm"
	}
	if err := os.WriteFile(kept, []byte(strings.TrimSpace(string(boot))+" "+accel+"\n"), 0o644); err != nil {
		return "", err
	}
	return strings.TrimPrefix(accel, "none"), nil
}

// bootsUnderKVM gives a guest, which needs a second or two, twenty of them.
func bootsUnderKVM(ctx context.Context, k *Kernel) bool {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	m, err := Start(ctx, Spec{Name: "probe", Accel: "kvm", MemoryMiB: 256, Kernel: k.Image, Initrd: k.Initrd, Cmdline: SerialCmdline(runtime.GOARCH), NoReboot: true, Life: time.Minute})
	if err != nil {
		return false
	}
	defer m.Close()
	_, err = m.Expect(ctx, "guest: ready")
	return err == nil
}

// SerialCmdline has a kernel speak on the first serial line, and reset when it panics.
func SerialCmdline(arch string) string {
	if arch == "arm64" {
		return "console=ttyAMA0 panic=-1"
	}
	// Whether the timer's interrupt arrives is tried for ten ticks of real time: an emulator that waits for its host's
	// processor that long has none, and the kernel panics.
	return "console=ttyS0 panic=-1 no_timer_check"
}
