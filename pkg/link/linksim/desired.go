package linksim

import (
	"bytes"
	"maps"
	"slices"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/manifest"
)

// Desired is what the core wants of one device, as a fleet renderer would keep it.
type Desired struct {
	Epoch, Gen uint64
	Items      map[string]manifest.Item
	Tombs      map[string]uint64
	Signed     *manifest.Signed
}

func (d *Desired) clone() *Desired {
	c := *d
	c.Items, c.Tombs = maps.Clone(d.Items), maps.Clone(d.Tombs)
	return &c
}

// Set changes items (a nil value removes one) and signs the next generation.
func (d *Desired) Set(k *Keyring, id api.DeviceID, epoch uint64, now int64, items map[string][]byte) error {
	d.Gen++
	if d.Epoch != epoch {
		// A new core epoch renders everything anew.
		d.Epoch, d.Tombs = epoch, map[string]uint64{manifest.Floor: d.Gen}
		for key, it := range d.Items {
			it.Gen = d.Gen
			d.Items[key] = it
		}
	}
	for _, key := range slices.Sorted(maps.Keys(items)) {
		if items[key] == nil {
			if _, there := d.Items[key]; there {
				delete(d.Items, key)
				d.Tombs[key] = d.Gen
			}
			continue
		}
		d.Items[key] = manifest.Item{Gen: d.Gen, Body: bytes.Clone(items[key])}
		delete(d.Tombs, key)
	}
	s, err := k.SignManifest(manifest.Manifest{Version: 1, Device: id, Tenant: "default", Name: "box", Epoch: epoch, Generation: d.Gen, Time: now, Items: maps.Clone(d.Items)})
	d.Signed = s
	return err
}

// NewDesired wants nothing yet, under a core epoch.
func NewDesired(epoch uint64) *Desired {
	return &Desired{Epoch: epoch, Items: map[string]manifest.Item{}, Tombs: map[string]uint64{}}
}

func sortedIDs[V any](m map[api.DeviceID]V) []api.DeviceID {
	ids := make([]api.DeviceID, 0, len(m))
	for id := range m {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b api.DeviceID) int { return bytes.Compare(a[:], b[:]) })
	return ids
}
