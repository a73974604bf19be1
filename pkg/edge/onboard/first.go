package onboard

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"tributary.dev/tributary/pkg/identity/atomicfile"
	"tributary.dev/tributary/pkg/manifest"
)

// FirstFile keeps, in a data folder, what a box runs that has an owner and cannot enrol yet.
const FirstFile = "first.json"

// First is what the owner signed for a box that comes while nobody reaches the core.
type First struct {
	// RootFP is the SHA-256 of the owner's root.
	RootFP [32]byte `json:"root"`
	// Made is when, in Unix seconds: of two the newer counts.
	Made int64 `json:"made"`
	// From is the root of the relay's port that lets the box fetch what the items name.
	From string `json:"from"`
	// Birth is the file with key and certificate that the box shows there.
	Birth string                   `json:"birth"`
	Items map[string]manifest.Item `json:"items"`
}

// Save writes it into a data folder. What is newer there, of the same owner, stays.
func (f First) Save(data string) error {
	if old, err := LoadFirst(data); err == nil && old != nil && old.RootFP == f.RootFP && old.Made > f.Made {
		f.Made, f.Items = old.Made, old.Items
	}
	text, err := json.Marshal(f)
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(data, FirstFile), text, 0o600)
}

// LoadFirst reads it; nil without error when there is none.
func LoadFirst(data string) (*First, error) {
	text, err := os.ReadFile(filepath.Join(data, FirstFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var f First
	if err := json.Unmarshal(text, &f); err != nil {
		return nil, err
	}
	return &f, nil
}

// DropFirst forgets it: the box is a member.
func DropFirst(data string) error {
	err := os.Remove(filepath.Join(data, FirstFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
