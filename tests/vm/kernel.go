package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"tributary.dev/tributary/tests/images/debimage"
)

// Kernel is a Debian kernel that boots without firmware, and a first process for it.
type Kernel struct {
	// Image and Initrd are files for Spec. The initrd holds tests/vm/guest as its first
	// process.
	Image, Initrd string
}

// guestModules are what a guest needs to reach the cards and ports that Spec gives it,
// with what those need in turn.
var guestModules = []string{"virtio.ko", "virtio_ring.ko", "virtio_pci_modern_dev.ko", "virtio_pci_legacy_dev.ko", "virtio_pci.ko", "failover.ko", "net_failover.ko",
	"virtio_net.ko", "virtio_console.ko", "efivarfs.ko"}

// TestKernel makes, in the checkout's cache, the newest cloud kernel of the machine's own
// Debian with tests/vm/guest for an initrd. It asks the mirror once; afterwards it needs no
// network. The architecture is the host's. Calls at one time wait for each other.
func TestKernel(ctx context.Context, root, arch string) (*Kernel, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(root, ".cache", "vm", "kernel-"+arch)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return nil, err
	}
	k := &Kernel{Image: filepath.Join(dir, "vmlinuz"), Initrd: filepath.Join(dir, "initrd")}
	modules := filepath.Join(dir, fmt.Sprintf("modules.%d", len(guestModules))) // an older checkout's lie beside them
	if _, err := os.Stat(modules); err != nil {
		if err := unpackKernel(ctx, filepath.Join(root, ".cache", "debs"), arch, k.Image, modules); err != nil {
			return nil, fmt.Errorf("fetching a kernel to boot: %w", err)
		}
	}
	program := filepath.Join(dir, "guest")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./tests/vm/guest")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the guest's program: %w: %s", err, bytes.TrimSpace(out))
	}
	initrd, err := guestInitrd(program, modules)
	if err != nil {
		return nil, err
	}
	// Another test's machine may be reading the file of before: never write into it.
	if err := os.WriteFile(k.Initrd+".new", initrd, 0o644); err != nil {
		return nil, err
	}
	return k, os.Rename(k.Initrd+".new", k.Initrd)
}

// unpackKernel takes the kernel and some modules out of Debian's package.
func unpackKernel(ctx context.Context, cache, arch, image, modules string) error {
	name, err := kernelPackage(ctx, "linux-image-cloud-"+arch)
	if err != nil {
		return err
	}
	debs := debimage.Debs{Dir: cache}
	list, err := debs.Offered(ctx, []string{name})
	if err != nil {
		return err
	}
	if err := debs.Fetch(ctx, list); err != nil {
		return err
	}
	tree, err := debs.Unpack(ctx, list)
	if err != nil {
		return err
	}
	tmp := modules + ".new"
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o755)); err != nil {
		return err
	}
	for file, content := range tree {
		base := path.Base(file)
		switch {
		case strings.HasPrefix(file, "boot/vmlinuz-"):
			if err := os.WriteFile(image, content.Content, 0o644); err != nil {
				return err
			}
		case slices.Contains(guestModules, strings.TrimSuffix(base, ".xz")):
			plain, err := unxz(ctx, base, content.Content)
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(tmp, strings.TrimSuffix(base, ".xz")), plain, 0o644); err != nil {
				return err
			}
		}
	}
	if _, err := os.Stat(image); err != nil {
		return fmt.Errorf("%s holds no kernel", name)
	}
	return os.Rename(tmp, modules)
}

// kernelPackage follows the metapackage: the kernel's own name carries its version.
func kernelPackage(ctx context.Context, meta string) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-cache", "depends", "--no-recommends", meta).Output()
	if err != nil {
		return "", fmt.Errorf("apt-cache depends %s: %w", meta, err)
	}
	for line := range strings.Lines(string(out)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: linux-image-"); ok {
			return "linux-image-" + name, nil
		}
	}
	return "", fmt.Errorf("%s names no kernel: run apt-get update", meta)
}

func unxz(ctx context.Context, name string, content []byte) ([]byte, error) {
	if !strings.HasSuffix(name, ".xz") {
		return content, nil
	}
	cmd := exec.CommandContext(ctx, "xz", "-dc")
	cmd.Stdin = bytes.NewReader(content)
	return cmd.Output()
}

// guestInitrd packs the program and the modules.
func guestInitrd(program, modules string) ([]byte, error) {
	var a archive
	for _, dir := range []string{"dev", "proc", "sys", "modules"} {
		a.add(dir, 0o40755, nil)
	}
	content, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	a.add("init", 0o100755, content)
	files, err := filepath.Glob(filepath.Join(modules, "*"))
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if content, err = os.ReadFile(f); err != nil {
			return nil, err
		}
		a.add("modules/"+filepath.Base(f), 0o100644, content)
	}
	a.add("TRAILER!!!", 0, nil)
	return a.Bytes(), nil
}

// archive is a cpio archive in the kernel's form ("newc"; Linux,
// Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	bytes.Buffer
	files int
}

func (a *archive) add(name string, mode int, content []byte) {
	a.files++
	fmt.Fprintf(a, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", a.files, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
	a.WriteString(name + "\x00")
	a.pad()
	a.Write(content)
	a.pad()
}

func (a *archive) pad() { a.Write(make([]byte, -a.Len()&3)) }
