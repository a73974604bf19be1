package tree

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"strings"
)

// Machine is the ELF machine of an architecture.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// CheckClosed looks at every program and library: it must be of the architecture, and its loader and each library
// that it names must be there. It also refuses set-id bits, files that anybody may write, and links that lead nowhere
// but for those into what is mounted later.
func (t *Tree) CheckClosed(arch, libraries string) error {
	for _, p := range t.Paths() {
		f := t.files[p]
		switch {
		case f.Mode&(fs.ModeSetuid|fs.ModeSetgid) != 0:
			return fmt.Errorf("%w: %s of %s has a set-id bit", ErrTree, p, f.From)
		case f.Mode&fs.ModeSymlink != 0:
			if _, _, ok := t.Resolve(p); !ok && !mountedLater(f.Link) {
				return fmt.Errorf("%w: link %s of %s leads to %s, which is not there", ErrTree, p, f.From, f.Link)
			}
		case f.Mode.Perm()&0o022 != 0 && f.Mode&fs.ModeSticky == 0:
			return fmt.Errorf("%w: anybody may write %s of %s", ErrTree, p, f.From)
		case bytes.HasPrefix(f.Data, []byte(elf.ELFMAG)) && !strings.HasSuffix(p, ".ko") && !strings.HasPrefix(p, "usr/lib/firmware/"):
			if err := t.checkProgram(p, f, machines[arch], libraries); err != nil {
				return err
			}
		}
	}
	return nil
}

func mountedLater(link string) bool {
	link = strings.TrimPrefix(link, "..")
	return strings.HasPrefix(link, "/run/") || strings.HasPrefix(link, "/proc/")
}

func (t *Tree) checkProgram(p string, f File, machine elf.Machine, libraries string) error {
	e, err := elf.NewFile(bytes.NewReader(f.Data))
	if err != nil {
		return fmt.Errorf("%w: %s of %s: %w", ErrTree, p, f.From, err)
	}
	defer e.Close()
	if e.Machine != machine {
		return fmt.Errorf("%w: %s of %s is for %s", ErrTree, p, f.From, e.Machine)
	}
	for _, prog := range e.Progs {
		if prog.Type == elf.PT_INTERP && prog.Filesz < 4096 {
			b := make([]byte, prog.Filesz)
			if _, err := prog.ReadAt(b, 0); err != nil {
				return fmt.Errorf("%w: %s: %w", ErrTree, p, err)
			}
			loader := strings.TrimRight(string(b), "\x00")
			if _, _, ok := t.Resolve(loader); !ok {
				return fmt.Errorf("%w: %s of %s is started by %s, which is not there", ErrTree, p, f.From, loader)
			}
		}
	}
	needed, err := e.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrTree, p, err)
	}
	for _, lib := range needed {
		if _, _, ok := t.Resolve(libraries + "/" + lib); !ok {
			return fmt.Errorf("%w: %s of %s needs %s, which is not there", ErrTree, p, f.From, lib)
		}
	}
	return nil
}
