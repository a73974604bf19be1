package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/workload"
	"tributary.dev/tributary/pkg/edge/workload/workloadtest"
)

const startRounds = 21

// benchStart measures the time from a desired state given to edged's workload manager
// until the container's process has started, against `ctr run -d` of the same image
// on the same containerd, snapshotter and network (a namespace of its own with
// loopback alone). The two take turns. The shim of the app is warm, the image
// is here; the container, its spec and its task are not. Edged's side has the
// default seccomp profile and a logger on top, ctr's has neither.
func benchStart(ctx context.Context) ([]Figure, error) {
	if why := workloadtest.Missing(); why != "" {
		return nil, fmt.Errorf("start: %s", why)
	}
	b, err := newStartBench(ctx)
	if b != nil {
		defer b.close()
	}
	if err != nil {
		return nil, err
	}
	var ours, theirs []time.Duration
	for i := range startRounds {
		d, err := b.edged(ctx, fmt.Sprint("s", i))
		if err != nil {
			return nil, err
		}
		p, err := b.ctr(ctx, fmt.Sprint("ctr-", i))
		if err != nil {
			return nil, err
		}
		if i > 0 { // the first of each warms caches
			ours, theirs = append(ours, d), append(theirs, p)
		}
	}
	peer := milliseconds(theirs)
	f := atMost("start", milliseconds(ours), "ms", 0.75*peer, 0.5*peer).against(peer)
	f.Note = fmt.Sprintf("median of %d; ctr run -d in turns", len(ours))
	return []Figure{f}, nil
}

func milliseconds(d []time.Duration) float64 {
	slices.Sort(d)
	return float64(d[len(d)/2].Microseconds()) / 1000
}

type startBench struct {
	dir     string
	daemon  *workloadtest.Daemon
	up      *workloadtest.Registry
	image   string
	manager *workload.Manager
	cancel  context.CancelFunc
	done    chan error
	started chan time.Time
}

func newStartBench(ctx context.Context) (*startBench, error) {
	dir, err := os.MkdirTemp("", "bench-start-")
	if err != nil {
		return nil, err
	}
	b := &startBench{dir: dir, up: workloadtest.NewRegistry(), started: make(chan time.Time, 16), done: make(chan error, 1)}
	tools, err := workloadtest.Build(dir)
	if err != nil {
		return b, err
	}
	if b.daemon, err = workloadtest.NewDaemon(filepath.Join(dir, "containerd")); err != nil {
		return b, err
	}
	if err := b.daemon.Start(ctx); err != nil {
		return b, err
	}
	im, err := tools.AppImage("bench/app", v1.Config{Cmd: []string{"sleep"}})
	if err != nil {
		return b, err
	}
	if b.image, err = b.up.Push(im); err != nil {
		return b, err
	}
	b.manager, err = workload.New(ctx, workload.Config{
		Socket: b.daemon.Socket, Namespace: "bench", Root: filepath.Join(dir, "data"), Run: filepath.Join(dir, "run"),
		CNIBin: tools.CNIBin, LogHelper: tools.LogHelper, Upstream: b.up, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Event: func(e api.Event) {
			if e.Name == "app.started" {
				b.started <- time.Now()
			}
		},
	})
	if err != nil {
		return b, err
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	b.cancel = cancel
	go func() { b.done <- b.manager.Run(run) }()
	b.set("warm")
	return b, b.wait(ctx, nil)
}

func (b *startBench) set(services ...string) {
	app := workload.App{Digest: "sha256:bench", Bundle: api.Bundle{Version: 1, App: "bench"}}
	for _, s := range services {
		app.Bundle.Services = append(app.Bundle.Services, api.Service{Name: s, Image: b.image, NetworkMode: "none", StopSignal: "SIGKILL"})
	}
	b.manager.Set([]workload.App{app})
}

func (b *startBench) wait(ctx context.Context, at *time.Time) error {
	select {
	case t := <-b.started:
		if at != nil {
			*at = t
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(30 * time.Second):
		return fmt.Errorf("start: no container within 30 s: %+v %+v", b.manager.Status(), b.manager.Warnings())
	}
}

// edged adds one service to the running app and takes it away again.
func (b *startBench) edged(ctx context.Context, service string) (time.Duration, error) {
	var at time.Time
	began := time.Now()
	b.set("warm", service)
	if err := b.wait(ctx, &at); err != nil {
		return 0, err
	}
	b.set("warm")
	return at.Sub(began), b.until(ctx, func() bool { return len(b.manager.Targets()) == 1 })
}

func (b *startBench) until(ctx context.Context, ok func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

func (b *startBench) ctr(ctx context.Context, id string) (time.Duration, error) {
	run := func(args ...string) error {
		cmd := exec.CommandContext(ctx, "ctr", append([]string{"--address", b.daemon.Socket, "--namespace", "bench"}, args...)...)
		cmd.Stdout = io.Discard
		var text errText
		cmd.Stderr = &text
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("ctr %v: %w: %s", args, err, text)
		}
		return nil
	}
	began := time.Now()
	if err := run("run", "--detach", "--snapshotter", "overlayfs", "core.tributary/"+b.image, id); err != nil {
		return 0, err
	}
	took := time.Since(began)
	if err := run("task", "rm", "--force", id); err != nil {
		return 0, err
	}
	return took, run("container", "rm", id)
}

// errText keeps the end of what a program complained of.
type errText []byte

func (e *errText) Write(b []byte) (int, error) {
	*e = append(*e, b...)
	if len(*e) > 4096 {
		*e = (*e)[len(*e)-4096:]
	}
	return len(b), nil
}

func (e errText) String() string { return string(e) }

func (b *startBench) close() {
	if b.manager != nil {
		b.manager.Set(nil)
		_ = b.until(context.Background(), func() bool { return len(b.manager.Targets()) == 0 })
		b.cancel()
		<-b.done
		_ = b.manager.Close()
		_ = exec.Command("umount", filepath.Join(b.dir, "run", "secrets")).Run()
	}
	if b.daemon != nil {
		b.daemon.Kill()
	}
	b.up.Close()
	_ = os.RemoveAll(b.dir)
}
