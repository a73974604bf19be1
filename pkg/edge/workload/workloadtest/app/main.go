// Command app answers: what does a container see? It is the small server that the
// tests run in containers.
//
//	app serve [addr]            HTTP: /env /file?p= /dial?a= /id /caps /version /fail /burn?ms= /write?p=&v=
//	                            /orphan leaves one behind, /zombies lists the dead that nobody collected
//	app leave                   starts a process, says its id and ends before it
//	app exit CODE [AFTER]       ends with CODE, after a duration
//	app spew BYTES              writes so many bytes a second to stdout, for ever
//	app check URL               exit 0 when the URL answers 200
//	app cat FILE, app echo TEXT, app tty, app sleep
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	args := os.Args[1:]
	if len(args) == 0 {
		args = []string{"serve"}
	}
	switch args[0] {
	case "serve":
		serve(append(args, ":8080")[1])
	case "exit":
		if len(args) > 2 {
			d, _ := time.ParseDuration(args[2])
			time.Sleep(d)
		}
		code, _ := strconv.Atoi(args[1])
		os.Exit(code)
	case "spew":
		n, _ := strconv.Atoi(args[1])
		spew(n)
	case "check":
		resp, err := (&http.Client{Timeout: 2 * time.Second}).Get(args[1])
		if err != nil || resp.StatusCode != 200 {
			os.Exit(1)
		}
	case "cat":
		b, err := os.ReadFile(args[1])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Stdout.Write(b)
	case "echo":
		fmt.Println(strings.Join(args[1:], " "))
		io.Copy(os.Stdout, os.Stdin)
	case "tty":
		tty()
	case "leave":
		cmd := exec.Command("/proc/self/exe", "exit", "0", "100ms")
		if err := cmd.Start(); err != nil {
			os.Exit(1)
		}
		fmt.Print(cmd.Process.Pid)
	case "sleep":
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		fmt.Println("sleeping")
		<-stop
	}
}

func tty() {
	size := make(chan os.Signal, 1)
	signal.Notify(size, syscall.SIGWINCH)
	fmt.Println("ready")
	for {
		var ws [4]uint16
		syscall.Syscall(syscall.SYS_IOCTL, 0, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&ws)))
		if ws[1] == 123 {
			fmt.Println("size", ws[1], ws[0])
			return
		}
		select {
		case <-size:
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func spew(n int) {
	line := strings.Repeat("x", 99) + "\n"
	var done atomic.Int64
	go func() {
		for range time.Tick(time.Second) {
			fmt.Fprintln(os.Stderr, "written", done.Load())
		}
	}()
	start := time.Now()
	for {
		want := int64(time.Since(start).Seconds() * float64(n))
		for done.Load() < want {
			os.Stdout.WriteString(line)
			done.Add(int64(len(line)))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func zombies() (out string) {
	paths, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range paths {
		if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), ") Z ") {
			out += filepath.Base(filepath.Dir(path)) + "\n"
		}
	}
	return out
}

func serve(addr string) {
	var failing atomic.Bool
	mux := http.NewServeMux()
	text := func(path string, f func(r *http.Request) (string, error)) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			s, err := f(r)
			if err != nil {
				http.Error(w, err.Error(), 500)
				return
			}
			io.WriteString(w, s)
		})
	}
	text("/env", func(*http.Request) (string, error) { return strings.Join(os.Environ(), "\n"), nil })
	text("/version", func(*http.Request) (string, error) { return os.Getenv("VERSION"), nil })
	text("/file", func(r *http.Request) (string, error) {
		b, err := os.ReadFile(r.FormValue("p"))
		return string(b), err
	})
	text("/write", func(r *http.Request) (string, error) {
		return "", os.WriteFile(r.FormValue("p"), []byte(r.FormValue("v")), 0o644)
	})
	text("/id", func(*http.Request) (string, error) {
		groups, err := os.Getgroups()
		host, _ := os.Hostname()
		return fmt.Sprint(os.Getuid(), os.Getgid(), groups, host), err
	})
	text("/dial", func(r *http.Request) (string, error) {
		resp, err := (&http.Client{Timeout: 2 * time.Second}).Get("http://" + r.FormValue("a"))
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return string(b), err
	})
	text("/burn", func(r *http.Request) (string, error) {
		ms, _ := strconv.Atoi(r.FormValue("ms"))
		for end := time.Now().Add(time.Duration(ms) * time.Millisecond); time.Now().Before(end); {
		}
		return "", nil
	})
	text("/orphan", func(*http.Request) (string, error) {
		out, err := exec.Command("/proc/self/exe", "leave").Output()
		return string(out), err
	})
	text("/zombies", func(*http.Request) (string, error) { return zombies(), nil })
	text("/fail", func(*http.Request) (string, error) { failing.Store(true); return "", nil })
	text("/unshare", func(*http.Request) (string, error) { return "", syscall.Unshare(syscall.CLONE_NEWUSER) })
	text("/mount", func(*http.Request) (string, error) { return "", syscall.Mount("tmpfs", "/tmp", "tmpfs", 0, "") })
	text("/healthy", func(*http.Request) (string, error) {
		if failing.Load() || os.Getenv("SICK") != "" {
			return "", fmt.Errorf("sick")
		}
		return "ok", nil
	})
	l, err := net.Listen("tcp", addr)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("listening on", addr)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go http.Serve(l, mux)
	<-stop
	fmt.Println("stopping")
}
