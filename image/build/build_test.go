package build

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/image/keys"
)

func TestRefuses(t *testing.T) {
	for _, version := range []string{"", "1 2", "1;reboot", "a\nb", `1"x`, "1~rc1", "-1", strings.Repeat("1", 65)} {
		if _, err := prepare(Config{Version: version, Counter: 1, Out: t.TempDir()}); err == nil {
			t.Errorf("version %q is taken", version)
		}
	}
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage, []byte("no bundle"), 0o644); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]Config{
		"a counter of 0":                {},
		"a counter that no TPM holds":   {Counter: 65},
		"a folder that is not there":    {Counter: 1, Preload: garbage + "-no"},
		"a file to preload":             {Counter: 1, Preload: garbage},
		"a former release that is none": {Counter: 1, Previous: []string{garbage}},
		"a former release that is away": {Counter: 1, Previous: []string{garbage + "-no"}},
	} {
		c.Version, c.Out = "1", t.TempDir()
		if _, err := prepare(c); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
	out := t.TempDir()
	first, err := prepare(Config{Version: "1", Counter: 1, Out: out})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := prepare(Config{Version: "1", Counter: 1, Out: out}); err == nil || !strings.Contains(err.Error(), "another build works in "+out) {
		t.Errorf("beside another build: %v", err)
	}
	first.close()
	again, err := prepare(Config{Version: "1", Counter: 1, Out: out})
	if err != nil {
		t.Fatalf("after it: %v", err)
	}
	again.close()
	if _, err := Verify(out); err == nil || !strings.Contains(err.Error(), "build again") {
		t.Errorf("a build that did not end: %v", err)
	}
}

func TestWords(t *testing.T) {
	p, err := hwprofiles.Load("vm")
	if err != nil {
		t.Fatal(err)
	}
	b := &builder{Config: Config{Profile: p, Version: "1.2", Counter: 7, Cmdline: []string{"debug"}}}
	b.done.RootHash = strings.Repeat("ab", 32)
	line := strings.Join(b.words(), " ")
	for _, want := range []string{"roothash=abab", "tributary.version=1.2", "tributary.counter=7", "tributary.profile=vm", "console=ttyS0", "panic=10"} {
		if !strings.Contains(line, want) {
			t.Errorf("%q lacks %s", line, want)
		}
	}
	if !strings.HasSuffix(line, " debug") {
		t.Error("the builder's own words come last")
	}
}

func TestTitle(t *testing.T) {
	if got := title("generic-amd64"); got != "TRIBUTARY_GENERIC_AMD64" {
		t.Error(got)
	}
	if got := title(strings.Repeat("x", 40)); len(got) != 32 {
		t.Error(got)
	}
}

const checkout = "../.."

// small builds the smallest image; the packages come from the cache or the machine's own mirror.
func small(t *testing.T, ctx context.Context, dir, keyDir string) *Manifest {
	t.Helper()
	p, err := hwprofiles.Load("vm")
	if err != nil {
		t.Fatal(err)
	}
	m, err := Build(ctx, Config{
		Root: checkout, Profile: p, Version: "1.0", Counter: 1, Time: time.Unix(1790000000, 0), Out: dir, Keys: keyDir, Quick: true,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// The same inputs give the same bits, twice; what was built verifies; one changed byte anywhere does not.
func TestTwice(t *testing.T) {
	if os.Getenv("TRIBUTARY_VMTEST") == "" {
		t.Skip("builds two images: run make vmtest")
	}
	keyDir := t.TempDir()
	first, second := t.TempDir(), t.TempDir()
	a := small(t, t.Context(), first, keyDir)
	b := small(t, t.Context(), second, keyDir)
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	if !bytes.Equal(x, y) {
		t.Errorf("two builds differ:\n%s\n%s", x, y)
	}
	set, err := keys.LoadOrCreate(keyDir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(first, set.Certificates()...); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(first); err == nil {
		t.Error("verifies without a trusted key")
	}
	other, err := keys.LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(first, other.Certificates()...); err == nil {
		t.Error("verifies with another's key")
	}
	// In the disk alone: the boot manager, the root, the table.
	for name, at := range map[string]int64{"table": 600, "first ESP": 1<<20 + 40, "root": (1+2*a.partitions(t).ESP)<<20 + 4096*100} {
		flip(t, filepath.Join(first, RawFile), at)
		if _, err := Verify(first, set.Certificates()...); err == nil {
			t.Errorf("%s changed: verifies", name)
		}
		flip(t, filepath.Join(first, RawFile), at)
	}
	if _, err := Verify(first, set.Certificates()...); err != nil {
		t.Error(err)
	}
	if err := os.Remove(filepath.Join(first, RawFile)); err != nil {
		t.Fatal(err)
	}
	flip(t, filepath.Join(first, UKIFile), 4096)
	if _, err := Verify(first, set.Certificates()...); err == nil || errors.Is(err, os.ErrNotExist) {
		t.Errorf("UKI changed: %v", err)
	}
}

func (m *Manifest) partitions(t *testing.T) hwprofiles.Partitions {
	p, err := hwprofiles.Load(m.Profile)
	if err != nil {
		t.Fatal(err)
	}
	return p.Partitions
}

func flip(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}
