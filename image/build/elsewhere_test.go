package build

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/image/deb"
	"tributary.dev/tributary/image/keys"
	"tributary.dev/tributary/image/tree"
)

const nobody = 65534

// place is a checkout of its own, as another person on another machine has it.
type place struct {
	t        *testing.T
	dir, out string
	env      []string
}

// newPlace copies what git knows or would take of this checkout, and the keys.
func newPlace(t *testing.T, dir, keyDir string) place {
	t.Helper()
	p := place{t: t, dir: filepath.Join(dir, "src"), out: filepath.Join(dir, "out")}
	list, err := exec.Command("git", "-C", checkout, "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		t.Skipf("needs a git checkout: %v", err)
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(list), "\x00"), "\x00") {
		b, err := os.ReadFile(filepath.Join(checkout, name))
		if os.IsNotExist(err) {
			continue // deleted, not committed
		}
		if err != nil {
			t.Fatal(err)
		}
		put(t, p.dir, name, b)
	}
	if err := os.CopyFS(filepath.Join(dir, "keys"), os.DirFS(keyDir)); err != nil {
		t.Fatal(err)
	}
	return p
}

// packages links the packages of the cache into the place, without what earlier builds left beside them.
func (p place) packages() {
	p.t.Helper()
	from := filepath.Join(checkout, ".cache/debs")
	to := filepath.Join(p.dir, ".cache/debs")
	if err := os.MkdirAll(to, 0o755); err != nil {
		p.t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(from, "*.deb"))
	if err != nil {
		p.t.Fatal(err)
	}
	for _, f := range files {
		if err := os.Link(f, filepath.Join(to, filepath.Base(f))); err != nil {
			p.t.Fatal(err)
		}
	}
}

// command is go run ./image build there.
func (p place) command(name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(p.t.Context(), name, args...)
	cmd.Dir, cmd.Env = p.dir, append(os.Environ(), p.env...)
	return cmd
}

func (p place) args(profile string) []string {
	return []string{"run", "./image", "build", "--profile", profile, "--version", "1.0", "--time", "1790000000", "--keys", filepath.Join(filepath.Dir(p.dir), "keys"), "--out", p.out}
}

func (p place) run(cmd *exec.Cmd) {
	p.t.Helper()
	if text, err := cmd.CombinedOutput(); err != nil {
		p.t.Fatalf("%s: %v\n%s", cmd, err, text)
	}
}

// stranger builds as a user who owns nothing, in a network namespace that has no network, with another
// time zone and mask, and a compiler's cache that starts empty.
func (p place) stranger(profile string) {
	t := p.t
	t.Helper()
	top := filepath.Dir(p.dir)
	for _, dir := range []string{"home", "mod"} {
		if err := os.MkdirAll(filepath.Join(top, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("go", "env", "GOMODCACHE").Output()
	if err != nil {
		t.Fatal(err)
	}
	p.env = []string{"HOME=" + top + "/home", "TMPDIR=" + top + "/home", "GOCACHE=" + top + "/home/cache", "GOMODCACHE=" + top + "/mod", "GOPROXY=off", "GOFLAGS=", "TZ=Asia/Tokyo", "LC_ALL=C"}
	script := `mount --bind "$1" "$2" && cd "$3" && umask 077 && shift 3 && exec "$@"`
	args := append([]string{"-c", script, "sh", strings.TrimSpace(string(out)), filepath.Join(top, "mod"), p.dir}, "setpriv", fmt.Sprintf("--reuid=%d", nobody), fmt.Sprintf("--regid=%d", nobody), "--clear-groups", "go")
	cmd := p.command("sh", append(args, p.args(profile)...)...)
	if os.Getuid() != 0 {
		t.Log("not root: the second build is this user's too, though without a network")
		p.env[3] = "GOMODCACHE=" + strings.TrimSpace(string(out))
		cmd = p.command("unshare", append([]string{"--user", "--map-current-user", "--net", "go"}, p.args(profile)...)...)
	} else {
		if err := filepath.WalkDir(top, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || strings.HasSuffix(path, ".deb") {
				return err // linked: they belong to the cache
			}
			return os.Lchown(path, nobody, nobody)
		}); err != nil {
			t.Fatal(err)
		}
		// The folders above belong to the test; others may pass through them here.
		for up := filepath.Dir(top); up != "/" && up != os.TempDir(); up = filepath.Dir(up) {
			if err := os.Chmod(up, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	}
	p.run(cmd)
}

// sums are the SHA-256 of all that a build left, its programs too.
func (p place) sums() map[string]string {
	p.t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(p.out, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		o, err := sum(path)
		rel, _ := filepath.Rel(p.out, path)
		out[rel] = o.SHA256
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

// The same inputs give the same bits, in all forms, wherever and by whomever they are built: as this user, and in
// another checkout as a user without rights and without a network. What was built verifies, and its bill is true.
func TestElsewhere(t *testing.T) {
	if os.Getenv("TRIBUTARY_VMTEST") == "" {
		t.Skip("builds a whole image twice, in some ten minutes: run make vmtest")
	}
	const profile = "generic-amd64"
	keyDir := t.TempDir()
	set, err := keys.LoadOrCreate(keyDir)
	if err != nil {
		t.Fatal(err)
	}
	a := newPlace(t, t.TempDir(), keyDir)
	if err := os.MkdirAll(filepath.Join(a.dir, ".cache"), 0o755); err != nil {
		t.Fatal(err)
	}
	debs, err := filepath.Abs(filepath.Join(checkout, ".cache/debs"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(debs, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(debs, filepath.Join(a.dir, ".cache/debs")); err != nil {
		t.Fatal(err)
	}
	a.run(a.command("go", a.args(profile)...))
	// The release's keys were made by the first build; the second gets the same.
	b := newPlace(t, filepath.Join(t.TempDir(), "a longer path", "of another"), filepath.Join(filepath.Dir(a.dir), "keys"))
	b.packages()
	b.stranger(profile)
	x, y := a.sums(), b.sums()
	for _, name := range slices.Sorted(maps.Keys(x)) {
		if x[name] != y[name] {
			t.Errorf("%s differs", name)
		}
	}
	if len(x) != len(y) || len(x) < 20 {
		t.Errorf("%d files and %d", len(x), len(y))
	}
	m, err := Verify(a.out, set.Certificates()...)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{RawFile, ZstdFile, MapFile, RootFile, VerityFile, UKIFile, ManagerFile, BundleFile, InstallerFile, NetbootFile, BillFile} {
		if m.Files[name].SHA256 == "" {
			t.Errorf("build.json does not name %s", name)
		}
	}
	t.Logf("root %.1f MB, disk.raw.zst %.1f MB, installer.iso %.1f MB, update.tbu %.1f MB", float64(m.Root)/1e6, float64(m.Files[ZstdFile].Size)/1e6, float64(m.Files[InstallerFile].Size)/1e6, float64(m.Files[BundleFile].Size)/1e6)
	if m.Root > 300e6 || m.Files[ZstdFile].Size > 120e6 {
		t.Error("larger than 300 MB of root and 120 MB to fetch")
	}
	checkBill(t, a, m)
}

// checkBill holds the bill of materials against what the programs say of themselves and the packages of their own.
func checkBill(t *testing.T, p place, m *Manifest) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(p.out, BillFile))
	if err != nil {
		t.Fatal(err)
	}
	var bill struct {
		Components []struct {
			Ref, Name, Version string
			Hashes             []struct{ Content string }
		}
		Dependencies []struct {
			Ref       string
			DependsOn []string
		}
	}
	if err := json.Unmarshal(bytes.ReplaceAll(raw, []byte(`"bom-ref"`), []byte(`"ref"`)), &bill); err != nil {
		t.Fatal(err)
	}
	modules, digests, packages := map[string][]string{}, map[string]string{}, map[string]string{}
	names := map[string]string{}
	for _, c := range bill.Components {
		names[c.Ref] = c.Name + "@" + c.Version
		if strings.HasPrefix(c.Ref, "pkg:deb/") {
			packages[c.Name+" "+c.Version] = c.Hashes[0].Content
		}
		if name, ok := strings.CutPrefix(c.Ref, "program:"); ok {
			digests[name] = c.Hashes[0].Content
		}
	}
	for _, d := range bill.Dependencies {
		if name, ok := strings.CutPrefix(d.Ref, "program:"); ok {
			for _, ref := range d.DependsOn {
				modules[name] = append(modules[name], names[ref])
			}
			slices.Sort(modules[name])
		}
	}
	for _, name := range tree.Names() {
		file := filepath.Join(p.out, programsDir, name)
		if o, err := sum(file); err != nil || o.SHA256 != digests[name] {
			t.Errorf("the program %s has another digest than the bill says: %v", name, err)
		}
		if want := inside(t, file, m.Version); !slices.Equal(modules[name], want) {
			t.Errorf("%s is made of\n%v, the bill says\n%v", name, want, modules[name])
		}
	}
	profile, err := hwprofiles.Load(m.Profile)
	if err != nil {
		t.Fatal(err)
	}
	lock, err := deb.ReadLock(filepath.Join(p.dir, "rootfs/packages.lock"))
	if err != nil {
		t.Fatal(err)
	}
	list, err := lock.Packages(profile.Arch, tree.Sets(profile, lock)...)
	if err != nil {
		t.Fatal(err)
	}
	for _, pkg := range list {
		// What the package says of itself, by Debian's own tool.
		text, err := exec.Command("dpkg-deb", "--show", "--showformat=${Package} ${Version}", filepath.Join(p.dir, ".cache/debs", pkg.SHA256+".deb")).Output()
		if err != nil {
			t.Fatal(err)
		}
		if packages[string(text)] != pkg.SHA256 {
			t.Errorf("the package %s is not in the bill", text)
		}
	}
	if len(packages) != len(list) {
		t.Errorf("the bill names %d packages, the image has %d", len(packages), len(list))
	}
}

// inside lists a program's modules as the linker wrote them into it, in the bill's words: Go's library is stdlib there, and a
// program of ours, which is linked without a version of its own, is of the image's.
func inside(t *testing.T, file, version string) []string {
	t.Helper()
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	out := []string{"stdlib@" + strings.TrimPrefix(strings.Fields(info.GoVersion)[0], "go")}
	if info.Main.Path != "" {
		if v := info.Main.Version; v != "" && v != "(devel)" {
			version = v
		}
		out = append(out, info.Main.Path+"@"+version)
	}
	for _, d := range info.Deps {
		if d.Replace != nil {
			d = d.Replace
		}
		out = append(out, d.Path+"@"+d.Version)
	}
	slices.Sort(out)
	return out
}
