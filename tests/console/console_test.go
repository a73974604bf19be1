// Package console answers: can a person do in a browser what the console says they can?
//
// Debian's Chromium, driven by Playwright, against a real cored with a tree of boxes below it.
package console

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/story"
	"tributary.dev/tributary/web"
)

// seed is what people would have made before.
const seed = `
apiVersion: tributary/v1
kind: Site
metadata: {name: hill}
spec: {displayName: Hill, address: Hill Street 1, latitude: 48.14, longitude: 11.58}
---
apiVersion: tributary/v1
kind: Site
metadata: {name: port}
spec: {displayName: Port, latitude: 1.29, longitude: 103.85}
---
apiVersion: tributary/v1
kind: Tenant
metadata: {name: acme}
spec: {displayName: Acme}
---
apiVersion: tributary/v1
kind: ServiceAccount
metadata: {tenant: acme, name: stranger}
---
apiVersion: tributary/v1
kind: RoleBinding
metadata: {tenant: acme, name: stranger}
spec: {role: operator, subjects: [{serviceAccount: stranger}]}
---
apiVersion: tributary/v1
kind: ServiceAccount
metadata: {name: biller}
---
apiVersion: tributary/v1
kind: RoleBinding
metadata: {name: biller}
spec: {role: billing, subjects: [{serviceAccount: biller}]}
---
apiVersion: tributary/v1
kind: Config
metadata: {name: door}
spec: {env: {OPEN: "8"}}
---
apiVersion: tributary/v1
kind: Rollout
metadata: {name: door}
spec: {target: {selector: {matchLabels: {role: field}}}, change: [{kind: Config, name: door}], waves: [{name: canary, devices: 1, approve: true}]}
---
apiVersion: tributary/v1
kind: PricePlan
metadata: {tenant: platform, name: standard}
spec: {currency: EUR, versions: [{from: "2026-01-01", prices: [{name: base, model: subscription, amount: "20"}]}]}
---
apiVersion: tributary/v1
kind: BillingProfile
metadata: {name: billing}
spec: {legalName: Boxes GmbH, country: DE, zone: Europe/Berlin, plan: standard}
---
apiVersion: tributary/v1
kind: Budget
metadata: {name: all}
spec: {amount: "100"}
---
apiVersion: tributary/v1
kind: Quota
metadata: {tenant: acme, name: quota}
spec: {devices: 10}
---
apiVersion: tributary/v1
kind: TrainingJob
metadata: {name: kpis}
spec: {trainer: autoencoder, data: "kpis:1", ranks: 1, timeLimit: 1h, model: kpis}
`

func raise(t *testing.T) (*story.Story, string) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a tree and a browser: not in the short form")
	}
	if err := lab.Root(); err != nil {
		t.Skip(err)
	}
	if !web.Built() {
		t.Skip("the console is not built in: make web build")
	}
	for _, program := range []string{"node", "chromium"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip("needs ", program)
		}
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	bin := cmp.Or(os.Getenv("TRIBUTARY_BIN"), filepath.Join(root, "bin"))
	if _, err := os.Stat(filepath.Join(bin, "edged")); err != nil {
		t.Skip("needs the programs: run make build")
	}
	dir, err := os.MkdirTemp("", "tributary-console-")
	if err != nil {
		t.Fatal(err)
	}
	boxes := []lab.BoxSpec{{Name: "access-1", Parent: "core", Relay: true, Role: "access"}, {Name: "field-1", Parent: "access-1", Role: "field"}}
	l, err := lab.New(t.Context(), lab.Spec{Name: fmt.Sprintf("tw%d", os.Getpid()%10000), Bin: bin, Dir: dir, Boxes: boxes, CoredArgs: story.CoredArgs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log("the logs are left in ", dir)
			return
		}
		_ = os.RemoveAll(dir)
	})
	s := &story.Story{Lab: l, Root: root, Out: t.Output(), Fields: []string{"field-1"}, Wait: 90 * time.Second}
	if err := s.Raise(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s, root
}

// guest is a box that waits for approval.
func guest(t *testing.T, s *story.Story) {
	t.Helper()
	l := s.Lab
	token, err := l.Edgectl(t.Context(), "", "token", "create", "guest", "--labels", "role=guest", "--quiet")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(l.Dir, "guest.token")
	if err := os.WriteFile(file, []byte(strings.TrimSpace(token)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.Add(t.Context(), lab.BoxSpec{Name: "guest-1", Parent: "access-1", Role: "guest", Alone: true}); err != nil {
		t.Fatal(err)
	}
	b := l.Boxes["guest-1"]
	b.EdgedArgs = []string{"--parent", b.Uplink.ParentAddr, "--join-token-file", file}
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := lab.Until(t.Context(), "the guest asks to come in", time.Minute, func(ctx context.Context) error {
		devices, err := s.Devices(ctx)
		if err == nil && len(devices) < 3 {
			err = fmt.Errorf("%d devices", len(devices))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// TestConsole plays web/e2e/console.mjs.
func TestConsole(t *testing.T) {
	s, root := raise(t)
	l := s.Lab
	if _, err := l.Edgectl(t.Context(), seed, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	guest(t, s)
	if err := s.PushImages(t.Context()); err != nil {
		t.Fatal(err)
	}
	admin, err := os.ReadFile(filepath.Join(l.CoreDir(), "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	// The programs that raised the tree came by token: nobody is there yet.
	once, err := os.ReadFile(filepath.Join(l.CoreDir(), "first-admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	roles := map[string]string{}
	for name, args := range map[string][]string{"viewer": {"--role", "viewer"}, "stranger": {"--account", "acme/stranger"}, "biller": {"--account", "default/biller"}} {
		out, err := l.CoreCommand(t.Context(), append([]string{filepath.Join(l.Bin, "cored"), "token", "create", "--data", l.CoreDir(), "--name", name}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range strings.Fields(out) {
			if len(word) > len(roles[name]) { // the token is the longest word
				roles[name] = word
			}
		}
	}
	tokens, err := json.Marshal(roles)
	if err != nil {
		t.Fatal(err)
	}
	argv := append(l.CorePrefix(), "node", filepath.Join(root, "web/e2e/console.mjs"))
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "CORE=https://127.0.0.1:8443", "TOKEN="+strings.TrimSpace(string(admin)), "SETUP="+strings.TrimSpace(string(once)), "DEVICE=field-1", "WAITING=guest-1", "APP="+filepath.Join(root, "tests/demo/app/v1.yaml"),
		"ROLES="+string(tokens), "SCREENS="+os.Getenv("TRIBUTARY_SCREENS"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	t.Log(out.String())
	if err != nil {
		t.Fatal(err)
	}
}
