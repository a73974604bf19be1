package machines

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/image/build"
	"tributary.dev/tributary/image/initramfs"
	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/ptp"
	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/vm"
)

// clockBound is how far off a follower of TestClocks may be. Its timestamps are taken by the kernel of an emulated
// machine: between the frame and the stamp lie the emulator's own thread, the host's scheduler and an emulated
// interrupt, on processors that other tests use as well: where these had the right of way, single readings were 0.4 s
// off, and a minute of them 63 ms (root mean square). It says that the clock was set and is held, and nothing of how
// exact hardware is.
const clockBound = 50 * time.Millisecond

// TestClocks has two guests, connected by a cable, keep the time by linuxptp as edged has it run, with software
// timestamps. The follower starts a day ahead, and somebody sets its clock off by seconds and by a day while PTP keeps
// it: each time it comes back to the leader's, by the word of PTP and by what both answer when they are asked for the
// time. The leader goes away, which is a warning that ends when it is back.
func TestClocks(t *testing.T) {
	if os.Getenv("TRIBUTARY_VMTEST") != "1" {
		t.Skip("boots machines: run make vmtest")
	}
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	k := newClocks(t, ctx)
	lead := func() *clockGuest { return k.start("leader", "leader\n", "server=on", time.Time{}) }
	leader := lead()
	follower := k.start("follower", fmt.Sprintf("follower\n%d\n", clockBound), "server=off,reconnect-ms=500", time.Now().Add(24*time.Hour))
	if off := follower.off(leader); (off - 24*time.Hour).Abs() > time.Minute {
		t.Errorf("at its start it is %v off: nothing was tried", off)
	}
	follower.lock(leader, "a day ahead at its start")
	for _, seconds := range []int{5, -86400} {
		follower.ask(fmt.Sprintf("set %d", seconds), "set", nil)
		if off := follower.off(leader); (off - time.Duration(seconds)*time.Second).Abs() > time.Second {
			t.Errorf("set off by %d s it is %v off: nothing was tried", seconds, off)
		}
		follower.lock(leader, fmt.Sprintf("set off by %d s", seconds))
	}
	follower.tells()
	if err := leader.m.Close(); err != nil {
		t.Error(err)
	}
	follower.until("without a leader it warns", func(s clockSaid) bool {
		return !s.Locked && s.Holds && len(s.Warnings) == 1 && s.Warnings[0].Name == "ptp-unlocked"
	})
	leader = lead()
	follower.lock(leader, "the leader is back")
	for _, g := range []*clockGuest{leader, follower} {
		if err := g.m.Send("off\n"); err != nil {
			t.Fatal(err)
		}
		expect(t, ctx, g.m, `inside: ended 0`)
	}
}

// TestClocksImage builds an image whose profile keeps the time by PTP, and has a box of it join a core, with a leader at the
// other end of a cable. linuxptp runs there, sets the clock and says how far off it is; without the leader the core shows
// a warning, which ends when the leader is back.
func TestClocksImage(t *testing.T) {
	needImage(t, "amd64")
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	top, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	profile, err := hwprofiles.Load(Profiles["amd64"])
	if err != nil {
		t.Fatal(err)
	}
	profile.Modules = append(slices.Clone(profile.Modules), "ptp")
	profile.PTP = &hwprofiles.PTP{Interfaces: []string{"eth2"}, Domain: 24, Timestamping: "software", BoundNS: int64(clockBound)}
	built := t.TempDir()
	if _, err := build.Build(ctx, build.Config{Root: top, Profile: profile, Version: "ptp", Counter: 1, Time: time.Now().Add(-time.Hour), Out: filepath.Join(built, profile.Name), Quick: true, Log: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	k := newClocks(t, ctx)
	_, tree := raiseFrom(t, ctx, built, BoxSpec{Name: "box", Arch: "amd64", Parent: "core", Role: "field",
		Extra: []string{"-netdev", k.end("server=off,reconnect-ms=500"), "-device", "virtio-net-pci,netdev=cable,romfile=,mac=" + vm.MAC("box", 2)}})
	shows := func(what string, locked, warned bool) {
		t.Helper()
		began := time.Now()
		err := lab.Until(ctx, what, 2*patience, func(ctx context.Context) error {
			text, err := tree.Box("box").Local(ctx, "/metrics")
			if err != nil {
				return err
			}
			metrics := strings.Join(regexp.MustCompile(`(?m)^edged_ptp_\S+ \S+$`).FindAllString(string(text), -1), ", ")
			if strings.Contains(metrics, "edged_ptp_locked 1") != locked || !strings.Contains(metrics, "edged_ptp_offset_seconds ") {
				return errors.New(metrics)
			}
			out, err := tree.Edgectl(ctx, "", "describe", "device", "box")
			if err == nil && (strings.Contains(out, "ptp-unlocked") != warned || strings.Contains(out, "ptp-offset") || strings.Contains(out, "ptp-not-running")) {
				err = errors.New(out)
			}
			if err == nil {
				t.Logf("%s, after %v: %s", what, time.Since(began).Round(100*time.Millisecond), metrics)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	shows("nobody gives the time", false, true)
	leader := k.start("leader", "leader\n", "server=on", time.Time{})
	shows("it follows the leader", true, false)
	if err := leader.m.Close(); err != nil {
		t.Error(err)
	}
	shows("the leader is gone", false, true)
	k.start("leader", "leader\n", "server=on", time.Time{})
	shows("the leader is back", true, false)
}

// clocks is what machines that give or take the time start from, and the cable between two of them.
type clocks struct {
	t      *testing.T
	ctx    context.Context
	kernel []byte
	files  []initramfs.File
	cable  string
}

func newClocks(t *testing.T, ctx context.Context) *clocks {
	t.Helper()
	kernel, files := debianOf(t, ctx, "amd64", []string{"virtio_pci", "virtio_net"}, "kernel-full", "modules-ptp")
	files = append(files, initramfs.File{Path: "init", Mode: 0o755, Data: compiled(t, "build", "./inside")}, initramfs.File{Path: "clocks", Mode: 0o755, Data: compiled(t, "build", "./clocks")})
	return &clocks{t, ctx, kernel, files, filepath.Join(t.TempDir(), "cable")}
}

// end is one end of the cable; one is the server.
func (k *clocks) end(way string) string {
	return "stream,id=cable,addr.type=unix,addr.path=" + k.cable + "," + way
}

func (k *clocks) start(name, args, way string, clock time.Time) *clockGuest {
	k.t.Helper()
	image, initrd := onDisk(k.t, k.kernel, append(k.files, initramfs.File{Path: "run.txt", Mode: 0o644, Data: []byte("/clocks\n" + args)}))
	m := power(k.t, k.ctx, vm.Spec{Name: "clocks-" + name, Arch: "amd64", MemoryMiB: 512, Kernel: image, Initrd: initrd, NoReboot: true, Life: 4 * patience, Clock: clock,
		Cmdline: vm.SerialCmdline("amd64") + " quiet net.ifnames=0", Extra: []string{"-netdev", k.end(way), "-device", "virtio-net-pci,netdev=cable,romfile=,mac=" + vm.MAC("clocks-"+name, 0)}})
	expect(k.t, k.ctx, m, `clocks: ready`)
	return &clockGuest{k.t, k.ctx, m}
}

// clockGuest is a machine that gives or takes the time.
type clockGuest struct {
	t   *testing.T
	ctx context.Context
	m   *vm.Machine
}

// clockSaid is what it says of itself.
type clockSaid struct {
	Clock         int64
	Reading       ptp.Reading
	Locked, Holds bool
	Warnings      []api.Warning
}

// ask sends a line, and reads what is said to it.
func (g *clockGuest) ask(line, what string, into any) {
	g.t.Helper()
	if err := g.m.Send(line + "\n"); err != nil {
		g.t.Fatal(err)
	}
	found, err := g.m.Expect(g.ctx, `clocks: (?:`+what+`(?: (\{.*\})\.)?|failed: .*)\r?\n`)
	if err != nil || strings.Contains(found[0], "failed") {
		g.t.Fatal(found, err)
	}
	if into == nil {
		return
	}
	if err := json.Unmarshal([]byte(found[1]), into); err != nil {
		g.t.Fatal(err)
	}
}

func (g *clockGuest) say() (s clockSaid) {
	g.t.Helper()
	g.ask("say", "said", &s)
	return s
}

// off is how far its clock is from another's, as exactly as a question over a serial line is.
func (g *clockGuest) off(other *clockGuest) time.Duration {
	g.t.Helper()
	began := time.Now()
	mine := g.say().Clock
	middle := time.Now()
	theirs := other.say().Clock
	return time.Duration(mine-theirs) + (time.Since(began) - middle.Sub(began)/2 - time.Since(middle)/2)
}

// until waits until what it says is as wanted.
func (g *clockGuest) until(what string, ok func(clockSaid) bool) {
	g.t.Helper()
	began := time.Now()
	err := lab.Until(g.ctx, what, 2*patience, func(context.Context) error {
		if s := g.say(); !ok(s) {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Logf("%s: seen after %v", what, time.Since(began).Round(100*time.Millisecond))
}

// tells waits for a KPI of some readings that is within the bound. An emulated machine that waits for its host's processor is
// further off meanwhile, or hears nobody for the 0.4 s that a leader is waited for: then the next one counts.
func (g *clockGuest) tells() {
	g.t.Helper()
	var kpi api.KPI
	err := lab.Until(g.ctx, "the KPI is within the bound", 2*patience, func(ctx context.Context) error {
		g.ask("kpi", "kpi", &kpi) // what was before
		read, last := 0, int64(0)
		err := lab.Until(ctx, "it is read for a while", patience, func(context.Context) error {
			if s := g.say(); s.Reading.OffsetNS != last {
				read, last = read+1, s.Reading.OffsetNS
			}
			if read < 20 {
				return fmt.Errorf("%d readings", read)
			}
			return nil
		})
		if err != nil {
			return err
		}
		g.ask("kpi", "kpi", &kpi)
		g.t.Logf("%d readings, %d missing, from %v to %v, mean %v, root mean square %v", kpi.Count, kpi.Missing, time.Duration(kpi.Min), time.Duration(kpi.Max), time.Duration(kpi.Mean), time.Duration(kpi.RMS))
		if kpi.Name != "ptp.offset" || kpi.Count < 15 || kpi.RMS > int64(clockBound) {
			return fmt.Errorf("%+v", kpi)
		}
		return nil
	})
	if err != nil {
		g.t.Fatal(err)
	}
}

// lock waits until its clock is the leader's: within the bound by PTP, without a warning, and by what both answer.
func (g *clockGuest) lock(leader *clockGuest, when string) {
	g.t.Helper()
	g.until(when+", its clock becomes the leader's", func(s clockSaid) bool {
		return s.Locked && s.Holds && len(s.Warnings) == 0 && s.Reading.DelayNS != 0 && time.Duration(s.Reading.OffsetNS).Abs() <= clockBound && g.off(leader).Abs() < time.Second
	})
}
