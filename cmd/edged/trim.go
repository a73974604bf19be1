package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// settled is when the box has enrolled or taken up its apps, and rests.
const settled = time.Minute

// trim gives back, once, what starting needed and running does not: free heap, and the
// pages of the program's own file that were read at start (tables of types, set-up of
// libraries). The collector runs first, since it reads much of the program's tables.
func (b *box) trim(ctx context.Context) error {
	timer := time.NewTimer(settled)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return nil
	case <-timer.C:
	}
	debug.FreeOSMemory()
	if err := dropText(); err != nil {
		b.log.Debug("program text not given back", "err", err)
	}
	<-ctx.Done()
	return nil
}

// dropText has the kernel forget the pages of this program's read-only segments, in its
// page cache too, so that the memory is free and not only no longer counted here. Those
// that are wanted again are read one by one (MADV_RANDOM): with reading ahead, each of
// them would bring its fifteen neighbours back, and most of the program with them.
func dropText() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	for _, s := range readOnlySegments(maps, exe) {
		for _, advice := range []uintptr{unix.MADV_RANDOM, unix.MADV_PAGEOUT} {
			if _, _, errno := unix.Syscall(unix.SYS_MADVISE, s.from, s.to-s.from, advice); errno != 0 {
				return errno
			}
		}
	}
	return nil
}

type segment struct{ from, to uintptr }

// readOnlySegments finds the segments of a file in /proc/pid/maps (proc(5)) that cannot
// have been written: text and constants of a static program. Anything else is left
// alone, since giving back a written page would lose it.
func readOnlySegments(maps []byte, file string) (out []segment) {
	s := bufio.NewScanner(bytes.NewReader(maps))
	for s.Scan() {
		fields := strings.SplitN(s.Text(), " ", 6)
		if len(fields) < 6 || strings.TrimSpace(fields[5]) != file || fields[1] != "r-xp" && fields[1] != "r--p" {
			continue
		}
		var g segment
		if n, err := fmt.Sscanf(fields[0], "%x-%x", &g.from, &g.to); n == 2 && err == nil && g.from < g.to {
			out = append(out, g)
		}
	}
	return out
}
