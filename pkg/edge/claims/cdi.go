package claims

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity/atomicfile"
	"tributary.dev/tributary/pkg/pattern"
)

// vendor is the first part of the names of our devices in CDI.
const vendor = "tributary.dev"

// version is the lowest version of the specification (CNCF's Container Device Interface,
// SPEC.md) that has the words of these devices. A program passes over files of versions newer
// than itself without a word: podman 4.3, Debian 12's, knows none after 0.5.0.
func version(devices []specDevice) string {
	for _, d := range devices {
		named := func(n api.DeviceNode) bool { return n.HostPath != "" }
		if strings.IndexAny(d.Name, "0123456789") == 0 || slices.ContainsFunc(d.Edits.Nodes, named) {
			return "0.5.0"
		}
	}
	return "0.3.0"
}

// odd are the characters that CDI does not allow in a device's name.
var odd = pattern.New(`[^A-Za-z0-9_.:-]`)

func deviceName(id string) string { return odd.ReplaceAllString(id, "_") }

// Specs are the files by which ctr, nerdctl, podman and others on the box find its devices:
// one for each class, with a device for each that is held. They describe what containers
// get; they give nobody a right.
type Specs struct {
	// Dir is where CDI looks for what is made at run time: /var/run/cdi.
	Dir string

	mu    sync.Mutex
	files map[api.ClaimClass]map[string]api.DeviceEdits
}

type specFile struct {
	Version string       `json:"cdiVersion"`
	Kind    string       `json:"kind"`
	Devices []specDevice `json:"devices"`
}

type specDevice struct {
	Name  string          `json:"name"`
	Edits api.DeviceEdits `json:"containerEdits"`
}

// Write adds or replaces a device.
func (s *Specs) Write(class api.ClaimClass, id string, edits api.DeviceEdits) error {
	return s.change(class, func(devices map[string]api.DeviceEdits) { devices[deviceName(id)] = edits })
}

// Remove takes a device out; the file goes with its last device.
func (s *Specs) Remove(class api.ClaimClass, id string) error {
	return s.change(class, func(devices map[string]api.DeviceEdits) { delete(devices, deviceName(id)) })
}

func (s *Specs) path(class api.ClaimClass) string {
	return filepath.Join(s.Dir, vendor+"-"+string(class)+".json")
}

// Keep takes out what is not held, of what an earlier process of this boot wrote: the
// containers of that one may still run.
func (s *Specs) Keep(held map[api.ClaimClass][]string) error {
	var errs []error
	for _, class := range api.ClaimClasses() {
		if _, err := os.Stat(s.path(class)); err != nil {
			continue
		}
		names := map[string]bool{}
		for _, id := range held[class] {
			names[deviceName(id)] = true
		}
		errs = append(errs, s.change(class, func(devices map[string]api.DeviceEdits) {
			maps.DeleteFunc(devices, func(name string, _ api.DeviceEdits) bool { return !names[name] })
		}))
	}
	return errors.Join(errs...)
}

// maxSpec bounds a file of ours: a device of it takes some 4 KiB.
const maxSpec = 8 << 20

// read takes in what an earlier process wrote. What cannot be read is written anew as services
// take their devices.
func read(path string) map[string]api.DeviceEdits {
	out := map[string]api.DeviceEdits{}
	var file specFile
	f, err := os.Open(path)
	if err != nil {
		return out
	}
	defer f.Close()
	if raw, err := io.ReadAll(io.LimitReader(f, maxSpec)); err != nil || json.Unmarshal(raw, &file) != nil {
		return out
	}
	for _, d := range file.Devices {
		out[d.Name] = d.Edits
	}
	return out
}

func (s *Specs) change(class api.ClaimClass, fn func(map[string]api.DeviceEdits)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files == nil {
		s.files = map[api.ClaimClass]map[string]api.DeviceEdits{}
	}
	path := s.path(class)
	if s.files[class] == nil {
		s.files[class] = read(path)
	}
	devices := s.files[class]
	fn(devices)
	// A device that changes nothing in a container (a processor) has no place in a
	// specification, which wants at least one edit of each.
	file := specFile{Kind: vendor + "/" + string(class)}
	for _, name := range slices.Sorted(maps.Keys(devices)) {
		if e := devices[name]; len(e.Env)+len(e.Nodes)+len(e.Mounts) > 0 {
			file.Devices = append(file.Devices, specDevice{name, e})
		}
	}
	if len(file.Devices) == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	file.Version = version(file.Devices)
	raw, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return err
	}
	return atomicfile.Write(path, append(raw, '\n'), 0o644)
}
