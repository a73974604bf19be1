// Package debtest answers: how do tests get Debian packages and kernel modules without a network?
package debtest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Member is one file of a made-up package; Kind is a tar type, regular when 0; Mode is 0644 when 0.
type Member struct {
	Name, Body, Link string
	Kind             byte
	Mode             int64
}

// Make builds a package as dpkg-deb does: ar with a control and a data archive, packed as ext says (.xz .zst .gz or
// nothing). It panics when that fails, which only a slip in a test can bring about.
func Make(ext string, members ...Member) []byte {
	var data bytes.Buffer
	packer, err := map[string]func(io.Writer) (io.WriteCloser, error){
		".xz":  func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) },
		".zst": func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) },
		".gz":  func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil },
		"":     func(w io.Writer) (io.WriteCloser, error) { return plain{w}, nil },
	}[ext](&data)
	must(err)
	out := tar.NewWriter(packer)
	for _, m := range members {
		h := &tar.Header{Name: m.Name, Typeflag: m.Kind, Linkname: m.Link, Mode: m.Mode, Size: int64(len(m.Body))}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		must(out.WriteHeader(h))
		_, err := io.WriteString(out, m.Body)
		must(err)
	}
	must(out.Close())
	must(packer.Close())
	var ar bytes.Buffer
	ar.WriteString("!<arch>\n")
	for _, part := range []struct {
		name string
		body []byte
	}{{"debian-binary", []byte("2.0\n")}, {"control.tar.xz", []byte("odd")}, {"data.tar" + ext, data.Bytes()}} {
		fmt.Fprintf(&ar, "%-16s%-12d%-6d%-6d%-8o%-10d`\n", part.name, 0, 0, 0, 0o100644, len(part.body))
		ar.Write(part.body)
		if len(part.body)%2 == 1 {
			ar.WriteByte('\n')
		}
	}
	return ar.Bytes()
}

type plain struct{ io.Writer }

func (plain) Close() error { return nil }

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// XZ packs b.
func XZ(b []byte) []byte {
	var out bytes.Buffer
	w, err := xz.NewWriter(&out)
	must(err)
	_, err = w.Write(b)
	must(err)
	must(w.Close())
	return out.Bytes()
}

// Module makes an ELF object that says of itself what info holds ("alias=…", "depends=…"); no kernel loads it.
func Module(info ...string) []byte {
	modinfo := []byte(strings.Join(info, "\x00") + "\x00")
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	const header, section = 64, 64
	at := uint64(header)
	var out bytes.Buffer
	write := func(v any) { must(binary.Write(&out, binary.LittleEndian, v)) }
	write(elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1, Shoff: at + uint64(len(modinfo)+len(names)),
		Ehsize: header, Shentsize: section, Shnum: 3, Shstrndx: 2,
	})
	out.Write(modinfo)
	out.Write(names)
	write(elf.Section64{})
	write(elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Flags: uint64(elf.SHF_ALLOC), Off: at, Size: uint64(len(modinfo)), Addralign: 1})
	write(elf.Section64{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: at + uint64(len(modinfo)), Size: uint64(len(names)), Addralign: 1})
	return out.Bytes()
}
