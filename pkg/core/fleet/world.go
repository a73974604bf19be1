package fleet

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/manifest"
)

// worlds holds every tenant's world and devices in memory, and tells which devices a
// change concerns. It belongs to one goroutine.
type worlds struct {
	tenants map[string]*tenant
	byID    map[api.DeviceID]*entry
}

// retire adds all relays, which turn retired devices away.
func (w *worlds) retire(d dirty) {
	for _, e := range w.byID {
		if e.relay {
			d[e] = true
		}
	}
}

// revoked lists the retired devices, sorted. They renew no certificates; one whose object
// is deleted is taken for one whose certificate has ended.
func (w *worlds) revoked() (ids []api.DeviceID) {
	for id, e := range w.byID {
		if e.Spec.Retired {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b api.DeviceID) int { return slices.Compare(a[:], b[:]) })
	return ids
}

type tenant struct {
	World
	devices map[string]*entry
	// unsettled: what expected boxes would run may be another now. firsts is the memory of firstOf.
	unsettled bool
	// unplaced: where placements put their apps may be another now; waits: it will be looked
	// at again in a while. short says why they are on too few devices, by fleet and app.
	unplaced, waits bool
	short           map[string]map[string]string
	firsts          map[string][sha256.Size]byte
	// given is what devices have of each object, and views the worlds of those that have something
	// of their own (revisions.go).
	given map[api.Key]*store.Given
	views map[string]*World
}

// entry is one device with its newest manifest.
type entry struct {
	Device
	// state is the newest manifest's, its bodies and references shared with all devices
	// that have the same. The signed bytes are in the store and with the link.
	state  State
	fleets []string // that pick it, shared between devices
	// own are revisions that this device has by itself.
	own map[api.Key]store.OwnRevision

	// what it reported, as far as sums need it
	parent   string
	boot     string // as it was reported
	relay    bool
	online   bool
	current  bool
	running  []string      // apps, shared between devices
	rejected []string      // apps whose update was, likewise
	warnings []api.Warning // of the core about it
	// told: it said what services can claim, which is uses; usesSum stands for it.
	told    bool
	uses    []api.DeviceUse
	usesSum [sha256.Size]byte
	lacks   []lack
	lacking map[string]time.Time // since when it lacks what an app on it claims
}

// rendered reports whether the device gets manifests.
func (e *entry) rendered() bool { return e.Spec.Approved && !e.Spec.Retired }

func newWorlds() *worlds {
	return &worlds{tenants: map[string]*tenant{}, byID: map[api.DeviceID]*entry{}}
}

func (w *worlds) tenant(name string) *tenant {
	t := w.tenants[name]
	if t == nil {
		t = &tenant{World: World{Fleets: map[string]*api.FleetSpec{}, Apps: map[string]*App{}, Configs: map[string][]byte{}, Secrets: map[string][]byte{}, Flows: map[string][]byte{}, Releases: map[string]Want{}, Images: map[string][32]byte{}, Expected: map[string]Expected{}, Policies: map[string]*api.NetworkPolicySpec{}},
			devices: map[string]*entry{}, given: map[api.Key]*store.Given{}}
		w.tenants[name] = t
	}
	return t
}

// dirty collects devices to render.
type dirty map[*entry]bool

func (d dirty) where(t *tenant, concerned func(*entry) bool) {
	for _, e := range t.devices {
		if concerned(e) {
			d[e] = true
		}
	}
}

// set takes an object in and adds the devices that it concerns.
func (w *worlds) set(o *api.Object, d dirty) error {
	t, name := w.tenant(o.Metadata.Tenant), o.Metadata.Name
	var err error
	switch o.Kind {
	case api.KindFleet:
		err = t.setFleet(name, o, d)
	case api.KindApp:
		err = t.setApp(name, o, d)
	case api.KindConfig:
		var spec api.ConfigSpec
		if err = decode(o.Spec, &spec); err == nil {
			data := api.ConfigData{Env: spec.Env}
			data.Files = toBytes(spec.Files)
			t.setData(t.Configs, name, encode(data), t.usersOf(name, appConfigs), d)
		}
	case api.KindSecret:
		var spec api.SecretSpec
		if err = decode(o.Spec, &spec); err == nil {
			t.setData(t.Secrets, name, encode(api.ConfigData{Files: toBytes(spec.Data)}), t.usersOf(name, appSecrets), d)
		}
	case api.KindFlowPolicy:
		var spec api.FlowPolicySpec
		if err = decode(o.Spec, &spec); err == nil {
			t.setData(t.Flows, name, encode(spec), followersOf(name), d)
		}
	case api.KindRelease:
		err = t.setRelease(name, o, d)
	case api.KindTenant:
		var spec api.TenantSpec
		if err = decode(o.Spec, &spec); err == nil {
			w.tenant(name).setAttest(spec.Attest, d)
		}
	case api.KindExpectedDevice:
		var spec api.ExpectedDeviceSpec
		if err = decode(o.Spec, &spec); err != nil {
			break
		}
		if spec.Voucher == "" {
			t.unsetExpected(name, d)
			break
		}
		sum := sha256.Sum256(append([]byte(o.Metadata.UID+"\x00"+name+"\x00"), o.Spec...)) // one that is made anew is another
		t.setExpected(name, Expected{Serial: spec.Serial, Site: spec.Site, Labels: spec.Labels, Spec: sum}, d)
	case api.KindNetworkPolicy:
		err = t.setPolicy(name, o, d)
	case api.KindDevice:
		err = w.setDevice(t, o, d)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", o.Key(), err)
	}
	return nil
}

func appSecrets(_ *api.FleetSpec, a *App) []string {
	if a != nil {
		return a.Secrets
	}
	return nil
}

func appConfigs(s *api.FleetSpec, a *App) []string {
	if a != nil {
		return a.Configs
	}
	return s.Configs
}

func decode(raw json.RawMessage, into any) error {
	if len(raw) == 0 {
		return nil
	}
	return json.Unmarshal(raw, into)
}

func toBytes(m map[string]string) map[string][]byte {
	if m == nil {
		return nil
	}
	out := make(map[string][]byte, len(m))
	for k, v := range m {
		out[k] = []byte(v)
	}
	return out
}

// setAttest takes in what the tenant wants of all its devices.
func (t *tenant) setAttest(a *api.AttestSpec, d dirty) {
	if !reflect.DeepEqual(t.Attest, a) {
		t.Attest = a
		d.where(t, func(*entry) bool { return true })
	}
}

// setExpected takes in a box that may come by way of a relay.
func (t *tenant) setExpected(name string, next Expected, d dirty) {
	if old, ok := t.Expected[name]; ok && old.Spec == next.Spec {
		return
	}
	t.unsetExpected(name, d)
	next.First = t.firstOf(next.Labels)
	t.Expected[name] = next
	d.where(t, func(e *entry) bool { return e.relay && next.at(e.Spec.Site) })
}

func (t *tenant) unsetExpected(name string, d dirty) {
	if old, ok := t.Expected[name]; ok {
		delete(t.Expected, name)
		d.where(t, func(e *entry) bool { return e.relay && old.at(e.Spec.Site) })
	}
}

func (t *tenant) setFleet(name string, o *api.Object, d dirty) error {
	spec := &api.FleetSpec{}
	if err := decode(o.Spec, spec); err != nil {
		return err
	}
	old := t.Fleets[name]
	if old != nil && reflect.DeepEqual(old, spec) {
		return nil
	}
	t.Fleets[name], t.unsettled, t.unplaced = spec, true, true
	d.where(t, func(e *entry) bool {
		return old != nil && old.Selector.Matches(e.Labels) || spec.Selector.Matches(e.Labels)
	})
	return nil
}

func (t *tenant) setApp(name string, o *api.Object, d dirty) error {
	var status api.AppObjectStatus
	if err := decode(o.Status, &status); err != nil {
		return err
	}
	var app *App
	if status.Bundle != "" {
		app = &App{Refs: []manifest.Ref{{Repo: status.Repo, Digest: status.Bundle, Size: status.Size}}, Configs: status.Configs, Secrets: status.Secrets, Claims: status.Claims}
		for _, i := range status.Images {
			app.Refs = append(app.Refs, manifest.Ref{Repo: i.Repo, Digest: i.Digest, Size: i.Size})
		}
	}
	if reflect.DeepEqual(t.Apps[name], app) {
		return nil
	}
	t.Apps[name], t.unplaced = app, true
	t.touchFleets(func(s *api.FleetSpec) bool { return slices.Contains(s.AllApps(), name) }, d)
	return nil
}

// usersOf tells whether a fleet uses an object, by itself or through its apps.
func (t *tenant) usersOf(name string, names func(*api.FleetSpec, *App) []string) func(*api.FleetSpec) bool {
	return func(s *api.FleetSpec) bool {
		if slices.Contains(names(s, nil), name) {
			return true
		}
		for _, app := range s.AllApps() {
			if a := t.Apps[app]; a != nil && slices.Contains(names(s, a), name) {
				return true
			}
		}
		return false
	}
}

// followersOf tells whether a fleet names a flow policy.
func followersOf(name string) func(*api.FleetSpec) bool {
	return func(s *api.FleetSpec) bool { return slices.Contains(s.FlowPolicies, name) }
}

func (t *tenant) setData(in map[string][]byte, name string, data []byte, users func(*api.FleetSpec) bool, d dirty) {
	if old, ok := in[name]; ok && string(old) == string(data) {
		return
	}
	in[name] = data
	t.touchFleets(users, d)
}

func (t *tenant) touchFleets(which func(*api.FleetSpec) bool, d dirty) {
	for _, s := range t.Fleets {
		if which(s) {
			t.unsettled = true
			d.where(t, func(e *entry) bool { return s.Selector.Matches(e.Labels) })
		}
	}
}

func (w *worlds) setDevice(t *tenant, o *api.Object, d dirty) error {
	next := Device{Tenant: o.Metadata.Tenant, Name: o.Metadata.Name, Labels: o.Metadata.Labels}
	if err := decode(o.Spec, &next.Spec); err != nil {
		return err
	}
	e := t.devices[next.Name]
	t.unplaced = true
	if e == nil {
		var status api.DeviceStatus
		if err := decode(o.Status, &status); err != nil {
			return err
		}
		if status.ID.IsZero() {
			return nil // not enrolled: nothing to render for
		}
		e = w.byID[status.ID] // its manifest may be known from an earlier run
		if e == nil {
			e = &entry{}
			w.byID[status.ID] = e
		}
		next.ID = status.ID
		next.Placed = e.Placed
		e.Device, t.devices[next.Name] = next, e
		e.own = t.ownOf(next.ID)
		e.relay = e.relay || status.Relay
		d[e] = true
		if next.Spec.Retired {
			w.retire(d)
		}
		return nil
	}
	next.ID, next.Placed = e.ID, e.Placed
	if !maps.Equal(e.Labels, next.Labels) || !reflect.DeepEqual(e.Spec, next.Spec) {
		retired := e.Spec.Retired != next.Spec.Retired
		e.Device = next
		d[e] = true
		if retired {
			w.retire(d)
		}
	}
	return nil
}

// unset takes an object out and adds the devices that this concerns. A device that goes
// is returned.
func (w *worlds) unset(key api.Key, d dirty) *entry {
	t := w.tenant(key.Tenant)
	switch key.Kind {
	case api.KindFleet:
		if old := t.Fleets[key.Name]; old != nil {
			delete(t.Fleets, key.Name)
			t.unsettled, t.unplaced = true, true
			d.where(t, func(e *entry) bool { return old.Selector.Matches(e.Labels) })
		}
	case api.KindApp:
		delete(t.Apps, key.Name)
		t.unplaced = true
		t.touchFleets(func(s *api.FleetSpec) bool { return slices.Contains(s.AllApps(), key.Name) }, d)
	case api.KindTenant:
		w.tenant(key.Name).setAttest(nil, d)
	case api.KindRelease:
		t.dropRelease(key.Name)
		t.touchFleets(func(s *api.FleetSpec) bool { return s.Release == key.Name }, d)
	case api.KindExpectedDevice:
		t.unsetExpected(key.Name, d)
	case api.KindNetworkPolicy:
		t.unsetPolicy(key.Name, d)
	case api.KindFlowPolicy:
		delete(t.Flows, key.Name)
		t.touchFleets(followersOf(key.Name), d)
	case api.KindConfig:
		delete(t.Configs, key.Name)
		t.touchFleets(t.usersOf(key.Name, appConfigs), d)
	case api.KindSecret:
		delete(t.Secrets, key.Name)
		t.touchFleets(t.usersOf(key.Name, appSecrets), d)
	case api.KindDevice:
		if e := t.devices[key.Name]; e != nil {
			delete(t.devices, key.Name)
			t.unplaced = true
			delete(w.byID, e.ID)
			delete(d, e)
			if e.Spec.Retired {
				w.retire(d)
			}
			return e
		}
	}
	return nil
}
