package api

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/pattern"
)

// SharingMode is how an accelerator is divided among services. None is a silent default: a
// card without a mode is exclusive, and says so.
type SharingMode string

// The modes.
const (
	SharingExclusive   SharingMode = "exclusive"    // one service holds the whole card
	SharingMIG         SharingMode = "mig"          // slices with memory, cache and compute of their own (NVIDIA MIG)
	SharingTimeSlicing SharingMode = "time-slicing" // services take turns; nothing keeps their memory apart
	SharingMPS         SharingMode = "mps"          // services run beside each other, with limits of memory and threads (NVIDIA MPS)
)

// SharingModes lists the modes.
func SharingModes() []SharingMode {
	return []SharingMode{SharingExclusive, SharingMIG, SharingTimeSlicing, SharingMPS}
}

// Bounds on what a card tells and on what people ask of it.
const (
	maxShares      = 48 // clients of one MPS daemon since Volta; 60 since Hopper, but replicas beyond 48 help no one
	maxMIGProfiles = 32 // NVML knows 18
	maxMIGSlots    = 64 // placements are 0..7 on every card so far
	maxLayout      = 16
)

// Sharing is how one accelerator, or those that a policy chooses, is to be divided.
type Sharing struct {
	Mode SharingMode `json:"mode" yaml:"mode" cbor:"1,keyasint"`
	// Replicas is how many services may hold the card at once: time-slicing and mps, 2 to 48.
	Replicas int `json:"replicas,omitempty" yaml:"replicas,omitempty" cbor:"2,keyasint,omitempty"`
	// MemoryMiB and ThreadsPercent are the limits of each client under mps; 0 is an equal part.
	MemoryMiB      int64 `json:"memoryMiB,omitempty" yaml:"memoryMiB,omitempty" cbor:"3,keyasint,omitempty"`
	ThreadsPercent int   `json:"threadsPercent,omitempty" yaml:"threadsPercent,omitempty" cbor:"4,keyasint,omitempty"`
	// Layout names the slices that are kept ready under mig, by profile; others are made as
	// services ask for them.
	Layout []string `json:"layout,omitempty" yaml:"layout,omitempty" cbor:"5,keyasint,omitempty"`
}

// AcceleratorPolicy says how the cards that it names are to be divided. Of several that name
// a card the first counts; a card that none names is given whole.
type AcceleratorPolicy struct {
	// IDs are those that the inventory shows; Model is a pattern of the whole model, case aside:
	// "*A100*". Without either every card is named.
	IDs     []string `json:"ids,omitempty" yaml:"ids,omitempty" cbor:"1,keyasint,omitempty"`
	Model   string   `json:"model,omitempty" yaml:"model,omitempty" cbor:"2,keyasint,omitempty"`
	Sharing Sharing  `json:"sharing" yaml:"sharing" cbor:"3,keyasint"`
}

// Names tells whether a policy is about a card.
func (p *AcceleratorPolicy) Names(a *Accelerator) bool {
	if len(p.IDs) > 0 && !slices.Contains(p.IDs, a.ID) && !slices.Contains(p.IDs, a.PCI) {
		return false
	}
	ok, err := path.Match(strings.ToLower(p.Model), strings.ToLower(a.Model))
	return p.Model == "" || ok && err == nil
}

// maxPolicies bounds the policies of one box.
const maxPolicies = 32

// CheckAcceleratorPolicies says what is wrong with a list of policies, or nil. Field begins
// with the policy's index: "[0].sharing.mode".
func CheckAcceleratorPolicies(list []AcceleratorPolicy) *Error {
	if len(list) > maxPolicies {
		return &Error{Code: Invalid, Message: fmt.Sprintf("%d policies for accelerators", len(list)), Remedy: fmt.Sprintf("name models by patterns; the most is %d", maxPolicies)}
	}
	for i := range list {
		p := &list[i]
		at := fmt.Sprintf("[%d]", i)
		if len(p.IDs) > maxClaimIDs || slices.ContainsFunc(p.IDs, func(id string) bool { return !anyWord.MatchString(id) }) {
			return &Error{Code: Invalid, Field: at + ".ids", Message: "these are no names of cards", Remedy: "write names that `edgectl describe device` shows"}
		}
		if p.IDs != nil && len(p.IDs) == 0 { // check: no cards
			return &Error{Code: Invalid, Field: at + ".ids", Message: "this list is empty, and would name every card", Remedy: "name cards, or remove ids where every card is meant"}
		}
		if i > 0 && len(list[i-1].IDs) == 0 && list[i-1].Model == "" { // check: every card
			return &Error{Code: Invalid, Field: at, Message: "this policy never counts: the one before it names every card", Remedy: "write the one for every card last"}
		}
		if _, err := path.Match(p.Model, ""); err != nil || p.Model != "" && !anyModel.MatchString(p.Model) {
			return &Error{Code: Invalid, Field: at + ".model", Message: quote(p.Model) + " is no pattern of a model", Remedy: "write it like *A100*"}
		}
		if err := CheckSharing(&p.Sharing); err != nil {
			err.Field = at + ".sharing." + err.Field
			return err
		}
	}
	return nil
}

var anyModel = pattern.New(`^[A-Za-z0-9 ._+*?\[\]:/-]{1,64}$`)

// migProfile is the name that NVIDIA's tools give a profile: 1g.10gb, 1g.10gb+me, 1c.3g.40gb.
var migProfile = pattern.New(`^([1-9]c\.)?[1-9]g\.[1-9][0-9]{0,3}gb([+-](me|gfx|me\.all))?$`)

// IsMIGProfile reports whether s has the form of a profile's name. Which profiles there
// are, the card alone knows.
func IsMIGProfile(s string) bool { return migProfile.MatchString(s) }

// CheckSharing says what is wrong with a way of sharing, or nil. Field is the part of it.
func CheckSharing(s *Sharing) *Error {
	bad := func(field, remedy, format string, args ...any) *Error {
		return &Error{Code: Invalid, Field: field, Message: fmt.Sprintf(format, args...), Remedy: remedy}
	}
	parted := s.Mode == SharingTimeSlicing || s.Mode == SharingMPS
	switch {
	case !slices.Contains(SharingModes(), s.Mode):
		return bad("mode", "write exclusive, mig, time-slicing or mps", "%s is no way to share an accelerator", quote(string(s.Mode)))
	case parted && (s.Replicas < 2 || s.Replicas > maxShares):
		return bad("replicas", fmt.Sprintf("give 2 to %d", maxShares), "%s among %d services is no sharing", s.Mode, s.Replicas)
	case !parted && s.Replicas != 0:
		return bad("replicas", "remove it, or choose time-slicing or mps", "%s knows no replicas", s.Mode)
	case s.Mode != SharingMPS && (s.MemoryMiB != 0 || s.ThreadsPercent != 0):
		return bad("memoryMiB", "remove memoryMiB and threadsPercent, or choose mps; mig limits memory by its slices", "%s limits neither memory nor threads", s.Mode)
	case s.MemoryMiB < 0 || s.MemoryMiB > 1<<30:
		return bad("memoryMiB", "give the MiB that each service may take", "%d MiB is no limit", s.MemoryMiB)
	case s.ThreadsPercent < 0 || s.ThreadsPercent > 100:
		return bad("threadsPercent", "give 1 to 100", "%d %% of the card's threads is no limit", s.ThreadsPercent)
	case s.Mode != SharingMIG && len(s.Layout) > 0:
		return bad("layout", "remove it, or choose mig", "%s has no slices to lay out", s.Mode)
	case len(s.Layout) > maxLayout:
		return bad("layout", "no card has more than 8 slices", "a layout of %d slices is too long", len(s.Layout))
	}
	for i, p := range s.Layout {
		if !IsMIGProfile(p) {
			return bad(fmt.Sprintf("layout[%d]", i), "write it as the inventory shows it, such as 1g.10gb", "%s is no MIG profile", quote(p))
		}
	}
	return nil
}

// Accelerator is one card. What changes by the second (use, temperature, power drawn) is
// rounded in it or left to KPIs, so that it is not reported anew all the time.
type Accelerator struct {
	// ID stays the same after a reboot: the UUID that the driver tells ("GPU-…"), or the PCI
	// address where it tells none.
	ID     string `json:"id" cbor:"1,keyasint"`
	Vendor string `json:"vendor" cbor:"2,keyasint"` // nvidia, amd, intel
	Model  string `json:"model,omitempty" cbor:"3,keyasint,omitempty"`
	// PCI is domain:bus:device.function, in lower case: 0000:3b:00.0.
	PCI string `json:"pci" cbor:"4,keyasint"`
	// NUMA is the node that it is near; -1 where there is none.
	NUMA   int    `json:"numa" cbor:"5,keyasint"`
	Driver string `json:"driver,omitempty" cbor:"6,keyasint,omitempty"` // nvidia, amdgpu, i915, xe
	// DriverVersion, Firmware and VBIOS are as the driver tells them.
	DriverVersion string `json:"driverVersion,omitempty" cbor:"7,keyasint,omitempty"`
	VBIOS         string `json:"vbios,omitempty" cbor:"8,keyasint,omitempty"`
	Serial        string `json:"serial,omitempty" cbor:"9,keyasint,omitempty"`
	MemoryMiB     int64  `json:"memoryMiB,omitempty" cbor:"10,keyasint,omitempty"`
	// Multiprocessors is how many of the maker's compute units it has; 0 when not told.
	Multiprocessors int `json:"multiprocessors,omitempty" cbor:"11,keyasint,omitempty"`
	// Nodes are the device files: /dev/nvidia0, /dev/dri/renderD128.
	Nodes   []string `json:"nodes,omitempty" cbor:"12,keyasint,omitempty"`
	Sharing Sharing  `json:"sharing" cbor:"13,keyasint"`
	MIG     *MIG     `json:"mig,omitempty" cbor:"14,keyasint,omitempty"`
	NVLinks []NVLink `json:"nvlinks,omitempty" cbor:"15,keyasint,omitempty"`
	// PowerLimitW is what it may draw; TemperatureC is rounded to 5 degrees.
	PowerLimitW  int                  `json:"powerLimitW,omitempty" cbor:"16,keyasint,omitempty"`
	TemperatureC int                  `json:"temperatureC,omitempty" cbor:"17,keyasint,omitempty"`
	ECC          *ECC                 `json:"ecc,omitempty" cbor:"18,keyasint,omitempty"`
	Findings     []AcceleratorFinding `json:"findings,omitempty" cbor:"19,keyasint,omitempty"`
}

// MIG is what a card says about its slices.
type MIG struct {
	// Enabled is the mode in force; Pending the one after the next reset of the card.
	Enabled bool `json:"enabled" cbor:"1,keyasint"`
	Pending bool `json:"pending,omitempty" cbor:"2,keyasint,omitempty"`
	// Profiles are what the card can be cut into. Told is false where they are what it said
	// when it last told: NVML may give no placements while MIG is off.
	Profiles  []MIGProfile  `json:"profiles,omitempty" cbor:"3,keyasint,omitempty"`
	Told      bool          `json:"told" cbor:"4,keyasint"`
	Instances []MIGInstance `json:"instances,omitempty" cbor:"5,keyasint,omitempty"`
}

// MIGProfile is one size of slice, as the card itself tells it.
type MIGProfile struct {
	// ID is the number by which the driver's library knows it on this card.
	ID   int    `json:"id" cbor:"1,keyasint"`
	Name string `json:"name" cbor:"2,keyasint"` // 1g.10gb
	// Slices is its part of the card's compute; MemoryMiB is what is usable.
	Slices          int   `json:"slices" cbor:"3,keyasint"`
	MemoryMiB       int64 `json:"memoryMiB" cbor:"4,keyasint"`
	Multiprocessors int   `json:"multiprocessors,omitempty" cbor:"5,keyasint,omitempty"`
	// Max is how many of it an empty card holds.
	Max        int            `json:"max" cbor:"6,keyasint"`
	Placements []MIGPlacement `json:"placements,omitempty" cbor:"7,keyasint,omitempty"`
}

// MIGPlacement is a run of the card's memory slices. Two slices of a card share none.
type MIGPlacement struct {
	Start int `json:"start" cbor:"1,keyasint"`
	Size  int `json:"size" cbor:"2,keyasint"`
}

func (p MIGPlacement) String() string { return fmt.Sprintf("%d+%d", p.Start, p.Size) }

// Mask has a bit for each memory slice that the placement takes.
func (p MIGPlacement) Mask() uint64 { return (1<<p.Size - 1) << p.Start }

// MIGInstance is one slice that is there.
type MIGInstance struct {
	// UUID names it to CUDA ("MIG-…"); it changes when the slice is made anew.
	UUID string `json:"uuid" cbor:"1,keyasint"`
	// ID and Compute are the driver's numbers of its GPU instance and compute instance;
	// Compute is -1 where it has none, and nothing can run.
	ID        int          `json:"id" cbor:"2,keyasint"`
	Compute   int          `json:"compute" cbor:"3,keyasint"`
	Profile   int          `json:"profile" cbor:"4,keyasint"`
	Name      string       `json:"name" cbor:"5,keyasint"`
	Placement MIGPlacement `json:"placement" cbor:"6,keyasint"`
	// Busy says that a service holds it or a process runs on it: it is never moved.
	Busy bool `json:"busy,omitempty" cbor:"7,keyasint,omitempty"`
	// Cordoned says why it is given to no one; empty when it may be given.
	Cordoned string `json:"cordoned,omitempty" cbor:"8,keyasint,omitempty"`
}

// NVLink is one link to another card or a switch.
type NVLink struct {
	Link   int    `json:"link" cbor:"1,keyasint"`
	Active bool   `json:"active" cbor:"2,keyasint"`
	Peer   string `json:"peer,omitempty" cbor:"3,keyasint,omitempty"` // PCI address
}

// ECC counts errors of memory since the card was made (aggregate).
type ECC struct {
	Enabled       bool   `json:"enabled" cbor:"1,keyasint"`
	Corrected     uint64 `json:"corrected" cbor:"2,keyasint"`
	Uncorrected   uint64 `json:"uncorrected" cbor:"3,keyasint"`
	RemapFailed   bool   `json:"remapFailed,omitempty" cbor:"4,keyasint,omitempty"`
	RemapPending  bool   `json:"remapPending,omitempty" cbor:"5,keyasint,omitempty"`
	RemappedRows  int    `json:"remappedRows,omitempty" cbor:"6,keyasint,omitempty"`
	PendingToggle bool   `json:"pendingToggle,omitempty" cbor:"7,keyasint,omitempty"` // on or off, after the next reset
}

// AcceleratorFinding is what is wrong with a card or a slice of it, and what is done about it.
type AcceleratorFinding struct {
	Warning Warning `json:"warning" cbor:"1,keyasint"`
	// Slice is the UUID of the slice that it is about; empty: the whole card.
	Slice string `json:"slice,omitempty" cbor:"2,keyasint,omitempty"`
	// Action is none, cordon (given to no one else), or move (cordon, and move who is on it).
	Action string `json:"action,omitempty" cbor:"3,keyasint,omitempty"`
}

// CheckMIG says what is wrong with what a card told about its slices, or nil: numbers out of
// bounds, profiles twice, slices in one place. What it lets through, planning can rely on.
func CheckMIG(m *MIG) *Error {
	bad := func(format string, args ...any) *Error {
		return &Error{Code: Invalid, Message: fmt.Sprintf(format, args...), Remedy: "the driver and its library may be of two versions; see `edgectl describe device`"}
	}
	if len(m.Profiles) > maxMIGProfiles || len(m.Instances) > maxMIGSlots {
		return bad("the card tells of %d profiles and %d slices", len(m.Profiles), len(m.Instances))
	}
	known := map[int]bool{}
	for _, p := range m.Profiles {
		if known[p.ID] {
			return bad("profile %d is told twice", p.ID)
		}
		known[p.ID] = true
		if p.Slices < 1 || p.Slices > maxMIGSlots || p.MemoryMiB < 1 || p.Max < 0 || p.Max > maxMIGSlots || len(p.Placements) > maxMIGSlots {
			return bad("profile %s has %d slices, %d MiB, and fits %d times in %d places", p.Name, p.Slices, p.MemoryMiB, p.Max, len(p.Placements))
		}
		for _, at := range p.Placements {
			if !at.valid() {
				return bad("profile %s has no such place as %s", p.Name, at)
			}
		}
	}
	var taken uint64
	for _, i := range m.Instances {
		switch {
		case !i.Placement.valid():
			return bad("slice %d is at %s", i.ID, i.Placement)
		case taken&i.Placement.Mask() != 0:
			return bad("slice %d lies over another", i.ID)
		}
		taken |= i.Placement.Mask()
	}
	return nil
}

func (p MIGPlacement) valid() bool {
	return p.Start >= 0 && p.Size >= 1 && p.Size <= maxMIGSlots && p.Start+p.Size <= maxMIGSlots
}
