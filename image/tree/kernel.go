package tree

import (
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/image/deb"
	"tributary.dev/tributary/image/initramfs"
	"tributary.dev/tributary/image/modules"
)

// kernel is a kernel package as read, without the modules' bytes.
type kernel struct {
	*modules.Kernel
	image []byte // the bootable image, an EFI program
	pkg   deb.Package
	more  map[string][]byte // modules that were compiled for it, by name
}

// with gives the same kernel with more modules, by path below /lib/modules/<release>.
func (k *kernel) with(objects map[string][]byte) (*kernel, error) {
	out := &kernel{pkg: k.pkg, image: k.image, more: map[string][]byte{}}
	out.Kernel = &modules.Kernel{Release: k.Release, Modules: maps.Clone(k.Modules), Order: k.Order, Builtin: k.Builtin, Files: k.Files}
	for at, object := range objects {
		m, err := modules.Parse(at, object)
		if err != nil {
			return nil, err
		}
		out.Modules[m.Name], out.more[m.Name] = m, object
	}
	return out, nil
}

const (
	modulesDir = "lib/modules/"
	watchdogs  = "watchdog" // the class of watchdogs
)

// readKernel finds the kernel among the packages of its set: a metapackage and the kernel proper.
func readKernel(cache *deb.Cache, list []deb.Package) (*kernel, error) {
	for _, p := range list {
		k, err := readKernelPackage(cache, p)
		if err != nil {
			return nil, err
		}
		if k.image != nil {
			return k, nil
		}
	}
	return nil, fmt.Errorf("none of the packages %v holds a kernel", list)
}

func readKernelPackage(cache *deb.Cache, p deb.Package) (*kernel, error) {
	k := &kernel{Kernel: &modules.Kernel{Modules: map[string]*modules.Module{}, Builtin: map[string]bool{}, Files: map[string][]byte{}}, pkg: p}
	err := cache.Walk(p, func(e deb.Entry, body io.Reader) (err error) {
		if body == nil {
			return nil
		}
		at := strings.TrimPrefix(e.Path, "usr/")
		if release, ok := strings.CutPrefix(at, "boot/vmlinuz-"); ok {
			k.Release = release
			k.image, err = io.ReadAll(body)
			return err
		}
		_, inside, ok := strings.Cut(strings.TrimPrefix(at, modulesDir), "/")
		switch {
		case !ok || !strings.HasPrefix(at, modulesDir):
			return nil
		case strings.HasSuffix(inside, ".ko"):
			object, err := io.ReadAll(body)
			if err != nil {
				return err
			}
			m, err := modules.Parse(inside, object)
			if err != nil {
				return err
			}
			k.Modules[m.Name] = m
		case strings.HasPrefix(inside, "modules."):
			k.Files[inside], err = io.ReadAll(body)
		}
		return err
	})
	k.Order = modules.ReadBuiltin(k.Files["modules.order"])
	for _, name := range modules.ReadBuiltin(k.Files["modules.builtin"]) {
		k.Builtin[name] = true
	}
	return k, err
}

// readModules fetches the bytes of some modules, by name.
func (k *kernel) readModules(cache *deb.Cache, wanted []*modules.Module) (map[string][]byte, error) {
	at := map[string]string{}
	out := map[string][]byte{}
	for _, m := range wanted {
		if object, ok := k.more[m.Name]; ok {
			out[m.Name] = object
			continue
		}
		at[modulesDir+k.Release+"/"+m.Path] = m.Name
	}
	err := cache.Walk(k.pkg, func(e deb.Entry, body io.Reader) (err error) {
		if name, ok := at[strings.TrimPrefix(e.Path, "usr/")]; ok && body != nil {
			out[name], err = io.ReadAll(body)
		}
		return err
	})
	if err == nil && len(out) != len(wanted) {
		err = fmt.Errorf("%s holds %d of %d modules", k.pkg, len(out), len(wanted))
	}
	return out, err
}

// lists reads rootfs/modules/<class>.list; for the initramfs, initramfs/<class>.list goes first where it exists.
func lists(rootfs fs.FS, classes []string, early bool) ([]modules.List, error) {
	var out []modules.List
	for _, class := range classes {
		names := []string{"modules/" + class + ".list"}
		if early {
			names = append([]string{"modules/initramfs/" + class + ".list"}, names...)
		}
		var b []byte
		var err error
		for _, name := range names {
			if b, err = fs.ReadFile(rootfs, name); err == nil {
				break
			}
		}
		if err != nil {
			return nil, fmt.Errorf("the profile names the class %s of modules: %w", class, err)
		}
		l, err := modules.ParseList(class, b)
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

// early chooses the initramfs' modules: the profile's watchdogs first, with what they hang on, then the classes.
// The list that /init reads has them in load order. What only a watchdog needs is put in a folder watchdog/, which is
// how /init tells where the watchdogs end.
func (k *kernel) early(rootfs fs.FS, p hwprofiles.Profile) (dogs, rest []*modules.Module, err error) {
	classes, err := lists(rootfs, p.Initramfs, true)
	if err != nil {
		return nil, nil, err
	}
	isDogs := func(l modules.List) bool { return l.Class == watchdogs }
	after := k.Choose(classes).After
	dog := modules.Choice{After: after} // which ones, the profile says; the class only says what goes before them
	for _, name := range p.Watchdog.Drivers {
		dog.Names = append(dog.Names, modules.NameOf(name))
	}
	others := modules.Choice{After: after}
	for _, name := range k.Choose(slices.DeleteFunc(classes, isDogs)).Names {
		if !slices.Contains(dog.Names, name) && !k.isWatchdog(name) {
			others.Names = append(others.Names, name)
		}
	}
	return k.LoadOrder(dog), k.LoadOrder(others), nil
}

func (k *kernel) isWatchdog(name string) bool {
	m := k.Modules[name]
	return m != nil && (strings.Contains(m.Path, "/watchdog/") || strings.HasSuffix(name, "_wdt") || strings.HasSuffix(name, "_watchdog") || name == "softdog")
}

// initrd makes the initramfs: /init, the modules, modules.list, and beside the modules the two tables by which /init
// finds what the devices ask for.
func (k *kernel) initrd(cache *deb.Cache, init []byte, dogs, rest []*modules.Module) ([]byte, error) {
	objects, err := k.readModules(cache, union(dogs, rest))
	if err != nil {
		return nil, err
	}
	files := []initramfs.File{{Path: "init", Mode: 0o755, Data: init}}
	for _, dir := range []string{"dev", "proc", "sys", "run", "sysroot", "etc"} {
		files = append(files, initramfs.File{Path: dir, Mode: fs.ModeDir | 0o755})
	}
	list := "# Modules in the order in which /init loads them; watchdogs first.\n"
	base := modulesDir + k.Release + "/"
	places := map[string]string{}
	put := func(m *modules.Module, at string) {
		list += "/" + at + "\n"
		places[m.Name] = strings.TrimPrefix(at, base)
		if !slices.ContainsFunc(files, func(f initramfs.File) bool { return f.Path == at }) {
			files = append(files, initramfs.File{Path: at, Mode: 0o644, Data: objects[m.Name]})
		}
	}
	for _, m := range dogs {
		put(m, base+"watchdog/"+path.Base(m.Path))
	}
	for _, m := range rest {
		at := base + m.Path
		if slices.Contains(dogs, m) {
			at = base + "watchdog/" + path.Base(m.Path) // the same file, loaded even if the watchdogs' turn ended before it
		}
		put(m, at)
	}
	dep, alias := k.earlyTables(places, rest)
	files = append(files, initramfs.File{Path: "modules.list", Mode: 0o644, Data: []byte(list)},
		initramfs.File{Path: base + "modules.dep", Mode: 0o644, Data: dep}, initramfs.File{Path: base + "modules.alias", Mode: 0o644, Data: alias})
	return initramfs.Pack(files)
}

// earlyTables are modules.dep and modules.alias of modules that lie at places of their own, in load order.
func (k *kernel) earlyTables(places map[string]string, list []*modules.Module) (dep, alias []byte) {
	for _, m := range list {
		dep = append(dep, places[m.Name]+":"...)
		order := k.LoadOrder(modules.Choice{Names: []string{m.Name}})
		slices.Reverse(order) // the last is to be loaded first
		for _, need := range order {
			if at := places[need.Name]; at != "" && need != m {
				dep = append(dep, " "+at...)
			}
		}
		dep = append(dep, '\n')
		for _, a := range m.Aliases {
			alias = fmt.Appendf(alias, "alias %s %s\n", a, m.Name)
		}
	}
	return dep, alias
}

func union(a, b []*modules.Module) []*modules.Module {
	out := slices.Clone(a)
	for _, m := range b {
		if !slices.Contains(a, m) {
			out = append(out, m)
		}
	}
	return out
}

// addModules puts the profile's modules and their tables into the root and returns them.
func (t *Tree) addModules(cache *deb.Cache, k *kernel, rootfs fs.FS, p hwprofiles.Profile) ([]*modules.Module, error) {
	classes, err := lists(rootfs, p.Modules, false)
	if err != nil {
		return nil, err
	}
	choice := k.Choose(classes)
	for _, name := range p.Watchdog.Drivers {
		choice.Names = append(choice.Names, modules.NameOf(name))
	}
	chosen, err := k.Close(choice)
	if err != nil {
		return nil, err
	}
	return chosen, t.putModules(cache, k, chosen)
}

// putModules puts modules and their tables there.
func (t *Tree) putModules(cache *deb.Cache, k *kernel, chosen []*modules.Module) error {
	objects, err := k.readModules(cache, chosen)
	if err != nil {
		return err
	}
	base := modulesDir + k.Release + "/"
	for _, m := range chosen {
		if err := t.Put(base+m.Path, File{Mode: 0o644, Data: objects[m.Name], From: k.pkg.Name}); err != nil {
			return err
		}
	}
	for name, b := range k.Tables(chosen) {
		if err := t.Put(base+name, File{Mode: 0o644, Data: b, From: made}); err != nil {
			return err
		}
	}
	return nil
}
