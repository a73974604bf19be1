package oci

import (
	"context"
	"errors"
	"io"
	"sync"

	"tributary.dev/tributary/pkg/api"
)

// maxDepth bounds how deeply indexes may nest.
const maxDepth = 4

// Prefetch brings everything the refs name into the cache: manifest or index, and
// from it, for the configured platforms, configs and layers. It waits for a parent
// that is away, until ctx ends. What is here already costs nothing. Refs are fetched
// side by side; the error joins what failed, the rest is here all the same.
func (c *Cache) Prefetch(ctx context.Context, refs []Ref) error {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	for _, r := range refs {
		if err := errors.Join(CheckRepo(r.Repo), CheckDigest(r.Digest)); err != nil {
			mu.Lock()
			errs = append(errs, err)
			mu.Unlock()
			continue
		}
		wg.Go(func() {
			if err := c.walk(ctx, r.Repo, r.Digest, 0); err != nil {
				mu.Lock()
				errs = append(errs, outward(err))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// walk has one manifest and all below it.
func (c *Cache) walk(ctx context.Context, repo, digest string, depth int) error {
	if depth > maxDepth {
		return api.Errorf(api.Invalid, "%s: indexes nest more than %d deep", digest, maxDepth)
	}
	if c.shelf.has(digest) { // the manifest that named it vouches for the pair
		if err := c.shelf.link(repo, digest); err != nil {
			return err
		}
	} else if err := c.haveAhead(ctx, target{RouteManifest, repo, digest, -1}); err != nil {
		return err
	}
	raw, err := c.shelf.read(digest)
	if err != nil {
		return err
	}
	content, err := ParseContent(raw)
	if err != nil {
		return err
	}
	if content.Index() {
		var errs []error
		for _, d := range choose(content.Manifests, c.cfg.Platforms) {
			err := c.walk(ctx, repo, d.Digest, depth+1)
			if api.CodeOf(err) == api.NotFound && len(c.cfg.Platforms) == 0 {
				continue // an index may name platforms that nobody pushed
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
	return c.blobs(ctx, repo, content.Children())
}

// blobs has all of a manifest's blobs. The named manifest vouches for them: they
// belong to its repository without asking the parent.
func (c *Cache) blobs(ctx context.Context, repo string, list []Descriptor) error {
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, d := range list {
		if c.shelf.has(d.Digest) {
			errs[i] = c.shelf.link(repo, d.Digest)
			continue
		}
		if c.cfg.OnDemand != nil && c.cfg.OnDemand(d.MediaType) {
			continue
		}
		wg.Go(func() { errs[i] = c.haveAhead(ctx, target{RouteBlob, repo, d.Digest, d.Size}) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// haveAhead is have with a bound on how many wait at one time.
func (c *Cache) haveAhead(ctx context.Context, t target) error {
	select {
	case c.ahead <- struct{}{}:
		defer func() { <-c.ahead }()
	case <-ctx.Done():
		return ctx.Err()
	}
	return c.have(ctx, t)
}

// Scrub hashes every complete blob again and drops those that rotted on the disk, so
// that they are fetched anew. It reads the whole cache: run it rarely.
func (c *Cache) Scrub(ctx context.Context) (dropped int, err error) {
	for _, digest := range c.shelf.digests() {
		f, _, err := c.shelf.open(digest)
		if err != nil {
			continue // evicted meanwhile
		}
		_, err = io.CopyBuffer(io.Discard, stopper{newVerifier(f, digest), ctx.Err}, make([]byte, 64<<10))
		f.Close()
		switch {
		case ctx.Err() != nil:
			return dropped, ctx.Err()
		case err != nil:
			c.log.Warn("artifact rotted on disk, dropped", "digest", digest, "err", err)
			c.shelf.evictOne(digest)
			dropped++
		}
	}
	return dropped, nil
}

// choose picks an index's entries for the platforms; all when none is asked for. An
// entry without a platform fits every one. A variant must match only where both sides
// tell one.
func choose(list []Descriptor, platforms []Platform) []Descriptor {
	if len(platforms) == 0 {
		return list
	}
	var out []Descriptor
	for _, d := range list {
		if d.Platform == nil {
			out = append(out, d)
			continue
		}
		for _, p := range platforms {
			if p.OS == d.Platform.OS && p.Architecture == d.Platform.Architecture &&
				(p.Variant == "" || d.Platform.Variant == "" || p.Variant == d.Platform.Variant) {
				out = append(out, d)
				break
			}
		}
	}
	return out
}
