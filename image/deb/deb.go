// Package deb answers: which Debian packages are in the image, are they what Debian signed, and what is inside them?
//
// The way of a package: the machine's own apt sources name a mirror (sources.go); apt fetches the signed indexes,
// which are verified once more here (index.go); a short declared list is closed over its dependencies (resolve.go)
// and written down with digests (lock.go); packages are fetched by that lock into a cache (fetch.go) and read
// without dpkg (archive.go). Only the steps sources, index and fetch touch the network, and only through apt, so
// that its proxies, credentials and transports count.
package deb

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"
)

// Package is one Debian package as an index or the lock describes it.
type Package struct {
	Name    string
	Version string
	Arch    string // amd64, arm64 or all
	SHA256  string // of the .deb, lower hex
	Size    int64  // of the .deb, bytes
	Archive string // which archive has it: Main or Security
	Path    string // below that archive's address: pool/main/…
	Source  string // source package, for the bill of materials

	release  string // suite of the index it came from
	depends  []anyOf
	provides []provision
}

// The archives a path can belong to.
const (
	Main     = "debian"
	Security = "security"
)

// String is name_version_arch.
func (p Package) String() string { return p.Name + "_" + p.Version + "_" + p.Arch }

// Component is the section of the archive that the package is of: main, contrib, non-free, non-free-firmware.
func (p Package) Component() string {
	parts := strings.Split(strings.TrimPrefix(strings.TrimPrefix(p.Path, "pool/"), "updates/"), "/")
	return parts[0]
}

// Policy manual 5.6.1, 5.6.12: what names and versions are made of.
var (
	nameForm    = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]{1,127}$`)
	versionForm = regexp.MustCompile(`^[0-9A-Za-z.+:~-]{1,128}$`)
	digestForm  = regexp.MustCompile(`^[0-9a-f]{64}$`)
	poolForm    = regexp.MustCompile(`^pool/[A-Za-z0-9+._~%/-]{1,400}\.deb$`)
)

// maxPackage bounds one .deb; the largest that images use, kernels and firmware, have 110 MB, the archive's largest 1.4 GB.
const maxPackage = 4 << 30

func (p Package) check() error {
	switch {
	case !nameForm.MatchString(p.Name):
		return fmt.Errorf("package name %q is not one", p.Name)
	case !versionForm.MatchString(p.Version):
		return fmt.Errorf("%s: version %q is not one", p.Name, p.Version)
	case p.Arch != "amd64" && p.Arch != "arm64" && p.Arch != "all":
		return fmt.Errorf("%s: architecture %q is not amd64, arm64 or all", p.Name, p.Arch)
	case !digestForm.MatchString(p.SHA256):
		return fmt.Errorf("%s: %q is not a SHA-256", p.Name, p.SHA256)
	case p.Size <= 0 || p.Size > maxPackage:
		return fmt.Errorf("%s: size %d is not between 1 and %d", p.Name, p.Size, maxPackage)
	case p.Archive != Main && p.Archive != Security:
		return fmt.Errorf("%s: archive %q is not %s or %s", p.Name, p.Archive, Main, Security)
	case !poolForm.MatchString(p.Path) || hasDotDot(p.Path):
		return fmt.Errorf("%s: %q is not a path below pool/", p.Name, p.Path)
	}
	return nil
}

func comparePackages(a, b Package) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Arch, b.Arch), cmp.Compare(a.Version, b.Version))
}
