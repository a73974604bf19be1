// Package owner answers: whose word opens a shell on this box, also on the day on which its
// state does not?
//
// The agent keeps what the manifest says of the owner's unlock key in two places beside the
// state: whole, with the trust by which it is judged, on the partition CONFIG; and the
// fingerprint of the root in a variable of the firmware, where who has had the disk alone has
// not been. The console believes what lies on CONFIG when it leads to the root that the box's
// own identity names; when that cannot be read, to the root that the firmware names. Where
// neither is to be had, nobody's word opens a shell.
//
// CONFIG is open to whoever has the disk, who could put an earlier statement back there: that of a
// key which was lost since. So the newest one lies beside the identity too, and while that can be
// read it alone counts.
package owner

import (
	"bytes"
	"crypto/ecdh"
	"errors"
	"fmt"
	"io/fs"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/identity/unlock"
)

// Store keeps a few bytes. Read fails with fs.ErrNotExist when there are none.
type Store interface {
	Read() ([]byte, error)
	Write([]byte) error
	Remove() error
}

// Box is where things lie.
type Box struct {
	// Outside keeps an encoded unlock.Kept, Anchor a root's fingerprint.
	Outside, Anchor Store
	// Inside keeps the statement in the box's own state; nil where nothing is kept there.
	Inside Store
	// Identity reads who the box is from its own state. It fails while that is closed.
	Identity func() (*identity.Trust, api.DeviceID, error)
}

// Owner is who may open this box.
type Owner struct {
	Key    *ecdh.PublicKey
	Device api.DeviceID
	// Proven: the box has read who it is from its own state.
	Proven bool
}

// Find tells who may open this box. The error is for a person.
func (b Box) Find() (o Owner, err error) {
	trust, device, closed := b.Identity()
	if closed == nil && b.Inside != nil {
		statement, err := b.Inside.Read()
		if err == nil {
			key, err := unlock.OpenKey(statement, trust)
			return Owner{key, device, true}, err
		}
		if !errors.Is(err, fs.ErrNotExist) { // an earlier release kept none there
			return o, fmt.Errorf("what is kept of the owner cannot be read: %w", err)
		}
	}
	raw, err := b.Outside.Read()
	if errors.Is(err, fs.ErrNotExist) {
		return o, errors.New("no owner is known who could answer: the box never had a manifest")
	}
	if err != nil {
		return o, fmt.Errorf("what is kept of the owner cannot be read: %w", err)
	}
	kept, err := unlock.DecodeKept(raw)
	if err != nil {
		return o, fmt.Errorf("what is kept of the owner is torn: %w", err)
	}
	if closed == nil {
		key, err := unlock.OpenKey(kept.Key, trust)
		return Owner{key, device, true}, err
	}
	root, err := b.Anchor.Read()
	if err != nil {
		return o, fmt.Errorf("the box's state is closed, and its firmware does not tell whose it is: %w", err)
	}
	key, err := kept.Owner(root)
	return Owner{key, kept.Device, false}, err
}

// Keep writes down what a manifest says of the owner, if it is new and the box's own trust
// bears it out. It may be repeated; nothing is written that stands there already.
func (b Box) Keep(trust *identity.Trust, device api.DeviceID, statement []byte) error {
	if _, err := unlock.OpenKey(statement, trust); err != nil {
		return err
	}
	kept, err := unlock.Kept{Trust: trust.Encode(), Key: statement, Device: device}.Encode()
	if err != nil {
		return err
	}
	root := identity.Fingerprint(trust.Root)
	// The anchor first: without it what lies outside is worth nothing on the day.
	err = errors.Join(put(b.Anchor, root[:]), put(b.Outside, kept))
	if b.Inside != nil {
		err = errors.Join(err, put(b.Inside, statement))
	}
	return err
}

// Forget takes the owner away, for a factory reset, which destroys what lies inside by itself.
func (b Box) Forget() error { return errors.Join(b.Anchor.Remove(), b.Outside.Remove()) }

func put(s Store, value []byte) error {
	if old, err := s.Read(); err == nil && bytes.Equal(old, value) {
		return nil
	}
	return s.Write(value)
}
