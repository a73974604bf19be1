package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/machines"
	"tributary.dev/tributary/tests/story"
	"tributary.dev/tributary/tests/vm"
)

// containersRuns are few: emulated, ten containers take a minute to start again.
const containersRuns = 3

// containersLimit bounds joining, pulling and starting ten containers, emulated on a busy machine.
const containersLimit = 15 * time.Minute

// benchContainers measures the seconds from power on until the box says of ten containers, which ran before it was
// switched off, that all run again. The core is a process on the host.
func benchContainers(ctx context.Context) (figures []Figure, err error) {
	dir, err := os.MkdirTemp("", "bench-containers-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	images, err := filepath.Abs("build")
	if err != nil {
		return nil, err
	}
	if v := os.Getenv("TRIBUTARY_IMAGES"); v != "" {
		images = v
	}
	bin, err := filepath.Abs("bin")
	if err != nil {
		return nil, err
	}
	if v := os.Getenv("TRIBUTARY_BIN"); v != "" {
		bin = v
	}
	tree, err := machines.New(machines.Spec{Bin: bin, Images: images, Dir: dir, Boxes: []machines.BoxSpec{{Name: "box", Parent: "core", Role: "field"}}, CoredArgs: story.CoredArgs})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, tree.Close()) }()
	s := &story.Story{Tree: tree, Root: ".", Out: os.Stderr, Wait: containersLimit, Bear: machines.Bear, Fields: []string{"box"}}
	for _, step := range []func(context.Context) error{s.Raise, s.PushImages, func(ctx context.Context) error {
		_, err := tree.Edgectl(ctx, tenContainers(), "apply", "-f", "-")
		return err
	}, s.RunningEverywhere} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	var took []float64
	for run := range containersRuns {
		m := tree.Machine("box")
		if err := errors.Join(m.PowerButton(ctx), within(ctx, containersLimit, m.Wait), tree.Box("box").PowerCut()); err != nil {
			return nil, err
		}
		began := time.Now()
		if err := tree.Box("box").Start(ctx); err != nil {
			return nil, err
		}
		if err := within(ctx, containersLimit, func(ctx context.Context) error { return tenRun(ctx, tree.Box("box")) }); err != nil {
			return nil, fmt.Errorf("%w; its serial line ends with:\n%s", err, tree.Machine("box").Console.Tail(30))
		}
		took = append(took, time.Since(began).Seconds())
		fmt.Fprintf(os.Stderr, "bench boot.containers: start %d of %d: ten run again after %.1f s\n", run+1, containersRuns, took[run])
		if err := up(ctx, tree.Machine("box")); err != nil {
			return nil, err
		}
	}
	f := plain("boot.containers", median(took), "s")
	f.Note = fmt.Sprintf("emulated: from power on until ten containers run again (%.1f)", took)
	return []Figure{f}, nil
}

// up waits until process 1 is through its list, and hears the power button.
func up(ctx context.Context, m *vm.Machine) error {
	_, err := m.Expect(ctx, `up after`)
	return err
}

func within(ctx context.Context, most time.Duration, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	return do(ctx)
}

// tenContainers is one app of ten small containers on every field box.
func tenContainers() string {
	var b strings.Builder
	b.WriteString("apiVersion: " + api.Version + "\nkind: App\nmetadata: {name: ten}\nspec:\n  compose: |\n    services:\n")
	for i := range 10 {
		fmt.Fprintf(&b, "      s%d: {image: \"default/cache:latest\", restart: always}\n", i)
	}
	b.WriteString("---\napiVersion: " + api.Version + "\nkind: Fleet\nmetadata: {name: field}\nspec:\n  selector: {matchLabels: {role: field}}\n  apps: [ten]\n")
	return b.String()
}

// tenRun waits until the box itself says that ten services run.
func tenRun(ctx context.Context, b interface {
	Local(context.Context, string) ([]byte, error)
}) error {
	for {
		var status struct {
			Apps []api.AppStatus `json:"apps"`
		}
		body, err := b.Local(ctx, "/status")
		if err == nil {
			err = json.Unmarshal(body, &status)
		}
		if err == nil && running(status.Apps) == 10 {
			return nil
		}
		if pause(ctx, 200*time.Millisecond) != nil {
			return fmt.Errorf("%d of ten containers run (%v): %w", running(status.Apps), err, ctx.Err())
		}
	}
}

func running(apps []api.AppStatus) (n int) {
	for _, a := range apps {
		for _, s := range a.Services {
			if s.State == api.Running {
				n++
			}
		}
	}
	return n
}
