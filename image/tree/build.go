package tree

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/image/deb"
	"tributary.dev/tributary/image/initramfs"
	"tributary.dev/tributary/image/sbom"
)

// Config says what to build.
type Config struct {
	Root     string             // the checkout; rootfs/ is below it
	Profile  hwprofiles.Profile // of an image
	Version  string             // of the release, for etc/os-release
	Time     time.Time          // of the release: the least that a box's clock shows
	Cache    string             // folder for packages; "" = Root/.cache/debs
	Lock     string             // file; "" = Root/rootfs/packages.lock
	Programs map[string]string  // files by name: see Names
	Files    map[string][]byte  // more files of the root, by relative path
	Out      string             // folder for the results; made if needed
	Compiled string             // folder where compiled modules are kept; "" = Root/.cache/modules
	// Sign signs modules that are compiled for an extension; nil leaves them without a signature.
	Sign   func(module []byte) ([]byte, error)
	Mirror func() (deb.Mirror, error)
	Log    *slog.Logger
}

// Result names what Build wrote, all in Config.Out.
type Result struct {
	Rootfs        string // root.erofs, a multiple of 4096 bytes
	Kernel        string // vmlinuz: an EFI program
	Initrd        string // initrd.cpio.zst
	Stub          string // stub.efi, of systemd
	BootManager   string // boot.efi, systemd-boot
	DeviceTree    string // board.dtb, of the profile's board; "" when it names none
	Microcode     string // microcode.cpio, to stand before the initrd; "" when the profile has none
	KernelVersion string // uname -r
	OSRelease     []byte // the text of etc/os-release
	Suite         string // Debian's codename
	Packages      []deb.Package
	Modules       []string          // in the root, sorted
	EarlyModules  []string          // in the initramfs, in load order
	Firmware      []string          // below /lib/firmware, sorted
	Drivers       []sbom.Driver     // what was compiled for extensions
	Programs      map[string]string // of ours in extensions: files by name
	RootSize      int64             // bytes of root.erofs
}

// Sets names the sets of the lock that a profile's image is made of.
func Sets(p hwprofiles.Profile, lock *deb.Lock) []string {
	out := []string{"base", "boot", "kernel-" + p.Kernel.Flavour}
	if len(p.Microcode) > 0 {
		out = append(out, "microcode")
	}
	for _, name := range p.Extensions {
		out = append(out, extensionSets(name, p.Arch, lock)...)
	}
	return append(append(out, moduleSets(p, lock)...), firmwareSets(p, lock)...)
}

// moduleSets is modules-<class> for each class of the profile's modules that has one: the programs that the class is of
// no use without. Which of their files the root takes says keep-<set>.list.
func moduleSets(p hwprofiles.Profile, lock *deb.Lock) (out []string) {
	for _, class := range p.Modules {
		if _, ok := lock.Sets[deb.Key{Arch: p.Arch, Set: "modules-" + class}]; ok {
			out = append(out, "modules-"+class)
		}
	}
	return out
}

// extensionSets is the set of an extension's firmware, where it has one.
func extensionSets(name, arch string, lock *deb.Lock) []string {
	if _, ok := lock.Sets[deb.Key{Arch: arch, Set: "extension-" + name}]; ok {
		return []string{"extension-" + name}
	}
	return nil
}

// firmwareSets are firmware-<class> and firmware-<class>+<more> for each class of the profile. A class without a set
// only says which files of the others' packages are taken.
func firmwareSets(p hwprofiles.Profile, lock *deb.Lock) []string {
	var out []string
	for k := range lock.Sets {
		class, ok := strings.CutPrefix(k.Set, "firmware-")
		class, _, _ = strings.Cut(class, "+")
		if ok && k.Arch == p.Arch && slices.Contains(p.Firmware, class) {
			out = append(out, k.Set)
		}
	}
	slices.Sort(out)
	return out
}

// Build makes the root image, the initramfs, and takes out of the packages what a UKI and an ESP need besides.
// Packages that are not in the cache are fetched; a filled cache needs no network.
func Build(ctx context.Context, c Config) (*Result, error) {
	b, err := prepare(ctx, c)
	if err != nil {
		return nil, err
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"packages", b.packages},
		{"kernel", b.kernelAndModules},
		{"firmware", b.firmware},
		{"extensions", func() error { return b.extensions(ctx) }},
		{"programs", b.programs},
		{"made files", b.made},
		{"closure", func() error { return b.tree.CheckClosed(c.Profile.Arch, libraries(c.Profile.Arch)) }},
		{"boot parts", b.bootParts},
		{"root image", b.rootImage},
	} {
		at := time.Now()
		if err := step.do(); err != nil {
			return nil, fmt.Errorf("%s: %w", step.name, err)
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b.Log.Debug("built", "step", step.name, "took", time.Since(at))
	}
	b.Log.Info("root built", "profile", c.Profile.Name, "bytes", b.result.RootSize, "modules", len(b.result.Modules), "kernel", b.result.KernelVersion)
	return b.result, nil
}

// builder is one build under way.
type builder struct {
	Config
	rootfs fs.FS
	lock   *deb.Lock
	cache  *deb.Cache
	tree   *Tree
	kernel *kernel
	result *Result
}

func prepare(ctx context.Context, c Config) (*builder, error) {
	if c.Cache == "" {
		c.Cache = filepath.Join(c.Root, ".cache/debs")
	}
	if c.Compiled == "" {
		c.Compiled = filepath.Join(c.Root, ".cache/modules")
	}
	if c.Lock == "" {
		c.Lock = filepath.Join(c.Root, "rootfs/packages.lock")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Mirror == nil {
		c.Mirror = func() (deb.Mirror, error) { return deb.MachineMirror(os.DirFS("/")) }
	}
	if machines[c.Profile.Arch] == 0 {
		return nil, fmt.Errorf("profile %s is for %q; images are built for %v", c.Profile.Name, c.Profile.Arch, slices.Sorted(maps.Keys(machines)))
	}
	lock, err := deb.ReadLock(c.Lock)
	if err != nil {
		return nil, err
	}
	b := &builder{Config: c, lock: lock, rootfs: os.DirFS(filepath.Join(c.Root, "rootfs")), tree: New(), result: &Result{Suite: lock.Suite}}
	b.cache = &deb.Cache{Dir: c.Cache, Log: c.Log}
	if b.result.Packages, err = lock.Packages(c.Profile.Arch, Sets(c.Profile, lock)...); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.Out, 0o755); err != nil {
		return nil, err
	}
	return b, b.cache.Fetch(ctx, b.result.Packages, c.Mirror)
}

func (b *builder) set(name string) ([]deb.Package, error) {
	return b.lock.Packages(b.Profile.Arch, name)
}

func (b *builder) packages() error {
	base, err := b.set("base")
	if err != nil {
		return err
	}
	certificates, err := b.addSet(base, "keep.list")
	if err != nil {
		return err
	}
	for _, set := range moduleSets(b.Profile, b.lock) {
		list, err := b.set(set)
		if err != nil {
			return err
		}
		list = slices.DeleteFunc(list, func(p deb.Package) bool {
			return slices.ContainsFunc(base, func(b deb.Package) bool { return b.Name == p.Name })
		})
		if _, err := b.addSet(list, "keep-"+set+".list"); err != nil {
			return err
		}
	}
	bundle, err := joinCertificates(certificates)
	if err != nil {
		return err
	}
	if _, ok := b.tree.files["usr/lib64"]; ok { // where amd64's loader must be
		b.tree.files["lib64"] = File{Mode: fs.ModeSymlink | 0o777, Link: "usr/lib64", From: made}
	}
	return b.tree.Text("etc/ssl/certs/ca-certificates.crt", string(bundle), 0o644)
}

// addSet takes what a list of rootfs/ names of some packages.
func (b *builder) addSet(list []deb.Package, keepFile string) (certificates map[string][]byte, err error) {
	text, err := fs.ReadFile(b.rootfs, keepFile)
	if err != nil {
		return nil, err
	}
	k, err := parseKeep(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", keepFile, err)
	}
	return b.tree.addPackages(b.cache, list, k)
}

// joinCertificates makes one file of all certificates, by name, as Debian's update-ca-certificates would.
func joinCertificates(files map[string][]byte) ([]byte, error) {
	var out bytes.Buffer
	n := 0
	for _, name := range slices.Sorted(maps.Keys(files)) {
		for rest := files[name]; ; n++ {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			if _, err := x509.ParseCertificate(block.Bytes); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if err := pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes}); err != nil {
				return nil, err
			}
		}
	}
	if n == 0 {
		return nil, errors.New("no package brings CA certificates")
	}
	return out.Bytes(), nil
}

func (b *builder) kernelAndModules() error {
	list, err := b.set("kernel-" + b.Profile.Kernel.Flavour)
	if err != nil {
		return err
	}
	if b.kernel, err = readKernel(b.cache, list); err != nil {
		return err
	}
	kept, err := b.tree.addModules(b.cache, b.kernel, b.rootfs, b.Profile)
	if err != nil {
		return err
	}
	for _, m := range kept {
		b.result.Modules = append(b.result.Modules, m.Name)
	}
	slices.Sort(b.result.Modules)
	dogs, rest, err := b.kernel.early(b.rootfs, b.Profile)
	if err != nil {
		return err
	}
	for _, m := range append(slices.Clone(dogs), rest...) {
		b.result.EarlyModules = append(b.result.EarlyModules, m.Name)
	}
	init, err := b.program("edged-boot")
	if err != nil {
		return err
	}
	packed, err := b.kernel.initrd(b.cache, init, dogs, rest)
	if err != nil {
		return err
	}
	b.result.KernelVersion = b.kernel.Release
	return errors.Join(b.write(&b.result.Initrd, "initrd.cpio.zst", packed), b.write(&b.result.Kernel, "vmlinuz", b.kernel.image))
}

func (b *builder) firmware() error {
	allowed, err := firmwareLists(b.rootfs, b.Profile.Firmware)
	if err != nil {
		return err
	}
	list, err := b.lock.Packages(b.Profile.Arch, firmwareSets(b.Profile, b.lock)...)
	if err != nil {
		return err
	}
	blobs, err := readFirmware(b.cache, list)
	if err != nil {
		return err
	}
	if err := b.tree.addFirmware(blobs, b.kernel.named(b.result.Modules), allowed); err != nil {
		return err
	}
	for _, p := range b.tree.Paths() {
		if name, ok := strings.CutPrefix(p, "usr/"+firmwareDir); ok && !b.tree.files[p].Mode.IsDir() {
			b.result.Firmware = append(b.result.Firmware, name)
		}
	}
	return nil
}

func (b *builder) bootParts() error {
	list, err := b.set("boot")
	if err != nil {
		return err
	}
	efi := map[string]string{"amd64": "x64", "arm64": "aa64"}[b.Profile.Arch]
	const dir = "usr/lib/systemd/boot/efi/"
	parts := map[string][]byte{dir + "linux" + efi + ".efi.stub": nil, dir + "systemd-boot" + efi + ".efi": nil}
	for _, p := range list {
		if err := readInto(b.cache, p, parts); err != nil {
			return err
		}
	}
	for name, data := range parts {
		if data == nil {
			return fmt.Errorf("no package of the set boot holds %s", name)
		}
	}
	if err := b.deviceTree(); err != nil {
		return err
	}
	err = errors.Join(b.write(&b.result.Stub, "stub.efi", parts[dir+"linux"+efi+".efi.stub"]),
		b.write(&b.result.BootManager, "boot.efi", parts[dir+"systemd-boot"+efi+".efi"]))
	if err != nil || len(b.Profile.Microcode) == 0 {
		return err
	}
	if list, err = b.set("microcode"); err != nil {
		return err
	}
	intel, amd, err := microcode(b.cache, list, b.Profile.Microcode)
	if err != nil {
		return err
	}
	early, err := initramfs.Microcode(intel, amd)
	if err != nil || early == nil {
		return err
	}
	return b.write(&b.result.Microcode, "microcode.cpio", early)
}

// deviceTree takes the board's out of the kernel's package.
func (b *builder) deviceTree() error {
	name := b.Profile.Kernel.DeviceTree
	if name == "" {
		return nil
	}
	at := "usr/lib/linux-image-" + b.kernel.Release + "/" + name
	parts := map[string][]byte{at: nil}
	if err := readInto(b.cache, b.kernel.pkg, parts); err != nil {
		return err
	}
	if parts[at] == nil {
		return fmt.Errorf("%s has no device tree %s", b.kernel.pkg, name)
	}
	return b.write(&b.result.DeviceTree, "board.dtb", parts[at])
}

func (b *builder) rootImage() error {
	b.result.Rootfs = filepath.Join(b.Out, "root.erofs")
	if err := b.tree.WriteEROFS(b.result.Rootfs); err != nil {
		return err
	}
	st, err := os.Stat(b.result.Rootfs)
	if err != nil {
		return err
	}
	b.result.RootSize = st.Size()
	if slot := b.Profile.Partitions.Root << 20; st.Size() > slot {
		return fmt.Errorf("the root has %d bytes, the slot of profile %s has %d", st.Size(), b.Profile.Name, slot)
	}
	return nil
}

func (b *builder) write(to *string, name string, data []byte) error {
	*to = filepath.Join(b.Out, name)
	return os.WriteFile(*to, data, 0o644)
}

func (b *builder) program(name string) ([]byte, error) {
	file, ok := b.Programs[name]
	if !ok {
		return nil, fmt.Errorf("program %s is not among those given", name)
	}
	return os.ReadFile(file)
}

// libraries is where Debian puts an architecture's libraries.
func libraries(arch string) string {
	return "usr/lib/" + map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[arch] + "-linux-gnu"
}

func unixText(t time.Time) string { return strconv.FormatInt(t.Unix(), 10) + "\n" }
