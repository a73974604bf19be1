// Package bonding answers: do all ports of this box's bonds carry?
//
// The kernel tells in /proc/net/bonding, a file for each bond (drivers/net/bonding/bond_procfs.c).
package bonding

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// dir is where the kernel tells, below the root.
const dir = "proc/net/bonding"

// Bounds of what is read.
const (
	maxBonds = 64
	maxFile  = 64 << 10
)

// Watch keeps since when a bond has lost ports. Its methods may be called from any goroutine.
type Watch struct {
	// Root is a file system rooted at "/".
	Root fs.FS
	Now  func() time.Time

	mu    sync.Mutex
	since time.Time
}

// Warnings is bond-degraded, where a port of a bond does not carry.
func (w *Watch) Warnings() []api.Warning {
	words := Look(w.Root)
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(words) == 0 {
		w.since = time.Time{}
		return nil
	}
	if w.since.IsZero() {
		w.since = w.Now()
	}
	return []api.Warning{{Name: "bond-degraded", Severity: api.Degraded, Since: w.since.Unix(), Message: strings.Join(words, "; "),
		Remedy: "look for the cable of the port at both ends, and whether the other end speaks 802.3ad there"}}
}

// Look says which ports of which bonds do not carry, and why.
func Look(root fs.FS) (words []string) {
	entries, err := fs.ReadDir(root, dir)
	if err != nil {
		return nil // there are no bonds
	}
	for _, e := range entries[:min(len(entries), maxBonds)] {
		b, err := fs.ReadFile(root, dir+"/"+e.Name())
		if err == nil && len(b) <= maxFile {
			words = append(words, faults(e.Name(), string(b))...)
		}
	}
	return words
}

// faults reads what the kernel says of one bond: of the bond itself first, then of each port.
func faults(bond, text string) (words []string) {
	var agreed, port string // the number of the links that the other end agreed on
	down, apart := []string{}, []string{}
	ports := 0
	for line := range strings.Lines(text) {
		what, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch {
		case what == "Slave Interface":
			port = value
			ports++
		case what == "Aggregator ID" && port == "":
			agreed = value
		case what == "MII Status" && port != "" && value != "up":
			down = append(down, port)
		case what == "Aggregator ID" && value != agreed && !slices.Contains(down, port):
			apart = append(apart, port)
		}
	}
	if ports == 0 && text != "" {
		words = append(words, bond+" has no ports")
	}
	if len(down) > 0 {
		words = append(words, fmt.Sprintf("%s: no connection at %s", bond, strings.Join(down, ", ")))
	}
	if len(apart) > 0 {
		words = append(words, fmt.Sprintf("%s: the other end does not take %s into it", bond, strings.Join(apart, ", ")))
	}
	return words
}
