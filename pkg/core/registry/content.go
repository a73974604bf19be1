package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/distribution/v3/manifest/ocischema"
	"github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/oci"
)

// Info describes an image or artifact.
type Info struct {
	Digest       string
	MediaType    string
	ArtifactType string
	// Platforms lists what the image is made for, sorted; empty for artifacts.
	Platforms []oci.Platform
	// Size is the bytes of all that the digest names: manifests, configs and layers,
	// each once.
	Size int64
}

// Resolve finds the digest that a tag of a repository points to now. Code NotFound
// when there is no such repository or tag.
func (g *Registry) Resolve(ctx context.Context, repo, tag string) (digest string, err error) {
	if err := errors.Join(oci.CheckRepo(repo), oci.CheckTag(tag)); err != nil {
		return "", err
	}
	r, err := g.repository(ctx, repo)
	if err != nil {
		return "", err
	}
	desc, err := r.Tags(ctx).Get(ctx, tag)
	if err != nil {
		return "", unknown(err, repo+":"+tag)
	}
	return desc.Digest.String(), nil
}

// ResolvePinned turns "repo:tag" or "repo@digest" (repo is tenant/name) into
// "repo@sha256:…" and the size of all it names. It is what an app's Compose file is
// pinned with.
func (g *Registry) ResolvePinned(ctx context.Context, ref string) (pinned string, size int64, err error) {
	r, err := oci.ParseReference(ref)
	if err != nil {
		return "", 0, err
	}
	if r.Host != "" {
		return "", 0, &api.Error{Code: api.Invalid, Message: fmt.Sprintf("image %q names another registry", ref),
			Remedy: "push it to the core's registry and name it tenant/name:tag"}
	}
	if r.Digest == "" {
		if r.Tag == "" {
			r.Tag = "latest"
		}
		if r.Digest, err = g.Resolve(ctx, r.Repo, r.Tag); err != nil {
			return "", 0, err
		}
	}
	info, err := g.Inspect(ctx, r.Repo, r.Digest)
	if err != nil {
		return "", 0, err
	}
	return r.Repo + "@" + r.Digest, info.Size, nil
}

// Inspect reads a manifest or index and what it names.
func (g *Registry) Inspect(ctx context.Context, repo, dgst string) (*Info, error) {
	if err := errors.Join(oci.CheckRepo(repo), oci.CheckDigest(dgst)); err != nil {
		return nil, err
	}
	r, err := g.repository(ctx, repo)
	if err != nil {
		return nil, err
	}
	info := &Info{Digest: dgst}
	seen := map[string]bool{}
	platforms := map[oci.Platform]bool{}
	err = walk(ctx, r, dgst, 0, func(content *oci.Content, digest string, size int64) error {
		if digest == dgst {
			info.MediaType, info.ArtifactType = content.MediaType, content.ArtifactType
		}
		if !seen[digest] {
			seen[digest] = true
			info.Size += size
		}
		if content.Index() {
			return nil
		}
		for _, d := range content.Children() {
			if !seen[d.Digest] {
				seen[d.Digest] = true
				info.Size += d.Size
			}
		}
		p, err := platformOf(ctx, r, content)
		if p.OS != "" && p.OS != "unknown" {
			platforms[p] = true
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for p := range platforms {
		info.Platforms = append(info.Platforms, p)
	}
	sort.Slice(info.Platforms, func(i, j int) bool { return info.Platforms[i].String() < info.Platforms[j].String() })
	return info, nil
}

// walk visits a manifest and, through indexes, those below it.
func walk(ctx context.Context, r distribution.Repository, dgst string, depth int, visit func(*oci.Content, string, int64) error) error {
	if depth > 4 {
		return api.Errorf(api.Invalid, "%s: indexes nest too deeply", dgst)
	}
	raw, err := manifestBytes(ctx, r, dgst)
	if err != nil {
		return err
	}
	content, err := oci.ParseContent(raw)
	if err != nil {
		return err
	}
	if err := visit(content, dgst, int64(len(raw))); err != nil {
		return err
	}
	if !content.Index() {
		return nil
	}
	for _, d := range content.Manifests {
		err := walk(ctx, r, d.Digest, depth+1, visit)
		if err != nil && api.CodeOf(err) != api.NotFound { // an index may name what nobody pushed
			return err
		}
	}
	return nil
}

func manifestBytes(ctx context.Context, r distribution.Repository, dgst string) ([]byte, error) {
	manifests, err := r.Manifests(ctx)
	if err != nil {
		return nil, err
	}
	m, err := manifests.Get(ctx, digest.Digest(dgst))
	if err != nil {
		return nil, unknown(err, r.Named().Name()+"@"+dgst)
	}
	_, raw, err := m.Payload()
	return raw, err
}

// platformOf reads the platform from an image's config (image-spec, config.md); the
// zero platform for artifacts.
func platformOf(ctx context.Context, r distribution.Repository, c *oci.Content) (p oci.Platform, err error) {
	switch c.Config.MediaType {
	case "application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json":
	default:
		return p, nil
	}
	if c.Config.Size > oci.MaxManifest {
		return p, api.Errorf(api.TooLarge, "image config of %d bytes", c.Config.Size)
	}
	raw, err := r.Blobs(ctx).Get(ctx, digest.Digest(c.Config.Digest))
	if err != nil {
		return p, unknown(err, c.Config.Digest)
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		return p, api.Errorf(api.Invalid, "image config %s: %v", c.Config.Digest, err)
	}
	return p, nil
}

// PutBundle stores an app bundle (deterministic JSON of api.Bundle) as an artifact in
// a repository, untagged, and returns the digest of its manifest and the bytes that a
// device fetches for it. The same bundle gives the same digest; it may be repeated.
// Garbage collection keeps it as long as its caller names it in GCOptions.Keep.
func (g *Registry) PutBundle(ctx context.Context, repo string, bundle []byte) (dgst string, size int64, err error) {
	r, err := g.repository(ctx, repo)
	if err != nil {
		return "", 0, err
	}
	if !g.writes.write() {
		return "", 0, &api.Error{Code: api.Unavailable, Message: "the folder of the registry cannot be locked", Remedy: "see that it can be written to"}
	}
	defer g.writes.written()
	for mediaType, b := range map[string][]byte{oci.TypeEmpty: oci.EmptyConfig, api.BundleType: bundle} {
		if _, err := r.Blobs(ctx).Stat(ctx, digest.FromBytes(b)); err == nil {
			continue
		}
		if _, err := r.Blobs(ctx).Put(ctx, mediaType, b); err != nil {
			return "", 0, fmt.Errorf("store app bundle in %s: %w", repo, err)
		}
	}
	raw, dgst := oci.BundleManifest(bundle)
	m := new(ocischema.DeserializedManifest)
	if err := m.UnmarshalJSON(raw); err != nil {
		return "", 0, err
	}
	manifests, err := r.Manifests(ctx)
	if err != nil {
		return "", 0, err
	}
	got, err := manifests.Put(ctx, m)
	if err != nil {
		return "", 0, fmt.Errorf("store app bundle in %s: %w", repo, err)
	}
	if got.String() != dgst {
		return "", 0, fmt.Errorf("store app bundle in %s: stored as %s, expected %s", repo, got, dgst)
	}
	return dgst, int64(len(raw) + len(oci.EmptyConfig) + len(bundle)), nil
}

// Bundle reads back an app bundle by the digest of its manifest.
func (g *Registry) Bundle(ctx context.Context, repo, dgst string) ([]byte, error) {
	r, err := g.repository(ctx, repo)
	if err != nil {
		return nil, err
	}
	raw, err := manifestBytes(ctx, r, dgst)
	if err != nil {
		return nil, err
	}
	content, err := oci.ParseContent(raw)
	if err != nil {
		return nil, err
	}
	if content.ArtifactType != api.BundleType || len(content.Layers) != 1 || content.Layers[0].Size > oci.MaxManifest {
		return nil, &api.Error{Code: api.Invalid, Message: fmt.Sprintf("%s@%s is not an app bundle", repo, dgst), Remedy: "push one with `edgectl app push`"}
	}
	b, err := r.Blobs(ctx).Get(ctx, digest.Digest(content.Layers[0].Digest))
	if err != nil {
		return nil, unknown(err, content.Layers[0].Digest)
	}
	return b, nil
}

func (g *Registry) repository(ctx context.Context, repo string) (distribution.Repository, error) {
	if err := oci.CheckRepo(repo); err != nil {
		return nil, err
	}
	named, err := reference.WithName(repo)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "repository %q: %v", repo, err)
	}
	return g.store.Repository(ctx, named)
}

// mayRemove refuses to take away what a manifest of the repository refers to: the image
// would seem to be there, and no device could fetch it.
func (g *Registry) mayRemove(ctx context.Context, route oci.Route) error {
	r, err := g.repository(ctx, route.Repo)
	if err != nil {
		return err
	}
	revisions, err := enumerate(ctx, r)
	if err != nil {
		return err
	}
	for _, d := range revisions {
		raw, err := manifestBytes(ctx, r, d)
		if api.CodeOf(err) == api.NotFound && err != nil {
			continue // deleted by somebody else just now
		}
		if err != nil {
			return err
		}
		content, err := oci.ParseContent(raw)
		if err != nil {
			return err // never guess what a manifest that cannot be read refers to
		}
		if slices.ContainsFunc(content.Children(), func(c oci.Descriptor) bool { return c.Digest == route.Reference }) {
			return &api.Error{Code: api.Forbidden, Message: route.Reference + " is in use by the manifest " + route.Repo + "@" + d,
				Remedy: "delete that manifest first; what nothing refers to then goes by itself in a day"}
		}
	}
	return nil
}

// unknown turns the registry's many ways to say "not here" into one.
func unknown(err error, what string) error {
	var (
		tag   distribution.ErrTagUnknown
		rev   distribution.ErrManifestUnknownRevision
		mani  distribution.ErrManifestUnknown
		repo  distribution.ErrRepositoryUnknown
		path  driver.PathNotFoundError
		found = errors.As(err, &tag) || errors.As(err, &rev) || errors.As(err, &mani) || errors.As(err, &repo) || errors.As(err, &path) || errors.Is(err, distribution.ErrBlobUnknown)
	)
	if !found {
		return fmt.Errorf("registry: %s: %w", what, err)
	}
	return &api.Error{Code: api.NotFound, Message: "the registry has no " + what, Remedy: "push it first, e.g. with `docker push` or `edgectl app push`"}
}

// Open reads a manifest or blob of a repository by digest; size in bytes. Close what it returns.
func (g *Registry) Open(ctx context.Context, repo, dgst string) (body io.ReadCloser, size int64, mediaType string, err error) {
	if err := errors.Join(oci.CheckRepo(repo), oci.CheckDigest(dgst)); err != nil {
		return nil, 0, "", err
	}
	r, err := g.repository(ctx, repo)
	if err != nil {
		return nil, 0, "", err
	}
	raw, err := manifestBytes(ctx, r, dgst)
	if err == nil {
		content, err := oci.ParseContent(raw)
		if err != nil {
			return nil, 0, "", err
		}
		return io.NopCloser(bytes.NewReader(raw)), int64(len(raw)), content.MediaType, nil
	}
	if api.CodeOf(err) != api.NotFound {
		return nil, 0, "", err
	}
	desc, err := r.Blobs(ctx).Stat(ctx, digest.Digest(dgst))
	if err != nil {
		return nil, 0, "", unknown(err, repo+"@"+dgst)
	}
	f, err := r.Blobs(ctx).Open(ctx, desc.Digest)
	if err != nil {
		return nil, 0, "", unknown(err, repo+"@"+dgst)
	}
	return f, desc.Size, desc.MediaType, nil
}

// Part is one file of an artifact.
type Part struct {
	MediaType   string
	Annotations map[string]string
	Content     []byte
}

// PutArtifact keeps files as an OCI artifact in a repository, tags it unless tag is empty, and returns
// the digest of its manifest. The same parts give the same digest; it may be repeated.
func (g *Registry) PutArtifact(ctx context.Context, repo, tag, artifactType string, config Part, layers []Part) (string, error) {
	r, err := g.repository(ctx, repo)
	if err != nil {
		return "", err
	}
	if !g.writes.write() {
		return "", &api.Error{Code: api.Unavailable, Message: "the folder of the registry cannot be locked", Remedy: "see that it can be written to"}
	}
	defer g.writes.written()
	put := func(p Part) (v1.Descriptor, error) {
		d := v1.Descriptor{MediaType: p.MediaType, Digest: digest.FromBytes(p.Content), Size: int64(len(p.Content)), Annotations: p.Annotations}
		if _, err := r.Blobs(ctx).Stat(ctx, d.Digest); err == nil {
			return d, nil
		}
		_, err := r.Blobs(ctx).Put(ctx, p.MediaType, p.Content)
		return d, err
	}
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, ArtifactType: artifactType}
	if m.Config, err = put(config); err != nil {
		return "", fmt.Errorf("store %s: %w", repo, err)
	}
	for _, l := range layers {
		d, err := put(l)
		if err != nil {
			return "", fmt.Errorf("store %s: %w", repo, err)
		}
		m.Layers = append(m.Layers, d)
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	parsed := new(ocischema.DeserializedManifest)
	if err := parsed.UnmarshalJSON(raw); err != nil {
		return "", err
	}
	manifests, err := r.Manifests(ctx)
	if err != nil {
		return "", err
	}
	dgst, err := manifests.Put(ctx, parsed)
	if err != nil {
		return "", fmt.Errorf("store %s: %w", repo, err)
	}
	if tag != "" {
		err = r.Tags(ctx).Tag(ctx, tag, v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: dgst, Size: int64(len(raw))})
	}
	return dgst.String(), err
}

// Blobs lists what somebody fetches of an artifact who has nothing, by digest: manifests, configs
// and layers, of an index those for one architecture (empty: for all).
func (g *Registry) Blobs(ctx context.Context, repo, dgst, arch string) (map[string]int64, error) {
	if err := errors.Join(oci.CheckRepo(repo), oci.CheckDigest(dgst)); err != nil {
		return nil, err
	}
	r, err := g.repository(ctx, repo)
	if err != nil {
		return nil, err
	}
	out := map[string]int64{}
	err = walk(ctx, r, dgst, 0, func(content *oci.Content, digest string, size int64) error {
		if !content.Index() {
			p, err := platformOf(ctx, r, content)
			if err != nil || arch != "" && p.Architecture != "" && p.Architecture != arch && digest != dgst {
				return err
			}
			for _, d := range content.Children() {
				out[d.Digest] = d.Size
			}
		}
		out[digest] = size
		return nil
	})
	return out, err
}
