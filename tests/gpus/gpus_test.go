//go:build cgo

package gpus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	mocks "github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"

	"tributary.dev/tributary/cmd/gpud/card"
	"tributary.dev/tributary/cmd/gpud/mockdriver"
	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/accel/gpud"
	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/story"
	"tributary.dev/tributary/tests/wait"
)

// mockCards names the file with the state of a mock driver, in the environment of a gpud that
// is this test's own binary.
const mockCards = "TRIBUTARY_TEST_MOCK_CARDS"

func TestMain(m *testing.M) {
	path := os.Getenv(mockCards)
	if path == "" {
		wait.Leaks(m)
		return
	}
	d, err := mockdriver.New(path, mocks.A100_SXM4_40GB)
	if err == nil {
		err = serve(d)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gpud:", err)
		os.Exit(1)
	}
}

// serve is gpud with a mock.
func serve(d *mockdriver.Driver) error {
	cards, err := card.Open(d, time.Now)
	if err != nil {
		return err
	}
	defer cards.Close()
	return gpud.Serve(context.Background(), os.Stdin, os.Stdout, cards)
}

// site is a core and one box with a card: cored, edged and containerd are real, as is gpud,
// whose library is the mock.
type site struct {
	*testing.T
	*story.Story
	box   *lab.Box
	dir   string
	cards string // the mock's state
}

const siteBox = "site-1"

// raise starts a site. What NVIDIA's driver has in /dev and /proc is in a folder.
func raise(t *testing.T) *site {
	t.Helper()
	if os.Getenv("TRIBUTARY_VMTEST") != "1" {
		t.Skip("takes some two minutes: run make vmtest")
	}
	if err := lab.Root(); err != nil {
		t.Skip(err)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	bin := cmp.Or(os.Getenv("TRIBUTARY_BIN"), filepath.Join(root, "bin"))
	if _, err := os.Stat(filepath.Join(bin, "edged")); err != nil {
		t.Skip("needs the programs: run make build")
	}
	dir, err := os.MkdirTemp("", "tributary-gpu-")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{T: t, dir: dir, cards: filepath.Join(dir, "cards")}
	driverFiles(t, filepath.Join(dir, "nvidia"))
	s.write("gpud", "#!/bin/sh\necho $$ >"+s.file("gpud.pid.new")+" && mv "+s.file("gpud.pid.new")+" "+s.file("gpud.pid")+"\nexport "+mockCards+"="+s.cards+"\nexec "+os.Args[0]+"\n", 0o755)
	l, err := lab.New(t.Context(), lab.Spec{Name: fmt.Sprintf("tg%d", os.Getpid()%10000), Bin: bin, Dir: filepath.Join(dir, "lab"), CoredArgs: story.CoredArgs,
		Boxes: []lab.BoxSpec{{Name: siteBox, Parent: "core", Role: "gpu", EdgedArgs: []string{"--gpud", s.file("gpud"), "--gpud-always", "--nvidia-root", s.file("nvidia"), "--cdi", s.file("cdi")}}}})
	if err != nil {
		t.Fatal(err)
	}
	s.Story = &story.Story{Lab: l, Root: root, Out: t.Output(), Wait: wait.Limit}
	s.box = l.Boxes[siteBox]
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("taking the lab down: %v", err)
		}
		if t.Failed() {
			t.Logf("the logs are in %s", dir)
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := s.Raise(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.PushImages(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *site) file(name string) string { return filepath.Join(s.dir, name) }

func (s *site) write(name, text string, mode os.FileMode) {
	s.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(s.file(name)), 0o755), os.WriteFile(s.file(name), []byte(text), mode)); err != nil {
		s.Fatal(err)
	}
}

// driverFiles are what the driver shows of itself: the numbers of its device files, which
// the box makes by them, those of slices' capabilities, and a library.
func driverFiles(t *testing.T, root string) {
	t.Helper()
	files := map[string]string{"proc/devices": "Character devices:\n241 nvidia\n242 nvidia-caps\n243 nvidia-uvm\n\nBlock devices:\n", "usr/lib/" + map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}[runtime.GOARCH] + "/libcuda.so.570.00": "a library\n"}
	for gi := range 15 {
		at := fmt.Sprintf("proc/driver/nvidia/capabilities/gpu0/mig/gi%d/", gi)
		files[at+"access"] = fmt.Sprintf("DeviceFileMinor: %d\nDeviceFileMode: 292\n", 3+9*gi)
		files[at+"ci0/access"] = fmt.Sprintf("DeviceFileMinor: %d\n", 4+9*gi)
	}
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

// apply hands objects to the core.
func (s *site) apply(text string) {
	s.Helper()
	if _, err := s.Lab.Edgectl(s.Context(), text, "apply", "-f", "-"); err != nil {
		s.Fatal(err)
	}
}

// fleet gives the box its apps, and its cards their way of sharing.
func (s *site) fleet(sharing string, apps ...string) {
	s.Helper()
	s.apply(fmt.Sprintf("apiVersion: tributary/v1\nkind: Fleet\nmetadata: {name: gpu}\nspec:\n  selector: {matchLabels: {role: gpu}}\n  apps: [%s]\n  settings: {meterInterval: 2s, healthInterval: 2s, accelerators: [%s]}\n", strings.Join(apps, ", "), sharing))
}

// app is one whose only service claims so much of a card.
func (s *site) app(name, options string) {
	s.Helper()
	s.apply(fmt.Sprintf(`apiVersion: tributary/v1
kind: App
metadata: {name: %s}
spec:
  compose: |
    services:
      run:
        image: cache
        entrypoint: [/bin/busybox, sleep, "100000"]
        stop_grace_period: 1s
        deploy: {resources: {reservations: {devices: [{capabilities: [gpu], driver: nvidia, count: 1, options: {%s}}]}}}
`, name, options))
}

// service waits until the service of an app is as it is to be.
func (s *site) service(app, what string, is func(api.ServiceStatus) bool) {
	s.Helper()
	wait.Seen(s, app+" "+what, func() (any, bool) {
		devices, err := s.Devices(s.Context())
		if err != nil {
			return err, false
		}
		for _, a := range devices[siteBox].Status.Apps {
			if a.Name == app && len(a.Services) == 1 {
				return a.Services[0], is(a.Services[0])
			}
		}
		return devices[siteBox].Status.Apps, false
	})
}

func runs(v api.ServiceStatus) bool { return v.State == api.Running && v.Message == "" }

// inventory waits until the core knows the box's card and claims to be as they are to be.
func (s *site) inventory(what string, is func(a api.Accelerator, claims []api.DeviceUse) bool) (out api.Inventory) {
	s.Helper()
	wait.Seen(s, what, func() (any, bool) {
		var i api.Inventory
		if err := s.Lab.GetJSON(s.Context(), &i, "device", "hardware", siteBox); err != nil {
			return err, false
		}
		out = i
		return fmt.Sprintf("%+v %+v", i.Accelerators, i.Claims), len(i.Accelerators) == 1 && is(i.Accelerators[0], i.Claims)
	})
	return out
}

// holding is the device that an app holds; empty when it holds none.
func holding(claims []api.DeviceUse, app string) string {
	for _, u := range claims {
		if slices.ContainsFunc(u.Holders, func(h api.DeviceHolder) bool { return h.App == app }) {
			return u.ID
		}
	}
	return ""
}

// in runs a command in the container of an app.
func (s *site) in(app string, argv ...string) string {
	s.Helper()
	out, err := s.Lab.Edgectl(s.Context(), "", append([]string{"exec", siteBox, app + "/run", "--"}, argv...)...)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

// gpud is the process of the box's gpud; 0 when none runs.
func (s *site) gpud() int {
	raw, err := os.ReadFile(s.file("gpud.pid"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil || syscall.Kill(pid, 0) != nil {
		return 0
	}
	return pid
}

func (s *site) killGPUD() {
	if pid := s.gpud(); pid > 0 {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may just have ended
	}
}

// killEdged ends edged as a crash would, and starts another. Its gpud ends by itself; the
// mock, unlike a driver, is within it, so there must not be two.
func (s *site) killEdged() {
	s.Helper()
	s.box.KillEdged()
	wait.Until(s, "gpud ends with its agent", func() bool { return s.gpud() == 0 })
	if err := s.box.StartEdged(s.Context()); err != nil {
		s.Fatal(err)
	}
}

// TestSlices goes the whole way of a slice: an app claims one, its container has it, what it
// used is counted, it outlives edged and gpud, moves when it fails, is given again on a
// person's word, and is given back.
func TestSlices(t *testing.T) {
	s := raise(t)
	s.fleet("")
	s.inventory("the card", func(a api.Accelerator, _ []api.DeviceUse) bool { return a.Sharing.Mode == api.SharingExclusive })
	s.app("infer", `sharing: mig, memory: "9000"`)
	s.app("greedy", "profile: 9g.90gb")
	s.fleet("{model: \"*A100*\", sharing: {mode: mig}}", "infer", "greedy")
	s.service("infer", "runs", runs)
	s.service("greedy", "says what is missing", func(v api.ServiceStatus) bool {
		return v.State != api.Running && strings.Contains(v.Message, "1 × gpu (nvidia, profile 9g.90gb) is wanted")
	})
	s.has("infer")
	s.others("infer")
	s.outlives("infer")
	s.used("infer")
	s.billed("infer")
	s.moves("infer")
	s.fleet("")
	s.inventory("nothing is held, and MIG is off as it was", func(a api.Accelerator, claims []api.DeviceUse) bool {
		return holding(claims, "infer") == "" && !a.MIG.Enabled && len(a.MIG.Instances) == 0 && a.Sharing.Mode == api.SharingExclusive
	})
	s.turns()
	s.fleet("")
	s.inventory("all is given back", func(_ api.Accelerator, claims []api.DeviceUse) bool {
		return !slices.ContainsFunc(claims, func(u api.DeviceUse) bool { return len(u.Holders) > 0 })
	})
	if left, err := os.ReadDir(s.file("cdi")); err != nil || len(left) > 0 {
		t.Errorf("%v, %v: files for devices that nobody holds", left, err)
	}
}

// has holds what an app's container has against the slice that the core says it holds.
func (s *site) has(app string) {
	s.Helper()
	i := s.inventory(app+" holds a slice", func(a api.Accelerator, claims []api.DeviceUse) bool {
		return a.MIG != nil && len(a.MIG.Instances) == 1 && holding(claims, app) == a.ID+"/"+a.MIG.Instances[0].Placement.String()
	})
	slice := i.Accelerators[0].MIG.Instances[0]
	if env := s.in(app, "/bin/busybox", "env"); !strings.Contains(env, "CUDA_VISIBLE_DEVICES="+slice.UUID+"\n") {
		s.Errorf("%s has %s in its environment, and holds %s", app, env, slice.UUID)
	}
	// Major and minor numbers, in hexadecimal.
	want := "f1 0\nf1 ff\nf3 0\nf3 1\nf2 " + strconv.FormatInt(int64(3+9*slice.ID), 16) + "\nf2 " + strconv.FormatInt(int64(4+9*slice.ID), 16) + "\n"
	nodes := []string{"/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", fmt.Sprintf("/dev/nvidia-caps/nvidia-cap%d", 3+9*slice.ID), fmt.Sprintf("/dev/nvidia-caps/nvidia-cap%d", 4+9*slice.ID)}
	if got := s.in(app, append([]string{"/bin/busybox", "stat", "-c", "%t %T"}, nodes...)...); got != want {
		s.Errorf("device files in %s: %q, wanted %q", app, got, want)
	}
	if got := s.in(app, "/bin/busybox", "ls", "/dev/nvidia-caps"); len(strings.Fields(got)) != 2 {
		s.Errorf("capabilities in %s: %s", app, got)
	}
	if got := s.in(app, "/bin/busybox", "cat", "/usr/lib64/libcuda.so.1"); got != "a library\n" {
		s.Errorf("the driver's library in %s is %q", app, got)
	}
}

// outlives has other slices come and go while edged and gpud are killed: the app's container
// goes on, with its slice.
func (s *site) outlives(app string) {
	s.Helper()
	before := s.in(app, "/bin/busybox", "stat", "-c", "%Y", "/proc/1")
	random := rand.New(rand.NewPCG(4, 20))
	for round := range 3 {
		s.app("guest", fmt.Sprintf("profile: %s", []string{"1g.5gb", "3g.20gb", "2g.10gb"}[round]))
		s.fleet("{sharing: {mode: mig}}", app, "greedy", "guest")
		for range random.IntN(3) {
			if random.IntN(2) == 0 {
				s.killGPUD()
			} else {
				s.killEdged()
			}
		}
		s.service("guest", "runs", runs)
		s.fleet("{sharing: {mode: mig}}", app, "greedy")
		if round == 1 {
			s.killEdged()
		}
		s.inventory("the guest's slice is gone", func(a api.Accelerator, claims []api.DeviceUse) bool {
			return holding(claims, "guest") == "" && len(a.MIG.Instances) == 1
		})
	}
	s.has(app)
	if after := s.in(app, "/bin/busybox", "stat", "-c", "%Y", "/proc/1"); after != before {
		s.Errorf("%s was started anew meanwhile: %s, before %s", app, after, before)
	}
}

// used waits until the core has counted what an app used of its slice.
func (s *site) used(app string) {
	s.Helper()
	wait.Seen(s, "what "+app+" used of its slice", func() (any, bool) {
		var ledger struct {
			Totals []struct {
				App         string             `json:"app"`
				Accelerator api.AcceleratorUse `json:"accelerator"`
			} `json:"totals"`
		}
		if err := s.Lab.GetJSON(s.Context(), &ledger, "usage", siteBox); err != nil {
			return err, false
		}
		for _, u := range ledger.Totals {
			if a := u.Accelerator; u.App == app {
				return a, a.HeldMillis > 0 && a.SliceMillis >= a.HeldMillis && a.EnergyMillijoules > 0 && a.UnknownMillis > 0
			}
		}
		return ledger, false
	})
}

// billed has people see the same in a table.
func (s *site) billed(app string) {
	s.Helper()
	out, err := s.Lab.Edgectl(s.Context(), "", "usage", siteBox)
	if err != nil || !strings.Contains(out, "SLICE TIME") || strings.Count(out, app+"/run") != 2 {
		s.Errorf("the table of what was used is %s (%v)", out, err)
	}
}

// moves has the slice of an app fail: the app gets another, and the failed one is nobody's
// until a person says that it is well.
func (s *site) moves(app string) {
	s.Helper()
	failed := s.inventory(app+" holds a slice", func(a api.Accelerator, claims []api.DeviceUse) bool {
		return len(a.MIG.Instances) == 1 && holding(claims, app) != ""
	}).Accelerators[0].MIG.Instances[0]
	if err := mockdriver.Say(s.cards, mockdriver.Order{Xid: 48, Slice: uint32(failed.ID)}); err != nil {
		s.Fatal(err)
	}
	var name string
	s.inventory("the app moves", func(a api.Accelerator, claims []api.DeviceUse) bool {
		name = a.ID + "/" + failed.Placement.String()
		at := slices.IndexFunc(a.MIG.Instances, func(m api.MIGInstance) bool { return m.UUID == failed.UUID })
		held := holding(claims, app)
		return at >= 0 && a.MIG.Instances[at].Cordoned != "" && held != "" && held != name
	})
	s.service(app, "runs elsewhere", runs)
	if out, err := s.Lab.Edgectl(s.Context(), "", "device", "hardware", siteBox); err != nil || !strings.Contains(out, "cordoned: ") || !strings.Contains(out, "(XID 48)") {
		s.Errorf("people see %s (%v)", out, err)
	}
	if _, err := s.Lab.Edgectl(s.Context(), "", "device", "uncordon", siteBox, name); err != nil {
		s.Fatal(err)
	}
	s.inventory("the slice that failed is given again, and as nobody wants it, gone", func(a api.Accelerator, claims []api.DeviceUse) bool {
		return len(a.Findings) == 0 && len(a.MIG.Instances) == 1
	})
	if out, err := s.Lab.Edgectl(s.Context(), "", "events", siteBox); err != nil || !strings.Contains(out, "device.uncordoned") || !strings.Contains(out, "admin") {
		s.Errorf("the events are %s (%v)", out, err)
	}
	if _, err := s.Lab.Edgectl(s.Context(), "", "device", "uncordon", siteBox, name); err == nil || !strings.Contains(err.Error(), "tells of nothing that is wrong") {
		s.Errorf("what is well is said to be well: %v", err)
	}
}

// turns has the card shared in turns: as many apps as it has turns run, the next waits until
// one of them goes.
func (s *site) turns() {
	s.Helper()
	for _, name := range []string{"one", "two", "three"} {
		s.app(name, "sharing: time-slicing")
	}
	s.fleet("{sharing: {mode: time-slicing, replicas: 2}}", "one", "two")
	s.service("one", "runs", runs)
	s.service("two", "runs", runs)
	s.fleet("{sharing: {mode: time-slicing, replicas: 2}}", "one", "two", "three")
	s.service("three", "waits", func(v api.ServiceStatus) bool {
		return v.State != api.Running && strings.Contains(v.Message, "0 free, 1 held by others")
	})
	s.fleet("{sharing: {mode: time-slicing, replicas: 2}}", "two", "three")
	s.service("three", "runs", runs)
}
