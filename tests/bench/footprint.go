package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/story"
)

const (
	containers = 10
	returned   = 75 * time.Second
)

// benchFootprint measures the memory of the only edged on a box with ten containers at
// rest, all helpers but the shims counted, beside containerd's own.
func benchFootprint(ctx context.Context) (figures []Figure, err error) {
	rest := 2 * time.Minute
	if os.Getenv("LONG") == "1" {
		rest = 10 * time.Minute
	}
	if v := os.Getenv("FOOTPRINT_REST"); v != "" { // a quick look, for work on it
		if rest, err = time.ParseDuration(v); err != nil {
			return nil, err
		}
	}
	s, closeLab, err := benchLab(ctx, "fp", []lab.BoxSpec{{Name: "field-1", Parent: "core", Role: "field"}})
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := closeLab(); err == nil {
			err = cerr
		}
	}()
	if err := s.Raise(ctx); err != nil {
		return nil, err
	}
	if err := s.PushImages(ctx); err != nil {
		return nil, err
	}
	if _, err := s.Lab.Edgectl(ctx, tenServices(), "apply", "-f", "-"); err != nil {
		return nil, err
	}
	if err := s.RunningEverywhere(ctx); err != nil {
		return nil, err
	}
	box := s.Lab.Boxes["field-1"]
	// edged gives memory back once, a minute after it began: growth counts from there, or
	// that return would hide it.
	if err := pause(ctx, returned); err != nil {
		return nil, err
	}
	early, err := leastAnonymous(ctx, box, rest/4)
	if err != nil {
		return nil, err
	}
	if err := pause(ctx, rest/2); err != nil {
		return nil, err
	}
	late, err := leastAnonymous(ctx, box, rest/4)
	if err != nil {
		return nil, err
	}
	edged, ctrd, err := box.Footprint()
	if err != nil {
		return nil, err
	}
	if edged.Processes != 1+containers {
		return nil, fmt.Errorf("counted %d processes, want edged and %d loggers", edged.Processes, containers)
	}
	const mb = 1e6
	growth := float64(late-early) / mb
	return []Figure{
		atMost("footprint_pss", float64(edged.PSS)/mb, "MB", 25, 12).against(float64(ctrd.PSS) / mb),
		plain("footprint_anonymous", float64(edged.Anonymous)/mb, "MB").against(float64(ctrd.Anonymous) / mb),
		atMost("footprint_growth", growth, "MB", 0.5, 0.5),
	}, nil
}

// leastAnonymous looks every second for as long as it is told, and gives the least
// anonymous memory of edged and its loggers, in bytes. A heap grows until it is collected
// and falls again; what grows for good shows in its least.
func leastAnonymous(ctx context.Context, box *lab.Box, during time.Duration) (least int64, err error) {
	for end := time.Now().Add(during); ; {
		m, _, err := box.Footprint()
		if err != nil {
			return 0, err
		}
		if least == 0 || m.Anonymous < least {
			least = m.Anonymous
		}
		if time.Now().After(end) {
			return least, nil
		}
		if err := pause(ctx, time.Second); err != nil {
			return 0, err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d): // the workload of this bench is rest
		return nil
	}
}

func tenServices() string {
	var b strings.Builder
	b.WriteString("apiVersion: " + api.Version + "\nkind: App\nmetadata: {name: ten}\nspec:\n  compose: |\n    services:\n")
	for i := range containers {
		fmt.Fprintf(&b, "      s%d: {image: \"default/cache:latest\", restart: always}\n", i)
	}
	b.WriteString("---\napiVersion: " + api.Version + "\nkind: Fleet\nmetadata: {name: field}\nspec:\n  selector: {matchLabels: {role: field}}\n  apps: [ten]\n")
	return b.String()
}

// benchLab raises namespaces for a bench; the caller closes them.
func benchLab(ctx context.Context, name string, boxes []lab.BoxSpec) (*story.Story, func() error, error) {
	root, err := os.Getwd()
	if err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp("", "tributary-bench-")
	if err != nil {
		return nil, nil, err
	}
	l, err := lab.New(ctx, lab.Spec{Name: fmt.Sprintf("%s%d", name, os.Getpid()%10000), Bin: filepath.Join(root, "bin"), Dir: dir, Boxes: boxes})
	if err != nil {
		return nil, nil, err
	}
	var fields []string
	for _, b := range boxes {
		if b.Role == "field" {
			fields = append(fields, b.Name)
		}
	}
	s := &story.Story{Lab: l, Root: root, Out: os.Stderr, Fields: fields, Wait: 2 * time.Minute}
	return s, func() error {
		if err := l.Close(); err != nil {
			return err
		}
		return os.RemoveAll(dir)
	}, nil
}
