// Package compute answers: which processors and huge pages can a service have for itself?
//
// Processors that the kernel was told to keep free (isolated by the profile) are given one
// by one; others are shared by demand and belong to nobody. Huge pages are given by number
// from those that the profile set aside, node by node. Nothing on the box changes when they
// are given: a container's cgroup holds it to them (cgroup v2: cpuset, hugetlb).
package compute

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/cpulist"
)

// Pool offers what the inventory shows.
type Pool struct {
	// Inventory is what the box is made of now; nil while it is not known.
	Inventory func() *api.Inventory
}

// Claimables lists isolated processors that are online, and huge pages by node and size.
func (p Pool) Claimables() []api.Claimable {
	inv := p.Inventory()
	if inv == nil {
		return nil
	}
	return List(inv)
}

// List is Claimables as a plain function.
func List(inv *api.Inventory) []api.Claimable {
	var out []api.Claimable
	node := map[int]int{}
	for _, n := range inv.Nodes {
		for _, cpu := range cpulist.Parse(n.CPUs) {
			node[cpu] = n.ID
		}
	}
	if inv.CPU != nil {
		online := map[int]bool{}
		for _, cpu := range cpulist.Parse(inv.CPU.Online) {
			online[cpu] = true
		}
		for _, cpu := range cpulist.Parse(inv.CPU.Isolated) {
			d := api.Claimable{Class: api.ClaimCPU, ID: "cpu" + strconv.Itoa(cpu), NUMA: -1, Units: 1, Facts: map[string]string{"isolated": "true"}}
			if n, ok := node[cpu]; ok {
				d.NUMA = n
			}
			if !online[cpu] {
				d.Fault = "it is offline"
			}
			out = append(out, d)
		}
	}
	for _, n := range inv.Nodes {
		for _, h := range n.HugePages {
			if h.Count < 1 {
				continue
			}
			size := SizeName(h.SizeKiB)
			out = append(out, api.Claimable{
				Class: api.ClaimHugePages, ID: size + "@" + strconv.Itoa(n.ID), NUMA: n.ID, Units: int(min(h.Count, 1<<30)), Facts: map[string]string{"size": size},
			})
		}
	}
	return out
}

// Prepare tells what a processor, or a number of pages, means to a container.
func (p Pool) Prepare(_ context.Context, id string, units int, _ api.Claim) (api.DeviceEdits, error) {
	for _, d := range p.Claimables() {
		if d.ID != id {
			continue
		}
		if d.Class == api.ClaimHugePages {
			size := d.Facts["size"]
			return api.DeviceEdits{HugePages: int64(units) * sizeKiB(size) << 10, PageSize: size, NUMA: d.NUMA}, nil
		}
		cpu, err := strconv.Atoi(strings.TrimPrefix(id, "cpu"))
		return api.DeviceEdits{CPU: &cpu, NUMA: d.NUMA}, err
	}
	return api.DeviceEdits{}, fmt.Errorf("%s is gone", id)
}

// Restore has nothing to undo.
func (p Pool) Restore(context.Context, string) error { return nil }

// SizeName is a page size as people write it: 2048 KiB are "2M".
func SizeName(kib int64) string {
	switch {
	case kib >= 1<<20 && kib%(1<<20) == 0:
		return strconv.FormatInt(kib>>20, 10) + "G"
	case kib >= 1<<10 && kib%(1<<10) == 0:
		return strconv.FormatInt(kib>>10, 10) + "M"
	}
	return strconv.FormatInt(kib, 10) + "K"
}

func sizeKiB(name string) int64 {
	n, _ := strconv.ParseInt(strings.TrimRight(name, "KMG"), 10, 64)
	switch {
	case strings.HasSuffix(name, "G"):
		return n << 20
	case strings.HasSuffix(name, "M"):
		return n << 10
	}
	return n
}
