package oci

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

func TestNames(t *testing.T) {
	good := "sha256:" + strings.Repeat("0a", 32)
	for s, ok := range map[string]bool{
		good: true, "": false, "sha256:": false, "sha512:" + good[7:]: false, good + "0": false, strings.ToUpper(good): false,
		"sha256:" + strings.Repeat("0g", 32): false, "sha256:../" + strings.Repeat("0", 61): false,
	} {
		if (CheckDigest(s) == nil) != ok {
			t.Errorf("digest %q: ok should be %v", s, ok)
		}
	}
	for s, ok := range map[string]bool{
		"a": true, "default/web": true, "a.b/c_d/e__f/g--h": true, "a0/1b": true,
		"": false, "/": false, "a/": false, "/a": false, "a//b": false, "A": false, "a..b": false, "a___b": false, "a._b": false, "-a": false, "a-": false,
		"../etc": false, "a/blobs": false, "manifests/a": false, "a/tags/b": false, "uploads": false, "a b": false, "a%2fb": false, "é": false,
		strings.Repeat("a", 255): true, strings.Repeat("a", 256): false,
	} {
		if (CheckRepo(s) == nil) != ok {
			t.Errorf("repository %q: ok should be %v", s, ok)
		}
	}
	for s, want := range map[string]Reference{
		"default/web:v1":                     {Repo: "default/web", Tag: "v1"},
		"default/web@" + good:                {Repo: "default/web", Digest: good},
		"default/web:v1@" + good:             {Repo: "default/web", Tag: "v1", Digest: good},
		"web":                                {Repo: "web"},
		"core:8443/default/web:v1":           {Host: "core:8443", Repo: "default/web", Tag: "v1"},
		"localhost/web":                      {Host: "localhost", Repo: "web"},
		"registry.example.org/a/b/c@" + good: {Host: "registry.example.org", Repo: "a/b/c", Digest: good},
		"[::1]:5000/a":                       {Host: "[::1]:5000", Repo: "a"},
	} {
		got, err := ParseReference(s)
		if err != nil || got != want || got.String() != s {
			t.Errorf("%q: %+v %v", s, got, err)
		}
	}
	for _, s := range []string{"", "@", ":", "a:", "a@", "Web", "a@sha256:1", "a:b:c", "a:.b", "http://x/y", "h:1/", "a/../b", "x@" + good + "@" + good, strings.Repeat("a", 600)} {
		if got, err := ParseReference(s); err == nil {
			t.Errorf("%q was read as %+v", s, got)
		}
	}
	for _, s := range []string{"web:v1", "web:v1@" + good, "host:1/web@" + good, "web"} {
		if _, _, err := ParsePinned(s); api.CodeOf(err) != api.Invalid {
			t.Errorf("%q passes for pinned", s)
		}
	}
}

func routes() *rapid.Generator[Route] {
	part := rapid.StringMatching(`[a-z0-9]{1,4}([._-][a-z0-9]{1,4}){0,2}`).Filter(func(s string) bool { return !reserved[s] })
	return rapid.Custom(func(t *rapid.T) Route {
		repo := strings.Join(rapid.SliceOfN(part, 1, 4).Draw(t, "repo"), "/")
		digest := "sha256:" + rapid.StringMatching(`[0-9a-f]{64}`).Draw(t, "digest")
		return rapid.SampledFrom([]Route{
			{Kind: RouteBase}, {Kind: RouteCatalog}, {RouteTags, repo, ""}, {RouteUpload, repo, ""}, {RouteUpload, repo, "0123-abc"},
			{RouteBlob, repo, digest}, {RouteReferrers, repo, digest}, {RouteManifest, repo, digest},
			{RouteManifest, repo, rapid.StringMatching(`[A-Za-z0-9_][A-Za-z0-9._-]{0,20}`).Draw(t, "tag")},
		}).Draw(t, "route")
	})
}

func TestPathsReadBackAsWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := routes().Draw(t, "route")
		got, err := ParsePath(want.Path())
		if err != nil || got != want {
			t.Fatalf("%q: %+v, %v; want %+v", want.Path(), got, err, want)
		}
	})
}

func FuzzParsePath(f *testing.F) {
	d := Digest(nil)
	for _, s := range []string{"/v2/", "/v2", "/v2/_catalog", "/v2/a/tags/list", "/v2/a/blobs/" + d, "/v2/a/manifests/x", "/v2/a/b/manifests/" + d,
		"/v2/a/blobs/uploads/", "/v2/a/blobs/uploads/12-ab", "/v2/a/manifests/../../x", "/v2//blobs/" + d, "/v2/manifests/manifests/manifests/x", "/v2/a/referrers/" + d, "/v3/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParsePath(s)
		if err != nil {
			return
		}
		if again, err := ParsePath(r.Path()); err != nil || again != r {
			t.Fatalf("%q is %+v is %q is %+v, %v", s, r, r.Path(), again, err)
		}
		if strings.Contains(r.Path(), "..") && strings.Contains(r.Path(), "/../") || strings.Contains(r.Path(), "//") {
			t.Fatalf("%q leads elsewhere", r.Path())
		}
	})
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"a", "a/b:c", "h:1/a@" + Digest(nil), "a:b@" + Digest(nil), "@", "A", "localhost/x", "[::1]/a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseReference(s)
		if err != nil {
			return
		}
		if r.String() != s {
			t.Fatalf("%q reads as %+v", s, r)
		}
		if CheckRepo(r.Repo) != nil || r.Digest != "" && CheckDigest(r.Digest) != nil || r.Tag != "" && CheckTag(r.Tag) != nil {
			t.Fatalf("%q gives parts that are not valid: %+v", s, r)
		}
	})
}

func FuzzCheckDigest(f *testing.F) {
	f.Add(Digest(nil))
	f.Add("sha256:")
	f.Add("sha256:" + strings.Repeat("/", 64))
	f.Fuzz(func(t *testing.T, s string) {
		if CheckDigest(s) == nil && (len(s) != 71 || strings.ContainsAny(s, "/.\\%")) {
			t.Fatalf("%q passes for a digest", s)
		}
	})
}

func FuzzParseContent(f *testing.F) {
	raw, _ := BundleManifest([]byte("{}"))
	f.Add(raw)
	f.Add([]byte(`{"manifests":[{"digest":"` + Digest(nil) + `","size":1,"platform":{"os":"linux","architecture":"arm64"}}]}`))
	f.Add([]byte(`{"mediaType":"` + TypeIndex + `","config":{}}`))
	f.Add([]byte(`{"config":{"digest":"x"}}`))
	f.Add([]byte(`[]`))
	f.Add([]byte(strings.Repeat(`{"config":`, 2000)))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseContent(b)
		if err != nil {
			return
		}
		for _, d := range c.Children() {
			if CheckDigest(d.Digest) != nil || d.Size < 0 {
				t.Fatalf("%s names %+v", b, d)
			}
		}
	})
}

func TestParseContentBounds(t *testing.T) {
	if _, err := ParseContent(make([]byte, MaxManifest+1)); api.CodeOf(err) != api.TooLarge {
		t.Fatal(err)
	}
	list := make([]Descriptor, maxDescriptors+1)
	for i := range list {
		list[i] = Descriptor{Digest: Digest(nil)}
	}
	raw, err := json.Marshal(map[string]any{"manifests": list})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseContent(raw); err == nil {
		t.Fatal("too many descriptors were taken")
	}
}

func FuzzResume(f *testing.F) {
	f.Add(206, "bytes 10-19/20", int64(10), int64(10))
	f.Add(200, "", int64(5), int64(20))
	f.Add(416, "bytes */3", int64(5), int64(0))
	f.Add(206, "bytes 99999999999999999999-1/2", int64(5), int64(0))
	f.Add(206, "bytes 0-0/0", int64(0), int64(-1))
	f.Fuzz(func(t *testing.T, status int, contentRange string, have, length int64) {
		restart, total, err := resume(status, contentRange, have, length)
		if err == nil && !restart && have > 0 && (status != http.StatusPartialContent || total < have) {
			t.Fatalf("%d %q have %d: goes on to %d", status, contentRange, have, total)
		}
	})
}
