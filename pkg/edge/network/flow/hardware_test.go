package flow

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/wait"
)

// needCard makes a simulated card, which takes rules (tests/netdevsim), and gives its interface.
func needCard(t *testing.T) string {
	t.Helper()
	const bus, card = "/sys/bus/netdevsim", "/sys/bus/netdevsim/devices/netdevsim7/net"
	if _, err := os.Stat("/sys/module/netdevsim/parameters/flower_limit"); err != nil || os.Getenv("INSIDE_GUEST") == "" {
		t.Skip("needs a guest with netdevsim that takes rules: run make vmtest RUN=TestFlows")
	}
	if err := os.WriteFile(bus+"/new_device", []byte("7 1"), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.WriteFile(bus+"/del_device", []byte("7"), 0) })
	found, err := filepath.Glob(card + "/*")
	if err != nil || len(found) != 1 {
		t.Fatalf("%v %v", found, err)
	}
	return filepath.Base(found[0])
}

func parameter(t *testing.T, name string, value int) {
	t.Helper()
	if err := os.WriteFile("/sys/module/netdevsim/parameters/"+name, fmt.Append(nil, value), 0); err != nil {
		t.Fatal(err)
	}
}

// A card takes what its table holds; the rest works in software, by name, with the card's words;
// and goes into the card once there is room. What the card counts is told.
func TestHardware(t *testing.T) {
	link := needCard(t)
	parameter(t, "flower_limit", 8)
	parameter(t, "flower_packets", 0)
	ctx, cancel := context.WithCancel(t.Context())
	k := NewKeeper(Config{Notes: &notes{}, Now: time.Now, Look: 100 * time.Millisecond, Retry: 300 * time.Millisecond, Tell: time.Nanosecond, Log: slog.New(slog.DiscardHandler)})
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	set := func(offload string, n int) {
		p := api.FlowPolicySpec{Interface: api.InterfaceSelector{Name: link}, Offload: offload}
		for i := range n {
			p.Rules = append(p.Rules, api.FlowRule{Name: fmt.Sprintf("r%02d", i), Match: api.FlowMatch{Family: "ipv4", Protocol: "udp", DestinationPort: fmt.Sprint(1000 + i)}, Drop: true})
		}
		k.Set(map[string]api.FlowPolicySpec{"p": p})
	}
	stand := func(what string, hardware, software int, ok func([]api.FlowState) bool) {
		t.Helper()
		wait.Seen(t, what, func() (any, bool) {
			states := k.States()
			in := func(state string) (n int) {
				for _, s := range states {
					if s.State == state {
						n++
					}
				}
				return n
			}
			return fmt.Sprint(states, k.Warnings()), in(api.FlowInHardware) == hardware && in(api.FlowInSoftware) == software && len(states) == hardware+software && (ok == nil || ok(states))
		})
	}
	warned := func(text string) bool {
		return slices.ContainsFunc(k.Warnings(), func(w api.Warning) bool { return w.Name == "flow-software" && strings.Contains(w.Message, text) })
	}
	set(api.OffloadPreferred, 3)
	stand("rules in hardware", 3, 0, func([]api.FlowState) bool { return len(k.Warnings()) == 0 })
	parameter(t, "flower_packets", 1000)
	stand("the card's counters", 3, 0, func(s []api.FlowState) bool {
		return s[0].Packets == 1000 && s[0].Hardware == 1000 && s[0].Bytes == 64000
	})
	set(api.OffloadPreferred, 10)
	stand("a full table", 8, 2, func([]api.FlowState) bool { return warned("the table for rules is full") })
	parameter(t, "flower_limit", 20)
	stand("room again", 10, 0, func([]api.FlowState) bool { return len(k.Warnings()) == 0 })
	parameter(t, "flower_limit", 4)
	set(api.OffloadRequired, 6)
	stand("a full table, of rules that the card alone has", 4, 2, func([]api.FlowState) bool { return warned("the table for rules is full") })
	set(api.OffloadOff, 6)
	stand("rules in software", 0, 6, func([]api.FlowState) bool { return len(k.Warnings()) == 0 })
	// A card acts before the kernel: what comes after a rule in software stays there with it, and
	// what no packet of that one can match does not.
	udp := func(name, ports string) []api.FlowRule {
		return []api.FlowRule{{Name: name, Match: api.FlowMatch{Family: "ipv4", Protocol: "udp", DestinationPort: ports}, Drop: true}}
	}
	parameter(t, "flower_limit", 8)
	at := api.InterfaceSelector{Name: link}
	later := api.FlowPolicySpec{Interface: at, Rules: append(udp("wide", "1000-2000"), udp("apart", "3000")...)}
	k.Set(map[string]api.FlowPolicySpec{"later": later})
	stand("all in hardware", 2, 0, nil)
	k.Set(map[string]api.FlowPolicySpec{"first": {Interface: at, Priority: 1, Offload: api.OffloadOff, Rules: udp("narrow", "1500")}, "later": later})
	stand("one behind another", 1, 2, func(s []api.FlowState) bool {
		return warned("rule first/narrow comes before it") && slices.ContainsFunc(s, func(s api.FlowState) bool { return s.Rule == "apart" && s.State == api.FlowInHardware })
	})
	k.Set(map[string]api.FlowPolicySpec{"later": later})
	stand("all in hardware again", 2, 0, func([]api.FlowState) bool { return len(k.Warnings()) == 0 })
	set(api.OffloadPreferred, 0)
	stand("none", 0, 0, nil)
}

// A card that took no rules before takes none when there are none any more, also where the keeper that asked it has ended; one that
// took them goes on.
func TestCardIsGivenBack(t *testing.T) {
	link := needCard(t)
	parameter(t, "flower_limit", 8)
	kernel, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer kernel.Close()
	takes := func() bool {
		on, err := kernel.offload(link)
		if err != nil {
			t.Fatal(err)
		}
		return on
	}
	policy := map[string]api.FlowPolicySpec{"p": {Interface: api.InterfaceSelector{Name: link}, Rules: []api.FlowRule{{Name: "r", Match: api.FlowMatch{Family: "ipv4", Protocol: "udp"}, Drop: true}}}}
	kept := &notes{}
	during := func(policies map[string]api.FlowPolicySpec, what string, ok func(*Keeper) bool) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		k := NewKeeper(Config{Notes: kept, Now: time.Now, Look: 100 * time.Millisecond, Log: slog.New(slog.DiscardHandler)})
		done := make(chan error, 1)
		go func() { done <- k.Run(ctx) }()
		k.Set(policies)
		wait.Seen(t, what, func() (any, bool) { return fmt.Sprint(k.States(), k.Warnings()), ok(k) })
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	inCard := func(k *Keeper) bool { s := k.States(); return len(s) == 1 && s[0].State == api.FlowInHardware }
	for _, found := range []bool{false, true} {
		if err := kernel.AskOffload(link, found); err != nil {
			t.Fatal(err)
		}
		if takes() != found {
			t.Fatalf("the card takes rules: %v", takes())
		}
		during(policy, "a rule in the card", inCard)
		if !takes() {
			t.Error("a rule is in a card that takes none")
		}
		during(nil, "the interface as it was found", func(*Keeper) bool {
			links, err := kernel.Links()
			if err != nil {
				t.Fatal(err)
			}
			_, foreign, err := kernel.Filters(links)
			hooked, herr := kernel.hooked()
			return err == nil && herr == nil && len(foreign) == 0 && len(hooked) == 0 && takes() == found
		})
	}
}
