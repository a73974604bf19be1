package accel

import (
	"cmp"
	"fmt"
	"path"
	"strconv"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// Edits are what a container needs beside its own: the words of a CDI specification's
// containerEdits.
type Edits struct {
	Nodes  []string // device files
	Env    []string // NAME=value
	Mounts []Mount
}

// Mount is one folder of the box in the container.
type Mount struct{ Host, Container string }

// Daemon is a program that must run while a way of sharing is in force, one for each card.
type Daemon struct {
	Name string // of the unit: mps-GPU-…
	Args []string
	Env  []string
	// Folder is made before it starts, for its pipes, which containers see; Shared is the
	// memory that it shares with them, at /dev/shm of both. State is seen by nobody else: what
	// is noted of it, and its logs.
	Folder, Shared, State string
	// ComputeMode is what the card is set to before, and set back from after.
	ComputeMode string
}

// Shared is how a card is given to several services at once.
type Shared struct {
	// Shares is how many may hold it.
	Shares int
	Edits  Edits
	Daemon *Daemon
	// Caution is what is not kept apart, for people; empty when all is.
	Caution string
}

// nvidiaNodes are what every user of a card of NVIDIA's opens beside the card's own file.
var nvidiaNodes = []string{"/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"}

// Share says what a way of sharing takes on one card. Run is the folder for what lasts until
// the next boot. MIG is planned by PlanMIG; Slice has a slice's edits.
func Share(a *api.Accelerator, s api.Sharing, run string) (Shared, error) {
	if err := api.CheckSharing(&s); err != nil {
		return Shared{}, err
	}
	edits := Exclusive(a)
	if a.Vendor != "nvidia" && s.Mode != api.SharingExclusive { // check: vendor
		return Shared{}, &api.Error{Code: api.Invalid, Field: "mode", Message: fmt.Sprintf("%s cards of %s are given to one service each", s.Mode, a.Vendor), Remedy: "choose exclusive"}
	}
	switch s.Mode {
	case api.SharingMIG:
		if a.MIG == nil { // check: slices
			return Shared{}, &api.Error{Code: api.Invalid, Field: "mode", Message: a.Model + " cannot be cut into slices", Remedy: "choose time-slicing or mps"}
		}
		return Shared{Shares: len(a.MIG.Instances)}, nil
	case api.SharingTimeSlicing:
		return Shared{Shares: s.Replicas, Edits: edits, Caution: "services take turns on the card, and nothing limits the memory that one takes from the others"}, nil
	case api.SharingMPS:
		if a.MemoryMiB > 0 && s.MemoryMiB > a.MemoryMiB { // check: memory
			return Shared{}, &api.Error{Code: api.Invalid, Field: "memoryMiB", Message: fmt.Sprintf("%d MiB for each service are more than the %d of %s", s.MemoryMiB, a.MemoryMiB, a.Model), Remedy: "give less, or no memoryMiB: it is an equal part then"}
		}
		return mps(a, s, edits, run), nil
	}
	return Shared{Shares: 1, Edits: edits}, nil
}

// mps runs one control daemon for a card; clients find it by the folder of its pipes. The
// limits hold from CUDA 11.5 on (CUDA_MPS_PINNED_DEVICE_MEM_LIMIT). Device 0 in it is the
// first that the client sees, which is this card.
func mps(a *api.Accelerator, s api.Sharing, edits Edits, run string) Shared {
	memory, threads := Limits(a, s)
	// Containers see the pipes and their own shared memory, and nothing else of the daemon's.
	folder, state, memories := path.Join(run, "mps", a.ID), path.Join(run, "mps-state", a.ID), path.Join(run, "mps-shm", a.ID)
	const inside = "/run/tributary/mps"
	edits.Env = append(edits.Env, "CUDA_MPS_PIPE_DIRECTORY="+inside, "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE="+strconv.Itoa(threads), fmt.Sprintf("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0=%dM", memory))
	// Clients and the daemon meet in shared memory, which is of this card's alone.
	edits.Mounts = append(edits.Mounts, Mount{folder, inside}, Mount{memories, "/dev/shm"})
	return Shared{Shares: s.Replicas, Edits: edits, Caution: "a fault of one service ends the others on the card",
		Daemon: &Daemon{Name: "mps-" + a.ID, Args: []string{"nvidia-cuda-mps-control", "-f"}, Folder: folder, State: state, Shared: memories, ComputeMode: "Exclusive_Process",
			Env: []string{"CUDA_VISIBLE_DEVICES=" + a.ID, "CUDA_MPS_PIPE_DIRECTORY=" + folder, "CUDA_MPS_LOG_DIRECTORY=" + state + "/log"}}}
}

// Limits are what each client may take of a card under mps: as the policy says, or an equal part.
func Limits(a *api.Accelerator, s api.Sharing) (memoryMiB int64, threadsPercent int) {
	memoryMiB, threadsPercent = s.MemoryMiB, s.ThreadsPercent
	if memoryMiB == 0 {
		memoryMiB = a.MemoryMiB / int64(max(s.Replicas, 1))
	}
	if threadsPercent == 0 {
		threadsPercent = max(100/max(s.Replicas, 1), 1)
	}
	return memoryMiB, threadsPercent
}

// RenderNodes are the device files by which programs compute; those that set what a screen
// shows are not among them.
func RenderNodes(a *api.Accelerator) (nodes []string) {
	for _, n := range a.Nodes {
		if strings.HasPrefix(path.Base(n), "renderD") {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// Exclusive are the edits by which a service holds a whole card.
func Exclusive(a *api.Accelerator) Edits {
	if a.Vendor == "nvidia" {
		return Edits{Nodes: append(append([]string(nil), a.Nodes...), nvidiaNodes...), Env: []string{"NVIDIA_VISIBLE_DEVICES=void", "CUDA_VISIBLE_DEVICES=" + a.ID}}
	}
	e := Edits{Nodes: RenderNodes(a)}
	if a.Vendor == "amd" {
		e.Nodes = append(e.Nodes, "/dev/kfd") // ROCm's door; which cards are behind it, the render nodes say
	}
	return e
}

// Slice are the edits by which a service holds one slice of a card. Capability files are
// numbered by the driver (/proc/driver/nvidia/capabilities/…/access); minor reads one.
func Slice(a *api.Accelerator, i *api.MIGInstance, minor func(path string) (int, error)) (Edits, error) {
	if len(a.Nodes) == 0 || i.Compute < 0 {
		return Edits{}, api.Errorf(api.Unavailable, "slice %d of %s has no compute instance", i.ID, a.ID)
	}
	number, err := strconv.Atoi(strings.TrimPrefix(a.Nodes[0], "/dev/nvidia"))
	if err != nil {
		return Edits{}, api.Errorf(api.Internal, "%s is no device file of a card", a.Nodes[0])
	}
	e := Edits{Nodes: append([]string{a.Nodes[0]}, nvidiaNodes...), Env: []string{"NVIDIA_VISIBLE_DEVICES=void", "CUDA_VISIBLE_DEVICES=" + i.UUID}}
	gi := fmt.Sprintf("gpu%d/mig/gi%d", number, i.ID)
	for _, access := range []string{gi + "/access", fmt.Sprintf("%s/ci%d/access", gi, i.Compute)} {
		n, err := minor(access)
		if err != nil {
			return Edits{}, fmt.Errorf("the capability file of slice %d of %s: %w", i.ID, a.ID, err)
		}
		e.Nodes = append(e.Nodes, fmt.Sprintf("/dev/nvidia-caps/nvidia-cap%d", n))
	}
	return e, nil
}

// Claimables are what services can hold of a card, as pkg/edge/claims asks for it.
func Claimables(a *api.Accelerator) []api.Claimable {
	whole := claimable(a)
	switch a.Sharing.Mode {
	case api.SharingTimeSlicing:
		whole.Shares = a.Sharing.Replicas
	case api.SharingMPS:
		whole.Shares = a.Sharing.Replicas
		memory, _ := Limits(a, a.Sharing)
		whole.Facts["memory"] = strconv.FormatInt(memory, 10) // what one of them may take
	case api.SharingMIG:
		return sliceClaimables(a)
	}
	return []api.Claimable{whole}
}

func claimable(a *api.Accelerator) api.Claimable {
	return api.Claimable{Class: api.ClaimGPU, ID: a.ID, Driver: a.Driver, NUMA: a.NUMA, Units: 1, Fault: faultOf(a, ""), Cordoned: faultOf(a, "") != "",
		Facts: map[string]string{"model": a.Model, "memory": strconv.FormatInt(a.MemoryMiB, 10), "sharing": string(a.Sharing.Mode), "render-node": strconv.FormatBool(a.Vendor != "nvidia")}}
}

// Possible are the slices that a card could have, one of each profile, without a place.
func Possible(a *api.Accelerator) (list []api.Claimable) {
	if a.MIG == nil {
		return nil
	}
	for i := range a.MIG.Profiles {
		list = append(list, ofProfile(a, &a.MIG.Profiles[i]))
	}
	return list
}

// Room are the slices that a card could be cut into now, for who comes.
func Room(a *api.Accelerator) (list []api.DeviceUse) {
	if a.Sharing.Mode != api.SharingMIG || a.MIG == nil || faultOf(a, "") != "" {
		return nil
	}
	for _, r := range a.MIG.Room() {
		u := api.DeviceUse{Claimable: ofProfile(a, r.Profile), Room: r.Count}
		u.ID += r.Profile.Name
		list = append(list, u)
	}
	return list
}

func ofProfile(a *api.Accelerator, p *api.MIGProfile) api.Claimable {
	c := claimable(a)
	c.ID, c.Parent = a.ID+"/", a.ID
	c.Facts["sharing"], c.Facts["profile"] = string(api.SharingMIG), p.Name
	c.Facts["memory"], c.Facts["compute"] = strconv.FormatInt(p.MemoryMiB, 10), strconv.Itoa(p.Slices)
	return c
}

func sliceClaimables(a *api.Accelerator) (list []api.Claimable) {
	if a.MIG == nil {
		return nil
	}
	for _, i := range a.MIG.Instances {
		p := api.MIGProfile{Name: i.Name}
		for _, known := range a.MIG.Profiles {
			if known.ID == i.Profile {
				p = known
			}
		}
		c := ofProfile(a, &p)
		c.ID += i.Placement.String() // the same after a reboot, as the UUID is not
		switch why := cmp.Or(i.Cordoned, faultOf(a, i.UUID)); {
		case why != "":
			c.Fault, c.Cordoned = why, true
		case i.Compute < 0:
			c.Fault = "half made"
		}
		list = append(list, c)
	}
	return list
}

// faultOf is why a card, or a slice of it, is given to no one.
func faultOf(a *api.Accelerator, slice string) string {
	for _, f := range a.Findings {
		if (f.Slice == "" || f.Slice == slice) && f.Action != "" && f.Action != string(ActNone) {
			return f.Warning.Message
		}
	}
	return ""
}
