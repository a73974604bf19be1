package deb

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"

	"tributary.dev/tributary/pkg/boundedfile"
)

// Apt runs the machine's own apt in a folder of its own: nothing of the machine's package state is read or changed,
// only its configuration (proxies, credentials, transports) counts.
type Apt struct {
	Dir    string // for indexes; kept between runs
	Mirror Mirror
	Log    *slog.Logger
}

// components are the sections of the archive. Only sets that say so are made of what is not in free.
const components = "main contrib non-free non-free-firmware"

// free are the sections that any set may use: Debian itself, and firmware, which the boxes' processors do not run.
var free = []string{"main", "non-free-firmware"}

// suites lists the suites of a release and the archive that has each.
func (a *Apt) suites(codename string) map[string]string {
	s := map[string]string{codename: Main, codename + "-updates": Main, codename + "-backports": Main}
	if a.Mirror.Security != "" {
		s[codename+"-security"] = Security
	}
	return s
}

func (a *Apt) address(archive string) string {
	if archive == Security {
		return a.Mirror.Security
	}
	return a.Mirror.Main
}

// Update fetches the indexes of a release for the architectures and returns all packages that they offer, by
// architecture. apt checks signatures and hashes; both are checked here again, since the machine's configuration
// may have switched apt's checks off.
func (a *Apt) Update(ctx context.Context, codename string, arches []string) (map[string][]Package, error) {
	dir, err := filepath.Abs(a.Dir)
	if err != nil {
		return nil, err
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	var list strings.Builder
	for _, suite := range []string{codename, codename + "-updates", codename + "-backports", codename + "-security"} {
		if archive, ok := a.suites(codename)[suite]; ok {
			fmt.Fprintf(&list, "deb [arch=%s signed-by=%s] %s %s %s\n", strings.Join(arches, ","), a.Mirror.Keyring, a.address(archive), suite, components)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "sources.list"), []byte(list.String()), 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "status"), nil, 0o644); err != nil {
		return nil, err
	}
	if err := a.run(ctx, "apt-get", append(a.options(dir), "-q", "update")...); err != nil {
		return nil, fmt.Errorf("fetching the package indexes: %w", err)
	}
	return a.load(dir, codename, arches)
}

func (a *Apt) options(dir string) []string {
	o := []string{}
	for _, s := range []string{
		"Dir::Etc::sourcelist=" + dir + "/sources.list", "Dir::Etc::sourceparts=/dev/null",
		"Dir::State=" + dir, "Dir::State::lists=" + dir + "/lists", "Dir::State::status=" + dir + "/status",
		"Dir::Cache=" + dir + "/cache", "Acquire::Languages=none", "Acquire::GzipIndexes=false", "Acquire::Retries=3",
		"Acquire::AllowInsecureRepositories=false", "APT::Update::Error-Mode=any",
		"Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
	} {
		o = append(o, "-o", s)
	}
	return o
}

func (a *Apt) run(ctx context.Context, name string, args ...string) error {
	path, err := exec.LookPath(name)
	if err != nil {
		return fmt.Errorf("%s is needed to fetch packages: %w", filepath.Base(name), err)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(name), err, tail(out, 2000))
	}
	a.Log.Debug("apt", "command", filepath.Base(name), "said", string(tail(out, 2000)))
	return nil
}

func tail(b []byte, n int) []byte { return bytes.TrimSpace(b[max(0, len(b)-n):]) }

// load reads the indexes that lie in dir, verified against their signed list.
func (a *Apt) load(dir, codename string, arches []string) (map[string][]Package, error) {
	keys, err := readKeyring(a.Mirror.Keyring)
	if err != nil {
		return nil, err
	}
	out := map[string][]Package{}
	suites := a.suites(codename)
	for _, suite := range slices.Sorted(maps.Keys(suites)) { // in one order: a version that two of them have comes from the first, each time
		archive := suites[suite]
		base := filepath.Join(dir, "lists", listName(a.address(archive)+"/dists/"+suite+"/"))
		signed, err := boundedfile.Read(base+"InRelease", 4<<20)
		if err != nil {
			return nil, err
		}
		sums, err := verifyRelease(signed, keys)
		if err != nil {
			return nil, fmt.Errorf("suite %s: %w", suite, err)
		}
		for _, component := range strings.Fields(components) {
			for _, arch := range arches {
				list, err := loadIndex(base, component, arch, sums)
				if err != nil {
					return nil, fmt.Errorf("suite %s: %w", suite, err)
				}
				for i := range list {
					list[i].release, list[i].Archive = suite, archive
				}
				out[arch] = append(out[arch], list...)
			}
		}
	}
	return out, nil
}

// listName is how apt names the file of an address: without scheme and user, with _ for /.
func listName(address string) string {
	_, rest, _ := strings.Cut(address, "://")
	if host, path, ok := strings.Cut(rest, "/"); ok {
		if i := strings.LastIndexByte(host, '@'); i >= 0 {
			host = host[i+1:]
		}
		rest = host + "/" + path
	}
	return strings.ReplaceAll(strings.ReplaceAll(rest, "_", "%5f"), "/", "_")
}

func readKeyring(file string) (openpgp.EntityList, error) {
	b, err := boundedfile.Read(file, 16<<20)
	if err != nil {
		return nil, fmt.Errorf("the archive keys of package debian-archive-keyring are needed: %w", err)
	}
	if bytes.HasPrefix(b, []byte("-----BEGIN")) {
		return openpgp.ReadArmoredKeyRing(bytes.NewReader(b))
	}
	return openpgp.ReadKeyRing(bytes.NewReader(b))
}

// digest is an index's entry in the signed list.
type digest struct {
	sha256 string
	size   int64
}

// errUnsigned says that none of Debian's keys signed an index.
var errUnsigned = errors.New("the index is not signed by any key of the keyring")

// verifyRelease checks the signature of an InRelease file and returns its SHA256 table by name.
func verifyRelease(signed []byte, keys openpgp.EntityList) (map[string]digest, error) {
	block, _ := clearsign.Decode(signed)
	if block == nil {
		return nil, errUnsigned
	}
	if _, err := block.VerifySignature(keys, nil); err != nil {
		return nil, fmt.Errorf("%w: %w", errUnsigned, err)
	}
	sums := map[string]digest{}
	err := readStanzas(bytes.NewReader(block.Plaintext), map[string]bool{"sha256": true}, func(s stanza) error {
		for line := range strings.Lines(s["sha256"]) {
			f := strings.Fields(line)
			if len(f) == 0 {
				continue
			}
			if len(f) != 3 || !digestForm.MatchString(f[0]) {
				return fmt.Errorf("%.80q is not a line of hashes", line)
			}
			size, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				return err
			}
			sums[f[2]] = digest{f[0], size}
		}
		return nil
	})
	return sums, err
}

// maxIndex bounds one Packages file; main has 50 MB.
const maxIndex = 512 << 20

// loadIndex reads one Packages file and checks it against the signed hash. A component that the suite doesn't have
// or apt didn't fetch because it is empty gives nothing.
func loadIndex(base, component, arch string, sums map[string]digest) ([]Package, error) {
	name := component + "/binary-" + arch + "/Packages"
	want, ok := sums[name]
	if !ok || want.size == 0 {
		return nil, nil
	}
	f, err := os.Open(base + strings.ReplaceAll(name, "/", "_"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	list, err := parseIndex(io.TeeReader(io.LimitReader(f, maxIndex), h))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want.sha256 {
		return nil, fmt.Errorf("%s has SHA-256 %s, its signed list says %s", name, got, want.sha256)
	}
	return list, nil
}

var indexFields = map[string]bool{"package": true, "version": true, "architecture": true, "sha256": true, "size": true,
	"filename": true, "depends": true, "pre-depends": true, "provides": true, "source": true}

// parseIndex reads a Packages file.
func parseIndex(r io.Reader) ([]Package, error) {
	var out []Package
	err := readStanzas(r, indexFields, func(s stanza) error {
		size, err := strconv.ParseInt(s["size"], 10, 64)
		if err != nil {
			return fmt.Errorf("package %.80q: size %.40q", s["package"], s["size"])
		}
		source, _, _ := strings.Cut(s["source"], " ")
		p := Package{Name: s["package"], Version: s["version"], Arch: s["architecture"], SHA256: s["sha256"], Size: size,
			Path: strings.TrimPrefix(s["filename"], "./"), Source: source, Archive: Main}
		if p.Source == "" {
			p.Source = p.Name
		}
		if err := p.check(); err != nil {
			return err
		}
		if !nameForm.MatchString(p.Source) {
			return fmt.Errorf("%s: source %q is not a package name", p.Name, p.Source)
		}
		for _, field := range []string{s["pre-depends"], s["depends"]} {
			groups, err := parseRelations(field)
			if err != nil {
				return fmt.Errorf("%s: %w", p.Name, err)
			}
			p.depends = append(p.depends, groups...)
		}
		provides, err := parseRelations(s["provides"])
		if err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
		for _, g := range provides {
			p.provides = append(p.provides, provision{g[0].name, g[0].version})
		}
		out = append(out, p)
		return nil
	})
	return out, err
}

// MakeLock resolves everything that is declared, for each architecture, against freshly fetched indexes.
func MakeLock(ctx context.Context, a *Apt, d *Declared, arches []string) (*Lock, error) {
	offers, err := a.Update(ctx, d.Suite, arches)
	if err != nil {
		return nil, err
	}
	return lockFrom(offers, d, arches)
}

func lockFrom(offers map[string][]Package, d *Declared, arches []string) (*Lock, error) {
	l := &Lock{Suite: d.Suite, Sets: map[Key][]Package{}}
	for _, arch := range arches {
		stable := []string{d.Suite, d.Suite + "-updates", d.Suite + "-security"}
		all := newUniverse(offers[arch], stable)
		unfree := func(p Package) bool { return !slices.Contains(free, p.Component()) }
		most := newUniverse(slices.DeleteFunc(slices.Clone(offers[arch]), unfree), stable)
		for name, set := range d.Sets {
			u := all
			if !set.NonFree { // check: nonfree
				u = most
			}
			list, err := resolve(u, set, arch, append(slices.Clone(d.Exclude), set.Exclude...))
			if err != nil {
				return nil, fmt.Errorf("set %s: %w", name, err)
			}
			l.Sets[Key{arch, name}] = list
		}
	}
	return l, nil
}
