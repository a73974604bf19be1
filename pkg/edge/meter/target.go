// Package meter answers: what did each container use since the last record?
//
// Counters are read from cgroup v1 or v2 and from the container's own network
// namespace; memory is integrated between samples. What was read is kept in a
// small durable blob, so that the deltas are exact across restarts of edged and
// of containers: a counter is known by the incarnation (one start of one
// container) that it belongs to, and the use of an interval stays pending, byte
// for byte the same, until its record is known to be durable.
package meter

import "time"

// Target is one incarnation of a container: one start of its process.
type Target struct {
	// ID is unique to this start of this container, for ever. Counters of one ID
	// only grow; a new start has a new ID and counts from zero.
	ID      string
	App     string
	Service string
	// Cgroup is the path below the hierarchy's root, e.g. "/tributary/web-nginx-1a2b".
	Cgroup string
	// NetNS is the path of the container's own network namespace; empty when it
	// has none of its own (host network), and then no network bytes count.
	NetNS string
	// Started is when the process started, by the wall clock.
	Started time.Time
	// Ended is when it ended; zero while it runs.
	Ended time.Time
}

// Reading is a target's counters since its start, and its memory now.
type Reading struct {
	CPUMicros uint64
	// MemoryBytes is the working set: what the cgroup holds less file cache that
	// can be given back without cost (total_inactive_file, inactive_file).
	MemoryBytes uint64
	// RxBytes and TxBytes are seen from inside the container, loopback left out.
	RxBytes uint64
	TxBytes uint64
	Pids    uint64
}

// Reader reads counters. A part that is gone (cgroup or namespace removed) reads
// as zero with no error: the meter never lets a counter go back.
type Reader interface {
	Read(t Target) (Reading, error)
}

// Store keeps one small blob. Save is durable when it returns. Load returns nil
// when nothing was saved.
type Store interface {
	Load() ([]byte, error)
	Save([]byte) error
}
