package boot

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/pkg/edge/boot/blk"
	"tributary.dev/tributary/pkg/edge/boot/dm"
	"tributary.dev/tributary/pkg/identity/atomicfile"
)

const (
	stateDir = "/state"
	dataDir  = "/data"
	dataKey  = stateDir + "/keys/data.key"
	keySize  = 32
)

// findDisk takes the disk that the initramfs found. Without an initramfs of ours (a test
// machine) it looks by itself.
func (b *booter) findDisk(context.Context) (err error) {
	hash, err := b.cmdline.RootHash()
	if err != nil {
		return err
	}
	if name, err := os.ReadFile(b.run("disk")); err == nil {
		b.disk, err = blk.Read(strings.TrimSpace(string(name)), hash)
		if err != nil {
			return err
		}
	} else if b.disk, err = blk.Wait(hash, diskWait, b.feed); err != nil {
		return err
	}
	b.report.Disk, b.report.Slot = b.disk.Name, b.disk.Slot()
	return os.WriteFile(b.run("slot"), []byte(b.report.Slot+"\n"), 0o644)
}

// growData gives DATA, the last partition, the rest of the disk, and writes a table anew of
// which one copy is torn. It changes nothing on a disk that is as it should be.
func (b *booter) growData(context.Context) error {
	if b.disk == nil {
		return errNoDisk
	}
	number, _ := b.disk.Table.Find("data")
	if number == 0 {
		return errors.New("the disk has no partition \"data\"")
	}
	changed, err := b.disk.Table.Grow(b.disk.Size, number)
	if err != nil {
		return err
	}
	if !changed && b.disk.Copy == gpt.Primary {
		return nil
	}
	f, err := os.OpenFile(b.disk.Node(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := b.disk.Table.Write(f); err != nil {
		return err
	}
	p := b.disk.Table.Partitions[number-1]
	b.say("data grown to %d MiB", b.disk.Table.Size(p)>>20)
	return resizePartition(f, number, b.disk.Table.Offset(p), b.disk.Table.Size(p))
}

// resizePartition tells the kernel about one partition: the whole table cannot be read
// again while the root lies on the disk (linux/blkpg.h).
func resizePartition(disk *os.File, number int, start, length int64) error {
	const blkpgResize = 3
	part := struct {
		start, length int64
		number        int32
		names         [128]byte
		_             [4]byte
	}{start: start, length: length, number: int32(number)}
	arg := struct {
		op, flags, datalen int32
		_                  int32
		data               unsafe.Pointer
	}{op: blkpgResize, datalen: int32(unsafe.Sizeof(part)), data: unsafe.Pointer(&part)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, disk.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return fmt.Errorf("growing partition %d in the kernel: %w", number, errno)
	}
	return nil
}

var errNoDisk = errors.New("the disk is not known")

// openState opens STATE, or makes it on a box that has none yet.
func (b *booter) openState(ctx context.Context) error {
	setModprobe("/sbin/modprobe")
	if b.disk == nil {
		return errNoDisk
	}
	node, _, err := b.disk.ByLabel("state")
	if err != nil {
		return err
	}
	if err := b.finishReset(node); err != nil {
		return err
	}
	b.keys.node = node
	made, err := b.volume(ctx, "state", node, func() ([]byte, error) { return b.stateKey(ctx) }, func() ([]byte, func() error, error) {
		return b.newStateKey(ctx)
	})
	b.report.First = made
	if b.keys.locked == nil { // else what comes from the core is sealed in this start yet
		err = errors.Join(err, b.shut(ctx))
	}
	if err != nil {
		return err
	}
	b.state = true
	b.settleKey(ctx)
	return os.MkdirAll(filepath.Dir(dataKey), 0o700)
}

// openData opens DATA by its key in STATE, or makes both.
func (b *booter) openData(ctx context.Context) error {
	if !b.state {
		return errors.New("its key lies in STATE, which is not open")
	}
	node, _, err := b.disk.ByLabel("data")
	if err != nil {
		return err
	}
	_, err = b.volume(ctx, "data", node, func() ([]byte, error) { return os.ReadFile(dataKey) }, func() ([]byte, func() error, error) {
		key := make([]byte, keySize)
		if _, err := rand.Read(key); err != nil {
			return nil, nil, err
		}
		// On the disk before anything is encrypted by it.
		return key, func() error { return nil }, atomicfile.Write(dataKey, key, 0o600)
	})
	if err != nil {
		return err
	}
	b.data = true
	return errors.Join(os.MkdirAll(dataDir+"/edged", 0o700), os.MkdirAll(dataDir+"/containerd", 0o711))
}

// volume opens, or first makes, the LUKS2 volume with an ext4 on node, and mounts it at
// /<name>. Each step of making may be cut and is then done again from the start, since the
// header's label says "-new" until all is there.
func (b *booter) volume(ctx context.Context, name, node string, key func() ([]byte, error), newKey func() (key []byte, keep func() error, err error)) (made bool, err error) {
	label := "tributary-" + name
	v, err := probeNode(node)
	if err != nil {
		return false, err
	}
	action, err := v.decide(label)
	if err != nil {
		b.warn(api.Warning{Name: name + "-foreign", Severity: api.Critical, Message: node + ": " + err.Error(), Remedy: "choose factory reset in the recovery shell, or install anew"})
		return false, err
	}
	var secret []byte
	if action == makeVolume {
		secret, err = b.makeVolume(ctx, node, label+newSuffix, newKey)
	} else {
		secret, err = key()
	}
	if err != nil {
		return false, err
	}
	if err := b.luksOpen(ctx, node, name, secret); err != nil {
		return false, err
	}
	clear(secret)
	mapped := "/dev/mapper/" + name
	if action == makeVolume {
		if _, _, err := b.procs.run(ctx, nil, "mkfs.ext4", "-q", "-F", "-m", "0", "-L", label, "-E", "lazy_itable_init=1,lazy_journal_init=1", mapped); err != nil {
			return false, err
		}
		if _, _, err := b.procs.run(ctx, nil, "cryptsetup", "config", "--label", label, node); err != nil {
			return false, err
		}
	}
	return action == makeVolume, b.mountFiles(ctx, name, mapped)
}

// makeVolume makes the encrypted volume, and what keeps its key.
func (b *booter) makeVolume(ctx context.Context, node, label string, newKey func() ([]byte, func() error, error)) ([]byte, error) {
	key, keep, err := newKey()
	if err != nil {
		return nil, err
	}
	if err := b.luksFormat(ctx, node, label, key); err != nil {
		return nil, err
	}
	return key, keep()
}

// mountFiles checks the file system where that is due, mounts it, and lets it grow into a
// larger volume.
func (b *booter) mountFiles(ctx context.Context, name, node string) error {
	f, err := os.Open(node)
	if err != nil {
		return err
	}
	size, dirty, sizeErr := extSize(f)
	whole, seekErr := f.Seek(0, 2)
	f.Close()
	if sizeErr != nil || dirty {
		if err := b.check(ctx, name, node); err != nil {
			return err
		}
	}
	dir := "/" + name
	if err := unix.Mount(node, dir, "ext4", unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOATIME, ""); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if sizeErr == nil && seekErr == nil && whole-size >= 4<<20 {
		if _, _, err := b.procs.run(ctx, nil, "resize2fs", node); err != nil {
			b.say("%s does not grow: %v", dir, err) // it works at the old size
		}
	}
	return nil
}

// check replays the journal and mends what it can. Exit status 1 and 2 of e2fsck mean
// mended; 4 means that a person would be asked, and nobody is there.
func (b *booter) check(ctx context.Context, name, node string) error {
	_, code, err := b.procs.run(ctx, nil, "e2fsck", "-p", node)
	if code >= 4 && code < 8 {
		_, code, err = b.procs.run(ctx, nil, "e2fsck", "-y", node)
		b.warn(api.Warning{Name: name + "-repaired", Severity: api.Degraded, Message: "the file system " + name + " was damaged and has been repaired; files may be lost", Remedy: "look at the disk's health; replace the disk if it happens again"})
	}
	if code >= 0 && code <= 3 {
		return nil
	}
	return err
}

func probeNode(node string) (volume, error) {
	f, err := os.Open(node)
	if err != nil {
		return volume{}, err
	}
	defer f.Close()
	return probe(f)
}

// luksFormat encrypts a partition by a random key. PBKDF2 at its least: a key of 256 random
// bits gains nothing from a slow derivation, and Argon2 takes memory that small boxes lack.
func (b *booter) luksFormat(ctx context.Context, node, label string, key []byte) error {
	_, _, err := b.procs.run(ctx, key, "cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2", "--label", label,
		"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--cipher", "aes-xts-plain64", "--key-size", "512", "--hash", "sha256",
		"--use-urandom", "--key-file", "-", "--keyfile-size", fmt.Sprint(len(key)), node)
	return err
}

// luksOpen opens a volume by its key.
func (b *booter) luksOpen(ctx context.Context, node, name string, key []byte) error {
	if _, err := os.Stat("/dev/mapper/" + name); err == nil {
		return nil // open from a step that was done again
	}
	uuid, table, err := b.luksTable(ctx, node, key)
	if err != nil {
		return err
	}
	// The UUID is how cryptsetup knows its own devices again.
	dev, err := dm.Create(name, "CRYPT-LUKS2-"+strings.ReplaceAll(uuid, "-", "")+"-"+name, table, false)
	if err != nil {
		return err
	}
	return os.Symlink(dev, "/dev/mapper/"+name)
}

// luksTable reads how the kernel is to show a volume that a key opens. A header of which a copy is torn cryptsetup mends, by
// the other copy. A whole one that package luks does not understand is refused: the header lies in the open, and a volume in
// the state's place, whose key slot is "encrypted" by a null cipher, is one that cryptsetup opens by whatever key the TPM gave.
func (b *booter) luksTable(ctx context.Context, node string, key []byte) (uuid string, table dm.Target, err error) {
	h, err := readHeader(node)
	if err != nil {
		b.say("%s: %v; cryptsetup is to mend it", node, err)
		if err := b.mend(ctx, node); err != nil {
			return "", table, err
		}
		if h, err = readHeader(node); err != nil {
			return "", table, err
		}
	}
	f, err := os.Open(node)
	if err != nil {
		return "", table, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return "", table, err
	}
	table, err = h.Open(f, node, size, key)
	return h.UUID, table, err
}

// mend has cryptsetup write the torn one of a volume's two headers anew.
func (b *booter) mend(ctx context.Context, node string) error {
	return b.cryptsetup(ctx, nil, "repair", "--batch-mode", node)
}
