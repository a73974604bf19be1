package modules

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Tables writes what depmod(8) would for the given modules of the kernel: the text forms, which edged reads, and the
// binary indexes, which Debian's modprobe reads. Keys are names below /lib/modules/<release>.
func (k *Kernel) Tables(list []*Module) map[string][]byte {
	rank := k.rank()
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b *Module) int {
		return cmp.Or(cmp.Compare(rank[a.Name], rank[b.Name]), strings.Compare(a.Path, b.Path))
	})
	in := map[string]*Module{}
	for _, m := range list {
		in[m.Name] = m
	}
	var dep, alias, soft bytes.Buffer
	depIndex, aliasIndex := &index{}, &index{}
	for i, m := range list {
		line := m.Path + ":"
		for _, d := range needs(in, m, rank) {
			line += " " + d.Path
		}
		fmt.Fprintln(&dep, line)
		depIndex.add(m.Name, line, i)
		for _, a := range m.Aliases {
			fmt.Fprintf(&alias, "alias %s %s\n", a, m.Name)
			aliasIndex.add(underscores(a), m.Name, i)
		}
		if len(m.Pre)+len(m.Post) > 0 {
			fmt.Fprintf(&soft, "softdep %s%s%s\n", m.Name, wish(" pre: ", m.Pre), wish(" post: ", m.Post))
		}
	}
	builtin := &index{}
	for name := range k.Builtin {
		builtin.add(name, "", 0)
	}
	out := map[string][]byte{
		"modules.dep": dep.Bytes(), "modules.dep.bin": depIndex.encode(),
		"modules.alias": alias.Bytes(), "modules.alias.bin": aliasIndex.encode(),
		"modules.softdep": soft.Bytes(), "modules.builtin.bin": builtin.encode(),
		"modules.builtin.alias.bin": builtinAliases(k.Files["modules.builtin.modinfo"]).encode(),
	}
	for _, name := range []string{"modules.builtin", "modules.builtin.modinfo"} {
		if b := k.Files[name]; b != nil {
			out[name] = b
		}
	}
	return out
}

func wish(word string, names []string) string {
	if len(names) == 0 {
		return ""
	}
	return word + strings.Join(names, " ")
}

// needs lists all that m needs so that the last is to be loaded first, which is how modprobe reads modules.dep.
func needs(in map[string]*Module, m *Module, rank map[string]int) []*Module {
	var order []*Module
	seen := map[string]bool{m.Name: true}
	var visit func(*Module)
	visit = func(m *Module) {
		deps := slices.Clone(m.Depends)
		slices.SortFunc(deps, func(a, b string) int { return cmp.Compare(rank[a], rank[b]) })
		for _, d := range deps {
			if next := in[d]; next != nil && !seen[d] {
				seen[d] = true
				visit(next)
				order = append(order, next)
			}
		}
	}
	visit(m)
	slices.Reverse(order)
	return order
}

// builtinAliases reads modules.builtin.modinfo: NUL-separated "module.key=value".
func builtinAliases(b []byte) *index {
	ix := &index{}
	for field := range bytes.SplitSeq(b, []byte{0}) {
		key, value, ok := strings.Cut(string(field), "=")
		name, isAlias := strings.CutSuffix(key, ".alias")
		if ok && isAlias {
			ix.add(underscores(value), NameOf(name), 0)
		}
	}
	return ix
}

// underscores writes "-" as "_" outside of brackets, as modprobe does with what it is asked for.
func underscores(s string) string {
	b, depth := []byte(s), 0
	for i, c := range b {
		switch {
		case c == '[':
			depth++
		case c == ']' && depth > 0:
			depth--
		case c == '-' && depth == 0:
			b[i] = '_'
		}
	}
	return string(b)
}

// index is the trie that libkmod reads (libkmod-index.c of kmod 30: magic, version, root, then nodes children first).
type index struct{ root node }

type node struct {
	prefix   string
	children map[byte]*node
	values   []value
}

type value struct {
	text     string
	priority int
}

const (
	indexMagic   = 0xB007F457
	indexVersion = 2<<16 | 1

	hasPrefix = 0x80000000
	hasValues = 0x40000000
	hasChilds = 0x20000000
)

// add puts a value under a key; only 7-bit keys can be found, and modules have no others.
func (x *index) add(key, text string, priority int) {
	n := &x.root
	for {
		i := 0
		for i < len(n.prefix) && i < len(key) && n.prefix[i] == key[i] {
			i++
		}
		if i < len(n.prefix) { // split: the old node goes below
			below := &node{prefix: n.prefix[i+1:], children: n.children, values: n.values}
			*n = node{prefix: n.prefix[:i], children: map[byte]*node{n.prefix[i]: below}}
		}
		if key = key[i:]; key == "" {
			v := value{text, priority}
			if !slices.Contains(n.values, v) {
				n.values = append(n.values, v)
			}
			return
		}
		next := n.children[key[0]]
		if next == nil {
			next = &node{prefix: key[1:]}
			if n.children == nil {
				n.children = map[byte]*node{}
			}
			n.children[key[0]] = next
		}
		n, key = next, key[1:]
	}
}

func (x *index) encode() []byte {
	out := binary.BigEndian.AppendUint32(nil, indexMagic)
	out = binary.BigEndian.AppendUint32(out, indexVersion)
	out = append(out, 0, 0, 0, 0)
	out, root := x.root.encode(out)
	binary.BigEndian.PutUint32(out[8:], root)
	return out
}

// encode appends the node after its children and gives its place, with what it has in the upper bits.
func (n *node) encode(out []byte) ([]byte, uint32) {
	first, last := byte(127), byte(0)
	places := map[byte]uint32{}
	for _, c := range slices.Sorted(maps.Keys(n.children)) {
		if c > 127 {
			continue
		}
		first, last = min(first, c), max(last, c)
		out, places[c] = n.children[c].encode(out)
	}
	at := uint32(len(out))
	if n.prefix != "" {
		at |= hasPrefix
		out = append(append(out, n.prefix...), 0)
	}
	if len(places) > 0 {
		at |= hasChilds
		out = append(out, first, last)
		for c := int(first); c <= int(last); c++ {
			out = binary.BigEndian.AppendUint32(out, places[byte(c)])
		}
	}
	if len(n.values) > 0 {
		at |= hasValues
		values := slices.Clone(n.values)
		slices.SortStableFunc(values, func(a, b value) int { return cmp.Compare(a.priority, b.priority) })
		out = binary.BigEndian.AppendUint32(out, uint32(len(values)))
		for _, v := range values {
			out = binary.BigEndian.AppendUint32(out, uint32(v.priority))
			out = append(append(out, v.text...), 0)
		}
	}
	return out, at
}
