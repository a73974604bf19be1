// Package starts answers: what would a box start from this disk, with these boot variables?
//
// It goes the firmware's way, the boot manager's and the initramfs's, and knows nothing of how updates are written: it
// judges disks after power cuts. Whatever it needs to be whole it reads to the last byte.
package starts

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/disk/fat"
	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/pkg/disk/verity"
	"tributary.dev/tributary/pkg/pattern"
)

// Firmware is what the firmware keeps, as unique GUIDs of ESPs.
type Firmware struct {
	Next  gpt.GUID // zero: none
	Order []gpt.GUID
}

// Known tells what the firmware's keys have signed.
type Known struct {
	Manager func(file []byte) bool
	// Kernel gives the root hash in a kernel image's command line.
	Kernel func(file []byte) (root [32]byte, signed bool)
}

// Start is what starts.
type Start struct {
	Slot string // a or b: the one whose root is mounted
	ESP  string // the partition that it came from
	File string // the kernel image
	Root [32]byte
	Once bool // by BootNext
	// Fell are the ways that were tried before and led nowhere, with their reasons.
	Fell []string
}

// ErrBrick: nothing starts, or the box starts again and again what cannot run.
var ErrBrick = errors.New("the box does not start")

// Judge tells what a box starts. The error is ErrBrick where it needs a person.
func Judge(disk io.ReaderAt, size int64, arch string, fw Firmware, k Known) (Start, error) {
	t, _, err := gpt.Read(disk, size)
	if err != nil {
		return Start{}, fmt.Errorf("%w: %w", ErrBrick, err)
	}
	j := &judge{disk: disk, table: t, known: k, manager: "EFI/BOOT/BOOTX64.EFI"}
	if arch == "arm64" {
		j.manager = "EFI/BOOT/BOOTAA64.EFI"
	}
	var fell []string
	if fw.Next != (gpt.GUID{}) {
		s, loaded, err := j.try(fw.Next)
		if err == nil {
			s.Once = true
			return s, nil
		}
		// A trial that hangs or panics is ended by the watchdog, and BootNext is used up; one that is not even loaded is
		// followed by the order at once.
		fell = append(fell, fmt.Sprintf("once (loaded: %v): %v", loaded, err))
	}
	order := slices.Clone(fw.Order)
	for _, label := range []string{"esp-a", "esp-b"} { // the removable-media path, disk by disk and partition by partition
		if n, p := t.Find(label); n != 0 {
			order = append(order, p.ID)
		}
	}
	for _, esp := range order {
		s, loaded, err := j.try(esp)
		s.Fell = fell
		if err == nil {
			return s, nil
		}
		fell = append(fell, err.Error())
		if loaded {
			return s, fmt.Errorf("%w: again and again: %s", ErrBrick, strings.Join(fell, "; "))
		}
	}
	return Start{}, fmt.Errorf("%w: %s", ErrBrick, strings.Join(fell, "; "))
}

type judge struct {
	disk    io.ReaderAt
	table   *gpt.Table
	known   Known
	manager string
}

func (j *judge) part(p gpt.Partition) (*io.SectionReader, int64) {
	return io.NewSectionReader(j.disk, j.table.Offset(p), j.table.Size(p)), j.table.Size(p)
}

// name is the Boot Loader Specification's: a kernel image with its tries left and done.
var name = pattern.New(`^tributary-(\d{1,18})(?:\+(\d{1,9})(?:-\d{1,9})?)?\.efi$`)

const maxFile = 512 << 20

// try starts an ESP. loaded tells that the firmware found something to start, and so does not look any further.
func (j *judge) try(esp gpt.GUID) (s Start, loaded bool, err error) {
	n, p := j.table.ByID(esp)
	if n == 0 {
		return s, false, fmt.Errorf("no partition %s", esp)
	}
	s.ESP = p.Name
	r, size := j.part(p)
	v, err := fat.Open(r, size)
	if err != nil {
		return s, false, fmt.Errorf("%s: %w", p.Name, err)
	}
	manager, err := v.ReadFile(j.manager, maxFile)
	if err != nil {
		return s, false, fmt.Errorf("%s: %w", p.Name, err)
	}
	if !j.known.Manager(manager) {
		return s, true, fmt.Errorf("%s: a boot manager that nobody signed", p.Name)
	}
	file, err := choose(v)
	if err != nil {
		return s, true, fmt.Errorf("%s: %w", p.Name, err)
	}
	s.File = file
	kernel, err := v.ReadFile(file, maxFile)
	if err != nil {
		return s, true, fmt.Errorf("%s: %w", p.Name, err)
	}
	root, ok := j.known.Kernel(kernel)
	if !ok {
		return s, true, fmt.Errorf("%s: a kernel image that nobody signed", p.Name)
	}
	s.Root = root
	s.Slot, err = j.root(root)
	return s, true, err
}

// choose is what systemd-boot does among our names: those with tries left first, of these the newest.
func choose(v *fat.Volume) (string, error) {
	type entry struct {
		file    string
		left    bool
		install string
	}
	var list []entry
	for _, e := range v.Entries() {
		m := name.FindStringSubmatch(strings.ToLower(path.Base(e.Path)))
		if e.Dir || m == nil || !strings.EqualFold(path.Dir(e.Path), "EFI/Linux") {
			continue
		}
		list = append(list, entry{e.Path, m[2] == "" || strings.Trim(m[2], "0") != "", strings.TrimLeft(m[1], "0")})
	}
	if len(list) == 0 {
		return "", errors.New("no kernel image")
	}
	best := slices.MaxFunc(list, func(a, b entry) int {
		switch {
		case a.left != b.left && a.left:
			return 1
		case a.left != b.left:
			return -1
		case len(a.install) != len(b.install):
			return len(a.install) - len(b.install)
		}
		return strings.Compare(a.install, b.install)
	})
	return best.file, nil
}

// root finds the slot by the halves of the root hash, and reads it against that.
func (j *judge) root(hash [32]byte) (slot string, err error) {
	rootID, treeID := gpt.RootIDs(hash)
	n, p := j.table.ByID(rootID)
	m, q := j.table.ByID(treeID)
	slot, ok := strings.CutPrefix(p.Name, "root-")
	if n == 0 || m == 0 || !ok || q.Name != p.Name+"-verity" {
		return "", fmt.Errorf("no root with hash %x", hash[:6])
	}
	data, _ := j.part(p)
	tree, _ := j.part(q)
	if err := verity.Verify(data, tree, hash); err != nil {
		return slot, fmt.Errorf("root-%s: %w", slot, err)
	}
	return slot, nil
}

// Header tells whether a LUKS2 header (cryptsetup's on-disk format, 1.0.1) is whole in one of its two copies.
func Header(r io.ReaderAt) error {
	var faults []error
	for _, at := range []int64{0, 16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20} {
		err := header(r, at)
		if err == nil {
			return nil
		}
		faults = append(faults, err)
	}
	return faults[0]
}

func header(r io.ReaderAt, at int64) error {
	b := make([]byte, 4096)
	if _, err := r.ReadAt(b, at); err != nil {
		return err
	}
	magic := "LUKS\xba\xbe"
	if at != 0 {
		magic = "SKUL\xba\xbe"
	}
	if !bytes.HasPrefix(b, []byte(magic)) {
		return errors.New("no LUKS2 header")
	}
	return checksum(r, b, at)
}
