//go:build linux

// Command functions answers: do virtual functions reach containers and come back, whoever is
// killed?
//
// It runs in a guest, started by inside. As functions box it is the box: it starts a
// containerd and a second self (functions edge), which is made of edged's own rooms, and does
// what the lines on its standard input say. What it finds it says on the serial line. A third
// self (functions driver) runs in a container, and is there what a program with DPDK is.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/edge/network/sriov"
	"tributary.dev/tributary/pkg/edge/workload/workloadtest"
	"tributary.dev/tributary/tests/machines/newroot"
)

const base = "/box"

func main() {
	do := map[string]func(args []string) error{"box": run, "edge": edge, "driver": driver}
	if len(os.Args) < 2 || do[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "functions: runs in a test's machine only")
		os.Exit(2)
	}
	if err := do[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Println("functions: failed:", os.Args[1]+":", err)
		os.Exit(1)
	}
}

// box is the guest's supervisor.
type box struct {
	daemon   *workloadtest.Daemon
	registry *workloadtest.Registry
	image    string
	first    []sriov.Function // as they were made

	mu   sync.Mutex
	edge *exec.Cmd
	dead chan struct{}
}

// run is the box; with an argument its image holds the third self.
func run(args []string) error {
	if err := errors.Join(newroot.Move("+cpu +memory +pids +cpuset +hugetlb"), os.MkdirAll(base, 0o755), os.MkdirAll("/run/box", 0o755),
		os.Setenv("PATH", "/tools:/usr/sbin:/usr/bin"), mountDisk()); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	ctx := context.Background()
	b := &box{registry: workloadtest.NewRegistry()}
	defer b.registry.Close()
	if err := b.push(len(args) > 0); err != nil {
		return err
	}
	var err error
	if b.daemon, err = workloadtest.NewDaemon(base + "/c"); err != nil {
		return err
	}
	if err := b.daemon.Start(ctx); err != nil {
		return err
	}
	if err := b.startEdge(); err != nil {
		return err
	}
	fmt.Println("functions: ready")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		words := strings.Fields(in.Text())
		if len(words) == 0 {
			continue
		}
		if words[0] == "off" {
			return nil
		}
		if err := b.do(ctx, words); err != nil {
			b.tell()
			return fmt.Errorf("%s: %w", in.Text(), err)
		}
		fmt.Printf("functions: done %s\n", strings.Join(words, " "))
	}
	return in.Err()
}

// mountDisk has what a box keeps lie on the guest's disk, where it has one. What containerd knows of the processes that run
// stays in memory, as on a box.
func mountDisk() error {
	const disk, running = "/dev/vda", base + "/c/state"
	if _, err := os.Stat(disk); err != nil {
		return nil
	}
	if err := unix.Mount(disk, base, "ext4", 0, ""); err != nil {
		return fmt.Errorf("the disk: %w", err)
	}
	return errors.Join(os.MkdirAll(running, 0o755), unix.Mount("tmpfs", running, "tmpfs", 0, ""))
}

// push has an image that holds a small server, and the third self: to pack that takes an emulator a while.
func (b *box) push(self bool) error {
	im, err := workloadtest.Tools{App: "/tools/app"}.AppImage("acme/app", v1.Config{})
	if err != nil {
		return err
	}
	if self {
		program, err := os.ReadFile("/proc/self/exe")
		if err != nil {
			return err
		}
		im.Files = append(im.Files, workloadtest.File{Path: "functions", Data: program, Mode: 0o755})
	}
	b.image, err = b.registry.Push(im)
	return err
}

// startEdge starts the second self.
func (b *box) startEdge() error {
	url, _, err := b.registry.Endpoint()
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", "edge", url.String())
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "IMAGE="+b.image)
	if err := cmd.Start(); err != nil {
		return err
	}
	dead := make(chan struct{})
	b.mu.Lock()
	b.edge, b.dead = cmd, dead
	b.mu.Unlock()
	go func() {
		_ = cmd.Wait() // it is killed
		close(dead)
	}()
	return nil
}

func (b *box) killEdge() {
	b.mu.Lock()
	cmd, dead := b.edge, b.dead
	b.mu.Unlock()
	_ = cmd.Process.Kill()
	<-dead
}

// do takes one line.
func (b *box) do(ctx context.Context, words []string) error {
	switch words[0] {
	case "want": // want NUMBER MODE ADDRESS: what the core would send
		if err := os.WriteFile(base+"/want.new", []byte(strings.Join(words[1:], " ")), 0o644); err != nil {
			return err
		}
		return os.Rename(base+"/want.new", base+"/want")
	case "functions": // functions NUMBER DRIVER: until there are so many, remembered
		n, err := strconv.Atoi(words[1])
		if err != nil {
			return err
		}
		return until("functions are made", func() error { return b.made(n, words[2]) })
	case "reach": // reach ADDRESS: from the container on a function
		return until("the other end answers", func() error { return reach(words[1]) })
	case "home":
		return until("all functions are home", func() error { return b.whole(false) })
	case "inside":
		return until("a function is in a container that runs", func() error { return b.whole(true) })
	case "kill":
		return b.kill(ctx, words[1])
	case "storm": // storm SEED: kills at any moment
		return b.storm(ctx, words[1])
	case "spoil": // as a container may that administers its network
		return spoil()
	case "program":
		forget()
		return until("the container's program drives its function", programDrives)
	case "held": // held SERVICES: what each has whose program drives its function
		n, err := strconv.Atoi(words[1])
		if err != nil {
			return err
		}
		forget()
		return until("programs drive their functions", func() error { return held(n) })
	case "reboot":
		unix.Sync()
		return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	case "echo": // the card's own interface answers frames of the program's
		c, err := card()
		if err != nil {
			return err
		}
		return echoFrames(c.Name)
	case "found":
		return until("all is as it was found", asFound)
	case "plain":
		return plain(words[1], words[2])
	case "answer":
		return answer()
	case "bench":
		return bench(words[1], words[2])
	}
	return errors.New("this is nothing to do")
}

// until asks again until there is nothing to object to.
func until(what string, objects func() error) error {
	var err error
	for end := time.Now().Add(4 * time.Minute); time.Now().Before(end); pause(50 * time.Millisecond) {
		if err = objects(); err == nil {
			return nil
		}
	}
	return fmt.Errorf("waited in vain until %s: %w", what, err)
}

func pause(d time.Duration) { <-time.After(d) }
