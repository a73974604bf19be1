package onboard

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// OwnerFile keeps, in a data folder, the owner whom a box found by itself.
const OwnerFile = "owner.json"

// Owner is whose the box is and where it attaches, as it was told when it had no owner.
type Owner struct {
	// RootFP is the SHA-256 of the owner's root.
	RootFP  [32]byte        `json:"root"`
	Parents []api.ParentRef `json:"parents"`
	Name    string          `json:"name,omitempty"`
	Source  string          `json:"source,omitempty"` // in words
	// Release is what the box must run before it takes its apps; nil for any, and once it has
	// run it.
	Release *Release `json:"release,omitempty"`
}

// Release is a system by its repository and digest.
type Release struct {
	Repo   string `json:"repo"`
	Digest string `json:"digest"`
}

// Save writes an owner into a data folder.
func (o Owner) Save(data string) error {
	text, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(data, OwnerFile), append(text, '\n'), 0o600)
}

// LoadOwner reads it; nil without error when there is none.
func LoadOwner(data string) (*Owner, error) {
	path := filepath.Join(data, OwnerFile)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return nil, err
	}
	var o Owner
	if err := json.Unmarshal(text, &o); err != nil {
		return nil, &api.Error{Code: api.Invalid, Message: path + " cannot be read", Remedy: "delete it and the folder identity beside it: the box then looks for its owner anew", Err: err}
	}
	return &o, nil
}
