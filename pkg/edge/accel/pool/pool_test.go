package pool

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/accel/gpud"
)

// box is a machine with cards, and an edged that may begin anew.
type box struct {
	*Pool
	t       testing.TB
	disk    *disk
	cards   *cards
	files   Files
	boot    string
	now     time.Time
	seen    []api.Accelerator
	holders map[string][]Holder
	moved   []string
	events  []string
	root    string
}

func newBox(t testing.TB, n int) *box { return newBoxIn(t, n, t.TempDir()) }

func newBoxIn(t testing.TB, n int, root string) *box {
	b := &box{t: t, disk: &disk{kept: map[string][]byte{}, left: -1}, cards: newCards(told(t, "a100"), n), boot: "boot-1", now: time.Unix(1_000_000, 0), root: root, files: Files{Libraries: root, System: root}}
	for _, name := range []string{"nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"} { // in the place of device files
		b.write("dev/"+name, "")
	}
	for gi := range 16 {
		if exists(filepath.Join(root, "dev/nvidia-caps")) && gi == 0 {
			break // made already
		}
		for i := range n {
			b.write(fmt.Sprintf("proc/driver/nvidia/capabilities/gpu%d/mig/gi%d/access", i, gi), fmt.Sprintf("DeviceFileMinor: %d\nDeviceFileMode: 438\n", 100*i+2*gi))
			b.write(fmt.Sprintf("proc/driver/nvidia/capabilities/gpu%d/mig/gi%d/ci0/access", i, gi), fmt.Sprintf("DeviceFileMinor: %d\n", 100*i+2*gi+1))
			b.write(fmt.Sprintf("dev/nvidia-caps/nvidia-cap%d", 100*i+2*gi), "")
			b.write(fmt.Sprintf("dev/nvidia-caps/nvidia-cap%d", 100*i+2*gi+1), "")
		}
	}
	for _, c := range b.cards.list {
		b.seen = append(b.seen, api.Accelerator{ID: c.Accelerator.PCI, PCI: c.Accelerator.PCI, Vendor: "nvidia", NUMA: -1, Sharing: api.Sharing{Mode: api.SharingExclusive}})
	}
	b.begin()
	return b
}

func (b *box) write(name, text string) {
	path := filepath.Join(b.root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		b.t.Fatal(err)
	}
}

// begin starts an edged with what is on the disk.
func (b *box) begin() {
	p, err := New(Config{Driver: b.cards, Seen: func() []api.Accelerator { return b.seen }, NVIDIA: func() bool { return len(b.cards.list) > 0 }, Store: b.disk, Files: b.files, Run: filepath.Join(b.root, "run"), Boot: b.boot,
		Changed: func() {}, Move: func(devices []string, _ string) { b.moved = append(b.moved, devices...) }, Holders: func() map[string][]Holder { return b.holders },
		Event: func(e api.Event) { b.events = append(b.events, e.Name) }, Now: func() time.Time { return b.now }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.t.Fatal(err)
	}
	b.Pool = p
}

func (b *box) reboot(keepMode bool) {
	b.cards.keepMode = keepMode
	b.cards.reboot()
	b.boot += "'"
	b.begin()
}

func (b *box) policy(s api.Sharing) {
	b.t.Helper()
	if err := b.SetPolicies([]api.AcceleratorPolicy{{Sharing: s}}); err != nil {
		b.t.Fatal(err)
	}
	b.Look(b.t.Context())
}

func slice(options map[string]string) api.Claim {
	return api.Claim{Class: api.ClaimGPU, Driver: "nvidia", Count: 1, Options: options}
}

// take does what the book of claims does for one claim.
func (b *box) take(c api.Claim, expected ...api.Claim) (string, api.DeviceEdits, error) {
	free := func() string {
		for _, d := range b.Claimables() {
			if c.Fits(&d) == "" && d.Fault == "" && len(b.holders[d.ID]) < max(d.Shares, 1) {
				return d.ID
			}
		}
		return ""
	}
	id := free()
	if id == "" {
		if _, err := b.Make(b.t.Context(), api.Need{Claims: []api.Claim{c}, Held: slices.Sorted(maps.Keys(b.holders)), Expected: expected}); err != nil {
			return "", api.DeviceEdits{}, err
		}
		if id = free(); id == "" {
			return "", api.DeviceEdits{}, fmt.Errorf("nothing fits in %+v", b.Claimables())
		}
	}
	if b.holders == nil {
		b.holders = map[string][]Holder{}
	}
	b.holders[id] = append(b.holders[id], Holder{"app", fmt.Sprint("s", len(b.holders))})
	edits, err := b.Prepare(b.t.Context(), id, 1, c)
	return id, edits, err
}

func (b *box) give(id string) {
	b.t.Helper()
	if b.holders[id] = b.holders[id][1:]; len(b.holders[id]) > 0 {
		return
	}
	delete(b.holders, id)
	if err := b.Restore(b.t.Context(), id); err != nil {
		b.t.Fatal(err)
	}
}

// A slice is cut for a claim by memory, is the one that suffices, and is gone again when it
// is given back; the card goes back to what it was when the policy does.
func TestSliceByMemory(t *testing.T) {
	b := newBox(t, 1)
	b.Look(t.Context())
	if got := b.Claimables(); len(got) != 1 || got[0].ID != "GPU-0" || got[0].Facts["sharing"] != "exclusive" {
		t.Fatalf("without a policy the box gives %+v", got)
	}
	if _, _, err := b.take(slice(map[string]string{"sharing": "mig", "memory": "9000"})); err == nil || !strings.Contains(err.Error(), "mode: mig") {
		t.Fatalf("a card that is not to be cut is cut: %v", err)
	}
	b.policy(api.Sharing{Mode: api.SharingMIG})
	id, edits, err := b.take(slice(map[string]string{"sharing": "mig", "memory": "9000"}))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.cards.layout(0), "1g.10gb@") && !strings.Contains(b.cards.layout(0), "2g.10gb@") {
		t.Errorf("for 9000 MiB the card is cut into %s", b.cards.layout(0))
	}
	var nodes []string
	for _, n := range edits.Nodes {
		nodes = append(nodes, n.Path)
	}
	for _, want := range []string{"/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-caps/nvidia-cap2", "/dev/nvidia-caps/nvidia-cap3"} {
		if !slices.Contains(nodes, want) {
			t.Errorf("no %s in %v", want, nodes)
		}
	}
	if !slices.Contains(edits.Env, "CUDA_VISIBLE_DEVICES=MIG-GPU-0-1") {
		t.Errorf("the environment is %v", edits.Env)
	}
	shown := b.Fill(b.seen)
	if len(shown) != 1 || shown[0].Sharing.Mode != api.SharingMIG || !shown[0].MIG.Instances[0].Busy {
		t.Errorf("the inventory shows %+v", shown)
	}
	if err := b.SetPolicies(nil); err != nil {
		t.Fatal(err)
	}
	b.Look(t.Context())
	if w := b.Warnings(); len(w) != 1 || w[0].Name != "gpu-policy-waits" {
		t.Errorf("the card is held and to be another: %+v", w)
	}
	b.give(id)
	b.Look(t.Context())
	if got := b.cards.layout(0); got != "false []" {
		t.Errorf("given back, the card is %s", got)
	}
	if w := b.Warnings(); len(w) != 0 {
		t.Errorf("%+v", w)
	}
}

// What was found on a card is there again when nobody holds it, whatever was cut meanwhile.
func TestFoundLayoutComesBack(t *testing.T) {
	b := newBox(t, 1)
	m := b.cards.list[0].Accelerator.MIG
	m.Enabled = true
	for _, at := range []int{0, 4} {
		p := b.cards.profiles[slices.IndexFunc(b.cards.profiles, func(p api.MIGProfile) bool { return p.Name == "3g.20gb" })]
		if err := b.cards.Create(t.Context(), "GPU-0", p.ID, api.MIGPlacement{Start: at, Size: 4}); err != nil {
			t.Fatal(err)
		}
	}
	found := b.cards.layout(0)
	b.Look(t.Context())
	id, _, err := b.take(slice(map[string]string{"profile": "7g.40gb"}))
	if err != nil {
		t.Fatal(err)
	}
	if b.cards.layout(0) == found {
		t.Fatal("the whole card was given, and nothing was cut")
	}
	b.give(id)
	if got := b.cards.layout(0); got != found {
		t.Errorf("given back, the card is %s, and was found %s", got, found)
	}
}

// What is to come has a say: a small slice does not take the place that larger ones need.
func TestExpectedClaimsFindRoom(t *testing.T) {
	b := newBox(t, 1)
	b.cards.list[0].Accelerator.MIG.Enabled = true
	small := b.cards.profiles[slices.IndexFunc(b.cards.profiles, func(p api.MIGProfile) bool { return p.Name == "1g.5gb" })]
	if err := b.cards.Create(t.Context(), "GPU-0", small.ID, api.MIGPlacement{Start: 0, Size: 1}); err != nil {
		t.Fatal(err)
	}
	b.cards.list[0].Accelerator.MIG.Instances[0].Busy = true // somebody's program
	b.Look(t.Context())
	next := slice(map[string]string{"profile": "2g.10gb"})
	if _, _, err := b.take(slice(map[string]string{"profile": "1g.10gb"}), next, next); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, _, err := b.take(next); err != nil {
			t.Errorf("%v; the card is %s", err, b.cards.layout(0))
		}
	}
}

// A slice that was made for one waits for him, whoever else gives his back meanwhile; not
// for ever.
func TestPromises(t *testing.T) {
	b := newBox(t, 1)
	b.policy(api.Sharing{Mode: api.SharingMIG})
	other, _, err := b.take(slice(map[string]string{"profile": "1g.5gb"}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Make(t.Context(), api.Need{Claims: []api.Claim{slice(map[string]string{"profile": "3g.20gb"})}, Held: []string{other}}); err != nil {
		t.Fatal(err)
	}
	b.give(other)
	if got := b.cards.layout(0); !strings.Contains(got, "3g.20gb") || strings.Contains(got, "1g.5gb") {
		t.Fatalf("the card is %s", got)
	}
	b.now = b.now.Add(promise + time.Second)
	b.begin()
	b.Look(t.Context())
	if got := b.cards.layout(0); got != "true []" {
		t.Errorf("nobody came for it, and the card is %s", got)
	}
}

// A change that a crash cut short is gone on with: its entry is gone, and nothing is half made.
func TestChangeGoesOn(t *testing.T) {
	b := newBox(t, 1)
	b.policy(api.Sharing{Mode: api.SharingMIG})
	b.cards.do(func() { b.cards.left = 2 }) // the layout twice, and the first slice
	if _, err := b.Make(t.Context(), api.Need{Claims: []api.Claim{{Class: api.ClaimGPU, Count: 2, Options: map[string]string{"profile": "2g.10gb"}}}}); api.CodeOf(err) != api.Unavailable {
		t.Fatalf("gpud was killed: %v", err)
	}
	if steps, err := (journal{b.disk}).Get("GPU-0"); err != nil || len(steps) != 2 {
		t.Fatalf("written down are %v, %v", steps, err)
	}
	b.cards.do(func() { b.cards.down = false })
	b.Look(t.Context())
	if got := b.cards.layout(0); strings.Count(got, "2g.10gb") != 2 {
		t.Errorf("the card is %s", got)
	}
	if steps, err := (journal{b.disk}).Get("GPU-0"); err != nil || len(steps) != 0 {
		t.Errorf("written down are still %v, %v", steps, err)
	}
}

// Slices of one service are spread over cards where one has no room for all.
func TestSlicesOverCards(t *testing.T) {
	b := newBox(t, 2)
	b.policy(api.Sharing{Mode: api.SharingMIG})
	if _, err := b.Make(t.Context(), api.Need{Claims: []api.Claim{{Class: api.ClaimGPU, Count: 3, Options: map[string]string{"profile": "3g.20gb"}}}}); err != nil {
		t.Fatal(err)
	}
	if a, c := b.cards.layout(0), b.cards.layout(1); strings.Count(a+c, "3g.20gb") != 3 {
		t.Errorf("the cards are %s and %s", a, c)
	}
	if _, err := b.Make(t.Context(), api.Need{Claims: []api.Claim{{Class: api.ClaimGPU, Count: 5, Options: map[string]string{"profile": "3g.20gb"}}}}); err == nil || !strings.Contains(err.Error(), "3g.20gb") {
		t.Errorf("five on two cards: %v", err)
	}
	if _, err := b.Make(t.Context(), api.Need{Claims: []api.Claim{slice(map[string]string{"profile": "3g.40gb"})}}); err == nil || !strings.Contains(err.Error(), "its profile is") {
		t.Errorf("a profile that no card has: %v", err)
	}
}

// A layout of the policy is there before anybody asks, and after a reboot before anybody
// comes; slices that are held are the same.
func TestLayoutOverReboots(t *testing.T) {
	for _, keepMode := range []bool{false, true} {
		b := newBox(t, 1)
		b.policy(api.Sharing{Mode: api.SharingMIG, Layout: []string{"2g.10gb", "1g.5gb", "7g.40gb", "1g.5gb"}})
		if got := b.cards.layout(0); strings.Count(got, "1g.5gb@") != 2 || strings.Count(got, "2g.10gb@") != 1 {
			t.Fatalf("the layout is %s", got)
		}
		if w := b.Warnings(); len(w) != 1 || w[0].Name != "gpu-layout" || !strings.Contains(w[0].Message, "one slice more than fits: 7g.40gb, after 2g.10gb, 1g.5gb") {
			t.Errorf("that the card can never have all of it is told as %+v", w)
		}
		id, _, err := b.take(slice(map[string]string{"profile": "3g.20gb"}))
		if err != nil {
			t.Fatal(err)
		}
		before := b.cards.layout(0)
		b.reboot(keepMode)
		select {
		case <-b.Ready():
			t.Error("it is ready before anything was asked")
		default:
		}
		b.Look(t.Context())
		if got := b.cards.layout(0); got != before {
			t.Errorf("after a reboot %s, before %s", got, before)
		}
		<-b.Ready()
		b.give(id)
		if got := b.cards.layout(0); strings.Contains(got, "3g.20gb") || strings.Count(got, "1g.5gb@") != 2 {
			t.Errorf("given back: %s", got)
		}
	}
}

// A fault cordons a slice, and moves who is on it when it must; a reboot ends that.
func TestFaults(t *testing.T) {
	b := newBox(t, 1)
	b.policy(api.Sharing{Mode: api.SharingMIG})
	one, _, err := b.take(slice(map[string]string{"profile": "1g.5gb"}))
	if err != nil {
		t.Fatal(err)
	}
	two, _, err := b.take(slice(map[string]string{"profile": "1g.5gb"}))
	if err != nil {
		t.Fatal(err)
	}
	fault := func() (out []string) {
		for _, d := range b.Claimables() {
			if d.Fault != "" {
				out = append(out, d.ID)
			}
		}
		return out
	}
	b.Tell(gpud.Event{Card: "GPU-0", Kind: gpud.EventXid, Xid: 31, Instance: 1}) // a program's own fault
	b.Look(t.Context())
	if got := fault(); len(got) > 0 || !slices.Contains(b.events, "gpu.xid") {
		t.Fatalf("a program's fault cordons %v; the events are %v", got, b.events)
	}
	b.Tell(gpud.Event{Card: "GPU-0", Kind: gpud.EventXid, Xid: 94, Instance: 1}) // contained
	b.Look(t.Context())
	if got := fault(); !slices.Equal(got, []string{one}) || len(b.moved) > 0 {
		t.Fatalf("cordoned %v, moved %v", got, b.moved)
	}
	if w := b.Warnings(); len(w) != 1 || w[0].Name != "gpu-xid" || !strings.Contains(w[0].Message, "XID 94") || !strings.Contains(w[0].Message, "given to no one else") {
		t.Errorf("the warnings are %+v", w)
	}
	b.begin() // a crash of edged forgets nothing of it
	b.Look(t.Context())
	if got := fault(); !slices.Equal(got, []string{one}) {
		t.Errorf("after a crash cordoned are %v", got)
	}
	b.cards.do(func() { b.cards.list[0].Accelerator.ECC = &api.ECC{Enabled: true, Uncorrected: 1} }) // of which nobody told
	b.Look(t.Context())
	if slices.Sort(b.moved); !slices.Equal(b.moved, []string{one, two}) && !slices.Equal(b.moved, []string{two, one}) {
		t.Errorf("moved are %v", b.moved)
	}
	b.reboot(true)
	b.Look(t.Context())
	if got := fault(); len(got) > 0 {
		t.Errorf("after a reboot cordoned are %v", got)
	}
}

// A card that is too hot is given to nobody until it has cooled down.
func TestHot(t *testing.T) {
	b := newBox(t, 1)
	at := func(celsius int) string {
		b.cards.do(func() { b.cards.samples = []gpud.Sample{{Card: "GPU-0", Celsius: celsius, Percent: 0}} })
		b.Look(t.Context())
		return b.Claimables()[0].Fault
	}
	for _, c := range []struct {
		celsius int
		fault   bool
	}{{60, false}, {90, true}, {86, true}, {84, true}, {82, false}, {86, false}} {
		if got := at(c.celsius); got != "" != c.fault {
			t.Errorf("at %d °C: %q", c.celsius, got)
		}
	}
}

// What a slice used is told by service, and is the same whatever edged did meanwhile.
func TestUsed(t *testing.T) {
	b := newBox(t, 1)
	b.policy(api.Sharing{Mode: api.SharingMIG})
	id, _, err := b.take(slice(map[string]string{"profile": "3g.20gb"}))
	if err != nil {
		t.Fatal(err)
	}
	who := b.holders[id][0].String()
	after := func(d time.Duration, energy uint64) {
		b.now = b.now.Add(d)
		b.cards.do(func() {
			b.cards.samples = []gpud.Sample{{Card: "GPU-0", Percent: -1, EnergyMJ: energy, MemoryMiB: 1000}, {Card: "GPU-0", Slice: "MIG-GPU-0-1", Percent: 50, MemoryMiB: 100}}
		})
		b.Look(t.Context())
	}
	after(0, 1000)
	after(10*time.Second, 8000)
	b.Used()
	after(10*time.Second, 10000)
	b.begin() // and all since the last telling is lost
	after(10*time.Second, 22000)
	got := b.Used()[who]
	want := api.AcceleratorUse{HeldMillis: 30_000, SliceMillis: 90_000, MemoryMiBSeconds: 3000, BusyMillis: 15_000, EnergyMillijoules: 21000 * 3 / 7}
	if got != want {
		t.Errorf("it used %+v, want %+v", got, want)
	}
	b.reboot(true) // nobody held it while the box was away
	after(time.Hour, 5)
	if again := b.Used()[who]; again != got {
		t.Errorf("after a reboot %+v, before %+v", again, got)
	}
}

// Time-slicing gives a card to as many as the policy says.
func TestTimeSlicing(t *testing.T) {
	b := newBox(t, 1)
	b.policy(api.Sharing{Mode: api.SharingTimeSlicing, Replicas: 2})
	c := slice(map[string]string{"sharing": "time-slicing"})
	for range 2 {
		if id, _, err := b.take(c); err != nil || id != "GPU-0" {
			t.Fatalf("%s, %v", id, err)
		}
	}
	if _, _, err := b.take(c); err == nil {
		t.Error("a third one holds a card of two")
	}
}

// Cards of AMD and Intel are given whole, by their render node.
func TestOtherMakers(t *testing.T) {
	b := newBox(t, 0)
	b.write("dev/dri/renderD128", "")
	b.write("dev/kfd", "")
	b.seen = []api.Accelerator{
		{ID: "0000:03:00.0", PCI: "0000:03:00.0", Vendor: "amd", Driver: "amdgpu", NUMA: -1, Nodes: []string{"/dev/dri/card0", "/dev/dri/renderD128"}, Sharing: api.Sharing{Mode: api.SharingExclusive}},
		{ID: "0000:04:00.0", PCI: "0000:04:00.0", Vendor: "intel", NUMA: -1, Sharing: api.Sharing{Mode: api.SharingExclusive}},
	}
	b.Look(t.Context())
	_, edits, err := b.take(api.Claim{Class: api.ClaimGPU, Driver: "amdgpu", Count: 1, Options: map[string]string{"render-node": "true"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(edits.Nodes) != 2 || edits.Nodes[0].Path != "/dev/dri/renderD128" || edits.Nodes[1].Path != "/dev/kfd" || len(edits.Mounts) > 0 {
		t.Errorf("the container gets %+v", edits)
	}
	if d := b.Claimables()[1]; !strings.Contains(d.Fault, "render node") {
		t.Errorf("a card without a driver is %+v", d)
	}
	if err := b.Restore(t.Context(), "0000:03:00.0"); err != nil {
		t.Error(err)
	}
}

// A card whose gpud is silent is there with the reason, and warned of.
func TestSilence(t *testing.T) {
	b := newBox(t, 1)
	b.cards.down = true
	b.Look(t.Context())
	if got := b.Claimables(); len(got) != 1 || !strings.Contains(got[0].Fault, "gpud does not run") {
		t.Fatalf("%+v", got)
	}
	if w := b.Warnings(); len(w) > 0 {
		t.Errorf("at once: %+v", w)
	}
	b.now = b.now.Add(patience)
	if w := b.Warnings(); len(w) != 1 || w[0].Name != "gpud-silent" {
		t.Errorf("after a while: %+v", w)
	}
}

// Over any claims, returns, crashes of gpud, crashes of edged in the middle of a write, and
// reboots: no slice that is held is touched, and when nobody holds any the card is as found.
func TestCrashes(t *testing.T) {
	root := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		b := newBoxIn(t, 1, root)
		b.policy(api.Sharing{Mode: api.SharingMIG})
		profiles, sure := map[string]string{}, map[string]bool{} // of what is held, and what somebody was told that it holds
		steady := func() {
			b.cards.do(func() { b.cards.down, b.cards.left = false, -1 })
			b.disk.left = -1
			for range 3 {
				b.Look(t.Context())
			}
		}
		for range rapid.IntRange(1, 8).Draw(rt, "steps") {
			b.cards.do(func() { b.cards.left = rapid.IntRange(-1, 12).Draw(rt, "gpud killed after") })
			b.disk.left, b.disk.spoil = rapid.IntRange(-1, 6).Draw(rt, "cut after"), rapid.Bool().Draw(rt, "took hold")
			held := slices.Sorted(maps.Keys(b.holders))
			switch what := rapid.IntRange(0, 4).Draw(rt, "what"); {
			case what == 0 && len(held) > 0:
				id := rapid.SampledFrom(held).Draw(rt, "back")
				delete(sure, id) // its containers are gone
				if b.Restore(t.Context(), id) == nil {
					delete(b.holders, id)
					delete(profiles, id)
				}
			case what == 1:
				b.Look(t.Context())
			case what == 2:
				b.disk.left = -1
				b.reboot(rapid.Bool().Draw(rt, "mode stays"))
			default:
				name := rapid.SampledFrom([]string{"1g.5gb", "2g.10gb", "3g.20gb", "4g.20gb"}).Draw(rt, "profile")
				if id, _, err := b.take(slice(map[string]string{"profile": name})); id != "" { // else the book has nothing written down
					profiles[id], sure[id] = name, err == nil
				}
			}
			if b.disk.left < 0 || rapid.Bool().Draw(rt, "edged ends") {
				b.begin()
			}
			steady()
			for id, name := range profiles {
				there := strings.Contains(b.cards.layout(0), name+"@"+strings.TrimPrefix(id, "GPU-0/"))
				_, err := b.Prepare(t.Context(), id, 1, slice(map[string]string{"profile": name}))
				switch {
				case there && err != nil, !there && sure[id]:
					rt.Fatalf("%s of %s is held: %v; the card is %s", id, name, err, b.cards.layout(0))
				case !there: // it was never made ready: who asked had no answer, and asks again
					delete(profiles, id)
					delete(b.holders, id)
				}
			}
		}
		steady()
		for id := range b.holders {
			if err := b.Restore(t.Context(), id); err != nil {
				rt.Fatal(err)
			}
		}
		b.holders = nil
		b.begin()
		b.now = b.now.Add(2 * promise)
		steady()
		if got := b.cards.layout(0); got != "true []" {
			rt.Fatalf("nobody holds anything, and the card is %s", got)
		}
	})
}
