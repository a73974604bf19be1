package build

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"tributary.dev/tributary/image/uki"
	"tributary.dev/tributary/pkg/disk/bmap"
	"tributary.dev/tributary/pkg/disk/fat"
	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/pkg/disk/verity"
)

// Verify reads the results in a folder again and compares all that they say of each other: sums, signatures by one of
// those certificates, the value of PCR 11, the partition table, both ESPs, root and tree. The raw disk may be missing.
func Verify(dir string, trusted ...*x509.Certificate) (*Manifest, error) {
	text, err := os.ReadFile(filepath.Join(dir, ManifestFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s holds no %s: no build has ended there; build again", dir, ManifestFile)
	}
	if err != nil {
		return nil, err
	}
	var m Manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, fmt.Errorf("%s: %w", ManifestFile, err)
	}
	for name, want := range m.Files {
		if filepath.Base(name) != name {
			return nil, fmt.Errorf("%s names a file %q elsewhere", ManifestFile, name)
		}
		got, err := sum(filepath.Join(dir, name))
		if name == RawFile && errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if got != want {
			return nil, fmt.Errorf("%s is not the file that was built: %d bytes with SHA-256 %s", name, got.Size, got.SHA256)
		}
	}
	image, err := verifyUKI(filepath.Join(dir, UKIFile), m, trusted)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", UKIFile, err)
	}
	if _, err := os.Stat(filepath.Join(dir, RawFile)); errors.Is(err, os.ErrNotExist) {
		return &m, nil
	}
	return &m, verifyDisk(dir, m, image, trusted)
}

func verifyUKI(path string, m Manifest, trusted []*x509.Certificate) ([]byte, error) {
	image, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if err := uki.Verify(image, trusted...); err != nil {
		return nil, err
	}
	pcr, err := uki.PCR11(image)
	if err != nil {
		return nil, err
	}
	if hex.EncodeToString(pcr[:]) != m.PCR11 {
		return nil, fmt.Errorf("it makes PCR 11 %x", pcr)
	}
	line, err := uki.Read(image, ".cmdline")
	if err != nil || string(line) != m.Cmdline {
		return nil, fmt.Errorf("its command line is %q: %w", line, errors.Join(err))
	}
	return image, nil
}

func verifyDisk(dir string, m Manifest, image []byte, trusted []*x509.Certificate) error {
	f, err := os.Open(filepath.Join(dir, RawFile))
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := verifyMap(f, filepath.Join(dir, MapFile)); err != nil {
		return err
	}
	t, from, err := gpt.Read(f, info.Size())
	if err != nil || from != gpt.Primary {
		return fmt.Errorf("%s: the table was read from its %s: %w", RawFile, from, errors.Join(err))
	}
	part := func(label string) (*io.SectionReader, error) {
		n, p := t.Find(label)
		if n == 0 {
			return nil, fmt.Errorf("%s: no partition %s", RawFile, label)
		}
		return io.NewSectionReader(f, t.Offset(p), t.Size(p)), nil
	}
	for _, label := range []string{"esp-a", "esp-b"} {
		r, err := part(label)
		if err != nil {
			return err
		}
		if err := verifyESP(r, m, image, trusted); err != nil {
			return fmt.Errorf("%s: %w", label, err)
		}
	}
	root, err := part("root-a")
	if err != nil {
		return err
	}
	tree, err := part("root-a-verity")
	if err != nil {
		return err
	}
	hash, err := hex.DecodeString(m.RootHash)
	if err != nil || len(hash) != 32 {
		return fmt.Errorf("root hash %q", m.RootHash)
	}
	id, _ := gpt.RootIDs([32]byte(hash))
	if _, p := t.Find("root-a"); p.ID != id {
		return fmt.Errorf("root-a has the GUID %s, its root hash asks for %s", p.ID, id)
	}
	return verity.Verify(root, tree, [32]byte(hash))
}

func verifyMap(f *os.File, path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	m, err := bmap.Decode(text)
	if err != nil {
		return err
	}
	for _, r := range m.Ranges {
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(f, r.Offset(), m.Size(r))); err != nil {
			return err
		}
		if [32]byte(h.Sum(nil)) != r.Sum {
			return fmt.Errorf("%s: blocks %d to %d are not as the map says", RawFile, r.First, r.Last)
		}
	}
	return nil
}

func verifyESP(r *io.SectionReader, m Manifest, image []byte, trusted []*x509.Certificate) error {
	v, err := fat.Open(r, r.Size())
	if err != nil {
		return err
	}
	if err := v.Check(); err != nil {
		return err
	}
	programs := 0
	for _, e := range v.Entries() {
		if e.Dir || filepath.Ext(e.Path) != ".efi" && filepath.Ext(e.Path) != ".EFI" {
			continue
		}
		b, err := v.ReadFile(e.Path, 1<<30)
		if err != nil {
			return err
		}
		if err := uki.Verify(b, trusted...); err != nil {
			return fmt.Errorf("%s: %w", e.Path, err)
		}
		programs++
	}
	got, err := v.ReadFile("EFI/Linux/tributary-1.efi", int64(len(image)))
	if err != nil || string(got) != string(image) {
		return fmt.Errorf("its UKI is another: %w", errors.Join(err))
	}
	if programs != 2 {
		return fmt.Errorf("%d EFI programs: want the boot manager and the UKI of release %s", programs, m.Version)
	}
	return nil
}
