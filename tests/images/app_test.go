package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/compose"
)

// TestDemoAppIsAccepted reads the demo's files as the core will.
func TestDemoAppIsAccepted(t *testing.T) {
	for _, file := range []string{"v1.yaml", "v2.yaml"} {
		b, err := os.ReadFile("../demo/app/" + file)
		if err != nil {
			t.Fatal(err)
		}
		objects, err := api.Decode(b)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		known := names()
		for _, o := range objects {
			if o.Kind != api.KindApp {
				continue
			}
			var spec api.AppSpec
			if err := json.Unmarshal(o.Spec, &spec); err != nil {
				t.Fatal(err)
			}
			resolve := func(ref string) (string, int64, error) {
				name := strings.TrimSuffix(strings.TrimPrefix(ref, "default/"), ":latest")
				for _, n := range known {
					if n == name {
						return "default/" + n + "@sha256:" + strings.Repeat("0", 64), 1, nil
					}
				}
				return "", 0, api.Errorf(api.NotFound, "%s is none of the images made here", ref)
			}
			bundle, warnings, err := compose.Load(t.Context(), spec.Compose, compose.Options{AppName: o.Metadata.Name, Resolve: resolve})
			if err != nil || len(warnings) > 0 {
				t.Fatalf("%s: %v %v", file, warnings, err)
			}
			if len(bundle.Services) != 2 || bundle.Services[0].Name != "cache" {
				t.Fatalf("%s: services %+v", file, bundle.Services)
			}
		}
	}
}
