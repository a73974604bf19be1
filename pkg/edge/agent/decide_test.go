package agent

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/manifest"
)

func encode(t interface{ Fatal(...any) }, v any) []byte {
	b, err := encMode.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTakeReadsEveryKindOfItem(t *testing.T) {
	parents := []api.ParentRef{{Device: "core", Address: "10.0.0.1:8883", HTTPSPort: 8443}}
	settings := api.DeviceSettings{MeterInterval: api.Duration(2e9)}
	ref := manifest.Ref{Repo: "default/shop", Digest: "sha256:" + strings.Repeat("a", 64)}
	w, findings := take(&manifest.Manifest{Items: map[string]manifest.Item{
		"app/shop":         {Gen: 1, Refs: []manifest.Ref{ref, {Repo: "default/web"}}},
		"app/blank":        {Gen: 1},
		"config/c":         {Gen: 1, Body: encode(t, api.ConfigData{Env: map[string]string{"A": "1"}})},
		"config/broken":    {Gen: 1, Body: []byte{0xff}},
		"secret/s":         {Gen: 7, Body: []byte("sealed")},
		"setting/device":   {Gen: 1, Body: encode(t, settings)},
		"setting/parents":  {Gen: 1, Body: encode(t, parents)},
		"model/later":      {Gen: 1},
		"setting/sealing":  {Gen: 1, Body: encode(t, []byte("key"))},
		"setting/expected": {Gen: 1, Body: []byte("word")},
	}})
	if !reflect.DeepEqual(w.apps, []wantedApp{{"shop", ref}}) || w.configs["c"].Env["A"] != "1" || len(w.configs) != 1 ||
		w.sealed["s"].gen != 7 || !reflect.DeepEqual(*w.settings, settings) || !reflect.DeepEqual(w.parents, parents) || w.expected != "word" || string(w.sealing) != "key" {
		t.Errorf("got %+v", w)
	}
	if len(findings) != 3 || findings["app/blank"] == nil || findings["config/broken"] == nil || findings["model/later"] == nil {
		t.Errorf("findings %v", findings)
	}
}

func TestNeeds(t *testing.T) {
	b := &api.Bundle{Services: []api.Service{
		{EnvConfig: []string{"env"}, Mounts: []api.Mount{{Kind: api.MountConfig, Source: "files/a.conf"}, {Kind: api.MountConfig, Inline: "x"}, {Kind: api.MountSecret, Source: "keys/tls"}}},
		{Mounts: []api.Mount{{Kind: api.MountConfig, Source: "files"}, {Kind: api.MountVolume, Source: "data"}, {Kind: api.MountSecret, Source: "keys"}}},
	}}
	configs, secrets := needs(b)
	if !reflect.DeepEqual(configs, []string{"env", "files"}) || !reflect.DeepEqual(secrets, []string{"keys"}) {
		t.Errorf("configs %v, secrets %v", configs, secrets)
	}
}

// TestInForceMeansAllOfItAndNothingElse holds the rule against its own words.
func TestInForceMeansAllOfItAndNothingElse(t *testing.T) {
	names := []string{"a", "b", "c"}
	states := []api.AppState{api.Running, api.Exited, api.Starting, api.Backoff, api.Failed, api.Pulling}
	rapid.Check(t, func(t *rapid.T) {
		o := outcome{of: version{1, rapid.Uint64Range(0, 3).Draw(t, "gen")}, wanted: map[string]string{}, unready: map[string]string{}}
		var status []api.AppStatus
		want := true
		for _, n := range names {
			wanted, runs := rapid.Bool().Draw(t, "wanted "+n), rapid.Bool().Draw(t, "runs "+n)
			if wanted {
				o.wanted[n] = "new"
				if rapid.IntRange(0, 3).Draw(t, "unready "+n) == 0 {
					o.unready[n] = "why"
					want = false
				}
			}
			s := api.AppStatus{Name: n, Taken: rapid.SampledFrom([]string{"new", "old", ""}).Draw(t, "taken "+n), State: rapid.SampledFrom(states).Draw(t, "state "+n)}
			if runs {
				status = append(status, s)
			}
			want = want && wanted == runs && (!runs || s.Taken == "new")
		}
		if got := o.acted(status); got != want {
			t.Fatalf("applied %v, want %v: %+v %+v", got, want, o, status)
		}
		all := o.statuses(status)
		for _, n := range names {
			count := 0
			for _, s := range all {
				if s.Name == n {
					count++
				}
			}
			if _, wanted := o.wanted[n]; count > 1 || wanted && count != 1 {
				t.Fatalf("%s is told %d times in %+v", n, count, all)
			}
		}
	})
	if (&outcome{}).acted(nil) {
		t.Error("applied before any manifest")
	}
}

func TestMergeWarningsKeepsTheGravest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOf(rapid.Custom(func(t *rapid.T) api.Warning {
			return api.Warning{Name: rapid.SampledFrom([]string{"x", "y"}).Draw(t, "name"), Since: rapid.Int64Range(0, 3).Draw(t, "since"),
				Severity: rapid.SampledFrom([]api.Severity{api.Info, api.Degraded, api.Critical}).Draw(t, "severity")}
		})).Draw(t, "warnings")
		got := mergeWarnings(all)
		for i, w := range got {
			if i > 0 && got[i-1].Name >= w.Name {
				t.Fatal("out of order, or twice")
			}
			for _, o := range all {
				if o.Name == w.Name && (o.Severity == api.Critical && w.Severity != api.Critical || o.Severity == w.Severity && o.Since < w.Since) {
					t.Fatalf("kept %+v over %+v", w, o)
				}
			}
		}
	})
}

func TestRankAndChoose(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		gen := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) api.ParentRef {
			return api.ParentRef{Device: rapid.SampledFrom([]string{"", "core", "p1", "p2"}).Draw(t, "id"), Address: fmt.Sprintf("10.0.0.%d", rapid.IntRange(1, 4).Draw(t, "at"))}
		}), 0, 4)
		given, first := gen.Draw(t, "given"), []api.ParentRef{{Address: "10.0.0.9:8883"}}
		list := rank(given, first)
		if !reflect.DeepEqual(list[:len(given)], append([]api.ParentRef{}, given...)) || len(list) != len(given)+1 {
			t.Fatalf("ranked %v of %v", list, given)
		}
		id := rapid.SampledFrom([]string{"core", "p1", "elsewhere", ""}).Draw(t, "current")
		got, ok := choose(list, id)
		if !ok {
			t.Fatal("a list without a choice")
		}
		for _, p := range list {
			if p.Device == id && got.Device != id {
				t.Fatalf("chose %v though %s is listed", got, id)
			}
		}
	})
	if got := rank([]api.ParentRef{{Address: "10.0.0.9"}}, []api.ParentRef{{Address: "10.0.0.9:8883"}}); len(got) != 1 {
		t.Errorf("the same place twice: %v", got)
	}
	if got := rank([]api.ParentRef{{Device: "p1", Address: "10.0.0.9"}}, []api.ParentRef{{Address: "10.0.0.9:8883"}}); len(got) != 2 {
		t.Errorf("a box that was replaced at the place of enrolment is not found: %v", got)
	}
	if _, ok := choose(nil, "x"); ok {
		t.Error("chose of nothing")
	}
	for addr, want := range map[string]string{"10.0.0.1": "https://10.0.0.1:8443", "10.0.0.1:99": "https://10.0.0.1:8443", "[fd00::1]:99": "https://[fd00::1]:8443"} {
		if got := httpsRoot(api.ParentRef{Address: addr}).String(); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}

func FuzzTake(f *testing.F) {
	f.Add("app/x", []byte{}, []byte(`{"version":1,"app":"x"}`))
	f.Add("config/x", []byte{0xa1, 0x01, 0xa0}, []byte(`{}`))
	f.Add("setting/parents", []byte{0x9f, 0xff}, []byte(`{"version":1e9}`))
	f.Add("setting/device", []byte{0xbf, 0xff}, []byte("[[[["))
	f.Fuzz(func(t *testing.T, key string, body, bundle []byte) {
		take(&manifest.Manifest{Items: map[string]manifest.Item{key: {Gen: 1, Body: body}}})
		if b, err := parseBundle(bundle, "x"); err == nil {
			needs(&b)
		}
	})
}
