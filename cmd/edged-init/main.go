// Command edged-init answers: who collects the orphans of a container whose own first
// process does not?
//
// A service with init: true gets it mounted at /dev/init, as process 1. It runs the
// service's program, passes every signal on to it, collects whatever ends, and ends
// with it. Arguments: the program and its own; a name without a slash is looked up in
// the container's PATH.
//
// It imports no more than it needs to hear signals, since one runs per container.
//
// Exit codes: the program's own; 128+N when signal N ended it; 126 when it is there but
// cannot be run, 127 when there is none (POSIX.1-2017, XCU 2.8.2); 2 without arguments.
package main

import (
	"os"
	"os/signal"
	"runtime"
	"syscall"
)

func main() {
	// Its threads count against the container's limit of processes: 6 this way, and more
	// with each processor otherwise.
	runtime.GOMAXPROCS(1)
	os.Exit(run(os.Args[1:]))
}

func run(argv []string) int {
	if len(argv) == 0 {
		say("edged-init: no program is given\n")
		return 2
	}
	// Before the program exists, so that no signal is lost in between.
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	pid, err := start(argv)
	if err != nil {
		say("edged-init: " + argv[0] + ": " + err.Error() + "\n")
		if err == syscall.ENOENT {
			return 127
		}
		return 126
	}
	go forward(signals, pid)
	return reap(pid)
}

// forward passes on what was sent to process 1, but what concerns itself alone.
func forward(signals <-chan os.Signal, pid int) {
	for s := range signals {
		n, ok := s.(syscall.Signal)
		// The runtime wakes its own threads with SIGURG.
		if ok && n != syscall.SIGCHLD && n != syscall.SIGURG && n != syscall.SIGPIPE {
			_ = syscall.Kill(pid, n)
		}
	}
}

// reap collects every process that ends, until the program does.
func reap(program int) int {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			say("edged-init: wait: " + err.Error() + "\n")
			return 1
		case pid == program && status.Exited():
			return status.ExitStatus()
		case pid == program && status.Signaled():
			return 128 + int(status.Signal())
		}
	}
}

// start runs the program with this one's own environment, folder and files.
func start(argv []string) (pid int, err error) {
	attr := &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}}
	err = syscall.ENOENT
	for _, path := range candidates(argv[0], os.Getenv("PATH")) {
		pid, perr := syscall.ForkExec(path, argv, attr)
		if perr == nil {
			return pid, nil
		}
		if perr != syscall.ENOENT && perr != syscall.ENOTDIR {
			err = perr // it is there; what is further down the PATH may still do
		}
	}
	return 0, err
}

// candidates are where a program may lie (POSIX.1-2017, XBD 8.3, PATH).
func candidates(name, list string) (out []string) {
	for i := range len(name) {
		if name[i] == '/' {
			return []string{name}
		}
	}
	for from, to := 0, 0; to <= len(list); to++ {
		if to < len(list) && list[to] != ':' {
			continue
		}
		dir := list[from:to]
		if dir == "" {
			dir = "."
		}
		out = append(out, dir+"/"+name)
		from = to + 1
	}
	return out
}

func say(text string) { _, _ = os.Stderr.WriteString(text) }
