package registry

import (
	"os"
	"sync"
	"syscall"
)

// turns lets many write, or one collect: in this process by a mutex, among the processes that
// share the folder by a lock of a file, which ends with its process.
type turns struct {
	path string
	own  sync.RWMutex

	mu      sync.Mutex
	writers int
	file    *os.File // locked for all writers of this process, or for its collection
}

// lock locks the file, if it has to.
func (t *turns) lock(how int) bool {
	f, err := os.OpenFile(t.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return false
	}
	if err := syscall.Flock(int(f.Fd()), how); err != nil {
		f.Close()
		return false
	}
	t.file = f
	return true
}

func (t *turns) unlock() {
	t.file.Close() // ends the lock, whatever it says
	t.file = nil
}

// enter counts a writer in; the first locks the file.
func (t *turns) enter(how int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.writers == 0 && !t.lock(how) {
		return false
	}
	t.writers++
	return true
}

// tryWrite lets one more write unless somebody collects.
func (t *turns) tryWrite() bool {
	if !t.own.TryRLock() {
		return false
	}
	if t.enter(syscall.LOCK_SH | syscall.LOCK_NB) {
		return true
	}
	t.own.RUnlock()
	return false
}

// write lets one more write, once nobody collects. It is false where the folder cannot be locked.
func (t *turns) write() bool {
	t.own.RLock()
	if t.enter(syscall.LOCK_SH) {
		return true
	}
	t.own.RUnlock()
	return false
}

// written counts a writer out.
func (t *turns) written() {
	t.mu.Lock()
	if t.writers--; t.writers == 0 {
		t.unlock()
	}
	t.mu.Unlock()
	t.own.RUnlock()
}

// tryCollect lets one collect unless anybody writes.
func (t *turns) tryCollect() bool {
	if !t.own.TryLock() {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lock(syscall.LOCK_EX | syscall.LOCK_NB) {
		return true
	}
	t.own.Unlock()
	return false
}

// collected ends that.
func (t *turns) collected() {
	t.mu.Lock()
	t.unlock()
	t.mu.Unlock()
	t.own.Unlock()
}
