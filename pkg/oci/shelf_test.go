package oci

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/wait"
)

func TestEvictionTakesTheOldestAndNeverThePinned(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var list []entry
		pinned := map[string]bool{}
		r := room{budget: rapid.Int64Range(0, 200).Draw(t, "budget"), free: rapid.Int64Range(0, 200).Draw(t, "free")}
		for i := range rapid.IntRange(0, 20).Draw(t, "n") {
			e := entry{digest: fmt.Sprint("d", i), size: rapid.Int64Range(0, 40).Draw(t, "size"), used: time.Unix(rapid.Int64Range(0, 9).Draw(t, "used"), 0)}
			list = append(list, e)
			pinned[e.digest] = rapid.Bool().Draw(t, "pinned")
			r.used += e.size
		}
		size := rapid.Int64Range(1, 100).Draw(t, "new")
		byDigest := map[string]entry{}
		for _, e := range list {
			byDigest[e.digest] = e
		}
		victims, ok := evict(append([]entry(nil), list...), pinned, r, size, size)
		gone := map[string]bool{}
		after := r
		var youngest time.Time
		for _, d := range victims {
			if pinned[d] || gone[d] {
				t.Fatalf("%s is pinned or named twice", d)
			}
			gone[d] = true
			after.used -= byDigest[d].size
			after.free += byDigest[d].size
			if byDigest[d].used.After(youngest) {
				youngest = byDigest[d].used
			}
		}
		for _, e := range list {
			if !gone[e.digest] && !pinned[e.digest] && len(victims) > 0 && e.used.Before(youngest) {
				t.Fatalf("%v stays, a younger one went", e)
			}
		}
		fits := (r.budget == 0 || after.used+size <= r.budget) && after.free >= size
		if ok != fits && ok {
			t.Fatalf("does not fit: %+v", after)
		}
		if !ok {
			all := r
			for _, e := range list {
				if !pinned[e.digest] {
					all.used -= e.size
					all.free += e.size
				}
			}
			if (r.budget == 0 || all.used+size <= r.budget) && all.free >= size {
				t.Fatal("refused though there is enough to evict")
			}
			if len(victims) != 0 {
				t.Fatal("evicts in vain")
			}
		}
		if ok && len(victims) > 0 { // not one more than needed
			last := byDigest[victims[len(victims)-1]]
			if (r.budget == 0 || after.used+last.size+size <= r.budget) && after.free-last.size >= size {
				t.Fatal("evicts more than is needed")
			}
		}
	})
}

func TestPinnedStaysWhateverComes(t *testing.T) {
	o := newOrigin(t)
	clock := time.Unix(1e9, 0)
	c := openCache(t, o, func(cfg *Config) {
		cfg.Bytes = 1 << 20
		cfg.Now = func() time.Time { clock = clock.Add(time.Second); return clock }
	})
	img, blobs := o.image(repo, random(20, 300<<10))
	c.Pin("device-a", []Ref{{Repo: repo, Digest: img}})
	if err := c.Prefetch(t.Context(), c.Pinned()); err != nil {
		t.Fatal(err)
	}
	kid := newChild(t, c)
	for i := range 10 {
		if res, _ := kid.get(blobPath(o.put(repo, random(uint64(100+i), 200<<10)))); res.StatusCode != 200 {
			t.Fatal(res.Status)
		}
		if _, n := c.Size(); n > 1<<20 {
			t.Fatalf("%d bytes are over the budget", n)
		}
	}
	for _, d := range append(blobs, img) {
		if !c.shelf.has(d) {
			t.Fatalf("%s was pinned and is gone", d)
		}
	}
	// The pins outlive the process; without them the image goes like any other.
	c.Close()
	again := openCache(t, o, func(cfg *Config) { cfg.Dir = c.cfg.Dir; cfg.Bytes = 1 << 20 })
	if list := again.Pinned(); len(list) != 1 || list[0].Digest != img {
		t.Fatalf("pins after a restart: %v", list)
	}
	again.SetBudget(310 << 10)
	if _, n := again.Size(); n > 310<<10 || !again.shelf.has(img) {
		t.Fatalf("%d bytes", n)
	}
	again.Pin("device-a", nil)
	again.SetBudget(1)
	if n, _ := again.Size(); n != 0 {
		t.Fatalf("%d blobs are left", n)
	}
}

func TestPinsReachTheDisk(t *testing.T) {
	c := openCache(t, newOrigin(t))
	for i := range 100 {
		c.Pin(fmt.Sprint("device-", i), []Ref{{Repo: repo, Digest: Digest([]byte{byte(i)})}})
	}
	wait.Until(t, "the pins are on disk", func() bool {
		b, err := os.ReadFile(c.cfg.Dir + "/pins.json")
		return err == nil && bytes.Count(b, []byte("sha256:")) == 100
	})
	if n := len(c.Pinned()); n != 100 {
		t.Fatal(n)
	}
}

func TestManyQuestionsAreBounded(t *testing.T) {
	o := newOrigin(t)
	o.set(func() { o.away = true })
	c := openCache(t, o)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for i := range maxFlights {
		go func() { _ = c.have(ctx, target{RouteBlob, repo, Digest([]byte(fmt.Sprint(i))), -1}) }()
	}
	wait.Until(t, "all are waited for", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return len(c.flights) == maxFlights })
	if err := c.have(ctx, target{RouteBlob, repo, Digest([]byte("one more")), -1}); api.CodeOf(err) != api.Unavailable {
		t.Fatal(err)
	}
}

func TestNoRoomPassesThrough(t *testing.T) {
	o := newOrigin(t)
	free := int64(10)
	c := openCache(t, o, func(cfg *Config) { cfg.Free = func() (int64, error) { return free, nil } })
	kid := newChild(t, c)
	want := random(21, 500<<10)
	d := o.put(repo, want)
	for range 2 {
		if res, b := kid.get(blobPath(d)); res.StatusCode != 200 || !bytes.Equal(b, want) {
			t.Fatalf("status %d, %d bytes", res.StatusCode, len(b))
		}
	}
	if res, b := kid.get(blobPath(d), "Range", "bytes=1000-"); res.StatusCode != 206 || !bytes.Equal(b, want[1000:]) {
		t.Fatalf("range: %d, %d bytes", res.StatusCode, len(b))
	}
	if w := c.Warnings(); len(w) != 1 || w[0].Name != WarnNoRoom {
		t.Fatalf("warnings: %v", w)
	}
	if c.Counters().PassedBytes == 0 || c.shelf.partialSize(d) != 0 {
		t.Fatal("not passed through, or something was kept")
	}
	// A lie is cut before its end here too.
	evil := bytes.Clone(want)
	evil[7] ^= 1
	o.set(func() { o.wrong[d] = evil })
	if _, b, err := kid.do(http.MethodGet, blobPath(d)); err == nil || len(b) > len(want)-holdBack {
		t.Fatalf("%d wrong bytes passed through, %v", len(b), err)
	}
	// Space returns, the warning goes.
	o.set(func() { clear(o.wrong) })
	free = 1 << 40
	c.mu.Lock()
	clear(c.failures)
	c.mu.Unlock()
	if _, b := kid.get(blobPath(d)); !bytes.Equal(b, want) || !c.shelf.has(d) || len(c.Warnings()) != 0 {
		t.Fatalf("%d bytes, warnings %v", len(b), c.Warnings())
	}
}

func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts a small file system")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("needs the right to mount: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	o := newOrigin(t)
	// The cache is told there is room, so that the kernel's ENOSPC is what it meets.
	c := openCache(t, o, func(cfg *Config) {
		cfg.Dir = dir
		cfg.Bytes = -1
		cfg.Free = func() (int64, error) { return 1 << 40, nil }
	})
	kid := newChild(t, c)
	small := o.put(repo, random(22, 300<<10))
	kid.get(blobPath(small))
	want := random(23, 3<<20)
	d := o.put(repo, want)
	// The first child may be cut when the disk fills under its hands; it asks again.
	_, b, err := kid.do(http.MethodGet, blobPath(d))
	if err != nil {
		_, b = kid.get(blobPath(d))
	}
	if !bytes.Equal(b, want) {
		t.Fatalf("%d bytes", len(b))
	}
	if w := c.Warnings(); len(w) != 1 || w[0].Name != WarnNoRoom {
		t.Fatalf("warnings: %v", w)
	}
	if n, err := freeBytes(dir); err != nil || n < 600<<10 {
		t.Fatalf("the failed blob still takes the room: %d free, %v", n, err)
	}
	if res, _ := kid.get(blobPath(small)); res.StatusCode != 200 {
		t.Fatal(res.Status)
	}
}

// TestKilledRelayResumes kills a real process with SIGKILL in the middle of a blob
// and starts another on the same folder.
func TestKilledRelayResumes(t *testing.T) {
	o := newOrigin(t)
	want := random(24, 4<<20)
	d := o.put(repo, want)
	g := o.stopAt(d, 2<<20)
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "TRIBUTARY_TEST_CACHE="+dir, "TRIBUTARY_TEST_UPSTREAM="+o.srv.URL, "TRIBUTARY_TEST_DIGEST="+d)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	wait.For(t, "the gate", g.gotto)
	part := &shelf{dir: dir}
	wait.Until(t, "the first half lies on disk", func() bool { return part.partialSize(d) == 2<<20 })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed: an error by design
	g.release()
	before := int64(2 << 20) // what the killed process has; the rest of its answer went nowhere
	o.set(func() { delete(o.gate, d) })
	fetched := func(c *Cache) int64 { return int64(c.Counters().FetchedBytes) }
	c := openCache(t, o, func(cfg *Config) { cfg.Dir = dir })
	if _, b := newChild(t, c).get(blobPath(d)); !bytes.Equal(b, want) {
		t.Fatal("content differs")
	}
	if total := before + fetched(c); total != int64(len(want)) {
		t.Fatalf("%d bytes were received in both lives for a blob of %d", total, len(want))
	}
	list := o.requests()
	if last := list[len(list)-1]; !strings.HasSuffix(last, "bytes=2097152-") {
		t.Fatalf("asked %q", last)
	}
}

// TestMain runs this program as the relay of TestKilledRelayResumes when that started
// it.
func TestMain(m *testing.M) {
	dir := os.Getenv("TRIBUTARY_TEST_CACHE")
	if dir == "" {
		os.Exit(m.Run())
	}
	u, err := url.Parse(os.Getenv("TRIBUTARY_TEST_UPSTREAM"))
	if err == nil {
		var c *Cache
		if c, err = Open(Config{Dir: dir, Upstream: fixedUpstream{u, http.DefaultClient}}); err == nil {
			err = c.have(context.Background(), target{RouteBlob, repo, os.Getenv("TRIBUTARY_TEST_DIGEST"), -1})
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func TestPushBundleToAnOrdinaryRegistry(t *testing.T) {
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer srv.Close()
	base, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	to := Target{Base: base, Client: srv.Client()}
	bundle := []byte(`{"version":1,"app":"demo","services":[]}`)
	for range 2 { // it may be repeated
		d, size, err := PushBundle(t.Context(), to, "default/demo", "v1", bundle)
		if err != nil || size != int64(len(bundle)) {
			t.Fatal(d, size, err)
		}
		got, err := PullArtifact(t.Context(), fixedUpstream{base, srv.Client()}, "default/demo", d, 1<<20)
		if err != nil || !bytes.Equal(got, bundle) {
			t.Fatalf("%s %v", got, err)
		}
	}
	res, err := http.Get(srv.URL + "/v2/default/demo/manifests/v1")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	want, _ := BundleManifest(bundle)
	if err != nil || !bytes.Equal(raw, want) {
		t.Fatalf("tagged: %s %v", raw, err)
	}
	if _, _, err := PushBundle(t.Context(), to, "Bad", "v1", bundle); api.CodeOf(err) != api.Invalid {
		t.Fatal(err)
	}
	srv.Close()
	if _, _, err := PushBundle(t.Context(), to, "default/demo", "v1", bundle); api.CodeOf(err) != api.Unavailable {
		t.Fatal(err)
	}
}
