package switchdev

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// model is a card in memory; it refuses what a card would.
type model struct {
	o      Observed
	absent bool
	vfs    int
	own    bool // each mode has an inline mode of its own, which a change of the mode sets
	did    []string
}

func newModel() *model {
	return &model{vfs: 2, o: Observed{Device: Device{Name: "pci/0000:03:00.0", Mode: Legacy, Inline: "link", Encap: "none"}, Ports: []Port{{Index: 0, Flavour: Physical, Interface: "up0"}}}}
}

func (m *model) Look() ([]Observed, error) {
	if m.absent {
		return nil, nil
	}
	o := m.o
	o.Ports, o.Rates = slices.Clone(o.Ports), slices.Clone(o.Rates)
	return []Observed{o}, nil
}

func (m *model) Changes(context.Context) (<-chan struct{}, error) { return make(chan struct{}), nil }
func (m *model) Close()                                           {}

func (m *model) mode(mode string) error {
	if len(m.o.Device.Mode) == 0 {
		return errors.New("it has no switch")
	}
	m.o.Device.Mode, m.o.Ports, m.o.Rates = mode, m.o.Ports[:1], nil
	if m.own {
		m.o.Device.Inline = map[string]string{Legacy: "link", Switchdev: "network"}[mode]
	}
	for i := range m.vfs {
		if mode == Switchdev {
			m.o.Ports = append(m.o.Ports, Port{Index: uint32(10 + i), Flavour: VF, Function: i, MAC: "00:00:00:00:00:00", Can: map[string]bool{"roce": true, "migratable": false}})
			m.o.Rates = append(m.o.Rates, Rate{Port: uint32(10 + i)})
		}
	}
	return nil
}

func (m *model) Do(_ string, s Step) error {
	m.did = append(m.did, string(s.Do))
	at := slices.IndexFunc(m.o.Ports, func(p Port) bool { return p.Index == s.Port })
	p := &m.o.Ports[max(at, 0)]
	switch s.Do {
	case SetMode:
		return m.mode(s.Value)
	case SetInline:
		m.o.Device.Inline = s.Value
	case SetEncap:
		m.o.Device.Encap = s.Value
	case AddPort:
		p, err := scalable(s.Name)
		p.Index, p.MAC = uint32(1000+p.Function), "00:00:00:00:00:00"
		m.o.Ports, m.o.Rates = append(m.o.Ports, p), append(m.o.Rates, Rate{Port: p.Index})
		return err
	case RemovePort:
		m.o.Ports = slices.Delete(m.o.Ports, at, at+1)
		m.o.Rates = slices.DeleteFunc(m.o.Rates, func(r Rate) bool { return r.Group == "" && r.Port == s.Port })
	case SetMAC:
		p.MAC = s.Value
	case SetCan:
		if _, known := p.Can[s.Value]; !known {
			return errors.New("the card has no " + s.Value)
		}
		can := map[string]bool{}
		for k, v := range p.Can {
			can[k] = v
		}
		can[s.Value], p.Can = s.On, can
	case Activate, Deactivate:
		p.Active = s.Do == Activate
	case AddGroup:
		m.o.Rates = append(m.o.Rates, s.Rate)
	case RemoveGroup:
		if slices.ContainsFunc(m.o.Rates, func(r Rate) bool { return r.Parent == s.Rate.Group }) {
			return errors.New("a group goes with members")
		}
		m.o.Rates = slices.DeleteFunc(m.o.Rates, func(r Rate) bool { return r.Group == s.Rate.Group })
	case SetRate:
		i := slices.IndexFunc(m.o.Rates, func(r Rate) bool { return r.Group == s.Rate.Group && r.Port == s.Rate.Port })
		m.o.Rates[i] = s.Rate
	}
	return nil
}

type memory struct{ b []byte }

func (m *memory) Load() ([]byte, error) { return m.b, nil }
func (m *memory) Save(b []byte) error   { m.b = b; return nil }

// whole is a policy that says all that can be said.
func whole(change string) []api.FunctionPolicy {
	no, ten, zero := false, 10, 0
	return []api.FunctionPolicy{{Match: api.FunctionMatch{Name: "up*"}, Change: change, Switch: &api.SwitchPolicy{Mode: Switchdev, Inline: "transport", Encap: "basic",
		Groups: []api.RateGroup{{Name: "gold", MaxRate: 1000}, {Name: "tin", MinRate: 1}},
		Ports: []api.PortPolicy{{Port: "pf0vf0", MAC: "02:00:00:00:00:01", RoCE: &no, MinRate: &zero, MaxRate: &ten, Group: "gold"}, {Port: "pf0vf1", MaxRate: &ten},
			{Port: "pf0sf88", MAC: "02:00:00:00:00:88", Group: "tin"}, {Port: "pf0sf89", State: api.FunctionOff}}}}}
}

type bench struct {
	*Keeper
	m     *model
	notes memory
	users map[string][]string
	drain []string
	vfs   bool // functions that go only when they are told to
	asked bool
	now   time.Time
}

func newBench(t *testing.T, m *model) *bench {
	b := &bench{m: m, now: time.Unix(1_800_000_000, 0)}
	b.start(t, "one")
	return b
}

func (b *bench) start(t *testing.T, boot string) {
	b.Keeper = NewKeeper(Config{Open: func() (Machine, error) { return b.m, nil }, Notes: &b.notes, Boot: boot, Now: func() time.Time { return b.now }, Log: slog.New(slog.DiscardHandler),
		Facts: func(o *Observed) (string, string, string, string) {
			return "0000:03:00.0", o.Representors()["p0"], "model", "15b3:1019"
		},
		Users: func(string) map[string][]string { return b.users },
		Drain: func(_ context.Context, user, _ string) error {
			b.drain, b.users = append(b.drain, user), nil
			return nil
		},
		Clear: func(_ string, away bool) bool {
			b.asked = away
			return !b.vfs
		}})
	b.Settle(t.Context())
}

func (b *bench) want(t *testing.T, policies []api.FunctionPolicy) {
	b.SetPolicies(policies)
	b.Settle(t.Context())
}

func (b *bench) warned(name string) string {
	for _, w := range b.Warnings() {
		if w.Name == name {
			return w.Message
		}
	}
	return ""
}

// whether the card is as whole says.
func (m *model) whole() bool {
	vf0, sf := m.o.port("pf0vf0"), m.o.port("pf0sf88")
	off := m.o.port("pf0sf89")
	return m.o.Device.Mode == Switchdev && m.o.Device.Inline == "transport" && m.o.Device.Encap == "basic" && vf0 != nil && vf0.MAC == "02:00:00:00:00:01" && !vf0.Can["roce"] &&
		sf != nil && sf.Active && sf.MAC == "02:00:00:00:00:88" && off != nil && !off.Active &&
		slices.Contains(m.o.Rates, Rate{Group: "tributary-gold", Max: 125_000_000}) && slices.Contains(m.o.Rates, Rate{Port: 10, Max: 1_250_000, Parent: "tributary-gold"}) &&
		slices.Contains(m.o.Rates, Rate{Port: 11, Max: 1_250_000}) && slices.Contains(m.o.Rates, Rate{Port: 1088, Parent: "tributary-tin"})
}

// A card is as its policy says, also after a restart, an unplugging and a reset, and as it was
// found when the policy goes.
func TestKeeper(t *testing.T) {
	m := newModel()
	found, _ := m.Look()
	b := newBench(t, m)
	if len(m.did) > 0 {
		t.Errorf("without a policy it does %v", m.did)
	}
	b.want(t, whole(""))
	if !m.whole() || len(b.Warnings()) > 0 {
		t.Fatalf("%+v %v", m.o, b.Warnings())
	}
	m.did = nil
	b.start(t, "one")
	if len(m.did) > 0 {
		t.Errorf("a restart does %v", m.did)
	}
	_ = m.mode(Legacy) // the driver began anew
	b.Settle(t.Context())
	if !m.whole() {
		t.Errorf("after a reset: %+v", m.o)
	}
	m.absent = true
	b.Settle(t.Context())
	if !strings.Contains(b.warned("card-gone"), "pci/0000:03:00.0 is gone") {
		t.Errorf("%v", b.Warnings())
	}
	m.absent, m.o = false, newModel().o
	b.Settle(t.Context())
	if !m.whole() || len(b.Warnings()) > 0 {
		t.Errorf("plugged in again: %+v %v", m.o, b.Warnings())
	}
	less := whole("")
	less[0].Switch.Ports, less[0].Switch.Groups = less[0].Switch.Ports[1:3], less[0].Switch.Groups[1:]
	b.want(t, less)
	if p := m.o.port("pf0vf0"); m.o.port("pf0sf89") != nil || m.o.port("pf0sf88") == nil || !p.Can["roce"] || slices.ContainsFunc(m.o.Rates, func(r Rate) bool { return r.Group == "tributary-gold" }) {
		t.Errorf("with less: %+v", m.o)
	}
	b.want(t, nil)
	if back, _ := m.Look(); !reflect.DeepEqual(back[0].Device, found[0].Device) || len(back[0].Ports) != 1 || len(b.Warnings()) > 0 {
		t.Errorf("put back: %+v %v", back, b.Warnings())
	}
	if strings.Contains(string(b.notes.b), "pci/") {
		t.Errorf("it is still known: %s", b.notes.b)
	}
}

// A mode is not changed under users, who are named, or end first where the policy says so.
func TestUsers(t *testing.T) {
	m := newModel()
	b := newBench(t, m)
	b.users = map[string][]string{"pf0vf1": {"web/a"}}
	b.want(t, whole(""))
	if m.o.Device.Mode != Legacy || !strings.Contains(b.warned("switch-waiting"), "in use by web/a") || b.asked {
		t.Errorf("%+v %v", m.o.Device, b.Warnings())
	}
	b.want(t, whole(api.ChangeDrain))
	if !m.whole() || fmt.Sprint(b.drain) != "[web/a]" {
		t.Errorf("%+v %v", m.o, b.drain)
	}
	b.users = map[string][]string{"pf0vf0": {"web/b"}}
	b.want(t, nil)
	if m.o.Device.Mode != Legacy || fmt.Sprint(b.drain) != "[web/a web/b]" {
		t.Errorf("what the last policy said of changes does not hold for its end: %+v %v %v", m.o.Device, b.drain, b.Warnings())
	}
}

// The virtual functions go before the mode, and come again after it.
func TestClear(t *testing.T) {
	m := newModel()
	b := newBench(t, m)
	b.vfs = true
	b.want(t, whole(""))
	if m.o.Device.Mode != Legacy || !b.asked || !strings.Contains(b.warned("switch-waiting"), "until its virtual functions are gone") {
		t.Errorf("%+v %v", m.o.Device, b.Warnings())
	}
	b.vfs = false
	b.Settle(t.Context())
	if !m.whole() || b.asked {
		t.Errorf("%+v, still asked: %v", m.o, b.asked)
	}
}

// What the card refuses is named, hinders nothing else, and is asked again after a while.
func TestRefused(t *testing.T) {
	m := newModel()
	b := newBench(t, m)
	yes := true
	p := whole("")
	p[0].Switch.Ports[1].IPsecCrypto, p[0].Switch.Ports[2].RoCE = &yes, &yes // the model's scalable functions have none
	b.want(t, p)
	if !m.whole() || !strings.Contains(b.warned("switch-failed"), "the card has no ipsecCrypto") {
		t.Errorf("%+v %v", m.o, b.Warnings())
	}
	m.did = nil
	b.Settle(t.Context())
	if len(m.did) > 0 {
		t.Errorf("asked again at once: %v", m.did)
	}
	b.now = b.now.Add(6 * time.Minute)
	m.o.Ports[2].Can["ipsecCrypto"], m.o.port("pf0sf88").Can = false, map[string]bool{"roce": false}
	b.Settle(t.Context())
	if !m.o.Ports[2].Can["ipsecCrypto"] || !m.o.port("pf0sf88").Can["roce"] || !m.whole() || len(b.Warnings()) > 0 {
		t.Errorf("%+v %v", m.o.Ports[2], b.Warnings())
	}
	m.o.Device.Mode = ""
	b.start(t, "two") // nothing is known of it
	if !strings.Contains(b.warned("switch-waiting"), "has no switch") {
		t.Errorf("%v", b.Warnings())
	}
}

// A card that says of itself that it failed is told of.
func TestHealth(t *testing.T) {
	m := newModel()
	b := newBench(t, m)
	if len(b.Health()) > 0 {
		t.Errorf("%+v", b.Health())
	}
	m.o.Reporters = []Reporter{{Name: "tx", Interface: "up0", Errors: 2, Recoveries: 2}, {Name: "fw", Failed: true, Errors: 1}}
	m.o.Device.Unreloaded = true
	b.Settle(t.Context())
	h := b.Health()
	if len(h) != 1 || !h[0].ResetFailed || h[0].Reporters[0].Name != "fw" || !strings.Contains(b.warned("card-failed"), "not mended: fw") || !strings.Contains(b.warned("card-failed"), "began anew and failed") {
		t.Errorf("%+v %v", h, b.Warnings())
	}
	select {
	case <-b.Changed():
	default:
		t.Error("nobody is told")
	}
	m.o.Reporters[1].Failed, m.o.Device.Unreloaded = false, false
	b.Settle(t.Context())
	if len(b.Warnings()) > 0 {
		t.Errorf("%v", b.Warnings())
	}
}
