package main

import (
	"bytes"
	"fmt"
	"os"
)

// peakMemory is the most memory that this process ever had at once, in bytes of what is in RAM; 0 where the kernel does
// not tell.
func peakMemory() uint64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, after, _ := bytes.Cut(status, []byte("VmHWM:"))
	var kiB uint64
	if _, err := fmt.Sscanf(string(after), "%d kB", &kiB); err != nil {
		return 0
	}
	return kiB << 10
}

// peakFromHere forgets the most there ever was: what peakMemory says next is of what comes.
func peakFromHere() { _ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) }
