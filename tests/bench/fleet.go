package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// fleetPlan is how large a tree benchFleet grows.
type fleetPlan struct {
	devices, relays int
	cored           string // path of the program
	dir             string // of everything on the disk; emptied by the caller
	// host is where cored listens, the loopback when empty; enter precedes its command
	// line. spools gives every device an append log for its records.
	host   string
	enter  []string
	spools bool
}

// fleetOutcome is what was measured. Memory is cored's proportional set size in bytes.
type fleetOutcome struct {
	enrol, attach time.Duration
	// before is without any device, attached with all of them at work, settled the same
	// after a forced collection, after when the change is through.
	before, attached, settled, after int64
	// delivered: every device has the new manifest. known: cored's API shows it in force
	// on every device, from the request of the change on.
	delivered, known time.Duration
	cpu, ownCPU      time.Duration // of cored and of this program during the change
}

func (o *fleetOutcome) perDevice(pss int64, devices int) float64 {
	return float64(pss-o.before) / 1000 / float64(devices)
}

// benchFleet grows a tree of 10,000 devices behind 100 relays on one cored, and changes
// the app of all of them. Devices, relays and the bench are one process; cored is
// another. Devices run the link's real endpoint over a store in memory and a session in
// memory with their relay; relays have a bbolt file and MQTT over mutual TLS to cored.
func benchFleet(ctx context.Context) ([]Figure, error) {
	ctx, cancel := context.WithTimeout(ctx, 8*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "tributary-fleet-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	plan := fleetPlan{devices: 10000, cored: filepath.Join("bin", "cored"), dir: dir}
	if v := os.Getenv("FLEET_DEVICES"); v != "" {
		if plan.devices, err = strconv.Atoi(v); err != nil || plan.devices < 1 {
			return nil, fmt.Errorf("FLEET_DEVICES is %q, not a number of devices", v)
		}
	}
	plan.relays = max(1, plan.devices/100)
	// 10,000 devices are one process here, which would spend its time on collecting: each
	// of them has but a few kB to look at.
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	o, err := runFleet(ctx, plan)
	if err != nil {
		return nil, err
	}
	perDevice := o.perDevice(max(o.attached, o.after), plan.devices)
	memory := atMost("fleet-memory", perDevice, "kB/device", 20, 20)
	memory.Note = fmt.Sprintf("%d devices, %d relays; cored %d MB without any, %d MB with all", plan.devices, plan.relays, o.before/1e6, max(o.attached, o.after)/1e6)
	change := atMost("fleet-change", o.known.Seconds(), "s", 10, 10)
	change.Note = fmt.Sprintf("all devices had it after %.1f s; cored used %.1f s of processor, relays and devices %.1f s", o.delivered.Seconds(), o.cpu.Seconds(), o.ownCPU.Seconds())
	return []Figure{memory, change,
		plain("fleet-memory-settled", o.perDevice(o.settled, plan.devices), "kB/device"),
		plain("fleet-enrol", float64(plan.devices+plan.relays)/o.enrol.Seconds(), "devices/s"),
		plain("fleet-attach", o.attach.Seconds(), "s"),
	}, nil
}

// The labels of the two kinds of boxes, and the objects of the bench.
const (
	fleetField = "field"
	fleetRelay = "relay"
	fleetName  = "bench"
)

// fleetObjects is the app that every field device gets; what changes is its environment.
func fleetObjects(version int) string {
	return fmt.Sprintf(`apiVersion: %[1]s
kind: App
metadata: {name: %[2]s}
spec:
  compose: |
    services:
      web:
        image: default/%[2]s:latest
        environment: {VERSION: "%[3]d"}
        configs: [{source: greeting, target: /etc/greeting}]
    configs:
      greeting: {external: true}
---
apiVersion: %[1]s
kind: Config
metadata: {name: greeting}
spec:
  files: {text: "hello from the core, to every door on the street"}
---
apiVersion: %[1]s
kind: Fleet
metadata: {name: %[2]s}
spec:
  selector: {matchLabels: {role: %[4]s}}
  apps: [%[2]s]
  settings: {meterInterval: 15m}
`, api.Version, fleetName, version, fleetField)
}

// runFleet grows the tree, changes it once, and takes it down.
func runFleet(ctx context.Context, plan fleetPlan) (o *fleetOutcome, err error) {
	core, err := startFleetCore(ctx, plan)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, core.stop()) }()
	if err := core.pushImage(ctx); err != nil {
		return nil, err
	}
	if err := core.apply(ctx, fleetObjects(1)); err != nil {
		return nil, err
	}
	o = &fleetOutcome{}
	if o.before, err = core.settle(ctx); err != nil {
		return nil, err
	}

	began := time.Now()
	tree, err := enrolFleet(ctx, core, plan)
	if err != nil {
		return nil, fmt.Errorf("enrol: %w", err)
	}
	o.enrol = time.Since(began)

	began = time.Now()
	ctx, stop := context.WithCancelCause(ctx)
	tree.start(ctx, stop)
	defer func() { stop(nil); err = errors.Join(err, tree.wait()) }()
	if _, _, err := tree.settled(ctx, core, began); err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	o.attach = time.Since(began)
	if o.attached, err = core.memory(); err != nil {
		return nil, err
	}
	if o.settled, err = core.settle(ctx); err != nil {
		return nil, err
	}
	return o, changeFleet(ctx, core, tree, o)
}

// changeFleet changes the app once, and notes how long it took.
func changeFleet(ctx context.Context, core *fleetCore, tree *fleetTree, o *fleetOutcome) (err error) {
	cpu, err := processor(core.cmd.Process.Pid)
	own, ownErr := processor(os.Getpid())
	err = errors.Join(err, ownErr)
	if err != nil {
		return err
	}
	defer core.keepProfiles(ctx, 15)()
	began := time.Now()
	tree.mark()
	if err := core.apply(ctx, fleetObjects(2)); err != nil {
		return err
	}
	if o.delivered, o.known, err = tree.settled(ctx, core, began); err != nil {
		return fmt.Errorf("change: %w", err)
	}
	spent, err := processor(core.cmd.Process.Pid)
	ownSpent, ownErr := processor(os.Getpid())
	if err = errors.Join(err, ownErr); err != nil {
		return err
	}
	o.cpu, o.ownCPU = spent-cpu, ownSpent-own
	o.after, err = core.memory()
	return err
}
