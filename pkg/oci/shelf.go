package oci

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// shelf is the cache's folder:
//
//	blobs/<hex>     complete: hashed, synced, renamed here
//	partial/<hex>   arriving, or left by a crash; nothing of it is believed before it is hashed again
//	repos/<hex>     the repositories that name the digest, one a line
//	pins.json       owner -> refs that must not be evicted
//
// Its index lives in memory and is read back from the folder at start.
type shelf struct {
	dir  string
	now  func() time.Time
	free func() (int64, error) // bytes that may still be written to the file system

	mu       sync.Mutex
	entries  map[string]*entry   // complete blobs, by digest
	repos    map[string][]string // digest -> repositories, sorted
	pins     map[string][]Ref    // owner -> roots
	unsaved  bool                // the pins differ from those on disk
	reserved map[string]int64    // digest -> bytes that an arriving blob will take
	budget   int64               // 0: bounded by the file system alone
	keepFree int64
}

// entry is one complete blob.
type entry struct {
	digest string
	size   int64
	used   time.Time
}

// keepPartial is how long an unfinished blob waits for somebody to want it again.
const keepPartial = 14 * 24 * time.Hour

var errNoSpace = errors.New("the artifact cache has no room")

func openShelf(dir string, now func() time.Time, free func() (int64, error)) (*shelf, error) {
	s := &shelf{dir: dir, now: now, free: free, entries: map[string]*entry{}, repos: map[string][]string{}, pins: map[string][]Ref{}, reserved: map[string]int64{}}
	if free == nil {
		s.free = func() (int64, error) { return freeBytes(dir) }
	}
	for _, sub := range []string{"blobs", "partial", "repos"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, err
		}
	}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("artifact cache %s: %w", dir, err)
	}
	return s, nil
}

// load rebuilds the index. What it cannot read is dropped: all of it can be fetched
// again.
func (s *shelf) load() error {
	old := s.now().Add(-keepPartial)
	err := s.each("partial", func(digest string, info fs.FileInfo) {
		if info.ModTime().Before(old) {
			_ = os.Remove(s.path("partial", digest))
		}
	})
	if err != nil {
		return err
	}
	err = s.each("blobs", func(digest string, info fs.FileInfo) {
		s.entries[digest] = &entry{digest: digest, size: info.Size(), used: info.ModTime()}
	})
	if err != nil {
		return err
	}
	err = s.each("repos", func(digest string, info fs.FileInfo) {
		if info.Size() > 1<<20 {
			return
		}
		b, err := os.ReadFile(s.path("repos", digest))
		if err != nil {
			return
		}
		for line := range strings.Lines(string(b)) {
			// A line without its end was torn, and may be the start of a longer name.
			if repo, whole := strings.CutSuffix(line, "\n"); whole && CheckRepo(repo) == nil {
				s.repos[digest] = append(s.repos[digest], repo)
			}
		}
		sort.Strings(s.repos[digest])
	})
	if err != nil {
		return err
	}
	if b, err := os.ReadFile(filepath.Join(s.dir, "pins.json")); err == nil {
		if json.Unmarshal(b, &s.pins) != nil || s.pins == nil {
			s.pins = map[string][]Ref{}
		}
	}
	return nil
}

// each visits the files of one sub-folder that are named by a digest, and removes
// temporary files that a crash left.
func (s *shelf) each(sub string, visit func(digest string, info fs.FileInfo)) error {
	list, err := os.ReadDir(filepath.Join(s.dir, sub))
	if err != nil {
		return err
	}
	for _, f := range list {
		digest := "sha256:" + f.Name()
		info, err := f.Info()
		if CheckDigest(digest) != nil || err != nil || !info.Mode().IsRegular() {
			_ = os.Remove(filepath.Join(s.dir, sub, f.Name()))
			continue
		}
		visit(digest, info)
	}
	return nil
}

func (s *shelf) path(sub, digest string) string {
	return filepath.Join(s.dir, sub, strings.TrimPrefix(digest, "sha256:"))
}

// open returns a complete blob and marks it used.
func (s *shelf) open(digest string) (*os.File, int64, error) {
	s.mu.Lock()
	e := s.entries[digest]
	var stale bool
	if e != nil {
		now := s.now()
		stale = now.Sub(e.used) > time.Minute // spares a metadata write for each request
		e.used = now
	}
	s.mu.Unlock()
	if e == nil {
		return nil, 0, fs.ErrNotExist
	}
	f, err := os.Open(s.path("blobs", digest))
	if err != nil {
		s.forget(digest)
		return nil, 0, err
	}
	if stale {
		_ = os.Chtimes(f.Name(), time.Time{}, e.used)
	}
	return f, e.size, nil
}

func (s *shelf) has(digest string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.entries[digest] != nil
}

func (s *shelf) forget(digest string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.entries, digest)
}

// read returns a complete manifest.
func (s *shelf) read(digest string) ([]byte, error) {
	f, size, err := s.open(digest)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > MaxManifest {
		return nil, api.Errorf(api.TooLarge, "%s is too large for a manifest", digest)
	}
	return io.ReadAll(io.LimitReader(f, MaxManifest))
}

// partial opens what arrived of a blob and hashes it again, so that a torn write is
// found before anything is built upon it. The reader may cancel it through stop.
func (s *shelf) partial(digest string, stop func() error) (f *os.File, h hash.Hash, have int64, err error) {
	f, err = os.OpenFile(s.path("partial", digest), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, 0, err
	}
	h = sha256.New()
	have, err = io.CopyBuffer(h, stopper{f, stop}, make([]byte, 256<<10))
	if err != nil {
		f.Close()
		return nil, nil, 0, err
	}
	s.mu.Lock()
	s.reserved[digest] = have
	s.mu.Unlock()
	return f, h, have, nil
}

type stopper struct {
	io.Reader
	stop func() error
}

func (r stopper) Read(p []byte) (int, error) {
	if err := r.stop(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}

// partialSize is what arrived of a blob and lies on disk; 0 when nothing does.
func (s *shelf) partialSize(digest string) int64 {
	info, err := os.Stat(s.path("partial", digest))
	if err != nil {
		return 0
	}
	return info.Size()
}

// commit makes a verified partial complete: sync, rename, sync both folders.
func (s *shelf) commit(digest string, f *os.File, size int64) error {
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(s.path("partial", digest), s.path("blobs", digest)); err != nil {
		return err
	}
	if err := atomicfile.SyncDir(filepath.Join(s.dir, "blobs")); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries[digest] = &entry{digest: digest, size: size, used: s.now()}
	delete(s.reserved, digest)
	return nil
}

func (s *shelf) discard(digest string) {
	_ = os.Remove(s.path("partial", digest))
	s.release(digest)
}

func (s *shelf) release(digest string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.reserved, digest)
}

// linked reports whether the digest is known to belong to the repository.
func (s *shelf) linked(repo, digest string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.repos[digest]
	i := sort.SearchStrings(list, repo)
	return i < len(list) && list[i] == repo
}

// maxRepos bounds how many repositories are remembered for one digest.
const maxRepos = 1024

// link notes that the digest belongs to the repository. A lost note costs one
// question to the parent.
func (s *shelf) link(repo, digest string) error {
	if s.linked(repo, digest) {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.repos[digest]) >= maxRepos {
		return nil
	}
	list := append(append([]string(nil), s.repos[digest]...), repo)
	sort.Strings(list)
	s.repos[digest] = list
	f, err := os.OpenFile(s.path("repos", digest), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(repo + "\n")
	return errors.Join(err, f.Close())
}

// pin replaces the roots that an owner needs; none removes the owner. It reports
// whether that changed anything.
func (s *shelf) pin(owner string, refs []Ref) (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Equal(s.pins[owner], refs) {
		return false
	}
	if len(refs) == 0 {
		delete(s.pins, owner)
	} else {
		s.pins[owner] = append([]Ref(nil), refs...)
	}
	s.unsaved = true
	return true
}

// savePins writes the pins when they changed since.
func (s *shelf) savePins() error {
	s.mu.Lock()
	if !s.unsaved {
		s.mu.Unlock()
		return nil
	}
	s.unsaved = false
	b, err := json.Marshal(s.pins)
	s.mu.Unlock()
	if err == nil {
		err = atomicfile.Write(filepath.Join(s.dir, "pins.json"), b, 0o600)
	}
	if err != nil {
		s.mu.Lock()
		s.unsaved = true
		s.mu.Unlock()
	}
	return err
}

// roots lists all pinned refs, each once.
func (s *shelf) roots() []Ref {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := map[Ref]bool{}
	var out []Ref
	for _, refs := range s.pins {
		for _, r := range refs {
			r.Size = 0
			if !seen[r] {
				seen[r] = true
				out = append(out, r)
			}
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Repo+out[i].Digest < out[j].Repo+out[j].Digest })
	return out
}

// pinned is every digest that a pinned root names, directly or through manifests
// that are here.
func (s *shelf) pinned() map[string]bool {
	out := map[string]bool{}
	var walk func(digest string, depth int)
	walk = func(digest string, depth int) {
		if out[digest] || depth > maxDepth {
			return
		}
		out[digest] = true
		info, err := os.Stat(s.path("blobs", digest))
		if err != nil || info.Size() > MaxManifest {
			return
		}
		raw, err := os.ReadFile(s.path("blobs", digest))
		if err != nil {
			return
		}
		c, err := ParseContent(raw)
		if err != nil {
			return
		}
		for _, d := range c.Children() {
			if c.Index() {
				walk(d.Digest, depth+1)
			} else {
				out[d.Digest] = true
			}
		}
	}
	for _, r := range s.roots() {
		walk(r.Digest, 0)
	}
	return out
}

// reserve makes room for the rest of an arriving blob of size bytes, of which have
// lie on disk already. It evicts the oldest blobs that nobody pinned, and fails with
// errNoSpace when that is not enough.
func (s *shelf) reserve(digest string, size, have int64) error {
	pinned := s.pinned()
	for _, last := range []bool{false, true} {
		free, err := s.free()
		if err != nil {
			return err
		}
		if s.tryReserve(digest, size, have, free, pinned) {
			return nil
		}
		if !last && !s.dropIdlePartials(digest) {
			break
		}
	}
	return errNoSpace
}

func (s *shelf) tryReserve(digest string, size, have, free int64, pinned map[string]bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.reserved, digest)
	room := room{budget: s.budget, free: free - s.keepFree}
	var list []entry
	for _, e := range s.entries {
		room.used += e.size
		list = append(list, *e)
	}
	for d, n := range s.reserved {
		room.used += n
		room.free -= max(0, n-s.partialSize(d)) // promised to others, not yet written
	}
	victims, ok := evict(list, pinned, room, size, size-have)
	if !ok {
		return false
	}
	for _, d := range victims {
		s.drop(d)
	}
	s.reserved[digest] = size
	return true
}

// dropIdlePartials removes what crashes left of blobs that nobody fetches now, and
// reports whether it removed any.
func (s *shelf) dropIdlePartials(keep string) (any bool) {
	_ = s.each("partial", func(digest string, _ fs.FileInfo) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if _, arriving := s.reserved[digest]; !arriving && digest != keep {
			any = os.Remove(s.path("partial", digest)) == nil || any
		}
	})
	return any
}

// drop removes a complete blob; the lock is held.
func (s *shelf) drop(digest string) {
	_ = os.Remove(s.path("blobs", digest))
	_ = os.Remove(s.path("repos", digest))
	delete(s.entries, digest)
	delete(s.repos, digest)
}

func (s *shelf) evictOne(digest string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(digest)
}

// digests lists the complete blobs.
func (s *shelf) digests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]string, 0, len(s.entries))
	for d := range s.entries {
		out = append(out, d)
	}
	sort.Strings(out)
	return out
}

// shrink evicts down to the budget.
func (s *shelf) shrink() {
	pinned := s.pinned()
	s.mu.Lock()
	defer s.mu.Unlock()
	var used int64
	var list []entry
	for _, e := range s.entries {
		used += e.size
		list = append(list, *e)
	}
	victims, _ := evict(list, pinned, room{budget: s.budget, used: used, free: 1<<62 - 1}, 0, 0)
	for _, d := range victims {
		s.drop(d)
	}
}

// size sums the complete blobs.
func (s *shelf) size() (blobs int, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.entries {
		bytes += e.size
	}
	return len(s.entries), bytes
}

// room is what a cache may take: budget 0 is no budget; free is what the file system
// still gives.
type room struct{ budget, used, free int64 }

// evict decides which blobs go, oldest use first and never a pinned one, so that a
// blob of size bytes, of which grow are not yet on disk, fits. When it cannot fit
// ok is false; what is evictable and over the budget goes all the same.
func evict(entries []entry, pinned map[string]bool, r room, size, grow int64) (victims []string, ok bool) {
	fits := func() bool { return (r.budget <= 0 || r.used+size <= r.budget) && r.free >= grow }
	sort.Slice(entries, func(i, j int) bool {
		if !entries[i].used.Equal(entries[j].used) {
			return entries[i].used.Before(entries[j].used)
		}
		return entries[i].digest < entries[j].digest
	})
	for _, e := range entries {
		if fits() {
			return victims, true
		}
		if pinned[e.digest] {
			continue
		}
		victims = append(victims, e.digest)
		r.used -= e.size
		r.free += e.size
	}
	if fits() {
		return victims, true
	}
	if size > 0 {
		return nil, false // nothing is gained by emptying the cache in vain
	}
	return victims, false
}

// defaultBytes is 80 % of the file system that holds dir, and at most most where that is not 0.
func defaultBytes(dir string, most int64) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, err
	}
	bytes := int64(st.Blocks) * st.Bsize / 5 * 4
	if most > 0 {
		bytes = min(bytes, most)
	}
	return bytes, nil
}

// freeBytes is what an unprivileged writer may still write below dir.
func freeBytes(dir string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}
