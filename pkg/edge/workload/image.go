package workload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"tributary.dev/tributary/pkg/api"
)

// imageInfo is what is known of an image: whether it is unpacked, and then what a
// container of it needs.
type imageInfo struct {
	imageState
	attempts int
	chain    string // snapshot to start from
	config   ocispec.ImageConfig
	arch     string
}

// resolver fetches from the parent of the moment. Only digests are asked for.
func (m *Manager) resolver() (*docker.RegistryHost, error) {
	if m.cfg.Upstream == nil {
		return nil, api.Errorf(api.Unavailable, "no parent to fetch from")
	}
	base, client, err := m.cfg.Upstream.Endpoint()
	if err != nil {
		return nil, err
	}
	if client == nil {
		client = http.DefaultClient
	}
	return &docker.RegistryHost{
		Client: client, Host: base.Host, Scheme: base.Scheme, Path: strings.TrimSuffix(base.Path, "/") + "/v2",
		Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
	}, nil
}

// lookup finds an image that containerd already has, unpacked. One whose layers are to be proven
// is not ready.
func (m *Manager) lookup(ctx context.Context, ref string) (*imageInfo, error) {
	img, err := m.client.GetImage(ctx, ref)
	if err != nil {
		return nil, err
	}
	return m.inspect(ctx, img)
}

// inspect reads an image's config and makes sure that it is unpacked.
func (m *Manager) inspect(ctx context.Context, img containerd.Image) (*imageInfo, error) {
	diffs, err := img.RootFS(ctx)
	if err != nil {
		return nil, err
	}
	chain := identity.ChainID(diffs).String()
	if _, err := m.client.SnapshotService(m.cfg.Snapshotter).Stat(ctx, chain); errdefs.IsNotFound(err) {
		if err := img.Unpack(ctx, m.cfg.Snapshotter, unpackOnDisk); err != nil {
			return nil, fmt.Errorf("unpack: %w", err)
		}
	} else if err != nil {
		return nil, err
	}
	desc, err := img.Config(ctx)
	if err != nil {
		return nil, err
	}
	if desc.Size > 4<<20 {
		return nil, api.Errorf(api.TooLarge, "image config of %d bytes", desc.Size)
	}
	raw, err := readBlob(ctx, img, desc)
	if err != nil {
		return nil, err
	}
	var spec ocispec.Image
	if err := json.Unmarshal(raw, &spec); err != nil {
		return nil, fmt.Errorf("image config: %w", err)
	}
	unproven, err := m.unproven(ctx, diffs)
	if err != nil {
		return nil, err
	}
	return &imageInfo{imageState: imageState{Ready: !unproven, Unproven: unproven}, chain: chain, config: spec.Config, arch: spec.Architecture}, nil
}

func readBlob(ctx context.Context, img containerd.Image, desc ocispec.Descriptor) ([]byte, error) {
	ra, err := img.ContentStore().ReaderAt(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer ra.Close()
	raw := make([]byte, ra.Size())
	_, err = ra.ReadAt(raw, 0)
	if err != nil && int64(len(raw)) != ra.Size() {
		return nil, err
	}
	return raw, nil
}

// fetch makes an image ready: from what is here, else from the parent.
func (m *Manager) fetch(ctx context.Context, ref string) (*imageInfo, error) {
	img, err := m.client.GetImage(ctx, ref)
	known := err == nil
	if known {
		var info *imageInfo
		if info, err = m.proven(ctx, img); err == nil {
			return info, nil
		}
	}
	if !errdefs.IsNotFound(err) {
		m.cfg.Log.Warn("local image is damaged; fetching it again", "image", ref, "err", err)
	}
	host, err := m.resolver()
	if err != nil {
		return nil, err
	}
	res := docker.NewResolver(docker.ResolverOptions{Hosts: func(string) ([]docker.RegistryHost, error) { return []docker.RegistryHost{*host}, nil }})
	opts := []containerd.RemoteOpt{containerd.WithResolver(res), containerd.WithMaxConcurrentDownloads(2), containerd.WithPullLabel(labelOurs, "image")}
	if known { // Pull passes over layers that are unpacked, and with them over what they are to be proven by
		if _, err := m.client.Fetch(ctx, ref, append(opts, containerd.WithPlatformMatcher(img.Platform()))...); err != nil {
			return nil, err
		}
	}
	img, err = m.client.Pull(ctx, ref, append(opts, containerd.WithPullSnapshotter(m.cfg.Snapshotter, onDisk), containerd.WithPullUnpack)...)
	if err != nil {
		return nil, err
	}
	return m.proven(ctx, img)
}

// proven is inspect for an image whose layers may have to be proven first.
func (m *Manager) proven(ctx context.Context, img containerd.Image) (*imageInfo, error) {
	info, err := m.inspect(ctx, img)
	if err != nil || !info.Unproven {
		return info, err
	}
	if err := m.prove(ctx, img); err != nil {
		return nil, err
	}
	return m.inspect(ctx, img)
}

// pull runs fetch for the loop and notes the outcome.
func (m *Manager) pull(ctx context.Context, ref string) {
	info, err := m.fetch(ctx, ref)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		m.images[ref] = info
		return
	}
	was := m.images[ref]
	attempts, unproven := 1, false
	if was != nil {
		attempts, unproven = was.attempts+1, was.Unproven
	}
	if errors.Is(err, context.Canceled) {
		delete(m.images, ref)
		return
	}
	m.cfg.Log.Warn("image cannot be fetched", "image", ref, "attempt", attempts, "err", err)
	m.images[ref] = &imageInfo{attempts: attempts, imageState: imageState{Unproven: unproven, Error: brief(err), Retry: m.cfg.Now().Add(backoff(attempts + 2))}}
}

// brief makes an error short enough for a status.
func brief(err error) string {
	text := err.Error()
	if len(text) > 300 {
		text = text[:300] + "…"
	}
	return text
}

// withRootFS mounts an image read-only for a moment, to look into it.
func (m *Manager) withRootFS(ctx context.Context, info *imageInfo, f func(root string) error) error {
	return m.view(ctx, info.chain, func(mounts []mount.Mount) error { return mount.WithReadonlyTempMount(ctx, mounts, f) })
}

// view tells for a moment how an image is mounted.
func (m *Manager) view(ctx context.Context, chain string, f func([]mount.Mount) error) error {
	sn := m.client.SnapshotService(m.cfg.Snapshotter)
	key := "look-" + randomName()
	mounts, err := sn.View(ctx, key, chain, snapshots.WithLabels(map[string]string{labelGCRoot: m.cfg.Now().UTC().Format(time.RFC3339), labelOurs: "look"}))
	if err != nil {
		return err
	}
	defer func() {
		if err := sn.Remove(context.WithoutCancel(ctx), key); err != nil {
			m.cfg.Log.Warn("a view of an image stays behind", "snapshot", key, "err", err)
		}
	}()
	return f(mounts)
}

// collectGarbage forgets images that nothing names any more; containerd then frees
// their layers by itself.
func (m *Manager) collectGarbage(ctx context.Context) error {
	keep := map[string]bool{}
	m.mu.Lock()
	for _, a := range m.want {
		for _, s := range a.Services {
			keep[s.Image] = true
		}
	}
	for _, t := range m.instances {
		keep[t.image] = true
	}
	for ref, im := range m.images {
		if im.Pulling {
			keep[ref] = true
		}
	}
	m.mu.Unlock()
	all, err := m.client.ImageService().List(ctx, fmt.Sprintf("name~=^%s/", strings.ReplaceAll(imageHost, ".", `\.`)))
	if err != nil {
		return err
	}
	for _, im := range all {
		if keep[im.Name] || !strings.HasPrefix(im.Name, imageHost+"/") {
			continue
		}
		m.mu.Lock()
		delete(m.images, im.Name)
		m.mu.Unlock()
		if err := m.client.ImageService().Delete(ctx, im.Name, images.SynchronousDelete()); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		m.cfg.Log.Info("image is not named any more", "image", im.Name)
	}
	return nil
}
