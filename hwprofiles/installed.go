package hwprofiles

import (
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
)

// InstalledFile is where an image carries its profile, whole and as JSON: under the root hash like all of the root, and
// read in a hundredth of the time that the files here take.
const InstalledFile = "usr/lib/tributary/profile.json"

// maxInstalled bounds the file in bytes.
const maxInstalled = 256 << 10

// Encode is the content of InstalledFile.
func (p Profile) Encode() ([]byte, error) {
	b, err := json.MarshalIndent(p, "", " ")
	return append(b, '\n'), err
}

// Installed reads the profile of the image that runs, from a file system rooted at "/". Where no image of ours runs the
// error is fs.ErrNotExist.
func Installed(root fs.FS) (Profile, error) {
	f, err := root.Open(InstalledFile)
	if err != nil {
		return Profile{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxInstalled+1))
	if err != nil {
		return Profile{}, err
	}
	if len(b) > maxInstalled {
		return Profile{}, fmt.Errorf("%s has more than %d bytes", InstalledFile, maxInstalled)
	}
	var p Profile
	if err := json.Unmarshal(b, &p); err != nil {
		return Profile{}, fmt.Errorf("%s: %w", InstalledFile, err)
	}
	return p, nil
}
