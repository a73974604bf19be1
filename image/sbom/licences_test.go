package sbom

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tributary.dev/tributary/image/deb"
)

const machineReadable = `Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: x

Files: *
Copyright: 2020 Somebody
License: GPL-2+

Files: lib/*
Copyright: 2021 Somebody else
License: BSD-3-clause

Files: perl/*
License: GPL-2+ or Artistic
 License: of an indented line counts for nothing

License: GPL-2+
 On Debian systems, the full text is in /usr/share/common-licenses/GPL-2.
`

// said writes licences as one line.
func said(list []choice) string {
	var out []string
	for _, c := range list {
		out = append(out, c.License.ID+c.License.Name)
	}
	return strings.Join(out, " ")
}

func modulesHere(t *testing.T) func(string, string) (string, error) {
	t.Helper()
	out, err := exec.Command("go", "env", "GOMODCACHE", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	mods, goroot, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	top, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return Modules(mods, goroot, "tributary.dev/tributary", top)
}

// What a package or a module does not say in a form that a program reads is not guessed.
func TestUnknownLicences(t *testing.T) {
	for text, want := range map[string]string{
		machineReadable: "BSD-3-Clause GPL-2+ or Artistic GPL-2.0-or-later",
		"":              noAssertion,
		"This is the prepackaged version of x.\n\nLicense: GPL-2\n":                                    noAssertion,
		strings.Replace(machineReadable, "License: GPL-2+\n\nFiles: lib", "License:\n\nFiles: lib", 1): "BSD-3-Clause GPL-2+ or Artistic GPL-2.0-or-later",
	} {
		if got := said(choices(ofDebian([]byte(text)))); got != want {
			t.Errorf("%.40q: %q, want %q", text, got, want)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "LICENSE"), []byte("You may do with this what our lawyer says, and nothing else.\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if names, err := ofFolder(dir); err != nil || len(names) != 0 {
		t.Errorf("of a licence that nobody knows: %v, %v", names, err)
	}
	var image Image
	for _, gone := range []string{"", filepath.Join(dir, "gone")} {
		image.Module = func(string, string) (string, error) { return gone, nil }
		if got, err := image.moduleLicences("x", "v1"); err != nil || said(got) != noAssertion {
			t.Errorf("of a module that is not there: %v, %v", got, err)
		}
	}
}

// The word of a package that has its documentation from another is that one's; a circle of them ends.
func TestLicencesOfAnother(t *testing.T) {
	image := Image{Packages: []deb.Package{{Name: "a"}, {Name: "b"}, {Name: "c"}, {Name: "d"}}}
	image.Copyright = func(p deb.Package) ([]byte, string, error) {
		switch p.Name {
		case "a":
			return nil, "b", nil
		case "b":
			return []byte(machineReadable), "", nil
		case "c":
			return nil, "c", nil
		}
		return nil, "nowhere", nil
	}
	for i, want := range []string{"BSD-3-Clause GPL-2+ or Artistic GPL-2.0-or-later", "BSD-3-Clause GPL-2+ or Artistic GPL-2.0-or-later", noAssertion, noAssertion} {
		if got, err := image.packageLicences(image.Packages[i]); err != nil || said(got) != want {
			t.Errorf("%s: %q, %v, want %q", image.Packages[i].Name, said(got), err, want)
		}
	}
}

// The file is found in a package, and so is the package that a link names.
func TestCopyright(t *testing.T) {
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("needs dpkg-deb")
	}
	dir := t.TempDir()
	made := map[string]deb.Package{"says": {}, "links": {}}
	for name := range made {
		at := filepath.Join(dir, name)
		doc := filepath.Join(at, "usr", "share", "doc")
		for _, d := range []string{filepath.Join(at, "DEBIAN"), doc} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(at, "DEBIAN", "control"), []byte("Package: "+name+"\nVersion: 1\nArchitecture: all\nMaintainer: A <a@example.com>\nDescription: x\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		var err error
		if name == "links" {
			err = os.Symlink("says", filepath.Join(doc, name))
		} else if err = os.Mkdir(filepath.Join(doc, name), 0o755); err == nil {
			err = os.WriteFile(filepath.Join(doc, name, "copyright"), []byte(machineReadable), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("dpkg-deb", "--root-owner-group", "-b", at, at+".deb").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		sum, err := digest(at + ".deb")
		if err != nil {
			t.Fatal(err)
		}
		made[name] = deb.Package{Name: name, Version: "1", Arch: "all", SHA256: sum}
		if err := os.Rename(at+".deb", filepath.Join(dir, sum+".deb")); err != nil {
			t.Fatal(err)
		}
	}
	look := Copyright(&deb.Cache{Dir: dir})
	for name, want := range map[string]string{"says": machineReadable, "links": ""} {
		text, see, err := look(made[name])
		if err != nil || string(text) != want || (see == "says") != (name == "links") {
			t.Errorf("%s: %q, %q, %v", name, text, see, err)
		}
	}
}
