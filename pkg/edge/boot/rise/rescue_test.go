package rise

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/pkg/disk/verity"
	"tributary.dev/tributary/pkg/edge/boot/install"
	"tributary.dev/tributary/pkg/efi"
)

// Every key that the menu shows does what it says, and no other key does anything.
func TestChoose(t *testing.T) {
	want := map[byte]action{'1': showSlots, '2': verifySlots, '3': showLog, '4': restart, '5': powerOff, '6': installAnew, 'i': installAnew,
		's': showSlots, 'v': verifySlots, 'l': showLog, 'r': restart, 'p': powerOff,
		'\r': showMenu, '\n': showMenu, ' ': showMenu, '?': showMenu, 'h': showMenu}
	for k := range 256 {
		if got := choose(byte(k)); got != want[byte(k)] {
			t.Errorf("%q: %v", byte(k), got)
		}
	}
}

// A box without a disk that is large enough is told so, not that a system does not start.
func TestHeadline(t *testing.T) {
	for want, cause := range map[string]error{
		"Tributary cannot start its system: disk: none":                                            errors.New("disk: none"),
		"Tributary was not installed, and nothing was written: installer: no disk to install onto": fmt.Errorf("installer: %w", install.ErrNoDisk),
	} {
		if got := headline(cause); got != want {
			t.Errorf("said %q, want %q", got, want)
		}
	}
}

// A slot is found whole by its partitions' UUIDs alone, and one flipped bit is found.
func TestVerifySlot(t *testing.T) {
	dir := t.TempDir()
	data, tree := filepath.Join(dir, "data"), filepath.Join(dir, "tree")
	content := make([]byte, 64*verity.BlockSize)
	for i := range content {
		content[i] = byte(i * 7)
	}
	if err := os.WriteFile(data, content, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := os.OpenFile(data, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	h, err := os.Create(tree)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	salt := sha256.Sum256([]byte("salt"))
	hash, err := verity.Format(d, int64(len(content)), salt[:], [16]byte{1}, h)
	if err != nil {
		t.Fatal(err)
	}
	root, rootTree := gpt.RootIDs(hash)
	fed := 0
	check := func() error {
		return verifySlot(data, tree, hashOf(gpt.Partition{ID: root}, gpt.Partition{ID: rootTree}), func() { fed++ })
	}
	if err := check(); err != nil || fed == 0 {
		t.Errorf("%v, fed %d times", err, fed)
	}
	if _, err := d.WriteAt([]byte{content[70000] ^ 1}, 70000); err != nil {
		t.Fatal(err)
	}
	if err := check(); err == nil {
		t.Error("a flipped bit is not found")
	}
}

// The installer's stick is started next, once, and stands behind what the firmware starts
// always; asking again makes no second entry.
func TestStartOnce(t *testing.T) {
	vars := efi.Memory{}
	stick := gpt.Partition{Type: gpt.ESP, ID: gpt.Named("stick"), First: 2048, Last: 4095, Name: install.Label}
	if err := efi.SetOrder(vars, []uint16{7}); err != nil {
		t.Fatal(err)
	}
	var first uint16
	for range 2 {
		if err := startOnce(vars, 1, stick); err != nil {
			t.Fatal(err)
		}
		n, set, err := efi.Next(vars)
		if err != nil || !set || first != 0 && n != first {
			t.Fatalf("%d %v %v", n, set, err)
		}
		first = n
		o, err := efi.Entry(vars, n)
		if err != nil {
			t.Fatal(err)
		}
		if id, ok := efi.PartitionOf(o.Path); !ok || id != stick.ID {
			t.Errorf("it starts %v", id)
		}
	}
	if order, err := efi.Order(vars); err != nil || len(order) == 0 || order[0] != 7 {
		t.Errorf("the order is %v, %v", order, err)
	}
}
