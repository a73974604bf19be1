package wipe

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
)

var errCut = errors.New("the power is cut")

// plug is cut after so many writes, the last of which may be torn.
type plug struct{ left int }

// medium is a partition in memory.
type medium struct {
	b    []byte
	plug *plug
}

func (m *medium) ReadAt(p []byte, at int64) (int, error) {
	return bytes.NewReader(m.b).ReadAt(p, at)
}

func (m *medium) WriteAt(p []byte, at int64) (int, error) {
	if m.plug.left == 0 {
		n := copy(m.b[at:], p[:len(p)/2/512*512])
		return n, errCut
	}
	m.plug.left--
	return copy(m.b[at:], p), nil
}

func (m *medium) Sync() error {
	if m.plug.left == 0 {
		return errCut
	}
	return nil
}

func full(size int, plug *plug) *medium {
	m := &medium{b: make([]byte, size), plug: plug}
	r := rand.NewChaCha8([32]byte{1})
	if _, err := io.ReadFull(r, m.b); err != nil {
		panic(err)
	}
	copy(m.b, "LUKS\xba\xbe")
	copy(m.b[slots/2:], "SKUL\xba\xbe")
	return m
}

// TestCutAnywhere: after a cut at any write, either nothing was done, or the keys are gone
// and whoever looks next knows to go on, and gets through.
func TestCutAnywhere(t *testing.T) {
	p := &plug{}
	before := full(256<<10, p) // a small one: the whole head is wiped at each of the cuts
	through := false
	for n := 0; !through; n++ {
		if n > 100 {
			t.Fatal("it never gets through")
		}
		state, data := &medium{bytes.Clone(before.b), p}, &medium{bytes.Clone(before.b), p}
		p.left = n
		run := func() error { return Run(state, data, int64(len(state.b)), int64(len(data.b)), func(string) {}) }
		err := run()
		through = err == nil
		p.left = 1000
		pending, perr := Pending(state)
		if perr != nil {
			t.Fatal(perr)
		}
		if !through {
			if !bytes.Equal(state.b, before.b) && bytes.Equal(state.b[slots:slots+512], before.b[slots:slots+512]) {
				t.Fatalf("cut at write %d: something was destroyed before the keys", n)
			}
			if !bytes.Equal(data.b, before.b) && bytes.Equal(state.b[slots:], before.b[slots:]) {
				t.Fatalf("cut at write %d: DATA went before the keys", n)
			}
			blank := len(bytes.Trim(state.b, "\x00")) == 0
			if !pending && !bytes.Equal(state.b, before.b) && !blank {
				t.Fatalf("cut at write %d: nobody goes on", n)
			}
			if pending {
				if err := run(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if pending || through {
			for name, m := range map[string]*medium{"STATE": state, "DATA": data} {
				if len(bytes.Trim(m.b, "\x00")) != 0 {
					t.Fatalf("cut at write %d: %s is not empty", n, name)
				}
			}
			if again, _ := Pending(state); again {
				t.Fatalf("cut at write %d: it never ends", n)
			}
		}
	}
}

// TestOnlyTheHead: a large disk takes no longer than a small one.
func TestOnlyTheHead(t *testing.T) {
	p := &plug{left: 1000}
	state, data := full(end+4096, p), full(end+4096, p)
	tail := bytes.Clone(state.b[end:])
	if err := Run(state, data, int64(len(state.b)), int64(len(data.b)), func(string) {}); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*medium{state, data} {
		if !bytes.Equal(m.b[:end], make([]byte, end)) || !bytes.Equal(m.b[end:], tail) {
			t.Error("not the head and nothing else")
		}
	}
}

func TestNothingIsPending(t *testing.T) {
	for _, m := range []*medium{full(end, &plug{}), {b: make([]byte, end)}} {
		if pending, err := Pending(m); pending || err != nil {
			t.Error(pending, err)
		}
	}
	if _, err := Pending(&medium{b: make([]byte, 100)}); err == nil {
		t.Error("a partition that is none")
	}
}
