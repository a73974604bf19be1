package switchdev

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/wait"
)

// policyText is what a person writes; the card is told by the name of its interface.
const policyText = `apiVersion: tributary/v1
kind: NetworkPolicy
metadata: {name: switches}
spec:
  selector: {matchLabels: {role: edge}}
  functions:
    - match: {driver: netdevsim, name: "*"}
      switch:
        mode: switchdev
        inline: transport
        encap: basic
        groups:
          - {name: gold, maxRate: 1000}
        ports:
          - {port: pf0vf0, mac: "02:00:00:00:00:01", roce: true, maxRate: 100, group: gold}
          - {port: pf0vf1, minRate: 10, maxRate: 200, migratable: true, ipsecCrypto: true}
          - {port: pf0sf88, mac: "02:00:00:00:00:88", roce: true, group: gold}
          - {port: pf0sf89, state: inactive}
`

const (
	bus, card = "/sys/bus/netdevsim", "netdevsim/netdevsim8"
	debug     = "/sys/kernel/debug/netdevsim/netdevsim8/"
)

// simulated is a card of the kernel's, that a Keeper looks after by devlink.
type simulated struct {
	*testing.T
	d     *Devlink // to look
	k     *Keeper
	notes memory
	end   func()
}

func simulate(t *testing.T) *simulated {
	if _, err := os.Stat(bus); err != nil || os.Getenv("INSIDE_GUEST") == "" {
		t.Skip("needs a guest with netdevsim: run make vmtest RUN=TestSwitchdev")
	}
	_ = unix.Mount("debugfs", "/sys/kernel/debug", "debugfs", 0, "") // it may be there
	s := &simulated{T: t}
	s.plug()
	t.Cleanup(func() { s.write(bus+"/del_device", "8") })
	d, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	s.d = d
	s.start()
	t.Cleanup(func() { s.end() })
	return s
}

func (s *simulated) write(path, text string) {
	s.Helper()
	if err := os.WriteFile(path, []byte(text), 0); err != nil {
		s.Fatal(err)
	}
}

func (s *simulated) plug() {
	s.write(bus+"/new_device", "8 1")
	s.write(bus+"/devices/netdevsim8/sriov_numvfs", "2")
}

// start is edged's: a keeper that looks by itself only when the kernel says something.
func (s *simulated) start() {
	s.k = NewKeeper(Config{Open: func() (Machine, error) { return Open() }, Notes: &s.notes, Boot: "this one", Look: time.Hour, Now: time.Now, Log: slog.New(slog.NewTextHandler(s.Output(), nil))})
	ctx, cancel := context.WithCancel(s.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.k.Run(ctx) }()
	s.end = func() {
		cancel()
		if err := <-ended; err != nil {
			s.Error(err)
		}
	}
}

func (s *simulated) look() (o Observed, there bool) {
	s.Helper()
	all, err := s.d.Look()
	if err != nil {
		s.Fatal(err)
	}
	i := slices.IndexFunc(all, func(o Observed) bool { return o.Device.Name == card })
	if i < 0 {
		return o, false
	}
	return all[i], true
}

func (s *simulated) warned(name string) string {
	for _, w := range s.k.Warnings() {
		if w.Name == name {
			return w.Message
		}
	}
	return ""
}

// policies are those of the text, as the manifest brings them.
func (s *simulated) policies() []api.FunctionPolicy {
	objects, err := api.Decode([]byte(policyText))
	if err != nil {
		s.Fatal(err)
	}
	var spec api.NetworkPolicySpec
	if err := json.Unmarshal(objects[0].Spec, &spec); err != nil {
		s.Fatal(err)
	}
	return spec.Functions
}

// asWanted waits until the card is as the text says, but for what it refuses.
func (s *simulated) asWanted(after string) {
	s.Helper()
	wait.Seen(s.T, "the card as its policy says, after "+after, func() (any, bool) {
		o, _ := s.look()
		vf0, vf1, sf, off := o.port("pf0vf0"), o.port("pf0vf1"), o.port("pf0sf88"), o.port("pf0sf89")
		if vf0 == nil || vf1 == nil || sf == nil || off == nil {
			return fmt.Sprintf("%+v %+v", o, s.k.Warnings()), false
		}
		ok := o.Device.Mode == Switchdev && o.Device.Inline == "transport" && o.Device.Encap == "basic" &&
			vf0.MAC == "02:00:00:00:00:01" && vf0.Can["roce"] && sf.MAC == "02:00:00:00:00:88" && sf.Active && sf.Attached && sf.Can["roce"] && vf1.Can["migratable"] && !off.Active
		for _, r := range []Rate{{Group: "tributary-gold", Max: 125_000_000}, {Port: vf0.Index, Max: 12_500_000, Parent: "tributary-gold"},
			{Port: vf1.Index, Min: 1_250_000, Max: 25_000_000}, {Port: sf.Index, Parent: "tributary-gold"}} {
			ok = ok && slices.Contains(o.Rates, r)
		}
		return fmt.Sprintf("%+v %+v", o, s.k.Warnings()), ok && strings.Contains(s.warned("switch-failed"), "ability") && s.warned("card-gone") == ""
	})
}

// A simulated card follows a policy: mode, inline and encapsulation modes, addresses and abilities of
// functions, scalable functions, rates and groups; what it cannot is named. That comes again after a
// restart of the keeper, an unplugging and a reset of the driver, and goes with the policy.
func TestCard(t *testing.T) {
	s := simulate(t)
	before, _ := s.look()
	s.k.SetPolicies(s.policies())
	s.asWanted("the first word of it")
	if o, _ := s.look(); o.Representors()["pf0vf0"] == "" || o.Representors()["pf0sf88"] == "" || o.Representors()["p0"] == "" {
		t.Errorf("%+v", o.Representors())
	}
	s.end()
	s.start()
	s.k.SetPolicies(s.policies())
	s.asWanted("a restart")
	if err := s.reload(); err != nil {
		t.Fatal(err)
	}
	s.write(bus+"/devices/netdevsim8/sriov_numvfs", "2") // they went with it
	s.asWanted("a reset of its driver")
	s.write(bus+"/del_device", "8")
	wait.Seen(t, "a warning that it is gone", func() (any, bool) { return s.k.Warnings(), s.warned("card-gone") != "" })
	s.plug()
	s.asWanted("unplugging")
	s.k.SetPolicies(nil)
	wait.Seen(t, "the card as it was found", func() (any, bool) {
		o, _ := s.look()
		return o, o.Device == before.Device && len(o.Ports) == 1 && len(s.k.Warnings()) == 0
	})
}

// reload has the driver begin anew (devlink dev reload).
func (s *simulated) reload() error {
	const cmdReload = 37
	_, err := s.d.request(cmdReload, unix.NLM_F_ACK, card).Execute(unix.NETLINK_GENERIC, 0)
	return err
}

// Firmware that fails, mended by the driver or not, and a driver that does not begin anew are told of,
// soon and by name.
func TestFirmware(t *testing.T) {
	s := simulate(t)
	reporter := func() (r api.HealthReporter) {
		for _, h := range s.k.Health() {
			for _, each := range h.Reporters {
				if h.Card == card && each.Name == "dummy" {
					r = each
				}
			}
		}
		return r
	}
	wait.Seen(t, "its reporter", func() (any, bool) { return s.k.Health(), reporter().Name != "" })
	s.write(debug+"health/break_health", "out of parity")
	wait.Seen(t, "an error that was mended", func() (any, bool) {
		r := reporter()
		return s.k.Health(), r.Errors == 1 && r.Recoveries == 1 && !r.Failed && s.warned("card-failed") == ""
	})
	s.write(debug+"health/fail_recover", "Y")
	_ = os.WriteFile(debug+"health/break_health", []byte("out of parity"), 0) // it tells that it was not mended
	wait.Seen(t, "an error that stays", func() (any, bool) {
		return s.k.Health(), reporter().Failed && strings.Contains(s.warned("card-failed"), "dummy")
	})
	s.write(debug+"health/fail_recover", "N")
	if err := s.recover("dummy"); err != nil {
		t.Fatal(err)
	}
	wait.Seen(t, "a card that is well", func() (any, bool) { return s.k.Health(), s.warned("card-failed") == "" })
	s.write(debug+"fail_reload", "Y")
	if err := s.reload(); err == nil {
		t.Error("the driver begins anew though it fails")
	}
	s.k.Poke() // the kernel does not tell of it
	wait.Seen(t, "a driver that does not begin anew", func() (any, bool) {
		return s.k.Health(), strings.Contains(s.warned("card-failed"), "began anew and failed")
	})
	s.write(debug+"fail_reload", "N")
	if err := s.reload(); err != nil {
		t.Fatal(err)
	}
	wait.Seen(t, "a driver that does", func() (any, bool) { return s.k.Health(), s.warned("card-failed") == "" })
}

// recover has a reporter mend what failed (devlink health recover).
func (s *simulated) recover(name string) error {
	const cmdRecover = 54
	r := s.d.request(cmdRecover, unix.NLM_F_ACK, card)
	r.AddData(nl.NewRtAttr(attrReporterName, nl.ZeroTerminated(name)))
	_, err := r.Execute(unix.NETLINK_GENERIC, 0)
	return err
}
