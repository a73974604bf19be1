package modules

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// List is one rootfs/modules/<class>.list. Each line is a module's name, a folder of the kernel's tree that ends in /
// ("drivers/net/usb/"), either with ! in front to leave it out, or "name after other other": the others are loaded
// before name where both are loaded, though the module itself does not say so. # begins a comment.
type List struct {
	Class string
	Lines []Line
}

// Line is one line of a list.
type Line struct {
	Number int
	Not    bool
	Folder string   // below kernel/, ending in /
	Name   string   // or a module
	After  []string // that are loaded first
}

// maxList bounds one list.
const maxList = 1 << 20

// ParseList reads a list.
func ParseList(class string, b []byte) (List, error) {
	l := List{Class: class}
	if len(b) > maxList {
		return l, fmt.Errorf("list %s is larger than %d bytes", class, maxList)
	}
	n := 0
	for text := range strings.Lines(string(b)) {
		n++
		text, _, _ = strings.Cut(text, "#")
		words := strings.Fields(text)
		if len(words) == 0 {
			continue
		}
		line := Line{Number: n}
		if rest, ok := strings.CutPrefix(words[0], "!"); ok {
			line.Not, words[0] = true, rest
		}
		switch {
		case len(words) == 1 && strings.HasSuffix(words[0], "/") && len(words[0]) > 1:
			line.Folder = words[0]
		case words[0] == "" || strings.Contains(words[0], "/"):
			return l, fmt.Errorf("list %s, line %d: %q is neither a module nor a folder that ends in /", class, n, text)
		case len(words) == 1:
			line.Name = NameOf(words[0])
		case len(words) > 2 && words[1] == "after" && !line.Not:
			line.Name = NameOf(words[0])
			for _, w := range words[2:] {
				line.After = append(line.After, NameOf(w))
			}
		default:
			return l, fmt.Errorf("list %s, line %d: %q is not understood", class, n, strings.TrimSpace(text))
		}
		l.Lines = append(l.Lines, line)
	}
	return l, nil
}

// Choice is what lists ask of one kernel.
type Choice struct {
	Names   []string            // modules of the kernel, in the order of the lists, each once, without what they need
	After   map[string][]string // wishes of order
	Unknown []Line              // names that are neither module nor built in; kernels and architectures differ
}

// Choose reads lists against a kernel. What one list leaves out, no other list's folder brings in; a name does.
func (k *Kernel) Choose(lists []List) Choice {
	c := Choice{After: map[string][]string{}}
	seen := map[string]bool{}
	take := func(name string) {
		if k.Modules[name] != nil && !seen[name] {
			seen[name] = true
			c.Names = append(c.Names, name)
		}
	}
	var not []Line
	for _, l := range lists {
		for _, line := range l.Lines {
			if line.Not {
				not = append(not, line)
			}
		}
	}
	for _, l := range lists {
		for _, line := range l.Lines {
			switch {
			case line.Not:
			case line.Folder != "":
				for _, m := range k.in(line.Folder) {
					if !slices.ContainsFunc(not, func(n Line) bool { return n.covers(m) }) {
						take(m.Name)
					}
				}
			default:
				if k.Modules[line.Name] == nil && !k.Builtin[line.Name] {
					c.Unknown = append(c.Unknown, line)
				}
				take(line.Name)
				c.After[line.Name] = append(c.After[line.Name], line.After...)
				for _, name := range line.After {
					take(name)
				}
			}
		}
	}
	return c
}

func (l Line) covers(m *Module) bool {
	return l.Name == m.Name || l.Folder != "" && strings.HasPrefix(m.Path, "kernel/"+l.Folder)
}

func (k *Kernel) in(folder string) []*Module {
	var out []*Module
	for _, m := range k.Modules {
		if strings.HasPrefix(m.Path, "kernel/"+folder) {
			out = append(out, m)
		}
	}
	slices.SortFunc(out, func(a, b *Module) int { return strings.Compare(a.Path, b.Path) })
	return out
}

// softly resolves what a module names as soft dependencies: modules, or aliases such as libcrc32c's "crc32c", for which
// all that have it are taken (without any of them libcrc32c refuses to load, and with it ext4 and erofs).
func (k *Kernel) softly(names []string) []string {
	var out []string
	for _, name := range names {
		if k.Modules[name] != nil || k.Builtin[name] {
			out = append(out, name)
			continue
		}
		if k.named == nil {
			k.named = map[string][]string{}
			for _, m := range k.in("") {
				for _, a := range m.Aliases {
					k.named[underscores(a)] = append(k.named[underscores(a)], m.Name)
				}
			}
		}
		out = append(out, k.named[name]...)
	}
	return out
}

// Close adds to a choice all that its modules need, directly or not, and what they name as soft dependencies. The
// result is sorted by path.
func (k *Kernel) Close(c Choice) ([]*Module, error) {
	in := map[string]*Module{}
	queue := slices.Clone(c.Names)
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		m := k.Modules[name]
		if m == nil || in[name] != nil {
			continue
		}
		in[name] = m
		for _, d := range m.Depends {
			if k.Modules[d] == nil && !k.Builtin[d] {
				return nil, fmt.Errorf("module %s needs %s, which kernel %s does not have", name, d, k.Release)
			}
		}
		queue = append(queue, m.Depends...)
		queue = append(queue, k.softly(m.Pre)...)
		queue = append(queue, k.softly(m.Post)...)
	}
	return slices.SortedFunc(maps.Values(in), func(a, b *Module) int { return strings.Compare(a.Path, b.Path) }), nil
}

// LoadOrder lists the chosen modules so that each comes after what it needs (hard, soft and by wish), otherwise in the
// order of the choice. Cycles of soft wishes are cut where they close; hard ones do not exist in a kernel that builds.
func (k *Kernel) LoadOrder(c Choice) []*Module {
	var out []*Module
	state := map[string]int{} // 1 being visited, 2 done
	var visit func(name string)
	visit = func(name string) {
		m := k.Modules[name]
		if m == nil || state[name] != 0 {
			return
		}
		state[name] = 1
		for _, before := range [][]string{k.softly(m.Pre), c.After[name], m.Depends} {
			for _, d := range before {
				visit(d)
			}
		}
		state[name] = 2
		out = append(out, m)
		for _, d := range k.softly(m.Post) {
			visit(d)
		}
	}
	for _, name := range c.Names {
		visit(name)
	}
	return out
}
