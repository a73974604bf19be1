// Package kmod answers: how do the kernel's modules get loaded without modprobe? From a
// list, or by what the devices say they are (their modalias), with modules.dep and
// modules.alias as depmod(8) writes them.
package kmod

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// compressed lets the kernel decompress the file (MODULE_INIT_COMPRESSED_FILE, Linux 5.17).
const compressed = 4

const maxLine = 64 << 10

// Insert loads one file, plain or compressed. A module that is there already is no error.
func Insert(file, params string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if !strings.HasSuffix(file, ".ko") {
		flags = compressed
	}
	if err := unix.FinitModule(int(f.Fd()), params, flags); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("module %s: %w", path.Base(file), err)
	}
	return nil
}

// Entry is one line of a list: a file and its parameters.
type Entry struct{ File, Params string }

// ParseList reads "path parameters…" lines; # begins a comment.
func ParseList(r io.Reader) (out []Entry, err error) {
	s := bufio.NewScanner(r)
	s.Buffer(nil, maxLine)
	for s.Scan() {
		line, _, _ := strings.Cut(s.Text(), "#")
		file, params, _ := strings.Cut(strings.TrimSpace(line), " ")
		if file != "" {
			out = append(out, Entry{file, strings.TrimSpace(params)})
		}
	}
	return out, s.Err()
}

// Name is a module's name from its file: no folder, no suffix, "-" as "_".
func Name(file string) string {
	base := path.Base(file)
	if i := strings.Index(base, ".ko"); i > 0 {
		base = base[:i]
	}
	return strings.ReplaceAll(base, "-", "_")
}

// Tree is /lib/modules/<release>: what there is, what needs what.
type Tree struct {
	dir   string
	files map[string]string   // name → path inside dir
	needs map[string][]string // name → names, in the order in which to load them
	// mu is held while a module loads: whoever wants the same one then finds it there.
	mu   sync.Mutex
	done map[string]bool
	// Took, when set, hears how long each module took to load.
	Took func(name string, took time.Duration)
}

// Open reads modules.dep of a folder.
func Open(dir string) (*Tree, error) {
	f, err := os.Open(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	t := &Tree{dir: dir, done: map[string]bool{}}
	t.files, t.needs, err = parseDep(f)
	return t, err
}

// parseDep reads modules.dep: "path: path path …", the last of which is to be loaded first.
func parseDep(r io.Reader) (files map[string]string, needs map[string][]string, err error) {
	files, needs = map[string]string{}, map[string][]string{}
	s := bufio.NewScanner(r)
	s.Buffer(nil, maxLine)
	for s.Scan() {
		file, rest, ok := strings.Cut(s.Text(), ":")
		if !ok {
			continue
		}
		name := Name(file)
		files[name] = file
		deps := strings.Fields(rest)
		for i := len(deps) - 1; i >= 0; i-- {
			needs[name] = append(needs[name], Name(deps[i]))
		}
	}
	return files, needs, s.Err()
}

// Load loads modules by name, each after what it needs. A name that the tree does not know
// is passed over when the kernel has it built in or loaded (/sys/module); else it is an
// error. All are tried.
func (t *Tree) Load(names ...string) error {
	var errs []error
	for _, name := range names {
		name, params, _ := strings.Cut(name, " ")
		name = Name(name)
		for _, need := range append(append([]string(nil), t.needs[name]...), name) {
			p := ""
			if need == name {
				p = params
			}
			if err := t.load(need, p); err != nil {
				errs = append(errs, err)
				break
			}
		}
	}
	return errors.Join(errs...)
}

func (t *Tree) load(name, params string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.done[name] {
		return nil
	}
	file, ok := t.files[name]
	if !ok {
		if _, err := os.Stat("/sys/module/" + name); err == nil || t.builtin(name) {
			t.done[name] = true
			return nil
		}
		return fmt.Errorf("module %s: not in %s", name, t.dir)
	}
	t.done[name] = true // a failure is not tried again: the device would be asked in vain
	if Live(name) {
		return nil // the initramfs loaded it; the kernel would check its signature before it says so
	}
	at := time.Now()
	err := Insert(filepath.Join(t.dir, file), params)
	if t.Took != nil {
		t.Took(name, time.Since(at))
	}
	return err
}

// Live tells whether a module is loaded and through with it.
func Live(name string) bool {
	text, err := os.ReadFile(filepath.Join("/sys/module", name, "initstate"))
	return err == nil && string(bytes.TrimSpace(text)) == "live"
}

func (t *Tree) builtin(name string) bool {
	f, err := os.Open(filepath.Join(t.dir, "modules.builtin"))
	if err != nil {
		return false
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if Name(s.Text()) == name {
			return true
		}
	}
	return false
}

// ColdPlug loads what the devices found so far ask for, but for those that deny refuses. It
// returns how many modules it loaded and what failed; a device without a driver is no
// failure.
func (t *Tree) ColdPlug(sys string, deny func(name string) bool) (loaded int, err error) {
	return t.plug(modaliases(sys), deny)
}

func (t *Tree) has(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.done[name]
}

// LoadAlias loads all that answer to an alias, as the kernel asks modprobe(8): by the
// module's own name, or by a pattern of modules.alias such as crypto-aes.
func (t *Tree) LoadAlias(alias string) error {
	if _, ok := t.files[Name(alias)]; ok {
		return t.Load(alias)
	}
	f, err := os.Open(filepath.Join(t.dir, "modules.alias"))
	if err != nil {
		return err
	}
	defer f.Close()
	names, err := match(f, []string{alias})
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return t.Load(alias) // built in, or it says that there is none
	}
	var errs []error
	for _, name := range names {
		// One driver of several may be for another processor.
		if err := t.Load(name); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// modaliases lists what the devices say they are, each once. Those that say it are on a bus, or
// of the two classes and the one subsystem that do: below /sys/devices the same lies among some
// ten times as many folders, which an emulated machine reads for a good part of a second.
func modaliases(sys string) (out []string) {
	folders := []string{filepath.Join(sys, "class/dmi"), filepath.Join(sys, "class/input"), filepath.Join(sys, "devices/system")}
	for _, bus := range names(filepath.Join(sys, "bus")) {
		folders = append(folders, filepath.Join(sys, "bus", bus, "devices"))
	}
	seen := map[string]bool{}
	for _, folder := range folders {
		for _, device := range names(folder) {
			b, err := os.ReadFile(folder + "/" + device + "/modalias")
			if text := strings.TrimSpace(string(b)); err == nil && text != "" && !seen[text] { // most say nothing, and one may go away
				seen[text] = true
				out = append(out, text)
			}
		}
	}
	return out
}

// names lists a folder in no order; one that is not there has none.
func names(dir string) []string {
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer f.Close()
	all, _ := f.Readdirnames(-1) // what could be read
	return all
}

// match reads modules.alias ("alias pattern module") and returns the modules of which a
// pattern fits a device, each once, in the file's order. There are tens of thousands of
// patterns: what stands before the first wildcard sorts nearly all of them out.
func match(aliases io.Reader, devices []string) (out []string, err error) {
	seen := map[string]bool{}
	sort.Strings(devices)
	s := bufio.NewScanner(aliases)
	s.Buffer(nil, maxLine)
	for s.Scan() {
		line, ok := bytes.CutPrefix(s.Bytes(), []byte("alias "))
		at := bytes.LastIndexByte(line, ' ')
		if !ok || at < 0 {
			continue
		}
		pattern, module := line[:at], line[at+1:]
		literal := pattern
		if i := bytes.IndexAny(pattern, "*?[\\"); i >= 0 {
			literal = pattern[:i]
		}
		first := sort.Search(len(devices), func(i int) bool { return devices[i] >= string(literal) })
		for _, d := range devices[first:] {
			if !strings.HasPrefix(d, string(literal)) {
				break
			}
			if seen[string(module)] {
				break
			}
			if ok, err := path.Match(string(pattern), d); err == nil && ok {
				seen[string(module)] = true
				out = append(out, Name(string(module)))
			}
		}
	}
	return out, s.Err()
}

// Holds tells whether the tree has a module of that name.
func (t *Tree) Holds(name string) bool {
	_, ok := t.files[Name(name)]
	return ok
}
