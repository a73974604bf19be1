package sriov

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

// memory is a Store that outlives managers.
type memory struct {
	mu sync.Mutex
	m  map[string][]byte
}

func (s *memory) Load(_ string, fn func(key, value []byte) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, v := range s.m {
		if err := fn([]byte(k), v); err != nil {
			return err
		}
	}
	return nil
}

func (s *memory) Put(_, key string, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[string][]byte{}
	}
	if len(value) == 0 {
		delete(s.m, key)
	} else {
		s.m[key] = slices.Clone(value)
	}
	return nil
}

// machine is the model as a Machine; refuses names what its driver cannot do.
type machine struct {
	*model
	refuses string
	final   bool // it never can
	did     []string
}

func (m *machine) Look() State {
	b := box{model: m.model}
	return b.input(nil).State
}

func (m *machine) Do(s Step) error {
	m.did = append(m.did, s.String())
	if m.refuses != "" && slices.Contains(s.Changed, m.refuses) {
		if m.final {
			return fmt.Errorf("%s %w", m.refuses, errCannot)
		}
		return errors.New("device or resource busy")
	}
	return m.do(s)
}

func manager(t *testing.T, mc Machine, store Store, boot string, more ...func(*Config)) *Manager {
	t.Helper()
	cfg := Config{Machine: mc, Store: store, Boot: boot, Now: time.Now, Log: slog.New(slog.DiscardHandler)}
	for _, f := range more {
		f(&cfg)
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// Policies hold from the first look of a new process on, after a reboot too; when they go,
// the card is as it was found.
func TestPoliciesOutliveRestarts(t *testing.T) {
	mc, store := &machine{model: newModel(1, 1)}, &memory{}
	vlan := 100
	policy := []api.FunctionPolicy{{Match: api.FunctionMatch{Name: "eth0"}, VirtualFunctions: count(3), MTU: 9000, Default: api.VirtualPolicy{VLAN: &vlan, MAC: api.MACStable}}}
	m := manager(t, mc, store, "one")
	m.SetPolicies(policy)
	m.Settle(t.Context())
	check := func(when string) {
		t.Helper()
		c := mc.state.Cards[0]
		if len(c.Functions) != 3 || c.MTU != 9000 || c.Functions[2].VLAN != 100 || c.Functions[2].MAC != StableMAC(c.MAC, 2) || c.Functions[2].Driver != "igbvf" || !c.Probe {
			t.Fatalf("%s: %+v", when, c)
		}
	}
	check("at first")
	mc.did = nil
	m = manager(t, mc, store, "one")
	m.Settle(t.Context())
	if check("a new process"); len(mc.did) != 0 {
		t.Errorf("a new process did %q", mc.did)
	}
	mc.model = newModel(1, 1) // the kernel forgot all
	m = manager(t, mc, store, "two")
	m.Settle(t.Context())
	check("after a reboot")
	m.SetPolicies(nil)
	m.Settle(t.Context())
	if want := newModel(1, 1).state.Cards[0]; len(mc.state.Cards[0].Functions) != 0 || mc.state.Cards[0].MTU != 1500 || !mc.state.Cards[0].Probe || mc.state.Cards[0].Up != want.Up || len(store.m) != 0 {
		t.Errorf("without policies: %+v, kept %v", mc.state.Cards[0], slices.Collect(maps.Keys(store.m)))
	}
}

// Users in the way are named and nothing is done; with drain they end first, and nobody
// gets a function meanwhile.
func TestDrain(t *testing.T) {
	mc, store := &machine{model: newModel(1, 1)}, &memory{}
	held := map[string][]string{}
	var drained []string
	var m *Manager
	use := func(c *Config) {
		c.Holders = func() map[string][]string { return held }
		c.Running = func(string) (bool, bool) { return mc.busy["0000:01:10.1"], true }
		c.Drain = func(_ context.Context, user, _ string) error {
			if fault := m.Claimables()[0].Fault; !strings.Contains(fault, "being changed") {
				t.Errorf("meanwhile others get functions: %q", fault)
			}
			drained = append(drained, user)
			mc.busy["0000:01:10.1"] = false
			return nil
		}
	}
	m = manager(t, mc, store, "one", use)
	policy := api.FunctionPolicy{Match: api.FunctionMatch{Driver: "igb"}, VirtualFunctions: count(2)}
	m.SetPolicies([]api.FunctionPolicy{policy})
	m.Settle(t.Context())
	held["0000:01:10.1"], mc.busy["0000:01:10.1"] = []string{"ran/du"}, true

	policy.VirtualFunctions = count(4)
	m.SetPolicies([]api.FunctionPolicy{policy})
	m.Settle(t.Context())
	w := m.Warnings()
	if len(mc.state.Cards[0].Functions) != 2 || len(w) != 1 || w[0].Name != "network-policy-refused" || !strings.Contains(w[0].Message, "ran/du") || w[0].Remedy == "" || len(drained) != 0 {
		t.Fatalf("%+v, drained %q", w, drained)
	}
	policy.Change = api.ChangeDrain
	m.SetPolicies([]api.FunctionPolicy{policy})
	m.Settle(t.Context())
	if len(mc.state.Cards[0].Functions) != 4 || len(m.Warnings()) != 0 || !slices.Equal(drained, []string{"ran/du"}) || m.Claimables()[0].Fault != "" {
		t.Fatalf("%+v, drained %q, %+v", m.Warnings(), drained, m.Claimables()[0])
	}
}

// A service that does not end is named until it did.
func TestDoesNotEnd(t *testing.T) {
	mc, ends := &machine{model: newModel(1, 1)}, false
	m := manager(t, mc, &memory{}, "one", func(c *Config) {
		c.Holders = func() map[string][]string { return map[string][]string{"0000:01:10.1": {"ran/du"}} }
		c.Running = func(string) (bool, bool) { return mc.busy["0000:01:10.1"], true }
		c.Drain = func(context.Context, string, string) error {
			if !ends {
				return errors.New("its process waits for a disk")
			}
			mc.busy["0000:01:10.1"] = false
			return nil
		}
	})
	settle := func(n int) []api.Warning {
		m.SetPolicies([]api.FunctionPolicy{{Match: api.FunctionMatch{Driver: "igb"}, VirtualFunctions: &n, Change: api.ChangeDrain}})
		m.Settle(t.Context())
		return m.Warnings()
	}
	settle(2)
	mc.busy["0000:01:10.1"] = true
	for range 2 {
		if w := settle(4); len(w) != 1 || w[0].Name != "network-policy-refused" || !strings.Contains(w[0].Message, "ran/du does not end") || w[0].Remedy == "" {
			t.Fatalf("%+v", w)
		}
	}
	ends = true
	if w := settle(4); len(w) != 0 || len(mc.state.Cards[0].Functions) != 4 {
		t.Errorf("%+v, %d functions", w, len(mc.state.Cards[0].Functions))
	}
}

// A process that began anew and does not know yet which containers run takes nothing from
// those that held something before; after a reboot there are none.
func TestUnknownUsersKeepTheirFunctions(t *testing.T) {
	mc, store := &machine{model: newModel(1, 1)}, &memory{}
	held := map[string][]string{"0000:01:10.1": {"ran/du"}}
	known := false
	use := func(c *Config) {
		c.Holders = func() map[string][]string { return held }
		c.Running = func(string) (bool, bool) { return false, known }
	}
	policy := []api.FunctionPolicy{{Match: api.FunctionMatch{Driver: "igb"}, VirtualFunctions: count(2), Default: api.VirtualPolicy{MAC: api.MACStable}}}
	m := manager(t, mc, store, "one", use)
	m.SetPolicies(policy)
	m.Settle(t.Context())
	if len(mc.state.Cards[0].Functions) != 2 || mc.state.Cards[0].Functions[1].Driver != "igbvf" || len(m.Warnings()) != 0 {
		t.Fatalf("at first: %+v %+v", mc.state.Cards[0], m.Warnings())
	}
	policy[0].VirtualFunctions = count(4)
	m = manager(t, mc, store, "one", use)
	m.SetPolicies(policy)
	m.Settle(t.Context())
	if len(mc.state.Cards[0].Functions) != 2 || len(m.Warnings()) != 1 {
		t.Fatalf("while it is not known: %+v %+v", mc.state.Cards[0], m.Warnings())
	}
	known = true
	m.Settle(t.Context())
	if len(mc.state.Cards[0].Functions) != 4 || len(m.Warnings()) != 0 {
		t.Fatalf("once it is known: %+v %+v", mc.state.Cards[0], m.Warnings())
	}
}

// A function whose interface is in a container, though nobody holds it any more, is in use; so is one that was just made
// ready for a container that is still being made.
func TestInUse(t *testing.T) {
	mc, now, away, change := &machine{model: newModel(1, 1)}, time.Now(), map[string]string{}, ""
	m := manager(t, mc, &memory{}, "one", func(c *Config) {
		c.Now = func() time.Time { return now }
		c.Away = func() (map[string]string, error) { return away, nil }
	})
	settle := func(n int) int {
		m.SetPolicies([]api.FunctionPolicy{{Match: api.FunctionMatch{Driver: "igb"}, VirtualFunctions: &n, Change: change}})
		m.Settle(t.Context())
		if w := m.Warnings(); (len(w) == 0) != (len(mc.state.Cards[0].Functions) == n) {
			t.Errorf("%d functions, and it warns of %+v", len(mc.state.Cards[0].Functions), w)
		}
		return len(mc.state.Cards[0].Functions)
	}
	if n := settle(2); n != 2 {
		t.Fatalf("%d functions", n)
	}
	away["0000:01:10.1"] = "du"
	if n := settle(3); n != 2 {
		t.Errorf("with one in a container: %d functions", n)
	}
	change = api.ChangeDrain // and there is nobody to end
	if n := settle(3); n != 2 || !strings.Contains(m.Warnings()[0].Message, "while a container that runs has") {
		t.Errorf("with one in a container, and drain: %d functions, %+v", n, m.Warnings())
	}
	clear(away)
	if n := settle(3); n != 3 {
		t.Errorf("with all at home: %d functions", n)
	}
	if _, err := m.Prepare(t.Context(), "0000:01:10.0", 1, api.Claim{Class: api.ClaimVF}); err != nil {
		t.Fatal(err)
	}
	if n := settle(2); n != 3 {
		t.Errorf("with one made ready: %d functions", n)
	}
	if now = now.Add(preparing); settle(2) != 2 {
		t.Error("what was made ready long ago counts for ever")
	}
}

// What a driver cannot do is told once and not tried for ever; the rest of the policy holds.
func TestRefusedByTheKernel(t *testing.T) {
	mc := &machine{model: newModel(1, 1), refuses: "link", final: true}
	m := manager(t, mc, &memory{}, "one")
	m.SetPolicies([]api.FunctionPolicy{{Match: api.FunctionMatch{Driver: "igb"}, VirtualFunctions: count(1), MTU: 9000, Default: api.VirtualPolicy{Link: "on"}}})
	for range 3 {
		m.Settle(t.Context())
	}
	n := 0
	for _, d := range mc.did {
		if strings.Contains(d, "set [link]") {
			n++
		}
	}
	if w := m.Warnings(); n != 1 || len(w) != 1 || w[0].Name != "network-policy-failed" || !strings.Contains(w[0].Message, "link is nothing") || mc.state.Cards[0].MTU != 9000 || mc.state.Cards[0].Functions[0].Driver != "igbvf" {
		t.Errorf("%d times, %+v, %+v", n, w, mc.state.Cards[0])
	}
}

// What failed is tried again when the card is another (its driver began anew) and after a while, so that a VLAN is put
// back that a driver lost.
func TestFailedIsTriedAgain(t *testing.T) {
	mc, now, vlan := &machine{model: newModel(1, 1), refuses: "vlan"}, time.Now(), 100
	m := manager(t, mc, &memory{}, "one", func(c *Config) { c.Now = func() time.Time { return now } })
	m.SetPolicies([]api.FunctionPolicy{{Match: api.FunctionMatch{Driver: "igb"}, VirtualFunctions: count(1), Default: api.VirtualPolicy{VLAN: &vlan}}})
	settle := func(when string, want int, change func()) {
		t.Helper()
		change()
		m.Settle(t.Context())
		if f := mc.state.Cards[0].Functions[0]; f.VLAN != want || (want == 0) != (len(m.Warnings()) == 1) {
			t.Fatalf("%s: VLAN %d, and it warns of %+v", when, f.VLAN, m.Warnings())
		}
	}
	settle("while it is busy", 0, func() {})
	settle("at once", 0, func() { mc.refuses = "" })
	settle("with another interface", 100, func() { mc.state.Cards[0].Link = 7 })
	settle("busy again", 0, func() { mc.state.Cards[0].Functions[0].VLAN, mc.refuses = 0, "vlan" })
	settle("soon", 0, func() { mc.refuses, now = "", now.Add(tryAgain-time.Second) })
	settle("after a while", 100, func() { now = now.Add(time.Second) })
}

// An interface that others use is theirs: it is not switched off when no function is left, and an MTU that no policy set
// stays as it was set.
func TestOthersUseTheCard(t *testing.T) {
	for _, used := range []bool{false, true} {
		mc, store := &machine{model: newModel(1, 1)}, &memory{}
		m := manager(t, mc, store, "one")
		m.SetPolicies([]api.FunctionPolicy{{Match: api.FunctionMatch{Driver: "igb"}, VirtualFunctions: count(1)}})
		m.Settle(t.Context())
		c := &mc.state.Cards[0]
		if !c.Up {
			t.Fatal("functions have no card that is on")
		}
		c.MTU, c.Used = 9000, used
		m.SetPolicies(nil)
		m.Settle(t.Context())
		if c.Up != used || c.MTU != 9000 || len(store.m) != 0 {
			t.Errorf("used %t: on %t, MTU %d, kept %v", used, c.Up, c.MTU, slices.Collect(maps.Keys(store.m)))
		}
	}
	mc := &machine{model: newModel(1, 1)}
	m := manager(t, mc, &memory{}, "one")
	m.SetPolicies([]api.FunctionPolicy{{Match: api.FunctionMatch{Driver: "igb"}, VirtualFunctions: count(0)}})
	m.Settle(t.Context())
	mc.state.Cards[0].Up = true // it became an uplink, before it has an address
	m.Settle(t.Context())
	if !mc.state.Cards[0].Up {
		t.Error("what others switched on was switched off")
	}
}

// A function of the kernel's is an interface with the network's addresses, one of
// vfio-pci's its group's device file, and a group goes as a whole.
func TestGive(t *testing.T) {
	mc := &machine{model: newModel(1, 2)}
	m := manager(t, mc, &memory{}, "one")
	m.SetPolicies([]api.FunctionPolicy{{Match: api.FunctionMatch{Driver: "igb"}, VirtualFunctions: count(4), Default: api.VirtualPolicy{MTU: 1400},
		Virtual: []api.NumberedFunction{{Index: 2, Set: api.VirtualPolicy{Driver: api.DriverVFIO}}, {Index: 3, Set: api.VirtualPolicy{Driver: api.DriverVFIO}}}}})
	m.Settle(t.Context())
	list := m.Claimables()
	if len(list) != 4 || list[0].Fault != "" || list[1].Fault != "" || list[2].Fault != "" || !strings.Contains(list[3].Fault, "goes with 0000:01:10.2") || list[0].Facts["physical"] != "eth0" || list[0].Parent != "0000:01:00.0" {
		t.Fatalf("%+v", list)
	}
	claim := api.Claim{Class: api.ClaimVF, Count: 1, Options: map[string]string{"network": "front-haul", "interface": "fast0", "range": "192.0.2.0/29 of 192.0.2.0/24", "routes": "0.0.0.0/0 via 192.0.2.1"}}
	for range 2 { // the same again
		e, err := m.Prepare(t.Context(), list[0].ID, 1, claim)
		if err != nil || e.Link == nil || e.Link.Inside != "fast0" || e.Link.MTU != 1400 || !slices.Equal(e.Link.Addresses, []string{"192.0.2.2/24"}) || !slices.Equal(e.Env, []string{"PCIDEVICE_FRONT_HAUL=0000:01:10.0"}) {
			t.Fatalf("%+v %+v %v", e, e.Link, err)
		}
	}
	if e, err := m.Prepare(t.Context(), list[1].ID, 1, claim); err != nil || !slices.Equal(e.Link.Addresses, []string{"192.0.2.3/24"}) {
		t.Fatalf("%+v %v", e.Link, err)
	}
	e, err := m.Prepare(t.Context(), list[2].ID, 1, api.Claim{Class: api.ClaimVF, Count: 1, Driver: api.DriverVFIO})
	if err != nil || e.Link != nil || len(e.Nodes) != 2 || e.Nodes[1].Path != "/dev/vfio/101" || e.Env[0] != "PCIDEVICE_0000_01_10_2=0000:01:10.2,0000:01:10.3" {
		t.Fatalf("%+v %v", e, err)
	}
	if _, err := m.Prepare(t.Context(), list[3].ID, 1, api.Claim{}); err == nil {
		t.Error("half a group was given")
	}
	if _, err := m.Prepare(t.Context(), "0000:09:10.0", 1, claim); err == nil {
		t.Error("what is not there was given")
	}
	if err := m.Restore(t.Context(), list[0].ID); err != nil {
		t.Fatal(err)
	}
	if e, err := m.Prepare(t.Context(), list[1].ID, 1, claim); err != nil || !slices.Equal(e.Link.Addresses, []string{"192.0.2.3/24"}) {
		t.Errorf("the other's address moved: %+v %v", e.Link, err)
	}
}

func TestChoose(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.SampledFrom([]string{"192.0.2.0/29 of 192.0.2.0/24", "192.0.2.248/29 of 192.0.2.0/24", "2001:db8::/120 of 2001:db8::/64", "192.0.2.4/31 of 192.0.2.4/31"}).Draw(t, "range")
		from, network, err := api.ParseRange(text)
		if err != nil {
			t.Fatal(err)
		}
		taken := map[string]bool{}
		for range rapid.IntRange(0, 9).Draw(t, "taken") {
			got, err := Choose(text, "", taken)
			if err != nil {
				break
			}
			a, _, _ := strings.Cut(got, "/")
			if taken[a] || ends(from.Addr(), network) && a == network.Addr().String() || a == "192.0.2.255" {
				t.Fatalf("%s is none, %v are taken", got, taken)
			}
			if again, _ := Choose(text, a, taken); again != got {
				t.Fatalf("%s was had, and %s is given", got, again)
			}
			taken[a] = true
		}
	})
}
