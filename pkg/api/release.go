package api

// KindRelease is a release of the boxes' system that a fleet may name.
const KindRelease = "Release"

// ReleaseSpec names a release that was pushed to the registry. That it is one, boxes find out by themselves: it carries
// signatures that were made offline, by keys that the core does not have.
type ReleaseSpec struct {
	// Artifact is "repository@sha256:…", as `edgectl release push` prints it.
	Artifact string `json:"artifact"`
	// Attempt is raised to have boxes that refused the release try it again.
	Attempt uint64 `json:"attempt,omitempty"`
	// PCR11 is what build.json foretells of it, 64 hex digits: by it the core knows a device
	// that runs the release by its TPM. Empty: such a device is not attested.
	PCR11 string `json:"pcr11,omitempty"`
	// Note is for people.
	Note string `json:"note,omitempty"`
}

// ReleaseWant is what a manifest says of a release beside its reference.
type ReleaseWant struct {
	Attempt uint64 `json:"attempt,omitempty" cbor:"1,keyasint,omitempty"`
}

func validateRelease(s *ReleaseSpec, f *findings) {
	if len(s.Artifact) > 512 || !artifactRef.MatchString(s.Artifact) {
		f.addf("spec.artifact", "write repository@sha256: and 64 hex digits, as `edgectl release push` prints it", "%s is not a reference by digest", quote(s.Artifact))
	}
	if _, ok := ParsePCR(s.PCR11); !ok && s.PCR11 != "" {
		f.addf("spec.pcr11", "write pcr11 of the image's build.json", "%s is no value of PCR 11: 64 hex digits", quote(s.PCR11))
	}
	if len(s.Note) > 1024 {
		f.addf("spec.note", "shorten it", "it has %d bytes; the most is 1024", len(s.Note))
	}
}
