package usb

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// bundle is a tar of files, in order.
func bundle(t *testing.T, files ...[2]string) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f[0], Mode: 0o644, Size: int64(len(f[1])), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

func layout(manifest string) [][2]string {
	return [][2]string{{"oci-layout", `{"imageLayoutVersion":"1.0.0"}`}, {"index.json", fmt.Sprintf(`{"manifests":[{"digest":"sha256:%s"}]}`, digest(manifest))},
		{"blobs/sha256/" + digest(manifest), manifest}, {"blobs/sha256/" + digest("layer"), "layer"}}
}

func TestOfferAndWant(t *testing.T) {
	h := In(t.TempDir())
	want := func(manifest, digest string) {
		t.Helper()
		if got, err := h.Wanted(manifest); err != nil || got != digest {
			t.Errorf("beside a manifest with %q: %q, %v; want %q", manifest, got, err, digest)
		}
	}
	want("sha256:m1", "")
	if err := h.Offer(t.Context(), bundle(t, layout("one")...), Wish{By: "ann"}); err != nil {
		t.Fatal(err)
	}
	want("sha256:m1", "sha256:"+digest("one"))
	want("sha256:m1", "sha256:"+digest("one"))
	if text, err := os.ReadFile(filepath.Join(string(h), Repo, "blobs/sha256", digest("layer"))); err != nil || string(text) != "layer" {
		t.Errorf("%q %v", text, err)
	}
	// A broken one changes nothing of what was offered.
	if err := h.Offer(t.Context(), bundle(t, layout("two")[:2]...), Wish{}); err == nil {
		t.Error("half an update is taken")
	}
	want("sha256:m1", "sha256:"+digest("one"))
	if err := h.Offer(t.Context(), bundle(t, layout("two")...), Wish{}); err != nil {
		t.Fatal(err)
	}
	want("sha256:m1", "sha256:"+digest("two"))
	want("sha256:m2", "") // the core names another since
	want("sha256:m1", "")
	if _, err := os.Stat(filepath.Join(string(h), Repo)); err == nil {
		t.Error("what nobody wants takes room")
	}
}

func TestRefused(t *testing.T) {
	good := layout("one")
	for name, files := range map[string][][2]string{
		"a damaged part":       {good[0], good[1], good[2], {good[3][0], "lAyer"}},
		"no manifest":          {good[0], good[1], good[3]},
		"no index":             {good[0], good[2], good[3]},
		"a file beside":        append([][2]string{{"install.sh", "#!/bin/sh"}}, good...),
		"a way out":            append([][2]string{{"../../../wish.json", "{}"}}, good...),
		"a part of no digest":  append([][2]string{{"blobs/sha256/zz", ""}}, good...),
		"the same part twice":  append([][2]string{good[3]}, good...),
		"an index of nonsense": {good[0], {"index.json", "{"}, good[2]},
		"a way out of blobs":   {good[0], {"index.json", `{"manifests":[{"digest":"sha256:../../index.json"}]}`}, good[2]},
	} {
		h := In(t.TempDir())
		if err := h.Offer(t.Context(), bundle(t, files...), Wish{}); err == nil {
			t.Errorf("%s: taken", name)
		}
		if got, err := h.Wanted(""); got != "" || err != nil {
			t.Errorf("%s: wanted %q %v", name, got, err)
		}
	}
	h := In(t.TempDir())
	if err := h.Offer(t.Context(), strings.NewReader("no tar at all, whatever it is that somebody called .tbu"), Wish{}); err == nil {
		t.Error("what is no tar is taken")
	}
}
