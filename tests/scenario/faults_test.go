package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/story"
)

// pair is the smallest tree with a relay: core, relay, one field device.
func pair() []lab.BoxSpec {
	return []lab.BoxSpec{{Name: "agg-1", Parent: "core", Relay: true, Role: "aggregation"}, {Name: "field-1", Parent: "agg-1", Role: "field"}}
}

// hasWarning waits until the core shows a warning of the name for the box.
func hasWarning(ctx context.Context, s *story.Story, box, name string) error {
	return lab.Until(ctx, box+" shows the warning "+name, s.Wait, func(ctx context.Context) error {
		devices, err := s.Devices(ctx)
		if err != nil {
			return err
		}
		var names []string
		for _, w := range devices[box].Status.Health {
			if w.Name == name {
				return nil
			}
			names = append(names, w.Name)
		}
		return fmt.Errorf("its warnings are %v", names)
	})
}

// noWarning waits until it is gone.
func noWarning(ctx context.Context, s *story.Story, box, name string) error {
	return lab.Until(ctx, box+" no longer shows the warning "+name, s.Wait, func(ctx context.Context) error {
		devices, err := s.Devices(ctx)
		if err != nil {
			return err
		}
		for _, w := range devices[box].Status.Health {
			if w.Name == name {
				return errors.New(w.Message)
			}
		}
		return nil
	})
}

// TestFaults takes from one small tree, one after the other, what a device or the core
// must be able to lose.
func TestFaults(t *testing.T) {
	s := raise(t, pair())
	ctx := t.Context()
	mountSmallDisk(t, filepath.Join(s.Lab.Dir, "field-1.img"), s.Lab.Boxes["field-1"].Dir(), 384<<20)
	up(ctx, t, s)
	before := cachePIDs(ctx, t, s)
	for _, part := range []struct {
		name string
		run  func(context.Context, *testing.T, *story.Story)
	}{{"DiskFull", diskFull}, {"TornState", tornState}, {"Restore", restoreCore}} {
		if !t.Run(part.name, func(t *testing.T) { part.run(t.Context(), t, s) }) {
			return // the next part stands on a whole tree
		}
		if after := cachePIDs(ctx, t, s); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Fatalf("%s: a container that no version changes was restarted: processes were %v, are %v", part.name, before, after)
		}
	}
	t.Run("PortsOfTheBox", func(t *testing.T) { portsOfTheBox(t.Context(), t, s) })
	t.Run("NothingLingers", func(t *testing.T) { nothingLingers(t.Context(), t, s) })
}

// tornState tears a field device's state file while edged is down: it is rebuilt from
// its verified copy and the parent, with a warning, and usage stays exact.
func tornState(ctx context.Context, t *testing.T, s *story.Story) {
	box := s.Lab.Boxes["field-1"]
	box.KillEdged()
	path := filepath.Join(box.Data(), "state.db")
	b, err := os.ReadFile(path)
	must(t, err)
	for i := 0; i < len(b); i += 512 { // every page is hit, the meta pages too
		b[i] ^= 0xff
	}
	must(t, os.WriteFile(path, b[:len(b)*2/3], 0o600))
	must(t, box.StartEdged(ctx))
	must(t, hasWarning(ctx, s, "field-1", "state-rebuilt"))
	must(t, s.Apply(ctx, "v1.yaml"))
	must(t, s.AnswerEverywhere(ctx, "version 1"))
	_, err = s.Counted(ctx, "field-1")
	must(t, err)
}

// diskFull fills a field device's whole disk, its containerd's included: the app goes
// on, the warning is named, no usage is lost, and it recovers when space returns.
func diskFull(ctx context.Context, t *testing.T, s *story.Story) {
	box := s.Lab.Boxes["field-1"]
	began := time.Now() // the app runs already
	filler := filepath.Join(box.Dir(), "filler")
	fill(t, filler)
	must(t, hasWarning(ctx, s, "field-1", "disk-full"))
	_, last, err := box.Recorded(ctx)
	must(t, err)
	_, err = s.Grown(ctx, "field-1", last+2) // usage is recorded on a full disk
	must(t, err)
	must(t, s.AnswerEverywhere(ctx, "version 1"))
	box.KillEdged() // a start must not need room either
	must(t, box.StartEdged(ctx))
	must(t, hasWarning(ctx, s, "field-1", "disk-full"))
	must(t, s.AnswerEverywhere(ctx, "version 1"))
	must(t, os.Remove(filler))
	must(t, noWarning(ctx, s, "field-1", "disk-full"))
	must(t, s.Apply(ctx, "v2.yaml"))
	must(t, s.AnswerEverywhere(ctx, "version 2"))
	elapsed := time.Since(began)
	_, last, err = box.Recorded(ctx)
	must(t, err)
	_, err = s.Grown(ctx, "field-1", last+1)
	must(t, err)
	sums, err := s.Counted(ctx, "field-1")
	must(t, err)
	if ran := time.Duration(sums["demo/cache"].RunMillis) * time.Millisecond; ran < elapsed {
		t.Errorf("the cache ran all the %s, and only %s are counted", elapsed, ran)
	}
}

// mountSmallDisk puts an ext4 file system of size bytes, which lies in img, at dir.
func mountSmallDisk(t *testing.T, img, dir string, size int64) {
	t.Helper()
	must(t, os.WriteFile(img, nil, 0o600))
	must(t, os.Truncate(img, size))
	must(t, os.MkdirAll(dir, 0o755))
	for _, argv := range [][]string{{"mkfs.ext4", "-q", "-F", img}, {"mount", "-o", "loop", img, dir}} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", argv, err, out)
		}
	}
	// The lab's Close unmounts what is below its folder.
}

// fill writes a file until the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	for block := bytes.Repeat([]byte("full"), 16<<10); len(block) > 0; {
		if _, err := f.Write(block); err != nil {
			block = block[:len(block)/2] // down to the last byte
		}
	}
	must(t, errors.Join(f.Sync(), nil))
}

// restoreCore restores the core from a backup after more usage was acknowledged, with
// a new epoch and without a hand laid on any device: nothing is lost, nothing counted
// twice, and no container restarts.
func restoreCore(ctx context.Context, t *testing.T, s *story.Story) {
	backup := filepath.Join(s.Lab.Dir, "core.backup")
	pass := filepath.Join(s.Lab.Dir, "passphrase")
	must(t, os.WriteFile(pass, []byte("correct horse battery staple\n"), 0o600))
	cored := filepath.Join(s.Lab.Bin, "cored")
	_, err := s.Lab.CoreCommand(ctx, cored, "backup", "--data", s.Lab.CoreDir(), "--passphrase-file", pass, "--artifacts", backup)
	must(t, err)
	_, last, err := s.Lab.Boxes["field-1"].Recorded(ctx)
	must(t, err)
	_, err = s.Grown(ctx, "field-1", last+2)
	must(t, err)
	_, err = s.Counted(ctx, "field-1") // acknowledged, and not in the backup
	must(t, err)

	s.Lab.StopCore()
	must(t, os.Rename(s.Lab.CoreDir(), s.Lab.CoreDir()+".lost"))
	_, err = s.Lab.CoreCommand(ctx, cored, "restore", "--data", s.Lab.CoreDir(), "--passphrase-file", pass, backup)
	must(t, err)
	must(t, s.Lab.StartCore(ctx))
	must(t, online(ctx, s, "agg-1", "field-1"))
	_, err = s.Counted(ctx, "field-1")
	must(t, err)
	must(t, s.Apply(ctx, "v2.yaml"))
	must(t, s.AnswerEverywhere(ctx, "version 2"))
	must(t, s.RunningEverywhere(ctx))
}

// online waits until the core sees the boxes.
func online(ctx context.Context, s *story.Story, boxes ...string) error {
	return lab.Until(ctx, strings.Join(boxes, ", ")+": online", s.Wait, func(ctx context.Context) error {
		devices, err := s.Devices(ctx)
		if err != nil {
			return err
		}
		for _, b := range boxes {
			if !devices[b].Status.Online {
				return errors.New(b + " is not online")
			}
		}
		return nil
	})
}
