package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Memory is what a set of processes holds, in bytes.
type Memory struct {
	// PSS is the proportional set size: shared pages divided among their users.
	PSS int64
	// Anonymous is memory without a file behind it.
	Anonymous int64
	Processes int
}

// Footprint measures the box's edged with all its helpers (the loggers), and the box's
// containerd. Shims belong to neither.
func (b *Box) Footprint() (edged, containerd Memory, err error) {
	pids := []int{b.EdgedPID()}
	for _, pid := range descendants(b.sock()) {
		if program(pid) == "edged-log" {
			pids = append(pids, pid)
		}
	}
	if edged, err = MemoryOf(pids...); err != nil {
		return
	}
	containerd, err = MemoryOf(b.containerd.cmd.Process.Pid)
	return
}

// MemoryOf measures processes of this host.
func MemoryOf(pids ...int) (Memory, error) {
	var sum Memory
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return sum, err
		}
		m := parseRollup(string(b))
		sum.PSS += m.PSS
		sum.Anonymous += m.Anonymous
		sum.Processes++
	}
	return sum, nil
}

// parseRollup reads proc_pid_smaps(5)'s rollup; its figures are in kB of 1024 bytes.
func parseRollup(text string) (m Memory) {
	for line := range strings.Lines(text) {
		var kb int64
		name, rest, _ := strings.Cut(line, ":")
		if _, err := fmt.Sscanf(strings.TrimSpace(rest), "%d kB", &kb); err != nil {
			continue
		}
		switch name {
		case "Pss":
			m.PSS = kb << 10
		case "Anonymous":
			m.Anonymous = kb << 10
		}
	}
	return m
}

// program is the base name of what a process was started as.
func program(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	path, _, _ := strings.Cut(string(b), "\x00")
	return filepath.Base(path)
}
