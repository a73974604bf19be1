package registry

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"time"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/distribution/v3/registry/storage"
	"github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/oci"
)

// GCOptions say what a garbage collection may not take.
type GCOptions struct {
	// Keep names manifests that are in use though no tag points to them: bundles and
	// images of rendered manifests.
	Keep func(repo, digest string) bool
	// Before protects all that was written after it: pushes are many requests.
	Before time.Time
	DryRun bool
}

// GCResult counts what was (or would be) removed.
type GCResult struct {
	Manifests, Blobs int
	Bytes            int64
}

// Collect removes manifests that no tag, no kept index and no caller needs, and blobs
// that no manifest names. It fails with code Unavailable while somebody pushes, and
// pushes are answered 503 while it runs. A push that counted on an old, unnamed blob
// at that very moment is told that the blob is unknown, and succeeds when repeated.
func (g *Registry) Collect(ctx context.Context, opts GCOptions) (GCResult, error) {
	if !g.writes.tryCollect() {
		return GCResult{}, &api.Error{Code: api.Unavailable, Message: "somebody is pushing", Remedy: "collect again in a while"}
	}
	defer g.writes.collected()
	c := &collection{g: g, opts: opts, ctx: ctx, vacuum: storage.NewVacuum(ctx, g.driver), marked: map[string]bool{}}
	if err := c.mark(); err != nil {
		return c.result, fmt.Errorf("registry garbage: mark: %w", err)
	}
	if err := c.sweep(); err != nil {
		return c.result, fmt.Errorf("registry garbage: sweep: %w", err)
	}
	return c.result, nil
}

type collection struct {
	g      *Registry
	opts   GCOptions
	ctx    context.Context
	vacuum storage.Vacuum
	marked map[string]bool // digests of manifests and blobs that stay
	result GCResult
}

// mark walks every repository; manifests that nothing needs are removed on the way.
func (c *collection) mark() error {
	names, ok := c.g.store.(distribution.RepositoryEnumerator)
	if !ok {
		return errors.New("the store cannot list its repositories")
	}
	var repos []string // listed first: removing while listing upsets the walk
	err := names.Enumerate(c.ctx, func(name string) error { repos = append(repos, name); return nil })
	if err != nil && !missing(err) {
		return err
	}
	for _, repo := range repos {
		if err := c.repository(repo); err != nil {
			return fmt.Errorf("%s: %w", repo, err)
		}
	}
	return nil
}

func (c *collection) repository(name string) error {
	named, err := reference.WithName(name)
	if err != nil {
		return err
	}
	r, err := c.g.store.Repository(c.ctx, named)
	if err != nil {
		return err
	}
	tags, err := c.tags(r)
	if err != nil {
		return err
	}
	revisions, err := enumerate(c.ctx, r)
	if err != nil {
		return err
	}
	tagged := map[string]bool{}
	for _, d := range tags {
		tagged[d] = true
	}
	here := map[string]bool{} // a manifest kept in one repository is not kept in another
	for _, d := range revisions {
		young, err := c.young("repositories/" + name + "/_manifests/revisions/sha256/" + hexOf(d) + "/link")
		if err != nil {
			return err
		}
		if !tagged[d] && !young && (c.opts.Keep == nil || !c.opts.Keep(name, d)) {
			continue
		}
		err = walk(c.ctx, r, d, 0, func(content *oci.Content, digest string, _ int64) error {
			here[digest], c.marked[digest] = true, true
			for _, child := range content.Children() {
				c.marked[child.Digest] = true
			}
			return nil
		})
		if err != nil {
			return err // never guess what a manifest that cannot be read would need
		}
	}
	for _, d := range revisions {
		if here[d] {
			continue
		}
		c.result.Manifests++
		if c.opts.DryRun {
			continue
		}
		names := make([]string, 0, len(tags))
		for tag := range tags {
			names = append(names, tag)
		}
		if err := c.vacuum.RemoveManifest(name, digest.Digest(d), names); err != nil && !missing(err) {
			return err
		}
	}
	return nil
}

// tags maps a repository's tags to digests.
func (c *collection) tags(r distribution.Repository) (map[string]string, error) {
	out := map[string]string{}
	all, err := r.Tags(c.ctx).All(c.ctx)
	if err != nil && !missing(err) {
		return nil, err
	}
	for _, tag := range all {
		desc, err := r.Tags(c.ctx).Get(c.ctx, tag)
		if missing(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out[tag] = desc.Digest.String()
	}
	return out, nil
}

func enumerate(ctx context.Context, r distribution.Repository) ([]string, error) {
	manifests, err := r.Manifests(ctx)
	if err != nil {
		return nil, err
	}
	list, ok := manifests.(distribution.ManifestEnumerator)
	if !ok {
		return nil, errors.New("the store cannot list its manifests")
	}
	var out []string
	err = list.Enumerate(ctx, func(d digest.Digest) error { out = append(out, d.String()); return nil })
	if missing(err) {
		err = nil
	}
	sort.Strings(out)
	return out, err
}

func (c *collection) sweep() error {
	var dead []string
	err := c.g.store.Blobs().Enumerate(c.ctx, func(d digest.Digest) error {
		if !c.marked[d.String()] {
			dead = append(dead, d.String())
		}
		return nil
	})
	if err != nil && !missing(err) {
		return err
	}
	for _, d := range dead {
		path := "blobs/sha256/" + hexOf(d)[:2] + "/" + hexOf(d) + "/data"
		young, err := c.young(path)
		if err != nil {
			return err
		}
		info, err := c.g.driver.Stat(c.ctx, root+path)
		if young || missing(err) {
			continue
		}
		if err != nil {
			return err
		}
		c.result.Blobs++
		c.result.Bytes += info.Size()
		if c.opts.DryRun {
			continue
		}
		if err := c.vacuum.RemoveBlob(d); err != nil && !missing(err) {
			return err
		}
	}
	return nil
}

// root is where distribution keeps all in its driver (storage/paths.go).
const root = "/docker/registry/v2/"

// young reports whether a file was written after the border. What is gone is not.
func (c *collection) young(path string) (bool, error) {
	info, err := c.g.driver.Stat(c.ctx, root+path)
	if missing(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return info.ModTime().After(c.opts.Before), nil
}

func hexOf(d string) string { return digest.Digest(d).Encoded() }

func missing(err error) bool {
	var path driver.PathNotFoundError
	var repo distribution.ErrRepositoryUnknown
	var tag distribution.ErrTagUnknown
	return errors.As(err, &path) || errors.As(err, &repo) || errors.As(err, &tag)
}
