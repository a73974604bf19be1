package machines

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/story"
)

// trial is how many seconds the releases of these tests may take to prove themselves: less than on a real box. A short one is
// for those that wait for its end.
const trial, shortTrial = "tributary.trial=240", "tributary.trial=150"

// updating is a box that joined a core, and the releases that are pushed to that.
type updating struct {
	*testing.T
	ctx    context.Context
	tree   *Tree
	story  *story.Story
	system *System
	// settings go into the fleet's spec, after a comma.
	settings string
	// artifacts are what was pushed, by version.
	artifacts map[string]string
}

// needs is what a test of updates asks for beside a box below the core.
type needs struct {
	// arch is the host's if empty. secure gives the box a TPM and Secure Boot; relay puts it below one.
	arch          string
	secure, relay bool
	// trial is another word of the command line in the place of trial.
	trial string
	// flashed is called with the box when its disk is written, before it starts.
	flashed func(*Box) error
}

// needSystem opens the built image.
func needSystem(t *testing.T, n needs) (disk string, system *System) {
	t.Helper()
	arch := cmp.Or(n.arch, runtime.GOARCH)
	disk = needImage(t, arch)
	profile := Profiles[arch]
	if _, err := os.Stat(filepath.Join(filepath.Dir(disk), ".programs")); err != nil {
		t.Skip("needs an image with its programs beside it: run make image PROFILE=" + profile)
	}
	system, err := Open(filepath.Dir(disk), arch, profile, filepath.Join(root, ".cache", "keys"))
	if err != nil {
		t.Fatal(err)
	}
	return disk, system
}

// needUpdating starts a core and a box with the image, whose command line says more than the image's own.
func needUpdating(t *testing.T, d time.Duration, n needs) *updating {
	t.Helper()
	disk, system := needSystem(t, n)
	dir := t.TempDir()
	images := filepath.Join(dir, "images")
	if err := os.MkdirAll(filepath.Join(images, system.Profile), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := system.Flash(disk, filepath.Join(images, system.Profile, "disk.raw"), cmp.Or(n.trial, trial), "tributary.debug"); err != nil {
		t.Fatal(err)
	}
	bin, err := filepath.Abs(cmp.Or(os.Getenv("TRIBUTARY_BIN"), filepath.Join(root, "bin")))
	if err != nil {
		t.Fatal(err)
	}
	box := BoxSpec{Name: "box", Parent: "core", Role: "field", Secure: n.secure, Arch: n.arch}
	boxes := []BoxSpec{box}
	if n.relay {
		box.Parent = "relay"
		boxes = []BoxSpec{{Name: "relay", Parent: "core", Role: "access", Relay: true, Arch: n.arch}, box}
	}
	tree, err := New(Spec{Bin: bin, Images: images, Dir: filepath.Join(dir, "tree"), Boxes: boxes, CoredArgs: story.CoredArgs, Say: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	u := &updating{T: t, artifacts: map[string]string{}, tree: tree, system: system, story: &story.Story{Tree: tree, Root: root, Out: os.Stderr, Wait: patience, Bear: Bear}}
	t.Cleanup(func() {
		for _, b := range boxes {
			if m := tree.Machine(b.Name); t.Failed() && m != nil {
				t.Logf("the serial line of %s:\n%s", b.Name, m.Console.Tail(200))
			}
		}
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	u.ctx = ctx
	if err := errors.Join(tree.StartCore(ctx), tree.Join(ctx)); err != nil {
		t.Fatal(err)
	}
	if n.secure {
		enrol(t, tree.boxes["box"].path("vars.fd"))
	}
	if n.flashed != nil {
		if err := n.flashed(tree.boxes["box"]); err != nil {
			t.Fatal(err)
		}
	}
	if err := tree.StartBoxes(ctx); err != nil {
		t.Fatal(err)
	}
	if n.secure {
		u.says(`STATE's key is in the TPM`) // after enrolment; the box starts once more
		u.says(up)
	}
	u.calm()
	return u
}

// release makes a release, pushes it and has the fleet want it.
func (u *updating) release(v Variant) {
	u.Helper()
	file := filepath.Join(u.TempDir(), "update.tbu")
	if err := u.system.Release(v, file); err != nil {
		u.Fatal(err)
	}
	push := []string{"release", "push", "--quiet", file, "default/system", "--release", v.Version}
	if v.Stranger {
		push = append(push, "--unsigned") // edgectl refuses it, too; here the box is to
	}
	out, err := u.tree.Edgectl(u.ctx, "", push...)
	if err != nil {
		u.Fatal(err)
	}
	u.artifacts[v.Version] = strings.TrimSpace(out)
	u.fleet(v.Version)
}

// fleet has the boxes want a release.
func (u *updating) fleet(release string) {
	u.Helper()
	u.apply(fmt.Sprintf("apiVersion: tributary/v1\nkind: Fleet\nmetadata: {name: system}\nspec: {selector: {matchLabels: {role: field}}, release: %s%s}\n", release, u.settings))
}

// attempt has boxes that refused a release try it again.
func (u *updating) attempt(name string, attempt int) {
	u.Helper()
	u.apply(fmt.Sprintf("apiVersion: tributary/v1\nkind: Release\nmetadata: {name: %s}\nspec: {artifact: %q, attempt: %d}\n", name, u.artifacts[name], attempt))
}

func (u *updating) apply(text string) {
	u.Helper()
	if _, err := u.tree.Edgectl(u.ctx, text, "apply", "-f", "-"); err != nil {
		u.Fatal(err)
	}
}

// says waits for a line on the box's serial console.
func (u *updating) says(pattern string) []string {
	u.Helper()
	found, err := u.tree.Machine("box").Expect(u.ctx, pattern)
	if err != nil {
		u.Fatal(err)
	}
	return found
}

// runs waits until the box runs a release, as its kernel's command line says.
func (u *updating) runs(version string) {
	u.Helper()
	u.says(`tributary\.version=` + regexp.QuoteMeta(version) + `[ \r\n]`)
}

// warned waits until the core shows a warning of the box, and answers its words.
func (u *updating) warned(name string) (words string) {
	u.Helper()
	err := lab.Until(u.ctx, "the core shows "+name, 2*patience, func(ctx context.Context) error {
		devices, err := u.story.Devices(ctx)
		if err != nil {
			return err
		}
		d := devices["box"]
		for _, w := range d.Status.Health {
			if w.Name == name {
				words = w.Message
				return nil
			}
		}
		return fmt.Errorf("it has %+v", d.Status.Health)
	})
	if err != nil {
		u.Fatal(err)
	}
	return words
}

// refused waits until the core shows that the box refuses the wanted release, and why.
func (u *updating) refused(pattern string) {
	u.Helper()
	words := u.warned("update-refused")
	u.Logf("edgectl: update-refused: %s", words)
	if !regexp.MustCompile(pattern).MatchString(words) {
		u.Errorf("the reason is %q, which is not like %q", words, pattern)
	}
}

// said holds what people read against the reason of a refusal: in edgectl's table, and at the box's console among what it
// did before.
func (u *updating) said(pattern string) {
	u.Helper()
	reason := regexp.MustCompile(pattern)
	table, err := u.tree.Edgectl(u.ctx, "", "get", "devices")
	if err != nil {
		u.Fatal(err)
	}
	if !reason.MatchString(flat(table)) {
		u.Errorf("edgectl get devices does not say %q:\n%s", pattern, table)
	}
	m := u.tree.Machine("box")
	err = lab.Until(u.ctx, "the console says why", patience, func(ctx context.Context) error { // a line of a log may stand in the middle
		if err := m.Send("\r"); err != nil {
			return err
		}
		if _, err := m.Expect(ctx, `drawn screen: `); err != nil {
			return err
		}
		if err := m.Send("slots\r"); err != nil {
			return err
		}
		page, err := m.Expect(ctx, `Slots and history[\s\S]*?Enter to go back: `)
		if err != nil {
			return err
		}
		text := strings.ReplaceAll(flat(page[0]), " * ", " ") // a warning's lines begin with a star
		above, history, _ := strings.Cut(text, "History")
		if !reason.MatchString(above) || !reason.MatchString(history) {
			return fmt.Errorf("above and in the history it says: %s", text)
		}
		return nil
	})
	if err != nil {
		u.Error(err)
	}
}

// flat is text on one line.
func flat(text string) string { return strings.Join(strings.Fields(text), " ") }

// calm waits until the box is online without a warning of an update.
func (u *updating) calm() {
	u.Helper()
	err := lab.Until(u.ctx, "the box is calm", 2*patience, func(ctx context.Context) error {
		devices, err := u.story.Devices(ctx)
		if err != nil {
			return err
		}
		d := devices["box"]
		for _, w := range d.Status.Health {
			if strings.HasPrefix(w.Name, "update-") {
				return fmt.Errorf("%s: %s", w.Name, w.Message)
			}
		}
		if !d.Status.Online || d.Status.Applied != d.Status.Desired {
			return errors.New("it is not online and current")
		}
		return nil
	})
	if err != nil {
		u.Fatal(err)
	}
}

// standIn builds a program for a release that does not work.
func standIn(t *testing.T, body string, imports ...string) []byte {
	t.Helper()
	return buildStandIn(t, t.TempDir(), "GO111MODULE=off", body, imports)
}

// standInOne is a process 1 that comes as far as the root, as ours does, and there does body.
func standInOne(t *testing.T, body string, imports ...string) []byte {
	t.Helper()
	return buildStandIn(t, "../..", "GO111MODULE=on", "rise.Up()\n"+body, append(imports, "tributary.dev/tributary/pkg/edge/boot/rise"))
}

// buildStandIn builds a program with what Go finds from a folder.
func buildStandIn(t *testing.T, from, modules, body string, imports []string) []byte {
	t.Helper()
	dir := t.TempDir()
	var source strings.Builder
	source.WriteString("package main\n\n")
	for _, i := range imports {
		fmt.Fprintf(&source, "import %q\n", i)
	}
	fmt.Fprintf(&source, "\nfunc main() {\n%s\n}\n", body)
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(source.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "stand-in"), filepath.Join(dir, "main.go"))
	cmd.Dir, cmd.Env = from, append(os.Environ(), "CGO_ENABLED=0", modules, "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	program, err := os.ReadFile(filepath.Join(dir, "stand-in"))
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// TestUpdate: a release is pushed, fetched, written, tried and confirmed; one below its security counter is refused; and an
// older version with the same counter is taken, deliberately.
func TestUpdate(t *testing.T) {
	u := needUpdating(t, 15*time.Minute, needs{})
	u.updates(Variant{Version: "v2", Counter: 2})
	u.release(Variant{Version: "below", Counter: 1})
	u.refused(`security counter 1; this box accepts none below 2`)
	u.updates(Variant{Version: "v0", Counter: 2})
}

// TestUpdateSealed: a box with Secure Boot, whose TPM has STATE's key, opens STATE under the new release too, by what that
// brings signed along; the floor rises in the TPM, and what is below is refused.
func TestUpdateSealed(t *testing.T) {
	u := needUpdating(t, 20*time.Minute, needs{secure: true})
	u.updates(Variant{Version: "v2", Counter: 2})
	if bad := failures(u.tree.Machine("box")); len(bad) > 0 {
		t.Errorf("steps that failed:\n%s", strings.Join(bad, "\n"))
	}
	u.release(Variant{Version: "below", Counter: 1})
	u.refused(`security counter 1; this box accepts none below 2`)
}

// TestUpdateFloor: whoever brings a release below the floor to start all the same, finds STATE sealed. Before that the core
// believes the box's TPM, by what `edgectl release push` said of the release.
func TestUpdateFloor(t *testing.T) {
	u := needUpdating(t, 20*time.Minute, needs{secure: true})
	u.updates(Variant{Version: "v2", Counter: 2})
	untilAttestation(t, u.ctx, u.tree, "the core believes the TPM, by the release's pcr11", func(a *api.Attestation) bool { return a.Attested })
	u.release(Variant{Version: "below", Counter: 1})
	u.refused(`security counter 1; this box accepts none below 2`) // so the floor is raised
	box := u.tree.boxes["box"]
	if err := box.PowerCut(); err != nil {
		t.Fatal(err)
	}
	if err := zero(box.Disk(), "esp-b", 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := box.Start(u.ctx); err != nil {
		t.Fatal(err)
	}
	u.runs("v1")
	u.says(`state-locked: this box waits: its TPM does not give the key of STATE`)
	u.says(up)
}

// wrote is what the agent says after it filled a slot: seconds, and the most memory that it had.
var wrote = regexp.MustCompile(`msg="the work on the other slot is over" seconds=(\d+) peak=(\d+)`)

// updates brings a release to its confirmation.
func (u *updating) updates(v Variant) {
	u.Helper()
	at := time.Now()
	u.release(v)
	u.runs(v.Version)
	u.says(`confirmed: system, agent, parent and apps are well`)
	u.calm()
	u.Logf("%s confirmed after %.0f s", v.Version, time.Since(at).Seconds())
	for _, w := range wrote.FindAllStringSubmatch(u.tree.Machine("box").Console.String(), -1) {
		u.Logf("writing a slot took %s s, with %s bytes of memory at most", w[1], w[2])
	}
}

// TestUpdateGoesBack: releases that do not work, each in its way. The box is back in the old slot by itself, and says why.
func TestUpdateGoesBack(t *testing.T) {
	u := needUpdating(t, 45*time.Minute, needs{})
	for _, c := range []struct {
		name    string
		variant Variant
		tried   bool
		reason  string
	}{
		{"unsigned", Variant{Stranger: true}, false, `not signed|signature|threshold`},
		{"crash", Variant{Replace: map[string][]byte{"edged": standIn(t, "os.Exit(3)", "os")}}, true, `the agent ended 4 times, at last by exit status 3`},
		{"panic", Variant{Init: standInOne(t, "os.Exit(3)", "os")}, true, `its kernel said: Attempted to kill init`},
		{"hang", Variant{Init: standInOne(t, "for {\ntime.Sleep(time.Hour)\n}", "time")}, true, `it hung, crashed or lost power`},
		{"silent", Variant{Words: []string{"module_blacklist=virtio_net", shortTrial}}, true, `the parent was not reached within`},
		{"full", Variant{Replace: map[string][]byte{"edged": standIn(t, `
	f, _ := os.Create("/data/filler")
	for n, at := int64(1)<<40, int64(0); n >= 4096; n /= 2 {
		for syscall.Fallocate(int(f.Fd()), 0, at, n) == nil {
			at += n
		}
	}
	os.Exit(3)`, "os", "syscall")}}, true, `the agent ended 4 times`},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := *u
			u.T = t
			at := time.Now()
			c.variant.Version, c.variant.Counter = c.name, 1
			u.release(c.variant)
			if c.tried {
				u.says(`starting \S+ "Tributary B"`)
				u.runs("v1")
			}
			u.refused(c.reason)
			u.said(c.reason)
			t.Logf("back after %.0f s", time.Since(at).Seconds())
			if c.tried {
				return
			}
			if strings.Contains(u.tree.Machine("box").Console.String(), c.name+`" slot=b what="written`) {
				t.Error("it was written")
			}
		})
	}
}

// TestUpdateHeals: slots and ESPs that are hurt from outside. The box starts what is whole, and makes the rest anew.
func TestUpdateHeals(t *testing.T) {
	u := needUpdating(t, 30*time.Minute, needs{})
	box := u.tree.boxes["box"]
	// written waits for the box's way to the trial of a release, and ends the machine exactly where it would start again: what
	// the firmware is to do once is not used up.
	written := func(v Variant) {
		t.Helper()
		m := u.tree.Machine("box")
		if err := m.Do(u.ctx, "set-action", map[string]string{"reboot": "shutdown"}, nil); err != nil {
			t.Fatal(err)
		}
		u.release(v)
		u.says(`the end of this boot`)
		if err := m.Wait(u.ctx); err != nil {
			t.Fatal(err)
		}
	}
	// hurt cuts the power, writes zeros, and gives power again.
	hurt := func(label string, size int64) {
		t.Helper()
		if err := box.PowerCut(); err != nil {
			t.Fatal(err)
		}
		if err := zero(box.Disk(), label, size); err != nil {
			t.Fatal(err)
		}
		if err := box.Start(u.ctx); err != nil {
			t.Fatal(err)
		}
	}
	written(Variant{Version: "v2", Counter: 1})
	hurt("root-b", 1<<20)
	u.runs("v1")
	u.refused(`its kernel said: .*(verity|corrupt|VFS|init)|hung, crashed`)

	written(Variant{Version: "v3", Counter: 1})
	hurt("esp-b", 1<<20) // the trial does not begin; the slot is written again
	u.says(`the trial did not begin`)
	u.runs("v3")
	u.says(`confirmed: system, agent, parent and apps are well`)
	u.calm()

	hurt("esp-b", 1<<20) // of the slot that runs: the other starts by itself, and the release is installed again
	u.runs("v1")
	u.runs("v3")
	u.says(`confirmed: system, agent, parent and apps are well`)
	u.calm()
}

// zero writes zeros to the beginning of a partition.
func zero(disk, label string, size int64) error {
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	table, _, err := gpt.Read(f, info.Size())
	if err != nil {
		return err
	}
	n, p := table.Find(label)
	if n == 0 {
		return errors.New("no partition " + label)
	}
	_, err = f.WriteAt(make([]byte, size), table.Offset(p))
	return errors.Join(err, f.Sync())
}

// TestUpdateSilentParent: the parent is away for everybody while a release is on trial. The box goes back, finds the
// parent silent there too, and does not blame the release, which is tried again.
func TestUpdateSilentParent(t *testing.T) {
	u := needUpdating(t, 25*time.Minute, needs{trial: shortTrial}) // it waits for that in both slots
	box := u.tree.boxes["box"]
	u.release(Variant{Version: "v2", Counter: 1})
	u.says(`the end of this boot`)
	box.cut(true)
	u.says(`the parent was not reached within`)
	u.runs("v1")
	u.says(`free of blame: the parent is silent in slot a too`)
	box.cut(false)
	u.calm()
	u.attempt("v2", 1) // sooner than in an hour
	u.runs("v2")
	u.says(`confirmed: system, agent, parent and apps are well`)
	u.calm()
}
