package boot

import (
	"bufio"
	"bytes"
	"os"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lastGrace is how long what is left of the apps gets after SIGTERM.
const lastGrace = 10 * time.Second

// down ends the box in good order: the agent first, so that nothing is started again; then
// the apps; then the disks. The watchdog goes on being fed for two minutes at most, so that
// a way down that hangs ends as well.
func (b *booter) down(r request) {
	b.out.hush(false)
	b.say("%s: %s", r.Do, r.Reason)
	over := make(chan struct{})
	go func() {
		for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); {
			b.feed()
			select {
			case <-over:
				return
			case <-time.After(time.Second):
			}
		}
	}()
	b.mu.Lock()
	children := b.children
	b.mu.Unlock()
	for _, stage := range []func(*child) bool{
		func(c *child) bool { return c.name == "agent" || c.tty != "" },
		func(c *child) bool { return true },
	} {
		var wg sync.WaitGroup
		for _, c := range children {
			if stage(c) {
				wg.Go(c.end)
			}
		}
		wg.Wait()
		if stage(&child{}) {
			break
		}
		killAll(syscall.SIGTERM, children, lastGrace)
	}
	killAll(syscall.SIGKILL, nil, 5*time.Second)
	b.saveClock()
	b.unmountAll()
	close(over)
	unix.Sync()
	how := unix.LINUX_REBOOT_CMD_RESTART
	if r.Do == doPowerOff {
		how = unix.LINUX_REBOOT_CMD_POWER_OFF
	}
	b.say("the end of this boot")
	err := unix.Reboot(how)
	b.say("%s: %v", r.Do, err)
	for { // process 1 must not end; the watchdog, unfed now, does what the kernel would not
		unix.Pause()
	}
}

// killAll signals every process but process 1, the kernel's threads and spared children,
// and waits until they are gone or the time is over.
func killAll(sig syscall.Signal, spare []*child, most time.Duration) {
	spared := map[int]bool{1: true}
	for _, c := range spare {
		spared[c.status().PID] = true
	}
	for deadline := time.Now().Add(most); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		left := 0
		for _, pid := range userProcesses() {
			if !spared[pid] {
				left++
				if sig != 0 {
					_ = syscall.Kill(pid, sig)
				}
			}
		}
		if left == 0 {
			return
		}
		if sig == syscall.SIGTERM {
			sig = 0 // once is enough; now wait
		}
	}
}

// userProcesses are those with a command line of their own: the kernel's threads have none.
func userProcesses() (out []int) {
	list, _ := os.ReadDir("/proc")
	for _, e := range list {
		pid := 0
		for _, r := range e.Name() {
			if r < '0' || r > '9' {
				pid = -1
				break
			}
			pid = pid*10 + int(r-'0')
		}
		if pid <= 1 {
			continue
		}
		// A zombie has no command line either.
		if line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline"); err == nil && len(line) > 0 {
			out = append(out, pid)
		}
	}
	return out
}

// unmountAll takes down what lies on the disks, the deepest first, and makes read-only what
// will not go.
func (b *booter) unmountAll() {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		b.say("unmounting: %v", err)
		return
	}
	for _, dir := range diskMounts(text) {
		if err := unix.Unmount(dir, 0); err != nil {
			_ = unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
			b.say("%s: %v", dir, err)
		}
	}
}

// diskMounts lists, deepest and newest first, the mounts of /proc/self/mountinfo (proc(5))
// that hold on to a disk: STATE, DATA, CONFIG and what containerd mounts out of them.
func diskMounts(text []byte) (out []string) {
	s := bufio.NewScanner(bytes.NewReader(text))
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) < 5 {
			continue
		}
		dir := unescape(f[4])
		for _, top := range []string{stateDir, dataDir, "/config", "/run/containerd", "/run/edged", "/run/netns"} {
			if dir == top || strings.HasPrefix(dir, top+"/") {
				out = append(out, dir)
			}
		}
	}
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 { // the newest first
		out[i], out[j] = out[j], out[i]
	}
	sort.SliceStable(out, func(i, j int) bool { return strings.Count(out[i], "/") > strings.Count(out[j], "/") })
	return out
}

// unescape undoes the octal escapes of blanks and backslashes.
func unescape(s string) string {
	for code, char := range map[string]string{`\040`: " ", `\011`: "\t", `\012`: "\n", `\134`: `\`} {
		s = strings.ReplaceAll(s, code, char)
	}
	return s
}
