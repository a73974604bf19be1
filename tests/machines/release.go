package machines

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"tributary.dev/tributary/image/build"
	"tributary.dev/tributary/image/bundle"
	"tributary.dev/tributary/image/initramfs"
	"tributary.dev/tributary/image/keys"
	"tributary.dev/tributary/image/uki"
	"tributary.dev/tributary/pkg/disk/fat"
	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/pkg/disk/verity"
	"tributary.dev/tributary/pkg/efi"
	"tributary.dev/tributary/pkg/release"
	"tributary.dev/tributary/pkg/release/delta"
	"tributary.dev/tributary/pkg/tpm"
	"tributary.dev/tributary/tests/vm"
)

// System is a built image, from whose parts releases are made that differ from it in little: seconds instead of minutes.
type System struct {
	Arch, Profile string
	programs      string // folder of those that went into the root
	uki, stub     []byte
	manager, root []byte
	initrd        []byte // in place of the one in uki, if there is one
	hash          string
	set           *keys.Set
	releases      *bundle.Keys
}

// Variant is a release that differs from a System.
type Variant struct {
	Version string
	Counter uint64
	// Words are added to the signed command line, where a later one of the same name wins.
	Words []string
	// Replace gives one of our programs in the root another content, not longer.
	Replace map[string][]byte
	// Init is another program for process 1, which the kernel image holds.
	Init []byte
	// Whole leaves the delta out: all of it travels.
	Whole bool
	// Stranger signs it with a key that no box trusts.
	Stranger bool
	// Signer signs what boots, in place of the checkout's db key; Carried are keys for the firmware.
	Signer  *keys.Key
	Carried []efi.Append
}

// Open reads an image's folder. keyDir holds the keys that signed it.
func Open(dir, arch, profile, keyDir string) (*System, error) {
	s := &System{Arch: arch, Profile: profile, programs: filepath.Join(dir, ".programs")}
	for name, to := range map[string]*[]byte{build.UKIFile: &s.uki, "stub.efi": &s.stub, build.ManagerFile: &s.manager, build.RootFile: &s.root} {
		var err error
		if *to, err = os.ReadFile(filepath.Join(dir, name)); err != nil {
			return nil, err
		}
	}
	line, err := uki.Read(s.uki, ".cmdline")
	if err != nil {
		return nil, err
	}
	for _, w := range strings.Fields(string(line)) {
		if h, ok := strings.CutPrefix(w, "roothash="); ok {
			s.hash = h
		}
	}
	if s.set, err = keys.LoadOrCreate(keyDir); err != nil {
		return nil, err
	}
	s.releases, err = bundle.LoadOrCreate(keyDir, time.Now())
	return s, err
}

// Release makes a signed bundle, with a delta from the system itself.
func (s *System) Release(v Variant, out string) (err error) {
	root := s.root
	for name, program := range v.Replace {
		old, err := os.ReadFile(filepath.Join(s.programs, name))
		if err != nil {
			return err
		}
		if root, err = overwrite(root, old, program); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if len(v.Carried) > 0 {
		carried, err := efi.EncodeAppends(v.Carried)
		if err != nil {
			return err
		}
		none, err := efi.EncodeAppends(nil)
		if err != nil {
			return err
		}
		if root, err = overwrite(root, none, carried); err != nil {
			return fmt.Errorf("keys for the firmware: %w", err)
		}
	}
	manager, err := s.bootManager(v)
	if err != nil {
		return err
	}
	// Another salt makes another root hash of the same root: a release is known by that.
	salt := []byte("a release for tests: " + v.Version)
	id := gpt.Named("verity").Bytes()
	tree := make(memory, verity.HashSize(int64(len(root))))
	hash, err := verity.Format(bytes.NewReader(root), int64(len(root)), salt, id, tree)
	if err != nil {
		return err
	}
	image, err := s.kernel(v, hex.EncodeToString(hash[:]))
	if err != nil {
		return err
	}
	pcr, err := uki.PCR11(image)
	if err != nil {
		return err
	}
	packed := release.FindPacked(image, true)
	var stream bytes.Buffer
	if err := release.Unfold(image, packed, &stream); err != nil {
		return err
	}
	content := slices.Concat(stream.Bytes(), manager, root)
	d := release.Description{Format: release.Format, Version: v.Version, Arch: s.Arch, Profile: s.Profile, Counter: v.Counter, RootHash: hex.EncodeToString(hash[:]), PCR11: hex.EncodeToString(pcr[:]),
		Root: release.PartOf(root), UKI: release.PartOf(image), Manager: release.PartOf(manager), Salt: hex.EncodeToString(salt), UUID: hex.EncodeToString(id[:]),
		Packed: packed, Content: release.PartOf(content)}
	b := &release.Bundle{Description: d.Encode(), Roots: [][]byte{s.releases.Root}, Deltas: map[string][]byte{}}
	if b.Targets, err = release.NewTargets(b.Description, 1, time.Now().Add(time.Hour)); err != nil {
		return err
	}
	signer := s.releases.Release
	if v.Stranger {
		if signer, err = release.NewKey(out + ".key"); err != nil {
			return err
		}
	}
	if b.Targets, err = release.AddSignature(b.Targets, signer); err != nil {
		return err
	}
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(8<<20))
	if err != nil {
		return err
	}
	b.Plain = z.EncodeAll(slices.Concat(image, manager, root), nil)
	if v.Whole {
		return write(b, out)
	}
	running, err := release.Content(s.uki, s.manager, s.root)
	if err != nil {
		return err
	}
	patch, err := delta.Make(running, content, 0)
	if err != nil {
		return err
	}
	b.Deltas[release.Identity(s.hash, s.uki, s.manager)] = patch
	return write(b, out)
}

func write(b *release.Bundle, out string) error {
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	return errors.Join(b.Write(f), f.Close())
}

// kernel builds and signs the system's kernel image with another command line.
func (s *System) kernel(v Variant, hash string) ([]byte, error) {
	c := uki.Config{Stub: s.stub, PolicyKey: s.set.PCR.PublicPEM()}
	var text [3][]byte
	for name, to := range map[string]*[]byte{".linux": &c.Kernel, ".initrd": &c.Initrd, ".cmdline": &text[0], ".osrel": &text[1], ".uname": &text[2]} {
		var err error
		if *to, err = uki.Read(s.uki, name); err != nil {
			return nil, err
		}
	}
	if s.initrd != nil {
		c.Initrd = s.initrd
	}
	if v.Init != nil { // of two archives with one file, the later one's is there
		more, err := initramfs.Pack([]initramfs.File{{Path: "init", Mode: 0o755, Data: v.Init}})
		if err != nil {
			return nil, err
		}
		c.Initrd = slices.Concat(c.Initrd, make([]byte, (4-len(c.Initrd)%4)%4), more)
	}
	c.OSRelease, c.Uname = string(text[1]), string(text[2])
	var words []string
	for _, w := range strings.Fields(string(text[0])) {
		key, _, _ := strings.Cut(w, "=")
		if key != "roothash" && key != "tributary.version" && key != "tributary.counter" {
			words = append(words, w)
		}
	}
	words = append(words, "roothash="+hash, "tributary.version="+v.Version, fmt.Sprintf("tributary.counter=%d", v.Counter))
	c.Cmdline = strings.Join(append(words, v.Words...), " ")
	c.Policy = func(image []byte) ([]byte, error) {
		pcr, err := uki.PCR11(image)
		if err != nil {
			return nil, err
		}
		return tpm.SignPolicy(s.set.PCR, pcr, v.Counter)
	}
	image, err := uki.Build(c)
	if err != nil {
		return nil, err
	}
	return uki.Sign(image, cmp.Or(v.Signer, s.set.Signer()))
}

// bootManager is the system's, signed by the variant's key.
func (s *System) bootManager(v Variant) ([]byte, error) {
	if v.Signer == nil {
		return s.manager, nil
	}
	unsigned, err := uki.Unsigned(s.manager)
	if err != nil {
		return nil, err
	}
	return uki.Sign(unsigned, v.Signer)
}

// overwrite puts a program in another's place. The root is not compressed, so that a file lies in it as it is.
func overwrite(root, old, program []byte) ([]byte, error) {
	at := bytes.Index(root, old)
	if at < 0 || len(program) > len(old) {
		return nil, fmt.Errorf("a program of %d bytes has no place in the root (found at %d, %d bytes)", len(program), at, len(old))
	}
	root = bytes.Clone(root)
	copy(root[at:], program)
	return root, nil
}

// memory is a file of fixed size.
type memory []byte

func (m memory) WriteAt(p []byte, at int64) (int, error) {
	if at < 0 || at+int64(len(p)) > int64(len(m)) {
		return 0, errors.New("past the end")
	}
	return copy(m[at:], p), nil
}

// Flash copies an image's disk with more words on the command line of its kernel image. Releases are made from that.
func (s *System) Flash(disk, to string, words ...string) error {
	var err error
	if s.uki, err = s.kernel(Variant{Version: "v1", Counter: 1, Words: words}, s.hash); err != nil {
		return err
	}
	return s.install(disk, to)
}

// install copies an image's disk with the system's kernel image on both ESPs.
func (s *System) install(disk, to string) error {
	if err := vm.CopyDisk(disk, to, 0); err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	table, _, err := gpt.Read(f, info.Size())
	if err != nil {
		return err
	}
	for _, label := range []string{"esp-a", "esp-b"} {
		_, p := table.Find(label)
		at, size := table.Offset(p), table.Size(p)
		v, err := fat.Open(io.NewSectionReader(f, at, size), size)
		if err != nil {
			return err
		}
		var files []fat.File
		for _, e := range v.Entries() {
			if e.Dir {
				continue
			}
			b, err := v.ReadFile(e.Path, 64<<20)
			if err != nil {
				return err
			}
			if strings.HasPrefix(e.Path, "EFI/Linux/") {
				b = s.uki
			}
			files = append(files, fat.File{Path: e.Path, Content: bytes.NewReader(b)})
		}
		if err := fat.Write(io.NewOffsetWriter(f, at), size, fat.Options{Label: strings.ToUpper(label), Time: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)}, files); err != nil {
			return err
		}
	}
	return f.Sync()
}
