// Package oci answers: how does an artifact get from the core's registry to the
// box that needs it, once over each link and byte for byte what was named?
//
// Everything bulky is an OCI artifact named by digest (OCI image-spec and
// distribution-spec 1.1). PullArtifact and PushBundle move small ones; Cache is the
// pull-through store that a relay puts before its children.
package oci

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/manifest"
)

// Ref names an artifact: repository, digest of its manifest, and its size in bytes
// (0 when unknown).
type Ref = manifest.Ref

// Upstream is the parent's registry. Endpoint is asked before every request, because
// the parent changes when the device re-attaches; it fails while there is none. The
// client must not be shared with code that changes it. Safe for concurrent use.
type Upstream interface {
	Endpoint() (base *url.URL, client *http.Client, err error)
}

// The media types this package walks.
const (
	TypeManifest       = "application/vnd.oci.image.manifest.v1+json"
	TypeIndex          = "application/vnd.oci.image.index.v1+json"
	TypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	TypeDockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	TypeEmpty          = "application/vnd.oci.empty.v1+json"
)

// MaxManifest bounds a manifest in bytes; the same bound as distribution's registry
// and containerd use.
const MaxManifest = 4 << 20

// maxDescriptors bounds what one manifest may name.
const maxDescriptors = 4096

// Descriptor is the part of an OCI descriptor (image-spec, descriptor.md) that is
// needed to walk from a manifest to its blobs.
type Descriptor struct {
	MediaType string    `json:"mediaType,omitempty"`
	Digest    string    `json:"digest"`
	Size      int64     `json:"size"`
	Platform  *Platform `json:"platform,omitempty"`
}

// Platform is what an image is made for.
type Platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant,omitempty"`
}

func (p Platform) String() string {
	if p.Variant != "" {
		return p.OS + "/" + p.Architecture + "/" + p.Variant
	}
	return p.OS + "/" + p.Architecture
}

// Content is a parsed manifest or index.
type Content struct {
	MediaType    string       `json:"mediaType"`
	ArtifactType string       `json:"artifactType"`
	Manifests    []Descriptor `json:"manifests"`
	Config       *Descriptor  `json:"config"`
	Layers       []Descriptor `json:"layers"`
}

// Index reports whether the content lists manifests rather than layers.
func (c *Content) Index() bool { return c.MediaType == TypeIndex || c.MediaType == TypeDockerIndex }

// Children lists what the content names, config first.
func (c *Content) Children() []Descriptor {
	if c.Index() {
		return c.Manifests
	}
	return append([]Descriptor{*c.Config}, c.Layers...)
}

// ParseContent reads an image manifest or index. It refuses more than MaxManifest
// bytes, more than 4096 descriptors, malformed digests and negative sizes. A missing
// mediaType (optional in OCI) is filled in from the shape.
func ParseContent(raw []byte) (*Content, error) {
	bad := func(format string, a ...any) error {
		return &api.Error{Code: api.Invalid, Message: "manifest: " + fmt.Sprintf(format, a...)}
	}
	if len(raw) > MaxManifest {
		return nil, api.Errorf(api.TooLarge, "manifest of %d bytes; at most %d are read", len(raw), MaxManifest)
	}
	if !bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{")) {
		return nil, bad("not a JSON object")
	}
	var c Content
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, bad("%v", err)
	}
	switch c.MediaType {
	case "":
		c.MediaType = TypeManifest
		if c.Config == nil && c.Manifests != nil {
			c.MediaType = TypeIndex
		}
	case TypeManifest, TypeIndex, TypeDockerManifest, TypeDockerIndex:
	default:
		return nil, bad("media type %q is not an image manifest or index", c.MediaType)
	}
	if c.Index() && (c.Config != nil || c.Layers != nil) {
		return nil, bad("an index may not name a config or layers") // CVE-2021-41190
	}
	if !c.Index() && (c.Config == nil || c.Manifests != nil) {
		return nil, bad("an image manifest names exactly one config and no manifests")
	}
	children := c.Children()
	if len(children) > maxDescriptors {
		return nil, bad("%d descriptors; at most %d are walked", len(children), maxDescriptors)
	}
	for _, d := range children {
		if err := CheckDigest(d.Digest); err != nil {
			return nil, err
		}
		if d.Size < 0 {
			return nil, bad("%s has a negative size", d.Digest)
		}
	}
	return &c, nil
}

// Digest returns "sha256:" and the lower-case hexadecimal hash of b.
func Digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// BundleManifest wraps an app bundle (deterministic JSON of api.Bundle) in the OCI
// artifact that carries it: image-spec 1.1 manifest of artifactType api.BundleType,
// the empty config, one layer. The same bundle always gives the same bytes.
func BundleManifest(bundle []byte) (manifest []byte, digest string) {
	type desc struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
		Size      int    `json:"size"`
	}
	raw, err := json.Marshal(struct {
		SchemaVersion int    `json:"schemaVersion"`
		MediaType     string `json:"mediaType"`
		ArtifactType  string `json:"artifactType"`
		Config        desc   `json:"config"`
		Layers        []desc `json:"layers"`
	}{2, TypeManifest, api.BundleType,
		desc{TypeEmpty, Digest(EmptyConfig), len(EmptyConfig)},
		[]desc{{api.BundleType, Digest(bundle), len(bundle)}}})
	if err != nil {
		return nil, "" // cannot happen: the struct holds strings and ints only
	}
	return raw, Digest(raw)
}

// EmptyConfig is the content of the empty descriptor (image-spec 1.1).
var EmptyConfig = []byte("{}")
