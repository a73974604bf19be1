package workload

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"pgregory.net/rapid"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	cdispecs "tags.cncf.io/container-device-interface/specs-go"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/claims"
)

// TestOthersSeeTheSameDevices has the library of the Container Device Interface, which is what
// containerd, nerdctl and podman read the files with, give a container devices by the files
// that edged writes: they are those that edged's own container gets.
func TestOthersSeeTheSameDevices(t *testing.T) {
	root := t.TempDir()
	library := filepath.Join(root, "libcuda.so.1")
	if err := os.WriteFile(library, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(root, "cdi")
		if err != nil {
			t.Fatal(err)
		}
		written := &claims.Specs{Dir: dir}
		var held []api.HeldDevice
		var names []string
		for i := range rapid.IntRange(1, 3).Draw(t, "devices") {
			e := api.DeviceEdits{Env: []string{fmt.Sprintf("CARD%d=MIG-%d", i, i)}, NUMA: -1}
			for _, node := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"null", "zero", "full", "urandom"}), 1, 3, func(s string) string { return s }).Draw(t, "nodes") {
				n := api.DeviceNode{Path: "/dev/nvidia-" + node, HostPath: "/dev/" + node, Permissions: "rw"}
				if rapid.Bool().Draw(t, "as on the box") {
					n = api.DeviceNode{Path: "/dev/" + node, Permissions: "rw"}
				}
				e.Nodes = append(e.Nodes, n)
			}
			if rapid.Bool().Draw(t, "library") {
				e.Mounts = []api.DeviceBind{{HostPath: library, ContainerPath: "/usr/lib64/libcuda.so.1", Options: []string{"rbind", "rprivate", "nosuid", "nodev", "ro"}}}
			}
			h, name := api.HeldDevice{Class: api.ClaimGPU, ID: fmt.Sprintf("GPU-0a/%d+2", i), Units: 1, Edits: e}, fmt.Sprintf("tributary.dev/gpu=GPU-0a_%d_2", i)
			if rapid.Bool().Draw(t, "function") {
				h.Class, h.ID = api.ClaimVF, fmt.Sprintf("0000:01:10.%d", i)
				name = "tributary.dev/vf=" + h.ID
			}
			if err := written.Write(h.Class, h.ID, e); err != nil {
				t.Fatal(err)
			}
			held, names = append(held, h), append(names, name)
		}
		ours := emptySpec()
		if err := setDevices(t.Context(), &containers.Container{}, ours, held, rest{}); err != nil {
			t.Fatal(err)
		}
		cache, err := cdi.NewCache(cdi.WithSpecDirs(dir), cdi.WithAutoRefresh(false))
		if err != nil {
			t.Fatal(err)
		}
		if faults := cache.GetErrors(); len(faults) > 0 {
			t.Fatalf("the library refuses the files: %v", faults)
		}
		for _, s := range cache.GetVendorSpecs("tributary.dev") {
			if lowest := lowestVersion(t, s.Spec); s.Version != lowest {
				t.Fatalf("%s is of version %s, and could be read by older programs as %s", s.GetPath(), s.Version, lowest)
			}
		}
		theirs := emptySpec()
		if unknown, err := cache.InjectDevices(theirs, names...); err != nil || len(unknown) > 0 {
			t.Fatalf("%v, unknown are %v", err, unknown)
		}
		if a, b := meaning(ours), meaning(theirs); !slices.Equal(a, b) {
			t.Fatalf("edged's own container gets\n%q\nothers give\n%q", a, b)
		}
		for _, h := range held {
			if err := written.Remove(h.Class, h.ID); err != nil {
				t.Fatal(err)
			}
		}
		if err := cache.Refresh(); err != nil || len(cache.ListDevices()) > 0 {
			t.Fatalf("given back, and others still see %v (%v)", cache.ListDevices(), err)
		}
	})
}

// lowestVersion is the lowest version that has all words of a file. The library is asked for
// each device: of several it looks at the last alone (its module is of a Go whose loops have
// one variable).
func lowestVersion(t *rapid.T, s *cdispecs.Spec) (lowest string) {
	for _, d := range s.Devices {
		v, err := cdispecs.MinimumRequiredVersion(&cdispecs.Spec{Kind: s.Kind, Devices: []cdispecs.Device{d}})
		if err != nil {
			t.Fatal(err)
		}
		lowest = max(lowest, v)
	}
	return lowest
}

func emptySpec() *specs.Spec {
	return &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{Resources: &specs.LinuxResources{}}}
}

// meaning is what of a specification devices change, in an order of its own, each once.
func meaning(s *specs.Spec) (out []string) {
	out = append(out, s.Process.Env...)
	for _, d := range s.Linux.Devices {
		out = append(out, fmt.Sprintf("device %s %s %d:%d", d.Path, d.Type, d.Major, d.Minor))
	}
	for _, r := range s.Linux.Resources.Devices {
		out = append(out, fmt.Sprintf("allow %v %s %d:%d %s", r.Allow, r.Type, number(r.Major), number(r.Minor), r.Access))
	}
	for _, m := range s.Mounts {
		out = append(out, fmt.Sprintf("mount %s at %s %v", m.Source, m.Destination, m.Options))
	}
	slices.SortFunc(out, cmp.Compare[string])
	return slices.Compact(out)
}

func number(n *int64) int64 {
	if n == nil {
		return -1
	}
	return *n
}
