package oci

import (
	"bytes"
	"encoding/json"
	"testing"
)

// What is left to demand does not cross before a child asks, and once for all that ask.
func TestOnDemand(t *testing.T) {
	o := newOrigin(t)
	small, large := random(31, 1000), random(32, 300<<10)
	m := o.put(repo, must(json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": TypeManifest,
		"config": Descriptor{MediaType: "a", Digest: o.put(repo, small), Size: 1000},
		"layers": []Descriptor{{MediaType: "large", Digest: o.put(repo, large), Size: 300 << 10}}})))
	c := openCache(t, o, func(cfg *Config) { cfg.OnDemand = func(kind string) bool { return kind == "large" } })
	if err := c.Prefetch(t.Context(), []Ref{{Repo: repo, Digest: m}}); err != nil {
		t.Fatal(err)
	}
	if !c.shelf.has(Digest(small)) || c.shelf.has(Digest(large)) || o.sent.Load() > 10<<10 {
		t.Fatalf("%d bytes crossed ahead", o.sent.Load())
	}
	before := o.sent.Load()
	for range 3 {
		if _, b := newChild(t, c).get(blobPath(Digest(large))); !bytes.Equal(b, large) {
			t.Fatalf("a child got %d bytes", len(b))
		}
	}
	if crossed := o.sent.Load() - before; crossed != 300<<10 {
		t.Fatalf("%d bytes crossed for three children", crossed)
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}
