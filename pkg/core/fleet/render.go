// Package fleet answers: what shall each device run, and how far is it there?
//
// Down: it renders fleets, apps, configs and secrets into one manifest per device,
// numbers it, seals, signs, keeps and publishes it, for those devices alone that a
// change concerns. Up: it turns what devices reported into their status and their
// fleets'.
package fleet

import (
	"cmp"
	"crypto/sha256"
	"maps"
	"reflect"
	"slices"

	"github.com/fxamacker/cbor/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/manifest"
)

// Device is what rendering reads of a Device object.
type Device struct {
	ID           api.DeviceID
	Tenant, Name string
	Labels       map[string]string
	Spec         api.DeviceSpec
	// Placed are apps that its fleets put on it and on some others.
	Placed []string
}

// World is what one tenant has, ready for rendering.
type World struct {
	Attest  *api.AttestSpec // what the tenant wants of all its devices
	Fleets  map[string]*api.FleetSpec
	Apps    map[string]*App
	Configs map[string][]byte // CBOR api.ConfigData, deterministic
	Secrets map[string][]byte // the same, in the clear: in memory only
	Flows   map[string][]byte // CBOR api.FlowPolicySpec, deterministic
	// Releases are items as they go into manifests, and Images what their devices' TPMs show: for a family of boxes by
	// name and family (releases.go), for all others by name.
	Releases map[string]Want
	Images   map[string][32]byte
	// Expected are boxes that a relay can greet while the core is away: those with a voucher.
	Expected map[string]Expected
	// Policies are those of network cards.
	Policies map[string]*api.NetworkPolicySpec
}

// Expected is what rendering reads of an ExpectedDevice object.
type Expected struct {
	Serial string
	Site   string // empty: it may come anywhere
	Labels map[string]string
	// Spec stands for all that people say of the box, First for what its fleets have it run at first.
	Spec, First [sha256.Size]byte
}

// Awaited names the boxes that may come to a site, for its relays; nil when none may. Of what they are told it
// says only whether that is still the same.
func (w *World) Awaited(site string) []byte {
	h, any := sha256.New(), false
	for _, name := range slices.Sorted(maps.Keys(w.Expected)) {
		if e := w.Expected[name]; e.at(site) {
			any = true
			h.Write(e.Spec[:])
			h.Write(e.First[:])
		}
	}
	if !any {
		return nil
	}
	return encode(h.Sum(nil)[:8])
}

func (e Expected) at(site string) bool { return e.Site == "" || e.Site == site }

// App is what rendering reads of an App object.
type App struct {
	Refs             []manifest.Ref // the bundle, then the images
	Configs, Secrets []string       // names that its file refers to
	Claims           map[string][]api.Claim
}

// Want is one item before it has a generation. Of Body and Plain at most one is set;
// Plain is to be sealed to the device.
type Want struct {
	Refs  []manifest.Ref
	Body  []byte
	Plain []byte
	// Keep leaves the item as the device has it, whatever Plain is now.
	Keep bool
}

// Selected lists the fleets that pick a device, by name.
func (w *World) Selected(labels map[string]string) []string {
	var names []string
	for name, spec := range w.Fleets {
		if spec.Selector.Matches(labels) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Desire renders one device's items from the fleets that pick it. What a fleet names and
// does not exist is left out. A secret goes only to a device that
// has an app which refers to it; a config also to one whose fleet lists it.
func Desire(d *Device, w *World, fleets []string) map[string]Want {
	want := map[string]Want{}
	addConfig := func(name string) {
		if body, ok := w.Configs[name]; ok {
			want[manifest.PrefixConfig+name] = Want{Body: body}
		}
	}
	var settings *api.DeviceSettings
	for _, name := range fleets {
		spec := w.Fleets[name]
		for _, app := range spec.AllApps() {
			a := w.Apps[app]
			if !slices.Contains(spec.Apps, app) && !slices.Contains(d.Placed, app) {
				continue
			}
			if a == nil {
				continue
			}
			want[manifest.PrefixApp+app] = Want{Refs: a.Refs}
			for _, c := range a.Configs {
				addConfig(c)
			}
			for _, s := range a.Secrets {
				if plain, ok := w.Secrets[s]; ok {
					want[manifest.PrefixSecret+s] = Want{Plain: plain}
				}
			}
		}
		for _, c := range spec.Configs {
			addConfig(c)
		}
		for _, p := range spec.FlowPolicies {
			if body, ok := w.Flows[p]; ok {
				want[manifest.PrefixFlow+p] = Want{Body: body}
			}
		}
		settings = overlay(settings, spec.Settings)
		// Of two fleets that name one, the first by name wins, as with settings.
		if r, ok := w.ReleaseFor(spec.Release, d.Labels); ok {
			if _, have := want[manifest.KeyRelease]; !have {
				want[manifest.KeyRelease] = r
			}
		}
	}
	// The device's own settings come before its fleets'.
	if settings = overlay(d.Spec.Settings, settings); settings != nil && !reflect.DeepEqual(*settings, api.DeviceSettings{}) {
		want[manifest.KeyDevice] = Want{Body: encode(settings)}
	}
	if p := w.policiesOf(d.Labels); len(p) > 0 {
		want[manifest.KeyNetwork] = Want{Body: encode(p)}
	}
	if len(d.Spec.Parents) > 0 {
		want[manifest.KeyParents] = Want{Body: encode(d.Spec.Parents)}
	}
	return want
}

// overlay fills what a leaves unset from b; of two fleets the first by name wins.
func overlay(a, b *api.DeviceSettings) *api.DeviceSettings {
	if a == nil {
		return b
	}
	if b == nil {
		return a
	}
	return &api.DeviceSettings{
		MeterInterval:        cmp.Or(a.MeterInterval, b.MeterInterval),
		HealthInterval:       cmp.Or(a.HealthInterval, b.HealthInterval),
		VitalsInterval:       cmp.Or(a.VitalsInterval, b.VitalsInterval),
		SpoolBytes:           cmp.Or(a.SpoolBytes, b.SpoolBytes),
		CacheBytes:           cmp.Or(a.CacheBytes, b.CacheBytes),
		UpdateHours:          cmp.Or(a.UpdateHours, b.UpdateHours),
		UpdateBytesPerSecond: cmp.Or(a.UpdateBytesPerSecond, b.UpdateBytesPerSecond),
		Accelerators:         either(a.Accelerators, b.Accelerators),
		Uncordon:             either(a.Uncordon, b.Uncordon),
	}
}

func either[T any](a, b []T) []T {
	if len(a) > 0 {
		return a
	}
	return b
}

// State is a device's newest manifest, as far as the next one depends on it.
type State struct {
	Epoch, Generation uint64
	Items             map[string]manifest.Item
	// Tombstones tells when an item was removed; see manifest.Signed.Since.
	Tombstones map[string]uint64
	// Seals holds a hash of what was sealed, and to whom.
	Seals map[string][32]byte
}

// maxTombstones bounds the removals that are remembered; past it the older half goes,
// and devices that were away for longer fetch the whole manifest.
const maxTombstones = 256

// Next numbers what a device shall have now. seal lists the items whose Body is yet to be
// sealed from want's Plain (their Gen is the new generation). changed is false when
// nothing has to be signed; next is then prev. fingerprint names what a Plain is sealed
// as: it covers the recipient's key. A new epoch renews every item: nothing that was
// signed in the old one is a base for deltas.
func Next(prev State, epoch uint64, want map[string]Want, fingerprint func(plain []byte) [32]byte) (next State, seal []string, changed bool) {
	gen := prev.Generation + 1
	fresh := prev.Generation == 0 || prev.Epoch != epoch
	next = State{Epoch: epoch, Generation: gen, Items: make(map[string]manifest.Item, len(want)), Tombstones: map[string]uint64{}, Seals: map[string][32]byte{}}
	if fresh {
		changed = true
		next.Tombstones[manifest.Floor] = gen
	} else {
		maps.Copy(next.Tombstones, prev.Tombstones)
	}
	for key, w := range want {
		old, had := prev.Items[key]
		same := had && !fresh
		if w.Keep && same {
			next.Seals[key] = prev.Seals[key]
		} else if w.Plain != nil {
			hash := fingerprint(w.Plain)
			same = same && prev.Seals[key] == hash
			next.Seals[key] = hash
			if !same {
				seal = append(seal, key)
			}
		} else {
			same = same && slices.Equal(old.Refs, w.Refs) && string(old.Body) == string(w.Body)
		}
		if same {
			next.Items[key] = old
		} else {
			next.Items[key] = manifest.Item{Gen: gen, Refs: w.Refs, Body: w.Body}
			changed = true
		}
		delete(next.Tombstones, key)
	}
	for key := range prev.Items {
		if _, still := want[key]; !still && !fresh {
			next.Tombstones[key] = gen
			changed = true
		}
	}
	if !changed {
		return prev, nil, false
	}
	prune(next.Tombstones)
	slices.Sort(seal)
	return next, seal, true
}

// prune forgets the older half of too many tombstones, and raises the floor to the
// newest that it forgot.
func prune(tombstones map[string]uint64) {
	if len(tombstones) <= maxTombstones {
		return
	}
	gens := slices.Sorted(maps.Values(tombstones))
	floor := max(gens[len(gens)/2], tombstones[manifest.Floor])
	maps.DeleteFunc(tombstones, func(_ string, gen uint64) bool { return gen <= floor })
	tombstones[manifest.Floor] = floor
}

var encMode = func() cbor.EncMode {
	m, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(err) // options that are constants of the library
	}
	return m
}()

// encode writes deterministic CBOR, so that equal content is equal bytes.
func encode(v any) []byte {
	b, err := encMode.Marshal(v)
	if err != nil {
		panic(err) // only plain types of pkg/api come here
	}
	return b
}
