package btf

import (
	"bytes"
	"hash/maphash"
)

// rounds is how far a type's label looks along the types that it names.
const rounds = 5

// Make finds the sections of both contents and tells how those of the old one come to be numbered as in the new one. A
// content without a kernel's section gives an empty plan.
func Make(old, new []byte) Plan {
	a, b := find(old), find(new)
	if a == nil || b == nil {
		return nil
	}
	l := labeller{seed: maphash.MakeSeed()}
	var p Plan
	var kernelA, kernelB *labelled
	var kernel *numbers
	for _, pair := range pairs(a, b) {
		x, y := a[pair[0]], b[pair[1]]
		if kernelA != nil {
			x.section.follows(kernelA.section)
			y.section.follows(kernelB.section)
		}
		la, lb := l.label(x.section, kernelA), l.label(y.section, kernelB)
		n := renumbering{Offset: x.offset, Size: int64(len(x.raw))}
		n.Types = runs(match(la, lb))
		n.Names = nameRuns(x.section, y.section, n.Types)
		switch _, numbers, err := n.apply(x.section, kernel); {
		case err == nil && kernel == nil:
			kernel, kernelA, kernelB = numbers, la, lb
		case kernel == nil:
			return nil
		case err != nil:
			continue
		}
		p = append(p, n)
	}
	return p
}

type found struct {
	*section
	offset int64
}

// find gives the sections in a content, first the kernel's: the largest that no other comes before.
func find(content []byte) (list []found) {
	kernel := -1
	for at := 0; ; {
		n := bytes.Index(content[at:], head)
		if n < 0 {
			break
		}
		at += n
		if n, ok := size(content[at:]); ok {
			if s, err := parse(content[at : at+n]); err == nil {
				if s.alone() && (kernel < 0 || len(s.raw) > len(list[kernel].raw)) {
					kernel = len(list)
				}
				list = append(list, found{s, int64(at)})
				at += n
				continue
			}
		}
		at++
	}
	if kernel < 0 {
		return nil
	}
	k := list[kernel]
	return append([]found{k}, append(list[:kernel:kernel], list[kernel+1:]...)...)
}

// alone says that a section names only types and names of its own.
func (s *section) alone() bool {
	ok := true
	for i := range s.count() {
		t := s.typ(i)
		fields(t, func(at int, isType bool) {
			if v := number(t, at); isType && v > uint32(s.count()) || !isType && v >= uint32(len(s.names)) {
				ok = false
			}
		})
	}
	return ok
}

// pairs tells which section became which: modules with the same names, else those in the same place between two such.
func pairs(a, b []found) (list [][2]int) {
	list = append(list, [2]int{0, 0})
	byNames := map[string][]int{}
	for i := 1; i < len(a); i++ {
		byNames[string(a[i].names)] = append(byNames[string(a[i].names)], i)
	}
	next := 1 // in a
	for j := 1; j < len(b); j++ {
		same := byNames[string(b[j].names)]
		if len(same) > 0 {
			byNames[string(b[j].names)] = same[1:]
			next = same[0]
		} else if next >= len(a) || contains(b[j:], a[next].names) {
			continue
		}
		list = append(list, [2]int{next, j})
		next++
	}
	seen := map[int]bool{}
	out := list[:0]
	for _, p := range list {
		if !seen[p[0]] {
			seen[p[0]] = true
			out = append(out, p)
		}
	}
	return out
}

func contains(list []found, names []byte) bool {
	for _, s := range list[:min(len(list), 64)] {
		if bytes.Equal(s.names, names) {
			return true
		}
	}
	return false
}

// labelled is a section whose types have labels: of each round the label tells apart what differs within so many steps.
type labelled struct {
	*section
	rounds [][]uint64
}

type labeller struct{ seed maphash.Seed }

func (l labeller) label(s *section, kernel *labelled) *labelled {
	out := &labelled{section: s}
	none := make([]uint64, s.count())
	for r := 0; r <= rounds; r++ {
		before := none
		if r > 0 {
			before = out.rounds[r-1]
		}
		now := make([]uint64, s.count())
		for i := range now {
			now[i] = l.one(s, s.typ(i), kernel, before)
		}
		out.rounds = append(out.rounds, now)
	}
	return out
}

func (l labeller) one(s *section, t []byte, kernel *labelled, before []uint64) uint64 {
	var h maphash.Hash
	h.SetSeed(l.seed)
	last := 0
	fields(t, func(at int, isType bool) {
		_, _ = h.Write(t[last:at])
		last = at + 4
		v := number(t, at)
		switch {
		case isType && v >= s.first && v-s.first < uint32(len(before)):
			maphash.WriteComparable(&h, before[v-s.first])
		case isType && v > 0 && v < s.first && kernel != nil:
			maphash.WriteComparable(&h, kernel.rounds[rounds][v-1])
		case !isType && v < s.base && kernel != nil:
			_, _ = h.Write(name(kernel.names, v))
		case !isType:
			_, _ = h.Write(name(s.names, v-s.base))
		}
		_ = h.WriteByte(0)
	})
	_, _ = h.Write(t[last:])
	return h.Sum64()
}

// match gives for each new type the old one that it was, or -1: the one whose label is the same and found once, then those
// beside such, then the first with that label; all of it again with labels that see less far.
func match(a, b *labelled) (of []int) {
	of = make([]int, b.count())
	for j := range of {
		of[j] = -1
	}
	used := make([]bool, a.count())
	take := func(i, j int) { of[j], used[i] = i, true }
	for r := rounds; r >= 0; r-- {
		la, lb := a.rounds[r], b.rounds[r]
		free, open := map[uint64][]int{}, map[uint64]int{}
		for i, l := range la {
			if !used[i] {
				free[l] = append(free[l], i)
			}
		}
		for j, l := range lb {
			if of[j] < 0 {
				open[l]++
			}
		}
		for j, l := range lb {
			if of[j] < 0 && open[l] == 1 && len(free[l]) == 1 {
				take(free[l][0], j)
			}
		}
		for j := 1; j < len(of); j++ {
			if i := of[j-1] + 1; of[j] < 0 && i > 0 && i < len(la) && !used[i] && la[i] == lb[j] {
				take(i, j)
			}
		}
		for j := len(of) - 2; j >= 0; j-- {
			if i := of[j+1] - 1; of[j] < 0 && i >= 0 && !used[i] && la[i] == lb[j] {
				take(i, j)
			}
		}
		for j, l := range lb {
			for of[j] < 0 && len(free[l]) > 0 {
				if i := free[l][0]; !used[i] {
					take(i, j)
				}
				free[l] = free[l][1:]
			}
		}
	}
	again := map[uint64]int{} // a type that there are now more of is like those that there were
	for i, l := range a.rounds[0] {
		again[l] = i
	}
	for j, l := range b.rounds[0] {
		if i, ok := again[l]; ok && of[j] < 0 {
			of[j] = i
		}
	}
	return of
}

// runs joins what follows each other. A type that was not there before has the place of one that was, so that the numbers
// behind it fit.
func runs(of []int) (list []run) {
	next := 0
	for _, i := range of {
		if i < 0 {
			i = next
			if i > 0 {
				i--
			}
		}
		if len(list) > 0 && i == next {
			list[len(list)-1].Count++
		} else {
			list = append(list, run{From: i, Count: 1})
		}
		next = i + 1
	}
	return list
}

// nameRuns tells the new table by the old names as they are mentioned in the new order.
func nameRuns(old, new *section, types []run) (list []run) {
	order, _, err := renumbering{Types: types}.order(old, &numbers{newFirst: 1})
	if err != nil {
		return nil
	}
	place := map[string]int{}
	for i, at := range old.mentioned(old.base, order) {
		place[string(name(old.names, at))] = i
	}
	next := 0
	for _, at := range starts(new.names) {
		text := name(new.names, at)
		i, ok := place[string(text)]
		switch {
		case !ok:
			list = append(list, run{Name: string(text)})
			continue
		case len(list) > 0 && i == next && list[len(list)-1].Count > 0:
			list[len(list)-1].Count++
		default:
			list = append(list, run{From: i, Count: 1})
		}
		next = i + 1
	}
	return list
}
