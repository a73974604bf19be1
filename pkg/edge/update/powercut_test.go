package update

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/disk/cut"
	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/pkg/edge/update/starts"
	"tributary.dev/tributary/pkg/efi"
	"tributary.dev/tributary/pkg/release"
)

// Names of the notes in a log of an update: what is durable outside of the disk's cache when it happens.
const (
	noteVars  = "variables"
	noteState = "state"
)

// recording is a log of everything that a box makes durable. A nil one keeps nothing.
type recording struct {
	*cut.Recorder
	box  *box
	last []byte // of the state
}

// keep notes the state where it changed: it reaches its own place on the disk before what it says is done.
func (r *recording) keep() {
	if r == nil {
		return
	}
	b, err := os.ReadFile(filepath.Join(r.box.dir, "update.json"))
	if err == nil && !bytes.Equal(b, r.last) {
		r.last = b
		r.Note(noteState, b)
	}
}

func (r *recording) WriteAt(p []byte, off int64) (int, error) {
	r.keep()
	return r.Recorder.WriteAt(p, off)
}

type variables struct {
	Next  Slot
	Order []Slot
}

func (r *recording) variables(fw Firmware) error {
	next, err1 := fw.Next()
	order, err2 := fw.Order()
	b, err3 := json.Marshal(variables{next, order})
	r.Note(noteVars, b)
	return errors.Join(err1, err2, err3)
}

// noted is the boot variables with a note of each change.
type noted struct {
	Firmware
	to *recording
}

func (n noted) SetNext(s Slot) error {
	n.to.keep()
	return errors.Join(n.Firmware.SetNext(s), n.to.variables(n.Firmware))
}

func (n noted) ClearNext() error {
	n.to.keep()
	return errors.Join(n.Firmware.ClearNext(), n.to.variables(n.Firmware))
}

func (n noted) SetOrder(s Slot) error {
	n.to.keep()
	return errors.Join(n.Firmware.SetOrder(s), n.to.variables(n.Firmware))
}

// firmware gives the box's boot variables, recorded where everything is.
func (b *box) firmware() Firmware {
	fw := &BootVariables{b.vars, b.flash}
	if b.record == nil {
		return fw
	}
	return noted{fw, b.record}
}

// copyOf copies a sparse disk.
func copyOf(t *testing.T, from io.ReaderAt, size int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "copy"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	b, zero := make([]byte, mib), make([]byte, mib)
	for at := int64(0); at < size; at += mib {
		if _, err := from.ReadAt(b, at); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b, zero) {
			if _, err := f.WriteAt(b, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	return f
}

// recorded is a whole update, from the first byte to the confirmation, with everything that reached disk and firmware.
type recorded struct {
	*box
	d1, d2 release.Description
	before *os.File
	log    cut.Log
}

func record(t *testing.T, unflushed bool) *recorded {
	b, d1, c1 := newBox(t)
	d2, c2 := sample(t, 2)
	b.want = &Want{Repo: "os/vm", Digest: b.push(d2, c2, d1, c1, b.key)}
	fw := &BootVariables{b.vars, b.flash}
	if err := fw.SetOrder("a"); err != nil {
		t.Fatal(err)
	}
	before := copyOf(t, b.flash.Disk, b.flash.Size)
	b.record = &recording{Recorder: &cut.Recorder{Device: b.flash.Disk, Unflushed: unflushed}, box: b}
	b.flash.Disk = b.record
	if err := b.record.variables(fw); err != nil {
		t.Fatal(err)
	}
	if !b.run(d1) {
		t.Fatal("no trial")
	}
	b.power()
	if b.run(d2); b.state().Good != "b" {
		t.Fatalf("not confirmed: %+v", b.state())
	}
	return &recorded{b, d1, d2, before, b.record.Log()}
}

// known tells the files that were signed.
func (r *recorded) known() starts.Known {
	managers := []string{r.d1.Manager.SHA256, r.d2.Manager.SHA256}
	kernels := map[string][32]byte{r.d1.UKI.SHA256: r.d1.Hash(), r.d2.UKI.SHA256: r.d2.Hash()}
	sum := func(b []byte) string {
		h := sha256.Sum256(b)
		return hex.EncodeToString(h[:])
	}
	return starts.Known{Manager: func(b []byte) bool { return slices.Contains(managers, sum(b)) }, Kernel: func(b []byte) (root [32]byte, ok bool) {
		root, ok = kernels[sum(b)]
		return root, ok
	}}
}

func esp(t *testing.T, disk io.ReaderAt, size int64, s Slot) gpt.GUID {
	t.Helper()
	table, _, err := gpt.Read(disk, size)
	if err != nil {
		t.Fatal(err)
	}
	_, p := table.Find("esp-" + string(s))
	return p.ID
}

// firmware gives the variables as they were, in the terms of the disk.
func (r *recorded) firmware(note []byte) (fw starts.Firmware, v variables) {
	if err := json.Unmarshal(note, &v); err != nil {
		r.t.Fatal(err)
	}
	if v.Next != "" {
		fw.Next = esp(r.t, r.before, r.flash.Size, v.Next)
	}
	for _, s := range v.Order {
		fw.Order = append(fw.Order, esp(r.t, r.before, r.flash.Size, s))
	}
	return fw, v
}

// verdict judges one disk, and what was kept elsewhere by then.
func (r *recorded) verdict(image *cut.Image) (starts.Start, error) {
	fw, v := r.firmware(image.Notes[noteVars])
	s, err := starts.Judge(image, r.flash.Size, "amd64", fw, r.known())
	if err != nil {
		return s, err
	}
	state := State{Good: "a"}
	if raw, ok := image.Notes[noteState]; ok {
		if state, err = Decode(raw); err != nil {
			return s, err
		}
	}
	confirmed := v.Order[0] == "b"
	switch {
	case s.Once && v.Next != "b", !s.Once && s.Slot != string(v.Order[0]):
		return s, fmt.Errorf("slot %s starts (once: %v), the variables say %+v", s.Slot, s.Once, v)
	case v.Next != "" && !s.Once:
		return s, fmt.Errorf("a trial was ordered and does not start: %v", s.Fell)
	case s.Slot == "b" && s.Root != r.d2.Hash(), s.Slot == "a" && s.Root != r.d1.Hash():
		return s, fmt.Errorf("slot %s holds %x", s.Slot, s.Root[:6])
	case s.Once && (state.Phase == Writing || state.Phase == Fetching || state.Phase == Idle):
		return s, fmt.Errorf("a trial starts in phase %s", state.Phase)
	case confirmed && state.Phase != Confirming && state.Good != "b":
		return s, fmt.Errorf("the order favours slot b in phase %s", state.Phase)
	}
	return s, nil
}

const cuts = 1000

// TestPowerCuts: power goes a thousand times, anywhere in an update; what the disk then holds is judged by who knows
// nothing of updates. Some of the boxes go on from there.
func TestPowerCuts(t *testing.T) {
	r := record(t, false)
	random := rand.New(rand.NewPCG(3, 1))
	each := 80
	if testing.Short() {
		each = 200
	}
	places := make([]int, cuts)
	for i := range places {
		places[i] = 1 + i%len(r.log) // every step, and the rest anywhere; the first says what the firmware has
		if i >= len(r.log) {
			places[i] = 1 + random.IntN(len(r.log))
		}
	}
	slices.Sort(places)
	replay := &cut.Replay{Base: r.before, Log: r.log}
	seen := map[string]int{}
	for i, n := range places {
		image, err := replay.Cut(n, random)
		if err != nil {
			t.Fatal(err)
		}
		s, err := r.verdict(image)
		if err != nil {
			t.Fatalf("power cut after step %d of %d: %v", n, len(r.log), err)
		}
		state := State{Phase: Idle}
		if raw, ok := image.Notes[noteState]; ok {
			state, _ = Decode(raw) // was decoded before
		}
		seen[fmt.Sprintf("%s starts in phase %s", s.Slot, state.Phase)]++
		if i%each == 0 {
			r.goOn(image, s)
		}
	}
	t.Logf("%d steps: %v", len(r.log), seen)
	for _, phase := range []Phase{Checking, Fetching, Writing, Verifying, Armed} {
		if seen["a starts in phase "+string(phase)] == 0 {
			t.Errorf("no cut in phase %s", phase)
		}
	}
	for _, phase := range []Phase{Armed, Trial, Confirming, Idle} {
		if seen["b starts in phase "+string(phase)] == 0 && phase != Trial {
			t.Errorf("no cut in phase %s of the new release", phase)
		}
	}
}

// goOn starts a box from what a cut left: it comes to the new release.
func (r *recorded) goOn(image *cut.Image, s starts.Start) {
	r.t.Helper()
	disk := copyOf(r.t, image, r.flash.Size)
	again := *r.box
	again.dir = r.t.TempDir()
	again.flash = &Flash{Disk: disk, Size: r.flash.Size, Arch: "amd64"}
	again.record = nil
	anchor, err := os.ReadFile(filepath.Join(r.dir, "anchor.json"))
	if err == nil {
		err = os.WriteFile(filepath.Join(again.dir, "anchor.json"), anchor, 0o600)
	}
	if state, ok := image.Notes[noteState]; ok && err == nil {
		err = os.WriteFile(filepath.Join(again.dir, "update.json"), state, 0o600)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	again.vars = efi.Memory{}
	fw := &BootVariables{again.vars, again.flash}
	var v variables
	if err := json.Unmarshal(image.Notes[noteVars], &v); err != nil {
		r.t.Fatal(err)
	}
	if err := fw.SetOrder(v.Order[0]); err != nil {
		r.t.Fatal(err)
	}
	again.running, again.boot, again.uptime = Slot(s.Slot), 100, time.Minute
	for range 6 {
		d := r.d1
		if again.running == "b" {
			d = r.d2
		}
		if !again.run(d) {
			break
		}
		again.power()
	}
	state := again.state()
	if lost := state.Refusal(r.want, r.d1.RootHash); again.running == "a" && lost != nil && lost.Cause == CauseLost && (s.Slot == "a" && v.Next == "") {
		return // power went in the middle of the trial: whether it hung or lost power nobody can tell
	}
	if again.running != "b" || state.Good != "b" || state.Phase != Idle {
		r.t.Fatalf("from a cut on, the box ends in slot %s: %+v", again.running, state)
	}
}

// TestPowerCutsWithoutFlushes is the mutation: an update that does not wait for the disk is found out.
func TestPowerCutsWithoutFlushes(t *testing.T) {
	r := record(t, true)
	random := rand.New(rand.NewPCG(3, 2))
	replay := &cut.Replay{Base: r.before, Log: r.log}
	bricks, wrong := 0, 0
	for i := range cuts { // half of them anywhere, half at the end, when the order has changed
		n := len(r.log)
		if i < cuts/2 {
			n = 1 + i*len(r.log)/(cuts/2)
		}
		image, err := replay.Cut(n, random)
		if err != nil {
			t.Fatal(err)
		}
		switch _, err := r.verdict(image); {
		case errors.Is(err, starts.ErrBrick):
			bricks++
		case err != nil:
			wrong++
		}
	}
	if bricks == 0 {
		t.Fatalf("an update without flushes passes the judge (%d other complaints)", wrong)
	}
	t.Logf("of %d boxes %d do not start, %d start what they should not", cuts, bricks, wrong)
}
