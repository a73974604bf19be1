package accel

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

func h100() *api.Accelerator {
	return &api.Accelerator{ID: "GPU-1", Vendor: "nvidia", Model: "H100", Driver: "nvidia", MemoryMiB: 81920, Nodes: []string{"/dev/nvidia0"}, NUMA: 1, Sharing: api.Sharing{Mode: api.SharingExclusive}}
}

func TestShare(t *testing.T) {
	s, err := Share(h100(), api.Sharing{Mode: api.SharingMPS, Replicas: 4}, "/run/tributary")
	if err != nil || s.Shares != 4 || s.Daemon == nil || s.Caution == "" {
		t.Fatalf("%+v, %v", s, err)
	}
	for _, want := range []string{"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=25", "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0=20480M", "CUDA_MPS_PIPE_DIRECTORY=/run/tributary/mps"} {
		if !slices.Contains(s.Edits.Env, want) {
			t.Errorf("no %s in %v", want, s.Edits.Env)
		}
	}
	if s.Edits.Mounts[0].Host != "/run/tributary/mps/GPU-1" || s.Daemon.Folder != s.Edits.Mounts[0].Host || !slices.Contains(s.Daemon.Env, "CUDA_VISIBLE_DEVICES=GPU-1") {
		t.Errorf("%+v", s)
	}
	for _, m := range s.Edits.Mounts { // whoever is root in a container writes what is mounted
		if strings.HasPrefix(s.Daemon.State+"/", m.Host+"/") || m.Host == "/dev/shm" {
			t.Errorf("containers see %s, the daemon's own is %s", m.Host, s.Daemon.State)
		}
	}
	if s, err := Share(h100(), api.Sharing{Mode: api.SharingMPS, Replicas: 2, MemoryMiB: 1000, ThreadsPercent: 30}, "/run"); err != nil || !slices.Contains(s.Edits.Env, "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0=1000M") {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := Share(h100(), api.Sharing{Mode: api.SharingTimeSlicing, Replicas: 3}, "/run"); err != nil || s.Shares != 3 || s.Daemon != nil || !strings.Contains(s.Caution, "memory") {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []func() error{
		func() error { _, err := Share(h100(), api.Sharing{Mode: api.SharingMIG}, "/run"); return err },
		func() error { _, err := Share(h100(), api.Sharing{}, "/run"); return err },
		func() error {
			_, err := Share(h100(), api.Sharing{Mode: api.SharingMPS, Replicas: 2, MemoryMiB: 81921}, "/run")
			return err
		},
		func() error {
			_, err := Share(&api.Accelerator{Vendor: "amd"}, api.Sharing{Mode: api.SharingMPS, Replicas: 2}, "/run")
			return err
		},
	} {
		if err := bad(); api.CodeOf(err) != api.Invalid {
			t.Errorf("%v", err)
		}
	}
}

// TestNeverAll: what no card could be cut into is told; what may find no room today, or is not known
// while MIG is off, is not.
func TestNeverAll(t *testing.T) {
	m := *told(t, "a100").told
	m.Instances = []api.MIGInstance{{ID: 1, Name: "4g.20gb", Busy: true, Placement: api.MIGPlacement{Start: 0, Size: 4}}}
	off := m
	off.Profiles = slices.Clone(m.Profiles)
	for i := range off.Profiles {
		off.Profiles[i].Placements = nil
	}
	for _, c := range []struct {
		m      *api.MIG
		layout []string
		words  string
	}{
		{&m, nil, ""},
		{&m, []string{"4g.20gb", "3g.20gb"}, ""},
		{&m, []string{"1g.5gb", "1g.5gb", "1g.5gb", "1g.5gb", "1g.5gb", "1g.5gb", "1g.5gb"}, ""},
		{&m, []string{"3g.20gb", "4g.20gb", "1g.5gb"}, "one slice more than fits: 1g.5gb, after 3g.20gb, 4g.20gb"},
		{&m, []string{"1g.5gb", "1g.10gb", "1g.50gb"}, "there is no profile 1g.50gb on it; there are 1g.5gb"},
		{&off, []string{"7g.40gb", "7g.40gb"}, ""},
		{&off, []string{"7g.80gb"}, "there is no profile 7g.80gb"},
		{&api.MIG{}, []string{"7g.40gb"}, ""},
	} {
		if got := NeverAll(c.m, c.layout); !strings.Contains(got, c.words) || (got == "") != (c.words == "") {
			t.Errorf("%v: %q, not %q", c.layout, got, c.words)
		}
	}
}

func sliced() *api.Accelerator {
	a := h100()
	a.Sharing.Mode = api.SharingMIG
	a.MIG = &api.MIG{Enabled: true, Profiles: []api.MIGProfile{{ID: 9, Name: "3g.40gb", Slices: 3, MemoryMiB: 40448}}, Instances: []api.MIGInstance{
		{UUID: "MIG-a", ID: 1, Profile: 9, Name: "3g.40gb", Placement: api.MIGPlacement{Start: 0, Size: 4}},
		{UUID: "MIG-b", ID: 2, Profile: 9, Name: "3g.40gb", Placement: api.MIGPlacement{Start: 4, Size: 4}}}}
	return a
}

func TestSliceEdits(t *testing.T) {
	a := sliced()
	minors := map[string]int{"gpu0/mig/gi2/access": 20, "gpu0/mig/gi2/ci0/access": 21}
	minor := func(p string) (int, error) {
		if n, ok := minors[p]; ok {
			return n, nil
		}
		return 0, errors.New("no such file")
	}
	e, err := Slice(a, &a.MIG.Instances[1], minor)
	if err != nil || !slices.Contains(e.Nodes, "/dev/nvidia-caps/nvidia-cap20") || !slices.Contains(e.Nodes, "/dev/nvidia-caps/nvidia-cap21") || !slices.Contains(e.Env, "CUDA_VISIBLE_DEVICES=MIG-b") {
		t.Errorf("%+v, %v", e, err)
	}
	if _, err := Slice(a, &a.MIG.Instances[0], minor); err == nil {
		t.Error("a slice without its capability file is given")
	}
}

func TestClaimables(t *testing.T) {
	a := sliced()
	got := Claimables(a)
	if len(got) != 2 || got[1].ID != "GPU-1/4+4" || got[1].Parent != "GPU-1" || got[1].Facts["profile"] != "3g.40gb" || got[1].Facts["memory"] != "40448" || got[1].Facts["compute"] != "3" || got[1].Fault != "" {
		t.Errorf("%+v", got)
	}
	a.Findings = []api.AcceleratorFinding{Judge(a, Fault{Kind: "xid", Xid: 48, Instance: 2}, time.Unix(1, 0))}
	Cordon(a)
	if got := Claimables(a); got[0].Fault != "" || !strings.Contains(got[1].Fault, "XID 48") || a.MIG.Instances[1].Cordoned == "" {
		t.Errorf("%+v", got)
	}
	whole := h100()
	whole.Sharing = api.Sharing{Mode: api.SharingTimeSlicing, Replicas: 3}
	if got := Claimables(whole); len(got) != 1 || got[0].Shares != 3 || got[0].NUMA != 1 {
		t.Errorf("%+v", got)
	}
}

func TestJudge(t *testing.T) {
	a := sliced()
	for _, c := range []struct {
		fault  Fault
		action Action
		slice  string
		name   string
	}{
		{Fault{Kind: "xid", Xid: 31, Instance: 1}, ActNone, "MIG-a", "gpu-xid"},
		{Fault{Kind: "xid", Xid: 48, Instance: 2}, ActMove, "MIG-b", "gpu-xid"},
		{Fault{Kind: "xid", Xid: 79, Instance: 2}, ActMove, "", "gpu-xid"},
		{Fault{Kind: "xid", Xid: 9999, Instance: -1}, ActCordon, "", "gpu-xid"},
		{Fault{Kind: "ecc-uncorrected", Instance: 1}, ActMove, "MIG-a", "gpu-memory"},
		{Fault{Kind: "ecc-corrected", Instance: 1}, ActNone, "MIG-a", "gpu-memory-corrected"},
		{Fault{Kind: "unavailable", Instance: 1}, ActMove, "", "gpu-lost"},
		{Fault{Kind: "hot", Celsius: 90, Instance: -1}, ActCordon, "", "gpu-hot"},
		{Fault{Kind: "hot", Celsius: 60, Instance: -1}, "", "", ""},
	} {
		got := Judge(a, c.fault, time.Unix(1, 0))
		if got.Action != string(c.action) || got.Slice != c.slice || got.Warning.Name != c.name {
			t.Errorf("%+v: %+v", c.fault, got)
		}
	}
}

// TestMeterParts: whoever held what, the parts are no more than the card drew, none is below
// nothing, and who holds and does more pays no less.
func TestMeterParts(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		held := rapid.SliceOfN(rapid.Custom(func(r *rapid.T) Holding {
			return Holding{Who: "a/b", Compute: rapid.IntRange(1, 4).Draw(r, "compute"), Seconds: 10, MemoryMiB: 1024, Percent: rapid.IntRange(-1, 100).Draw(r, "percent")}
		}), 0, 7).Draw(r, "held")
		sum := 0.0
		used := Meter(7, 5_000_000, held)
		for i, u := range used {
			if sum += u.EnergyJ; u.EnergyJ < 0 || u.SliceSeconds != float64(held[i].Compute)*10 {
				r.Fatalf("%+v", u)
			}
			for j, v := range used {
				if held[i].Compute >= held[j].Compute && held[i].Percent >= held[j].Percent && u.EnergyJ < v.EnergyJ-1e-6 {
					r.Fatalf("%+v pays less than %+v", held[i], held[j])
				}
			}
		}
		if sum > 5000+1e-6 {
			r.Fatalf("%f J of 5000", sum)
		}
	})
	if got := Meter(7, 7_000_000, []Holding{{Compute: 3, Seconds: 3600, MemoryMiB: 2048, Percent: -1}})[0]; math.Abs(got.EnergyJ-3000) > 1e-6 || got.MemoryMiBHours != 2048 || got.BusySeconds != -1 {
		t.Errorf("%+v", got)
	}
}

func TestExclusive(t *testing.T) {
	card := api.Accelerator{ID: "0000:c3:00.0", PCI: "0000:c3:00.0", Vendor: "amd", Driver: "amdgpu", NUMA: 1, MemoryMiB: 65520, Nodes: []string{"/dev/dri/renderD129"}, Sharing: api.Sharing{Mode: api.SharingExclusive}}
	if e := Exclusive(&card); !slices.Contains(e.Nodes, "/dev/kfd") || !slices.Contains(e.Nodes, "/dev/dri/renderD129") {
		t.Errorf("%+v", e)
	}
	if c := Claimables(&card); c[0].Facts["render-node"] != "true" || c[0].ID != "0000:c3:00.0" {
		t.Errorf("%+v", c)
	}
}
