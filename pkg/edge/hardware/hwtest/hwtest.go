// Package hwtest answers: what did a machine say when its hardware was looked at, and what
// does a look at that say again?
//
// A recording holds every file, folder and link that hardware.Look read of a machine, and
// what it was told when it asked; nothing else of that machine.
package hwtest

import (
	"encoding/json"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"testing/fstest"

	"tributary.dev/tributary/pkg/edge/hardware"
)

// Recording is a machine as it was looked at. A file that could not be read is not in it.
type Recording struct {
	// From says what was recorded, and how it was made.
	From  string              `json:"from"`
	Arch  string              `json:"arch"`
	Files map[string]string   `json:"files"`
	Dirs  map[string][]string `json:"dirs"`
	Links map[string]string   `json:"links"`
	// What it was told when it asked.
	Interfaces []hardware.Link          `json:"interfaces,omitempty"`
	Cards      map[string]hardware.Card `json:"cards,omitempty"`
	Eswitch    map[string]string        `json:"eswitch,omitempty"`
	NVMe       map[string][]byte        `json:"nvme,omitempty"`
	ATA        map[string]hardware.ATA  `json:"ata,omitempty"`
}

// Read reads a recording.
func Read(b []byte) (*Recording, error) {
	r := &Recording{}
	return r, json.Unmarshal(b, r)
}

// Record looks at a machine, and notes all that the look saw.
func Record(s hardware.Source) *Recording {
	r := &Recording{Arch: s.Arch, Files: map[string]string{}, Dirs: map[string][]string{}, Links: map[string]string{}, Cards: map[string]hardware.Card{}, NVMe: map[string][]byte{}, ATA: map[string]hardware.ATA{}}
	if r.Arch == "" {
		r.Arch = "amd64"
	}
	var mu sync.Mutex
	noted := s
	noted.Root = &noting{s.Root, r, &mu}
	if s.Links != nil {
		r.Interfaces = s.Links()
		noted.Links = func() []hardware.Link { return r.Interfaces }
	}
	noted.Asked = hardware.Asked{
		Card: func(name string) (c hardware.Card) {
			if s.Asked.Card != nil {
				c = s.Asked.Card(name)
				r.Cards[name] = c
			}
			return c
		},
		Eswitch: func() map[string]string {
			if s.Asked.Eswitch != nil {
				r.Eswitch = s.Asked.Eswitch()
			}
			return r.Eswitch
		},
		NVMe: answers(s.Asked.NVMe, r.NVMe),
		ATA:  answers(s.Asked.ATA, r.ATA),
	}
	hardware.Look(noted)
	return r
}

// answers asks, and notes what is answered.
func answers[T any](ask func(string) (T, bool), into map[string]T) func(string) (T, bool) {
	return func(name string) (answer T, ok bool) {
		if ask == nil {
			return answer, false
		}
		if answer, ok = ask(name); ok {
			into[name] = answer
		}
		return answer, ok
	}
}

// recorded answers what was noted.
func recorded[T any](from map[string]T) func(string) (T, bool) {
	return func(name string) (T, bool) {
		answer, ok := from[name]
		return answer, ok
	}
}

// Source is the recorded machine.
func (r *Recording) Source() hardware.Source {
	return hardware.Source{Root: r, Arch: r.Arch, Links: func() []hardware.Link { return r.Interfaces }, Asked: hardware.Asked{
		Card:    func(name string) hardware.Card { return r.Cards[name] },
		Eswitch: func() map[string]string { return maps.Clone(r.Eswitch) },
		NVMe:    recorded(r.NVMe),
		ATA:     recorded(r.ATA),
	}}
}

// noting is a file system that notes what is read of it.
type noting struct {
	fs.FS
	r  *Recording
	mu *sync.Mutex
}

// ReadFile implements fs.ReadFileFS.
func (n *noting) ReadFile(name string) ([]byte, error) {
	b, err := fs.ReadFile(n.FS, name)
	if err == nil {
		n.mu.Lock()
		n.r.Files[name] = string(b)
		n.mu.Unlock()
	}
	return b, err
}

// ReadDir implements fs.ReadDirFS.
func (n *noting) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := fs.ReadDir(n.FS, name)
	if err == nil {
		names := []string{}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		n.mu.Lock()
		n.r.Dirs[name] = names
		n.mu.Unlock()
	}
	return entries, err
}

// ReadLink implements fs.ReadLinkFS.
func (n *noting) ReadLink(name string) (string, error) {
	to, err := fs.ReadLink(n.FS, name)
	if err == nil {
		n.mu.Lock()
		n.r.Links[name] = to
		n.mu.Unlock()
	}
	return to, err
}

// Lstat implements fs.ReadLinkFS.
func (n *noting) Lstat(name string) (fs.FileInfo, error) { return fs.Lstat(n.FS, name) }

func missing(op, name string) error { return &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist} }

// Open implements fs.FS: of files alone.
func (r *Recording) Open(name string) (fs.File, error) {
	text, ok := r.Files[name]
	if !ok {
		return nil, missing("open", name)
	}
	return fstest.MapFS{path.Base(name): {Data: []byte(text)}}.Open(path.Base(name))
}

// ReadFile implements fs.ReadFileFS.
func (r *Recording) ReadFile(name string) ([]byte, error) {
	text, ok := r.Files[name]
	if !ok {
		return nil, missing("open", name)
	}
	return []byte(text), nil
}

// ReadDir implements fs.ReadDirFS. The entries tell their names alone.
func (r *Recording) ReadDir(name string) ([]fs.DirEntry, error) {
	names, ok := r.Dirs[name]
	if !ok {
		return nil, missing("open", name)
	}
	names = slices.Clone(names)
	slices.Sort(names)
	flat := fstest.MapFS{}
	for _, n := range names {
		if n != "" && !strings.Contains(n, "/") && fs.ValidPath(n) {
			flat[n] = &fstest.MapFile{}
		}
	}
	return flat.ReadDir(".")
}

// ReadLink implements fs.ReadLinkFS.
func (r *Recording) ReadLink(name string) (string, error) {
	to, ok := r.Links[name]
	if !ok {
		return "", missing("readlink", name)
	}
	return to, nil
}

// Lstat implements fs.ReadLinkFS.
func (r *Recording) Lstat(name string) (fs.FileInfo, error) { return nil, missing("lstat", name) }
