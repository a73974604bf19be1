package deb

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"pgregory.net/rapid"

	"tributary.dev/tributary/image/deb/debtest"
	"tributary.dev/tributary/tests/mutation"
)

func TestCompare(t *testing.T) {
	ordered := []string{"0~~", "0~", "0", "0a", "0+b1", "1.0~rc1", "1.0", "1.0-1~bpo12+1", "1.0-1", "1.0-1+deb12u1", "1.0-1.1", "1.0-10",
		"1.0a-1", "1.0+dfsg-1", "1.9", "1.10", "6.12.90+deb12-1", "6.12.90+deb12.1-1", "6.12.95-1~bpo12+1", "1:0.1", "2:0"}
	dpkg, _ := exec.LookPath("dpkg")
	for i, a := range ordered {
		for j, b := range ordered {
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			if got := Compare(a, b); got != want {
				t.Errorf("Compare(%q, %q) = %d, want %d", a, b, got, want)
			}
		}
		if dpkg != "" && i > 0 { // the table itself, as Debian sees it
			if err := exec.Command(dpkg, "--compare-versions", ordered[i-1], "lt", a).Run(); err != nil {
				t.Errorf("dpkg does not put %s before %s", ordered[i-1], a)
			}
		}
	}
}

func TestCompareIsAnOrder(t *testing.T) {
	version := rapid.StringMatching(`([0-9]:)?[0-9][0-9a-c.+~]{0,6}(-[0-9a-c.+~]{1,4})?`)
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := version.Draw(t, "a"), version.Draw(t, "b"), version.Draw(t, "c")
		if Compare(a, a) != 0 || Compare(a, b) != -Compare(b, a) {
			t.Fatalf("%q and %q are not ordered", a, b)
		}
		if Compare(a, b) <= 0 && Compare(b, c) <= 0 && Compare(a, c) > 0 {
			t.Fatalf("%q <= %q <= %q, but not first <= last", a, b, c)
		}
	})
}

func TestSources(t *testing.T) {
	root := fstest.MapFS{
		"etc/os-release": {Data: []byte("ID=debian\nVERSION_CODENAME=bookworm\n")},
		"etc/apt/sources.list": {Data: []byte("# deb http://off.invalid/debian bookworm main\ndeb-src http://src.invalid/debian bookworm main\n" +
			"deb [arch=amd64 signed-by=/etc/apt/keyrings/v.asc] https://vendor.invalid/apt bookworm main\n")},
		"etc/apt/sources.list.d/debian.sources": {Data: []byte("Types: deb deb-src\n# a comment\nURIs: http://mirror.invalid/debian/\nSuites: bookworm bookworm-updates\n" +
			"Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\nTypes: deb\nURIs: http://mirror.invalid/debian-security\nSuites: bookworm-security\nComponents: main\n\n" +
			"Enabled: no\nTypes: deb\nURIs: http://old.invalid/debian\nSuites: bookworm\nComponents: main\n")},
	}
	m, err := MachineMirror(root)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Mirror{"http://mirror.invalid/debian", "http://mirror.invalid/debian-security", DefaultKeyring}); m != want {
		t.Errorf("got %+v, want %+v", m, want)
	}
	delete(root, "etc/apt/sources.list.d/debian.sources")
	root["etc/apt/sources.list"] = &fstest.MapFile{Data: []byte("deb http://one.invalid/d bookworm main contrib\ndeb http://one.invalid/s bookworm-security main\n")}
	if m, err = MachineMirror(root); err != nil || m.Main != "http://one.invalid/d" || m.Security != "http://one.invalid/s" {
		t.Errorf("one-line form: %+v, %v", m, err)
	}
	root["etc/apt/sources.list"] = &fstest.MapFile{Data: []byte("deb cdrom:[Debian]/ bookworm main\n")}
	if _, err = MachineMirror(root); !errors.Is(err, ErrNoMirror) {
		t.Errorf("a disc passed for a mirror: %v", err)
	}
}

// offer makes an index entry.
func offer(name, version, release, depends, provides string) Package {
	p := Package{Name: name, Version: version, Arch: "amd64", release: release}
	p.depends, _ = parseRelations(depends)
	groups, _ := parseRelations(provides)
	for _, g := range groups {
		p.provides = append(p.provides, provision{g[0].name, g[0].version})
	}
	return p
}

func TestResolve(t *testing.T) {
	all := []Package{
		offer("tool", "1", "s", "libc6 (>= 2.3), libx | liby, perl:any", ""),
		offer("libc6", "2.3", "s", "libgcc", ""), offer("libc6", "2.4", "s-security", "libgcc", ""), offer("libc6", "9", "s-backports", "", ""),
		offer("libgcc", "1", "s", "", ""), offer("liby", "1", "s", "", ""), offer("perl", "5", "s", "", ""),
		offer("kernel", "6.1", "s", "", ""), offer("kernel", "6.12", "s-backports", "kernel-6.12 (= 6.12)", ""), offer("kernel-6.12", "6.12", "s-backports", "mail, initramfs", ""),
		offer("postfix", "3", "s", "", "mail"), offer("exim", "4", "s", "", "mail (= 2)"),
		offer("broken", "1", "s", "gone (>= 2)", ""),
	}
	u := newUniverse(all, []string{"s", "s-security"})
	names := func(set Set) string {
		t.Helper()
		list, err := resolve(u, set, "amd64", []string{"perl", "initramfs"})
		if err != nil {
			return err.Error()
		}
		var out []string
		for _, p := range list {
			out = append(out, p.Name+"="+p.Version)
		}
		return strings.Join(out, " ")
	}
	for _, c := range []struct {
		set  Set
		want string
	}{
		{Set{Packages: []string{"tool"}}, "libc6=2.4 libgcc=1 liby=1 tool=1"},
		{Set{Packages: []string{"tool"}, Alone: true}, "tool=1"},
		{Set{AMD64: []string{"kernel"}, Release: "s-backports"}, "exim=4 kernel=6.12 kernel-6.12=6.12"},
		{Set{Packages: []string{"kernel"}}, "kernel=6.1"},
		{Set{Packages: []string{"broken"}}, `broken_1_amd64 for amd64: nothing satisfies "gone (>= 2)"`},
		{Set{Packages: []string{"absent"}}, "package absent is not offered for amd64"},
	} {
		if got := names(c.set); got != c.want {
			t.Errorf("%+v\n got %s\nwant %s", c.set, got, c.want)
		}
	}
}

// What is not free comes into no set that does not say so.
func TestNonFree(t *testing.T) {
	offered := offer("driver", "1", "s", "", "")
	offered.Path, offered.SHA256 = "pool/non-free/d/driver/driver_1_amd64.deb", strings.Repeat("ab", 32)
	blob := offer("blob", "1", "s", "", "")
	blob.Path = "pool/updates/non-free-firmware/b/blob/blob_1_amd64.deb"
	offers := map[string][]Package{"amd64": {offered, blob}}
	for _, c := range []struct {
		set Set
		ok  bool
	}{
		{Set{Packages: []string{"driver"}}, false}, {Set{Packages: []string{"driver"}, NonFree: true}, true}, {Set{Packages: []string{"blob"}}, true},
	} {
		l, err := lockFrom(offers, &Declared{Suite: "s", Sets: map[string]Set{"x": c.set}}, []string{"amd64"})
		if (err == nil) != c.ok {
			t.Errorf("%+v: %v", c.set, err)
		}
		if c.ok && len(l.Sets[Key{"amd64", "x"}]) != 1 {
			t.Errorf("%+v: %v", c.set, l)
		}
	}
}

// In a build without the check TestNonFree fails.
func TestNonFreeCounts(t *testing.T) {
	mutation.Prove(t, mutation.Marked(t, "^TestNonFree$", "index.go")...)
}

func TestResolveIsClosedAndStable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(t, "n")
		var all []Package
		for i := range n {
			var deps []string
			for _, j := range rapid.SliceOfN(rapid.IntRange(0, n-1), 0, 3).Draw(t, "deps") {
				deps = append(deps, fmt.Sprintf("p%d", j))
			}
			all = append(all, offer(fmt.Sprintf("p%d", i), "1", "s", strings.Join(deps, ","), ""))
		}
		wanted := []string{"p0", fmt.Sprintf("p%d", n-1)}
		first, err := resolve(newUniverse(all, []string{"s"}), Set{Packages: wanted}, "amd64", nil)
		if err != nil {
			t.Fatal(err)
		}
		shuffled := rapid.Permutation(all).Draw(t, "shuffled")
		second, err := resolve(newUniverse(shuffled, []string{"s"}), Set{Packages: []string{wanted[1], wanted[0]}}, "amd64", nil)
		if err != nil {
			t.Fatal(err)
		}
		same := slices.EqualFunc(first, second, func(a, b Package) bool { return a.Name == b.Name })
		if !same {
			t.Fatalf("%v, then %v", first, second)
		}
		for _, p := range first {
			for _, g := range p.depends {
				if !slices.ContainsFunc(first, func(q Package) bool { return q.Name == g[0].name }) {
					t.Fatalf("%s needs %s, which is not there", p.Name, g)
				}
			}
		}
	})
}

func TestWalk(t *testing.T) {
	members := []debtest.Member{{Name: "./", Kind: tar.TypeDir, Mode: 0o755}, {Name: "./bin/", Kind: tar.TypeDir, Mode: 0o755},
		{Name: "./bin/a", Body: "hello", Mode: 0o4755}, {Name: "./bin/b", Kind: tar.TypeSymlink, Link: "a"}, {Name: "./bin/c", Kind: tar.TypeLink, Link: "./bin/a"}}
	for _, ext := range []string{".xz", ".zst", ".gz", ""} {
		var got []string
		err := WalkReader(bytes.NewReader(debtest.Make(ext, members...)), func(e Entry, body io.Reader) error {
			text := ""
			if body != nil {
				b, err := io.ReadAll(body)
				if err != nil {
					return err
				}
				text = string(b)
			}
			got = append(got, fmt.Sprintf("%s %v %s %v %s", e.Path, e.Mode, e.Link, e.Hard, text))
			return nil
		})
		want := []string{"bin drwxr-xr-x  false ", "bin/a urwxr-xr-x  false hello", "bin/b Lrw-r--r-- a false ", "bin/c -rw-r--r-- bin/a true "}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v\n got %q\nwant %q", ext, err, got, want)
		}
	}
	for _, bad := range []debtest.Member{{Name: "../x"}, {Name: "a/../../x"}, {Name: "x", Kind: tar.TypeChar}, {Name: "x", Kind: tar.TypeLink, Link: "../y"}} {
		err := WalkReader(bytes.NewReader(debtest.Make(".gz", bad)), func(Entry, io.Reader) error { return nil })
		if !errors.Is(err, ErrFormat) {
			t.Errorf("%+v was let in: %v", bad, err)
		}
	}
}

func TestLockRoundTrip(t *testing.T) {
	l := &Lock{Suite: "bookworm", Sets: map[Key][]Package{
		{"amd64", "base"}: {{Name: "bb", Version: "1:2-3~x+1", Arch: "amd64", SHA256: strings.Repeat("a", 64), Size: 5, Archive: Main, Path: "pool/main/b/b_1.deb", Source: "src"}},
		{"arm64", "base"}: {{Name: "aa", Version: "1", Arch: "all", SHA256: strings.Repeat("b", 64), Size: 6, Archive: Security, Path: "pool/x.deb", Source: "aa"}},
	}}
	got, err := DecodeLock(bytes.NewReader(l.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Encode(), l.Encode()) {
		t.Errorf("got\n%s\nwant\n%s", got.Encode(), l.Encode())
	}
	if _, err := got.Packages("amd64", "nothing"); err == nil || !strings.Contains(err.Error(), "go run ./image lock") {
		t.Errorf("no remedy: %v", err)
	}
}

func FuzzDecodeLock(f *testing.F) {
	f.Add([]byte(lockHead + "suite bookworm\n[amd64 base]\nbb 1 amd64 " + strings.Repeat("a", 64) + " 5 debian pool/b.deb bb\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := DecodeLock(bytes.NewReader(b))
		if err != nil {
			return
		}
		again, err := DecodeLock(bytes.NewReader(l.Encode()))
		if err != nil || !bytes.Equal(again.Encode(), l.Encode()) {
			t.Fatalf("%v: not the same when read again", err)
		}
	})
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte("Package: aa\nVersion: 1\nArchitecture: all\nSHA256: " + strings.Repeat("a", 64) + "\nSize: 1\nFilename: pool/a.deb\nDepends: b (>= 1) | c,\n d:any\nProvides: e (= 2)\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := parseIndex(bytes.NewReader(b))
		if err != nil {
			return
		}
		for _, p := range list {
			if err := p.check(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func FuzzSources(f *testing.F) {
	f.Add([]byte("Types: deb\nURIs: http://a.invalid/d\nSuites: x\nComponents: main\n"), true)
	f.Add([]byte("deb [arch=a signed-by=/k] http://a.invalid/d x main # c\n"), false)
	f.Fuzz(func(t *testing.T, b []byte, deb822 bool) {
		parse := parseOneLine
		if deb822 {
			parse = parseDeb822
		}
		if list, err := parse(b); err == nil {
			FindMirror(list, "x")
		}
	})
}

func FuzzWalk(f *testing.F) {
	for _, ext := range []string{".xz", ".zst", ".gz", ""} {
		f.Add(debtest.Make(ext, debtest.Member{Name: "./a", Body: "x"}, debtest.Member{Name: "b", Kind: tar.TypeSymlink, Link: "a"}))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		budget := int64(64 << 20)
		WalkReader(bytes.NewReader(b), func(e Entry, body io.Reader) error {
			if !fs.ValidPath(e.Path) {
				t.Fatalf("path %q", e.Path)
			}
			if body != nil {
				n, err := io.Copy(io.Discard, io.LimitReader(body, budget))
				if budget -= n; err != nil || budget <= 0 {
					return errors.New("enough")
				}
			}
			return nil
		})
	})
}
