//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/claims"
	"tributary.dev/tributary/pkg/edge/compute"
	"tributary.dev/tributary/pkg/edge/hardware"
	"tributary.dev/tributary/pkg/edge/state"
	"tributary.dev/tributary/pkg/edge/workload"
	"tributary.dev/tributary/pkg/edge/workload/workloadtest"
)

// base is where this box keeps everything.
const base = "/box"

// box is made of edged's own rooms, wired as edged wires them, without a core.
type box struct {
	daemon   *workloadtest.Daemon
	registry *workloadtest.Registry
	image    string

	store *state.Store
	book  *claims.Book
	work  *workload.Manager
	end   func()
}

// newBox starts containerd, and puts an image into a registry of its own: this program, and what measures latencies.
func newBox(ctx context.Context) (*box, error) {
	if err := errors.Join(os.MkdirAll(base, 0o755), os.MkdirAll("/run/box", 0o755), os.Setenv("PATH", "/tools:/usr/sbin:/usr/bin")); err != nil {
		return nil, err
	}
	b := &box{registry: workloadtest.NewRegistry()}
	im, err := (workloadtest.Tools{App: "/tools/app"}).AppImage("acme/du", v1.Config{})
	if err != nil {
		return nil, err
	}
	files := []string{"/realtime", "/usr/bin/cyclictest"}
	for _, pattern := range []string{"/usr/lib/x86_64-linux-gnu/libnuma.so*", "/usr/lib/x86_64-linux-gnu/libc.so.6", "/usr/lib/x86_64-linux-gnu/librt.so.1", "/usr/lib/x86_64-linux-gnu/libpthread.so.0", "/lib64/ld-linux-x86-64.so.2"} {
		found, _ := filepath.Glob(pattern) // the patterns are well formed
		files = append(files, found...)
	}
	for _, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		im.Files = append(im.Files, workloadtest.File{Path: strings.TrimPrefix(path, "/"), Data: data, Mode: 0o755})
	}
	if b.image, err = b.registry.Push(im); err != nil {
		return nil, err
	}
	if b.daemon, err = workloadtest.NewDaemon(base + "/c"); err != nil {
		return nil, err
	}
	return b, b.daemon.Start(ctx)
}

// open makes the rooms, as a start of edged does, and has them run until close.
func (b *box) open(ctx context.Context) (err error) {
	if b.store, err = state.Open(state.Config{Path: base + "/state.db", Log: slog.Default()}); err != nil {
		return err
	}
	inventory := hardware.Look(hardware.Host("/"))
	if b.book, err = claims.Open(b.store, &claims.Specs{Dir: "/run/cdi"}, slog.Default(), compute.Pool{Inventory: func() *api.Inventory { return &inventory }}); err != nil {
		return err
	}
	upstream, _, err := b.registry.Endpoint()
	if err != nil {
		return err
	}
	b.work, err = workload.New(ctx, workload.Config{Socket: base + "/c/containerd.sock", Root: base + "/apps", Run: "/run/box", CNIBin: "/tools", LogHelper: "/tools/edged-log",
		Upstream: workloadtest.Fixed(upstream.String()), Log: slog.Default(), Claims: b.book, Event: func(api.Event) {}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	all.Go(func() { _ = b.store.Run(ctx) })
	all.Go(func() { _ = b.work.Run(ctx) })
	b.end = func() { cancel(); all.Wait() }
	return nil
}

// close ends the rooms, as the end of edged does; containers run on.
func (b *box) close() error {
	b.end()
	return errors.Join(b.work.Close(), b.store.Close())
}

// want names the apps that shall run: those that claim, and one that claims nothing.
func (b *box) want(apps ...string) {
	var out []workload.App
	for _, name := range apps {
		service := api.Service{Name: "du", Image: b.image, NetworkMode: "none", Entrypoint: []string{"/app", "sleep"}, Restart: api.Restart{Policy: "always"}, CapAdd: []string{"SYS_NICE", "IPC_LOCK"}}
		if name != "plain" {
			near := map[string]string{"numa": "same"}
			service.Claims = []api.Claim{{Class: api.ClaimCPU, Count: 2, Options: near}, {Class: api.ClaimHugePages, Count: pages, Options: near}}
		}
		out = append(out, workload.App{Digest: "sha256:" + name, Bundle: api.Bundle{Version: 2, App: name, Services: []api.Service{service}}})
	}
	b.work.Set(out)
}

// runs waits until an app runs, and gives its container.
func (b *box) runs(app string) string {
	id := ""
	until("the app "+app+" runs", func() error {
		for _, a := range b.work.Status() {
			if a.Name == app && a.State == api.Running && len(a.Services) == 1 {
				id = a.Services[0].Container
				return nil
			}
		}
		return fmt.Errorf("%+v", b.work.Status())
	})
	return id
}

// inside runs a program in an app's container.
func (b *box) inside(ctx context.Context, app string, argv ...string) ([]byte, error) {
	var out, errs bytes.Buffer
	code, err := b.work.Exec(ctx, workload.ExecRequest{App: app, Service: "du", Argv: argv, Stdout: &out, Stderr: &errs})
	if err == nil && code != 0 {
		err = fmt.Errorf("it ended with %d: %s%s", code, out.String(), errs.String())
	}
	return out.Bytes(), err
}

// holds are the units that an app holds, by device.
func (b *box) holds(app string) string {
	var out []string
	for _, u := range b.book.Uses() {
		for _, h := range u.Holders {
			if h.App == app {
				out = append(out, fmt.Sprintf("%s*%d", u.ID, h.Units))
			}
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// containers has a service claim processors and pages near one node, sees from within what it got, and what of that is
// kept when edged and containerd end and start again.
func containers(ctx context.Context, b *box) {
	must(b.open(ctx))
	b.want("ran", "plain")
	id := b.runs("ran")
	const all = "2M@1*16 cpu2*1 cpu3*1"
	check(b.holds("ran") == all, "the service holds %s", b.holds("ran"))
	say, err := b.inside(ctx, "ran", "/realtime", "child")
	fmt.Print(string(say))
	check(err == nil, "what runs in its container sees what it was given: %v", err)
	for file, want := range map[string]string{"cpuset.cpus.effective": "2-3", "cpuset.mems.effective": "1", "hugetlb.2MB.max": strconv.Itoa(pages * pageBytes)} {
		is, _ := os.ReadFile("/sys/fs/cgroup/tributary/" + id + "/" + file)
		check(strings.TrimSpace(string(is)) == want, "its control group's %s is %s", file, strings.TrimSpace(string(is)))
	}
	b.runs("plain")
	say, err = b.inside(ctx, "plain", "/app", "cat", "/proc/self/status")
	must(err)
	check(strings.Contains(string(say), "Cpus_allowed_list:\t0-1\n"), "a container that claims nothing runs on the processors that are left")
	_, err = b.book.Take(ctx, "other", "x", []api.Claim{{Class: api.ClaimCPU, Count: 1}})
	check(err != nil, "another is told: %v", err)

	must(b.close()) // edged ends, and while it is away containerd is killed
	b.daemon.Kill()
	must(b.daemon.Start(ctx))
	must(b.open(ctx))
	b.want("ran", "plain")
	check(b.runs("ran") == id && b.holds("ran") == all, "after a restart of both the same container holds %s", b.holds("ran"))
	b.daemon.Kill()
	must(killApp(id))
	must(b.daemon.Start(ctx))
	b.runs("ran")
	until("it runs with what it held", func() error {
		_, err := b.inside(ctx, "ran", "/realtime", "child")
		return err
	})
	check(b.holds("ran") == all, "ended while containerd was away, it runs again with %s", b.holds("ran"))
}

// killApp ends a container's processes, as a fault of its program does.
func killApp(id string) error {
	files, _ := filepath.Glob("/sys/fs/cgroup/tributary/" + id + "/cgroup.procs") // the pattern is well formed
	if len(files) != 1 {
		return fmt.Errorf("%d control groups of %s", len(files), id)
	}
	return os.WriteFile(filepath.Dir(files[0])+"/cgroup.kill", []byte("1"), 0)
}

// givenBack has nobody want anything more.
func givenBack(b *box) {
	b.want()
	until("nothing is held", func() error {
		if held := b.holds("ran"); held != "" {
			return errors.New(held)
		}
		return nil
	})
	free := 0
	for _, c := range api.CapacityOf(b.book.Uses()) {
		free += c.Free
		check(c.Held == 0 && c.Free == c.Total, "%s: %d of %d are free", c.Name, c.Free, c.Total)
	}
	check(free > 0, "all is given back")
	must(b.close())
}

// until asks again until there is nothing to object to.
func until(what string, objects func() error) {
	var err error
	for end := time.Now().Add(4 * time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err = objects(); err == nil {
			return
		}
	}
	must(fmt.Errorf("waited in vain until %s: %w", what, err))
}

// child is what runs with the claimed hardware.
func child() {
	status, err := os.ReadFile("/proc/self/status")
	must(err)
	for _, want := range []string{"Cpus_allowed_list:\t2-3\n", "Mems_allowed_list:\t1\n"} {
		check(strings.Contains(string(status), want), "in the container: %q", want)
	}
	m, err := hugeMemory(pages)
	must(err)
	for i := 0; i < len(m); i += pageBytes {
		m[i] = 1
	}
	maps, _ := os.ReadFile("/proc/self/numa_maps")
	huge := ""
	for line := range strings.Lines(string(maps)) {
		if strings.Contains(line, "huge") {
			huge = strings.TrimSpace(line)
		}
	}
	check(strings.Contains(huge, "N1="+strconv.Itoa(pages)), "where they are: %s", huge)
	_, err = hugeMemory(1)
	check(err != nil, "one page more: %v", err)
	mounted, err := os.ReadDir("/dev/hugepages")
	check(err == nil && len(mounted) == 0, "they are mounted: %v", err)
	if failed {
		os.Exit(1)
	}
}
