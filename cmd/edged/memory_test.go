package main

import (
	"runtime"
	"testing"
)

// What was used once is told after it was given back.
func TestPeakMemory(t *testing.T) {
	peakFromHere()
	before := peakMemory()
	if before == 0 {
		t.Skip("the kernel does not tell a process's peak")
	}
	const size = 64 << 20
	b := make([]byte, size)
	for i := range b {
		b[i] = 1
	}
	runtime.KeepAlive(b)
	if n := peakMemory(); n < before+size/2 {
		t.Errorf("after %d bytes more the peak is %d, before it was %d", size, n, before)
	}
}
