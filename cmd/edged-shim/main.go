// Command edged-shim answers: which shim serves a new container of an app, without a
// whole shim being started to find out?
//
// containerd runs `SHIM … start` for every container and reads where the shim
// listens (runtime v2, "shim start"). For a container of a group that already has a
// shim the answer of containerd-shim-runc-v2 is always the same, but it takes the
// start of a Go program of 11 MB to give it. This one remembers the answer in the
// file that the bundle's annotation tributary.dev/warm-shim names and repeats it as
// long as somebody listens there. In every other case, and for every other command,
// containerd-shim-runc-v2 does the work; so a shim of any version of containerd serves.
//
// It imports nothing above syscall, for the shortest start.
//
// Exit codes: those of containerd-shim-runc-v2; 1 when that is not to be found.
package main

import "syscall"

const (
	realShim   = "containerd-shim-runc-v2"
	configFile = "config.json" // in the bundle, which is the working folder
	scheme     = "unix://"

	maxConfig = 1 << 20
	maxAnswer = 4 << 10
)

func main() { syscall.Exit(run()) }

func run() int {
	argv := words("/proc/self/cmdline")
	env := words("/proc/self/environ")
	path := find(realShim, argv, env)
	if path == "" || len(argv) == 0 {
		say(2, "edged-shim: "+realShim+" is not in the PATH\n")
		return 1
	}
	argv[0] = path
	note := ""
	if argv[len(argv)-1] == "start" {
		note = annotation(read(configFile, maxConfig))
	}
	if note == "" {
		syscall.Exec(path, argv, env)
		return 1
	}
	if answer := read(note, maxAnswer); warm(answer) && say(1, string(answer)) {
		return 0
	}
	return start(path, argv, env, note)
}

// warm reports whether an answer still holds. containerd 1 finds its shims again by a
// file that the shim writes; containerd 2 writes its own.
func warm(answer []byte) bool {
	address := socket(answer)
	if address == "" || !listens(address) {
		return false
	}
	return answer[0] == '{' || write("address", answer)
}

// start lets the real shim answer and notes what it says.
func start(path string, argv, env []string, note string) int {
	var p [2]int
	if syscall.Pipe2(p[:], syscall.O_CLOEXEC) != nil {
		return 1
	}
	pid, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{Env: env, Files: []uintptr{0, uintptr(p[1]), 2}})
	syscall.Close(p[1])
	if err != nil {
		say(2, "edged-shim: "+path+": "+err.Error()+"\n")
		return 1
	}
	answer := readAll(p[0], maxAnswer)
	var status syscall.WaitStatus
	for {
		_, err := syscall.Wait4(pid, &status, 0, nil)
		if err != syscall.EINTR {
			break
		}
	}
	said := say(1, string(answer))
	if !status.Exited() || status.ExitStatus() != 0 || !said {
		return max(1, status.ExitStatus())
	}
	if socket(answer) != "" {
		write(note, answer) // if not, the next start asks again
	}
	return 0
}
