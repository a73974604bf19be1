package machines

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/story"
)

// TestOnboardRelease: the owner has a box run another release before it takes its apps (the boot image
// of RFC 8572). It enrols, updates, and starts its app in the release on trial, which that proves.
func TestOnboardRelease(t *testing.T) {
	disk, system := needSystem(t, needs{arch: "amd64"})
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, system.Profile), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := system.Flash(disk, filepath.Join(dir, system.Profile, "disk.raw"), "tributary.debug"); err != nil {
		t.Fatal(err)
	}
	a := arrive(t, dir, BoxSpec{Name: "box", Parent: "core", Role: "field"})
	update := filepath.Join(t.TempDir(), "update.tbu")
	if err := system.Release(Variant{Version: "v2", Counter: 1}, update); err != nil {
		t.Fatal(err)
	}
	a.edgectl("release", "push", "--quiet", update, "default/system", "--release", "v2")
	if err := (&story.Story{Tree: a.tree, Root: root, Out: os.Stderr, Wait: patience}).PushImages(a.ctx); err != nil {
		t.Fatal(err)
	}
	const app = `apiVersion: tributary/v1
kind: App
metadata: {name: hello}
spec: {compose: "services: {cache: {image: \"default/cache:latest\"}}"}
---
apiVersion: tributary/v1
kind: Fleet
metadata: {name: field}
spec: {selector: {matchLabels: {role: field}}, apps: [hello]}
`
	if _, err := a.tree.Edgectl(a.ctx, app, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	a.edgectl("device", "expect", "DEMO-BOX", "--again", "--voucher", a.tree.boxes["box"].path("DEMO-BOX.vcj"), "--name", "box", "--labels", "role=field", "--release", "v2")
	a.start()
	// hello waits until the core shows the app in a state, with such words.
	hello := func(state api.AppState, words string) {
		t.Helper()
		if err := lab.Until(a.ctx, fmt.Sprintf("hello is %s", state), patience, func(ctx context.Context) error {
			var st api.DeviceStatus
			if err := memberOf(ctx, a.tree, "box", &st); err != nil {
				return err
			}
			for _, app := range st.Apps {
				if app.Name == "hello" && app.State == state && strings.Contains(app.Message, words) {
					return nil
				}
			}
			return fmt.Errorf("its apps are %+v", st.Apps)
		}); err != nil {
			t.Fatal(err)
		}
	}
	hello(api.Pending, "its owner has the box run another release first: default/system@sha256:")
	t.Logf("a member whose app waits, %.0f s after power on", time.Since(a.began).Seconds())
	m := a.tree.Machine("box")
	expect(t, a.ctx, m, `tributary\.version=v2[ \r\n]`)
	expect(t, a.ctx, m, `confirmed: system, agent, parent and apps are well`)
	hello(api.Running, "")
	t.Logf("the app runs in the release, %.0f s after power on", time.Since(a.began).Seconds())
}
