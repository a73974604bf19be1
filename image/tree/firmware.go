package tree

import (
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"tributary.dev/tributary/image/deb"
	"tributary.dev/tributary/image/modules"
)

// blob is a firmware file or a link to one.
type blob struct {
	data []byte
	link string // target, below lib/firmware
	from string
}

const firmwareDir = "lib/firmware/"

// readFirmware reads the firmware of packages that any of the wanted patterns meets, and all links.
func readFirmware(cache *deb.Cache, list []deb.Package) (map[string]blob, error) {
	out := map[string]blob{}
	for _, p := range list {
		err := cache.Walk(p, func(e deb.Entry, body io.Reader) (err error) {
			name, ok := strings.CutPrefix(strings.TrimPrefix(e.Path, "usr/"), firmwareDir)
			switch {
			case !ok || e.Mode.IsDir():
			case e.Mode&fs.ModeSymlink != 0:
				to := path.Join("/", path.Dir(name), e.Link)
				out[name] = blob{link: strings.TrimPrefix(to, "/"), from: p.Name}
			case e.Hard:
				to, _ := strings.CutPrefix(strings.TrimPrefix(e.Link, "usr/"), firmwareDir)
				out[name] = blob{link: to, from: p.Name}
			default:
				b := blob{from: p.Name}
				b.data, err = io.ReadAll(body)
				out[name] = b
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	for name, b := range out { // Debian links these on the machine: update-alternatives(1)
		if plain, ok := strings.CutSuffix(name, "-debian"); ok {
			if _, have := out[plain]; !have {
				out[plain] = blob{link: name, from: b.from}
			}
		}
	}
	return out, nil
}

// firmwareLists reads rootfs/firmware/<class>.list: patterns (path.Match, "*" within one folder) of files below
// /lib/firmware, ! leaves out.
func firmwareLists(rootfs fs.FS, classes []string) (*keep, error) {
	all := &keep{}
	for _, class := range classes {
		b, err := fs.ReadFile(rootfs, "firmware/"+class+".list")
		if err != nil {
			return nil, fmt.Errorf("the profile names the class %s of firmware: %w", class, err)
		}
		k, err := parseKeep(b)
		if err != nil {
			return nil, fmt.Errorf("firmware/%s: %w", class, err)
		}
		all.take = append(all.take, k.take...)
		all.leave = append(all.leave, k.leave...)
	}
	return all, nil
}

// addFirmware puts those files into the root that a kept module may ask for and the lists allow. Links come with
// what they lead to.
func (t *Tree) addFirmware(blobs map[string]blob, kept []*modules.Module, lists *keep) error {
	var wanted []string
	for _, m := range kept {
		wanted = append(wanted, m.Firmware...)
	}
	slices.Sort(wanted)
	names := make([]string, 0, len(blobs))
	for name := range blobs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, pattern := range slices.Compact(wanted) {
		for _, name := range matching(names, blobs, pattern) {
			if lists.wants(name) {
				if err := t.addBlob(blobs, name); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// matching gives the files that a module's word means; a few modules name patterns.
func matching(names []string, blobs map[string]blob, word string) []string {
	if !strings.ContainsAny(word, "*?[") {
		if _, ok := blobs[word]; ok {
			return []string{word}
		}
		return nil
	}
	var out []string
	for _, n := range names {
		if ok, err := path.Match(word, n); ok && err == nil {
			out = append(out, n)
		}
	}
	return out
}

func (t *Tree) addBlob(blobs map[string]blob, name string) error {
	for range 8 {
		b, ok := blobs[name]
		if !ok {
			return nil // a link into a package that the profile does not take
		}
		if b.link == "" {
			return t.Put(firmwareDir+name, File{Mode: 0o644, Data: b.data, From: b.from})
		}
		if _, there := blobs[b.link]; !there {
			return nil
		}
		up := strings.Repeat("../", strings.Count(name, "/"))
		if err := t.Put(firmwareDir+name, File{Mode: fs.ModeSymlink | 0o777, Link: up + b.link, From: b.from}); err != nil {
			return err
		}
		name = b.link
	}
	return fmt.Errorf("%w: firmware %s is a circle of links", ErrTree, name)
}

// microcode joins the blobs of each vendor that the profile names, by name.
func microcode(cache *deb.Cache, list []deb.Package, vendors []string) (intel, amd []byte, err error) {
	blobs, err := readFirmware(cache, list)
	if err != nil {
		return nil, nil, err
	}
	join := func(vendor, folder string) (out []byte) {
		if !slices.Contains(vendors, vendor) {
			return nil
		}
		var names []string
		for name, b := range blobs {
			if path.Dir(name) == folder && b.link == "" && path.Base(name) != "README" && (vendor != "amd" || path.Ext(name) == ".bin") {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		for _, name := range names {
			out = append(out, blobs[name].data...)
		}
		return out
	}
	return join("intel", "intel-ucode"), join("amd", "amd-ucode"), nil
}
