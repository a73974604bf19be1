package kmod

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Whatever says what it is somewhere among the devices is heard, on a machine as it is.
func TestModaliasesOfThisMachine(t *testing.T) {
	heard := modaliases("/sys")
	count := 0
	_ = filepath.WalkDir("/sys/devices", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "modalias" {
			return nil
		}
		b, err := os.ReadFile(p)
		text := strings.TrimSpace(string(b))
		if err != nil || text == "" {
			return nil
		}
		if count++; slices.Contains(heard, text) || slices.Contains(modaliases("/sys"), text) { // it may have just come
			return nil
		}
		if _, err := os.Stat(p); err == nil { // else it has just gone
			t.Errorf("%s: %q is not heard", p, text)
		}
		return nil
	})
	if count == 0 {
		t.Skip("needs devices that say what they are")
	}
}

// Devices lie where the kernel puts them, and are listed by links; each is heard once.
func TestModaliases(t *testing.T) {
	sys := t.TempDir()
	for device, alias := range map[string]string{
		"devices/pci0000:00/0000:00:02.0":                 "pci:v00001AF4d00001001",
		"devices/pci0000:00/0000:00:02.0/virtio0":         "virtio:d00000002v00001AF4",
		"devices/pci0000:00/0000:00:03.0":                 "pci:v00001AF4d00001001",
		"devices/platform/i8042/serio0/input/input0":      "input:b0011v0001",
		"devices/system/cpu":                              "cpu:type:x86",
		"devices/platform/nothing":                        "",
		"devices/platform/i8042/serio0/input/input0/more": "nobody:lists:this",
	} {
		dir := filepath.Join(sys, device)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "modalias"), []byte(alias+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for link, device := range map[string]string{
		"bus/pci/devices/0000:00:02.0":  "devices/pci0000:00/0000:00:02.0",
		"bus/pci/devices/0000:00:03.0":  "devices/pci0000:00/0000:00:03.0",
		"bus/virtio/devices/virtio0":    "devices/pci0000:00/0000:00:02.0/virtio0",
		"bus/platform/devices/nothing":  "devices/platform/nothing",
		"bus/platform/devices/has-gone": "devices/platform/has-gone",
		"class/input/input0":            "devices/platform/i8042/serio0/input/input0",
	} {
		if err := os.MkdirAll(filepath.Join(sys, filepath.Dir(link)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(sys, device), filepath.Join(sys, link)); err != nil {
			t.Fatal(err)
		}
	}
	got := modaliases(sys)
	slices.Sort(got)
	if want := []string{"cpu:type:x86", "input:b0011v0001", "pci:v00001AF4d00001001", "virtio:d00000002v00001AF4"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}
