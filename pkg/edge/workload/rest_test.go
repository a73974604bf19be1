package workload

import (
	"context"
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/containerd/containerd/v2/core/containers"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"tributary.dev/tributary/pkg/api"
)

// kernel is what a box with isolated processors and huge pages shows.
func kernel(controllers, isolated string) fstest.MapFS {
	return fstest.MapFS{
		fileControllers: {Data: []byte(controllers + "\n")}, fileIsolated: {Data: []byte(isolated + "\n")}, filePossible: {Data: []byte("0-5\n")},
		dirPages + "/hugepages-2048kB/nr_hugepages": {}, dirPages + "/hugepages-1048576kB/nr_hugepages": {}, dirPages + "/hugepages-64kB/nr_hugepages": {},
	}
}

func TestLookRest(t *testing.T) {
	for _, c := range []struct {
		controllers, isolated string
		want                  rest
	}{
		{"cpuset cpu memory hugetlb pids", "2-4", rest{CPUs: []int{0, 1, 5}, Pages: []string{"1G", "2M", "64K"}, Nodes: true}},
		{"cpuset cpu memory", "", rest{Nodes: true}},
		{"memory hugetlb", "2-4", rest{Pages: []string{"1G", "2M", "64K"}}},
	} {
		if got := lookRest(kernel(c.controllers, c.isolated)); !reflect.DeepEqual(got, c.want) {
			t.Errorf("with %q and %q isolated: %+v, not %+v", c.controllers, c.isolated, got, c.want)
		}
	}
	if got := lookRest(fstest.MapFS{}); !reflect.DeepEqual(got, rest{}) {
		t.Errorf("where nothing can be read: %+v", got)
	}
}

// The parent of all containers hands on what bounds them, as far as the kernel lets it.
func TestEnableBounds(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{root, root + cgroupParent} {
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(dir+"/cgroup.subtree_control", nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	enableBounds(root)
	for _, dir := range []string{root, root + cgroupParent} {
		if b, err := os.ReadFile(dir + "/cgroup.subtree_control"); err != nil || !strings.Contains(string(b), "+hugetlb") {
			t.Errorf("%s was told %q, %v", dir, b, err)
		}
	}
	enableBounds(root + "/nowhere/at/all")
}

// given is what a container gets of what its service holds.
func given(t *testing.T, user uint32, held ...api.HeldDevice) *specs.Spec {
	t.Helper()
	spec := &specs.Spec{Process: &specs.Process{User: specs.User{UID: user, GID: user + 1}, Env: []string{"PATH=/bin", "CARD=own"}}, Linux: &specs.Linux{Resources: &specs.LinuxResources{}}}
	if err := setDevices(context.Background(), &containers.Container{}, spec, held, lookRest(kernel("cpuset hugetlb", "2-4"))); err != nil {
		t.Fatal(err)
	}
	return spec
}

func limits(spec *specs.Spec) map[string]uint64 {
	out := map[string]uint64{}
	for _, l := range spec.Linux.Resources.HugepageLimits {
		out[l.Pagesize] = l.Limit
	}
	return out
}

// Who claims nothing runs on no isolated processor and maps no huge page: both need no right,
// and may be another's.
func TestWhoClaimsNothingTakesNothing(t *testing.T) {
	spec := given(t, 0)
	if got, want := limits(spec), map[string]uint64{"2MB": 0, "1GB": 0, "64KB": 0}; !reflect.DeepEqual(got, want) {
		t.Errorf("it may map %v, not %v", got, want)
	}
	if got := spec.Linux.Resources.Unified["hugetlb.2MB.rsvd.max"]; got != "0" {
		t.Errorf("it may set %q aside", got)
	}
	if cpu := spec.Linux.Resources.CPU; cpu == nil || cpu.Cpus != "0-1,5" || cpu.Mems != "" {
		t.Errorf("it may run on %+v", cpu)
	}
}

// What is held is bounded to itself: pages to their number and node, processors to themselves.
func TestHeldPagesAreOfTheirNode(t *testing.T) {
	pages := api.HeldDevice{Class: api.ClaimHugePages, ID: "2M@1", Units: 3, Edits: api.DeviceEdits{HugePages: 6 << 20, PageSize: "2M", NUMA: 1}}
	spec := given(t, 1000, pages)
	if got, want := limits(spec), map[string]uint64{"2MB": 6 << 20, "1GB": 0, "64KB": 0}; !reflect.DeepEqual(got, want) {
		t.Errorf("it may map %v, not %v", got, want)
	}
	if got := spec.Linux.Resources.Unified["hugetlb.2MB.rsvd.max"]; got != "6291456" {
		t.Errorf("it may set %q aside", got)
	}
	if cpu := spec.Linux.Resources.CPU; cpu.Cpus != "0-1,5" || cpu.Mems != "1" {
		t.Errorf("it may run on %q with memory of %q", cpu.Cpus, cpu.Mems)
	}
	if m := spec.Mounts[0]; m.Destination != "/dev/hugepages" || !slices.Contains(m.Options, "uid=1000") || !slices.Contains(m.Options, "gid=1001") {
		t.Errorf("its folder is %+v", m)
	}
	three := 3
	spec = given(t, 0, pages, api.HeldDevice{Class: api.ClaimCPU, ID: "cpu3", Units: 1, Edits: api.DeviceEdits{CPU: &three, NUMA: 0}})
	if cpu := spec.Linux.Resources.CPU; cpu.Cpus != "3" || cpu.Mems != "0,1" {
		t.Errorf("it may run on %q with memory of %q", cpu.Cpus, cpu.Mems)
	}
}

// Two devices of one kind are one variable with a list, and what they have in common is there
// once, for the container's own user.
func TestTwoDevicesOfOneKind(t *testing.T) {
	card := func(id, node string) api.HeldDevice {
		return api.HeldDevice{Class: api.ClaimGPU, ID: id, Units: 1, Edits: api.DeviceEdits{
			Env: []string{"CARD=" + id, "WAY=same"}, Nodes: []api.DeviceNode{{Path: "/dev/" + id, HostPath: node, Permissions: "rw"}, {Path: "/dev/common", HostPath: "/dev/null"}},
			Mounts: []api.DeviceBind{{HostPath: "/lib/libcard.so", ContainerPath: "/lib/libcard.so"}},
		}}
	}
	spec := given(t, 1000, card("one", "/dev/zero"), card("two", "/dev/full"))
	if got, want := spec.Process.Env, []string{"PATH=/bin", "CARD=one,two", "WAY=same"}; !slices.Equal(got, want) {
		t.Errorf("the environment is %q, not %q", got, want)
	}
	var paths []string
	for _, d := range spec.Linux.Devices {
		paths = append(paths, d.Path)
		if d.UID == nil || *d.UID != 1000 || d.GID == nil || *d.GID != 1001 {
			t.Errorf("%s is not the container's own", d.Path)
		}
	}
	if want := []string{"/dev/one", "/dev/common", "/dev/two"}; !slices.Equal(paths, want) {
		t.Errorf("its device files are %q, not %q", paths, want)
	}
	if len(spec.Mounts) != 1 {
		t.Errorf("its mounts are %+v", spec.Mounts)
	}
}

// What registers memory for its device may pin it, be it by vfio or RDMA.
func TestWhoMayPin(t *testing.T) {
	link := &api.DeviceLink{PCI: "0000:03:10.0"}
	for _, c := range []struct {
		name  string
		edits api.DeviceEdits
		pins  bool
	}{{"an interface", api.DeviceEdits{Link: link}, false}, {"vfio", api.DeviceEdits{}, true}, {"RDMA", api.DeviceEdits{Link: link, Nodes: []api.DeviceNode{{Path: "/dev/uverbs0", HostPath: "/dev/null"}}}, true}} {
		spec := given(t, 0, api.HeldDevice{Class: api.ClaimVF, ID: "f", Units: 1, Edits: c.edits})
		if got := slices.ContainsFunc(spec.Process.Rlimits, func(l specs.POSIXRlimit) bool { return l.Type == "RLIMIT_MEMLOCK" }); got != c.pins {
			t.Errorf("%s: pins %v", c.name, got)
		}
	}
}

// A device of the same name that is another one underneath needs another container: after a
// reboot its number may be somebody else's.
func TestMadeWith(t *testing.T) {
	group := func(id, host, uuid string) []api.HeldDevice {
		return []api.HeldDevice{{Class: api.ClaimVF, ID: id, Units: 1, Edits: api.DeviceEdits{Env: []string{"SLICE=" + uuid}, Nodes: []api.DeviceNode{{Path: "/dev/vfio/7", HostPath: host}}}}}
	}
	was := madeWith(group("f", "/dev/null", "a"), rest{})
	if was == "" || was != madeWith(group("f", "/dev/null", "a"), rest{}) {
		t.Errorf("the same devices are %q", was)
	}
	for name, other := range map[string]string{
		"another device": madeWith(group("g", "/dev/null", "a"), rest{}), "another number": madeWith(group("f", "/dev/zero", "a"), rest{}),
		"another slice": madeWith(group("f", "/dev/null", "b"), rest{}), "other processors": madeWith(group("f", "/dev/null", "a"), rest{CPUs: []int{0}}),
	} {
		if other == was {
			t.Errorf("%s is told as the same", name)
		}
	}
	if madeWith(nil, rest{Pages: []string{"2M"}, Nodes: true}) != "" {
		t.Error("a container without hardware on a box without isolated processors carries a name")
	}
	var many []api.HeldDevice
	for range 1000 {
		many = append(many, group("0000:03:10.0", "/dev/null", "a")...)
	}
	if n := len(madeWith(many, rest{})); n > 100 {
		t.Errorf("%d bytes are written on a container, which takes 4096", n)
	}
}
