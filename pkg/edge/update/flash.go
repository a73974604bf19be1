package update

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/disk/fat"
	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/pkg/disk/verity"
	"tributary.dev/tributary/pkg/pattern"
	"tributary.dev/tributary/pkg/release"
	"tributary.dev/tributary/pkg/release/delta"
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
	// Scratch is a folder for files that are gone with their use, some 150 MB; empty is that of the system.
	Scratch string
}

// Memory is the limit of Go's memory while a slot is written, in bytes. 47 MB of it are in use (30 the delta's model, 7
// the descriptions of a kernel's types); the rest was garbage, up to the limit of 128 MiB that stood here. By 72 MiB the
// collector took 0.3 % of the time for a kernel's delta; what is more is room for what the agent has beside.
const Memory = 80 << 20

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

// Write fills a slot that does not run. content gives the release's content into a writer, in its order: for
// d.Whole(), with the kernel image as it is. The order on
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
	in, err := f.intake(d, root)
	if err != nil {
		return err
	}
	defer in.uki.Close()
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
		return fmt.Errorf("%w: the root that was written has hash %x, the release says %s", ErrContent, got[:8], d.RootHash[:16])
	}
	return nil
}

func (f *Flash) writeESP(t *gpt.Table, slot Slot, install uint64, uki fat.Content, manager []byte) error {
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
func writeVolume(w io.WriterAt, size int64, slot Slot, install uint64, name string, uki fat.Content, managerAt string, manager []byte) error {
	return fat.Write(w, size, fat.Options{Label: "ESP-" + strings.ToUpper(string(slot)), VolumeID: uint32(install), Time: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)}, []fat.File{
		{Path: managerAt, Content: bytes.NewReader(manager)},
		{Path: ukiDir + "/" + name, Content: uki},
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
var ukiName = pattern.New(`^tributary-(\d{1,18})(?:\+(\d{1,9})(?:-(\d{1,9}))?)?\.efi$`)

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

// intake takes a release's content apart while it arrives: the kernel image is packed into a file, the boot manager comes
// into memory, the root to disk.
type intake struct {
	d       release.Description
	uki     *os.File
	packed  *bufio.Writer // to uki
	fold    *release.Folder
	folded  int64 // bytes of the kernel image that are still to come, as they stand in the content
	manager []byte
	root    section
	written int64
}

func (f *Flash) intake(d release.Description, root section) (*intake, error) {
	file, err := f.scratch()
	if err != nil {
		return nil, err
	}
	in := &intake{d: d, uki: file, packed: bufio.NewWriterSize(file, 256<<10), folded: d.Content.Size - d.Manager.Size - d.Root.Size, root: root}
	in.fold = release.NewFolder(d, in.packed)
	return in, nil
}

// scratch is a file without a name.
func (f *Flash) scratch() (*os.File, error) {
	file, err := os.CreateTemp(f.Scratch, "update-*.part")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(file.Name()); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

func (in *intake) Write(p []byte) (int, error) {
	n := len(p)
	if take := min(in.folded, int64(len(p))); take > 0 {
		if _, err := in.fold.Write(p[:take]); err != nil {
			return 0, err
		}
		in.folded -= take
		p = p[take:]
	}
	if take := min(in.d.Manager.Size-int64(len(in.manager)), int64(len(p))); take > 0 {
		in.manager = append(in.manager, p[:take]...)
		p = p[take:]
	}
	if len(p) > 0 {
		if in.written+int64(len(p)) > in.d.Root.Size {
			return 0, fmt.Errorf("%w: more of it than the release says", ErrContent)
		}
		if _, err := in.root.WriteAt(p, in.written); err != nil {
			return 0, err
		}
		in.written += int64(len(p))
	}
	return n, nil
}

func (in *intake) close() (uki fat.Content, manager []byte, err error) {
	err = errors.Join(in.fold.Close(), in.d.Manager.Check(in.manager))
	if failed := in.packed.Flush(); failed != nil { // the disk's fault
		return nil, nil, failed
	}
	if missing := in.d.Root.Size - in.written; missing > 0 {
		err = errors.Join(err, fmt.Errorf("%d bytes of the root are missing", missing))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrContent, err)
	}
	return io.NewSectionReader(in.uki, 0, in.d.UKI.Size), in.manager, nil
}

// Running is the content of a slot, as a delta's old content. It is closed after use.
type Running struct {
	release.Pieces
	unfolded *os.File
}

// Close frees what Content took.
func (r *Running) Close() error { return r.unfolded.Close() }

// Identity names what a slot's content is (release.Identity).
func (f *Flash) Identity(slot Slot, roothash string) (string, error) {
	e, err := f.ReadESP(slot)
	if err != nil {
		return "", err
	}
	return release.Identity(roothash, e.UKI, e.Manager), nil
}

// Content is what a slot has. The unpacked kernel image lies in a file.
func (f *Flash) Content(slot Slot) (*Running, error) {
	root, size, err := f.rootOf(slot)
	if err != nil {
		return nil, err
	}
	e, err := f.ReadESP(slot)
	if err != nil {
		return nil, err
	}
	file, err := f.scratch()
	if err != nil {
		return nil, err
	}
	out := bufio.NewWriterSize(file, 256<<10)
	err = errors.Join(release.Unfold(e.UKI, release.FindPacked(e.UKI, false), out), out.Flush())
	unfolded, err2 := file.Seek(0, io.SeekCurrent)
	if err := errors.Join(err, err2); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &Running{release.Pieces{{ReaderAt: file, Size: unfolded}, {ReaderAt: bytes.NewReader(e.Manager), Size: int64(len(e.Manager))}, {ReaderAt: root, Size: size}}, file}, nil
}

// ErrContent: what was to be written is not what the release says.
var ErrContent = errors.New("the content is not that of the release")

// ErrDelta: the delta does not lead from what runs to the release.
var ErrDelta = errors.New("the delta does not lead from what runs to the release")

// WriteDelta fills the other slot with what a delta makes of the one that runs.
func (f *Flash) WriteDelta(running Slot, d release.Description, install uint64, patch []byte) error {
	old, err := f.Content(running)
	if err != nil {
		return err
	}
	defer old.Close()
	err = f.Write(running.Other(), d, install, func(w io.Writer) error {
		slot := &sink{w: w}
		err := delta.Apply(old, patch, slot)
		if err != nil && slot.err == nil {
			return fmt.Errorf("%w: %w", ErrDelta, err)
		}
		return err
	})
	if errors.Is(err, release.ErrPacked) {
		return fmt.Errorf("%w: %w", ErrDelta, err)
	}
	return err
}

// sink keeps the error of what is written to apart from that of what writes.
type sink struct {
	w   io.Writer
	err error
}

func (s *sink) Write(b []byte) (n int, err error) {
	n, s.err = s.w.Write(b)
	return n, s.err
}

// rootOf gives a slot's root and its size, as the tree's superblock tells it.
func (f *Flash) rootOf(slot Slot) (root section, size int64, err error) {
	t, err := f.table()
	if err != nil {
		return root, 0, err
	}
	if root, err = f.section(t, "root-"+string(slot)); err != nil {
		return root, 0, err
	}
	tree, err := f.section(t, "root-"+string(slot)+"-verity")
	if err != nil {
		return root, 0, err
	}
	head := make([]byte, 512)
	if _, err := tree.ReadAt(head, 0); err != nil {
		return root, 0, err
	}
	super, err := verity.DecodeSuperblock(head)
	if err != nil {
		return root, 0, err
	}
	size = int64(super.DataBlocks) * verity.BlockSize
	if size <= 0 || size > root.size {
		return root, 0, errors.New("the verity superblock tells a size that does not fit")
	}
	return root, size, nil
}
