package build

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"strings"

	"tributary.dev/tributary/image/initramfs"
	"tributary.dev/tributary/image/installer"
)

// The installer finds these below /install in its initramfs; the image may lie on its medium instead.
const (
	installImage = "install/disk.raw.zst"
	installMap   = "install/disk.raw.bmap"
	installKeys  = "install/keys/"
)

// installWords are the signed command line of the installer: the block map's sum ties the image that it writes to the
// signature, wherever the image lies.
func (b *builder) installWords() string {
	sum := sha256.Sum256(b.image.Map.Encode())
	words := []string{fmt.Sprintf("tributary.install=%x", sum), "tributary.version=" + b.Version, "tributary.profile=" + b.Profile.Name}
	return strings.Join(append(append(words, b.Profile.Cmdline()...), b.Cmdline...), " ")
}

// keyFiles are the variables that enrol our keys beside the vendor's, as they are written to efivarfs, in order.
func (b *builder) keyFiles() ([]initramfs.File, error) {
	vars, err := b.set.Additions(b.Time)
	if err != nil {
		return nil, err
	}
	var out []initramfs.File
	for i, v := range vars {
		out = append(out, initramfs.File{Path: fmt.Sprintf("%s%d-%s-%s", installKeys, i, v.Name, v.GUID), Mode: 0o600, Data: v.File()})
	}
	return out, nil
}

// installUKI is a signed UKI that installs, with those files in its initramfs.
func (b *builder) installUKI(files ...initramfs.File) ([]byte, error) {
	keys, err := b.keyFiles()
	if err != nil {
		return nil, err
	}
	var archive bytes.Buffer
	if err := initramfs.Write(&archive, append(keys, files...)); err != nil {
		return nil, err
	}
	return b.signedUKI(b.installWords(), archive.Bytes())
}

// netboot is the installer with the image inside: one signed file that firmware fetches over HTTP.
func (b *builder) netboot(context.Context) error {
	image, err := os.ReadFile(b.out(ZstdFile))
	if err != nil {
		return err
	}
	out, err := b.installUKI(
		initramfs.File{Path: installImage, Mode: 0o600, Data: image},
		initramfs.File{Path: installMap, Mode: 0o600, Data: b.image.Map.Encode()},
	)
	if err != nil {
		return err
	}
	return os.WriteFile(b.out(NetbootFile), out, 0o644)
}

// installer is the same for a stick or a disc, with the image beside the UKI.
func (b *builder) installer(context.Context) error {
	image, err := os.Open(b.out(ZstdFile))
	if err != nil {
		return err
	}
	defer image.Close()
	info, err := image.Stat()
	if err != nil {
		return err
	}
	uki, err := b.installUKI()
	if err != nil {
		return err
	}
	return installer.Write(b.out(InstallerFile), installer.Medium{
		Arch: b.Profile.Arch, Title: title(b.Profile.Name), UKI: uki,
		Image: io.NewSectionReader(image, 0, info.Size()), Map: b.image.Map.Encode(), Time: b.Time,
	})
}

// title is a name as ISO 9660 takes it for a volume.
func title(name string) string {
	t := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, "tributary "+name)
	return t[:min(len(t), 32)]
}
