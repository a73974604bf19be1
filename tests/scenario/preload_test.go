package scenario

import (
	"os"
	"path/filepath"
	"testing"

	"tributary.dev/tributary/tests/lab"
)

// A box whose system carries an app's images takes nothing of them over its uplink: the same layouts that were pushed
// to the core lie in its preload folder.
func TestPreload(t *testing.T) {
	folder := t.TempDir()
	s := raise(t, []lab.BoxSpec{{Name: "field-1", Parent: "core", Role: "field", EdgedArgs: []string{"--preload", folder}}})
	ctx := t.Context()
	must(t, s.Raise(ctx))
	must(t, s.PushImages(ctx))
	const image = "cache"
	from := filepath.Join(s.Root, ".cache", "images", image)
	must(t, os.CopyFS(filepath.Join(folder, "default", image), os.DirFS(from)))
	var size uint64
	blobs, err := os.ReadDir(filepath.Join(from, "blobs", "sha256"))
	must(t, err)
	for _, b := range blobs {
		info, err := b.Info()
		must(t, err)
		size += uint64(info.Size())
	}
	link := s.Lab.Boxes["field-1"].Uplink
	before, _, err := link.Bytes(ctx)
	must(t, err)
	must(t, apply(ctx, s, appText("still", "services:\n  w: {image: "+image+", entrypoint: [/bin/busybox, sleep, \"100000\"], stop_grace_period: 1s}\n")+"---\n"+fleetText("still", "field", "still")))
	must(t, running(ctx, s, "field-1", "still"))
	after, _, err := link.Bytes(ctx)
	must(t, err)
	if got := after - before; got > size/4 {
		t.Errorf("%d bytes came over the uplink for an image of %d bytes that the box has", got, size)
	} else {
		t.Logf("%d bytes came over the uplink, the image has %d", got, size)
	}
}
