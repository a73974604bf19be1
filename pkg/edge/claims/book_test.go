package claims

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

var owner = Owner{App: "app", Service: "service"}

// disk is a store of which a write may fail, before or after it took hold, as in a power
// cut.
type disk struct {
	kept  map[string][]byte
	left  int // operations until the power goes; negative: it stays
	off   bool
	spoil bool // the last write took hold
}

var errCut = errors.New("the power is cut")

func (d *disk) op() (last bool) {
	if d.left == 0 {
		d.off = true
	}
	d.left--
	return d.off
}

func (d *disk) Load(_ string, fn func(key, value []byte) error) error {
	for _, k := range slices.Sorted(maps.Keys(d.kept)) {
		if err := fn([]byte(k), d.kept[k]); err != nil {
			return err
		}
	}
	return nil
}

func (d *disk) Put(_, key string, value []byte) error {
	was := d.off
	if d.op() && (was || !d.spoil) {
		return errCut
	}
	if len(value) == 0 {
		delete(d.kept, key)
	} else {
		d.kept[key] = value
	}
	if d.off {
		return errCut
	}
	return nil
}

// rack has cards that are changed when they are given and found changed after a cut.
type rack struct {
	disk    *disk
	devices []api.Claimable
	changed map[string]bool
	slices  int // that can still be made
	needs   []api.Need
}

func (r *rack) Claimables() []api.Claimable { return r.devices }

func (r *rack) Prepare(_ context.Context, id string, _ int, _ api.Claim) (api.DeviceEdits, error) {
	if r.disk.op() {
		return api.DeviceEdits{}, errCut
	}
	r.changed[id] = true
	return api.DeviceEdits{Env: []string{"CARD=" + id}}, nil
}

func (r *rack) Restore(_ context.Context, id string) error {
	if r.disk.op() {
		return errCut
	}
	delete(r.changed, id)
	return nil
}

func (r *rack) Room() []api.DeviceUse {
	if r.slices == 0 {
		return nil
	}
	return []api.DeviceUse{{Claimable: api.Claimable{Class: api.ClaimVF, ID: "made", NUMA: -1, Units: 1}, Room: r.slices}}
}

func (r *rack) Make(_ context.Context, need api.Need) (bool, error) {
	r.needs = append(r.needs, need)
	if r.slices == 0 || !slices.ContainsFunc(need.Claims, func(c api.Claim) bool { return c.Class == api.ClaimVF }) {
		return false, nil
	}
	r.slices--
	r.devices = append(slices.Clone(r.devices), api.Claimable{Class: api.ClaimVF, ID: fmt.Sprint("made", r.slices), NUMA: -1, Units: 1})
	return true, nil
}

// Over any takes, returns and power cuts no device is in two hands, what is told as held
// is prepared, and when nobody wants anything the box is as it was found.
func TestBookOverPowerCuts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "cdi")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		d := &disk{kept: map[string][]byte{}, left: -1}
		r := &rack{disk: d, changed: map[string]bool{}, slices: rapid.IntRange(0, 2).Draw(t, "slices")}
		for i := range rapid.IntRange(1, 4).Draw(t, "devices") {
			r.devices = append(r.devices, api.Claimable{Class: api.ClaimVF, ID: fmt.Sprint("f", i), NUMA: -1, Units: 1})
		}
		open := func() *Book {
			b, err := Open(d, &Specs{Dir: dir}, slog.New(slog.DiscardHandler), r)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		b := open()
		told := map[Owner][]api.HeldDevice{} // what a Take answered, until it is given back
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			d.left = rapid.IntRange(-1, 12).Draw(t, "cut")
			d.spoil = rapid.Bool().Draw(t, "took hold")
			o := Owner{App: "app", Service: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "service")}
			delete(told, o) // no container of it runs while it asks or is given up
			if rapid.IntRange(0, 2).Draw(t, "what") > 0 {
				h, err := b.Take(t.Context(), o.App, o.Service, []api.Claim{{Class: api.ClaimVF, Count: rapid.IntRange(1, 3).Draw(t, "count")}})
				if err == nil {
					told[o] = h
					for _, g := range h {
						if !r.changed[g.ID] {
							t.Fatalf("%v was not prepared", g)
						}
					}
				}
			} else {
				b.Retain(t.Context(), func(app, service string) bool { return Owner{App: app, Service: service} != o })
			}
			if d.off {
				d.off, d.left = false, -1
				b = open()
			}
			d.left = -1
			check(t, b, told)
		}
		if err := b.Retain(t.Context(), func(_, _ string) bool { return false }); err != nil {
			t.Fatal(err)
		}
		if len(r.changed) > 0 || len(d.kept) > 0 {
			t.Fatalf("left behind: %v %v", r.changed, d.kept)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
			t.Fatalf("specifications stay: %v", left)
		}
	})
}

func check(t *rapid.T, b *Book, told map[Owner][]api.HeldDevice) {
	holder := map[string]Owner{}
	for o, grants := range b.held {
		for _, g := range grants {
			if other, twice := holder[g.ID]; twice {
				t.Fatalf("%s is held by %s and %s", g.ID, o, other)
			}
			holder[g.ID] = o
		}
	}
	for o, grants := range told {
		for _, g := range grants {
			if holder[g.ID] != o {
				t.Fatalf("%s was told to %s and is held by %s", g.ID, o, holder[g.ID])
			}
		}
	}
}

// What is held stays held, and the files for other programs tell of it.
func TestTakeIsTheSameAgain(t *testing.T) {
	d := &disk{kept: map[string][]byte{}, left: -1}
	r := &rack{disk: d, changed: map[string]bool{}, slices: 1, devices: []api.Claimable{{Class: api.ClaimVF, ID: "0000:03:10.0", NUMA: -1, Units: 1}, {Class: api.ClaimVF, ID: "0000:03:10.2", NUMA: -1, Units: 1}}}
	dir := t.TempDir()
	b, err := Open(d, &Specs{Dir: dir}, slog.New(slog.DiscardHandler), r)
	if err != nil {
		t.Fatal(err)
	}
	first, err := b.Take(t.Context(), owner.App, owner.Service, []api.Claim{{Class: api.ClaimVF, Count: 1}})
	if err != nil {
		t.Fatal(err)
	}
	other := Owner{App: "other", Service: "one"}
	if _, err := b.Take(t.Context(), other.App, other.Service, []api.Claim{{Class: api.ClaimVF, Count: 2}}); err != nil {
		t.Fatalf("one was free and one could be made: %v", err)
	}
	b, err = Open(d, &Specs{Dir: dir}, slog.New(slog.DiscardHandler), r)
	if err != nil {
		t.Fatal(err)
	}
	again, err := b.Take(t.Context(), owner.App, owner.Service, []api.Claim{{Class: api.ClaimVF, Count: 1}})
	if err != nil || !reflect.DeepEqual(first, again) {
		t.Fatalf("first %v, then %v, %v", first, again, err)
	}
	var missing *Missing
	if _, err := b.Take(t.Context(), "third", "one", []api.Claim{{Class: api.ClaimVF, Count: 1}}); !errors.As(err, &missing) {
		t.Fatalf("all are held: %v", err)
	}
	uses := b.Uses()
	if len(uses) != 3 || uses[0].Holders[0] != (api.DeviceHolder{App: owner.App, Service: owner.Service, Units: 1}) || uses[1].Holders[0].App != other.App {
		t.Errorf("uses are %+v", uses)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "tributary.dev-vf.json"))
	if err != nil {
		t.Fatal(err)
	}
	var file specFile
	if err := json.Unmarshal(raw, &file); err != nil || file.Kind != "tributary.dev/vf" || file.Devices[0].Name != "0000:03:10.0" {
		t.Errorf("the specification is %s (%v)", raw, err)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte("app/web"), []byte(`[{"claim":0,"class":"gpu","id":"g0","units":1}]`))
	f.Add([]byte("/"), []byte(`[]`))
	f.Fuzz(func(t *testing.T, key, value []byte) {
		owner, grants, err := decode(key, value)
		if err != nil {
			return
		}
		if owner.App == "" || owner.Service == "" || slices.ContainsFunc(grants, func(g Grant) bool { return g.Units < 1 }) {
			t.Errorf("%v %v", owner, grants)
		}
	})
}

// A maker is told all that a service lacks, what others hold and what is to come; and what
// the service held for other claims is back before.
func TestMakersAreToldAll(t *testing.T) {
	d := &disk{kept: map[string][]byte{}, left: -1}
	r := &rack{disk: d, changed: map[string]bool{}, devices: []api.Claimable{{Class: api.ClaimVF, ID: "f0", NUMA: -1, Units: 1, Driver: "a"}, {Class: api.ClaimVF, ID: "f1", NUMA: -1, Units: 1, Driver: "b"}}}
	b, err := Open(d, &Specs{Dir: t.TempDir()}, slog.New(slog.DiscardHandler), r)
	if err != nil {
		t.Fatal(err)
	}
	one := func(driver string, n int) []api.Claim {
		return []api.Claim{{Class: api.ClaimVF, Driver: driver, Count: n}}
	}
	b.Expect(func() map[Owner][]api.Claim {
		return map[Owner][]api.Claim{{App: "app", Service: "a"}: one("a", 1), {App: "app", Service: "b"}: one("b", 1), {App: "app", Service: "c"}: one("c", 2)}
	})
	for service, driver := range map[string]string{"a": "a", "b": "b"} {
		if _, err := b.Take(t.Context(), "app", service, one(driver, 1)); err != nil {
			t.Fatal(err)
		}
	}
	var missing *Missing
	if _, err := b.Take(t.Context(), "app", "a", one("x", 3)); !errors.As(err, &missing) {
		t.Fatalf("got %v", err)
	}
	want := api.Need{Claims: one("x", 3), Held: []string{"f1"}, Expected: slices.Concat(one("c", 1), one("c", 1))}
	if got := r.needs[len(r.needs)-1]; !reflect.DeepEqual(got, want) {
		t.Errorf("the maker is told\n%+v, want\n%+v", got, want)
	}
	if r.changed["f0"] {
		t.Error("what the service held for another claim is not given back")
	}
	if _, err := b.Take(t.Context(), "app", "b", one("b", 2)); !errors.As(err, &missing) {
		t.Fatalf("got %v", err)
	}
	if got := r.needs[len(r.needs)-1]; got.Claims[0].Count != 1 {
		t.Errorf("of two, one of which is held, it lacks %d", got.Claims[0].Count)
	}
}

// A service whose device fails gets another, or holds none while it waits for one; one whose
// device is only not told of now keeps it.
func TestCordonedIsGivenBack(t *testing.T) {
	for _, cordoned := range []bool{true, false} {
		d := &disk{kept: map[string][]byte{}, left: -1}
		r := &rack{disk: d, changed: map[string]bool{}, slices: 1, devices: []api.Claimable{{Class: api.ClaimVF, ID: "f0", NUMA: -1, Units: 1}, {Class: api.ClaimVF, ID: "f1", NUMA: -1, Units: 1}}}
		b, err := Open(d, &Specs{Dir: t.TempDir()}, slog.New(slog.DiscardHandler), r)
		if err != nil {
			t.Fatal(err)
		}
		if u := b.Uses(); len(u) != 3 || u[2].Room != 1 {
			t.Errorf("what there is, and could be made: %+v", u)
		}
		r.slices = 0
		both := []api.Claim{{Class: api.ClaimVF, Count: 2}}
		if _, err := b.Take(t.Context(), "app", "a", both); err != nil {
			t.Fatal(err)
		}
		r.devices = slices.Clone(r.devices)
		r.devices[0].Fault, r.devices[0].Cordoned = "it failed", cordoned
		var missing *Missing
		if _, err := b.Take(t.Context(), "app", "a", both); !errors.As(err, &missing) {
			t.Fatalf("got %v", err)
		}
		if r.changed["f0"] == cordoned || !r.changed["f1"] {
			t.Errorf("cordoned %v: ready are %v", cordoned, r.changed)
		}
		for _, u := range b.Uses() {
			if held := len(u.Holders) > 0; held != (u.ID == "f1" || !cordoned) {
				t.Errorf("cordoned %v: %s is held: %v", cordoned, u.ID, held)
			}
		}
	}
}

// Another edged keeps what its predecessor wrote for devices that are still held, and takes
// out the rest; a file that cannot be read is written anew.
func TestSpecsOutliveEdged(t *testing.T) {
	dir, d := t.TempDir(), &disk{kept: map[string][]byte{}, left: -1}
	r := &rack{disk: d, changed: map[string]bool{}, devices: []api.Claimable{{Class: api.ClaimVF, ID: "f0", NUMA: -1, Units: 1}, {Class: api.ClaimVF, ID: "f1", NUMA: -1, Units: 1}}}
	var b *Book
	begin := func() {
		var err error
		if b, err = Open(d, &Specs{Dir: dir}, slog.New(slog.DiscardHandler), r); err != nil {
			t.Fatal(err)
		}
	}
	take := func(service string) {
		if _, err := b.Take(t.Context(), "app", service, []api.Claim{{Class: api.ClaimVF, Count: 1}}); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "tributary.dev-vf.json")
	holds := func(want ...string) {
		t.Helper()
		var got []string
		for name := range read(path) {
			got = append(got, name)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("the file has %v, want %v", got, want)
		}
	}
	begin()
	take("a")
	begin()
	holds("f0")
	take("b")
	holds("f0", "f1")
	if err := b.Retain(t.Context(), func(_, service string) bool { return service == "a" }); err != nil {
		t.Fatal(err)
	}
	holds("f0")
	delete(d.kept, "app/a")
	begin()
	holds()
	if err := os.WriteFile(path, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	begin()
	take("a")
	holds("f0")
}
