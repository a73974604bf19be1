package boot

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
	"tributary.dev/tributary/pkg/disk/fat"
)

// partition lays down what a partition may begin with.
func partition(first, second string) []byte {
	b := make([]byte, 1<<20)
	for i, kind := range []string{first, second} {
		at := luksHeaders[i]
		switch kind {
		case "blank":
		case "rubbish":
			copy(b[at:], "some other content")
		case "ext":
			b[1080], b[1081] = 0x53, 0xef
		default:
			copy(b[at:], [][]byte{[]byte("LUKS\xba\xbe"), []byte("SKUL\xba\xbe")}[i])
			copy(b[at+24:], kind)
		}
	}
	return b
}

// A finished volume is never made anew, whatever its other header looks like; an unfinished
// one always is; what is not ours never is.
func TestDecide(t *testing.T) {
	const label = "tributary-state"
	kinds := []string{"blank", "rubbish", "ext", label, label + "-new", "foreign"}
	rapid.Check(t, func(t *rapid.T) {
		first, second := rapid.SampledFrom(kinds).Draw(t, "first"), rapid.SampledFrom(kinds).Draw(t, "second")
		if second == "ext" {
			second = "blank"
		}
		v, err := probe(bytes.NewReader(partition(first, second)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := v.decide(label)
		if (err != nil) != (got == refuseVolume) {
			t.Fatalf("%v and %v", got, err)
		}
		switch {
		case first == label || second == label:
			if got != openVolume {
				t.Fatalf("a finished volume: %v", got)
			}
		case first == "ext" || first == "foreign" || first == "rubbish" || second == "foreign":
			if got != refuseVolume {
				t.Fatalf("%s/%s: %v", first, second, got)
			}
		default:
			if got != makeVolume {
				t.Fatalf("%s/%s: %v", first, second, got)
			}
		}
	})
}

func FuzzExtSize(f *testing.F) {
	f.Add(make([]byte, 2048))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, _, err := extSize(bytes.NewReader(b)); err == nil && n <= 0 {
			t.Fatal(n)
		}
	})
}

// CONFIG is read without the kernel's driver, whatever the case of the name that a person wrote.
func TestReadVolume(t *testing.T) {
	node := filepath.Join(t.TempDir(), "config")
	f, err := os.Create(node)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 40 << 20
	long := strings.Repeat("x", MaxSettings+10)
	err = errors.Join(f.Truncate(size), fat.Write(f, size, fat.Options{Label: "CONFIG"}, []fat.File{
		{Path: "Tributary.yaml", Content: strings.NewReader("name: box\n")},
		{Path: "idevid.pem", Content: strings.NewReader(long)},
		{Path: "folder/other.yaml", Content: strings.NewReader("x")},
	}))
	if err != nil {
		t.Fatal(err)
	}
	files, err := readVolume(node, "tributary.yaml", "idevid.pem", "other.yaml", "none")
	if err != nil || string(files["tributary.yaml"]) != "name: box\n" || len(files["idevid.pem"]) != MaxSettings+1 || len(files) != 2 {
		t.Errorf("%d files, %q, %v", len(files), files["tributary.yaml"], err)
	}
	if _, err := f.WriteAt([]byte("garbage"), 82); err != nil {
		t.Fatal(err)
	}
	if _, err := readVolume(node, "tributary.yaml"); err == nil {
		t.Error("what is no FAT32 volume was read")
	}
}
