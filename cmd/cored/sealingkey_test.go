package main

import (
	"path/filepath"
	"slices"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/manifest"
	"tributary.dev/tributary/tests/wait"
)

// TestSealingKeyRotates: a device hears of another sealing key, is believed by the old one until it renews, and by the
// new one after, also when the core begins again; not by one that is lost.
func TestSealingKeyRotates(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "core")
	r := start(t, dir)
	id := r.join("box")
	b := attach(t, id, r.c.mqttAddress())
	seen := func(version string) func() bool { return func() bool { return r.device("box").Version == version } }
	b.report("version", "1")
	wait.Until(t, "the core knows what the device reports", seen("1"))
	named := ""
	rotate := func(lost bool) {
		t.Helper()
		if err := rotateSealing(t.Context(), data(dir), lost); err != nil {
			t.Fatal(err)
		}
		wait.Until(t, "the device hears of the key", func() bool {
			m := b.end.Manifest()
			if m == nil {
				return false
			}
			name := string(m.Manifest.Items[manifest.KeySealing].Body)
			defer func() { named = name }()
			return name != "" && name != named
		})
	}
	renew := func() {
		t.Helper()
		i, _, err := identity.Renew(t.Context(), identity.RenewConfig{ParentURL: r.url, Identity: b.live.Get()})
		if err != nil {
			t.Fatal(err)
		}
		b.live.Set(i)
	}
	rotate(false)
	b.report("version", "2")
	wait.Until(t, "it is believed by the old key", seen("2"))
	renew()
	b.report("version", "3")
	wait.Until(t, "it is believed by the new key", seen("3"))
	refused := func() bool {
		return slices.ContainsFunc(r.device("box").Health, func(w api.Warning) bool { return w.Name == "bad-mac" })
	}
	if refused() {
		t.Error("it was refused in between")
	}
	rotate(true)
	b.report("version", "4")
	wait.Until(t, "it is not believed by a lost key", refused)
	renew()
	wait.Until(t, "it is believed again", seen("4"))
	if n := len(r.c.ca.SealingKeys()); n != 1 {
		t.Errorf("%d keys are kept", n)
	}
	r.stop()
	if err := rotateSealing(t.Context(), data(dir), true); api.CodeOf(err) != api.Unavailable {
		t.Errorf("a key is destroyed by which the core may keep others: %v", err)
	}
	if err := rotateSealing(t.Context(), data(dir), false); err != nil {
		t.Fatal(err)
	}
}
