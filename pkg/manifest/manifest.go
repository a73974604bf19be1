// Package manifest answers: what is one device's whole desired state, who signed it,
// and how does it cross a link at the cost of what changed?
//
// A manifest is a map of items under a generation that only grows. On the wire it is
// a COSE_Sign1 over deterministic CBOR. Relays carry it without believing it: they
// parse it, cut deltas from it and put deltas together again to the very same bytes,
// fields that they do not know included.
package manifest

import (
	"crypto"
	"crypto/ecdsa"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
)

// Bounds of a manifest. What passes them is refused on both sides.
const (
	MaxBytes = 1 << 20
	MaxItems = 4096
	maxRefs  = 256
	maxKey   = 256
)

// Purpose is the external data of a manifest's signature.
const Purpose = "tributary/manifest/1"

// Prefixes of item keys. The rest of the key is a name.
const (
	PrefixApp    = "app/"            // Refs[0] is the bundle artifact, the rest images; Body empty
	PrefixConfig = "config/"         // Body is CBOR api.ConfigData
	PrefixSecret = "secret/"         // Body is identity.Seal of CBOR api.ConfigData
	PrefixFlow   = "flow/"           // Body is CBOR api.FlowPolicySpec
	KeyRelease   = "release"         // Refs[0] is the release's artifact; Body is CBOR api.ReleaseWant
	KeyDevice    = "setting/device"  // Body is CBOR api.DeviceSettings
	KeyNetwork   = "setting/network" // Body is CBOR []api.FunctionPolicy, in the order in which they are tried
	KeyParents   = "setting/parents" // Body is CBOR []api.ParentRef
	KeySealing   = "setting/sealing" // Body is a CBOR byte string that names the core's sealing key, once that was rotated
	KeyUnlock    = "setting/unlock"  // Body is the owner's unlock key, signed (package unlock)
	KeyRevoked   = "setting/revoked" // for relays: Body is a CBOR byte string, 8 bytes for each retired device
	KeyPermits   = "setting/permits" // Body is a CBOR map of api.Permit by the key of the item that each is for
	// KeyExpected is for relays: Body is a CBOR byte string, another one whenever the boxes that are expected at the
	// relay's site are others. What these are told is fetched then.
	KeyExpected = "setting/expected"
)

// Manifest is one device's whole desired state.
type Manifest struct {
	Version uint // 1
	Device  api.DeviceID
	Tenant  string
	// Name is the device's name as people know it.
	Name string
	// Epoch and Generation order manifests; see Newer.
	Epoch, Generation uint64
	// Time is when it was signed, in Unix seconds by the core's clock.
	Time  int64
	Items map[string]Item
}

// Item is one thing the device shall have.
type Item struct {
	// Gen is the generation at which the item last changed, 1 to Manifest.Generation.
	Gen uint64
	// Refs are the artifacts it needs; relays prefetch them.
	Refs []Ref
	// Body is inline CBOR, by the key's prefix.
	Body []byte
}

// Ref names an artifact.
type Ref struct {
	Repo string
	// Digest is "sha256:" and 64 hex digits; on the wire its 32 bytes.
	Digest string
	// Size is in bytes; 0 when not known.
	Size int64
}

// Signed is a manifest with the exact bytes that were signed.
type Signed struct {
	Raw      []byte // COSE_Sign1, tagged
	Manifest Manifest

	parts parts
}

// Keys finds a signer's public key; *identity.Trust is one.
type Keys = identity.Keys

// The wire forms, CBOR maps with integer keys.
type (
	headWire struct {
		Version    uint   `cbor:"1,keyasint"`
		Device     []byte `cbor:"2,keyasint"`
		Tenant     string `cbor:"3,keyasint"`
		Name       string `cbor:"4,keyasint"`
		Epoch      uint64 `cbor:"5,keyasint"`
		Generation uint64 `cbor:"6,keyasint"`
		Time       int64  `cbor:"7,keyasint"`
	}
	itemWire struct {
		Gen  uint64    `cbor:"1,keyasint"`
		Refs []refWire `cbor:"2,keyasint,omitempty"`
		Body []byte    `cbor:"3,keyasint,omitempty"`
	}
	refWire struct {
		Repo   string `cbor:"1,keyasint"`
		Digest []byte `cbor:"2,keyasint"`
		Size   int64  `cbor:"3,keyasint,omitempty"`
	}
)

// itemsField is the number of the payload's field that holds the items.
const itemsField = 8

// maxNested bounds nesting: unknown fields may go somewhat deeper than known ones.
const maxNested = 8

var encMode = must(cbor.CoreDetEncOptions().EncMode())

var decMode = must(cbor.DecOptions{
	DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, UTF8: cbor.UTF8RejectInvalid,
	MaxNestedLevels: maxNested, MaxArrayElements: 2 * MaxItems, MaxMapPairs: MaxItems,
}.DecMode())

// must turns options that are constants of this package into modes.
func must[T any](mode T, err error) T {
	if err != nil {
		panic(err)
	}
	return mode
}

// Sign renders m deterministically and signs it under the signer's key id
// (identity.KID of the key when kid is nil). It fails with api.Invalid or
// api.TooLarge when m breaks a bound.
func Sign(m Manifest, signer crypto.Signer, kid []byte) (*Signed, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	p, err := partsOf(m)
	if err != nil {
		return nil, err
	}
	payload, err := p.payload()
	if err != nil {
		return nil, err
	}
	if kid == nil {
		pub, ok := signer.Public().(*ecdsa.PublicKey)
		if !ok {
			return nil, errors.New("manifest: signer is not an ECDSA key")
		}
		kid = identity.KID(pub)
	}
	raw, err := identity.SignKID(signer, kid, []byte(Purpose), payload)
	if err != nil {
		return nil, err
	}
	if len(raw) > MaxBytes {
		return nil, &api.Error{Code: api.TooLarge, Message: fmt.Sprintf("manifest of device %s would be %d bytes, more than %d", m.Name, len(raw), MaxBytes),
			Remedy: "make its configs and secrets smaller; put bulky files into an image or a volume"}
	}
	return Parse(raw)
}

// Open verifies a manifest against the trust's signers and reads it. It fails with
// identity.ErrUnknownSigner or identity.ErrSignature (wrapped). It does not compare
// generations: see Newer.
func Open(raw []byte, trust Keys) (*Signed, error) {
	if len(raw) > MaxBytes {
		return nil, tooLarge(len(raw))
	}
	if _, err := identity.VerifyBy(trust, raw, []byte(Purpose)); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return Parse(raw)
}

// Parse reads a manifest without verifying its signature. It is for relays.
func Parse(raw []byte) (*Signed, error) {
	if len(raw) > MaxBytes {
		return nil, tooLarge(len(raw))
	}
	p, err := split(raw)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	m, err := p.manifest()
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	return &Signed{Raw: raw, Manifest: m, parts: p}, nil
}

func tooLarge(n int) error {
	return api.Errorf(api.TooLarge, "manifest of %d bytes is larger than %d", n, MaxBytes)
}

// Newer reports whether (epochA, genA) comes after (epochB, genB). A manifest that is
// not newer than the one in force is refused.
func Newer(epochA, genA, epochB, genB uint64) bool {
	return epochA > epochB || epochA == epochB && genA > genB
}

// Newer reports whether s comes after old; anything comes after nil.
func (s *Signed) Newer(old *Signed) bool {
	return old == nil || Newer(s.Manifest.Epoch, s.Manifest.Generation, old.Manifest.Epoch, old.Manifest.Generation)
}

// Refs lists the artifacts of all items, in the order of keys, each once.
func (m *Manifest) Refs() []Ref {
	var out []Ref
	seen := map[Ref]bool{}
	for _, k := range m.keys() {
		for _, r := range m.Items[k].Refs {
			if !seen[r] {
				seen[r] = true
				out = append(out, r)
			}
		}
	}
	return out
}

// AppNames lists the names of the apps, sorted.
func (m *Manifest) AppNames() []string {
	var out []string
	for _, k := range m.keys() {
		if name, ok := strings.CutPrefix(k, PrefixApp); ok {
			out = append(out, name)
		}
	}
	return out
}

func (m *Manifest) keys() []string {
	keys := make([]string, 0, len(m.Items))
	for k := range m.Items {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// check refuses what breaks a bound, the same on the way out and in.
func (m *Manifest) check() error {
	bad := func(format string, args ...any) error {
		return api.Errorf(api.Invalid, "manifest: "+format, args...)
	}
	switch {
	case m.Version != 1:
		return bad("version %d; this build knows 1", m.Version)
	case m.Device.IsZero():
		return bad("names no device")
	case m.Generation == 0:
		return bad("generation is 0; it starts at 1")
	case len(m.Tenant) > maxKey || len(m.Name) > maxKey:
		return bad("tenant or name is longer than %d", maxKey)
	case len(m.Items) > MaxItems:
		return bad("%d items, more than %d", len(m.Items), MaxItems)
	}
	for k, it := range m.Items {
		if k == "" || len(k) > maxKey {
			return bad("item key of %d characters", len(k))
		}
		if it.Gen == 0 || it.Gen > m.Generation {
			return bad("item %q changed at generation %d, outside 1 to %d", k, it.Gen, m.Generation)
		}
		if len(it.Refs) > maxRefs {
			return bad("item %q has %d references, more than %d", k, len(it.Refs), maxRefs)
		}
		for _, r := range it.Refs {
			if r.Repo == "" || len(r.Repo) > maxKey || r.Size < 0 {
				return bad("item %q has a reference without a proper repository or size", k)
			}
			if _, err := digestBytes(r.Digest); err != nil {
				return bad("item %q: %v", k, err)
			}
		}
	}
	return nil
}

const digestPrefix = "sha256:"

func digestBytes(s string) ([]byte, error) {
	h, ok := strings.CutPrefix(s, digestPrefix)
	if b, err := hex.DecodeString(h); ok && err == nil && len(b) == 32 && strings.ToLower(h) == h {
		return b, nil
	}
	return nil, fmt.Errorf("%q is not sha256: and 64 lower-case hex digits", s)
}
