package recovery

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// Appliance is the Box on a real box.
type Appliance struct {
	Sources
	// Reset destroys what the box keeps, keys first. It is called when the box is about to
	// start anew. Nil where there is none.
	Reset func(ctx context.Context, say func(string)) error
	// Rollback makes the other slot the next to start. Nil where there is none.
	Rollback func(ctx context.Context, say func(string)) error
	// Listen searches for wireless networks with a card. Nil where there is nothing to do so.
	Listen func(ctx context.Context, card string) ([]Network, error)
	// Desk lets a person into a shell. Nil where there is none.
	Desk Desk
}

// Desk is the lock of the shell, for one person at one console.
type Desk interface {
	Look() Shell
	// Ask makes a new challenge.
	Ask(ctx context.Context) error
	// Try takes the answer. With nil the person may come in, once.
	Try(ctx context.Context, answer string) error
	// Press waits for the box's button, and is like a right answer then.
	Press(ctx context.Context, say func(string)) error
}

// Facts implements Box.
func (a *Appliance) Facts(ctx context.Context) Facts {
	f := a.Gather(ctx)
	f.Rollback = a.Rollback != nil
	if a.Desk != nil {
		s := a.Desk.Look()
		f.Shell = &s
	}
	return f
}

// Do implements Box.
func (a *Appliance) Do(ctx context.Context, id string, fields map[string]string, say func(string)) error {
	switch id {
	case "reboot", "poweroff":
		return a.leave(ctx, id, "a person at the console", say)
	case "network-test":
		return a.testNetwork(ctx, fields["host"], say)
	case "network-set":
		return a.setNetwork(ctx, fields, say)
	case "wifi-scan":
		return a.searchAir(ctx, fields["link"], say)
	case "wifi-join":
		return a.joinWiFi(fields, say)
	case "network-revert":
		return a.wish(Wanted{Revert: true})
	case "app-log":
		return a.appLog(ctx, fields["service"], say)
	case "box-log":
		return a.boxLog(fields["log"], say)
	case "time-set":
		return setTime(fields["time"], a.built(), say)
	case "support-bundle":
		return a.support(ctx, fields["to"], say)
	case "shell-challenge":
		if a.Desk == nil {
			return errNoShell
		}
		return a.Desk.Ask(ctx)
	case "shell-answer":
		if a.Desk == nil {
			return errNoShell
		}
		if err := a.Desk.Try(ctx, fields["answer"]); err != nil {
			return err
		}
		return ErrShell
	case "shell-button":
		if a.Desk == nil {
			return errNoShell
		}
		if err := a.Desk.Press(ctx, say); err != nil {
			return err
		}
		return ErrShell
	case "usb-update":
		return a.takeUpdate(ctx, fields["from"], fields["file"], say)
	case "rollback":
		if a.Rollback == nil {
			return errors.New("this box has no slots that the console could change")
		}
		if err := a.Rollback(ctx, say); err != nil {
			return err
		}
		return a.leave(ctx, "reboot", "a person at the console chose the other slot", say)
	case "factory-reset":
		if a.Reset == nil {
			return errors.New("this box has no partitions of its own to reset")
		}
		if err := a.Reset(ctx, say); err != nil {
			return err
		}
		return a.leave(ctx, "reboot", "factory reset", say)
	}
	return fmt.Errorf("%q is not known here", id)
}

var errNoShell = errors.New("this console opens no shell")

// leave asks process 1 to end the box.
func (a *Appliance) leave(ctx context.Context, do, why string, say func(string)) error {
	var answer struct {
		Error string `json:"error"`
	}
	if err := askInit(ctx, a.path(a.Init), map[string]string{"do": do, "reason": why}, &answer); err != nil {
		return fmt.Errorf("process 1 cannot be asked: %s; switch the power off and on", reason(err))
	}
	if answer.Error != "" {
		return errors.New(answer.Error)
	}
	say("The box goes down in good order.")
	return nil
}

// Shut has process 1 end the unsealing of keys by the TPM for this start, and lets the TPM
// remember that a shell was opened. An older process 1, or none, is no reason to leave a person
// outside who may come in; the answer tells.
func (a *Appliance) Shut(ctx context.Context) error {
	var answer struct {
		Error string `json:"error"`
	}
	if err := askInit(ctx, a.path(a.Init), map[string]string{"do": "shut"}, &answer); err != nil {
		return fmt.Errorf("process 1 cannot be asked: %s", reason(err))
	}
	if answer.Error != "" {
		return errors.New(answer.Error)
	}
	return nil
}

// Wanted is what the console asks of whoever keeps the uplinks, in network-wish.json.
type Wanted struct {
	Settings *api.NetworkSettings `json:"settings,omitempty"`
	// Revert takes the settings on trial back.
	Revert bool   `json:"revert,omitempty"`
	By     string `json:"by,omitempty"`
}

func (a *Appliance) wish(w Wanted) error {
	w.By = "a person at the console"
	text, err := json.Marshal(w)
	if err != nil {
		return err
	}
	return atomicfile.Write(a.path(a.Run, "network-wish.json"), text, 0o600)
}

// testNetwork goes the way of a connection and says where it ends.
func (a *Appliance) testNetwork(ctx context.Context, target string, say func(string)) error {
	f := a.Gather(ctx)
	up := 0
	for _, l := range f.Links {
		say(fmt.Sprintf("card %s: %s %s", l.Name, l.State, strings.Join(l.Addresses, " ")))
		if l.State == "up" {
			up++
		}
	}
	if up == 0 {
		return errors.New("no network card has a link: check cable and switch")
	}
	if target == "" {
		return errors.New("no host is known to try")
	}
	host, port, err := hostPort(target)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	addrs := []string{host}
	if _, err := netip.ParseAddr(host); err != nil {
		if addrs, err = net.DefaultResolver.LookupHost(ctx, host); err != nil {
			return fmt.Errorf("the name %s is not found: check the resolvers (%s)", host, strings.Join(f.Resolvers, " "))
		}
		say("name " + host + ": " + strings.Join(addrs, " "))
	}
	for _, addr := range addrs {
		began := time.Now()
		conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", net.JoinHostPort(addr, port))
		if err != nil {
			say(fmt.Sprintf("%s port %s: %s", addr, port, reasonOfDial(err)))
			continue
		}
		say(fmt.Sprintf("%s port %s: reached in %d ms from %s", addr, port, time.Since(began).Milliseconds(), conn.LocalAddr()))
		conn.Close()
		return nil
	}
	return fmt.Errorf("%s is not reached: check address, gateway, VLAN and firewall", target)
}

func reasonOfDial(err error) string {
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return "refused: the machine is there, the service is not"
	case errors.Is(err, unix.ENETUNREACH):
		return "no route: is there a gateway?"
	case errors.Is(err, unix.EHOSTUNREACH):
		return "nobody answers at the gateway or in the segment"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return "no answer"
	}
	return clean(err.Error())
}

// hostPort reads https://host:port, host:port, host:mqtt,https and host.
func hostPort(text string) (host, port string, err error) {
	if strings.Contains(text, "://") {
		u, err := url.Parse(text)
		if err != nil || u.Hostname() == "" {
			return "", "", fmt.Errorf("%q is no address", clean(text))
		}
		host, port = u.Hostname(), cmp.Or(u.Port(), "443")
	} else {
		text, _, _ = strings.Cut(text, ",")
		if host, port, err = net.SplitHostPort(text); err != nil {
			host, port = text, "8883"
			if inner, ok := strings.CutPrefix(text, "["); ok && strings.HasSuffix(inner, "]") {
				host = strings.TrimSuffix(inner, "]")
			}
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", "", fmt.Errorf("%q is no port: 1 to 65535", clean(port))
	}
	if _, err := netip.ParseAddr(host); err != nil && (host == "" || strings.ContainsAny(host, " \t[]/:")) {
		return "", "", fmt.Errorf("%q is neither a name nor an address", clean(host))
	}
	return host, port, nil
}

const logLines = 200

// appLog asks the agent for the end of a service's log.
func (a *Appliance) appLog(ctx context.Context, service string, say func(string)) error {
	app, name, _ := strings.Cut(service, "/")
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	resp, err := a.get(ctx, "/logs?"+url.Values{"app": {app}, "service": {name}, "tail": {strconv.Itoa(logLines)}}.Encode())
	if err != nil {
		return errors.New(reason(err))
	}
	defer resp.Body.Close()
	return sayLines(io.LimitReader(resp.Body, maxAnswer), say)
}

func sayLines(r io.Reader, say func(string)) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4<<10), maxFile)
	for lines.Scan() {
		say(lines.Text())
	}
	return lines.Err()
}

// boxLog shows the end of one of process 1's logs, or of the kernel's.
func (a *Appliance) boxLog(name string, say func(string)) error {
	var text []byte
	var err error
	switch name {
	case "agent", "containerd":
		text, err = readEnd(a.path(a.Run, "log", name+".log"), 64<<10)
	case "kernel":
		buf := make([]byte, 64<<10)
		var n int
		if n, err = unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, buf); err == nil {
			text = buf[:n]
		}
	default:
		return fmt.Errorf("%q is no log", clean(name))
	}
	if err != nil {
		return fmt.Errorf("the log %s", reason(err))
	}
	lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	for _, l := range lines[max(0, len(lines)-logLines):] {
		say(l)
	}
	return nil
}

func readEnd(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if end, err := f.Seek(0, io.SeekEnd); err != nil {
		return nil, err
	} else if _, err := f.Seek(max(0, end-most), io.SeekStart); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, most))
}

// built is before which the clock cannot be.
func (a *Appliance) built() time.Time {
	n, err := strconv.ParseInt(a.word("usr/lib/tributary/build-time"), 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.Unix(n, 0)
}

// most is how far ahead of this system's build the clock can be set: as far as a saved one is
// believed.
const most = 20 * 365 * 24 * time.Hour

// readTime reads what a person types for the time; floor is when this system was built.
func readTime(text string, floor time.Time) (time.Time, error) {
	t, err := time.ParseInLocation("2006-01-02 15:04", text, time.UTC)
	if err != nil {
		return t, errors.New("write the time as 2026-01-31 12:00, in UTC")
	}
	if t.Before(floor) {
		return t, fmt.Errorf("that is before this system was built (%s)", clock(floor))
	}
	if !floor.IsZero() && t.After(floor.Add(most)) { // check: ahead
		return t, fmt.Errorf("that is more than twenty years after this system was built (%s)", clock(floor))
	}
	return t, nil
}

func setTime(text string, floor time.Time, say func(string)) error {
	t, err := readTime(text, floor)
	if err != nil {
		return err
	}
	tv := unix.NsecToTimeval(t.UnixNano())
	if err := unix.Settimeofday(&tv); err != nil {
		return err
	}
	say("The clock is set. What the core has signed decides whether it is trusted.")
	return nil
}

func (a *Appliance) support(ctx context.Context, to string, say func(string)) error {
	name := "tributary-support-" + a.Now().UTC().Format("20060102-150405") + ".tar.gz"
	dir, done, err := a.medium(to, false)
	if err != nil {
		return err
	}
	defer done()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	say("Gathering...")
	path := filepath.Join(dir, name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = a.Bundle(ctx, f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(path) // half a bundle misleads
		return err
	}
	keepNewest(dir, to, say)
	say("Written: " + name + " on " + to)
	return nil
}

// bundlesKept is how many support bundles lie in a folder of this box.
const bundlesKept = 8

// keepNewest takes the oldest bundles from a folder of this box; a stick is its owner's affair.
func keepNewest(dir, to string, say func(string)) {
	if strings.HasPrefix(to, "/dev/") {
		return
	}
	list, _ := filepath.Glob(filepath.Join(dir, "tributary-support-*.tar.gz")) // in the order of their times
	for _, old := range list[:max(0, len(list)-bundlesKept)] {
		if err := os.Remove(old); err == nil {
			say("Removed: " + filepath.Base(old))
		}
	}
}

// mountStick mounts a removable partition until the function that it returns is called.
func mountStick(node, dir string, readOnly bool) (func(), error) {
	if strings.Contains(node, "..") {
		return nil, errors.New("that is no partition")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	flags := uintptr(unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC)
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	var err error
	for _, kind := range []string{"vfat", "exfat", "ext4"} {
		if err = unix.Mount(node, dir, kind, flags, ""); err == nil {
			return func() {
				_ = unix.Unmount(dir, 0) // what was written has been synced
			}, nil
		}
	}
	return nil, fmt.Errorf("%s cannot be mounted: %w", node, err)
}
