package btf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// kind of thing described: its name, and the things that it names.
type thing struct {
	kind  uint32
	name  string
	refs  []*thing
	names []string // of members
}

// things makes a list as a compiler might: each names some that were there before, or some of what is below.
func things(r *rand.Rand, n int, prefix string, below []*thing) (list []*thing) {
	pick := func() *thing {
		if k := r.IntN(len(list) + len(below) + 1); k < len(list) {
			return list[k]
		} else if k < len(list)+len(below) {
			return below[k-len(list)]
		}
		return nil // void
	}
	twice := map[string]bool{} // no two without a name are the same: the tool that makes the section joins such
	for i := range n {
		t := &thing{name: fmt.Sprintf("%s%d", prefix, i)}
		switch r.IntN(7) {
		case 0:
			t.kind = kindInt
		case 1, 2:
			t.kind, t.name, t.refs = kindPointer, "", []*thing{pick()}
		case 3:
			t.kind = kindStruct
			for range r.IntN(5) {
				t.refs = append(t.refs, pick())
				t.names = append(t.names, fmt.Sprintf("m%s%d", prefix, r.IntN(9)))
			}
		case 4:
			t.kind = kindEnum
			t.names = []string{"A_" + t.name, "B_" + t.name}
		case 5:
			t.kind, t.name, t.refs, t.names = kindProto, "", []*thing{pick(), pick()}, []string{"a"}
		case 6:
			t.kind, t.refs = kindFunc, []*thing{pick()}
		}
		if key := fmt.Sprint(t.kind, t.name, t.refs); !twice[key] {
			twice[key] = true
			list = append(list, t)
		}
	}
	return list
}

// numbered is a section with what those that follow it need to know.
type numbered struct {
	raw   []byte
	types map[*thing]uint32
	names map[string]uint32
	first uint32
	base  uint32
}

// lay lays the things out in that order.
func lay(order []*thing, under *numbered, r *rand.Rand) *numbered {
	n := &numbered{types: map[*thing]uint32{nil: 0}, names: map[string]uint32{}, first: 1}
	var table []byte
	if under == nil {
		n.names[""], table = 0, []byte{0}
	} else {
		for t, id := range under.types {
			n.types[t] = id
		}
		for s, at := range under.names {
			n.names[s] = at
		}
		n.first, n.base = under.first+uint32(len(under.types)-1), uint32(len(under.raw))-headerSize-number(under.raw, 12)
	}
	for i, t := range order {
		n.types[t] = n.first + uint32(i)
	}
	add := func(s string) uint32 {
		at, ok := n.names[s]
		if !ok {
			at = n.base + uint32(len(table))
			n.names[s] = at
			table = append(append(table, s...), 0)
		}
		return at
	}
	if r.IntN(2) == 0 { // some tools write names in another order
		for _, i := range r.Perm(len(order))[:min(4, len(order))] {
			add(order[i].name)
		}
	}
	le := binary.LittleEndian
	var types []byte
	for _, t := range order {
		types = le.AppendUint32(types, add(t.name))
		vlen := 0
		switch t.kind {
		case kindStruct, kindEnum:
			vlen = len(t.names)
		case kindProto:
			vlen = 1
		}
		types = le.AppendUint32(types, t.kind<<24|uint32(vlen))
		switch t.kind {
		case kindInt:
			types = le.AppendUint32(le.AppendUint32(types, 4), 32)
		case kindPointer, kindFunc:
			types = le.AppendUint32(types, n.types[t.refs[0]])
		case kindStruct:
			types = le.AppendUint32(types, uint32(8*vlen))
			for i, m := range t.names {
				types = le.AppendUint32(le.AppendUint32(le.AppendUint32(types, add(m)), n.types[t.refs[i]]), uint32(64*i))
			}
		case kindEnum:
			types = le.AppendUint32(types, 4)
			for i, m := range t.names {
				types = le.AppendUint32(le.AppendUint32(types, add(m)), uint32(i))
			}
		case kindProto:
			types = le.AppendUint32(types, n.types[t.refs[0]])
			types = le.AppendUint32(le.AppendUint32(types, add(t.names[0])), n.types[t.refs[1]])
		}
	}
	n.raw = append(n.raw, head...)
	for _, v := range []int{len(types), len(types), len(table)} {
		n.raw = le.AppendUint32(n.raw, uint32(v))
	}
	n.raw = append(append(n.raw, types...), table...)
	return n
}

func noise(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func shuffled(r *rand.Rand, list []*thing) []*thing {
	out := append([]*thing{}, list...)
	for range len(out) / 20 { // runs change places
		n := 1 + r.IntN(10)
		a, b := r.IntN(len(out)), r.IntN(len(out))
		for i := range min(n, len(out)-a, len(out)-b) {
			out[a+i], out[b+i] = out[b+i], out[a+i]
		}
	}
	return out
}

// pair is the same kernel with modules, built twice: the same descriptions, numbered differently.
func pair(seed uint64, types, modules int) (old, new []byte) {
	r := rand.New(rand.NewPCG(seed, 1))
	kernel := things(r, types, "k", nil)
	of := make([][]*thing, modules)
	for i := range of {
		of[i] = things(r, 1+types/10, fmt.Sprintf("x%d_", i), kernel)
	}
	gap := noise(r, 100)
	build := func(order func([]*thing) []*thing) []byte {
		k := lay(order(kernel), nil, r)
		out := append(append([]byte{}, gap...), k.raw...)
		for i := range of {
			out = append(append(out, gap[:10+i]...), lay(order(of[i]), k, r).raw...)
		}
		return append(out, gap...)
	}
	old = build(func(l []*thing) []*thing { return l })
	return old, build(func(l []*thing) []*thing { return shuffled(r, l) })
}

func all(t interface{ Fatal(...any) }, r *Renumbered) []byte {
	b := make([]byte, r.Size())
	if n, err := r.ReadAt(b, 0); n < len(b) {
		t.Fatal(err)
	}
	return b
}

// TestRenumber: where only the numbers differ, nothing is left for the delta. The seeds are fixed: things that look the
// same as far as a label sees may be taken for each other, and then the delta mends it.
func TestRenumber(t *testing.T) {
	for seed := range uint64(40) {
		old, new := pair(seed, []int{30, 200, 400}[seed%3], int(seed%5))
		plan, err := Decode(Make(old, new).Encode())
		if err != nil {
			t.Fatal(err)
		}
		r, err := plan.Apply(bytes.NewReader(old), int64(len(old)))
		if err != nil {
			t.Fatal(err)
		}
		if got := all(t, r); !bytes.Equal(got, new) {
			t.Fatalf("seed %d: %d of %d bytes differ", seed, differ(got, new), len(new))
		}
	}
}

func differ(a, b []byte) (n int) {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			n++
		}
	}
	return n + max(len(a), len(b)) - min(len(a), len(b))
}

// TestGrown: a kernel that describes more than before; its modules' numbers all move.
func TestGrown(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 1))
	kernel := things(r, 400, "k", nil)
	module := things(r, 60, "x", kernel)
	more := append(append(append([]*thing{}, kernel[:200]...), things(r, 9, "new", kernel[:200])...), kernel[200:]...)
	k1, k2 := lay(kernel, nil, r), lay(more, nil, r)
	m1, m2 := lay(module, k1, r), lay(module, k2, r)
	old, new := append(k1.raw, m1.raw...), append(k2.raw, m2.raw...)
	re, err := Make(old, new).Apply(bytes.NewReader(old), int64(len(old)))
	if err != nil {
		t.Fatal(err)
	}
	got := all(t, re)
	if want := m2.raw; !bytes.Equal(got[len(k1.raw):len(old)], want) {
		t.Fatalf("%d of the module's %d bytes differ", differ(got[len(k1.raw):len(old)], want), len(want))
	}
	if re.Size() <= int64(len(old)) {
		t.Fatal("what the kernel's section has more is not behind the content")
	}
}

// TestReadAt: any stretch reads as in the whole.
func TestReadAt(t *testing.T) {
	old, new := pair(3, 60, 3)
	r, err := Make(old, new).Apply(bytes.NewReader(old), int64(len(old)))
	if err != nil {
		t.Fatal(err)
	}
	whole := all(t, r)
	rapid.Check(t, func(t *rapid.T) {
		at := rapid.IntRange(0, len(whole)).Draw(t, "at")
		b := make([]byte, rapid.IntRange(0, len(whole)+20-at).Draw(t, "length"))
		n, err := r.ReadAt(b, int64(at))
		want := whole[at:min(len(whole), at+len(b))]
		if n != len(want) || !bytes.Equal(b[:n], want) || (n < len(b)) != errors.Is(err, io.EOF) {
			t.Fatalf("%d bytes at %d: %d, %v", len(b), at, n, err)
		}
	})
}

// TestNone: without a kernel there is nothing to number.
func TestNone(t *testing.T) {
	content := noise(rand.New(rand.NewPCG(1, 1)), 5000)
	plan := Make(content, content)
	if len(plan) != 0 {
		t.Fatalf("%d sections", len(plan))
	}
	r, err := plan.Apply(bytes.NewReader(content), int64(len(content)))
	if err != nil || !bytes.Equal(all(t, r), content) {
		t.Fatalf("the content is another: %v", err)
	}
}

// TestOther: over content that the plan was not made for, it is an error or other content, never a panic.
func TestOther(t *testing.T) {
	old, new := pair(3, 60, 3)
	plan := Make(old, new)
	for i := 0; i < len(old); i += 7 {
		bad := bytes.Clone(old)
		bad[i] ^= 0xff
		_, _ = plan.Apply(bytes.NewReader(bad), int64(len(bad)))
	}
	if _, err := plan.Apply(bytes.NewReader(old[:200]), 200); !errors.Is(err, ErrFormat) {
		t.Fatalf("half a content: %v", err)
	}
}

func FuzzPlan(f *testing.F) {
	old, new := pair(5, 40, 2)
	f.Add(Make(old, new).Encode())
	f.Add(Plan{}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		plan, err := Decode(b)
		if err != nil {
			return
		}
		again, err := Decode(plan.Encode())
		if err != nil || !bytes.Equal(again.Encode(), plan.Encode()) {
			t.Fatalf("a plan that does not come out as it went in: %v", err)
		}
		r, err := plan.Apply(bytes.NewReader(old), int64(len(old)))
		if err == nil && r.Size() > int64(len(old))+maxBytes {
			t.Fatalf("%d bytes", r.Size())
		}
	})
}

func FuzzSection(f *testing.F) {
	old, new := pair(5, 40, 2)
	f.Add(old, new)
	f.Add(old[100:], head)
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if len(a) > 1<<16 || len(b) > 1<<16 {
			t.Skip("more than a test needs")
		}
		if _, err := Make(a, b).Apply(bytes.NewReader(a), int64(len(a))); err != nil {
			t.Fatalf("a plan does not fit the content that it was made from: %v", err)
		}
	})
}
