// Package wifi answers: how does this box join a wireless network?
//
// Debian's wpa_supplicant does the joining, one process for one card with one network; it is
// in the image of profiles whose modules have the class wifi. What it is told is made by
// Settings, what it says is read by State.Next and Networks, and these are plain functions.
// A join and a search speak with it over its control socket (wpa_supplicant's
// README, "Control interface"), which only root reaches.
package wifi

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// Program is Debian's.
const Program = "/usr/sbin/wpa_supplicant"

// Dir is below process 1's folder of /run: where supplicants have their sockets.
const Dir = "wifi"

// State is how far the joining is.
type State string

// The states.
const (
	Looking State = "looking" // for the network
	Absent  State = "absent"  // it is not heard
	Refused State = "refused" // it does not take this box: the passphrase, most of the time
	Joined  State = "joined"
)

// Next takes a line that wpa_supplicant said about link.
func (s State) Next(link, line string) State {
	// The prefix counts: a network's name, which anybody may choose, stands in other lines.
	event, ok := strings.CutPrefix(line, link+": CTRL-EVENT-")
	if !ok {
		return s
	}
	name, _, _ := strings.Cut(event, " ")
	switch name {
	case "CONNECTED":
		return Joined
	case "DISCONNECTED":
		if s == Joined {
			return Looking
		}
	case "SSID-TEMP-DISABLED", "AUTH-REJECT", "ASSOC-REJECT":
		return Refused
	case "NETWORK-NOT-FOUND":
		return Absent
	}
	return s
}

// Settings is wpa_supplicant.conf(5) for one network; nil is for a search alone. w has been
// validated: no byte of it ends a line.
func Settings(dir string, w *api.WiFi) string {
	out := "ctrl_interface=DIR=" + dir + "\nupdate_config=0\n"
	if w == nil {
		return out
	}
	if w.Country != "" {
		out += "country=" + w.Country + "\n"
	}
	out += fmt.Sprintf("network={\n\tssid=%x\n", w.SSID) // hexadecimal: no name means anything but itself
	if w.Hidden {
		out += "\tscan_ssid=1\n"
	}
	if w.Passphrase == "" {
		out += "\tkey_mgmt=NONE\n"
	} else {
		// The best that the network has: WPA3, or WPA2. The last quote ends the passphrase.
		out += "\tkey_mgmt=WPA-PSK WPA-PSK-SHA256 SAE\n\tieee80211w=1\n\tpsk=\"" + w.Passphrase + "\"\n"
	}
	return out + "}\n"
}

// Config is a card and where its supplicant's files lie.
type Config struct {
	Link string
	// Dir is a folder of /run, for root alone.
	Dir string
	// Program is by default the constant of that name.
	Program string
}

// ErrNone tells that this system joins no wireless network.
var ErrNone = errors.New("this box's profile has no program for wireless networks")

// grace is what wpa_supplicant gets to leave the network.
const grace = 5 * time.Second

// Join joins a network and stays in it until ctx ends (nil), or the supplicant does. told
// is called for each new state.
func Join(ctx context.Context, c Config, w *api.WiFi, told func(State)) error {
	cmd, out, err := c.start(ctx, w)
	if err != nil {
		return err
	}
	state := Looking
	told(state)
	lines := bufio.NewScanner(out)
	last := ""
	for lines.Scan() {
		last = cmp.Or(lines.Text(), last)
		if next := state.Next(c.Link, lines.Text()); next != state {
			state = next
			told(state)
		}
	}
	_, _ = io.Copy(io.Discard, out) // after a line beyond bounds: its end is the process's
	err = cmd.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("wpa_supplicant has ended: %w, after %q", cmp.Or(err, io.EOF), last)
}

// start runs the supplicant, after one that somebody left behind on this card.
func (c Config) start(ctx context.Context, w *api.WiFi) (*exec.Cmd, io.Reader, error) {
	program := cmp.Or(c.Program, Program)
	if _, err := os.Stat(program); err != nil {
		return nil, nil, ErrNone
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, nil, err
	}
	if err := c.clear(ctx); err != nil {
		return nil, nil, err
	}
	file := filepath.Join(c.Dir, c.Link+".conf")
	if err := os.WriteFile(file, []byte(Settings(c.Dir, w)), 0o600); err != nil {
		return nil, nil, err
	}
	cmd := exec.CommandContext(ctx, program, "-i", c.Link, "-c", file, "-D", "nl80211")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = grace
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	cmd.Stderr = cmd.Stdout
	return cmd, out, cmd.Start()
}

// clear ends a supplicant that outlived whoever started it.
func (c Config) clear(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	for {
		s, err := dial(c.Dir, c.Link)
		if err != nil { // nobody listens
			_ = os.Remove(filepath.Join(c.Dir, c.Link)) // a socket that a killed one left; mostly there is none
			return nil
		}
		_, err = s.ask(ctx, "TERMINATE")
		s.close()
		if ctx.Err() != nil {
			return fmt.Errorf("an earlier wpa_supplicant keeps %s: %w", c.Link, cmp.Or(err, ctx.Err()))
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Network is one that a search heard.
type Network struct {
	SSID string
	// Signal is in dBm, about -30 beside it and -85 at the edge.
	Signal int
	// Locked: it wants a passphrase. Foreign: it wants what this system does not do, such as a
	// company's accounts.
	Locked, Foreign bool
}

// maxNetworks bounds a list.
const maxNetworks = 64

// Networks reads the answer to SCAN_RESULTS: each name once, the strongest first. Networks
// without a name are left out.
func Networks(text string) (out []Network) {
	for line := range strings.Lines(text) {
		// bssid / frequency / signal level / flags / ssid
		f := strings.SplitN(strings.TrimRight(line, "\n"), "\t", 5)
		if len(f) < 5 {
			continue
		}
		signal, err := strconv.Atoi(f[2])
		if err != nil {
			continue
		}
		name := unescape(f[4])
		if name == "" || strings.Trim(name, "\x00") == "" {
			continue
		}
		flags := f[3]
		known := strings.Contains(flags, "PSK") || strings.Contains(flags, "SAE")
		n := Network{SSID: name, Signal: signal, Locked: strings.Contains(flags, "WPA") || strings.Contains(flags, "WEP") || strings.Contains(flags, "RSN")}
		n.Foreign = n.Locked && !known
		if i := slices.IndexFunc(out, func(o Network) bool { return o.SSID == name }); i >= 0 {
			if out[i].Signal < n.Signal {
				out[i] = n
			}
			continue
		}
		out = append(out, n)
	}
	slices.SortStableFunc(out, func(a, b Network) int { return b.Signal - a.Signal })
	return out[:min(len(out), maxNetworks)]
}

// unescape undoes printf_encode of wpa_supplicant's common.c.
func unescape(s string) string {
	var out []byte
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			out = append(out, s[i])
			continue
		}
		i++
		switch s[i] {
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'e':
			out = append(out, 0x1b)
		case 'x':
			if i+2 < len(s) {
				if n, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
					out = append(out, byte(n))
					i += 2
				}
			}
		default:
			out = append(out, s[i])
		}
	}
	return string(out)
}
