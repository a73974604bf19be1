package install

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/image/disk"
	"tributary.dev/tributary/image/installer"
	"tributary.dev/tributary/pkg/disk/fat"
	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/pkg/disk/verity"
	"tributary.dev/tributary/pkg/efi"
)

// person presses the keys that it was given, and hears what is said.
type person struct {
	keys string
	said strings.Builder
}

func (p *person) Printf(format string, args ...any) { fmt.Fprintf(&p.said, format, args...) }
func (p *person) Key(time.Duration) (byte, bool) {
	if p.keys == "" {
		return 'q', true // nobody stands here for ever in a test
	}
	k := p.keys[0]
	p.keys = p.keys[1:]
	return k, true
}

// box is a folder that looks like a machine with a medium.
type box struct {
	Config
	person *person
	image  *disk.Image
	vars   efi.Memory
}

func newBox(t *testing.T, keys string) *box {
	t.Helper()
	dir := t.TempDir()
	file := func(name string, b []byte) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		if _, err := f.Write(b); err != nil {
			t.Fatal(err)
		}
		return f
	}
	root, tree := file("root", bytes.Repeat([]byte("root"), 1<<18)), file("tree", nil)
	hash, err := verity.Format(root, 1<<20, nil, [16]byte{}, tree)
	if err != nil {
		t.Fatal(err)
	}
	b := &box{person: &person{keys: keys}, vars: efi.Memory{}}
	b.image, err = disk.Write(filepath.Join(dir, "disk.raw"), disk.Layout{
		Profile: "test", Arch: "amd64", Sizes: hwprofiles.Partitions{ESP: 36, Root: 2, Verity: 1, Config: 36, State: 1, Data: 1},
		Root: root, Verity: tree, RootHash: hash, UKI: []byte("uki"), BootManager: []byte("boot"), Install: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	zst := filepath.Join(dir, "disk.raw.zst")
	if _, err := disk.Compress(zst, b.image); err != nil {
		t.Fatal(err)
	}
	packed, err := os.ReadFile(zst)
	if err != nil {
		t.Fatal(err)
	}
	b.Config = Config{
		MapSum: sha256.Sum256(b.image.Map.Encode()), Version: "1", Arch: "amd64", Dev: filepath.Join(dir, "dev"), Sys: filepath.Join(dir, "sys"),
		Payload: filepath.Join(dir, "payload"), Person: b.person, EFI: b.vars, Pet: func() {}, Stay: 100 * time.Millisecond,
	}
	b.disk(t, "sdb", 0, true)
	if err := installer.Write(filepath.Join(b.Dev, "sdb"), installer.Medium{Arch: "amd64", Title: "T", UKI: []byte("uki"), Image: bytes.NewReader(packed), Map: b.image.Map.Encode()}); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *box) disk(t *testing.T, name string, size int64, removable bool) string {
	t.Helper()
	path := filepath.Join(b.Dev, name)
	sys := filepath.Join(b.Sys, "block", name)
	word := "0"
	if removable {
		word = "1"
	}
	for _, dir := range []string{b.Dev, sys} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(f.Truncate(size), os.WriteFile(filepath.Join(sys, "removable"), []byte(word+"\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	return path
}

// installed says whether the disk holds the image.
func (b *box) installed(t *testing.T, path string) bool {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, _ := f.Stat()
	tab, _, err := gpt.Read(f, info.Size())
	if err != nil {
		return false
	}
	n, p := tab.Find("data")
	return n == 9 && tab.Size(p) > 1<<20
}

func TestOnlyEmptyDisk(t *testing.T) {
	b := newBox(t, "")
	path := b.disk(t, "vda", 300<<20, false)
	if err := Run(t.Context(), b.Config); err != nil {
		t.Fatalf("%v\n%s", err, b.person.said.String())
	}
	if !b.installed(t, path) {
		t.Error("not installed")
	}
	for _, want := range []string{"erasing", "writing", "verifying", "100 %", "Installed on vda"} {
		if !strings.Contains(b.person.said.String(), want) {
			t.Errorf("did not say %q:\n%s", want, b.person.said.String())
		}
	}
	order, err := efi.Order(b.vars)
	if err != nil || len(order) != 2 {
		t.Errorf("boot order %v: %v", order, err)
	}
	// The same medium, still there at the next start, leaves the system alone.
	if err := Run(t.Context(), b.Config); !errors.Is(err, ErrInstalled) {
		t.Errorf("again: %v", err)
	}
	b.person.keys = "w1y"
	if err := Run(t.Context(), b.Config); err != nil {
		t.Errorf("again, by a person's wish: %v", err)
	}
}

func TestUsedDisk(t *testing.T) {
	for _, c := range []struct {
		keys string
		want error
	}{{"", ErrDeclined}, {"1n", ErrDeclined}, {"x1y", nil}} {
		b := newBox(t, c.keys)
		path := b.disk(t, "vda", 300<<20, false)
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("someone's"), 1080); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if err := Run(t.Context(), b.Config); !errors.Is(err, c.want) {
			t.Errorf("keys %q: %v", c.keys, err)
		}
		if got := b.installed(t, path); got != (c.want == nil) {
			t.Errorf("keys %q: installed %v", c.keys, got)
		}
	}
}

func TestRefusals(t *testing.T) {
	b := newBox(t, "")
	if err := Run(t.Context(), b.Config); !errors.Is(err, ErrNoDisk) {
		t.Errorf("no disk: %v", err)
	}
	b.disk(t, "vda", 10<<20, false)
	if err := Run(t.Context(), b.Config); !errors.Is(err, ErrNoDisk) || !strings.Contains(err.Error(), "no disk to install onto: it takes one of 0.") || !strings.Contains(b.person.said.String(), "too small") {
		t.Errorf("small disk: %v\n%s", err, b.person.said.String())
	}
	path := b.disk(t, "vda", 300<<20, false)
	// Another map than the signed one is no medium, however good it looks.
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	other := b.Config
	other.MapSum[0] ^= 1
	if err := Run(ctx, other); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("unsigned medium: %v", err)
	}
	// A changed image is found while it is written, and what is there does not boot.
	medium := filepath.Join(b.Dev, "sdb")
	raw, err := os.ReadFile(medium)
	if err != nil {
		t.Fatal(err)
	}
	v, err := fat.Open(bytes.NewReader(raw[1<<20:]), int64(len(raw)-1<<20))
	if err != nil {
		t.Fatal(err)
	}
	packed, err := v.ReadFile(imageFile, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(raw, packed[:512])
	raw[at+len(packed)/2] ^= 1
	if err := os.WriteFile(medium, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), b.Config); err == nil || b.installed(t, path) {
		t.Errorf("changed image: %v", err)
	}
}

func TestDecide(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var disks []Disk
		for i := range rapid.IntRange(0, 4).Draw(t, "disks") {
			d := Disk{Name: fmt.Sprintf("sd%c", 'a'+i), Removable: rapid.Bool().Draw(t, "removable"), Empty: rapid.Bool().Draw(t, "empty")}
			d.Ours = !d.Empty && rapid.Bool().Draw(t, "ours")
			disks = append(disks, d)
		}
		wish := rapid.SampledFrom([]string{"", "sda", "sdz"}).Draw(t, "wish")
		plan, d := Decide(disks, wish)
		if plan == Take && wish == "" && (!d.Empty || d.Removable || d.Ours) {
			t.Fatalf("%+v is taken unasked", d)
		}
		if plan == Take && wish != "" && d.Name != wish {
			t.Fatalf("%s was wished, %s is taken", wish, d.Name)
		}
		if plan == Stay && !d.Ours {
			t.Fatalf("stays for %+v", d)
		}
	})
}
