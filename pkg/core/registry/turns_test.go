package registry

import (
	"path/filepath"
	"testing"
)

// Two processes on one folder: many write, one collects, and never both. Each has its own
// description of the file, so two of one process stand for two.
func TestTurnsAmongProcesses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	a, b := &turns{path: path}, &turns{path: path}
	for _, one := range []*turns{a, a, b} {
		if !one.tryWrite() {
			t.Fatal("many do not write")
		}
	}
	if a.tryCollect() || b.tryCollect() {
		t.Error("somebody collects while others write")
	}
	a.written()
	b.written()
	if b.tryCollect() {
		t.Error("the other process writes still")
	}
	a.written()
	if !b.tryCollect() {
		t.Fatal("nobody writes, and nobody may collect")
	}
	if a.tryWrite() || b.tryWrite() || a.tryCollect() {
		t.Error("somebody writes while another collects")
	}
	done := make(chan bool)
	go func() { done <- a.write() }()
	b.collected()
	if !<-done {
		t.Error("who waited may not write")
	}
	a.written()
	if !a.tryCollect() {
		t.Error("all are done, and nobody may collect")
	}
	a.collected()
}
