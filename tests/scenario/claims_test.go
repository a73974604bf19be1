package scenario

import (
	"context"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/story"
)

// claimsOfHardware has an app ask for what no box of the lab has: it waits there, in words
// that the core shows, and its other service runs. Asking for less, it runs.
func claimsOfHardware(ctx context.Context, t *testing.T, s *story.Story) {
	text := func(claim string) string {
		return `
services:
  du:
    image: cache
    entrypoint: [/bin/busybox, sleep, "100000"]
    stop_grace_period: 1s
` + claim + `
  beside: {image: cache, entrypoint: [/bin/busybox, sleep, "100000"], stop_grace_period: 1s}
`
	}
	work(ctx, t, s, "ran", text(`    deploy: {resources: {reservations: {devices: [{capabilities: [vf], count: 2, options: {physical: "enp*"}}]}}}`))
	_, err := appOn(ctx, s, "agg-1", "ran", "says what is missing", func(a api.AppStatus) bool {
		words, beside := false, false
		for _, svc := range a.Services {
			words = words || svc.Name == "du" && strings.Contains(svc.Message, "2 × vf (physical enp*) is wanted; this box has no vf")
			beside = beside || svc.Name == "beside" && svc.State == api.Running
		}
		return words && beside
	})
	must(t, err)
	must(t, apply(ctx, s, workText("ran", text(""))))
	must(t, running(ctx, s, "agg-1", "ran"))
}
