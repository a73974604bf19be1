//go:build linux

// Command guest answers: what runs in a machine that only has to show that it runs?
//
// It is the first process of a test's machine: it loads the modules it finds, gives its
// first card the address of the kernel's command line (guest.ip=), says "guest: ready" and
// obeys lines on the console: `dial ADDR TEXT`, `port NAME`, `say TEXT`, `off`, `reboot`.
// It answers on TCP port 7 with what it is sent.
package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: runs as the first process of a test's machine only")
		os.Exit(2)
	}
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		_ = os.MkdirAll(m[1], 0o755)
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			say("mount %s: %v", m[1], err)
		}
	}
	loadModules()
	if err := network(); err != nil {
		say("network: %v", err)
	}
	say("ready")
	console := bufio.NewScanner(os.Stdin)
	for console.Scan() {
		if err := obey(strings.Fields(console.Text())); err != nil {
			say("error: %v", err)
		}
	}
	select {}
}

func say(format string, args ...any) { fmt.Printf("guest: "+format+"\n", args...) }

// loadModules tries every module until none is taken any more: that sorts them by need.
func loadModules() {
	files, _ := filepath.Glob("/modules/*")
	for progress := true; progress; {
		progress = false
		for i, name := range files {
			if name == "" {
				continue
			}
			f, err := os.Open(name)
			if err != nil {
				continue
			}
			err = unix.FinitModule(int(f.Fd()), "", 0)
			_ = f.Close()
			if err == nil || err == unix.EEXIST {
				files[i], progress = "", true
			}
		}
	}
	for _, name := range files {
		if name != "" {
			say("module %s does not load", name)
		}
	}
}

// network brings lo and the first card up, with the address of guest.ip=.
func network() error {
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	_, rest, ok := strings.Cut(string(cmdline), "guest.ip=")
	if !ok {
		return nil
	}
	addr, err := netlink.ParseAddr(strings.Fields(rest)[0])
	if err != nil {
		return err
	}
	card, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(card, addr); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(card); err != nil {
		return err
	}
	l, err := net.Listen("tcp", ":7")
	if err != nil {
		return err
	}
	go echo(l)
	return nil
}

func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

func obey(words []string) error {
	if len(words) == 0 {
		return nil
	}
	rest := words[1:]
	switch {
	case words[0] == "say":
		say("%s", strings.Join(rest, " "))
	case words[0] == "off":
		return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	case words[0] == "reboot":
		return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	case words[0] == "dial" && len(rest) == 2:
		return dial(rest[0], rest[1])
	case words[0] == "port" && len(rest) == 1:
		return serve(rest[0])
	default:
		return fmt.Errorf("what is %q?", words)
	}
	return nil
}

// dial sends a text to a TCP port and says what comes back.
func dial(addr, text string) error {
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, text+"\n"); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err
	}
	say("got %s", strings.TrimSpace(line))
	return nil
}

// serve echoes what the virtio-serial port of the name is sent.
func serve(name string) error {
	dirs, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
	for _, d := range dirs {
		if b, err := os.ReadFile(d); err != nil || strings.TrimSpace(string(b)) != name {
			continue
		}
		f, err := os.OpenFile("/dev/"+filepath.Base(filepath.Dir(d)), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		go func() {
			buf := make([]byte, 4096)
			for {
				n, err := f.Read(buf)
				if err != nil || n == 0 { // nobody is connected
					time.Sleep(20 * time.Millisecond)
					continue
				}
				_, _ = f.Write(buf[:n])
			}
		}()
		say("serving %s", name)
		return nil
	}
	return fmt.Errorf("no port %s", name)
}
