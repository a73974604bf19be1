package ca

import (
	"bytes"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// formerSealing are the sealing keys before the present one, the newest first.
type formerSealing []former

type former struct {
	file     string
	replaced time.Time
	key      *ecdsa.PrivateKey // nil: destroyed, nobody needs it
}

func (f formerSealing) sort() {
	slices.SortFunc(f, func(a, b former) int { return b.replaced.Compare(a.replaced) })
}

// SealingKeys are the core's key-agreement keys: the present one, then those that boxes may still use.
func (c *CA) SealingKeys() []*ecdsa.PrivateKey {
	c.mu.RLock()
	defer c.mu.RUnlock()
	keys := []*ecdsa.PrivateKey{c.sealing.key}
	for _, f := range c.former {
		if f.key != nil {
			keys = append(keys, f.key)
		}
	}
	return keys
}

// SealingName names the present sealing key to boxes, once there was another: who knows another renews. Nil before.
func (c *CA) SealingName() []byte {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if len(c.former) == 0 {
		return nil
	}
	return identity.KID(&c.sealing.key.PublicKey)
}

// OpenSealed opens by whichever of the keys it was sealed to.
func (c *CA) OpenSealed(info identity.SealInfo, sealed []byte) (plain []byte, err error) {
	for _, key := range c.SealingKeys() {
		var bad error
		if plain, bad = identity.Open(key, info, sealed); bad == nil {
			return plain, nil
		}
		err = errors.Join(err, bad)
	}
	return nil, err
}

// RotateSealing makes another sealing key. Needs root.key. Boxes learn of it by their manifests and renew; the old one
// is kept for those that have not.
func (c *CA) RotateSealing() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.rootKey(); err != nil {
		return err
	}
	old := former{replaced: c.now(), key: c.sealing.key}
	old.file = fmt.Sprintf("%s-%020d.pem", identity.RoleSealing, old.replaced.UnixNano())
	if err := writePair(filepath.Join(c.path(previousDir), old.file), c.sealing, nil); err != nil {
		return err
	}
	p, err := c.certify(identity.RoleSealing, sealingLife)
	if err != nil {
		return err
	}
	c.sealing, c.former = p, slices.Insert(c.former, 0, old)
	return nil
}

// sealingKept is for how long a box may come with an earlier sealing key: by then its certificate, which it got with
// that at the latest, is good for renewal alone, and renewal begins with today's.
func (c *CA) sealingKept() time.Duration { return c.deviceLife + identity.Grace }

// DestroySealing destroys the earlier keys that no box can need any more, or all of them when they are lost: then state
// that boxes report counts once they have renewed. What the core itself keeps must be sealed anew before.
func (c *CA) DestroySealing(lost bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, f := range c.former {
		if f.key == nil || !lost && c.now().Sub(f.replaced) < c.sealingKept() {
			continue
		}
		// The name stays: that there was another key.
		if err := atomicfile.Write(filepath.Join(c.path(previousDir), f.file), nil, 0o600); err != nil {
			return err
		}
		c.former[i].key = nil
	}
	return nil
}

func (c *CA) readFormer(name, stamp string) error {
	nanos, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	f := former{file: name, replaced: time.Unix(0, nanos)}
	text, err := readBounded(filepath.Join(c.path(previousDir), name))
	if err != nil {
		return err
	}
	if len(bytes.TrimSpace(text)) > 0 {
		p, err := readPair(filepath.Join(c.path(previousDir), name))
		if err != nil {
			return err
		}
		if identity.RoleOf(p.cert) != identity.RoleSealing {
			return fmt.Errorf("%s holds no sealing key", name)
		}
		if p.key.Equal(c.sealing.key) { // a cut between the two steps of RotateSealing
			return os.Remove(filepath.Join(c.path(previousDir), name))
		}
		f.key = p.key
	}
	c.former = append(c.former, f)
	return nil
}
