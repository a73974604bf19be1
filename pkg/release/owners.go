package release

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/asn1"
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"tributary.dev/tributary/pkg/api"
)

// What the owners of release keys do, away from any box: write a root, sign, and see who did. A key may lie where this
// program does not run: then it signs the bytes that Payload gives, and Attach takes its signature.

// KeyID is the name of a key in a root: 64 hex digits.
func KeyID(key crypto.PublicKey) (string, error) {
	k, err := keyOf(key)
	if err != nil {
		return "", err
	}
	return k.ID()
}

// keyOf refuses kinds of keys by which this program makes no signatures that boxes take.
func keyOf(key crypto.PublicKey) (*metadata.Key, error) {
	what := fmt.Sprintf("a key of type %T", key)
	switch k := key.(type) {
	case ed25519.PublicKey:
		return metadata.KeyFromPublicKey(k)
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return metadata.KeyFromPublicKey(k)
		}
		what = "an ECDSA key on " + k.Params().Name
	case *rsa.PublicKey:
		what = "an RSA key"
	}
	return nil, &api.Error{Code: api.Invalid, Message: what + " signs no releases", Remedy: "take one of Ed25519 or ECDSA on P-256: edgectl release key"}
}

// NewRoot makes an unsigned root: keys, how many of them make a new root, and how many a release.
func NewRoot(version int64, expires time.Time, rootKeys []crypto.PublicKey, rootThreshold int, releaseKeys []crypto.PublicKey, releaseThreshold int) ([]byte, error) {
	if version < 1 { // check: version of a root
		return nil, &api.Error{Code: api.Invalid, Message: fmt.Sprintf("a root of version %d", version), Remedy: "the first root has version 1, each that follows one more than the one before"}
	}
	root := metadata.Root(expires)
	root.Signed.Version = version
	for _, role := range []struct {
		name, says string
		keys       []crypto.PublicKey
		threshold  int
	}{{metadata.ROOT, "roots", rootKeys, rootThreshold}, {metadata.TARGETS, "releases", releaseKeys, releaseThreshold}} {
		if role.threshold < 1 || role.threshold > len(role.keys) { // check: threshold
			return nil, &api.Error{Code: api.Invalid, Message: fmt.Sprintf("%d signatures of %d keys that sign %s: nobody can meet that", role.threshold, len(role.keys), role.says),
				Remedy: "name as many keys as have to sign, or more, and a threshold of at least one"}
		}
		for i, k := range role.keys {
			key, err := keyOf(k)
			if err != nil {
				return nil, err
			}
			id, err := key.ID()
			if err != nil {
				return nil, err
			}
			if slices.Contains(root.Signed.Roles[role.name].KeyIDs, id) { // check: key twice
				return nil, &api.Error{Code: api.Invalid, Message: fmt.Sprintf("key %d of those that sign %s, %s, stands there before", i+1, role.says, id), Remedy: "name each key once: it counts once"}
			}
			if err := root.Signed.AddKey(key, role.name); err != nil {
				return nil, err
			}
		}
		root.Signed.Roles[role.name].Threshold = role.threshold
	}
	return root.ToBytes(false)
}

// Draft is a root as its owners see it, signed or not yet. Boxes believe it by TrustRoot alone.
type Draft struct {
	root *metadata.Metadata[metadata.RootType]
}

// ReadRoot reads a root and believes nothing of it.
func ReadRoot(raw []byte) (*Draft, error) {
	root, err := parseRoot(raw)
	if err != nil {
		return nil, err
	}
	return &Draft{root}, nil
}

// Version is the root's.
func (d *Draft) Version() int64 { return d.root.Signed.Version }

// Expires is when it ends.
func (d *Draft) Expires() time.Time { return d.root.Signed.Expires }

// Standing tells how far a file is from being signed by a role's keys.
type Standing struct {
	Threshold int
	Keys      []string // ids of all that count
	Signed    []string // ids of those whose signature is right
}

// Lacks is how many signatures are still to come.
func (s Standing) Lacks() int { return max(0, s.Threshold-len(s.Signed)) }

// Knows tells whether a key counts.
func (s Standing) Knows(id string) bool { return slices.Contains(s.Keys, id) }

// Has tells whether a key signed.
func (s Standing) Has(id string) bool { return slices.Contains(s.Signed, id) }

// Roots tells who of this root's keys signed a root: itself, or the one that follows.
func (d *Draft) Roots(raw []byte) (Standing, error) {
	root, err := parseRoot(raw)
	if err != nil {
		return Standing{}, err
	}
	return d.standing(metadata.ROOT, root), nil
}

// ReleaseKeys are those that vouch for releases, and how many it takes. Of signatures it says nothing.
func (d *Draft) ReleaseKeys() Standing {
	r := d.root.Signed.Roles[metadata.TARGETS]
	return Standing{Threshold: r.Threshold, Keys: slices.Clone(r.KeyIDs)}
}

// Releases tells who of this root's keys signed a release's targets file.
func (d *Draft) Releases(targets []byte) (Standing, error) {
	meta, err := parseTargets(targets)
	if err != nil {
		return Standing{}, err
	}
	return d.standing(metadata.TARGETS, meta), nil
}

func (d *Draft) standing(role string, meta any) Standing {
	r := d.root.Signed.Roles[role]
	s := Standing{Threshold: r.Threshold, Keys: slices.Clone(r.KeyIDs)}
	for _, id := range r.KeyIDs {
		if key := d.root.Signed.Keys[id]; key != nil && signedBy(key, id, meta) {
			s.Signed = append(s.Signed, id)
		}
	}
	return s
}

// signedBy asks a root of that key alone.
func signedBy(key *metadata.Key, id string, meta any) bool {
	alone := metadata.Root()
	alone.Signed.Keys[id] = key
	alone.Signed.Roles[metadata.ROOT] = &metadata.Role{KeyIDs: []string{id}, Threshold: 1}
	return alone.VerifyDelegate(metadata.ROOT, meta) == nil
}

func parseTargets(raw []byte) (*metadata.Metadata[metadata.TargetsType], error) {
	if len(raw) > MaxMetadata {
		return nil, api.Errorf(api.TooLarge, "metadata of %d bytes", len(raw))
	}
	meta, err := metadata.Targets().FromBytes(raw)
	if err != nil {
		return nil, &api.Error{Code: api.Invalid, Message: "not the metadata of a release", Err: err}
	}
	return meta, nil
}

// Signers lists the ids of the keys that a root or a targets file says it is signed by. Nothing is checked.
func Signers(raw []byte) (ids []string, err error) {
	err = open(raw, func(m signed) error {
		for _, s := range *m.signatures {
			ids = append(ids, s.KeyID)
		}
		return nil
	})
	return ids, err
}

// Payload gives the bytes that a key signs under a root or a targets file: canonical JSON, which a person can read.
func Payload(raw []byte) (payload []byte, err error) {
	err = open(raw, func(m signed) error {
		payload, err = cjson.EncodeCanonical(m.body)
		return err
	})
	return payload, err
}

// AddSignature signs a root or a targets file with one more key (P-256 or Ed25519). A second signature of the same key
// takes the place of the first. Several people sign one after the other, each where the key is.
func AddSignature(raw []byte, key crypto.Signer) ([]byte, error) {
	payload, err := Payload(raw)
	if err != nil {
		return nil, err
	}
	if _, err := keyOf(key.Public()); err != nil {
		return nil, err
	}
	signer, err := signature.LoadSigner(key, crypto.SHA256)
	if err != nil {
		return nil, err
	}
	sig, err := signer.SignMessage(bytes.NewReader(payload))
	if err != nil {
		return nil, err
	}
	return Attach(raw, key.Public(), sig)
}

// Attach adds a signature that was made elsewhere over Payload(raw): of Ed25519, or of ECDSA with SHA-256 in DER or as
// the two numbers of 32 bytes. One that is not right is refused.
func Attach(raw []byte, public crypto.PublicKey, sig []byte) (out []byte, err error) {
	key, err := keyOf(public)
	if err != nil {
		return nil, err
	}
	id, err := key.ID()
	if err != nil {
		return nil, err
	}
	err = open(raw, func(m signed) error {
		kept := slices.DeleteFunc(*m.signatures, func(s metadata.Signature) bool { return s.KeyID == id })
		*m.signatures = append(kept, metadata.Signature{KeyID: id, Signature: inDER(public, sig)})
		if !signedBy(key, id, m.meta) { // check: attached signature
			return &api.Error{Code: api.Invalid, Message: "the signature is not of this key over these bytes", Remedy: "sign the bytes that `edgectl release payload` writes, as they are: Ed25519, or ECDSA with SHA-256"}
		}
		out, err = m.encode()
		return err
	})
	return out, err
}

// inDER gives an ECDSA signature of two numbers (PKCS #11's form) the form that TUF has.
func inDER(public crypto.PublicKey, sig []byte) []byte {
	if _, ok := public.(*ecdsa.PublicKey); !ok || len(sig) != 64 {
		return sig
	}
	der, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])})
	if err != nil {
		return sig
	}
	return der
}

// signed is a root or a targets file, opened.
type signed struct {
	meta, body any // what VerifyDelegate takes, and the part of it that is signed
	signatures *[]metadata.Signature
	encode     func() ([]byte, error)
}

func open(raw []byte, with func(signed) error) error {
	if len(raw) > MaxMetadata {
		return api.Errorf(api.TooLarge, "metadata of %d bytes", len(raw))
	}
	var head struct {
		Signed struct {
			Type string `json:"_type"`
		} `json:"signed"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return &api.Error{Code: api.Invalid, Message: "not TUF metadata", Err: err}
	}
	switch head.Signed.Type {
	case metadata.ROOT:
		m, err := parseRoot(raw)
		if err != nil {
			return err
		}
		return with(signed{m, m.Signed, &m.Signatures, func() ([]byte, error) { return m.ToBytes(false) }})
	case metadata.TARGETS:
		m, err := parseTargets(raw)
		if err != nil {
			return err
		}
		return with(signed{m, m.Signed, &m.Signatures, func() ([]byte, error) { return m.ToBytes(false) }})
	}
	return api.Errorf(api.Invalid, "metadata of type %q is not signed here", head.Signed.Type)
}
