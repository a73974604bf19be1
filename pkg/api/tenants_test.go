package api

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// Whatever is placed and moved, every tenant reaches the root, and no way down is too long.
func TestTenantTree(t *testing.T) {
	names := []string{"a", "b", "c", "d", "e", DefaultTenant, PlatformTenant, "gone"}
	rapid.Check(t, func(t *rapid.T) {
		tree := TenantTree{}
		for range rapid.IntRange(1, 40).Draw(t, "moves") {
			name, parent := rapid.SampledFrom(names[:7]).Draw(t, "name"), rapid.SampledFrom(names).Draw(t, "parent")
			before := tree.Path(parent)
			if err := tree.Place(name, parent); err == nil {
				tree[name] = parent
				if slices.Contains(before, name) {
					t.Fatalf("%s went below itself by %v", name, before)
				}
			} else if CodeOf(err) != Invalid {
				t.Fatal(err)
			}
		}
		for _, name := range tree.Names() {
			path := tree.Path(name)
			if len(path) == 0 || path[len(path)-1] != PlatformTenant || path[0] != name {
				t.Fatalf("%s reaches %v in %v", name, path, tree)
			}
			for _, top := range tree.Names() {
				if tree.Within(name, top) != slices.Contains(path, top) {
					t.Fatalf("%s within %s", name, top)
				}
			}
			if len(path) > 1 && !slices.Contains(tree.Below(path[1]), name) {
				t.Fatalf("%s is not below %s", name, path[1])
			}
		}
	})
}

func TestTenantPlaces(t *testing.T) {
	tree := TenantTree{"a": PlatformTenant, "b": "a", "c": "b"}
	chain := TenantTree{}
	for i, parent := 0, PlatformTenant; i < 15; i++ {
		name := string(rune('a' + i))
		if err := chain.Place(name, parent); err != nil {
			t.Fatalf("level %d: %v", i+2, err)
		}
		chain[name], parent = parent, name
	}
	looped := TenantTree{"a": "c", "b": "a", "c": "b"}
	chain["two"], chain["below"] = PlatformTenant, "two"
	for _, x := range []struct {
		why, name, parent, field string
		tree                     TenantTree
	}{
		{"the root", PlatformTenant, DefaultTenant, "metadata.name", tree},
		{"the default elsewhere", DefaultTenant, "a", "spec.parent", tree},
		{"not there", "x", "nobody", "spec.parent", tree},
		{"itself", "a", "a", "spec.parent", tree},
		{"below itself", "a", "c", "spec.parent", tree},
		{"below itself, as it would be", "a", "c", "spec.parent", looped},
		{"too deep", "x", "o", "spec.parent", chain},
		{"too deep with what hangs below it", "two", "n", "spec.parent", chain},
	} {
		e, ok := x.tree.Place(x.name, x.parent).(*Error)
		if !ok || e.Field != x.field || e.Remedy == "" {
			t.Errorf("%s: %v", x.why, e)
		}
	}
	if err := tree.Place("c", "a"); err != nil {
		t.Errorf("a move up: %v", err)
	}
}
