package workload

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/image-spec/identity"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/workload/workloadtest"
	"tributary.dev/tributary/tests/mutation"
)

// layer is a layer of the device's app as it lies on the disk.
type layer struct{ snapshot, dir, blob string }

// layers lists those of the app, the lowest first.
func (d *device) layers() (out []layer) {
	d.t.Helper()
	ctx := namespaces.WithNamespace(context.Background(), d.m.cfg.Namespace)
	img, err := d.m.client.GetImage(ctx, imageName(d.image))
	if err != nil {
		d.t.Fatal(err)
	}
	diffs, err := img.RootFS(ctx)
	if err != nil {
		d.t.Fatal(err)
	}
	manifest, err := images.Manifest(ctx, img.ContentStore(), img.Target(), img.Platform())
	if err != nil {
		d.t.Fatal(err)
	}
	var dirs []string
	if err := d.m.view(ctx, identity.ChainID(diffs).String(), func(m []mount.Mount) error { dirs = layerDirs(m); return nil }); err != nil {
		d.t.Fatal(err)
	}
	for i, l := range manifest.Layers {
		blob := filepath.Join(d.daemon.Dir, "root/io.containerd.content.v1.content/blobs/sha256", l.Digest.Encoded())
		out = append(out, layer{identity.ChainID(diffs[:i+1]).String(), dirs[i], blob})
	}
	return out
}

// marked tells whether each layer has its mark; with clear it is taken away.
func (d *device) marked(clear bool) (all bool) {
	d.t.Helper()
	ctx := namespaces.WithNamespace(context.Background(), d.m.cfg.Namespace)
	sn := d.m.client.SnapshotService(d.m.cfg.Snapshotter)
	all = true
	for _, l := range d.layers() {
		info, err := sn.Stat(ctx, l.snapshot)
		if err != nil {
			d.t.Fatal(err)
		}
		all = all && info.Labels[labelOnDisk] != ""
		if !clear {
			continue
		}
		if _, err := sn.Update(ctx, snapshots.Info{Name: l.snapshot}, "labels."+labelOnDisk); err != nil {
			d.t.Fatal(err)
		}
	}
	return all
}

// TestLostFilesComeBack: what an older edged left half on the disk is found by what is not marked, and is whole again
// without a person and, where the blob is whole, without the parent. The container that runs from it is started again.
func TestLostFilesComeBack(t *testing.T) {
	d := newDevice(t)
	im, err := tools.AppImage("acme/two", v1.Config{})
	if err != nil {
		t.Fatal(err)
	}
	im.Upper = []workloadtest.File{{Path: "etc/site", Data: bytes.Repeat([]byte("a site "), 20_000), Mode: 0o644}}
	if d.image, err = d.up.Push(im); err != nil {
		t.Fatal(err)
	}
	d.begin()
	app := d.app("web", api.Service{Name: "front", Restart: api.Restart{Policy: "always"}})
	d.m.Set([]App{app})
	d.running("web")
	if !d.marked(false) {
		t.Fatal("what was pulled is not marked")
	}
	fetched := d.up.Requests()
	site, seed := im.Upper[0].Data, im.Files[5].Data
	for _, c := range []struct {
		what    string
		spoil   func(low, up layer) error
		again   bool // the container is started again
		fetches bool
	}{
		{"nothing was lost", func(low, up layer) error { return nil }, false, false},
		{"the upper layer's file is empty", func(low, up layer) error { return os.Truncate(filepath.Join(up.dir, "etc/site"), 0) }, true, false},
		{"it has the size, and zeroes", func(low, up layer) error {
			return os.WriteFile(filepath.Join(up.dir, "etc/site"), make([]byte, len(site)), 0o644)
		}, true, false},
		{"the lower layer's file is gone", func(low, up layer) error { return os.Remove(filepath.Join(low.dir, "data/seed")) }, true, false},
		{"its blob, too, is lost", func(low, up layer) error {
			if err := os.Truncate(low.blob, 100); err != nil {
				return err
			}
			return os.Truncate(filepath.Join(low.dir, "data/seed"), 0)
		}, true, true},
	} {
		before := d.service("web", "front")
		d.marked(true)
		all := d.layers()
		d.end()
		if err := c.spoil(all[0], all[1]); err != nil {
			t.Fatal(err)
		}
		d.begin()
		d.m.Set([]App{app})
		d.wait(c.what+": the layers are proven", func() bool { return d.marked(false) })
		if c.again {
			d.wait(c.what+": the container is started again", func() bool { return d.service("web", "front").Restarts > before.Restarts })
		}
		d.running("web")
		for path, want := range map[string][]byte{filepath.Join(all[0].dir, "data/seed"): seed, filepath.Join(all[1].dir, "etc/site"): site} {
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %s has %d bytes, %v", c.what, path, len(got), err)
			}
		}
		if got := d.get("web", "front", "/file?p=/data/seed"); got != string(seed) {
			t.Errorf("%s: the container reads %q", c.what, got)
		}
		after := d.service("web", "front")
		if after.Container != before.Container || !c.again && after.Restarts != before.Restarts {
			t.Errorf("%s: %+v became %+v", c.what, before, after)
		}
		if now := d.up.Requests(); c.fetches != (now > fetched) {
			t.Errorf("%s: %d requests after %d", c.what, now, fetched)
		}
		fetched = d.up.Requests()
	}
}

// TestProofCounts: in a build that compares less, TestCompare fails.
func TestProofCounts(t *testing.T) {
	mutation.Prove(t, mutation.Marked(t, "^TestCompare$", "prove.go")...)
}

// TestCompare: a layer is what lies in its folder, or not.
func TestCompare(t *testing.T) {
	files := []struct{ name, text string }{{"etc/.wh.gone", ""}, {"etc/.wh..wh..opq", ""}, {"etc/empty", ""}, {"etc/site", "a site"}, {"usr/bin/x", "program"}}
	var blob bytes.Buffer
	w := tar.NewWriter(&blob)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o644, Size: int64(len(f.text))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f.text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		change func(dir string) error
		whole  bool
	}{
		"whole":   {func(string) error { return nil }, true},
		"empty":   {func(dir string) error { return os.Truncate(filepath.Join(dir, "etc/site"), 0) }, false},
		"longer":  {func(dir string) error { return os.WriteFile(filepath.Join(dir, "etc/empty"), []byte("x"), 0o644) }, false},
		"zeroes":  {func(dir string) error { return os.WriteFile(filepath.Join(dir, "usr/bin/x"), make([]byte, 7), 0o644) }, false},
		"missing": {func(dir string) error { return os.Remove(filepath.Join(dir, "etc/empty")) }, false},
		"a link":  {func(dir string) error { return os.Rename(filepath.Join(dir, "usr"), filepath.Join(dir, "lib")) }, false},
		"through": {func(dir string) error {
			return errors.Join(os.Rename(filepath.Join(dir, "usr"), filepath.Join(dir, "lib")), os.Symlink("/lib", filepath.Join(dir, "usr")))
		}, true},
	} {
		dir := t.TempDir()
		for _, f := range files[2:] {
			at := filepath.Join(dir, f.name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte(f.text), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.change(dir); err != nil {
			t.Fatal(err)
		}
		if whole, _, err := compare(bytes.NewReader(blob.Bytes()), dir); whole != c.whole || err != nil {
			t.Errorf("%s: whole %v, %v", what, whole, err)
		}
	}
	if _, _, err := compare(bytes.NewReader(blob.Bytes()[:600]), t.TempDir()); err == nil {
		t.Error("half an archive is one")
	}
}

func TestLayerDirs(t *testing.T) {
	for _, c := range []struct {
		mounts []mount.Mount
		want   []string
	}{
		{nil, nil},
		{[]mount.Mount{{Type: "bind", Source: "/s/1/fs", Options: []string{"ro", "rbind"}}}, []string{"/s/1/fs"}},
		{[]mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"index=off", "lowerdir=/s/3/fs:/s/2/fs:/s/1/fs"}}}, []string{"/s/1/fs", "/s/2/fs", "/s/3/fs"}},
	} {
		if got := layerDirs(c.mounts); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %v", c.mounts, got)
		}
	}
}

// TestProofBesideWhatRuns: a container runs on while its image is proven, and is stopped, to be started again, where the
// image was mended under it.
func TestProofBesideWhatRuns(t *testing.T) {
	s := wantService{Hash: "1", Image: "image", Service: api.Service{Name: "front"}}
	for what, c := range map[string]struct {
		image  imageState
		mended bool
		want   []verb
	}{
		"proven":       {imageState{Ready: true}, false, nil},
		"to be proven": {imageState{Unproven: true}, false, []verb{doPull}},
		"under way":    {imageState{Unproven: true, Pulling: true}, false, nil},
		"to wait":      {imageState{Unproven: true, Error: "no parent", Retry: time.Unix(60, 0)}, false, nil},
		"tried again":  {imageState{Unproven: true, Error: "no parent", Retry: time.Unix(40, 0)}, false, []verb{doPull}},
		"mended":       {imageState{Unproven: true, Pulling: true}, true, []verb{doStop}},
	} {
		in := instance{ID: "1", Key: serviceKey{"web", "front"}, Hash: "1", Phase: phaseRunning, Mended: c.mended}
		var got []verb
		d := plan(world{Now: time.Unix(50, 0), Apps: []wantApp{{Name: "web", Services: []wantService{s}}}, Instances: []instance{in}, Images: map[string]imageState{"image": c.image}})
		for _, a := range d.Actions {
			got = append(got, a.Verb)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", what, got, c.want)
		}
		if wake := d.Wake; what == "to wait" && !wake.Equal(time.Unix(60, 0)) {
			t.Errorf("%s until %v", what, wake)
		}
	}
}
