package scenario

import (
	"context"
	"strings"
	"testing"

	"tributary.dev/tributary/tests/story"
)

// wrongInput holds what a person is told against what they need to mend their file:
// the line, the field, the fault and the remedy. Nothing of a refused file is written.
func wrongInput(ctx context.Context, t *testing.T, s *story.Story) {
	compose := func(name, services string) string { return appText(name, services) }
	for _, c := range []struct {
		name, text string
		says       []string
	}{
		{"wrong YAML", "kind: App\nmetadata: {name: a\nspec: 1\n", []string{"standard input:1: ", "not valid YAML", "→ "}},
		{"wrong YAML in the Compose file", compose("a", "services:\n  web:\n    image: [cache"), []string{"standard input:7: ", "not valid YAML", "→ "}},
		{"unknown field", "kind: Fleet\nmetadata: {name: f}\nspec:\n  selector: {matchLabels: {role: x}}\n  app: [demo]\n",
			[]string{":5: spec.app: there is no such field", "→ did you mean apps?"}},
		{"unknown field in the Compose file", compose("a", "services:\n  web:\n    image: cache\n    restrt: always"),
			[]string{":9:", "services.web.restrt", "→ did you mean restart?"}},
		{"what is not supported", compose("a", "services:\n  web:\n    image: cache\n    privileged: true"),
			[]string{":9:", "services.web.privileged", "→ "}},
		{"bad digest", compose("a", "services:\n  web:\n    image: default/cache@sha256:0123"),
			[]string{":8:", "services.web.image", "@sha256:0123", "→ ", "64 hex digits"}},
		{"missing digest", compose("a", "services:\n  web:\n    image: default/cache@sha256:"+strings.Repeat("0123456789abcdef", 4)),
			[]string{":8:", "services.web.image", "default/cache@sha256:0123", "→ compare the digest"}},
		{"missing image", compose("a", "services:\n  web:\n    image: default/nonesuch:latest"),
			[]string{":8:", "services.web.image", "default/nonesuch:latest", "→ ", "edgectl app push"}},
		{"cyclic dependency", compose("a", "services:\n  one:\n    image: cache\n    depends_on: [two]\n  two:\n    image: cache\n    depends_on: [one]"),
			[]string{":9: ", "services.one.depends_on", "one → two → one", "→ remove one"}},
		{"port clash within an app", compose("a", "services:\n  one:\n    image: cache\n    ports: ['9000:6379']\n  two:\n    image: cache\n    ports: ['9000:6379']"),
			[]string{":12: ", "services.two.ports", "tcp port 9000", "one", "→ publish one of them on another host port"}},
		{"port clash with another app of the device", compose("clash", "services:\n  web:\n    image: cache\n    ports: ['8080:6379']") + "---\n" + fleetText("field", "field", "demo, clash"),
			[]string{":16: ", "spec.apps", "tcp port 8080", "clash/web", "demo/web", "→ publish another host port"}},
		{"artifact without a digest", "kind: App\nmetadata: {name: a}\nspec: {artifact: 'default/a'}\n", []string{"spec.artifact", "→ "}},
	} {
		_, err := s.Lab.Edgectl(ctx, c.text, "apply", "-f", "-")
		if err == nil {
			t.Errorf("%s: it was taken", c.name)
			continue
		}
		t.Logf("%s: %v", c.name, err)
		for _, want := range c.says {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q is not in: %v", c.name, want, err)
			}
		}
	}
	// A clash that only the two fleets of a device bring together.
	if err := apply(ctx, s, compose("clash", "services:\n  web:\n    image: cache\n    ports: ['8080:6379']")); err != nil {
		t.Error(err)
	}
	err := apply(ctx, s, fleetText("second", "field", "clash"))
	if err == nil || !strings.Contains(err.Error(), "device field-1") || !strings.Contains(err.Error(), "tcp port 8080") || !strings.Contains(err.Error(), "→ ") {
		t.Errorf("two fleets give a device two apps of one port: %v", err)
	}
	if err == nil {
		_, err := s.Lab.Edgectl(ctx, "", "delete", "fleet", "second")
		must(t, err)
	}
	_, err = s.Lab.Edgectl(ctx, "", "delete", "app", "clash")
	must(t, err)
	if _, err := s.Lab.Edgectl(ctx, "", "get", "app", "a"); err == nil {
		t.Error("an app of a refused file is there")
	}
	must(t, s.RunningEverywhere(ctx))
}
