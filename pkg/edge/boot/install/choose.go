package install

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/disk/flash"
	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/pkg/edge/boot/blk"
)

// Disk is one that the system might go onto.
type Disk struct {
	Name      string // of the kernel
	Model     string
	Size      int64
	Removable bool
	Empty     bool // nothing in its first and last MiB
	Ours      bool // a system of ours lies there
}

// what says in words what lies on a disk.
func (d Disk) what() string {
	switch {
	case d.Ours:
		return "holds a Tributary system"
	case d.Empty:
		return "empty"
	}
	return "holds other data"
}

func (d Disk) String() string {
	return fmt.Sprintf("%s  %.1f GB  %s  %s", d.Name, float64(d.Size)/1e9, d.Model, d.what())
}

// Plan is what to do about the disks that are there.
type Plan int

const (
	Take   Plan = iota // write onto that disk
	Ask                // let a person say which, and confirm
	Stay               // a system is there: leave it, unless a person says otherwise
	Refuse             // there is none
)

// Decide is the whole policy. The wish names a disk and stands in the signed command line, so that it is obeyed, whatever
// lies there. Without one the only fixed disk is taken when it is empty; all else is a person's matter. A disk with a
// system of ours is most often the one that this very medium installed a minute ago.
func Decide(disks []Disk, wish string) (Plan, Disk) {
	if wish != "" {
		if i := slices.IndexFunc(disks, func(d Disk) bool { return d.Name == wish }); i >= 0 {
			return Take, disks[i]
		}
		return Refuse, Disk{}
	}
	fixed := slices.DeleteFunc(slices.Clone(disks), func(d Disk) bool { return d.Removable })
	if i := slices.IndexFunc(fixed, func(d Disk) bool { return d.Ours }); i >= 0 {
		return Stay, fixed[i]
	}
	switch {
	case len(fixed) == 1 && fixed[0].Empty:
		return Take, fixed[0]
	case len(disks) == 0:
		return Refuse, Disk{}
	}
	return Ask, Disk{}
}

// candidates are all disks but the medium that are large enough and may be written.
func (c Config) candidates(src *source) ([]Disk, error) {
	var out []Disk
	for _, name := range blk.Disks(c.Sys) {
		d := Disk{Name: name, Model: c.attribute(name, "device/model"), Removable: c.attribute(name, "removable") == "1"}
		if name == src.disk || c.attribute(name, "ro") == "1" {
			continue
		}
		f, err := os.Open(filepath.Join(c.Dev, name))
		if err != nil {
			continue // an empty card reader
		}
		d.Size, err = f.Seek(0, io.SeekEnd)
		if err == nil && d.Size >= src.m.ImageSize {
			if d.Empty, err = flash.Empty(f, d.Size); err == nil {
				if t, _, err := gpt.Read(f, d.Size); err == nil {
					a, _ := t.Find("root-a")
					b, _ := t.Find("root-b")
					d.Ours = a != 0 && b != 0
				}
				out = append(out, d)
			}
		} else if err == nil && d.Size > 0 {
			c.Person.Printf("%s is too small: %.1f GB, %.1f are needed.\n", name, float64(d.Size)/1e9, float64(src.m.ImageSize)/1e9)
		}
		if err != nil {
			c.Person.Printf("%s does not read: %v\n", name, err)
		}
		_ = f.Close()
	}
	return out, nil
}

// attribute is a disk's word in sysfs, printable.
func (c Config) attribute(name, file string) string {
	b, err := os.ReadFile(filepath.Join(c.Sys, "block", name, file))
	if err != nil {
		return ""
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, strings.TrimSpace(string(b[:min(len(b), 64)])))
}

func (c Config) choose(disks []Disk) (Disk, error) {
	plan, d := Decide(disks, c.Wish)
	switch plan {
	case Take:
		c.Person.Printf("Onto %s\n", d)
		return d, nil
	case Refuse:
		return d, ErrNoDisk
	case Stay:
		stay := cmp.Or(c.Stay, time.Minute)
		c.Person.Printf("%s\nIt stays as it is. To replace it and all its data, press w within %v.\n", d, stay)
		if !c.pressed('w', stay) {
			return d, ErrInstalled
		}
	}
	return c.ask(disks)
}

// ask lets a person choose and confirm. Names are typed by number.
func (c Config) ask(disks []Disk) (Disk, error) {
	disks = disks[:min(len(disks), 9)]
	c.Person.Printf("\nOnto which disk? All data on it will be lost.\n")
	for i, d := range disks {
		c.Person.Printf("  %d  %s\n", i+1, d)
	}
	for {
		c.Person.Printf("Press its number, or q to leave all as it is.\n")
		k, ok := c.key(answerWait)
		if !ok || k == 'q' {
			return Disk{}, ErrDeclined
		}
		i := int(k) - '1'
		if i < 0 || i >= len(disks) {
			continue
		}
		c.Person.Printf("\n%s\nPress y to erase it and install, any other key to go back.\n", disks[i])
		if k, ok := c.key(answerWait); ok && k == 'y' {
			return disks[i], nil
		}
	}
}
