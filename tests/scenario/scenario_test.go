// Package scenario answers: does the whole tree hold when parts of it are taken away?
//
// Every test raises a real tree with tests/lab. They need root and the built programs;
// `make test` gives both.
package scenario

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/story"
	"tributary.dev/tributary/tests/wait"
)

var labs atomic.Int32

// testWriter sends the story's lines to the test's log, whole.
type testWriter struct {
	t    *testing.T
	line []byte
}

func (w *testWriter) Write(p []byte) (int, error) {
	w.line = append(w.line, p...)
	for {
		i := bytes.IndexByte(w.line, '\n')
		if i < 0 {
			return len(p), nil
		}
		w.t.Log(string(w.line[:i]))
		w.line = w.line[i+1:]
	}
}

// raise makes a lab and a story on it, and takes both down at the end. The logs stay
// when the test failed.
func raise(t *testing.T, boxes []lab.BoxSpec, coredArgs ...string) *story.Story {
	t.Helper()
	return raiseWith(t, lab.Spec{Boxes: boxes, CoredArgs: coredArgs})
}

// raiseWith does so for a Spec, whose Name, Bin and Dir it chooses.
func raiseWith(t *testing.T, spec lab.Spec) *story.Story {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a minute or more: not in the short form")
	}
	if err := lab.Root(); err != nil {
		t.Skip(err)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	bin := cmp.Or(os.Getenv("TRIBUTARY_BIN"), filepath.Join(root, "bin"))
	if _, err := os.Stat(filepath.Join(bin, "edged")); err != nil {
		t.Skip("needs the programs: run make build")
	}
	dir, err := os.MkdirTemp("", "tributary-"+t.Name()+"-")
	if err != nil {
		t.Fatal(err)
	}
	spec.Name, spec.Bin, spec.Dir = fmt.Sprintf("ts%d-%d", os.Getpid()%10000, labs.Add(1)), bin, dir
	spec.CoredArgs = append(spec.CoredArgs, story.CoredArgs...)
	l, err := lab.New(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	told := &story.Story{Lab: l}
	t.Cleanup(func() {
		if t.Failed() {
			tellHealth(t, told)
		}
		if err := l.Close(); err != nil {
			t.Errorf("taking the lab down: %v", err)
		}
		if t.Failed() {
			t.Logf("the boxes' logs are in %s", dir)
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	var fields []string
	for _, b := range spec.Boxes {
		if b.Role == "field" {
			fields = append(fields, b.Name)
		}
	}
	return &story.Story{Lab: l, Root: root, Out: &testWriter{t: t}, Fields: fields, Wait: wait.Limit}
}

// tellHealth prints what the core last heard of each device: a box whose disk is full,
// for one, cannot write its own log.
func tellHealth(t *testing.T, s *story.Story) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	devices, err := s.Devices(ctx)
	if err != nil {
		t.Logf("the core does not say how the devices are: %v", err)
	}
	for name, d := range devices {
		t.Logf("%s: online %v, health %+v", name, d.Status.Online, d.Status.Health)
	}
}

// TestStory plays the demo.
func TestStory(t *testing.T) {
	s := raise(t, lab.Tree())
	if err := s.Play(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// must fails the test at the first error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// up raises the tree and deploys version 1.
func up(ctx context.Context, t *testing.T, s *story.Story) {
	t.Helper()
	must(t, s.Raise(ctx))
	must(t, s.Deploy(ctx))
}
