//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// apps are the processes of containers.
func apps() (pids []int) {
	files, _ := filepath.Glob("/sys/fs/cgroup/tributary/*/cgroup.procs")
	for _, f := range files {
		b, _ := os.ReadFile(f)
		for w := range strings.FieldsSeq(string(b)) {
			if pid, err := strconv.Atoi(w); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// killApps ends the processes of all containers, and returns when they have ended.
func killApps() error {
	pids := apps()
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return until("what was killed has ended", func() error {
		for _, pid := range apps() {
			if slices.Contains(pids, pid) {
				return fmt.Errorf("process %d lives", pid)
			}
		}
		return nil
	})
}

// kill ends what is named, by SIGKILL, and starts the programs of the box again.
func (b *box) kill(ctx context.Context, what string) error {
	switch what {
	case "edge":
		b.killEdge()
		return b.startEdge()
	case "containerd":
		b.daemon.Kill()
		return b.daemon.Start(ctx)
	case "container":
		return killApps()
	case "both": // the container ends while nobody looks
		b.killEdge()
		b.daemon.Kill()
		return errors.Join(killApps(), b.daemon.Start(ctx), b.startEdge())
	case "namespace": // the kernel gives the function back by itself
		b.killEdge()
		err := killApps()
		for _, p := range spaces() {
			err = errors.Join(err, unix.Unmount(p, unix.MNT_DETACH), os.Remove(p))
		}
		return errors.Join(err, b.startEdge())
	}
	return errors.New("this is nothing to kill")
}

// storm kills whomever the seed says, while the box still mends what the last one broke.
func (b *box) storm(ctx context.Context, seed string) error {
	n, err := strconv.ParseUint(seed, 10, 64)
	if err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(n, 0))
	all := []string{"edge", "containerd", "container", "both", "namespace"}
	for range 4 {
		if err := b.kill(ctx, all[random.IntN(len(all))]); err != nil {
			return err
		}
		pause(time.Duration(random.IntN(1500)) * time.Millisecond)
	}
	return nil
}
