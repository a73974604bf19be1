// Package build answers: how do sources, packages and keys become the files that go onto boxes?
//
// The steps read top to bottom in Build. The same inputs (the keys are one) give the same bits; build.json beside the
// results says what they are.
package build

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/image/bundle"
	"tributary.dev/tributary/image/deb"
	"tributary.dev/tributary/image/disk"
	"tributary.dev/tributary/image/kernel"
	"tributary.dev/tributary/image/keys"
	"tributary.dev/tributary/image/modules"
	"tributary.dev/tributary/image/sbom"
	"tributary.dev/tributary/image/tree"
	"tributary.dev/tributary/image/uki"
	"tributary.dev/tributary/pkg/disk/fat"
	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/pkg/disk/verity"
	"tributary.dev/tributary/pkg/efi"
	"tributary.dev/tributary/pkg/release"
	"tributary.dev/tributary/pkg/tpm"
)

// Config says what to build.
type Config struct {
	Root     string // the checkout
	Profile  hwprofiles.Profile
	Version  string    // of the release: letters, digits, dots, dashes
	Counter  uint64    // the security floor that the release sets once confirmed
	Time     time.Time // of the release: what no box's clock goes below
	Out      string    // folder for the results
	Cache    string    // "" = Root/.cache
	Keys     string    // "" = Cache/keys
	Lock     string    // "" = rootfs/packages.lock
	Settings []byte    // tributary.yaml for CONFIG; nil leaves an example there
	Previous []string  // update bundles that boxes run now: deltas are made from them
	Preload  string    // folder that the root carries as /usr/share/tributary/preload; "" = none
	Cmdline  []string  // further words for the kernel
	Bundle   bool      // the update bundle also in a quick build
	Quick    bool      // the raw disk and its parts alone: for tests
	Log      *slog.Logger
}

// Manifest is build.json: what was built, from what, and the sums of all files.
type Manifest struct {
	Profile  string            `json:"profile"`
	Arch     string            `json:"arch"`
	Version  string            `json:"version"`
	Counter  uint64            `json:"counter"`
	Time     time.Time         `json:"time"`
	Go       string            `json:"go"`
	Kernel   string            `json:"kernel"`
	Cmdline  string            `json:"cmdline"`
	RootHash string            `json:"roothash"`
	PCR11    string            `json:"pcr11"`  // SHA-256, after the stub, before any phase
	Signer   string            `json:"signer"` // SHA-256 of the db certificate
	Root     int64             `json:"root"`   // bytes of the root file system
	UKI      int64             `json:"uki"`    // bytes
	Packages int               `json:"packages"`
	Files    map[string]Output `json:"files"`
}

// Output is one of the results.
type Output struct {
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Names of the results in Config.Out.
const (
	RawFile       = "disk.raw"
	ZstdFile      = "disk.raw.zst"
	MapFile       = "disk.raw.bmap"
	RootFile      = "root.erofs"
	VerityFile    = "root.verity"
	UKIFile       = "uki.efi"
	ManagerFile   = "boot.efi"
	BundleFile    = "update.tbu"
	InstallerFile = "installer.iso"
	NetbootFile   = "netboot.efi"
	BillFile      = "sbom.cdx.json"
	ManifestFile  = "build.json"

	programsDir = ".programs" // our own programs as they went in; another build's would be another's
)

// builder is a build under way.
type builder struct {
	Config
	releases *bundle.Keys
	set      *keys.Set
	programs map[string]string
	tree     *tree.Result
	root     *os.File
	verity   *os.File
	alone    *os.File // Out is this build's while it is open
	hash     [32]byte
	kernel   []byte // as the UKI carries it
	uki      []byte
	manager  []byte
	image    *disk.Image
	done     Manifest
}

// Build makes everything in Config.Out.
func Build(ctx context.Context, c Config) (*Manifest, error) {
	b, err := prepare(c)
	if err != nil {
		return nil, err
	}
	defer b.close()
	for _, step := range []struct {
		name  string
		quick bool // also in a quick build
		do    func(context.Context) error
	}{
		{"keys", true, b.keys},
		{"release keys", true, b.releaseKeys},
		{"root and initramfs", true, b.buildTree},
		{"verity tree", true, b.hashRoot},
		{"unified kernel image", true, b.buildUKI},
		{"disk", true, b.buildDisk},
		{"update bundle", b.Bundle, b.bundle},
		{"compressed disk", false, b.compress},
		{"netboot", false, b.netboot},
		{"installer", false, b.installer},
		{"bill of materials", true, b.bill},
		{"manifest", true, b.writeManifest},
	} {
		if c.Quick && !step.quick {
			continue
		}
		at := time.Now()
		if err := step.do(ctx); err != nil {
			return nil, withRoom(fmt.Errorf("%s: %w", step.name, err), b.Config)
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b.Log.Info(step.name, "seconds", fmt.Sprintf("%.1f", time.Since(at).Seconds()))
	}
	return &b.done, nil
}

func prepare(c Config) (*builder, error) {
	if c.Cache == "" {
		c.Cache = filepath.Join(c.Root, ".cache")
	}
	if c.Keys == "" {
		c.Keys = filepath.Join(c.Cache, "keys")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if err := release.CheckVersion(c.Version); err != nil {
		return nil, err
	}
	if c.Counter == 0 || c.Counter > tpm.MaxCounter {
		return nil, fmt.Errorf("counter %d: the security floor of a release is 1 to %d; a TPM holds no higher one", c.Counter, tpm.MaxCounter)
	}
	// What a person gave is looked at before minutes of work.
	if c.Preload != "" {
		if info, err := os.Stat(c.Preload); err != nil || !info.IsDir() {
			return nil, fmt.Errorf("%s cannot be preloaded: name a folder with apps/, ca/ or tributary.yaml (docs/image.md): %w", c.Preload, cmp.Or(err, os.ErrInvalid))
		}
	}
	for _, file := range c.Previous {
		if err := bundle.CheckPrevious(file); err != nil {
			return nil, fmt.Errorf("no delta can be made from %s: give the update.tbu of a release: %w", file, err)
		}
	}
	if err := os.MkdirAll(c.Out, 0o755); err != nil {
		return nil, err
	}
	alone, err := claim(c.Out)
	if err != nil {
		return nil, err
	}
	// Results of an earlier build would lie beside another's.
	for _, name := range []string{RawFile, ZstdFile, MapFile, InstallerFile, NetbootFile, ManifestFile, UKIFile, VerityFile, BundleFile, BillFile} {
		if err := os.Remove(filepath.Join(c.Out, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, errors.Join(err, alone.Close())
		}
	}
	return &builder{Config: c, alone: alone, done: Manifest{
		Profile: c.Profile.Name, Arch: c.Profile.Arch, Version: c.Version, Counter: c.Counter, Time: c.Time.UTC(), Go: runtime.Version(), Files: map[string]Output{},
	}}, nil
}

// claim keeps a second build out of a folder until the file is closed.
func claim(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("another build works in %s: wait for its end, or name another folder with --out", dir), f.Close())
	}
	return f, nil
}

func (b *builder) close() {
	for _, f := range []*os.File{b.root, b.verity, b.alone} {
		if f != nil {
			_ = f.Close()
		}
	}
}

func (b *builder) out(name string) string { return filepath.Join(b.Out, name) }

func (b *builder) keys(context.Context) (err error) {
	if b.set, err = keys.LoadOrCreate(b.Keys); err != nil {
		return err
	}
	sum := sha256.Sum256(b.set.Signer().Certificate().Raw)
	b.done.Signer = hex.EncodeToString(sum[:])
	return nil
}

func (b *builder) buildTree(ctx context.Context) error {
	files, err := preload(b.Preload, b.Profile.Arch)
	if err != nil {
		return err
	}
	if b.Settings == nil {
		b.Settings = files[preloaded+settingsFile]
	}
	if err := checkSettings(b.Settings, b.Profile); err != nil {
		return err
	}
	b.programs, err = tree.BuildPrograms(ctx, b.Root, b.Profile.Arch, b.Version, b.out(programsDir))
	if err != nil {
		return err
	}
	files[anchorFile] = b.releases.Root
	if files[preloaded+makersFile] == nil { // a preload's own goes first
		if files[preloaded+makersFile], err = keys.Manufacturer(b.Keys, b.Time); err != nil {
			return err
		}
	}
	if files[hwprofiles.InstalledFile], err = b.Profile.Encode(); err != nil {
		return err
	}
	carried, err := b.set.Carried()
	if err != nil {
		return err
	}
	if files[efi.AppendsFile], err = efi.EncodeAppends(carried); err != nil {
		return err
	}
	b.tree, err = tree.Build(ctx, tree.Config{
		Root: b.Root, Profile: b.Profile, Version: b.Version, Time: b.Time, Cache: filepath.Join(b.Cache, "debs"), Lock: b.Lock,
		Programs: b.programs, Files: files, Out: b.Out, Log: b.Log,
		Compiled: filepath.Join(b.Cache, "modules"), Sign: func(module []byte) ([]byte, error) { return modules.Sign(module, b.set.Signer()) },
	})
	if err != nil {
		return err
	}
	b.done.Kernel, b.done.Packages, b.done.Root = b.tree.KernelVersion, len(b.tree.Packages), b.tree.RootSize
	return nil
}

// salt is the same for every release, so that blocks that did not change keep their digests.
var salt = sha256.Sum256([]byte("tributary.dev/verity"))

func (b *builder) hashRoot(context.Context) (err error) {
	if b.root, err = os.Open(b.tree.Rootfs); err != nil {
		return err
	}
	if b.verity, err = os.Create(b.out(VerityFile)); err != nil {
		return err
	}
	if b.hash, err = verity.Format(b.root, b.tree.RootSize, salt[:], gpt.Named("verity").Bytes(), b.verity); err != nil {
		return err
	}
	b.done.RootHash = hex.EncodeToString(b.hash[:])
	return nil
}

// words are the signed command line of a box.
func (b *builder) words() []string {
	return append(slices.Concat([]string{
		"roothash=" + b.done.RootHash,
		"tributary.version=" + b.Version,
		fmt.Sprintf("tributary.counter=%d", b.Counter),
		"tributary.profile=" + b.Profile.Name,
	}, b.Profile.Cmdline()), b.Cmdline...)
}

func (b *builder) buildUKI(context.Context) (err error) {
	b.done.Cmdline = strings.Join(b.words(), " ")
	if b.uki, err = b.signedUKI(b.done.Cmdline, nil); err != nil {
		return err
	}
	pcr, err := uki.PCR11(b.uki)
	if err != nil {
		return err
	}
	b.done.PCR11, b.done.UKI = hex.EncodeToString(pcr[:]), int64(len(b.uki))
	manager, err := os.ReadFile(b.tree.BootManager)
	if err != nil {
		return err
	}
	if b.manager, err = uki.Sign(manager, b.set.Signer()); err != nil {
		return fmt.Errorf("the boot manager: %w", err)
	}
	return errors.Join(os.WriteFile(b.out(UKIFile), b.uki, 0o644), os.WriteFile(b.out(ManagerFile), b.manager, 0o644))
}

// signedUKI builds one with that command line, and more archives behind the initramfs.
func (b *builder) signedUKI(cmdline string, more []byte) ([]byte, error) {
	c := uki.Config{Cmdline: cmdline, OSRelease: string(b.tree.OSRelease), Uname: b.tree.KernelVersion, PolicyKey: b.set.PCR.PublicPEM()}
	c.Policy = func(image []byte) ([]byte, error) {
		pcr, err := uki.PCR11(image)
		if err != nil {
			return nil, err
		}
		return tpm.SignPolicy(b.set.PCR, pcr, b.Counter)
	}
	for _, part := range []struct {
		to   *[]byte
		path string
	}{{&c.Stub, b.tree.Stub}, {&c.Kernel, b.tree.Kernel}, {&c.Initrd, b.tree.Initrd}, {&c.Microcode, b.tree.Microcode}, {&c.DeviceTree, b.tree.DeviceTree}} {
		if part.path == "" {
			continue
		}
		var err error
		if *part.to, err = os.ReadFile(part.path); err != nil {
			return nil, err
		}
	}
	var err error
	if c.Kernel, err = b.packedKernel(c.Kernel); err != nil {
		return nil, err
	}
	if len(more) > 0 {
		c.Initrd = append(append(c.Initrd, make([]byte, (4-len(c.Initrd)%4)%4)...), more...)
	}
	image, err := uki.Build(c)
	if err != nil {
		return nil, err
	}
	return uki.Sign(image, b.set.Signer())
}

// packedKernel gives the kernel packed so that boxes can make the same bits; one that is laid out in another way stays as it is.
func (b *builder) packedKernel(image []byte) ([]byte, error) {
	if b.kernel == nil {
		packed, _, err := kernel.Repack(image)
		switch {
		case errors.Is(err, kernel.ErrUnlike):
			b.Log.Warn("the kernel is not packed again: updates carry it whole", "err", err)
			packed = image
		case err != nil:
			return nil, err
		}
		b.kernel = packed
	}
	return b.kernel, nil
}

// example is what a person finds on CONFIG.
const example = `# Settings for this box, read at every start. Remove the leading # of what you need.
#
# join:
#   token: tj1.…
#   parent: https://core.example.net:8443
# name: my-box
`

func (b *builder) buildDisk(context.Context) (err error) {
	config := fat.File{Path: settingsFile, Content: strings.NewReader(string(b.Settings))}
	if b.Settings == nil {
		config = fat.File{Path: settingsFile + ".example", Content: strings.NewReader(example)}
	}
	b.image, err = disk.Write(b.out(RawFile), disk.Layout{
		Profile: b.Profile.Name, Arch: b.Profile.Arch, Sizes: b.Profile.Partitions, Time: b.Time,
		Root: b.root, Verity: b.verity, RootHash: b.hash, UKI: b.uki, BootManager: b.manager, Install: 1, Config: []fat.File{config},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(b.out(MapFile), b.image.Map.Encode(), 0o644)
}

func (b *builder) compress(context.Context) error {
	sum, err := disk.Compress(b.out(ZstdFile), b.image)
	b.done.Files[RawFile] = Output{Size: b.image.Size, SHA256: hex.EncodeToString(sum[:])}
	return err
}

func (b *builder) bill(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "go", "env", "GOMODCACHE", "GOROOT")
	cmd.Dir = b.Root
	env, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("asking where Go's modules lie: %w", err)
	}
	mods, goroot, _ := strings.Cut(strings.TrimSpace(string(env)), "\n")
	debs := &deb.Cache{Dir: filepath.Join(b.Cache, "debs")}
	f, err := os.Create(b.out(BillFile))
	if err != nil {
		return err
	}
	programs := maps.Clone(b.programs)
	maps.Copy(programs, b.tree.Programs)
	err = sbom.Write(f, sbom.Image{Name: b.Profile.Name, Version: b.Version, Time: b.done.Time, Suite: b.tree.Suite, Packages: b.tree.Packages, Programs: programs, Drivers: b.tree.Drivers,
		Copyright: sbom.Copyright(debs), Module: sbom.Modules(mods, goroot, module, b.Root)})
	return errors.Join(err, f.Close())
}

// module is the checkout's own.
const module = "tributary.dev/tributary"

func (b *builder) writeManifest(context.Context) error {
	// The raw disk's sum is known from compressing it; a quick build leaves it to the block map.
	for _, name := range []string{ZstdFile, MapFile, RootFile, VerityFile, UKIFile, ManagerFile, BundleFile, InstallerFile, NetbootFile, BillFile} {
		o, err := sum(b.out(name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		b.done.Files[name] = o
	}
	text, err := json.MarshalIndent(b.done, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(b.out(ManifestFile), append(text, '\n'), 0o644)
}

func sum(path string) (Output, error) {
	f, err := os.Open(path)
	if err != nil {
		return Output{}, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	return Output{Size: n, SHA256: hex.EncodeToString(h.Sum(nil))}, err
}
