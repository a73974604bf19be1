package deb

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"tributary.dev/tributary/pkg/boundedfile"
)

// Declared is rootfs/packages.yaml: what people ask for.
type Declared struct {
	Suite   string         `yaml:"suite"`   // Debian's codename of the image, whatever the builder runs
	Sets    map[string]Set `yaml:"sets"`    // by name
	Exclude []string       `yaml:"exclude"` // packages that no dependency brings in
}

// maxDeclared bounds packages.yaml and packages.lock.
const maxDeclared = 4 << 20

// ReadDeclared reads packages.yaml; unknown fields are errors.
func ReadDeclared(file string) (*Declared, error) {
	b, err := boundedfile.Read(file, maxDeclared)
	if err != nil {
		return nil, err
	}
	d := &Declared{}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(d); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if !nameForm.MatchString(d.Suite) {
		return nil, fmt.Errorf("%s: suite %q is not a release's codename", file, d.Suite)
	}
	return d, nil
}

// Lock is rootfs/packages.lock: exactly which packages make each set, for each architecture.
type Lock struct {
	Suite string
	Sets  map[Key][]Package
}

// Key names a locked set.
type Key struct{ Arch, Set string }

// Packages gives the packages of the named sets, each once, sorted by name. Two sets that lock different versions
// of one package for the same image are an error.
func (l *Lock) Packages(arch string, sets ...string) ([]Package, error) {
	seen := map[string]Package{}
	for _, s := range sets {
		list, ok := l.Sets[Key{arch, s}]
		if !ok {
			return nil, fmt.Errorf("the lock has no set %q for %s; it has %s: run `go run ./image lock` after changing rootfs/packages.yaml", s, arch, l.names(arch))
		}
		for _, p := range list {
			if old, ok := seen[p.Name]; ok && old.SHA256 != p.SHA256 {
				return nil, fmt.Errorf("the lock has both %s and %s for %s: run `go run ./image lock`", old, p, arch)
			}
			seen[p.Name] = p
		}
	}
	return slices.SortedFunc(maps.Values(seen), comparePackages), nil
}

func (l *Lock) names(arch string) string {
	var names []string
	for k := range l.Sets {
		if k.Arch == arch {
			names = append(names, k.Set)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

const lockHead = "# Which Debian packages make the image. Written by `go run ./image lock`; do not edit.\n" +
	"# name version arch sha256 size archive path source\n"

// Encode writes the lock; the same lock gives the same bytes.
func (l *Lock) Encode() []byte {
	var b bytes.Buffer
	b.WriteString(lockHead)
	fmt.Fprintf(&b, "suite %s\n", l.Suite)
	keys := slices.SortedFunc(maps.Keys(l.Sets), func(a, b Key) int {
		return strings.Compare(a.Arch+" "+a.Set, b.Arch+" "+b.Set)
	})
	for _, k := range keys {
		fmt.Fprintf(&b, "\n[%s %s]\n", k.Arch, k.Set)
		list := slices.Clone(l.Sets[k])
		slices.SortFunc(list, comparePackages)
		for _, p := range list {
			fmt.Fprintf(&b, "%s %s %s %s %d %s %s %s\n", p.Name, p.Version, p.Arch, p.SHA256, p.Size, p.Archive, p.Path, p.Source)
		}
	}
	return b.Bytes()
}

// DecodeLock reads what Encode wrote. Every entry is checked: a lock is input.
func DecodeLock(r io.Reader) (*Lock, error) {
	l := &Lock{Sets: map[Key][]Package{}}
	var at Key
	lines := bufio.NewScanner(io.LimitReader(r, maxDeclared+1))
	total := 0
	for n := 1; lines.Scan(); n++ {
		if total += len(lines.Bytes()) + 1; total > maxDeclared {
			return nil, fmt.Errorf("packages.lock: larger than %d bytes", maxDeclared)
		}
		f := strings.Fields(lines.Text())
		switch {
		case len(f) == 0 || strings.HasPrefix(f[0], "#"):
		case f[0] == "suite" && len(f) == 2 && nameForm.MatchString(f[1]):
			l.Suite = f[1]
		case strings.HasPrefix(f[0], "[") && len(f) == 2 && strings.HasSuffix(f[1], "]"):
			at = Key{f[0][1:], f[1][:len(f[1])-1]}
			if _, twice := l.Sets[at]; twice || at.Arch == "" || at.Set == "" {
				return nil, fmt.Errorf("packages.lock, line %d: set %s of %s is empty or stands twice", n, at.Set, at.Arch)
			}
			l.Sets[at] = nil
		case len(f) == 8 && at.Set != "":
			size, err := strconv.ParseInt(f[4], 10, 64)
			p := Package{Name: f[0], Version: f[1], Arch: f[2], SHA256: f[3], Size: size, Archive: f[5], Path: f[6], Source: f[7]}
			if err == nil {
				err = p.check()
			}
			if err != nil {
				return nil, fmt.Errorf("packages.lock, line %d: %w", n, err)
			}
			l.Sets[at] = append(l.Sets[at], p)
		default:
			return nil, fmt.Errorf("packages.lock, line %d is not understood", n)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("packages.lock: %w", err)
	}
	if l.Suite == "" {
		return nil, fmt.Errorf("packages.lock names no suite")
	}
	return l, nil
}

// ReadLock reads a lock file.
func ReadLock(file string) (*Lock, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return DecodeLock(f)
}
