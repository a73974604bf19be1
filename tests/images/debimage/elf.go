package debimage

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"fmt"
	"path"
	"sort"
	"strings"
)

// Programs picks from a tree all files of the named packages but what nobody runs
// (documentation, init scripts, …), with every library they need, found by the ELF
// files' own lists (DT_NEEDED, PT_INTERP).
func (t Tree) Programs(packages ...string) (Tree, error) {
	wanted := map[string]bool{}
	for _, p := range packages {
		wanted[p] = true
	}
	out := Tree{}
	used := map[string]bool{}
	for name, f := range t {
		if wanted[f.Package] && useful(name) && f.Type != tar.TypeDir {
			out[name] = f
			used[f.Package] = true
		}
	}
	todo := make([]string, 0, len(out))
	for name := range out {
		todo = append(todo, name)
	}
	sort.Strings(todo)
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		needs, err := needed(out[name].Content)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for _, lib := range needs {
			trail, ok := t.library(lib)
			if !ok {
				return nil, fmt.Errorf("%s needs %s, which no package of the closure brings", name, lib)
			}
			for _, p := range trail {
				if _, have := out[p]; !have {
					out[p] = t[p]
					used[t[p].Package] = true
					todo = append(todo, p)
				}
			}
		}
	}
	for p := range used { // the licences travel with the programs
		name := "usr/share/doc/" + p + "/copyright"
		if trail, ok := t.resolve(name); ok {
			out[name] = File{Mode: 0o644, Type: tar.TypeReg, Content: t[trail[len(trail)-1]].Content, Package: p}
		}
	}
	return out, nil
}

// library finds a shared library or interpreter by its name.
func (t Tree) library(name string) ([]string, bool) {
	if strings.HasPrefix(name, "/") {
		return t.resolve(clean(name))
	}
	for _, dir := range []string{"usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib"} {
		if trail, ok := t.resolve(path.Join(dir, name)); ok {
			return trail, true
		}
	}
	return nil, false
}

// needed lists what an ELF file asks the dynamic linker for; nothing for other files.
func needed(b []byte) ([]string, error) {
	if !bytes.HasPrefix(b, []byte(elf.ELFMAG)) {
		return nil, nil
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	libs, err := f.ImportedLibraries()
	if err != nil {
		return nil, err
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		name := make([]byte, p.Filesz)
		if _, err := p.ReadAt(name, 0); err != nil {
			return nil, err
		}
		libs = append(libs, strings.TrimRight(string(name), "\x00"))
	}
	return libs, nil
}

// useful reports whether a running program may want the file.
func useful(name string) bool {
	for _, dir := range []string{"usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/lintian/", "usr/share/bash-completion/", "usr/share/bug/",
		"usr/share/nginx/modules-available/", "etc/init.d/", "etc/default/", "etc/logrotate.d/", "etc/ufw/", "etc/nginx/", "usr/lib/systemd/", "etc/insserv.conf.d/", "var/"} {
		if strings.HasPrefix(name, dir) {
			return false
		}
	}
	return true
}

// Shared splits trees: what stands alike in two or more of them goes into the common
// one, and out of each.
func Shared(trees ...Tree) (common Tree, rest []Tree) {
	count := map[string]int{}
	for _, t := range trees {
		for name := range t {
			count[name]++
		}
	}
	common = Tree{}
	for _, t := range trees {
		own := Tree{}
		for name, f := range t {
			if count[name] > 1 && f.Package != "" {
				common[name] = f
			} else {
				own[name] = f
			}
		}
		rest = append(rest, own)
	}
	return common, rest
}
