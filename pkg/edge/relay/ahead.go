package relay

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/identity/atomicfile"
	"tributary.dev/tributary/pkg/oci"
)

// maxAheadBoxes bounds the boxes that are kept: of each some 10 KB on the disk, and a tenth of a
// kilobyte in memory.
const maxAheadBoxes = 8192

// ahead is what a relay keeps for boxes that are expected: a folder with a file for each, which
// is read when the box asks.
type ahead struct {
	dir string
	log *slog.Logger

	mu     sync.Mutex
	makers [][]byte
	boxes  map[string]keptBox // by serial number
	refs   map[string][]oci.Ref
}

type keptBox struct {
	tag   string
	needs string // key of refs
}

// aheadFile is the content of a file.
type aheadFile struct {
	Serial string `json:"serial"`
	identity.AheadBox
}

const (
	makersFile = "makers.json"
	// pinPrefix begins the names under which the cache keeps what expected boxes need.
	pinPrefix = "expected/"
)

// openAhead takes up what an earlier life fetched. A file that cannot be read is fetched anew.
func openAhead(dir string, log *slog.Logger) *ahead {
	a := &ahead{dir: dir, log: log, boxes: map[string]keptBox{}, refs: map[string][]oci.Ref{}}
	files, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("what expected boxes are told is fetched anew", "folder", dir, "err", err)
	}
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		text, err := os.ReadFile(path)
		if f.Name() == makersFile {
			if err == nil {
				err = json.Unmarshal(text, &a.makers)
			}
		} else {
			var file aheadFile
			if err == nil {
				err = json.Unmarshal(text, &file)
			}
			if err == nil && a.path(file.Serial) != path {
				err = errors.New("it is of another box")
			}
			if err == nil {
				a.note(file.Serial, file.AheadBox)
			}
		}
		if err != nil {
			log.Warn("what an expected box is told is fetched anew", "err", err)
			_ = os.Remove(path) // else it is written over, or tried again at the next start
		}
	}
	return a
}

func (a *ahead) path(serial string) string {
	sum := sha256.Sum256([]byte(serial))
	return filepath.Join(a.dir, hex.EncodeToString(sum[:16])+".json")
}

// note keeps in memory what is to be found without reading. The caller holds mu, or is alone.
func (a *ahead) note(serial string, box identity.AheadBox) {
	var needs string
	if len(box.Refs) > 0 {
		h := sha256.New()
		var refs []oci.Ref
		for _, r := range box.Refs {
			fmt.Fprintf(h, "%s@%s\n", r.Repo, r.Digest)
			refs = append(refs, oci.Ref{Repo: r.Repo, Digest: r.Digest, Size: r.Size})
		}
		needs = pinPrefix + hex.EncodeToString(h.Sum(nil)[:8])
		a.refs[needs] = refs
	}
	a.boxes[serial] = keptBox{strings.Clone(box.Tag), needs}
}

// answer is what a box is told; nil for one that is not expected.
func (a *ahead) answer(serial string) []byte {
	a.mu.Lock()
	_, ok := a.boxes[serial]
	a.mu.Unlock()
	if !ok {
		return nil
	}
	var file aheadFile
	text, err := os.ReadFile(a.path(serial))
	if err == nil {
		err = json.Unmarshal(text, &file)
	}
	if err != nil || file.Serial != serial {
		a.log.Warn("what an expected box is told cannot be read", "err", err)
		return nil
	}
	return file.Answer
}

// expects tells whether a box is expected, and who may have certified its birth.
func (a *ahead) expects(serial string) (makers [][]byte, expected bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, expected = a.boxes[serial]
	return a.makers, expected
}

// needs are the artifacts of all boxes, each set of them once, by the name of its pin.
func (a *ahead) needs() map[string][]oci.Ref {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := map[string][]oci.Ref{}
	for _, box := range a.boxes {
		if box.needs != "" {
			out[box.needs] = a.refs[box.needs]
		}
	}
	for name := range a.refs {
		if out[name] == nil {
			delete(a.refs, name)
		}
	}
	return out
}

func (a *ahead) full() bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.boxes) >= maxAheadBoxes }

// tags are those of the first boxes after one.
func (a *ahead) tags(after string, most int) map[string]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := map[string]string{}
	for _, serial := range slices.Sorted(maps.Keys(a.boxes)) {
		if serial > after && a.boxes[serial].tag != "" && len(out) < most {
			out[serial] = a.boxes[serial].tag
		}
	}
	return out
}

// sync returns when what was taken is on the disk.
func (a *ahead) sync() error {
	dir, err := os.Open(a.dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(dir.Fd())), dir.Close())
}

// take keeps a page: what is new, and not what lay in its range and is not named any more.
func (a *ahead) take(after string, page identity.Ahead) error {
	if err := os.MkdirAll(a.dir, 0o700); err != nil {
		return err
	}
	for _, serial := range slices.Sorted(maps.Keys(page.Boxes)) {
		box := page.Boxes[serial]
		text, err := json.Marshal(aheadFile{serial, box})
		if err != nil {
			return err
		}
		// A file that a power cut tears is fetched anew; sync ends that for a whole fetch at once.
		if err := os.WriteFile(a.path(serial)+".new", text, 0o600); err != nil {
			return err
		}
		if err := os.Rename(a.path(serial)+".new", a.path(serial)); err != nil {
			return err
		}
		a.mu.Lock()
		a.note(serial, box)
		a.mu.Unlock()
	}
	makers, err := json.Marshal(page.Makers)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !slices.EqualFunc(a.makers, page.Makers, bytes.Equal) {
		if err := atomicfile.Write(filepath.Join(a.dir, makersFile), makers, 0o600); err != nil {
			return err
		}
		a.makers = page.Makers
	}
	same := map[string]bool{}
	for _, serial := range page.Same {
		same[serial] = true
	}
	for serial := range a.boxes {
		if _, new := page.Boxes[serial]; new || serial <= after || page.Next != "" && serial > page.Next || same[serial] {
			continue
		}
		if err := os.Remove(a.path(serial)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		delete(a.boxes, serial)
	}
	return nil
}
