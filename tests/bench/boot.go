package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"tributary.dev/tributary/image/keys"
	"tributary.dev/tributary/pkg/edge/boot/hostport"
	"tributary.dev/tributary/tests/machines"
	"tributary.dev/tributary/tests/vm"
)

// bootRuns are taken of each kind, in turn.
const bootRuns = 5

// bootLimit bounds one start.
const bootLimit = 3 * time.Minute

// benchBoot measures the seconds from power on to edged's first answer on the machine's own port, with Secure Boot, on a
// box that has started before. The peer is a kernel image of the same size, signed by the same key, whose only program is
// a bare static first process, from power on to its first word.
func benchBoot(ctx context.Context) ([]Figure, error) {
	dir, err := os.MkdirTemp("", "bench-boot-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	box, bare, err := bootSpecs(ctx, dir)
	if err != nil {
		return nil, err
	}
	starts := []struct {
		spec  vm.Spec
		ready func(context.Context, *vm.Machine) error
		took  []float64
	}{{spec: box, ready: answers}, {spec: bare, ready: speaks}}
	for run := range bootRuns + 1 { // the first makes STATE and DATA, and the firmware's notes; it does not count
		for i := range starts {
			took, err := boot(ctx, starts[i].spec, starts[i].ready)
			if err != nil {
				return nil, err
			}
			if run > 0 {
				starts[i].took = append(starts[i].took, took.Seconds())
			}
		}
	}
	ours, peer := median(starts[0].took), median(starts[1].took)
	f := atMost("boot", ours/peer, "times a bare start", 1.25, 1.25)
	f.Note = fmt.Sprintf("emulated: edged answers after %.1f s (%.1f), a bare first process speaks after %.1f s (%.1f)", ours, starts[0].took, peer, starts[1].took)
	return []Figure{f, plain("boot.seconds", ours, "s").against(peer)}, nil
}

// bootSpecs are the box, and the machine that does nothing.
func bootSpecs(ctx context.Context, dir string) (box, bare vm.Spec, err error) {
	arch := runtime.GOARCH
	profile := machines.Profiles[arch]
	image := filepath.Join("build", profile)
	if v := os.Getenv("TRIBUTARY_IMAGES"); v != "" {
		image = filepath.Join(v, profile)
	}
	keyDir, disk := filepath.Join(".cache", "keys"), filepath.Join(image, "disk.raw")
	system, err := machines.Open(image, arch, profile, keyDir)
	if err != nil {
		return box, bare, fmt.Errorf("%w: run make image PROFILE=%s", err, profile)
	}
	program := filepath.Join(dir, "init")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./tests/vm/bare")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if out, err := build.CombinedOutput(); err != nil {
		return box, bare, fmt.Errorf("%w: %s", err, out)
	}
	init, err := os.ReadFile(program)
	if err != nil {
		return box, bare, err
	}
	set, err := keys.LoadOrCreate(keyDir)
	if err != nil {
		return box, bare, err
	}
	empty, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd")
	if err != nil {
		return box, bare, err
	}
	vars, err := set.OVMFVars(empty, time.Now())
	if err != nil {
		return box, bare, err
	}
	spec := func(name string) vm.Spec {
		return vm.Spec{Name: name, MemoryMiB: 768, SecureBoot: true, Vars: filepath.Join(dir, name+".fd"), Disks: []vm.Disk{{Path: filepath.Join(dir, name+".raw")}},
			NICs: []vm.NIC{{}}, Ports: []string{hostport.Name}, Watchdog: true}
	}
	box, bare = spec("box"), spec("bare")
	err = errors.Join(vm.CopyDisk(disk, box.Disks[0].Path, 4<<30), system.FlashBare(disk, bare.Disks[0].Path, init),
		os.WriteFile(box.Vars, vars, 0o600), os.WriteFile(bare.Vars, vars, 0o600))
	if err == nil {
		err = vm.WriteConfig(box.Disks[0].Path, "name: box\n")
	}
	return box, bare, err
}

// boot is one start, from power on until ready. A box that started is switched off in order.
func boot(ctx context.Context, spec vm.Spec, ready func(context.Context, *vm.Machine) error) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	began := time.Now()
	m, err := vm.Start(ctx, spec)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if err := ready(ctx, m); err != nil {
		return 0, fmt.Errorf("%w; its serial line ends with:\n%s", err, m.Console.Tail(30))
	}
	took = time.Since(began)
	if spec.Name == "box" {
		if _, err := m.Expect(ctx, `up after`); err != nil {
			return 0, err
		}
		err = errors.Join(m.PowerButton(ctx), m.Wait(ctx))
	}
	return took, err
}

// answers waits for edged: whoever answers in its place says that it is not there yet.
func answers(ctx context.Context, m *vm.Machine) error {
	for {
		_, err := m.Get(ctx, hostport.Name, "/status")
		if err == nil {
			return nil
		}
		if pause(ctx, 50*time.Millisecond) != nil {
			return err
		}
	}
}

func speaks(ctx context.Context, m *vm.Machine) error {
	_, err := m.Expect(ctx, "bare: ready")
	return err
}
