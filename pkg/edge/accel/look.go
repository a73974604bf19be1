package accel

import (
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// vendors of accelerators, by their number on PCI, that need no library.
var vendors = map[string]string{"0x1002": "amd", "0x8086": "intel"}

// Look finds the cards of AMD and Intel that have a render node, in a tree of /sys. A card
// without one (a display only) is no accelerator; NVIDIA's are told by gpud.
func Look(sys fs.FS) ([]api.Accelerator, error) {
	const class = "class/drm"
	entries, err := fs.ReadDir(sys, class)
	if err != nil {
		return nil, nil // no graphics in this kernel
	}
	var list []api.Accelerator
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "renderD") {
			continue
		}
		device := path.Join(class, e.Name(), "device")
		vendor := vendors[word(sys, device, "vendor")]
		uevent := facts(sys, device)
		if vendor == "" || uevent["PCI_SLOT_NAME"] == "" {
			continue
		}
		a := api.Accelerator{ID: uevent["PCI_SLOT_NAME"], PCI: uevent["PCI_SLOT_NAME"], Vendor: vendor, Driver: uevent["DRIVER"], NUMA: -1,
			Model: word(sys, device, "product_name"), Nodes: []string{"/dev/dri/" + e.Name()}, Sharing: api.Sharing{Mode: api.SharingExclusive}}
		if a.Model == "" {
			a.Model = vendor + " " + strings.ToLower(uevent["PCI_ID"])
		}
		if n, err := strconv.Atoi(word(sys, device, "numa_node")); err == nil {
			a.NUMA = n
		}
		if bytes, err := strconv.ParseInt(word(sys, device, "mem_info_vram_total"), 10, 64); err == nil { // amdgpu
			a.MemoryMiB = bytes >> 20
		}
		list = append(list, a)
	}
	slices.SortFunc(list, func(a, b api.Accelerator) int { return strings.Compare(a.PCI, b.PCI) })
	return list, nil
}

func word(sys fs.FS, dir, name string) string {
	raw, err := fs.ReadFile(sys, path.Join(dir, name))
	if err != nil || len(raw) > 4096 {
		return ""
	}
	return strings.TrimSpace(string(raw))
}

// facts reads a device's uevent.
func facts(sys fs.FS, dir string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(word(sys, dir, "uevent")) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			out[k] = v
		}
	}
	return out
}
