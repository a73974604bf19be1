package extension

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/fstest"

	"tributary.dev/tributary/tests/mutation"
)

func seal(t *testing.T, fill byte) ([]byte, Entry) {
	t.Helper()
	data := bytes.Repeat([]byte{fill, 1, 2, 3}, 5*1024)
	image, hash, err := Seal(data)
	if err != nil {
		t.Fatal(err)
	}
	again, _, err := Seal(data)
	if err != nil || !bytes.Equal(image, again) {
		t.Errorf("not the same bytes twice: %v", err)
	}
	return image, Entry{Name: "gpu", Size: int64(len(data)), RootHash: hex.EncodeToString(hash[:])}
}

// The extension of this release is taken; an altered one, a cut one and that of another release are not.
func TestCheck(t *testing.T) {
	image, e := seal(t, 7)
	other, o := seal(t, 8)
	check := func(b []byte, e Entry) error { return Check(bytes.NewReader(b), int64(len(b)), e) }
	if err := check(image, e); err != nil {
		t.Fatal(err)
	}
	if s, err := Tree(bytes.NewReader(image), e); err != nil || s.DataBlocks != 5 {
		t.Errorf("%+v %v", s, err)
	}
	for at := 0; at < len(image); at += 509 {
		if at >= int(e.Size) && at < int(e.Size)+4096 {
			continue // the superblock only says how to read the tree; what it says wrong leads to another hash
		}
		altered := bytes.Clone(image)
		altered[at] ^= 1
		if err := check(altered, e); !errors.Is(err, ErrRefused) {
			t.Errorf("byte %d altered: accepted: %v", at, err)
		}
	}
	splice := append(bytes.Clone(other[:e.Size]), image[e.Size:]...)
	for what, err := range map[string]error{
		"of another release": check(other, e), "its own under another's hash": check(image, o), "one's data with the other's tree": check(splice, e),
		"without its tree": check(image[:e.Size], e), "cut": check(image[:len(image)-4096], e), "empty": check(nil, e),
	} {
		if !errors.Is(err, ErrRefused) {
			t.Errorf("%s: accepted: %v", what, err)
		}
	}
}

// In a build without the check TestCheck fails.
func TestCheckCounts(t *testing.T) {
	mutation.Prove(t, mutation.Marked(t, "^TestCheck$", "extension.go")...)
}

func TestRead(t *testing.T) {
	_, e := seal(t, 7)
	text, err := json.Marshal(Index{[]Entry{e}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := Read(fstest.MapFS{IndexFile[1:]: {Data: text}})
	if err != nil || len(got) != 1 || got[0] != e {
		t.Errorf("%+v %v", got, err)
	}
	if got, err := Read(fstest.MapFS{}); got != nil || err != nil {
		t.Errorf("%+v %v", got, err)
	}
	if e.File() != "/usr/lib/tributary/extensions/gpu.img" || !strings.HasPrefix(e.DataFile(), "/data/extensions/gpu-"+e.RootHash[:16]) {
		t.Error(e.File(), e.DataFile())
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"extensions":[{"name":"gpu-amd","size":4096,"roothash":"` + strings.Repeat("ab", 32) + `"}]}`))
	f.Add([]byte(`{"extensions":[{"name":"../x","size":-1}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := Parse(b)
		if err != nil {
			return
		}
		for _, e := range list {
			if strings.Contains(e.File(), "..") || e.Size <= 0 || len(e.DataFile()) < len(DataDir)+16 {
				t.Fatalf("%+v", e)
			}
		}
	})
}
