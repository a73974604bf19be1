package main

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// What was used once is told after it was given back.
func TestPeakMemory(t *testing.T) {
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil || peakMemory() == 0 {
		t.Skipf("needs a kernel that tells a process's peak, and forgets it: %v", err)
	}
	peakFromHere()
	before := peakMemory()
	const size = 64 << 20
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON) // the runtime's may be there already
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < size; i += os.Getpagesize() {
		b[i] = 1
	}
	if err := unix.Munmap(b); err != nil {
		t.Fatal(err)
	}
	if n := peakMemory(); n < before+size/2 {
		t.Errorf("after %d bytes more the peak is %d, before it was %d", size, n, before)
	}
}
