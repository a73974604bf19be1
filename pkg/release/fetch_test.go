package release

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tributary.dev/tributary/tests/mutation"
)

// parent serves one blob; it breaks off where it is told to.
type parent struct {
	blob   []byte
	limit  int // bytes of one answer; 0: all
	ranges bool
	sent   atomic.Int64
}

func (p *parent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	from, v := 0, ""
	if v, _ = strings.CutPrefix(r.Header.Get("Range"), "bytes="); v != "" && p.ranges {
		from, _ = strconv.Atoi(strings.TrimSuffix(v, "-"))
	}
	out := p.blob[from:]
	w.Header().Set("Content-Length", strconv.Itoa(len(out)))
	if from > 0 {
		w.WriteHeader(http.StatusPartialContent)
	}
	if p.limit > 0 && len(out) > p.limit { // the line breaks: less comes than was said
		out = out[:p.limit]
	}
	p.sent.Add(int64(len(out)))
	_, _ = w.Write(out)
}

type at struct{ u *url.URL }

func (a at) Endpoint() (*url.URL, *http.Client, error) { return a.u, http.DefaultClient, nil }

// TestDownloadGoesOn: a download that breaks off goes on at the byte where it stood; wrong bytes begin anew.
func TestDownloadGoesOn(t *testing.T) {
	blob := make([]byte, 300_000)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range blob {
		blob[i] = byte(r.Uint32())
	}
	for _, ranges := range []bool{true, false} {
		p := &parent{blob: blob, limit: 70_001, ranges: ranges}
		server := httptest.NewServer(p)
		u, err := url.Parse(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		s, file := Source{Up: at{u}, Repo: "os/vm"}, filepath.Join(t.TempDir(), "blob")
		if err := os.WriteFile(file, blob[:12_345], 0o600); err != nil {
			t.Fatal(err)
		}
		tries := 0
		for ; tries < 20; tries++ {
			if !ranges && tries == 3 {
				p.limit = 0
			}
			if err = s.Download(context.Background(), digestOf(blob), int64(len(blob)), file, Limits{}); err == nil {
				break
			}
		}
		got, rerr := os.ReadFile(file)
		if err != nil || rerr != nil || !bytes.Equal(got, blob) {
			t.Fatalf("after %d tries: %v %v", tries, err, rerr)
		}
		if ranges && p.sent.Load() > int64(len(blob)) {
			t.Errorf("%d bytes travelled for %d", p.sent.Load(), len(blob))
		}
		got[7] ^= 1
		p.limit = 0
		if err := os.WriteFile(file, got, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.Download(context.Background(), digestOf(blob), int64(len(blob)), file, Limits{}); err == nil {
			t.Fatal("a file with a flipped bit is taken for whole")
		}
		if err := s.Download(context.Background(), digestOf(blob), int64(len(blob)), file, Limits{}); err != nil {
			t.Fatal(err)
		}
		server.Close()
	}
}

// source serves what p has, and gives a file to bring it to.
func (p *parent) source(t *testing.T) (Source, string) {
	server := httptest.NewServer(p)
	t.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	return Source{Up: at{u}, Repo: "os/vm"}, filepath.Join(t.TempDir(), "blob")
}

// TestDownloadAtAnyByte: the line breaks after any number of bytes, and what was brought so far is not brought again.
func TestDownloadAtAnyByte(t *testing.T) {
	blob := bytes.Repeat([]byte("release"), 50)
	p := &parent{blob: blob, ranges: true}
	s, file := p.source(t)
	for n := 1; n < len(blob); n++ {
		p.sent.Store(0)
		p.limit = n
		if err := s.Download(t.Context(), digestOf(blob), int64(len(blob)), file, Limits{}); err == nil {
			t.Fatalf("%d bytes are taken for whole", n)
		}
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, blob[:n]) {
			t.Fatalf("after %d bytes the file has %d: %v", n, len(got), err)
		}
		p.limit = 0
		if err := s.Download(t.Context(), digestOf(blob), int64(len(blob)), file, Limits{}); err != nil {
			t.Fatal(n, err)
		}
		if sent := p.sent.Load(); sent != int64(len(blob)) {
			t.Fatalf("after a break at byte %d, %d bytes travelled for %d", n, sent, len(blob))
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDownloadLimits: never faster than the rate, not outside of the hours, and on from there in the next ones.
func TestDownloadLimits(t *testing.T) {
	blob := bytes.Repeat([]byte("release"), 40_000)
	p := &parent{blob: blob, ranges: true}
	s, file := p.source(t)
	pieces := 0
	closes := Limits{Open: func() bool { pieces++; return pieces <= 2 }}
	if err := s.Download(t.Context(), digestOf(blob), int64(len(blob)), file, closes); !errors.Is(err, ErrClosed) {
		t.Fatalf("after the hours: %v", err)
	}
	info, err := os.Stat(file)
	if err != nil || info.Size() != 2*64<<10 {
		t.Fatalf("two pieces are %d bytes: %v", info.Size(), err)
	}
	left := int64(len(blob)) - info.Size()
	began := time.Now()
	if err := s.Download(t.Context(), digestOf(blob), int64(len(blob)), file, Limits{Rate: func() int64 { return 2 * left }}); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 450*time.Millisecond { // half a second; clocks tick
		t.Errorf("%d bytes came within %s at %d bytes a second", left, took, 2*left)
	}
}

// TestLimitsCount: in a build without one of the limits, their test fails.
func TestLimitsCount(t *testing.T) {
	mutation.Prove(t, mutation.Marked(t, "^TestDownloadLimits$", "fetch.go")...)
}

// TestTravel: a box takes the smallest that it can read; a delta of a format that is newer than the box is nothing to it.
func TestTravel(t *testing.T) {
	plain, delta := bytes.Repeat([]byte{1}, 100), []byte{2}
	b := Bundle{Description: description("1.2"), Targets: []byte("{}"), Plain: plain, Deltas: map[string][]byte{"here": delta}}
	raw, _, err := b.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, identity, want string
		raw                  []byte
	}{
		{"its delta", "here", digestOf(delta), raw},
		{"another box's delta", "there", digestOf(plain), raw},
		{"a delta that nobody has the memory for", "here", digestOf(plain), sized(t, raw, digestOf(delta), MaxDelta+1, digestOf(plain), MaxContent)},
		{"a large delta", "here", digestOf(delta), sized(t, raw, digestOf(delta), MaxDelta, digestOf(plain), MaxContent)},
		{"a later format", "here", digestOf(plain), bytes.ReplaceAll(raw, []byte(TypeDelta), []byte("application/vnd.tributary.release.delta.v99"))},
	} {
		p := Parts{Manifest: c.raw}
		if got, _, _, err := p.Travel(c.identity); err != nil || got != c.want {
			t.Errorf("%s: %s, %v; want %s", c.name, got, err, c.want)
		}
	}
}

// sized is a manifest that gives two of its layers other sizes.
func sized(t *testing.T, raw []byte, one string, size int64, other string, otherSize int64) []byte {
	t.Helper()
	m, err := parseManifest(raw)
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range m.Layers {
		switch l.Digest {
		case one:
			m.Layers[i].Size = size
		case other:
			m.Layers[i].Size = otherSize
		}
	}
	out, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
