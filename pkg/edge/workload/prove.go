package workload

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	blobs "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	cfs "github.com/containerd/continuity/fs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// A layer that is brought to the disk before containerd notes it (sync.go) gets a mark. One without it was unpacked by an
// edged before that, and a power cut may have left its files empty: it is compared once with what it was unpacked from,
// unpacked again over itself where it differs, and marked.

// labelOnDisk marks such a layer.
const labelOnDisk = "tributary.dev/on-disk"

func onDisk(info *snapshots.Info) error {
	return snapshots.WithLabels(map[string]string{labelOnDisk: "1"})(info)
}

// unpackOnDisk marks the layers that Unpack unpacks.
func unpackOnDisk(_ context.Context, c *containerd.UnpackConfig) error {
	c.SnapshotOpts = append(c.SnapshotOpts, onDisk)
	return nil
}

// unproven tells whether a layer of an image has no mark. Where layers lie is known of overlayfs alone.
func (m *Manager) unproven(ctx context.Context, diffs []digest.Digest) (bool, error) {
	if m.cfg.Snapshotter != "overlayfs" {
		return false, nil
	}
	for i := range diffs {
		info, err := m.client.SnapshotService(m.cfg.Snapshotter).Stat(ctx, identity.ChainID(diffs[:i+1]).String())
		if err != nil || info.Labels[labelOnDisk] == "" {
			return true, err
		}
	}
	return false, nil
}

// prove compares the unmarked layers of an image with what they were unpacked from, mends those that differ, and marks
// them. A container that ran from a layer that was mended is started again.
func (m *Manager) prove(ctx context.Context, img containerd.Image) error {
	diffs, err := img.RootFS(ctx)
	if err != nil {
		return err
	}
	manifest, err := images.Manifest(ctx, img.ContentStore(), img.Target(), img.Platform())
	if err != nil {
		return err
	}
	var dirs []string
	err = m.view(ctx, identity.ChainID(diffs).String(), func(mounts []mount.Mount) error { dirs = layerDirs(mounts); return nil })
	if err != nil {
		return err
	}
	if len(dirs) != len(diffs) || len(manifest.Layers) != len(diffs) {
		return fmt.Errorf("image %s of %d layers, %d of them named, lies in %d folders", img.Name(), len(diffs), len(manifest.Layers), len(dirs))
	}
	sn := m.client.SnapshotService(m.cfg.Snapshotter)
	for i, layer := range manifest.Layers {
		name := identity.ChainID(diffs[:i+1]).String()
		if info, err := sn.Stat(ctx, name); err != nil {
			return err
		} else if info.Labels[labelOnDisk] != "" {
			continue
		}
		whole, err := m.isWhole(ctx, layer, diffs[i], dirs[i])
		if err != nil {
			return err
		}
		if !whole {
			if err := m.mend(ctx, img, layer, diffs[i], dirs[:i+1]); err != nil {
				return err
			}
		}
		info := snapshots.Info{Name: name}
		if err := onDisk(&info); err != nil {
			return err
		}
		if _, err := sn.Update(ctx, info, "labels."+labelOnDisk); err != nil {
			return err
		}
	}
	return nil
}

// layerDirs gives the folders of a view's layers, the lowest first.
func layerDirs(mounts []mount.Mount) []string {
	if len(mounts) != 1 {
		return nil
	}
	for _, o := range mounts[0].Options {
		if list, ok := strings.CutPrefix(o, "lowerdir="); ok {
			dirs := strings.Split(list, ":")
			slices.Reverse(dirs)
			return dirs
		}
	}
	return []string{mounts[0].Source}
}

// isWhole compares a layer's folder with its blob. A blob that is not what it should be is deleted, so that the next
// pull fetches it.
func (m *Manager) isWhole(ctx context.Context, layer ocispec.Descriptor, diff digest.Digest, dir string) (bool, error) {
	store := m.client.ContentStore()
	ra, err := store.ReaderAt(ctx, layer)
	if err != nil {
		return false, err
	}
	defer ra.Close()
	whole, got, err := compare(blobs.NewReader(ra), dir)
	if err == nil && got != diff {
		err = fmt.Errorf("the blob unpacks to %s", got)
	}
	if err != nil && ctx.Err() == nil {
		return false, errors.Join(fmt.Errorf("layer %s: %w", layer.Digest, err), store.Delete(ctx, layer.Digest), m.collect(ctx))
	}
	return whole, err
}

// collect has containerd free what nothing holds any more: it does when a lease ends.
func (m *Manager) collect(ctx context.Context) error {
	service := m.client.LeasesService()
	l, err := service.Create(ctx, leases.WithRandomID(), leases.WithExpiration(time.Minute))
	if err != nil {
		return err
	}
	return service.Delete(ctx, l, leases.SynchronousDelete)
}

// compare tells whether a folder has each file of a layer with its bytes, and the digest of the layer's archive. An error
// is of the archive.
func compare(blob io.Reader, dir string) (whole bool, diff digest.Digest, err error) {
	plain, err := compression.DecompressStream(blob)
	if err != nil {
		return false, "", err
	}
	defer plain.Close()
	sum := digest.Canonical.Digester()
	all := io.TeeReader(plain, sum.Hash())
	whole = true
	for archive := tar.NewReader(all); ; {
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return false, "", err
		}
		name := path.Join("/", h.Name)
		if h.Typeflag != tar.TypeReg || strings.Contains(name, "/.wh.") { // what overlayfs hides, not what is there
			continue
		}
		whole = whole && same(dir, name, h.Size, archive)
	}
	_, err = io.Copy(io.Discard, all)
	return whole, sum.Digest(), err
}

// same compares a file with what it should be.
func same(dir, name string, size int64, want io.Reader) bool {
	parent, err := cfs.RootPath(dir, path.Dir(name))
	if err != nil {
		return false
	}
	f, err := os.OpenFile(filepath.Join(parent, path.Base(name)), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() || st.Size() != size { // check: size
		return false
	}
	a, b := make([]byte, 32<<10), make([]byte, 32<<10)
	for size > 0 {
		n := min(size, int64(len(a)))
		_, err1 := io.ReadFull(want, a[:n])
		_, err2 := io.ReadFull(f, b[:n])
		if err1 != nil || err2 != nil || !bytes.Equal(a[:n], b[:n]) { // check: bytes
			return false
		}
		size -= n
	}
	return true
}

// mend unpacks a layer over itself, as containerd unpacked it first.
func (m *Manager) mend(ctx context.Context, img containerd.Image, layer ocispec.Descriptor, diff digest.Digest, dirs []string) error {
	dir, lower := dirs[len(dirs)-1], slices.Clone(dirs[:len(dirs)-1])
	slices.Reverse(lower)
	to := mount.Mount{Type: "bind", Source: dir, Options: []string{"rw", "rbind"}}
	if len(lower) > 0 {
		to = mount.Mount{Type: "overlay", Source: "overlay", Options: []string{"upperdir=" + dir, "lowerdir=" + strings.Join(lower, ":")}}
	}
	m.cfg.Log.Warn("files of an image were lost, as in a power cut; its layer is unpacked again", "image", img.Name(), "layer", layer.Digest)
	got, err := m.client.DiffService().Apply(ctx, layer, []mount.Mount{to})
	if err == nil && got.Digest != diff {
		err = fmt.Errorf("layer %s unpacks to %s", layer.Digest, got.Digest)
	}
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.instances {
		// Layers are shared by images; which those are is not looked up for what happens once.
		t.in.Mended = t.in.Mended || t.image == img.Name()
	}
	return nil
}
