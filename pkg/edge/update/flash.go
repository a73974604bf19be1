package update

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/disk/fat"
	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/pkg/disk/verity"
	"tributary.dev/tributary/pkg/release"
)

// Device is the whole disk. An *os.File of it is one.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// forget has the next reads come from the medium. The kernel keeps what was read of a disk apart from what was read of its
// partitions: after a file system on one was written, the other is out of date; and to verify from memory proves little.
func (f *Flash) forget() {
	if file, ok := f.Disk.(*os.File); ok {
		_ = unix.IoctlSetInt(int(file.Fd()), unix.BLKFLSBUF, 0) // a plain file has one cache
	}
}

// Flash reads and writes the slots of a disk. Each method may be repeated; none is used by two goroutines.
type Flash struct {
	Disk Device
	Size int64
	Arch string // Go's name
}

const (
	maxUKI   = 512 << 20
	ukiDir   = "EFI/Linux"
	loaderIs = "timeout 0\neditor no\nauto-entries no\nauto-firmware no\nsecure-boot-enroll off\n"
)

func managerFile(arch string) string {
	if arch == "arm64" {
		return "EFI/BOOT/BOOTAA64.EFI"
	}
	return "EFI/BOOT/BOOTX64.EFI"
}

// section is a partition of the disk.
type section struct {
	d    Device
	at   int64
	size int64
}

func (s section) ReadAt(p []byte, off int64) (int, error) {
	return io.NewSectionReader(s.d, s.at, s.size).ReadAt(p, off)
}

func (s section) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || int64(len(p)) > s.size-off {
		return 0, fmt.Errorf("%d bytes at %d do not fit into a partition of %d", len(p), off, s.size)
	}
	return s.d.WriteAt(p, s.at+off)
}

func (f *Flash) table() (*gpt.Table, error) {
	t, _, err := gpt.Read(f.Disk, f.Size)
	return t, err
}

func (f *Flash) section(t *gpt.Table, label string) (section, error) {
	n, p := t.Find(label)
	if n == 0 {
		return section{}, fmt.Errorf("the disk has no partition %q", label)
	}
	return section{f.Disk, t.Offset(p), t.Size(p)}, nil
}

// Fits tells why a release has no room in the slots, or nil.
func (f *Flash) Fits(d release.Description) error {
	t, err := f.table()
	if err != nil {
		return err
	}
	for _, c := range []struct {
		label string
		size  int64
	}{{"root-a", d.Root.Size}, {"root-b", d.Root.Size}, {"root-a-verity", verity.HashSize(d.Root.Size)}, {"root-b-verity", verity.HashSize(d.Root.Size)},
		{"esp-a", d.UKI.Size + d.Manager.Size + 2<<20}, {"esp-b", d.UKI.Size + d.Manager.Size + 2<<20}} {
		s, err := f.section(t, c.label)
		if err != nil {
			return err
		}
		if s.size < c.size {
			return fmt.Errorf("%s has %d MiB, the release needs %d", c.label, s.size>>20, (c.size+1<<20-1)>>20)
		}
	}
	return nil
}

// Write fills a slot that does not run. content gives the release's content into a writer, in its order. The order on
// the disk: the IDs by which a root is found go; root and tree; the IDs of the new root; the ESP, whose boot sector
// goes first and comes last. A power cut at any point leaves a slot that is whole or cannot be started.
func (f *Flash) Write(slot Slot, d release.Description, install uint64, content func(io.Writer) error) error {
	t, err := f.table()
	if err != nil {
		return err
	}
	if err := f.name(t, slot, gpt.Named("empty", "root", string(slot)), gpt.Named("empty", "verity", string(slot))); err != nil {
		return err
	}
	root, err := f.section(t, "root-"+string(slot))
	if err != nil {
		return err
	}
	in := &intake{d: d, root: root}
	if err := content(in); err != nil {
		return err
	}
	uki, manager, err := in.close()
	if err != nil {
		return err
	}
	if err := f.hash(t, slot, d); err != nil {
		return err
	}
	if err := f.Disk.Sync(); err != nil {
		return err
	}
	rootID, treeID := gpt.RootIDs(d.Hash())
	if err := f.name(t, slot, rootID, treeID); err != nil {
		return err
	}
	return f.writeESP(t, slot, install, uki, manager)
}

// name gives the slot's partitions their IDs.
func (f *Flash) name(t *gpt.Table, slot Slot, root, tree gpt.GUID) error {
	n, _ := t.Find("root-" + string(slot))
	m, _ := t.Find("root-" + string(slot) + "-verity")
	if n == 0 || m == 0 {
		return fmt.Errorf("the disk has no slot %s", slot)
	}
	if t.Partitions[n-1].ID == root && t.Partitions[m-1].ID == tree {
		return nil
	}
	t.Partitions[n-1].ID, t.Partitions[m-1].ID = root, tree
	return t.Write(f.Disk)
}

// hash writes the verity tree of what lies in the root partition, and compares with the root hash.
func (f *Flash) hash(t *gpt.Table, slot Slot, d release.Description) error {
	root, err := f.section(t, "root-"+string(slot))
	if err != nil {
		return err
	}
	tree, err := f.section(t, "root-"+string(slot)+"-verity")
	if err != nil {
		return err
	}
	salt, err1 := hex.DecodeString(d.Salt)
	id, err2 := hex.DecodeString(d.UUID)
	if err := errors.Join(err1, err2); err != nil || len(id) != 16 {
		return fmt.Errorf("the release's salt or UUID: %w", errors.Join(err, errors.ErrUnsupported))
	}
	got, err := verity.Format(root, d.Root.Size, salt, [16]byte(id), tree)
	if err != nil {
		return err
	}
	if got != d.Hash() { // check: root hash
		return fmt.Errorf("the root that was written has hash %x, the release says %s", got[:8], d.RootHash[:16])
	}
	return nil
}

func (f *Flash) writeESP(t *gpt.Table, slot Slot, install uint64, uki, manager []byte) error {
	esp, err := f.section(t, "esp-"+string(slot))
	if err != nil {
		return err
	}
	if _, err := esp.WriteAt(make([]byte, 64<<10), 0); err != nil {
		return err
	}
	if err := f.Disk.Sync(); err != nil {
		return err
	}
	err = writeVolume(esp, esp.size, slot, install, fmt.Sprintf("tributary-%d+3.efi", install), uki, managerFile(f.Arch), manager)
	return errors.Join(err, f.Disk.Sync())
}

// writeVolume writes an ESP. Ones that differ in a file's name alone differ in a folder alone.
func writeVolume(w io.WriterAt, size int64, slot Slot, install uint64, name string, uki []byte, managerAt string, manager []byte) error {
	return fat.Write(w, size, fat.Options{Label: "ESP-" + strings.ToUpper(string(slot)), VolumeID: uint32(install), Time: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)}, []fat.File{
		{Path: managerAt, Content: bytes.NewReader(manager)},
		{Path: ukiDir + "/" + name, Content: bytes.NewReader(uki)},
		{Path: "loader/loader.conf", Content: strings.NewReader(loaderIs)},
	})
}

// Verify reads a slot back: table, root and tree, ESP.
func (f *Flash) Verify(slot Slot, d release.Description, install uint64) error {
	f.forget()
	t, err := f.table()
	if err != nil {
		return err
	}
	rootID, treeID := gpt.RootIDs(d.Hash())
	_, rp := t.Find("root-" + string(slot))
	_, tp := t.Find("root-" + string(slot) + "-verity")
	if rp.ID != rootID || tp.ID != treeID {
		return errors.New("the partition table does not name the release's root")
	}
	root, err := f.section(t, rp.Name)
	if err != nil {
		return err
	}
	tree, err := f.section(t, tp.Name)
	if err != nil {
		return err
	}
	if err := verity.Verify(root, tree, d.Hash()); err != nil { // check: verity
		return err
	}
	e, err := f.ReadESP(slot)
	if err != nil {
		return err
	}
	if e.Install != install {
		return fmt.Errorf("the ESP has installation %d, not %d", e.Install, install)
	}
	if err := d.UKI.Check(e.UKI); err != nil {
		return fmt.Errorf("the kernel image on the ESP: %w", err)
	}
	if err := d.Manager.Check(e.Manager); err != nil {
		return fmt.Errorf("the boot manager on the ESP: %w", err)
	}
	return nil
}

// ESP is what a slot's ESP holds.
type ESP struct {
	UKI, Manager []byte
	Name         string // of the UKI's file
	Install      uint64
	// Counted: it has a boot counter; Tried: starts that were counted.
	Counted bool
	Tried   uint64
}

// ukiName is the Boot Loader Specification's name with counters: name+LEFT-DONE.efi.
var ukiName = regexp.MustCompile(`^tributary-(\d{1,18})(?:\+(\d{1,9})(?:-(\d{1,9}))?)?\.efi$`)

// LookESP reads names alone of a slot's ESP, with trust in nothing. Of several kernels the one with the highest counter is
// taken.
func (f *Flash) LookESP(slot Slot) (*ESP, error) {
	f.forget()
	_, found, err := f.look(slot)
	return found, err
}

func (f *Flash) look(slot Slot) (*fat.Volume, *ESP, error) {
	t, err := f.table()
	if err != nil {
		return nil, nil, err
	}
	s, err := f.section(t, "esp-"+string(slot))
	if err != nil {
		return nil, nil, err
	}
	v, err := fat.Open(s, s.size)
	if err != nil {
		return nil, nil, err
	}
	found := &ESP{}
	for _, e := range v.Entries() {
		if !strings.EqualFold(path.Dir(e.Path), ukiDir) || e.Size == 0 {
			continue // a name without content is a rename that is not on the medium yet
		}
		name := path.Base(e.Path)
		if m := ukiName.FindStringSubmatch(strings.ToLower(name)); m != nil {
			var n, tried uint64
			_, _ = fmt.Sscan(m[1], &n)
			_, _ = fmt.Sscan(m[3], &tried)
			if found.Name == "" || n > found.Install {
				found.Name, found.Install, found.Counted, found.Tried = name, n, m[2] != "", tried
			}
		}
	}
	if found.Name == "" {
		return nil, nil, errors.New("no kernel image of ours is on the ESP")
	}
	return v, found, nil
}

// ReadESP reads all of a slot's ESP.
func (f *Flash) ReadESP(slot Slot) (*ESP, error) {
	v, found, err := f.look(slot)
	if err != nil {
		return nil, err
	}
	if found.UKI, err = v.ReadFile(ukiDir+"/"+found.Name, maxUKI); err != nil {
		return nil, err
	}
	found.Manager, err = v.ReadFile(managerFile(f.Arch), maxUKI)
	return found, err
}

// intake takes a release's content apart while it arrives: kernel image and boot manager into memory, the root to disk.
type intake struct {
	d       release.Description
	root    section
	head    []byte
	written int64
}

func (in *intake) headSize() int64 { return in.d.Content.Size - in.d.Root.Size }

func (in *intake) Write(p []byte) (int, error) {
	n := len(p)
	if room := in.headSize() - int64(len(in.head)); room > 0 {
		take := min(room, int64(len(p)))
		in.head = append(in.head, p[:take]...)
		p = p[take:]
	}
	if len(p) > 0 {
		if in.written+int64(len(p)) > in.d.Root.Size {
			return 0, errors.New("more content than the release says")
		}
		if _, err := in.root.WriteAt(p, in.written); err != nil {
			return 0, err
		}
		in.written += int64(len(p))
	}
	return n, nil
}

func (in *intake) close() (uki, manager []byte, err error) {
	if int64(len(in.head)) != in.headSize() || in.written != in.d.Root.Size {
		return nil, nil, fmt.Errorf("%d bytes of content of %d", int64(len(in.head))+in.written, in.d.Content.Size)
	}
	folded := in.headSize() - in.d.Manager.Size
	if uki, err = release.Fold(bytes.NewReader(in.head[:folded]), in.d); err != nil {
		return nil, nil, err
	}
	manager = in.head[folded:]
	return uki, manager, in.d.Manager.Check(manager)
}

// Content is what runs, as a delta's old content, with its identity.
func (f *Flash) Content(slot Slot, roothash string) (release.Pieces, string, error) {
	e, err := f.ReadESP(slot)
	if err != nil {
		return nil, "", err
	}
	t, err := f.table()
	if err != nil {
		return nil, "", err
	}
	root, err := f.section(t, "root-"+string(slot))
	if err != nil {
		return nil, "", err
	}
	tree, err := f.section(t, "root-"+string(slot)+"-verity")
	if err != nil {
		return nil, "", err
	}
	head := make([]byte, 512)
	if _, err := tree.ReadAt(head, 0); err != nil {
		return nil, "", err
	}
	super, err := verity.DecodeSuperblock(head)
	if err != nil {
		return nil, "", err
	}
	size := int64(super.DataBlocks) * verity.BlockSize
	if size <= 0 || size > root.size {
		return nil, "", errors.New("the verity superblock tells a size that does not fit")
	}
	unfolded, err := release.Unfold(e.UKI, release.FindPacked(e.UKI, false))
	if err != nil {
		return nil, "", err
	}
	return release.Pieces{{ReaderAt: bytes.NewReader(unfolded), Size: int64(len(unfolded))}, {ReaderAt: bytes.NewReader(e.Manager), Size: int64(len(e.Manager))}, {ReaderAt: root, Size: size}},
		release.Identity(roothash, e.UKI, e.Manager), nil
}
