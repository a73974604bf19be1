package fleet

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/manifest"
	"tributary.dev/tributary/pkg/report"
)

func ref(n int) manifest.Ref {
	return manifest.Ref{Repo: "default/x", Digest: fmt.Sprintf("sha256:%064x", n), Size: int64(n)}
}

func TestDesire(t *testing.T) {
	w := &World{
		Fleets: map[string]*api.FleetSpec{
			"a": {Selector: api.Selector{MatchLabels: map[string]string{"role": "field"}}, Apps: []string{"web", "ghost"}, Secrets: []string{"unused"}, Settings: &api.DeviceSettings{SpoolBytes: 1}, Release: "newest"},
			"b": {Selector: api.Selector{MatchExpressions: []api.Requirement{{Key: api.Reserved + "arch", Operator: api.OpIn, Values: []string{"arm64"}}}}, Configs: []string{"motd"}, Settings: &api.DeviceSettings{SpoolBytes: 2, CacheBytes: 2}},
			"c": {Selector: api.Selector{}, Apps: []string{"other"}},
		},
		Apps:     map[string]*App{"web": {Refs: []manifest.Ref{ref(1), ref(2)}, Configs: []string{"page"}, Secrets: []string{"key"}}, "other": {Refs: []manifest.Ref{ref(3)}, Secrets: []string{"unused"}}},
		Releases: map[string]Want{"newest": {Refs: []manifest.Ref{ref(9)}}, "other": {Refs: []manifest.Ref{ref(8)}}},
		Configs:  map[string][]byte{"page": []byte("p"), "motd": []byte("m")},
		Secrets:  map[string][]byte{"key": []byte("k"), "unused": []byte("u")},
	}
	keys := func(d *Device) []string { return slices.Sorted(maps.Keys(Desire(d, w, w.Selected(d.Labels)))) }
	field := &Device{Labels: map[string]string{"role": "field"}}
	if got, want := keys(field), []string{"app/web", "config/page", "release", "secret/key", "setting/device"}; !slices.Equal(got, want) {
		t.Errorf("field device: %v, want %v", got, want)
	}
	both := &Device{Labels: map[string]string{"role": "field", api.Reserved + "arch": "arm64"},
		Spec: api.DeviceSpec{Settings: &api.DeviceSettings{MeterInterval: 3}, Parents: []api.ParentRef{{Device: "core", Address: "a"}}}}
	if got, want := keys(both), []string{"app/web", "config/motd", "config/page", "release", "secret/key", "setting/device", "setting/parents"}; !slices.Equal(got, want) {
		t.Errorf("device of two fleets: %v, want %v", got, want)
	}
	var settings api.DeviceSettings
	if err := decMode.Unmarshal(Desire(both, w, []string{"a", "b"})[manifest.KeyDevice].Body, &settings); err != nil || !reflect.DeepEqual(settings, api.DeviceSettings{MeterInterval: 3, SpoolBytes: 1, CacheBytes: 2}) {
		t.Errorf("settings %+v %v", settings, err)
	}
	if got := keys(&Device{}); len(got) != 0 {
		t.Errorf("a device of no fleet: %v", got)
	}
}

// A device's manifests over a random life keep every promise that the link builds on.
func TestNextOverALife(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	device := api.DeviceID{1}
	drawWant := rapid.Custom(func(t *rapid.T) map[string]Want {
		want := map[string]Want{}
		for _, name := range []string{"app/a", "app/b", "config/a", "secret/a", "secret/b"} {
			if !rapid.Bool().Draw(t, name) {
				continue
			}
			n := rapid.IntRange(1, 3).Draw(t, "version")
			switch name[0] {
			case 'a':
				want[name] = Want{Refs: []manifest.Ref{ref(n)}}
			case 'c':
				want[name] = Want{Body: []byte{byte(n)}}
			default:
				want[name] = Want{Plain: []byte{byte(n)}}
			}
		}
		return want
	})
	rapid.Check(t, func(t *rapid.T) {
		var state State
		var history []*manifest.Signed
		epoch, seals := uint64(1), 0
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			if rapid.IntRange(0, 9).Draw(t, "restore") == 0 {
				epoch++
			}
			want := drawWant.Draw(t, "want")
			next, seal, changed := Next(state, epoch, want, func(plain []byte) [32]byte { return sha256.Sum256(plain) })
			if !changed {
				if len(seal) > 0 || !reflect.DeepEqual(next, state) {
					t.Fatal("nothing changed, and yet something did")
				}
				continue
			}
			if next.Generation != state.Generation+1 || next.Epoch != epoch {
				t.Fatalf("generation %d.%d after %d.%d", next.Epoch, next.Generation, state.Epoch, state.Generation)
			}
			for _, k := range seal {
				old, had := state.Items[k]
				item := next.Items[k]
				if had && state.Epoch == epoch && state.Seals[k] == sha256.Sum256(want[k].Plain) {
					t.Fatalf("%s was sealed again though %v is what it was", k, old)
				}
				seals++
				item.Body = append([]byte{byte(seals), byte(seals >> 8)}, want[k].Plain...) // as random as a seal
				next.Items[k] = item
			}
			for k, w := range want {
				if item, ok := next.Items[k]; !ok || w.Plain != nil && !bytes.HasSuffix(item.Body, w.Plain) || w.Plain == nil && (!bytes.Equal(item.Body, w.Body) || !slices.Equal(item.Refs, w.Refs)) {
					t.Fatalf("%s is not what was wanted", k)
				}
			}
			if len(next.Items) != len(want) {
				t.Fatalf("%d items, %d wanted", len(next.Items), len(want))
			}
			signed, err := manifest.Sign(manifest.Manifest{Version: 1, Device: device, Tenant: "t", Name: "n", Epoch: epoch, Generation: next.Generation, Time: time.Now().Unix(), Items: next.Items}, key, nil)
			if err != nil {
				t.Fatal(err)
			}
			// Whatever manifest of this epoch a device holds, the delta leads to the newest.
			for _, base := range history {
				if base.Manifest.Epoch != epoch {
					continue
				}
				delta, ok := signed.Since(base.Manifest.Generation, next.Tombstones)
				if !ok {
					t.Fatalf("no delta from %d to %d", base.Manifest.Generation, next.Generation)
				}
				if got, err := manifest.Apply(base, delta); err != nil || !bytes.Equal(got.Raw, signed.Raw) {
					t.Fatalf("delta from %d to %d: %v", base.Manifest.Generation, next.Generation, err)
				}
			}
			history, state = append(history, signed), next
			if again, _, changed := Next(state, epoch, want, func(plain []byte) [32]byte { return sha256.Sum256(plain) }); changed {
				t.Fatalf("the same again changed it to %+v", again)
			}
		}
	})
}

func TestTombstonesAreBounded(t *testing.T) {
	state, key := State{}, func([]byte) [32]byte { return [32]byte{} }
	for i := range 3 * maxTombstones {
		var changed bool
		if state, _, changed = Next(state, 1, map[string]Want{fmt.Sprint("config/", i): {Body: []byte{1}}}, key); !changed {
			t.Fatal("no change")
		}
		if len(state.Tombstones) > maxTombstones+1 {
			t.Fatalf("%d tombstones", len(state.Tombstones))
		}
	}
	if floor := state.Tombstones[manifest.Floor]; floor < maxTombstones {
		t.Fatalf("floor %d: it forgot without saying so", floor)
	}
}

func TestStatusOf(t *testing.T) {
	before := api.DeviceStatus{ID: api.DeviceID{1}, Hardware: &api.Hardware{Arch: "amd64"}, Version: "old", Addresses: []string{"a"}}
	r := &Report{Parent: "core", Online: true, LastSeen: time.Unix(100, 5), Entries: map[string][]byte{
		"app/web": encode(api.AppStatus{Name: "web", State: api.Running}), "app/bad": {0xff}, "applied": encode([2]uint64{3, 7}), "version": encode("new"),
		"labels": encode(map[string]string{api.Reserved + "arch": "arm64", "role": "admin"}), "health": encode([]api.Warning{{Name: "disk-full"}}), "unknown": {1},
	}}
	s, labels, bad := StatusOf(before, r, 2, 3, 8, []api.Warning{{Name: "manifest-refused"}})
	if s.Version != "new" || s.Hardware.Arch != "amd64" || s.Applied != 7 || s.Desired != 8 || s.Tier != 2 || len(s.Apps) != 2 || len(s.Health) != 2 || !s.Online || s.LastSeen.Unix() != 100 {
		t.Errorf("status %+v", s)
	}
	parts, err := report.Split(api.AppStatus{Name: "split", State: api.Running, Services: []api.ServiceStatus{{Name: "one", State: api.Running}}})
	if err != nil {
		t.Fatal(err)
	}
	if s, _, bad := StatusOf(before, &Report{Entries: parts}, 2, 3, 8, nil); len(bad) > 0 || len(s.Apps) != 1 || s.Apps[0].State != api.Running || len(s.Apps[0].Services) != 1 {
		t.Errorf("an app told in parts: %+v, bad %v", s.Apps, bad)
	}
	if len(labels) != 1 || !slices.Equal(bad, []string{"app/bad"}) {
		t.Errorf("labels %v, bad %v", labels, bad)
	}
	if s, _, _ := StatusOf(before, r, 2, 4, 8, nil); s.Applied != 0 {
		t.Errorf("a generation of an earlier epoch counts as applied: %d", s.Applied)
	}
}

func FuzzStatusOf(f *testing.F) {
	f.Add("health", encode([]api.Warning{{Name: "x"}}))
	f.Add("applied", encode([2]uint64{1, 2}))
	f.Add("app/x", []byte{0xbf, 0xff})
	f.Add("hardware", bytes.Repeat([]byte{0x81}, 1000))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		StatusOf(api.DeviceStatus{}, &Report{Entries: map[string][]byte{key: value}}, 0, 1, 1, nil)
	})
}
