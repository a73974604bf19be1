package recovery

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
)

// Sources are where the console looks. Each may be missing, broken or slow.
type Sources struct {
	// Root stands before all paths below; "" on a box.
	Root string
	// Run is process 1's folder, Agent the agent's local socket, Init process 1's.
	Run, Agent, Init string
	// State is where STATE is mounted. Volumes are the file systems to measure, by name.
	State string
	// Data is the agent's folder.
	Data    string
	Volumes map[string]string
	Now     func() time.Time
	// Look looks at the hardware where the agent does not tell of it. May be nil.
	Look func() api.Inventory
	// Patience is how long all of them together may take to answer.
	Patience time.Duration
}

// Usual are the sources of an appliance.
func Usual() Sources {
	return Sources{Run: "/run/tributary", Agent: "/run/edged/edged.sock", Init: "/run/tributary/init.sock", State: "/state", Data: "/data/edged",
		Volumes: map[string]string{"system": "/", "state": "/state", "data": "/data", "run": "/run"}, Now: time.Now, Patience: 3 * time.Second}
}

func (s Sources) path(elem ...string) string {
	return filepath.Join(append([]string{s.Root}, elem...)...)
}

const (
	maxFile   = 1 << 20
	maxAnswer = 4 << 20
)

// Gather asks all sources at once. It returns when Patience is over, whatever is broken.
func (s Sources) Gather(ctx context.Context) Facts {
	ctx, cancel := context.WithTimeout(ctx, s.Patience)
	defer cancel()
	f := Facts{Now: s.Now()}
	var mu sync.Mutex
	miss := func(what string, err error) {
		if err != nil {
			mu.Lock()
			f.Missing = append(f.Missing, Missing{what, reason(err)})
			mu.Unlock()
		}
	}
	var all sync.WaitGroup
	all.Go(func() {
		a := new(Agent)
		if err := s.askAgent(ctx, "/status", a); err != nil {
			miss("agent", err)
			return
		}
		f.Agent = a
	})
	all.Go(func() {
		i := new(api.Inventory)
		err := s.askAgent(ctx, "/hardware", i)
		if err != nil && s.Look != nil {
			i, err = s.look(ctx)
		}
		if err != nil {
			miss("hardware", err)
			return
		}
		f.Hardware = i
	})
	all.Go(func() {
		var a struct {
			Children []Child `json:"children"`
		}
		miss("process 1", askInit(ctx, s.path(s.Init), map[string]string{"do": "status"}, &a))
		f.Children = a.Children
	})
	all.Go(func() { // what is files; a file system that hangs leaves the rest of the page
		b := new(Boot)
		if err := readJSON(s.path(s.Run, "boot.json"), b); err != nil {
			miss("boot report", err)
		} else {
			f.Boot = b
		}
	})
	all.Go(func() { miss("warnings of boot", readJSON(s.path(s.Run, "warnings.json"), &f.Warnings)) })
	all.Go(func() { miss(uplinksFile, readJSON(s.path(s.Run, "uplinks.json"), &f.Uplinks)) })
	all.Go(func() {
		t := new(Trial)
		if readJSON(s.path(s.Run, "network-trial.json"), t) == nil { // there is none most of the time
			f.Trial = t
		}
	})
	all.Go(func() { f.Settings = s.settings() })
	all.Go(func() {
		u := new(Update)
		if err := readJSON(s.path(s.State, "update.json"), u); err == nil {
			f.Update = u
		} else if !errors.Is(err, os.ErrNotExist) {
			miss("updates", err)
		}
	})
	all.Go(func() { s.machine(&f) })
	all.Go(func() { f.Links = s.links() })
	all.Go(func() { f.Volumes = s.volumes() })
	all.Go(func() { f.Sticks = s.sticks() })
	all.Wait()
	slices.SortFunc(f.Missing, func(a, b Missing) int { return strings.Compare(a.What, b.What) })
	if f.Boot != nil && f.Profile == "" {
		f.Profile = f.Boot.Profile
	}
	return f
}

// reason is an error in few words.
func reason(err error) string {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "is not there"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "does not answer"
	case errors.Is(err, unix.ECONNREFUSED):
		return "does not run"
	}
	return clean(err.Error())
}

// readSome reads a small file.
func readSome(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		return nil, fmt.Errorf("has more than %d bytes", most)
	}
	return b, err
}

func readJSON(path string, to any) error {
	b, err := readSome(path, maxFile)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, to); err != nil {
		return errors.New("cannot be read: it is torn, or of another version")
	}
	return nil
}

func (s Sources) word(elem ...string) string {
	b, err := readSome(s.path(elem...), 4<<10)
	if err != nil {
		return ""
	}
	return clean(string(bytes.TrimRight(b, "\x00\n ")))
}

// client speaks HTTP over the agent's socket.
func (s Sources) client() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", s.path(s.Agent))
	}}}
}

func (s Sources) get(ctx context.Context, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://edged"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := s.client().Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // the status tells enough without it
		resp.Body.Close()
		return nil, fmt.Errorf("the agent answers %s %s", resp.Status, clean(string(text)))
	}
	return resp, nil
}

// look looks by itself; a disk that hangs leaves the rest of the page.
func (s Sources) look(ctx context.Context) (*api.Inventory, error) {
	seen := make(chan *api.Inventory, 1)
	go func() {
		i := s.Look()
		seen <- &i
	}()
	select {
	case i := <-seen:
		return i, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s Sources) askAgent(ctx context.Context, path string, to any) error {
	resp, err := s.get(ctx, path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(to)
}

// askInit puts one line of JSON to process 1 and reads one.
func askInit(ctx context.Context, socket string, question map[string]string, to any) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline) // a connection that has just been opened takes it
	}
	if err := json.NewEncoder(conn).Encode(question); err != nil {
		return err
	}
	return json.NewDecoder(io.LimitReader(conn, maxFile)).Decode(to)
}

// machine fills in what the kernel says of the machine.
func (s Sources) machine(f *Facts) {
	f.Hostname, f.Kernel = s.word("proc/sys/kernel/hostname"), s.word("proc/sys/kernel/osrelease")
	f.Slot, f.Profile = s.word(s.Run, "slot"), s.word(s.Run, "profile")
	f.Pairing, f.Parent = s.word(s.Run, "pairing-code"), s.word(s.State, "parent")
	_, err := os.Stat(s.path("usr/sbin/wpa_supplicant"))
	f.WiFi = err == nil
	f.Load, _, _ = strings.Cut(s.word("proc/loadavg"), " ")
	up, _, _ := strings.Cut(s.word("proc/uptime"), " ")
	if seconds, err := strconv.ParseFloat(up, 64); err == nil && seconds > 0 && seconds < 1e9 {
		f.Uptime = time.Duration(seconds * float64(time.Second))
	}
	f.Machine = strings.TrimSpace(s.word("sys/class/dmi/id/sys_vendor") + " " + s.word("sys/class/dmi/id/product_name"))
	f.Serial = s.word("sys/class/dmi/id/product_serial")
	if f.Machine == "" {
		f.Machine, f.Serial = s.word("proc/device-tree/model"), s.word("proc/device-tree/serial-number")
	}
	if b, err := readSome(s.path("etc/os-release"), 64<<10); err == nil {
		f.System = value(b, "PRETTY_NAME")
	}
	if b, err := readSome(s.path("proc/meminfo"), 64<<10); err == nil {
		total, free := kib(b, "MemTotal:"), kib(b, "MemAvailable:")
		f.Memory = Amount{Used: total - free, Total: total}
	}
	cpus, _ := filepath.Glob(s.path("sys/devices/system/cpu/cpu[0-9]*")) // the pattern is well formed
	f.CPUs = len(cpus)
	if b, err := readSome(s.path("etc/resolv.conf"), 64<<10); err == nil {
		for line := range strings.Lines(string(b)) {
			if w := strings.Fields(line); len(w) > 1 && w[0] == "nameserver" {
				f.Resolvers = append(f.Resolvers, w[1])
			}
		}
	}
}

// target is the last part of where a link of the kernel's leads; empty where there is none.
func (s Sources) target(elem ...string) string {
	to, err := os.Readlink(s.path(elem...))
	if err != nil {
		return ""
	}
	return filepath.Base(to)
}

// value reads NAME="value" (os-release(5)).
func value(text []byte, name string) string {
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), name+"="); ok {
			return clean(strings.Trim(v, `"'`))
		}
	}
	return ""
}

func kib(text []byte, name string) int64 {
	for line := range strings.Lines(string(text)) {
		if w := strings.Fields(line); len(w) > 1 && w[0] == name {
			n, _ := strconv.ParseInt(w[1], 10, 64) // 0 is shown as not known
			return n << 10
		}
	}
	return 0
}

// Kinds of network cards, by the kernel's DEVTYPE.
// uplinksFile is what the list of uplinks is called where it cannot be read.
const uplinksFile = "uplinks"

const (
	wireless = "Wi-Fi"
	mobile   = "mobile"
)

// links are the machine's network cards: what has a device behind it.
func (s Sources) links() (out []Link) {
	names, _ := filepath.Glob(s.path("sys/class/net/*/device")) // the pattern is well formed
	for _, n := range names {
		dir := filepath.Dir(n)
		name := filepath.Base(dir)
		at := func(file string) string { return s.word("sys/class/net", name, file) }
		l := Link{Name: name, MAC: at("address"), State: at("operstate")}
		uevent, err := readSome(s.path("sys/class/net", name, "uevent"), 4<<10)
		if err == nil {
			l.Kind = map[string]string{"wlan": wireless, "wwan": mobile}[value(uevent, "DEVTYPE")]
		}
		if speed, err := strconv.Atoi(at("speed")); err == nil && speed > 0 {
			l.Speed = fmt.Sprintf("%d Mb/s", speed)
		}
		l.Driver, l.Master = s.target("sys/class/net", name, "device/driver"), s.target("sys/class/net", name, "master")
		if s.Root == "" {
			l.Addresses = addresses(name)
		}
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b Link) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func addresses(name string) (out []string) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return nil
	}
	list, err := i.Addrs()
	if err != nil {
		return nil
	}
	for _, a := range list {
		out = append(out, a.String())
	}
	return out
}

// volumes measures file systems that are mounted: a folder that is on the same device as
// its parent is none.
func (s Sources) volumes() (out []Volume) {
	for name, path := range s.Volumes {
		var v, up unix.Stat_t
		if unix.Stat(s.path(path), &v) != nil || path != "/" && unix.Stat(filepath.Dir(s.path(path)), &up) == nil && v.Dev == up.Dev {
			continue
		}
		var fs unix.Statfs_t
		if unix.Statfs(s.path(path), &fs) != nil {
			continue
		}
		total := int64(fs.Blocks) * fs.Bsize
		out = append(out, Volume{Name: name, Amount: Amount{Used: total - int64(fs.Bavail)*fs.Bsize, Total: total}, ReadOnly: fs.Flags&unix.ST_RDONLY != 0})
	}
	slices.SortFunc(out, func(a, b Volume) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// sticks are partitions of removable disks, and such disks without partitions. A disk that
// something lies on is none: a box may run from one that can be pulled out.
func (s Sources) sticks() (out []Stick) {
	disks, _ := filepath.Glob(s.path("sys/block/*")) // the pattern is well formed
	for _, d := range disks {
		disk := filepath.Base(d)
		if s.word("sys/block", disk, "removable") != "1" && !onUSB(d) || s.word("sys/block", disk, "size") == "0" {
			continue
		}
		if held, _ := filepath.Glob(filepath.Join(d, "holders/*")); len(held) > 0 {
			continue
		}
		if held, _ := filepath.Glob(filepath.Join(d, disk+"*", "holders/*")); len(held) > 0 {
			continue
		}
		model := s.word("sys/block", disk, "device/model")
		parts, _ := filepath.Glob(filepath.Join(d, disk+"*", "partition"))
		nodes := []string{disk}
		if len(parts) > 0 {
			nodes = nil
			for _, p := range parts {
				nodes = append(nodes, filepath.Base(filepath.Dir(p)))
			}
		}
		for _, n := range nodes {
			dir := []string{"sys/block", disk}
			if n != disk {
				dir = append(dir, n)
			}
			sectors, _ := strconv.ParseInt(s.word(append(dir, "size")...), 10, 64) // 0 is shown
			out = append(out, Stick{Node: "/dev/" + n, Model: model, Bytes: sectors * 512})
		}
	}
	return out
}

func onUSB(dir string) bool {
	target, err := os.Readlink(dir)
	return err == nil && strings.Contains(target, "/usb")
}
