package guard

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/efi"
	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// Back writes down that a person wants the other slot. It is tried like a release, and stays if all is well; the one that
// runs now is refused from then on, whatever the manifest names, until its attempt is raised. What remains to be done is
// Next, where the agent may be dead, and to start the box anew. boot is the kernel's boot id, floor the lowest security
// counter that the box still takes: below it STATE stays sealed, so nobody is sent there.
func (g *Guard) Back(boot, by string, floor uint64, now time.Time) (version string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	defer Hold(g.Path)()
	all, h, err := g.read()
	if err != nil {
		return "", fmt.Errorf("the update's state cannot be read: %w", err)
	}
	if h.Phase != "idle" && h.Phase != "check" && h.Phase != "fetch" {
		return "", fmt.Errorf("an update is in phase %s: it comes to its end by itself", h.Phase)
	}
	var slots map[string]map[string]any
	if err := json.Unmarshal(all["slots"], &slots); err != nil {
		return "", err
	}
	other, this := slots[Other(g.Running)], slots[g.Running]
	if other == nil {
		return "", errors.New("the other slot holds no whole release")
	}
	version, _ = other["version"].(string)
	if counter, _ := other["counter"].(float64); uint64(counter) < floor { // check: floor
		return "", fmt.Errorf("release %s in the other slot has security counter %.0f; this box accepts none below %d", version, counter, floor)
	}
	reason := fmt.Sprintf("%s went back to slot %s from here", by, strings.ToUpper(Other(g.Running)))
	if this != nil && this["digest"] != nil {
		var refused []json.RawMessage
		if raw, ok := all["refused"]; ok {
			if err := json.Unmarshal(raw, &refused); err != nil {
				return "", err
			}
		}
		this["cause"], this["reason"], this["base"], this["time"] = "person", reason, other["roothash"], now
		one, err := json.Marshal(this)
		if err != nil {
			return "", err
		}
		if all["refused"], err = json.Marshal(append(refused, one)); err != nil {
			return "", err
		}
	}
	for key, value := range map[string]any{"phase": "armed", "target": other, "good": g.Running, "arms": 1, "boot": boot, "by": by} {
		if all[key], err = json.Marshal(value); err != nil {
			return "", err
		}
	}
	b, err := json.MarshalIndent(all, "", " ")
	if err != nil {
		return "", err
	}
	return version, atomicfile.Write(g.Path, append(b, '\n'), 0o600)
}

// Other is the slot that is not this one.
func Other(slot string) string {
	if slot == "a" {
		return "b"
	}
	return "a"
}

// Next has the firmware start a slot once. Its boot entry exists on a box that was installed or updated.
func Next(v efi.Variables, slot string) error {
	names, err := v.List(efi.Global)
	if err != nil {
		return err
	}
	for _, name := range names {
		var n uint16
		if _, err := fmt.Sscanf(name, "Boot%04X", &n); err != nil || len(name) != 8 {
			continue
		}
		if o, err := efi.Entry(v, n); err == nil && o.Name == "Tributary "+strings.ToUpper(slot) {
			return efi.SetNext(v, n)
		}
	}
	return fmt.Errorf("the firmware has no entry for slot %s", slot)
}
