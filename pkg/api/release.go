package api

import (
	"fmt"
	"slices"
)

// KindRelease is a release of the boxes' system that a fleet may name.
const KindRelease = "Release"

// ReleaseSpec names a release that was pushed to the registry. That it is one, boxes find out by themselves: it carries
// signatures that were made offline, by keys that the core does not have.
type ReleaseSpec struct {
	// Systems are the release for each family of boxes, as `edgectl release push --release` writes them: so one name serves
	// a fleet of several. A device whose profile none of them is for stays as it is.
	Systems []ReleaseSystem `json:"systems,omitempty"`
	// Artifact is "repository@sha256:…", as `edgectl release push` prints it, for devices that none of Systems is for.
	Artifact string `json:"artifact,omitempty"`
	// Attempt is raised to have boxes that refused the release try it again.
	Attempt uint64 `json:"attempt,omitempty"`
	// PCR11 is what build.json foretells of Artifact, 64 hex digits: by it the core knows a device
	// that runs the release by its TPM. Empty: such a device is not attested.
	PCR11 string `json:"pcr11,omitempty"`
	// Note is for people.
	Note string `json:"note,omitempty"`
}

// ReleaseSystem is a release for the boxes of one hardware profile.
type ReleaseSystem struct {
	Profile  string `json:"profile"`
	Arch     string `json:"arch"`
	Artifact string `json:"artifact"` // "repository@sha256:…"
	PCR11    string `json:"pcr11,omitempty"`
	// Version and Counter are told to people: boxes read them in the artifact, where they are signed.
	Version string `json:"version,omitempty"`
	Counter uint64 `json:"counter,omitempty"`
}

// Family is what it is for, PROFILE/ARCH.
func (s ReleaseSystem) Family() string { return s.Profile + "/" + s.Arch }

// For gives the artifact for a device of a profile and an architecture, and "" where there is none for it.
func (s *ReleaseSpec) For(profile, arch string) string {
	if i := slices.IndexFunc(s.Systems, func(x ReleaseSystem) bool { return x.Profile == profile && x.Arch == arch }); i >= 0 {
		return s.Systems[i].Artifact
	}
	return s.Artifact
}

// Only gives the artifact for a device of which nothing is known: where there is but one.
func (s *ReleaseSpec) Only() (artifact string, ok bool) {
	switch {
	case len(s.Systems) == 0:
		return s.Artifact, s.Artifact != ""
	case len(s.Systems) == 1 && s.Artifact == "":
		return s.Systems[0].Artifact, true
	}
	return "", false
}

// ReleaseWant is what a manifest says of a release beside its reference.
type ReleaseWant struct {
	Attempt uint64 `json:"attempt,omitempty" cbor:"1,keyasint,omitempty"`
}

const maxReleaseSystems = 64

func validateRelease(s *ReleaseSpec, f *findings) {
	artifact := func(field, ref string) {
		if len(ref) > 512 || !artifactRef.MatchString(ref) {
			f.addf(field, "write repository@sha256: and 64 hex digits, as `edgectl release push` prints it", "%s is not a reference by digest", quote(ref))
		}
	}
	pcr := func(field, text string) {
		if _, ok := ParsePCR(text); !ok && text != "" {
			f.addf(field, "write pcr11 of the image's build.json", "%s is no value of PCR 11: 64 hex digits", quote(text))
		}
	}
	if s.Artifact != "" || len(s.Systems) == 0 {
		artifact("spec.artifact", s.Artifact)
	}
	pcr("spec.pcr11", s.PCR11)
	if len(s.Systems) > maxReleaseSystems {
		f.addf("spec.systems", "make several releases", "it has %d systems; the most is %d", len(s.Systems), maxReleaseSystems)
		return
	}
	seen := map[string]bool{}
	for i, x := range s.Systems {
		at := fmt.Sprintf("spec.systems[%d]", i)
		artifact(at+".artifact", x.Artifact)
		pcr(at+".pcr11", x.PCR11)
		if !profileName.MatchString(x.Profile) || !profileName.MatchString(x.Arch) {
			f.addf(at, "write the profile and the architecture of the image, as `edgectl release show` prints them", "%s is for no family of boxes", quote(x.Family()))
		}
		if len(x.Version) > 64 {
			f.addf(at+".version", "shorten it", "it has %d bytes; the most is 64", len(x.Version))
		}
		if seen[x.Family()] {
			f.addf(at, "leave one of them", "%s has a system already", quote(x.Family()))
		}
		seen[x.Family()] = true
	}
	if len(s.Note) > 1024 {
		f.addf("spec.note", "shorten it", "it has %d bytes; the most is 1024", len(s.Note))
	}
}
