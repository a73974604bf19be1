package manifest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/fxamacker/cbor/v2"

	"tributary.dev/tributary/pkg/api"
)

// ErrBase tells that a delta does not fit what the receiver holds: ask for the full
// manifest.
var ErrBase = errors.New("delta does not fit the manifest at hand")

// deltaWire is what changed since a generation: the new header whole, the items that
// changed, the keys that went, and the new signature. Check is the beginning of the
// SHA-256 of the bytes that must come out; it finds a base of the right number with
// other content, long before the device's own verification would.
type deltaWire struct {
	_         struct{} `cbor:",toarray"`
	Version   uint
	Base      uint64
	Head      map[uint64]cbor.RawMessage
	Changed   map[string]cbor.RawMessage
	Removed   []string
	Protected []byte
	Signature []byte
	Check     []byte
}

const (
	deltaVersion = 1
	checkBytes   = 8
)

// Floor is a key that no item has. tombstones[Floor] = g tells that removals up to
// generation g are no longer remembered.
const Floor = ""

// Since is the delta that brings a holder of generation base (of the same device and
// epoch) to s: items changed after base, keys removed after base by the tombstones
// (key → generation of removal), header and signature. Base 0 is a holder of nothing.
// It may also be applied to any generation between base and s. ok is false when no such
// delta can be made: base is newer than s, or older than what the tombstones remember;
// send s.Raw or Since(0).
func (s *Signed) Since(base uint64, tombstones map[string]uint64) (delta []byte, ok bool) {
	if base > s.Manifest.Generation || base > 0 && base < tombstones[Floor] {
		return nil, false
	}
	changed := map[string]cbor.RawMessage{}
	for k, it := range s.Manifest.Items {
		if it.Gen > base {
			changed[k] = s.parts.items[k]
		}
	}
	var removed []string
	if base > 0 {
		for k, gen := range tombstones {
			if _, there := s.Manifest.Items[k]; gen > base && !there && k != Floor {
				removed = append(removed, k)
			}
		}
	}
	return s.delta(base, changed, removed)
}

// Diff is the delta from old to s for someone who has both, found by comparing them.
// It fails with ErrBase when they are of different devices or epochs or old is newer.
func Diff(old, s *Signed) ([]byte, error) {
	a, b := &old.Manifest, &s.Manifest
	if a.Device != b.Device || a.Epoch != b.Epoch || a.Generation > b.Generation {
		return nil, ErrBase
	}
	changed := map[string]cbor.RawMessage{}
	for k, raw := range s.parts.items {
		if !bytes.Equal(raw, old.parts.items[k]) {
			changed[k] = raw
		}
	}
	var removed []string
	for k := range old.parts.items {
		if _, there := s.parts.items[k]; !there {
			removed = append(removed, k)
		}
	}
	d, ok := s.delta(a.Generation, changed, removed)
	if !ok {
		return nil, ErrBase
	}
	return d, nil
}

func (s *Signed) delta(base uint64, changed map[string]cbor.RawMessage, removed []string) ([]byte, bool) {
	slices.Sort(removed)
	sum := sha256.Sum256(s.Raw)
	b, err := encMode.Marshal(deltaWire{Version: deltaVersion, Base: base, Head: s.parts.head, Changed: changed, Removed: removed,
		Protected: s.parts.protected, Signature: s.parts.signature, Check: sum[:checkBytes]})
	return b, err == nil && len(b) <= MaxBytes && len(removed) <= 2*MaxItems
}

// Apply rebuilds the exact signed bytes from a base and a delta. The base may be of any
// generation from the delta's base to its result, and nil when the delta's base is 0. It
// fails with ErrBase (wrapped) when the base does not fit. The signature is not
// verified here: a device opens the result's Raw with its trust before it believes it.
func Apply(base *Signed, delta []byte) (*Signed, error) {
	d, head, err := decodeDelta(delta)
	if err != nil {
		return nil, err
	}
	items := make(map[string]cbor.RawMessage, len(d.Changed))
	if d.Base > 0 {
		if err := fits(base, head, d.Base); err != nil {
			return nil, err
		}
		for k, v := range base.parts.items {
			items[k] = v
		}
	}
	for _, k := range d.Removed {
		delete(items, k)
	}
	for k, v := range d.Changed {
		items[k] = v
	}
	raw, err := parts{protected: d.Protected, signature: d.Signature, head: d.Head, items: items}.raw()
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(raw); !bytes.Equal(sum[:checkBytes], d.Check) {
		return nil, fmt.Errorf("%w: other bytes come out than the delta promises", ErrBase)
	}
	return Parse(raw)
}

func fits(base *Signed, head headWire, from uint64) error {
	if base == nil {
		return fmt.Errorf("%w: it starts from generation %d and there is none here", ErrBase, from)
	}
	m := &base.Manifest
	switch {
	case m.Device != api.DeviceID(head.Device):
		return fmt.Errorf("%w: it is of device %s, this is of %s", ErrBase, api.DeviceID(head.Device), m.Device)
	case m.Epoch != head.Epoch:
		return fmt.Errorf("%w: it is of epoch %d, this is of %d", ErrBase, head.Epoch, m.Epoch)
	case m.Generation < from || m.Generation > head.Generation:
		return fmt.Errorf("%w: it leads from generation %d to %d, this is %d", ErrBase, from, head.Generation, m.Generation)
	}
	return nil
}

// DeltaHeader reads from a delta whose it is, and from which generation it leads to
// which.
func DeltaHeader(delta []byte) (device api.DeviceID, epoch, baseGen, gen uint64, err error) {
	d, head, err := decodeDelta(delta)
	if err != nil {
		return device, 0, 0, 0, err
	}
	return api.DeviceID(head.Device), head.Epoch, d.Base, head.Generation, nil
}

func decodeDelta(delta []byte) (d deltaWire, head headWire, err error) {
	if len(delta) > MaxBytes {
		return d, head, tooLarge(len(delta))
	}
	if err := decMode.Unmarshal(delta, &d); err != nil {
		return d, head, fmt.Errorf("manifest delta: %w", err)
	}
	if d.Version != deltaVersion {
		return d, head, fmt.Errorf("manifest delta has version %d; this build knows %d", d.Version, deltaVersion)
	}
	if _, there := d.Head[itemsField]; there {
		return d, head, errors.New("manifest delta with items in its header")
	}
	if head, err = decodeHead(d.Head); err != nil {
		return d, head, fmt.Errorf("manifest delta: %w", err)
	}
	return d, head, nil
}
