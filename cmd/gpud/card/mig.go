//go:build cgo

package card

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"tributary.dev/tributary/pkg/api"
)

// mig reads what a card can be cut into and what it is cut into.
func mig(d nvml.Device) (*api.MIG, error) {
	now, pending, ret := d.GetMigMode()
	if ret == nvml.ERROR_NOT_SUPPORTED {
		return nil, nil
	}
	if ret != nvml.SUCCESS {
		return nil, fault("reading the MIG mode", ret)
	}
	m := &api.MIG{Enabled: now == nvml.DEVICE_MIG_ENABLE, Pending: pending == nvml.DEVICE_MIG_ENABLE}
	infos, err := profiles(d)
	if err != nil {
		return nil, err
	}
	memory, ret := d.GetMemoryInfo()
	if ret != nvml.SUCCESS {
		return nil, fault("reading the memory", ret)
	}
	uuids, err := migUUIDs(d, m.Enabled)
	if err != nil {
		return nil, err
	}
	for _, info := range infos {
		p := api.MIGProfile{ID: int(info.Id), Name: profileName(info.enum, info.GpuInstanceProfileInfo, memory.Total), Slices: int(info.SliceCount),
			MemoryMiB: int64(info.MemorySizeMB), Multiprocessors: int(info.MultiprocessorCount), Max: int(info.InstanceCount)}
		// The driver may tell no places while MIG is off, and says so in several ways.
		if places, ret := d.GetGpuInstancePossiblePlacements(&info.GpuInstanceProfileInfo); ret == nvml.SUCCESS {
			for _, at := range places {
				p.Placements = append(p.Placements, placement(at))
			}
			m.Told = m.Told || len(places) > 0
		} else if m.Enabled {
			return nil, fault("reading the places of "+p.Name, ret)
		}
		m.Profiles = append(m.Profiles, p)
		if !m.Enabled {
			continue
		}
		there, err := instances(d, info, p, uuids)
		if err != nil {
			return nil, err
		}
		m.Instances = append(m.Instances, there...)
	}
	slices.SortFunc(m.Instances, func(a, b api.MIGInstance) int { return a.ID - b.ID })
	if err := api.CheckMIG(m); err != nil {
		return nil, err
	}
	return m, nil
}

// profile is what the library says of one of its own numbers (enum), which is not the
// number that the card has for it (Id).
type profile struct {
	enum int
	nvml.GpuInstanceProfileInfo
}

func profiles(d nvml.Device) (list []profile, err error) {
	for i := range nvml.GPU_INSTANCE_PROFILE_COUNT {
		info, ret := d.GetGpuInstanceProfileInfo(i)
		switch ret {
		case nvml.SUCCESS:
			list = append(list, profile{i, info})
		case nvml.ERROR_NOT_SUPPORTED, nvml.ERROR_INVALID_ARGUMENT: // not on this card, or not in this library
		default:
			return nil, fault("reading the MIG profiles", ret)
		}
	}
	return list, nil
}

// suffixes are what nvidia-smi adds to the names of profiles, by the library's numbers.
var suffixes = map[int]string{
	nvml.GPU_INSTANCE_PROFILE_1_SLICE_REV1: "+me", nvml.GPU_INSTANCE_PROFILE_2_SLICE_REV1: "+me",
	nvml.GPU_INSTANCE_PROFILE_1_SLICE_GFX: "+gfx", nvml.GPU_INSTANCE_PROFILE_2_SLICE_GFX: "+gfx",
	nvml.GPU_INSTANCE_PROFILE_3_SLICE_GFX: "+gfx", nvml.GPU_INSTANCE_PROFILE_4_SLICE_GFX: "+gfx",
	nvml.GPU_INSTANCE_PROFILE_1_SLICE_NO_ME: "-me", nvml.GPU_INSTANCE_PROFILE_2_SLICE_NO_ME: "-me",
	nvml.GPU_INSTANCE_PROFILE_1_SLICE_ALL_ME: "+me.all", nvml.GPU_INSTANCE_PROFILE_2_SLICE_ALL_ME: "+me.all",
}

// profileName is what nvidia-smi calls a profile: compute slices, and memory as eighths of
// the card's, rounded to whole GB.
func profileName(enum int, info nvml.GpuInstanceProfileInfo, total uint64) string {
	gb := math.Ceil(float64(total) / (1 << 30))
	eighths := math.Round(float64(info.MemorySizeMB) * (1 << 20) / float64(total) * 8)
	return fmt.Sprintf("%dg.%.0fgb%s", info.SliceCount, math.Ceil(eighths/8*gb), suffixes[enum])
}

func placement(p nvml.GpuInstancePlacement) api.MIGPlacement {
	return api.MIGPlacement{Start: int(p.Start), Size: int(p.Size)}
}

// sliceKey is a GPU instance and a compute instance in it.
type sliceKey struct{ gpu, compute int }

// slice is what CUDA sees of it.
type slice struct {
	uuid string
	busy bool
}

func migUUIDs(d nvml.Device, enabled bool) (map[sliceKey]slice, error) {
	found := map[sliceKey]slice{}
	if !enabled {
		return found, nil
	}
	n, ret := d.GetMaxMigDeviceCount()
	if ret != nvml.SUCCESS {
		return nil, fault("counting the slices", ret)
	}
	for i := range n {
		s, ret := d.GetMigDeviceHandleByIndex(i)
		if ret == nvml.ERROR_NOT_FOUND {
			continue
		}
		if ret != nvml.SUCCESS {
			return nil, fault("reading a slice", ret)
		}
		uuid, ret1 := s.GetUUID()
		gi, ret2 := s.GetGpuInstanceId()
		ci, ret3 := s.GetComputeInstanceId()
		if ret := first(ret1, ret2, ret3); ret != nvml.SUCCESS {
			return nil, fault("reading a slice", ret)
		}
		running, ret := s.GetComputeRunningProcesses()
		found[sliceKey{gi, ci}] = slice{uuid, ret != nvml.SUCCESS || len(running) > 0} // what is not known is not touched
	}
	return found, nil
}

func first(all ...nvml.Return) nvml.Return {
	for _, ret := range all {
		if ret != nvml.SUCCESS {
			return ret
		}
	}
	return nvml.SUCCESS
}

func instances(d nvml.Device, info profile, p api.MIGProfile, uuids map[sliceKey]slice) (list []api.MIGInstance, err error) {
	there, ret := d.GetGpuInstances(&info.GpuInstanceProfileInfo)
	if ret != nvml.SUCCESS {
		return nil, fault("reading the slices of "+p.Name, ret)
	}
	for _, gi := range there {
		at, ret := gi.GetInfo()
		if ret != nvml.SUCCESS {
			return nil, fault("reading a slice of "+p.Name, ret)
		}
		i := api.MIGInstance{ID: int(at.Id), Compute: -1, Profile: p.ID, Name: p.Name, Placement: placement(at.Placement)}
		for key, s := range uuids {
			if key.gpu == i.ID {
				i.Busy = i.Busy || s.busy
				if i.Compute < 0 || key.compute < i.Compute {
					i.Compute, i.UUID = key.compute, s.uuid
				}
			}
		}
		list = append(list, i)
	}
	return list, nil
}

// find is the profile of a card's number.
func find(d nvml.Device, id int) (profile, error) {
	all, err := profiles(d)
	if err != nil {
		return profile{}, err
	}
	i := slices.IndexFunc(all, func(p profile) bool { return int(p.Id) == id })
	if i < 0 {
		return profile{}, api.Errorf(api.NotFound, "the card has no profile %d", id)
	}
	return all[i], nil
}

// create makes a slice with one compute instance over all of it. When the second half
// fails, the first is undone.
func create(d nvml.Device, id int, at api.MIGPlacement) (*api.MIGInstance, error) {
	p, err := find(d, id)
	if err != nil {
		return nil, err
	}
	gi, ret := d.CreateGpuInstanceWithPlacement(&p.GpuInstanceProfileInfo, &nvml.GpuInstancePlacement{Start: uint32(at.Start), Size: uint32(at.Size)})
	if ret != nvml.SUCCESS {
		return nil, fault(fmt.Sprintf("making a slice of profile %d at %s", id, at), ret)
	}
	if err := fill(gi, p.SliceCount); err != nil {
		gi.Destroy()
		return nil, err
	}
	info, ret := gi.GetInfo()
	if ret != nvml.SUCCESS {
		return nil, fault("reading the new slice", ret)
	}
	now, err := mig(d)
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(now.Instances, func(i api.MIGInstance) bool { return i.ID == int(info.Id) }); i >= 0 {
		return &now.Instances[i], nil
	}
	return nil, api.Errorf(api.Internal, "the new slice %d is not there", info.Id)
}

// fill gives a GPU instance the compute instance that has all of its compute.
func fill(gi nvml.GpuInstance, want uint32) error {
	for i := range nvml.COMPUTE_INSTANCE_PROFILE_COUNT {
		info, ret := gi.GetComputeInstanceProfileInfo(i, nvml.COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED)
		if ret != nvml.SUCCESS || info.SliceCount != want {
			continue
		}
		if _, ret := gi.CreateComputeInstance(&info); ret != nvml.SUCCESS {
			return fault("making a compute instance", ret)
		}
		return nil
	}
	return api.Errorf(api.Internal, "the slice has no compute profile of %d slices", want)
}

// destroy removes a slice; one that is gone is no fault.
func destroy(d nvml.Device, id int) error {
	all, err := profiles(d)
	if err != nil {
		return err
	}
	for _, p := range all {
		there, ret := d.GetGpuInstances(&p.GpuInstanceProfileInfo)
		if ret != nvml.SUCCESS {
			return fault("reading the slices", ret)
		}
		for _, gi := range there {
			if info, ret := gi.GetInfo(); ret != nvml.SUCCESS || int(info.Id) != id {
				continue
			}
			if err := empty(gi); err != nil {
				return err
			}
			if ret := gi.Destroy(); ret != nvml.SUCCESS {
				return fault(fmt.Sprintf("removing slice %d", id), ret)
			}
			return nil
		}
	}
	return nil
}

// empty removes a GPU instance's compute instances: the driver asks for that first.
func empty(gi nvml.GpuInstance) error {
	for i := range nvml.COMPUTE_INSTANCE_PROFILE_COUNT {
		info, ret := gi.GetComputeInstanceProfileInfo(i, nvml.COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED)
		if ret != nvml.SUCCESS {
			continue
		}
		there, ret := gi.GetComputeInstances(&info)
		if ret != nvml.SUCCESS {
			return fault("reading compute instances", ret)
		}
		for _, ci := range there {
			if ret := ci.Destroy(); ret != nvml.SUCCESS {
				return fault("removing a compute instance", ret)
			}
		}
	}
	return nil
}

// fault turns what the library returned into words and a code.
func fault(doing string, ret nvml.Return) *api.Error {
	code, remedy := api.Internal, ""
	switch ret {
	case nvml.ERROR_IN_USE:
		code, remedy = api.Conflict, "stop who uses it"
	case nvml.ERROR_INSUFFICIENT_RESOURCES:
		code, remedy = api.Conflict, "other slices are in the way"
	case nvml.ERROR_INVALID_ARGUMENT, nvml.ERROR_NOT_SUPPORTED:
		code, remedy = api.Invalid, "the card does not know this"
	case nvml.ERROR_NOT_FOUND:
		code = api.NotFound
	case nvml.ERROR_NO_PERMISSION:
		code, remedy = api.Forbidden, "gpud must run as root"
	case nvml.ERROR_GPU_IS_LOST, nvml.ERROR_RESET_REQUIRED:
		code, remedy = api.Internal, "the card needs a reset: restart the box" // Unavailable would say that no driver answers
	case nvml.ERROR_UNINITIALIZED, nvml.ERROR_DRIVER_NOT_LOADED, nvml.ERROR_LIBRARY_NOT_FOUND, nvml.ERROR_LIB_RM_VERSION_MISMATCH:
		code, remedy = api.Unavailable, "the driver and its libraries must be there, and of one version"
	}
	return &api.Error{Code: code, Message: doing + ": " + strings.TrimPrefix(ret.String(), "ERROR_"), Remedy: remedy}
}
