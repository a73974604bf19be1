package scenario

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/story"
)

// portsOfTheBox has an app ask for the port by which a relay's children come in: it is
// refused there by name, and the children go on. With another port it runs.
func portsOfTheBox(ctx context.Context, t *testing.T, s *story.Story) {
	text := func(port int) string {
		return appText("thief", fmt.Sprintf(`
services:
  w: {image: cache, entrypoint: [/bin/busybox, sleep, "100000"], stop_grace_period: 1s, ports: ["%d:8080"]}
`, port)) + "---\n" + fleetText("thieves", "aggregation", "thief")
	}
	must(t, apply(ctx, s, text(8883)))
	_, err := appOn(ctx, s, "agg-1", "thief", "is refused the relay's port", func(a api.AppStatus) bool {
		return a.State == api.Failed && strings.Contains(a.Message, "host port 8883/tcp is edged's own")
	})
	must(t, err)
	box := s.Lab.Boxes["field-1"]
	box.KillEdged() // it must come in by that port anew
	must(t, box.StartEdged(ctx))
	must(t, lab.Until(ctx, "field-1 is connected", s.Wait, func(ctx context.Context) error {
		status, err := box.Local(ctx, "/status")
		if err == nil && !strings.Contains(strings.ReplaceAll(string(status), " ", ""), `"online":true`) {
			err = fmt.Errorf("its status is %s", status)
		}
		return err
	}))
	must(t, apply(ctx, s, text(18883)))
	must(t, running(ctx, s, "agg-1", "thief"))
}
