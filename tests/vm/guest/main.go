//go:build linux

// Command guest answers: what runs in a machine that only has to show that it runs?
//
// It is the first process of a test's machine: it loads the modules it finds, gives its
// first card the address of the kernel's command line (guest.ip=), says "guest: ready" and
// obeys lines on the console: `dial ADDR TEXT PATIENCE`, `scan ADDR`, `probe ADDR UDP-PORT...`, `serve`, `say TEXT`, `off`, `reboot`.
// It answers on TCP port 7 with what it is sent.
package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/pkg/edge/boot/hostport"
	"tributary.dev/tributary/pkg/efi"
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

// writeVariable writes /NAME to efivarfs: NAME-GUID, and first in it the attributes, as everywhere there.
func writeVariable(name string) error {
	b, err := os.ReadFile("/" + name)
	if err != nil {
		return err
	}
	if err := unix.Mount("efivarfs", "/sys/firmware/efi/efivars", "efivarfs", 0, ""); err != nil && err != unix.EBUSY {
		return err
	}
	short, vendor, _ := strings.Cut(filepath.Base(name), "-")
	id, err := gpt.Parse(vendor)
	if err != nil {
		return err
	}
	if err := efi.FS("/sys/firmware/efi/efivars").Set(short, id, binary.LittleEndian.Uint32(b), b[4:]); err != nil {
		return err
	}
	say("%s is written", short)
	return nil
}

func obey(words []string) error {
	if len(words) == 0 {
		return nil
	}
	rest := words[1:]
	switch {
	case words[0] == "say":
		say("%s", strings.Join(rest, " "))
	case words[0] == "show" && len(rest) == 1:
		text, err := os.ReadFile(rest[0])
		say("%s: %s", rest[0], strings.TrimSpace(string(text[:min(len(text), 4096)])))
		return err
	case words[0] == "module" && len(rest) == 1: // does the kernel take it? One that is loaded already is there, if it is taken
		f, err := os.Open("/" + rest[0])
		if err != nil {
			return err
		}
		defer f.Close()
		err = unix.FinitModule(int(f.Fd()), "", 0)
		if err == nil || err == unix.EEXIST {
			say("%s is taken", rest[0])
			return nil
		}
		say("%s is refused: %v", rest[0], err)
	case words[0] == "security" && len(rest) == 1: // a file of the kernel's securityfs, in base64
		const dir = "/sys/kernel/security"
		if err := unix.Mount("securityfs", dir, "securityfs", 0, ""); err != nil && err != unix.EBUSY {
			return err
		}
		b, err := os.ReadFile(filepath.Join(dir, rest[0]))
		say("%s: %s.", rest[0], base64.StdEncoding.EncodeToString(b))
		return err
	case words[0] == "variable" && len(rest) == 1: // a signed write to the firmware, from a file of the initrd
		return writeVariable(rest[0])
	case words[0] == "off":
		return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	case words[0] == "reboot":
		return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	case words[0] == "dial" && len(rest) == 3:
		patience, err := time.ParseDuration(rest[2])
		if err != nil {
			return err
		}
		return dial(rest[0], rest[1], patience)
	case words[0] == "scan" && len(rest) == 1:
		scan(rest[0])
	case words[0] == "probe" && len(rest) > 1:
		return probe(rest[0], rest[1:])
	case words[0] == "serve":
		return serve()
	default:
		return fmt.Errorf("what is %q?", words)
	}
	return nil
}

// dial sends a text to a TCP port and says what comes back.
func dial(addr, text string, patience time.Duration) error {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
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

// scan tries every TCP port of an address; four seconds are two repetitions by the kernel
// where nothing comes back.
func scan(addr string) {
	var mu sync.Mutex
	var open []int
	closed := 0
	next := make(chan int)
	var wg sync.WaitGroup
	for range 512 {
		wg.Go(func() {
			for port := range next {
				c, err := net.DialTimeout("tcp", net.JoinHostPort(addr, strconv.Itoa(port)), 4*time.Second)
				if err == nil {
					_ = c.Close()
				}
				mu.Lock()
				if err == nil {
					open = append(open, port)
				} else if errors.Is(err, unix.ECONNREFUSED) {
					closed++
				}
				mu.Unlock()
			}
		})
	}
	for port := 1; port <= 65535; port++ {
		next <- port
	}
	close(next)
	wg.Wait()
	slices.Sort(open)
	say("scanned 65535 ports, closed %d, open: %v", closed, open)
}

// probes is how often a UDP port is asked: a machine says but once a second that one is closed.
const probes = 8

// probe asks UDP ports of an address: a closed one is refused by name (ICMP), and one that stays silent is open.
func probe(addr string, ports []string) error {
	var open []string
	closed := 0
	for _, port := range ports {
		c, err := net.Dial("udp", net.JoinHostPort(addr, port))
		if err != nil {
			return err
		}
		refused := false
		for range probes {
			_ = c.SetDeadline(time.Now().Add(2 * time.Second))
			_, err := c.Write(make([]byte, 12)) // to DNS, a question without a question
			if err == nil {
				_, err = c.Read(make([]byte, 512))
			}
			if refused = errors.Is(err, unix.ECONNREFUSED); refused || err == nil {
				break
			}
		}
		_ = c.Close()
		if refused {
			closed++
		} else {
			open = append(open, port)
		}
	}
	say("probed %d UDP ports, closed %d, open: %v", len(ports), closed, open)
	return nil
}

// serve answers on the machine's port, as edged's local API does, with the path asked for.
func serve() error {
	const socket = "/local.sock"
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	go func() {
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.URL.Path) }))
	}()
	go func() {
		if err := hostport.Serve(context.Background(), socket, slog.Default()); err != nil {
			say("error: %v", err)
		}
	}()
	say("serving")
	return nil
}
