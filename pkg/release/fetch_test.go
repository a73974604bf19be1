package release

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// parent serves one blob; it breaks off where it is told to.
type parent struct {
	blob   []byte
	limit  int // bytes of one answer; 0: all
	ranges bool
	sent   int
}

func (p *parent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	from := 0
	if v, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok && p.ranges {
		from, _ = strconv.Atoi(strings.TrimSuffix(v, "-"))
		w.WriteHeader(http.StatusPartialContent)
	}
	out := p.blob[from:]
	if p.limit > 0 && len(out) > p.limit {
		out = out[:p.limit]
		p.sent += len(out)
		_, _ = w.Write(out)
		panic(http.ErrAbortHandler) // the line breaks
	}
	p.sent += len(out)
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
			if err = s.Download(context.Background(), digestOf(blob), int64(len(blob)), file, 0); err == nil {
				break
			}
		}
		got, rerr := os.ReadFile(file)
		if err != nil || rerr != nil || !bytes.Equal(got, blob) {
			t.Fatalf("after %d tries: %v %v", tries, err, rerr)
		}
		if ranges && p.sent > len(blob) {
			t.Errorf("%d bytes travelled for %d", p.sent, len(blob))
		}
		got[7] ^= 1
		p.limit = 0
		if err := os.WriteFile(file, got, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.Download(context.Background(), digestOf(blob), int64(len(blob)), file, 0); err == nil {
			t.Fatal("a file with a flipped bit is taken for whole")
		}
		if err := s.Download(context.Background(), digestOf(blob), int64(len(blob)), file, 0); err != nil {
			t.Fatal(err)
		}
		server.Close()
	}
}
