package tree

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"tributary.dev/tributary/image/modules"
	"tributary.dev/tributary/pkg/disk/extension"
)

// extensions makes what the profile's boxes take up besides the root: for each name rootfs/extensions/NAME/modules.list
// and firmware.list, and the set extension-NAME of the lock. Each becomes an EROFS image with its verity tree behind
// it, in the root as a file; the root's index says which hash it must have.
func (b *builder) extensions() error {
	var index extension.Index
	for _, name := range b.Profile.Extensions {
		image, entry, err := b.extension(name)
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

func (b *builder) extension(name string) ([]byte, extension.Entry, error) {
	t, err := b.extensionTree(name)
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

// extensionTree holds the modules with all that they need, their tables, and the firmware they ask for.
func (b *builder) extensionTree(name string) (*Tree, error) {
	text, err := fs.ReadFile(b.rootfs, "extensions/"+name+"/modules.list")
	if err != nil {
		return nil, err
	}
	list, err := modules.ParseList(name, text)
	if err != nil {
		return nil, err
	}
	choice := b.kernel.Choose([]modules.List{list})
	if len(choice.Unknown) > 0 {
		return nil, fmt.Errorf("the kernel %s has no module %s", b.kernel.Release, choice.Unknown[0].Name)
	}
	chosen, err := b.kernel.Close(choice)
	if err != nil {
		return nil, err
	}
	t := New()
	if err := t.putModules(b.cache, b.kernel, chosen); err != nil {
		return nil, err
	}
	text, err = fs.ReadFile(b.rootfs, "extensions/"+name+"/firmware.list")
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	allowed, err := parseKeep(bytes.TrimSpace(text))
	if err != nil {
		return nil, err
	}
	packages, err := b.lock.Packages(b.Profile.Arch, extensionSets(name, b.Profile.Arch, b.lock)...)
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
	// What an extension of another release would say, as systemd's extension-release(5) does.
	return t, t.Text("usr/lib/extension-release.d/extension-release."+name, fmt.Sprintf("ID=tributary\nVERSION_ID=%q\nKERNEL=%s\n", b.Version, b.kernel.Release), 0o644)
}
