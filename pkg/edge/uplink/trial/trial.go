// Package trial answers: which network settings are in force, and do they stay?
//
// Settings are tried like slots. New ones, wherever they come from, are in force at once,
// but the last that reached the parent are kept beside them and come back by themselves
// when the new ones go without the parent for five minutes. The decision is a plain value
// that lives in a file, so that a reboot, or a power cut, goes on where it was.
package trial

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity/atomicfile"
)

const (
	// Silence is how long settings on trial may go without the parent.
	Silence = 5 * time.Minute
	// Proof is how long the parent has to be reached for settings to be kept.
	Proof = 30 * time.Second
)

// Phase is how the newest settings stand.
type Phase string

// The phases.
const (
	Kept     Phase = "kept"     // they reached the parent
	OnTrial  Phase = "trial"    // being tried; others that worked are there to go back to
	Unproven Phase = "unproven" // being tried, and nothing else is known to work
	Reverted Phase = "reverted" // taken back
)

// Trial is what is kept on the disk.
type Trial struct {
	Phase Phase `json:"phase"`
	// Settings are in force; nil is DHCP on every card. Last are those that worked before,
	// and come back; they count only OnTrial.
	Settings *api.NetworkSettings `json:"settings,omitempty"`
	Last     *api.NetworkSettings `json:"last,omitempty"`
	// Config is what CONFIG said when it was last taken up: what was tried and taken back is
	// not tried again until it changes.
	Config *api.NetworkSettings `json:"config,omitempty"`
	// By says who wanted the settings in force, Reason why others were taken back.
	By     string `json:"by,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Silent is how long they have gone without the parent, Well how long with it.
	Silent time.Duration `json:"silent,omitempty"`
	Well   time.Duration `json:"well,omitempty"`
}

// Fresh is a box that has never reached its parent.
func Fresh(config *api.NetworkSettings) Trial {
	return Trial{Phase: Unproven, Settings: config, Config: config, By: "CONFIG"}
}

// Boot takes up what CONFIG says now: settings that have changed there are new ones.
func (t Trial) Boot(config *api.NetworkSettings) Trial {
	if same(t.Config, config) {
		return t
	}
	t.Config = config
	return t.Offer(config, "CONFIG")
}

// Offer puts new settings on trial. While others are on trial already, the last that
// worked stay what to go back to.
func (t Trial) Offer(s *api.NetworkSettings, by string) Trial {
	if same(s, t.Settings) && t.Phase != Reverted {
		return t
	}
	next := Trial{Phase: OnTrial, Settings: s, Last: t.Settings, Config: t.Config, By: by}
	switch t.Phase {
	case OnTrial:
		next.Last = t.Last
	case Unproven:
		next.Phase, next.Last = Unproven, nil
	}
	return next
}

// Tick tells how the time since the last one went.
func (t Trial) Tick(passed time.Duration, online bool) Trial {
	passed = max(passed, 0)
	if t.Phase != OnTrial && t.Phase != Unproven {
		return t
	}
	if online {
		t.Silent, t.Well = 0, t.Well+passed
		if t.Well >= Proof {
			t.Phase, t.Last, t.Well, t.Reason = Kept, nil, 0, ""
		}
		return t
	}
	t.Well = 0
	if t.Phase == Unproven {
		return t
	}
	if t.Silent += passed; t.Silent >= Silence {
		return t.Revert(fmt.Sprintf("the settings that %s wanted did not reach the parent for %v", t.By, Silence))
	}
	return t
}

// Revert goes back to what worked.
func (t Trial) Revert(reason string) Trial {
	if t.Phase != OnTrial {
		return t
	}
	return Trial{Phase: Reverted, Settings: t.Last, Config: t.Config, By: t.By, Reason: reason}
}

// Warnings are for whoever looks after the box.
func (t Trial) Warnings() []api.Warning {
	if t.Phase != Reverted {
		return nil
	}
	return []api.Warning{{Name: "network-reverted", Severity: api.Degraded, Message: "network settings were taken back: " + t.Reason, Remedy: "correct them, and the cable, VLAN or gateway that they name; then try them anew"}}
}

func same(a, b *api.NetworkSettings) bool {
	if a == nil || b == nil {
		return a == b
	}
	return reflect.DeepEqual(a, b)
}

// maxFile bounds what is read.
const maxFile = 256 << 10

// Decode reads a trial, and refuses one whose settings are not fit to be used.
func Decode(text []byte) (t Trial, err error) {
	if len(text) > maxFile {
		return t, fmt.Errorf("%d bytes: at most %d are read", len(text), maxFile)
	}
	if err := json.Unmarshal(text, &t); err != nil {
		return Trial{}, err
	}
	switch t.Phase {
	case Kept, OnTrial, Unproven, Reverted:
	default:
		return Trial{}, fmt.Errorf("%.40q is no phase", string(t.Phase))
	}
	for _, s := range []*api.NetworkSettings{t.Settings, t.Last} {
		if s != nil {
			if err := s.Validate(""); err != nil {
				return Trial{}, err
			}
		}
	}
	t.Silent, t.Well = min(max(t.Silent, 0), Silence), min(max(t.Well, 0), Proof)
	return t, nil
}

// Load reads the trial at path. Without one, or with a torn one, the box begins with what
// CONFIG says; the error tells of a torn one.
func Load(path string, config *api.NetworkSettings) (Trial, error) {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return Fresh(config), nil
	}
	if err == nil && info.Size() > maxFile {
		err = fmt.Errorf("%s has %d bytes", path, info.Size())
	}
	if err != nil {
		return Fresh(config), err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return Fresh(config), err
	}
	t, err := Decode(text)
	if err != nil {
		return Fresh(config), fmt.Errorf("%s: %w", path, err)
	}
	return t.Boot(config), nil
}

// Save writes the trial at path, whole or not at all.
func (t Trial) Save(path string) error {
	text, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return atomicfile.Write(path, append(text, '\n'), 0o600)
}

// Report is the name of what Show writes.
const Report = "network-trial.json"

// Show writes for others under run how it stands.
func (t Trial) Show(run string, now time.Time) error {
	shown := struct {
		Phase  Phase     `json:"phase"`
		Reason string    `json:"reason,omitempty"`
		By     string    `json:"by,omitempty"`
		Until  time.Time `json:"until,omitzero"`
	}{Phase: t.Phase, Reason: t.Reason, By: t.By}
	if t.Phase == OnTrial {
		shown.Until = now.Add(Silence - t.Silent)
	}
	text, err := json.Marshal(shown)
	if err != nil {
		return err
	}
	path := filepath.Join(run, Report)
	if err := os.WriteFile(path+".new", text, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// Shown are the warnings of the trial that was shown under run.
func Shown(run string) []api.Warning {
	info, err := os.Stat(filepath.Join(run, Report))
	if err != nil || info.Size() > maxFile {
		return nil
	}
	text, err := os.ReadFile(filepath.Join(run, Report))
	if err != nil {
		return nil
	}
	var t Trial
	if json.Unmarshal(text, &t) != nil {
		return nil
	}
	list := t.Warnings()
	for i := range list {
		list[i].Since = info.ModTime().Unix()
	}
	return list
}
