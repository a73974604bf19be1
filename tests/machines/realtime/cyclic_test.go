//go:build linux

package main

import "testing"

func TestReadLate(t *testing.T) {
	said := "# /dev/cpu_dma_latency set to 0us\n# Histogram\n000000 000000\n000007 000002\n000009 000006\n000040 000001\n# Total: 000000009\n# Min Latencies: 00007\n# Avg Latencies: 00012\n# Max Latencies: 61234\n# Histogram Overflows: 00001\n"
	if l, err := readLate([]byte(said)); err != nil || l.Median != 9 || l.Max != 61234 {
		t.Errorf("%+v %v", l, err)
	}
	if l, err := readLate([]byte("Unable to change scheduling policy!\n")); err == nil {
		t.Errorf("%+v", l)
	}
}
