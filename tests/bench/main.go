// Command bench answers: how fast and how small is Tributary, against what peers need?
//
// It prints one JSON line a figure. With arguments it runs the named benches alone; without,
// those that together take ten minutes.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// bench is one named measurement; it may yield several figures.
type bench struct {
	name string
	run  func(context.Context) ([]Figure, error)
	// asked: it takes minutes by itself, and runs only when it is named.
	asked bool
}

// benches run in this order. A figure's name starts with its bench's name.
var benches = []bench{
	{name: "start", run: benchStart},
	{name: "footprint", run: benchFootprint},
	{name: "wan", run: benchWan},
	{name: "spool", run: benchSpool},
	{name: "intake", run: benchIntake},
	{name: "fleet", run: benchFleet},
	{name: "heal", run: benchHeal},
	{name: "change", run: benchChange},
	{name: "idle", run: benchIdle},
	{name: "inventory", run: benchInventory},
	{name: "rollout", run: benchRollout},
	{name: "update", run: benchUpdate, asked: true},
	{name: "update.image", run: benchWhole, asked: true},
	{name: "boot", run: benchBoot, asked: true},
	{name: "boot.containers", run: benchContainers, asked: true},
	{name: "realtime", run: benchRealtime, asked: true},
	{name: "sriov", run: benchSRIOV, asked: true},
	{name: "nab", run: benchNAB, asked: true},
	{name: "metering", run: benchMetering, asked: true},
}

// among tells whether the bench is named: by itself, or by the one that it is a part of.
func (b bench) among(only []string) bool {
	whole, _, _ := strings.Cut(b.name, ".")
	return slices.Contains(only, b.name) || slices.Contains(only, whole)
}

func main() {
	if config := os.Getenv(wanRelay); config != "" {
		if err := runWanRelay(config); err != nil {
			fmt.Fprintln(os.Stderr, "bench: wan's relay:", err)
		}
		os.Exit(1) // it ends by a kill or by an error
	}
	if order := os.Getenv(applyWhole); order != "" {
		if err := runApply(order); err != nil {
			fmt.Fprintln(os.Stderr, "bench: a slot:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := runBenches(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func runBenches(ctx context.Context, only []string) error {
	out := json.NewEncoder(os.Stdout)
	out.SetEscapeHTML(false)
	for _, name := range only {
		if !slices.ContainsFunc(benches, func(b bench) bool { return b.name == name }) {
			return fmt.Errorf("no bench is called %q", name)
		}
	}
	failed := 0
	for _, b := range benches {
		if named := b.among(only); !named && (b.asked || len(only) > 0) {
			continue
		}
		began := time.Now()
		figures, err := b.run(ctx)
		for _, f := range figures {
			if err := out.Encode(f); err != nil {
				return err
			}
		}
		if err != nil {
			failed++
			fmt.Fprintf(os.Stderr, "bench %s: %v\n", b.name, err)
		}
		fmt.Fprintf(os.Stderr, "bench %s took %.1f s\n", b.name, time.Since(began).Seconds())
	}
	if failed > 0 {
		return fmt.Errorf("%d benches could not be measured", failed)
	}
	return nil
}
