package state

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
)

// Files that were allocated ahead take writes for a long time on a disk that is full
// for everybody else: the apps' volumes, their logs, the next image. So the disk itself
// is asked, and not only the outcome of this store's own writes.

// roomWanted is how many bytes of a file system of that size should be free: a
// hundredth, within 1 MiB and 64 MiB.
func roomWanted(total uint64) uint64 { return min(max(total/100, 1<<20), 64<<20) }

// tight decides whether the disk counts as full. One that does must have half as much
// again before it no longer does, so that the warning does not flutter.
func tight(free, total uint64, was bool) bool {
	want := roomWanted(total)
	if was {
		want += want / 2
	}
	return free < want
}

// lookAtRoom asks the file system that holds the store.
func (s *Store) lookAtRoom() {
	var fs unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(s.cfg.Path), &fs); err != nil {
		return
	}
	unit := uint64(fs.Bsize)
	free, total := fs.Bavail*unit, fs.Blocks*unit
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = free
	was := !s.tight.IsZero()
	switch now := tight(free, total, was); {
	case now && !was:
		s.tight = s.cfg.Now()
		s.cfg.Log.Error("the disk is full", "path", s.cfg.Path, "free", free)
	case was && !now:
		s.tight = time.Time{}
		s.cfg.Log.Info("the disk has room again", "path", s.cfg.Path, "free", free)
	}
}

// allocate gives the whole of the file blocks on the disk. bbolt extends it ahead of need
// without any, and each commit writes pages that were free: on a disk that others
// filled, even a commit that changes one number would fail. Allocated once, the free
// pages serve for as long as the content does not grow.
func (s *Store) allocate() {
	f, err := os.OpenFile(s.cfg.Path, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer f.Close()
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil || st.Blocks*512 >= st.Size {
		return
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, st.Size); err != nil {
		s.cfg.Log.Debug("the state file is not allocated ahead", "err", err) // next time
	}
}

// fullWarning is the warning disk-full, where it applies. s.mu is held.
func (s *Store) fullWarning() (w api.Warning, ok bool) {
	w = api.Warning{Name: "disk-full", Severity: api.Critical}
	switch {
	case !s.full.IsZero():
		w.Since, w.Message = s.full.Unix(), "no room to write state; apps go on running; free space on the data disk"
	case !s.tight.IsZero():
		w.Since, w.Message = s.tight.Unix(), fmt.Sprintf("only %d kB of the data disk are free; apps go on running; free space on it", s.free>>10)
	default:
		return w, false
	}
	return w, true
}
