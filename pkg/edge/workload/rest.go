package workload

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"tributary.dev/tributary/pkg/cpulist"
)

// rest is what containers have of processors and huge pages without a claim: what is nobody's
// alone. A program needs no right to run where its cgroup lets it, nor to map huge pages, so
// that a container without bounds could take what another one holds.
type rest struct {
	// CPUs are the processors that are not isolated; empty where none is, and all are shared.
	CPUs []int
	// Pages are the sizes of huge pages that there can be ("2M").
	Pages []string
	// Nodes says that containers can be held to NUMA nodes.
	Nodes bool
}

// Files of the kernel (cgroups(7), Documentation/admin-guide/mm/hugetlbpage.rst).
const (
	dirCgroups      = "sys/fs/cgroup"
	fileControllers = dirCgroups + cgroupParent + "/cgroup.subtree_control"
	fileIsolated    = "sys/devices/system/cpu/isolated"
	filePossible    = "sys/devices/system/cpu/possible"
	dirPages        = "sys/kernel/mm/hugepages"
)

// enableBounds has containers' cgroups bound processors and pages, as the runtime does when it
// makes the first of them: root is the folder of all cgroups. Where that cannot be, as within
// somebody else's container, lookRest finds it so.
func enableBounds(root string) {
	for _, dir := range []string{root, root + cgroupParent} {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return
		}
		for _, controller := range []string{"+cpuset", "+hugetlb"} {
			_ = writeKernel(filepath.Join(dir, "cgroup.subtree_control"), controller) // the kernel may not have it
		}
	}
}

func writeKernel(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// rest reads what containers have without a claim.
func (m *Manager) rest() rest {
	m.bounds.Do(func() {
		if _, err := os.Stat("/" + dirCgroups + "/cgroup.controllers"); err == nil { // version 2
			enableBounds("/" + dirCgroups)
		}
	})
	return lookRest(os.DirFS("/"))
}

// lookRest reads the rest. Where cgroups of version 2 know no such bound there is none.
func lookRest(root fs.FS) (r rest) {
	text := func(name string) string {
		b, err := fs.ReadFile(root, name)
		if err != nil || len(b) > maxKernelFile {
			return ""
		}
		return strings.TrimSpace(string(b))
	}
	controllers := strings.Fields(text(fileControllers))
	if r.Nodes = slices.Contains(controllers, "cpuset"); r.Nodes {
		if isolated := cpulist.Parse(text(fileIsolated)); len(isolated) > 0 {
			r.CPUs = slices.DeleteFunc(cpulist.Parse(text(filePossible)), func(n int) bool { return slices.Contains(isolated, n) })
		}
	}
	if !slices.Contains(controllers, "hugetlb") {
		return r
	}
	sizes, _ := fs.ReadDir(root, dirPages) // a kernel without them has no folder
	for _, e := range sizes {
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB"), 10, 64)
		if err == nil {
			r.Pages = append(r.Pages, pageSize(kib))
		}
	}
	return r
}

const maxKernelFile = 64 << 10

// pageSize is a size as people and cgroups write it: 2048 KiB are "2M".
func pageSize(kib int64) string {
	switch {
	case kib >= 1<<20:
		return strconv.FormatInt(kib>>20, 10) + "G"
	case kib >= 1<<10:
		return strconv.FormatInt(kib>>10, 10) + "M"
	}
	return strconv.FormatInt(kib, 10) + "K"
}

// bound holds a container to the rest, beside what it was given.
func (r rest) bound(spec *specs.Spec) {
	linux := spec.Linux.Resources
	for _, size := range r.Pages {
		if !slices.ContainsFunc(linux.HugepageLimits, func(l specs.LinuxHugepageLimit) bool { return l.Pagesize == size+"B" }) {
			linux.HugepageLimits = append(linux.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size + "B"})
		}
	}
	for _, l := range linux.HugepageLimits {
		// What is mapped is set aside before it is touched, and runc's limit does not count that.
		if len(r.Pages) > 0 {
			if linux.Unified == nil {
				linux.Unified = map[string]string{}
			}
			linux.Unified["hugetlb."+l.Pagesize+".rsvd.max"] = strconv.FormatUint(l.Limit, 10)
		}
	}
	if len(r.CPUs) == 0 {
		return
	}
	if linux.CPU == nil {
		linux.CPU = &specs.LinuxCPU{}
	}
	if linux.CPU.Cpus == "" {
		linux.CPU.Cpus = cpulist.Format(r.CPUs)
	}
}
