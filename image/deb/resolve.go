package deb

import (
	"fmt"
	"slices"
	"strings"
)

// Set is one declared group of packages: the base, or a kernel's flavour, or firmware.
type Set struct {
	Why      string   `yaml:"why"`                // for the reader
	Release  string   `yaml:"release,omitempty"`  // take the named packages from this suite; "" = the stable ones
	Packages []string `yaml:"packages,omitempty"` // for every architecture
	AMD64    []string `yaml:"amd64,omitempty"`    // more for this one
	ARM64    []string `yaml:"arm64,omitempty"`
	Alone    bool     `yaml:"alone,omitempty"`   // files only: the named packages' own dependencies are not wanted
	NonFree  bool     `yaml:"nonfree,omitempty"` // may be made of contrib and non-free too
	Exclude  []string `yaml:"exclude,omitempty"` // packages that no dependency brings into this set
}

// Names gives the packages declared for an architecture.
func (s Set) Names(arch string) []string {
	more := map[string][]string{"amd64": s.AMD64, "arm64": s.ARM64}[arch]
	return append(slices.Clone(s.Packages), more...)
}

// universe is what the indexes of one architecture offer.
type universe struct {
	stable    map[string]bool // suites that packages come from unless a set names another
	packages  map[string][]Package
	providers map[string][]Package // by provided name
}

func newUniverse(all []Package, stable []string) *universe {
	u := &universe{stable: map[string]bool{}, packages: map[string][]Package{}, providers: map[string][]Package{}}
	for _, s := range stable {
		u.stable[s] = true
	}
	for _, p := range all {
		u.packages[p.Name] = append(u.packages[p.Name], p)
		for _, v := range p.provides {
			u.providers[v.name] = append(u.providers[v.name], p)
		}
	}
	return u
}

// best picks the newest acceptable package: from release when one is asked for, else from the stable suites, else
// from any other (a backported kernel's own parts exist nowhere else).
func (u *universe) best(r relation, release string) (Package, bool) {
	pick := func(fits func(Package) bool) (best Package, ok bool) {
		for _, p := range u.packages[r.name] {
			if fits(p) && r.accepts(p.Version) && (!ok || Compare(p.Version, best.Version) > 0) {
				best, ok = p, true
			}
		}
		return best, ok
	}
	if release != "" {
		return pick(func(p Package) bool { return p.release == release })
	}
	if p, ok := pick(func(p Package) bool { return u.stable[p.release] }); ok {
		return p, ok
	}
	return pick(func(Package) bool { return true })
}

// provider picks, by name, the first package that stands for r.
func (u *universe) provider(r relation) (Package, bool) {
	var best Package
	ok := false
	for _, p := range u.providers[r.name] {
		for _, v := range p.provides {
			fits := v.name == r.name && (r.op == "" || v.version != "" && r.accepts(v.version))
			if !fits || ok && (p.Name > best.Name || p.Name == best.Name && Compare(p.Version, best.Version) < 0) {
				continue
			}
			best, ok = p, true
		}
	}
	return best, ok
}

// resolve closes a set over its dependencies (Depends and Pre-Depends), leaving out what is excluded. The result is
// sorted by name. The order of the declared list doesn't matter, except that declared packages win over alternatives.
func resolve(u *universe, set Set, arch string, exclude []string) ([]Package, error) {
	out := map[string]Package{}
	var queue []Package
	take := func(p Package) {
		if _, have := out[p.Name]; !have {
			out[p.Name] = p
			queue = append(queue, p)
		}
	}
	names := set.Names(arch)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		p, ok := u.best(relation{name: name}, set.Release)
		if !ok {
			return nil, fmt.Errorf("package %s is not offered for %s%s", name, arch, inRelease(set.Release))
		}
		take(p)
	}
	for len(queue) > 0 && !set.Alone {
		p := queue[0]
		queue = queue[1:]
		for _, group := range p.depends {
			next, err := u.satisfy(group, out, exclude)
			if err != nil {
				return nil, fmt.Errorf("%s for %s: %w", p, arch, err)
			}
			if next != nil {
				take(*next)
			}
		}
	}
	list := make([]Package, 0, len(out))
	for _, p := range out {
		list = append(list, p)
	}
	slices.SortFunc(list, comparePackages)
	return list, nil
}

func inRelease(r string) string {
	if r == "" {
		return ""
	}
	return " in " + r
}

// satisfy finds what one group of alternatives still needs; nil when it is met or excluded.
func (u *universe) satisfy(group anyOf, have map[string]Package, exclude []string) (*Package, error) {
	for _, r := range group {
		if p, ok := have[r.name]; ok && r.accepts(p.Version) || slices.Contains(exclude, r.name) {
			return nil, nil
		}
		for _, p := range have {
			for _, v := range p.provides {
				if v.name == r.name && (r.op == "" || v.version != "" && r.accepts(v.version)) {
					return nil, nil
				}
			}
		}
	}
	for _, r := range group {
		if p, ok := u.best(r, ""); ok {
			if old, clash := have[p.Name]; clash && old.Version != p.Version {
				continue
			}
			return &p, nil
		}
		if p, ok := u.provider(r); ok {
			return &p, nil
		}
	}
	return nil, fmt.Errorf("nothing satisfies %q", strings.TrimSpace(group.String()))
}
