package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/lab"
)

// TestLateBoxes restores the core from a backup that is older than two boxes, one below
// the core and one below a relay: both come back by themselves, wait for a person, and
// keep what they counted.
func TestLateBoxes(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := raise(t, pair()[:1])
	s.Fields = nil
	const name, role = "hello", "aggregation"
	ctx := t.Context()
	must(t, s.Raise(ctx))
	must(t, s.PushImages(ctx))
	_, err := s.Lab.Edgectl(ctx, appText(name, "services:\n  cache: {image: \"default/cache:latest\"}\n")+"---\n"+fleetText(name, role, name), "apply", "-f", "-")
	must(t, err)
	backup, pass := filepath.Join(s.Lab.Dir, "core.backup"), filepath.Join(s.Lab.Dir, "passphrase")
	must(t, os.WriteFile(pass, []byte("correct horse battery staple\n"), 0o600))
	cored := filepath.Join(s.Lab.Bin, "cored")
	_, err = s.Lab.CoreCommand(ctx, cored, "backup", "--data", s.Lab.CoreDir(), "--passphrase-file", pass, "--artifacts", backup)
	must(t, err)

	late := map[string]string{"late-1": "core", "late-2": "agg-1"}
	for name, parent := range late {
		must(t, s.Lab.Add(ctx, lab.BoxSpec{Name: name, Parent: parent, Role: "aggregation"}))
		must(t, s.Lab.Boxes[name].Start(ctx))
	}
	must(t, online(ctx, s, "late-1", "late-2"))
	before, err := s.Devices(ctx)
	must(t, err)
	for name := range late {
		_, err := s.Grown(ctx, name, 2)
		must(t, err)
		_, err = s.Counted(ctx, name) // acknowledged, and not in the backup
		must(t, err)
	}

	s.Lab.StopCore()
	must(t, os.Rename(s.Lab.CoreDir(), s.Lab.CoreDir()+".lost"))
	_, err = s.Lab.CoreCommand(ctx, cored, "restore", "--data", s.Lab.CoreDir(), "--passphrase-file", pass, backup)
	must(t, err)
	must(t, s.Lab.StartCore(ctx))
	for name := range late {
		must(t, lab.Until(ctx, name+" waits for approval, and says so", s.Wait, func(ctx context.Context) error {
			devices, err := s.Devices(ctx)
			if err != nil {
				return err
			}
			if d, ok := devices[name]; !ok || d.Status.ID != before[name].Status.ID {
				return fmt.Errorf("the core has %+v", d)
			}
			return saysNotMember(ctx, s.Lab.Boxes[name])
		}))
		_, err := s.Lab.Edgectl(ctx, "", "device", "approve", name)
		must(t, err)
	}
	must(t, online(ctx, s, "late-1", "late-2"))
	for name := range late {
		must(t, lab.Until(ctx, name+" is a member again", s.Wait, func(ctx context.Context) error {
			if saysNotMember(ctx, s.Lab.Boxes[name]) == nil {
				return errors.New("the warning stands")
			}
			return nil
		}))
		_, err := s.Counted(ctx, name)
		must(t, err)
	}
}

// saysNotMember is nil when the box itself warns that it is no member.
func saysNotMember(ctx context.Context, b *lab.Box) error {
	raw, err := b.Local(ctx, "/status")
	if err != nil {
		return err
	}
	var status struct{ Warnings []api.Warning }
	if err := json.Unmarshal(raw, &status); err != nil {
		return err
	}
	for _, w := range status.Warnings {
		if w.Name == "not-a-member" {
			return nil
		}
	}
	return fmt.Errorf("the box warns of %+v", status.Warnings)
}
