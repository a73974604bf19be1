package guard

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// holdMost is how long another writer of the state is waited for: each needs milliseconds, and process 1 must not hang with one
// that does.
const holdMost = 2 * time.Second

// Hold keeps others from writing the update's state at path until free is called: the agent decides by what it read, and process
// 1 and the console write into the same file. Where no lock can be had it goes on without.
func Hold(path string) (free func()) {
	f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return func() {}
	}
	for until := time.Now().Add(holdMost); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || time.Now().After(until) {
			return func() { _ = f.Close() } // and with it the lock
		}
	}
}
