package tree

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"tributary.dev/tributary/image/deb"
	"tributary.dev/tributary/image/modules"
	"tributary.dev/tributary/image/nvidia"
	"tributary.dev/tributary/image/sbom"
	"tributary.dev/tributary/pkg/disk/extension"
)

// extensions makes what the profile's boxes take up besides the root: for each name rootfs/extensions/NAME/modules.list,
// firmware.list and keep.list, and the set extension-NAME of the lock. Each becomes an EROFS image with its verity tree behind
// it, in the root as a file; the root's index says which hash it must have.
func (b *builder) extensions(ctx context.Context) error {
	var index extension.Index
	for _, name := range b.Profile.Extensions {
		image, entry, err := b.extension(ctx, name)
		if err != nil {
			return fmt.Errorf("extension %s: %w", name, err)
		}
		index.Extensions = append(index.Extensions, entry)
		if err := b.tree.Put(strings.TrimPrefix(entry.File(), "/"), File{Mode: 0o644, Data: image, From: "extension " + name}); err != nil {
			return err
		}
	}
	if len(index.Extensions) == 0 {
		return nil
	}
	text, err := json.MarshalIndent(index, "", " ")
	if err != nil {
		return err
	}
	return b.tree.Text(strings.TrimPrefix(extension.IndexFile, "/"), string(text)+"\n", 0o644)
}

func (b *builder) extension(ctx context.Context, name string) ([]byte, extension.Entry, error) {
	t, err := b.extensionTree(ctx, name)
	if err != nil {
		return nil, extension.Entry{}, err
	}
	file := filepath.Join(b.Out, "extension-"+name+".erofs")
	if err := t.WriteEROFS(file); err != nil {
		return nil, extension.Entry{}, err
	}
	defer os.Remove(file)
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, extension.Entry{}, err
	}
	image, hash, err := extension.Seal(data)
	if err != nil {
		return nil, extension.Entry{}, err
	}
	b.Log.Info("extension built", "name", name, "bytes", len(image))
	return image, extension.Entry{Name: name, Size: int64(len(data)), RootHash: hex.EncodeToString(hash[:])}, nil
}

// extensionTree holds the modules with all that they need, their tables, the firmware they ask for, and files of the
// extension's packages.
func (b *builder) extensionTree(ctx context.Context, name string) (*Tree, error) {
	packages, err := b.lock.Packages(b.Profile.Arch, extensionSets(name, b.Profile.Arch, b.lock)...)
	if err != nil {
		return nil, err
	}
	k, err := b.compile(ctx, name, packages)
	if err != nil {
		return nil, err
	}
	chosen, err := b.extensionModules(name, k)
	if err != nil {
		return nil, err
	}
	t := New()
	if err := t.putModules(b.cache, k, chosen); err != nil {
		return nil, err
	}
	allowed, err := b.extensionList(name, "firmware.list")
	if err != nil {
		return nil, err
	}
	blobs, err := readFirmware(b.cache, packages)
	if err != nil {
		return nil, err
	}
	if err := t.addFirmware(blobs, chosen, allowed); err != nil {
		return nil, err
	}
	if err := t.checkFirmware(k); err != nil {
		return nil, err
	}
	files, err := b.extensionList(name, "keep.list")
	if err != nil {
		return nil, err
	}
	if len(files.take) > 0 {
		if _, err := t.addPackages(b.cache, packages, files); err != nil {
			return nil, err
		}
	}
	if err := b.extensionPrograms(ctx, name, t); err != nil {
		return nil, err
	}
	if err := t.checkBeside(b.tree, b.Profile.Arch); err != nil {
		return nil, err
	}
	// What an extension of another release would say, as systemd's extension-release(5) does.
	return t, t.Text("usr/lib/extension-release.d/extension-release."+name, fmt.Sprintf("ID=tributary\nVERSION_ID=%q\nKERNEL=%s\n", b.Version, b.kernel.Release), 0o644)
}

// extensionList reads a list of patterns; one that is not there is empty.
func (b *builder) extensionList(name, file string) (*keep, error) {
	text, err := fs.ReadFile(b.rootfs, "extensions/"+name+"/"+file)
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	return parseKeep(bytes.TrimSpace(text))
}

func (b *builder) extensionModules(name string, k *kernel) ([]*modules.Module, error) {
	text, err := fs.ReadFile(b.rootfs, "extensions/"+name+"/modules.list")
	if err != nil {
		return nil, err
	}
	list, err := modules.ParseList(name, text)
	if err != nil {
		return nil, err
	}
	choice := k.Choose([]modules.List{list})
	if len(choice.Unknown) > 0 {
		return nil, fmt.Errorf("the kernel %s has no module %s", k.Release, choice.Unknown[0].Name)
	}
	return k.Close(choice)
}

// extensionPrograms compiles the programs of ours that an extension lists: those that need C.
func (b *builder) extensionPrograms(ctx context.Context, name string, t *Tree) error {
	text, err := fs.ReadFile(b.rootfs, "extensions/"+name+"/programs.list")
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if line != nvidia.Helper { // check: program of an extension
			return fmt.Errorf("%w: nobody knows how the program %q is made", ErrTree, line)
		}
		with, err := b.lock.Packages(b.Profile.Arch, "compile", "compile-program")
		if err != nil {
			return fmt.Errorf("%s cannot be compiled: the lock has no C compiler for it (run go run ./image lock): %w", line, err)
		}
		if err := b.cache.Fetch(ctx, with, b.Mirror); err != nil {
			return err
		}
		file, err := nvidia.CompileHelper(ctx, nvidia.HelperConfig{Cache: b.cache, With: with, Root: b.Root, Arch: b.Profile.Arch, Keep: b.Compiled, Log: b.Log})
		if err != nil {
			return err
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := t.Put("usr/bin/"+line, File{Mode: 0o755, Data: data, From: "program " + line}); err != nil {
			return err
		}
		if b.result.Programs == nil {
			b.result.Programs = map[string]string{}
		}
		b.result.Programs[line] = file
	}
	return nil
}

// compile gives the kernel with the modules that the extension has compiled for it, signed.
func (b *builder) compile(ctx context.Context, name string, packages []deb.Package) (*kernel, error) {
	if name != nvidia.Extension {
		return b.kernel, nil
	}
	source, err := nvidia.Source(packages)
	if err != nil {
		return nil, err
	}
	with, err := b.lock.Packages(b.Profile.Arch, "compile", "compile-"+b.Profile.Kernel.Flavour)
	if err != nil {
		return nil, fmt.Errorf("its modules cannot be compiled for this kernel: %w", err)
	}
	c := nvidia.Config{Cache: b.cache, Source: source, With: with, Release: b.kernel.Release, Arch: b.Profile.Arch, Keep: b.Compiled, Log: b.Log}
	objects, ok := c.Kept()
	if !ok {
		if err := b.cache.Fetch(ctx, with, b.Mirror); err != nil {
			return nil, err
		}
		if objects, err = nvidia.Compile(ctx, c); err != nil {
			return nil, err
		}
	}
	placed := map[string][]byte{}
	for _, file := range nvidia.Files {
		object := objects[file]
		version, err := modules.Field(object, "version")
		if err != nil {
			return nil, err
		}
		if b.Sign != nil {
			if object, err = b.Sign(object); err != nil {
				return nil, err
			}
		}
		placed["updates/"+file] = object
		b.result.Drivers = append(b.result.Drivers, sbom.Driver{Name: modules.NameOf(file), Version: version, SHA256: fmt.Sprintf("%x", sha256.Sum256(object)),
			Kernel: b.kernel.Release, Source: source, With: with})
	}
	return b.kernel.with(placed)
}

// checkFirmware says which file a compiled module would ask for in vain.
func (t *Tree) checkFirmware(k *kernel) error {
	for name := range k.more {
		for _, file := range k.Modules[name].Firmware {
			if _, ok := t.Get(firmwareDir + file); !ok { // check: firmware
				return fmt.Errorf("%w: the module %s asks for the firmware %s, which is not there", ErrTree, name, file)
			}
		}
	}
	return nil
}

// checkBeside looks at an extension's programs and libraries: of the architecture, and each library that they name is
// in the extension or in the root.
func (t *Tree) checkBeside(root *Tree, arch string) error {
	both := New()
	for _, from := range []*Tree{root, t} {
		for _, p := range from.Paths() {
			f := from.files[p]
			both.files[p] = f
			if at := libraries(arch) + "/" + path.Base(p); from == t && strings.Contains(path.Base(p), ".so.") {
				both.files[at] = f
			}
		}
	}
	for _, p := range t.Paths() {
		f := t.files[p]
		if bytes.HasPrefix(f.Data, []byte(elf.ELFMAG)) && !strings.HasSuffix(p, ".ko") && !strings.HasPrefix(p, "usr/lib/firmware/") {
			if err := both.checkProgram(p, f, machines[arch], libraries(arch)); err != nil {
				return err
			}
		}
	}
	return nil
}
