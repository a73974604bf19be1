package pool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/accel/gpud"
)

// disk is a store of which a write may fail, before or after it took hold.
type disk struct {
	kept  map[string][]byte
	left  int // writes until the power goes; negative: it stays
	spoil bool
}

var errCut = errors.New("the power is cut")

func (d *disk) Load(_ string, fn func(key, value []byte) error) error {
	for _, k := range slices.Sorted(maps.Keys(d.kept)) {
		if err := fn([]byte(k), d.kept[k]); err != nil {
			return err
		}
	}
	return nil
}

func (d *disk) Put(_, key string, value []byte) error {
	if d.left == 0 && !d.spoil {
		return errCut
	}
	if len(value) == 0 {
		delete(d.kept, key)
	} else {
		d.kept[key] = slices.Clone(value)
	}
	if d.left == 0 {
		return errCut
	}
	d.left--
	return nil
}

// cards is a driver with cards cut as NVIDIA's are: the profiles and places are those that
// go-nvml's mock tells, and it refuses what a driver refuses.
type cards struct {
	mu       sync.Mutex
	list     []gpud.Card
	samples  []gpud.Sample
	profiles []api.MIGProfile
	keepMode bool  // over a reboot
	mode     error // of changing the MIG mode
	pending  bool  // until a reset
	down     bool  // no gpud answers
	left     int   // calls until gpud is killed, after it did what it was asked; negative: it lives
}

var errDown = &api.Error{Code: api.Unavailable, Message: "gpud does not run"}

func told(t testing.TB, card string) []api.MIGProfile {
	t.Helper()
	raw, err := os.ReadFile("../testdata/told.json")
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]*api.MIG
	if err := json.Unmarshal(raw, &all); err != nil {
		t.Fatal(err)
	}
	return all[card].Profiles
}

func newCards(profiles []api.MIGProfile, n int) *cards {
	d := &cards{profiles: profiles, left: -1}
	for i := range n {
		d.list = append(d.list, gpud.Card{Details: map[string]string{"compute_mode": "Default"}, Accelerator: api.Accelerator{ID: fmt.Sprintf("GPU-%d", i), Vendor: "nvidia", Model: "NVIDIA A100-SXM4-40GB", Driver: "nvidia",
			PCI: fmt.Sprintf("0000:%02x:00.0", 16+i), NUMA: 0, MemoryMiB: 40960, Nodes: []string{fmt.Sprintf("/dev/nvidia%d", i)}, MIG: &api.MIG{}}})
	}
	return d
}

// asked is held by a call; it fails when gpud is gone.
func (d *cards) asked() (func(error) error, error) {
	d.mu.Lock()
	if d.down {
		d.mu.Unlock()
		return nil, errDown
	}
	return func(err error) error {
		if d.left == 0 {
			d.down, err = true, errDown
		}
		d.left--
		d.mu.Unlock()
		return err
	}, nil
}

func (d *cards) card(id string) *api.Accelerator {
	for i := range d.list {
		if d.list[i].Accelerator.ID == id {
			return &d.list[i].Accelerator
		}
	}
	return nil
}

func (d *cards) mig(a *api.Accelerator) *api.MIG {
	m := &api.MIG{Enabled: a.MIG.Enabled, Told: a.MIG.Enabled, Instances: slices.Clone(a.MIG.Instances)}
	for _, p := range d.profiles {
		if !m.Enabled {
			p.Placements = nil
		}
		m.Profiles = append(m.Profiles, p)
	}
	return m
}

func (d *cards) Cards(context.Context) ([]gpud.Card, error) {
	done, err := d.asked()
	if err != nil {
		return nil, err
	}
	var out []gpud.Card
	for _, c := range d.list {
		c.Accelerator.MIG, c.Details = d.mig(&c.Accelerator), maps.Clone(c.Details)
		out = append(out, c)
	}
	return out, done(nil)
}

func (d *cards) Layout(_ context.Context, id string) (*api.MIG, error) {
	done, err := d.asked()
	if err != nil {
		return nil, err
	}
	m := d.mig(d.card(id))
	if err := done(nil); err != nil {
		return nil, err
	}
	return m, nil
}

func (d *cards) Create(_ context.Context, id string, profile int, at api.MIGPlacement) error {
	done, err := d.asked()
	if err != nil {
		return err
	}
	m := d.card(id).MIG
	i := slices.IndexFunc(d.profiles, func(p api.MIGProfile) bool { return p.ID == profile })
	if !m.Enabled || i < 0 || !slices.Contains(d.profiles[i].Placements, at) {
		return done(api.Errorf(api.Invalid, "no such slice"))
	}
	n := 1
	for _, o := range m.Instances {
		if o.Placement.Mask()&at.Mask() != 0 {
			return done(api.Errorf(api.Conflict, "it lies over another"))
		}
		n = max(n, o.ID+1)
	}
	m.Instances = append(m.Instances, api.MIGInstance{UUID: fmt.Sprintf("MIG-%s-%d", id, n), ID: n, Profile: profile, Name: d.profiles[i].Name, Placement: at})
	return done(nil)
}

func (d *cards) Destroy(_ context.Context, id string, instance int) error {
	done, err := d.asked()
	if err != nil {
		return err
	}
	m := d.card(id).MIG
	for i, o := range m.Instances {
		if o.ID != instance {
			continue
		}
		if o.Busy {
			return done(api.Errorf(api.Conflict, "something runs on it"))
		}
		m.Instances = slices.Delete(m.Instances, i, i+1)
		break
	}
	return done(nil)
}

func (d *cards) SetMIG(_ context.Context, id string, on bool) (*api.MIG, error) {
	done, err := d.asked()
	if err != nil {
		return nil, err
	}
	a := d.card(id)
	if len(a.MIG.Instances) > 0 && !on {
		return nil, done(api.Errorf(api.Conflict, "it has slices"))
	}
	if d.mode != nil {
		return nil, done(d.mode)
	}
	a.MIG.Enabled = on && !d.pending
	m := d.mig(a)
	if err := done(nil); err != nil {
		return nil, err
	}
	return m, nil
}

func (d *cards) SetCompute(_ context.Context, id, mode string) error {
	done, err := d.asked()
	if err != nil {
		return err
	}
	for i := range d.list {
		if d.list[i].Accelerator.ID == id {
			d.list[i].Details = map[string]string{"compute_mode": mode}
		}
	}
	return done(nil)
}

func (d *cards) Sample(context.Context) ([]gpud.Sample, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down {
		return nil, errDown
	}
	return slices.Clone(d.samples), nil
}

func (d *cards) reboot() {
	for i := range d.list {
		m := d.list[i].Accelerator.MIG
		m.Instances, m.Enabled = nil, m.Enabled && d.keepMode
		d.list[i].Details = map[string]string{"compute_mode": "Default"}
	}
}

// do changes the driver's world.
func (d *cards) do(fn func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fn()
}

// layout is what a card is cut into, as text.
func (d *cards) layout(i int) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for _, s := range d.list[i].Accelerator.MIG.Instances {
		out = append(out, s.Name+"@"+s.Placement.String())
	}
	slices.Sort(out)
	return fmt.Sprint(d.list[i].Accelerator.MIG.Enabled, out)
}
