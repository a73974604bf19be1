package fleet

import (
	"maps"
	"reflect"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/manifest"
)

// A Release may have a system for each family of boxes. In a World each stands by the release's name and the family,
// which a device says of itself by its labels; what is for all others stands by the name alone. No name has a space.

func system(name, family string) string { return name + " " + family }

func ofRelease(key, name string) bool { return key == name || strings.HasPrefix(key, name+" ") }

// ReleaseFor gives the item of a release for a device with these labels; ok is false where it has none for it.
func (w *World) ReleaseFor(name string, labels map[string]string) (r Want, ok bool) {
	if r, ok = w.Releases[system(name, labels[api.Reserved+"profile"]+"/"+labels[api.Reserved+"arch"])]; !ok {
		r, ok = w.Releases[name]
	}
	return r, ok
}

func (t *tenant) setRelease(name string, o *api.Object, d dirty) error {
	var spec api.ReleaseSpec
	if err := decode(o.Spec, &spec); err != nil {
		return err
	}
	wants, images := map[string]Want{}, map[string][32]byte{}
	add := func(key, artifact, pcr string) error {
		repo, digest, ok := strings.Cut(artifact, "@")
		if !ok {
			return api.Errorf(api.Invalid, "%q names no release", artifact)
		}
		wants[key] = Want{Refs: []manifest.Ref{{Repo: repo, Digest: digest}}, Body: encode(api.ReleaseWant{Attempt: spec.Attempt})}
		if image, ok := api.ParsePCR(pcr); ok {
			images[key] = image
		}
		return nil
	}
	if spec.Artifact != "" || len(spec.Systems) == 0 {
		if err := add(name, spec.Artifact, spec.PCR11); err != nil {
			return err
		}
	}
	for _, s := range spec.Systems {
		if err := add(system(name, s.Family()), s.Artifact, s.PCR11); err != nil {
			return err
		}
	}
	before := maps.Collect(maps.All(t.Releases))
	t.dropRelease(name)
	maps.Copy(t.Releases, wants)
	maps.Copy(t.Images, images)
	if !reflect.DeepEqual(before, t.Releases) {
		t.touchFleets(func(s *api.FleetSpec) bool { return s.Release == name }, d)
	}
	return nil
}

func (t *tenant) dropRelease(name string) {
	maps.DeleteFunc(t.Releases, func(key string, _ Want) bool { return ofRelease(key, name) })
	maps.DeleteFunc(t.Images, func(key string, _ [32]byte) bool { return ofRelease(key, name) })
}
