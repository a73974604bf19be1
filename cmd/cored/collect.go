package main

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/registry"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/manifest"
)

// The registry's garbage goes once a day, a day after it was pushed at the earliest:
// people push an image before they apply the app that names it. The first time is soon
// after the start, since a core that restarts every day has garbage too.
const (
	collectFirst = time.Hour
	collectEvery = 24 * time.Hour
	collectAgain = 10 * time.Minute // when somebody was pushing
	collectGrace = 24 * time.Hour
)

// collect removes from the registry what no tag, no app and no manifest names, until ctx
// ends. It reads manifests and apps; it writes the registry.
func (c *core) collect(ctx context.Context) error {
	timer := time.NewTimer(collectFirst)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
		timer.Reset(c.collectOnce(ctx, time.Now().Add(-collectGrace)))
	}
}

// collectOnce takes what was pushed before the border and nobody names, and tells when to
// come again.
func (c *core) collectOnce(ctx context.Context, before time.Time) (again time.Duration) {
	// Looked up at the first question: nobody pushes from then on till the end.
	var named map[string]bool
	var fault error
	look := sync.OnceFunc(func() { named, fault = c.named(ctx) })
	got, err := c.registry.Collect(ctx, registry.GCOptions{Before: before, Keep: func(_, digest string) bool {
		look()
		return fault != nil || named[digest]
	}})
	switch {
	case api.CodeOf(err) == api.Unavailable && err != nil:
		return collectAgain
	case err != nil || fault != nil:
		c.log.Error("the registry's garbage stays; tried again tomorrow", "err", err, "fault", fault)
	case got != registry.GCResult{}:
		c.log.Info("garbage of the registry removed", "manifests", got.Manifests, "blobs", got.Blobs, "bytes", got.Bytes)
	}
	return collectEvery
}

// mayRemove refuses to delete from the registry what is in use.
func (c *core) mayRemove(ctx context.Context, digest string) error {
	named, err := c.named(ctx)
	if err != nil {
		return err
	}
	if named[digest] {
		return &api.Error{Code: api.Forbidden, Message: digest + " is in use by an App or by a device's manifest", Remedy: "take it out of there; what nothing names goes by itself in a day"}
	}
	return nil
}

// named lists the digests of the bundles and images that a device's newest manifest, or a
// revision of an App, names: devices may go back to each of those.
func (c *core) named(ctx context.Context) (map[string]bool, error) {
	all := map[string]bool{}
	err := c.store.EachManifest(ctx, func(r *store.ManifestRecord) error {
		m, err := manifest.Parse(r.Raw)
		if err != nil {
			return fmt.Errorf("device %s: %w", r.Device, err)
		}
		for _, ref := range m.Manifest.Refs() {
			all[ref.Digest] = true
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = c.store.EachArtifact(ctx, func(raw []byte) error {
		var s api.AppObjectStatus
		if err := json.Unmarshal(raw, &s); err != nil {
			return fmt.Errorf("the revision of an app: %w", err)
		}
		all[s.Bundle] = true
		for _, image := range s.Images {
			all[image.Digest] = true
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}
