//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/claims"
	"tributary.dev/tributary/pkg/edge/compute"
	"tributary.dev/tributary/pkg/edge/hardware"
	"tributary.dev/tributary/pkg/edge/network/sriov"
	"tributary.dev/tributary/pkg/edge/state"
	"tributary.dev/tributary/pkg/edge/workload"
	"tributary.dev/tributary/pkg/edge/workload/workloadtest"
)

// edge is made of edged's rooms, wired as edged wires them, without a core: what is wanted
// stands in a file.
func edge(args []string) error {
	ctx := context.Background() // it is killed
	log := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: slog.LevelWarn}))
	store, err := state.Open(state.Config{Path: base + "/state.db", Log: log})
	if err != nil {
		return err
	}
	var running atomic.Pointer[workload.Manager]
	var book *claims.Book
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	cards, err := sriov.New(sriov.Config{Machine: sriov.Kernel{}, Store: store, Boot: strings.TrimSpace(string(boot)), Now: time.Now, Log: log,
		Holders: func() map[string][]string {
			out := map[string][]string{}
			for _, u := range book.Uses() {
				for _, h := range u.Holders {
					out[u.ID] = append(out[u.ID], h.App+"/"+h.Service)
				}
			}
			return out
		},
		Running: func(user string) (bool, bool) {
			app, service, _ := strings.Cut(user, "/")
			if w := running.Load(); w != nil {
				return w.Runs(app, service)
			}
			return false, false
		},
		Away: func() (map[string]string, error) {
			if w := running.Load(); w != nil {
				return w.Links().Away()
			}
			return nil, nil
		},
		Recover: func() error {
			if w := running.Load(); w != nil {
				return w.Links().Recover()
			}
			return nil
		},
		Drain: func(ctx context.Context, user, reason string) error {
			app, service, _ := strings.Cut(user, "/")
			w := running.Load()
			if w == nil { // as edged answers while it starts: it is tried again
				return errors.New("containers are not looked after yet")
			}
			return w.Drain(ctx, app, service, reason)
		},
	})
	if err != nil {
		return err
	}
	inventory := hardware.Look(hardware.Host("/"))
	pool := compute.Pool{Inventory: func() *api.Inventory { return &inventory }}
	if book, err = claims.Open(store, &claims.Specs{Dir: "/run/cdi"}, log, pool, cards); err != nil {
		return err
	}
	cards.Settle(ctx)
	work, err := workload.New(ctx, workload.Config{Socket: base + "/c/containerd.sock", Root: base + "/apps", Run: "/run/box", CNIBin: "/tools", LogHelper: "/tools/edged-log",
		Upstream: workloadtest.Fixed(args[0]), Log: log, Claims: book, Event: func(api.Event) {}})
	if err != nil {
		return err
	}
	running.Store(work)
	var all sync.WaitGroup
	all.Go(func() { _ = store.Run(ctx) })
	all.Go(func() { _ = work.Run(ctx) })
	all.Go(func() { _ = cards.Run(ctx) })
	follow(ctx, cards, work)
	all.Wait()
	return nil
}

// follow takes what the file says, when it is another.
func follow(ctx context.Context, cards *sriov.Manager, work *workload.Manager) {
	last := "-"
	for tick := time.NewTicker(50 * time.Millisecond); ; {
		text, _ := os.ReadFile(base + "/want")
		if string(text) != last {
			last = string(text)
			policies, apps := wanted(strings.Fields(last))
			cards.SetPolicies(policies)
			work.Set(apps)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// wanted reads NUMBER MODE ADDRESS: how many functions, and whether a service has one (app, vfio), two services have one
// each (two), a third wants one as well (three), or none does.
func wanted(words []string) ([]api.FunctionPolicy, []workload.App) {
	if len(words) < 3 {
		return nil, nil
	}
	var n int
	_, _ = fmt.Sscan(words[0], &n)
	policy := api.FunctionPolicy{Match: api.FunctionMatch{Driver: "igb"}, VirtualFunctions: &n, Change: api.ChangeDrain, Default: api.VirtualPolicy{MAC: api.MACStable}}
	function := api.Claim{Class: api.ClaimVF, Count: 1, Options: map[string]string{"network": "fast"}}
	service := api.Service{Name: "du", Image: os.Getenv("IMAGE"), NetworkMode: "none", Entrypoint: []string{"/app", "serve", ":8080"}, Restart: api.Restart{Policy: "always"}}
	names := []string{"ran"}
	switch words[1] {
	case "app":
		function.Options["interface"], function.Options["address"] = "fast", words[2]
		service.Claims = []api.Claim{function}
	case "vfio", "two", "three": // with a processor and huge pages, as programs with DPDK want them
		policy.Default.Driver, function.Driver = api.DriverVFIO, api.DriverVFIO
		service.Claims = []api.Claim{function, {Class: api.ClaimCPU, Count: 1}, {Class: api.ClaimHugePages, Count: 2}}
		service.Entrypoint = []string{"/functions", "driver"}
		names = map[string][]string{"vfio": names, "two": {"ran", "second"}, "three": {"earlier", "ran", "second"}}[words[1]]
	default:
		return []api.FunctionPolicy{policy}, nil
	}
	var apps []workload.App
	for _, name := range names {
		digest := "sha256:" + words[1]
		if len(names) > 1 { // the same, whoever else is wanted
			digest = "sha256:" + name
		}
		service.Env = map[string]string{"APP": name}
		apps = append(apps, workload.App{Digest: digest, Bundle: api.Bundle{Version: 2, App: name, Services: []api.Service{service}}})
	}
	return []api.FunctionPolicy{policy}, apps
}
