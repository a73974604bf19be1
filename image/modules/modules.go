// Package modules answers: which kernel modules does an image carry, in which order do they load, and how are they found?
//
// Kernel modules say themselves what they need and what hardware they drive (their .modinfo section), so the choice of
// an image (lists.go) is closed over that, the load order follows from it (order.go), and the tables that modprobe
// reads are written from it (depmod.go) for any architecture, without running anything of the target.
package modules

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// Module is one loadable module of a kernel.
type Module struct {
	Name     string   // with "_" for "-", as the kernel writes it
	Path     string   // below /lib/modules/<release>: kernel/fs/ext4/ext4.ko
	Size     int64    // bytes, unpacked
	Depends  []string // names that must be loaded before
	Pre      []string // names that should be loaded before, where they exist (softdep)
	Post     []string // names that should be there too
	Aliases  []string // what it drives, in the order of the module
	Firmware []string // files below /lib/firmware that it may ask for
}

// Kernel is what one kernel package has.
type Kernel struct {
	Release string             // uname -r
	Modules map[string]*Module // by name
	Order   []string           // names in the order of modules.order, which decides between equal aliases
	Builtin map[string]bool    // names of what is built in
	Files   map[string][]byte  // modules.order, modules.builtin, modules.builtin.modinfo as shipped

	named map[string][]string // modules by alias, made when first asked for
}

// ErrModule says that a file is not a kernel module.
var ErrModule = errors.New("not a kernel module")

// maxModinfo bounds the .modinfo section; the largest have some 100 kB of aliases.
const maxModinfo = 4 << 20

// NameOf is a module's name by its file: no folder, no suffix, "-" as "_".
func NameOf(file string) string {
	base := path.Base(file)
	if i := strings.Index(base, ".ko"); i > 0 {
		base = base[:i]
	}
	return strings.ReplaceAll(base, "-", "_")
}

// Parse reads what an unpacked module (an ELF object) says about itself. file is its path below /lib/modules/<release>.
func Parse(file string, object []byte) (*Module, error) {
	info, err := modinfo(object)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	m := &Module{Name: NameOf(file), Path: file, Size: int64(len(object))}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		key, value, ok := strings.Cut(string(field), "=")
		if !ok || value == "" {
			continue
		}
		switch key {
		case "depends":
			for d := range strings.SplitSeq(value, ",") {
				m.Depends = append(m.Depends, NameOf(d))
			}
		case "softdep":
			m.softdep(value)
		case "alias":
			m.Aliases = append(m.Aliases, value)
		case "firmware":
			m.Firmware = append(m.Firmware, value)
		}
	}
	return m, nil
}

// softdep reads "pre: a b post: c" (modprobe.d(5)).
func (m *Module) softdep(value string) {
	var into *[]string
	for _, word := range strings.Fields(value) {
		switch {
		case word == "pre:":
			into = &m.Pre
		case word == "post:":
			into = &m.Post
		case into != nil:
			*into = append(*into, NameOf(word))
		}
	}
}

func modinfo(object []byte) (info []byte, err error) {
	f, err := elf.NewFile(bytes.NewReader(object))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrModule, err)
	}
	s := f.Section(".modinfo")
	if s == nil || s.Type != elf.SHT_PROGBITS || s.Flags&elf.SHF_COMPRESSED != 0 || s.Size > maxModinfo || s.Offset > uint64(len(object)) || s.Size > uint64(len(object))-s.Offset {
		return nil, fmt.Errorf("%w: it has no .modinfo", ErrModule)
	}
	return object[s.Offset : s.Offset+s.Size], nil
}

// ReadBuiltin takes the names from a modules.builtin or modules.order file.
func ReadBuiltin(b []byte) []string {
	var out []string
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" {
			out = append(out, NameOf(line))
		}
	}
	return out
}

// rank gives each module its place in modules.order; those it does not name come last, by path.
func (k *Kernel) rank() map[string]int {
	rank := map[string]int{}
	for i, name := range k.Order {
		if _, have := rank[name]; !have {
			rank[name] = i
		}
	}
	var rest []*Module
	for name, m := range k.Modules {
		if _, have := rank[name]; !have {
			rest = append(rest, m)
		}
	}
	slices.SortFunc(rest, func(a, b *Module) int { return strings.Compare(a.Path, b.Path) })
	for _, m := range rest {
		rank[m.Name] = len(rank) + len(k.Order)
	}
	return rank
}

// Field gives what an unpacked module says of itself under a key, such as vermagic or version; "" when nothing.
func Field(object []byte, key string) (string, error) {
	info, err := modinfo(object)
	if err != nil {
		return "", err
	}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if value, ok := bytes.CutPrefix(field, []byte(key+"=")); ok {
			return string(value), nil
		}
	}
	return "", nil
}
