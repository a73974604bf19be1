package build

import (
	"context"
	"fmt"
	"time"

	"tributary.dev/tributary/image/bundle"
	"tributary.dev/tributary/pkg/release"
)

// anchorFile is where the root of the release keys lies in the root file system.
const anchorFile = "usr/share/tributary/release-root.json"

// bundleLife is for how long a release's signature holds on boxes that know the time.
const bundleLife = 10 * 365 * 24 * time.Hour

// releaseKeys reads or makes the keys that vouch for releases; images carry the root of them.
func (b *builder) releaseKeys(context.Context) (err error) {
	b.releases, err = bundle.LoadOrCreate(b.Keys, b.Time)
	return err
}

// bundle makes the update, signed where the key is here.
func (b *builder) bundle(context.Context) error {
	res, err := bundle.Write(bundle.Config{Version: b.Version, Arch: b.Profile.Arch, Profile: b.Profile.Name, Counter: b.Counter, RootHash: b.hash, PCR11: b.done.PCR11,
		Root: b.tree.Rootfs, Verity: b.out(VerityFile), UKI: b.uki, Manager: b.manager, Expires: b.Time.Add(bundleLife), Previous: b.Previous, Out: b.out(BundleFile)})
	if err != nil {
		return err
	}
	digest, err := release.SignFile(b.out(BundleFile), b.releases.Release, b.releases.Root)
	if err != nil {
		return err
	}
	for version, size := range res.Deltas {
		b.Log.Info("delta", "from", version, "bytes", size, "share", fmt.Sprintf("%.2f %%", float64(size)/float64(res.Content)*100))
	}
	b.Log.Info("release", "digest", digest, "bytes", res.Plain)
	return nil
}
