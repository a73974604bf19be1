package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/network/switchdev"
	"tributary.dev/tributary/tests/lab"
)

// dpuText is what the owner of a DPU says of the host in which it stands: how its functions are, and what their packets may do.
// A fleet of hosts names the same rules.
const dpuText = `apiVersion: tributary/v1
kind: NetworkPolicy
metadata: {name: host-switch}
spec:
  selector: {matchLabels: {role: dpu}}
  functions:
    - match: {driver: netdevsim, name: "*"}
      switch:
        mode: switchdev
        ports:
          - {port: c1pf0vf0, mac: "02:00:00:00:00:01", maxRate: 100}
---
apiVersion: tributary/v1
kind: FlowPolicy
metadata: {name: tenant}
spec:
  interface: {switchPort: c1pf0vf0}
  rules:
    - {name: spoof, match: {source: 198.51.100.0/24}, drop: true}
    - {name: scans, match: {protocol: tcp, destinationPort: 22-23}, drop: true}
---
apiVersion: tributary/v1
kind: Fleet
metadata: {name: dpus}
spec: {selector: {matchLabels: {role: dpu}}, flowPolicies: [tenant]}
---
apiVersion: tributary/v1
kind: Fleet
metadata: {name: hosts}
spec: {selector: {matchLabels: {role: server}}, flowPolicies: [tenant]}
`

const (
	simulator = "/sys/bus/netdevsim"
	dpuCard   = "netdevsim/netdevsim8"
)

// server is a host with a DPU in it: two boxes, the DPU's edged below the host's.
type server struct {
	hostile
	dpu *lab.Box
	// card: there is a simulated one, which is the DPU's; state is how rules stand at it, or without it.
	card  bool
	state string
}

// TestDPU has a DPU's edged, as a child of its host's, follow a NetworkPolicy and a FlowPolicy at the card's ports that stand for the
// host's functions: down to rules in the card, told by edgectl, where there is a simulated card (make vmtest RUN=TestDPU), and else to
// rules that wait for one. The host's own edged finds no card by the same policy; and whoever owns the host, and plays its relay, alters
// and forges what is meant for the DPU, or ends it, changes nothing there.
func TestDPU(t *testing.T) {
	t.Parallel() // it waits more than it works
	h := newServer(t)
	ctx := t.Context()
	_, err := h.Lab.Edgectl(ctx, dpuText, "apply", "-f", "-")
	must(t, err)
	h.described(ctx, "dpu-1", `tenant +spoof +\S+ +`+h.state, `tenant +scans +\S+ +`+h.state)
	h.described(ctx, "host-1", `tenant +spoof +- +waiting .*no interface is c1pf0vf0`)
	h.switched(ctx)
	if cards := h.cards("host-1"); h.card && len(cards) != 0 {
		t.Errorf("the host reaches the DPU's switch: %+v", cards)
	}
	h.kept(ctx)

	h.relay.KillEdged()
	h.relay.Program, h.relay.EdgedArgs = h.program(ctx), []string{"--seen", h.seen}
	must(t, h.relay.StartEdged(ctx))
	h.done(ctx) // it answers
	h.evil(ctx, "alter")
	fewer := strings.Replace(dpuText, "    - {name: scans, match: {protocol: tcp, destinationPort: 22-23}, drop: true}\n", "", 1)
	_, err = h.Lab.Edgectl(ctx, fewer, "apply", "-f", "-")
	must(t, err)
	h.did(ctx, "alter", 1)
	h.toldLocally(ctx, "dpu-1", "manifest-forged", "")
	h.stands(ctx, "spoof "+h.state, "scans "+h.state)
	h.evil(ctx, "alter", "forge")
	h.did(ctx, "forge", 1)
	h.toldLocally(ctx, "dpu-1", "manifest-forged", "signature")
	h.dpu.KillEdged()
	must(t, h.dpu.StartEdged(ctx))
	h.stands(ctx, "spoof "+h.state, "scans "+h.state)
	h.relay.KillEdged()
	h.dpu.KillEdged()
	must(t, h.dpu.StartEdged(ctx)) // with nobody above
	h.stands(ctx, "spoof "+h.state, "scans "+h.state)
	h.switched(ctx)

	h.relay.Program, h.relay.EdgedArgs = "", nil
	must(t, h.relay.StartEdged(ctx))
	h.stands(ctx, "spoof "+h.state) // the owner's own word, once it comes through
	must(t, online(ctx, h.Story, "host-1", "dpu-1"))
	h.kept(ctx)
	if h.card {
		h.reverts(ctx)
	}
}

// reverts: a policy that cuts the DPU off is taken back, by name, and never comes again; the ones before it hold.
func (h *server) reverts(ctx context.Context) {
	policy := strings.Split(dpuText, "---\n")[1]
	policy = policy[:strings.Index(policy, "    - {name: scans")]
	fleet := strings.Split(dpuText, "---\n")[2]
	cut := strings.NewReplacer("name: tenant", "name: cut", "switchPort: c1pf0vf0", `name: "up*"`, "source: 198.51.100.0/24", "family: ipv4").Replace(policy)
	_, err := h.Lab.Edgectl(ctx, cut+"---\n"+strings.Replace(fleet, "[tenant]", "[tenant, cut]", 1), "apply", "-f", "-")
	must(h.t, err)
	began := time.Now()
	h.stands(ctx, "spoof "+h.state, "spoof software") // that of cut is at a cable of software
	must(h.t, lab.Until(ctx, "the core misses the DPU", h.Wait, func(ctx context.Context) error {
		devices, err := h.Devices(ctx)
		if err == nil && devices["dpu-1"].Status.Online {
			err = errors.New("it is online")
		}
		return err
	}))
	h.toldLocally(ctx, "dpu-1", "flow-reverted", "")
	h.t.Logf("taken back after %.0f s", time.Since(began).Seconds())
	h.stands(ctx, "spoof "+h.state)
	must(h.t, online(ctx, h.Story, "dpu-1"))
	must(h.t, hasWarning(ctx, h.Story, "dpu-1", "flow-reverted"))
	_, err = h.Lab.Edgectl(ctx, fleet, "apply", "-f", "-")
	must(h.t, err)
	must(h.t, noWarning(ctx, h.Story, "dpu-1", "flow-reverted"))
	h.stands(ctx, "spoof "+h.state)
}

func newServer(t *testing.T) *server {
	s := raise(t, []lab.BoxSpec{{Name: "host-1", Parent: "core", Relay: true, Role: "server"}, {Name: "dpu-1", Parent: "host-1", Role: "dpu"}})
	_, err := os.Stat(simulator)
	h := &server{hostile{Story: s, t: t, relay: s.Lab.Boxes["host-1"], seen: filepath.Join(s.Lab.Dir, "seen")}, s.Lab.Boxes["dpu-1"], err == nil && os.Getenv("INSIDE_GUEST") != "", api.FlowWaiting}
	ctx := t.Context()
	if h.card {
		must(t, unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, "")) // edged counts by it
		s.Wait, h.state = 10*time.Minute, api.FlowInHardware               // a trial takes five, and the guest is emulated
		must(t, os.WriteFile("/sys/module/netdevsim/parameters/host_functions", []byte("Y"), 0))
		must(t, within(h.dpu, func() error { return os.WriteFile(simulator+"/new_device", []byte("8 1"), 0) }))
		t.Cleanup(func() { _ = os.WriteFile(simulator+"/del_device", []byte("8"), 0) })
		must(t, os.WriteFile(simulator+"/devices/netdevsim8/sriov_numvfs", []byte("2"), 0))
	}
	must(t, s.Lab.StartCore(ctx))
	must(t, s.Lab.Join(ctx))
	for _, b := range []*lab.Box{h.relay, h.dpu} { // no app runs on them: edged goes on without a containerd
		must(t, errors.Join(os.MkdirAll(b.Dir(), 0o755), os.MkdirAll(b.Run(), 0o755), b.StartEdged(ctx)))
	}
	t.Cleanup(func() {
		for _, b := range []*lab.Box{h.relay, h.dpu} {
			if log, err := os.ReadFile(filepath.Join(b.Dir(), "edged.log")); err == nil && t.Failed() {
				t.Logf("%s: edged runs: %v; the end of its log:\n%s", b.Name, b.EdgedAlive(), log[max(0, len(log)-4000):])
			}
		}
	})
	must(t, online(ctx, s, "host-1", "dpu-1"))
	return h
}

// program is the hostile relay: a guest has it beside the others.
func (h *server) program(ctx context.Context) string {
	h.t.Helper()
	if h.card {
		return filepath.Join(h.Lab.Bin, "hostile")
	}
	return builtHostile(ctx, h.t, h.Root)
}

// within does something in a box's network.
func within(b *lab.Box, do func() error) error {
	_, at, _ := strings.Cut(strings.Join(b.Prefix(), " "), "--net=")
	at, _, _ = strings.Cut(at, " ")
	there, err := os.Open(at)
	if err != nil {
		return err
	}
	defer there.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its network
		err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = do()
		}
		done <- err
	}()
	return <-done
}

// cards are those that a box reaches by devlink.
func (h *server) cards(box string) (all []switchdev.Observed) {
	h.t.Helper()
	if !h.card {
		return nil
	}
	must(h.t, within(h.Lab.Boxes[box], func() error {
		d, err := switchdev.Open()
		if err != nil {
			return err
		}
		defer d.Close()
		all, err = d.Look()
		return err
	}))
	return all
}

// kept waits until the DPU's policies are proven: those are gone back to.
func (h *server) kept(ctx context.Context) {
	h.t.Helper()
	must(h.t, lab.Until(ctx, "the DPU's policies are kept", h.Wait, func(context.Context) error {
		log, err := os.ReadFile(filepath.Join(h.dpu.Dir(), "edged.log"))
		if err != nil {
			return err
		}
		last := ""
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, "flow policies") && strings.Contains(line, "phase") {
				last = line
			}
		}
		if !strings.Contains(last, "kept") {
			return fmt.Errorf("its last word of them is %q", last)
		}
		return nil
	}))
}

// switched waits until the DPU's card is as the policy says.
func (h *server) switched(ctx context.Context) {
	h.t.Helper()
	if !h.card {
		return
	}
	must(h.t, lab.Until(ctx, "the host's function is as the DPU's policy says", h.Wait, func(context.Context) error {
		cards := h.cards("dpu-1")
		for _, c := range cards {
			for _, p := range c.Ports {
				if c.Device.Name == dpuCard && c.Device.Mode == switchdev.Switchdev && p.Name() == "c1pf0vf0" && p.MAC == "02:00:00:00:00:01" {
					return nil
				}
			}
		}
		return fmt.Errorf("%+v", cards)
	}))
}

// described waits until edgectl's page of a device has lines that match.
func (h *server) described(ctx context.Context, box string, lines ...string) {
	h.t.Helper()
	must(h.t, lab.Until(ctx, box+" is described", h.Wait, func(ctx context.Context) error {
		page, err := h.Lab.Edgectl(ctx, "", "describe", "device", box)
		for _, line := range lines {
			if err == nil && !regexp.MustCompile("(?m)"+line).MatchString(page) {
				err = fmt.Errorf("no line %s in:\n%s", line, page)
			}
		}
		return err
	}))
}

// stands waits until the DPU itself tells of these rules, and no others: "name state".
func (h *server) stands(ctx context.Context, want ...string) {
	h.t.Helper()
	must(h.t, lab.Until(ctx, "rules at the DPU", h.Wait, func(ctx context.Context) error {
		raw, err := h.dpu.Local(ctx, "/hardware")
		if err != nil {
			return err
		}
		var seen api.Inventory
		if err := json.Unmarshal(raw, &seen); err != nil {
			return err
		}
		left := map[string]int{}
		for _, w := range want {
			left[w]++
		}
		for _, f := range seen.Flows {
			left[f.Rule+" "+f.State]--
		}
		for _, n := range left {
			if n != 0 {
				return fmt.Errorf("it has %+v, not %v", seen.Flows, want)
			}
		}
		return nil
	}))
}
