package sbom

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/image/deb"
)

// build builds programs of the image that are quick to link.
func build(t *testing.T) map[string]string {
	t.Helper()
	dir := t.TempDir()
	out := map[string]string{}
	for name, pkg := range map[string]string{
		"edged-log": "tributary.dev/tributary/cmd/edged-log", "edged-shim": "tributary.dev/tributary/cmd/edged-shim",
		"cni/host-local": "github.com/containernetworking/plugins/plugins/ipam/host-local",
	} {
		file := filepath.Join(dir, strings.ReplaceAll(name, "/", "-"))
		cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid=", "-o", file, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=arm64")
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		out[name] = file
	}
	return out
}

// modulesOf lists the modules of a program as `go version -m` prints them: path@version, the program's own
// with the version of its image.
func modulesOf(t *testing.T, file, of string) []string {
	t.Helper()
	text, err := exec.Command("go", "version", "-m", file).Output()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, file+": go"):
			out = append(out, "stdlib@"+strings.TrimPrefix(f[1], "go"))
		case f[0] == "dep" || f[0] == "mod":
			version := ""
			if len(f) > 2 {
				version = f[2]
			}
			if version == "(devel)" {
				version = of
			}
			out = append(out, f[1]+"@"+version)
		case f[0] == "=>":
			out[len(out)-1] = f[1] + "@" + f[2]
		}
	}
	slices.Sort(out)
	return out
}

func TestWrite(t *testing.T) {
	programs := build(t)
	image := Image{Name: "generic-arm64", Version: "1.2", Time: time.Unix(1700000000, 0), Suite: "bookworm", Programs: programs,
		Packages: []deb.Package{{Name: "libc6", Version: "2:2.36-9+deb12u14", Arch: "arm64", SHA256: strings.Repeat("a", 64), Source: "glibc", Path: "pool/main/g/glibc/libc6.deb"}}}
	image.Module, image.Copyright = modulesHere(t), func(deb.Package) ([]byte, string, error) { return []byte(machineReadable), "", nil }
	var first, second bytes.Buffer
	if err := Write(&first, image); err != nil {
		t.Fatal(err)
	}
	if err := Write(&second, image); err != nil || !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Errorf("not the same bytes twice, %v", err)
	}
	var got bill
	if err := json.Unmarshal(first.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(got.Serial) {
		t.Errorf("serial number %q", got.Serial)
	}
	byRef := map[string]component{}
	for _, c := range got.Components {
		if _, twice := byRef[c.Ref]; twice {
			t.Errorf("%s stands twice", c.Ref)
		}
		byRef[c.Ref] = c
	}
	if _, ok := byRef["pkg:deb/debian/libc6@2%3A2.36-9%2Bdeb12u14?arch=arm64&distro=bookworm"]; !ok {
		t.Error("libc6 is not in the bill")
	}
	for name, want := range map[string]string{"libc6": "BSD-3-Clause GPL-2+ or Artistic GPL-2.0-or-later", "stdlib": "BSD-3-Clause", "tributary.dev/tributary": "Apache-2.0", "github.com/containernetworking/plugins": "Apache-2.0", "golang.org/x/sys": "BSD-3-Clause"} {
		for _, c := range got.Components {
			if c.Name == name && said(c.Licenses) != want {
				t.Errorf("the licences of %s are %q, want %q", name, said(c.Licenses), want)
			}
		}
	}
	for _, c := range got.Components {
		if strings.HasPrefix(c.PURL, "pkg:") && len(c.Licenses) == 0 {
			t.Errorf("nothing is said of the licences of %s", c.Name)
		}
	}
	for name, file := range programs {
		var listed []string
		for _, d := range got.Dependencies {
			for _, ref := range d.DependsOn {
				c, ok := byRef[ref]
				if !ok {
					t.Errorf("%s needs %s, which is not listed", d.Ref, ref)
				}
				if d.Ref == "program:"+name {
					listed = append(listed, c.Name+"@"+c.Version)
				}
			}
		}
		slices.Sort(listed)
		if got := byRef["program:"+name].Version; got != image.Version && strings.HasPrefix(name, "edged-") {
			t.Errorf("%s is of version %q", name, got)
		}
		if want := modulesOf(t, file, image.Version); !slices.Equal(listed, want) {
			t.Errorf("%s\n got %v\nwant %v, as go version -m says", name, listed, want)
		}
	}
}

// A module that was compiled for the image is in its bill with its source; the compiler, which is not in the image, is
// named by it alone.
func TestDriver(t *testing.T) {
	source := deb.Package{Name: "driver-source", Version: "535-1", Arch: "amd64", SHA256: strings.Repeat("b", 64), Source: "driver", Path: "pool/contrib/d/driver/driver.deb"}
	var out bytes.Buffer
	err := Write(&out, Image{Name: "x", Version: "1", Time: time.Unix(1700000000, 0), Suite: "bookworm", Packages: []deb.Package{source},
		Drivers: []Driver{{Name: "nvidia", Version: "535", SHA256: strings.Repeat("c", 64), Kernel: "6.12", Source: source, With: []deb.Package{{Name: "gcc-12", Version: "12.2", Arch: "amd64"}}}}})
	if err != nil {
		t.Fatal(err)
	}
	var got bill
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Components) != 2 || got.Components[0].Type != "device-driver" || got.Components[0].Hashes[0].Content != strings.Repeat("c", 64) ||
		!slices.Contains(got.Components[0].Properties, property{"build:with", "gcc-12_12.2_amd64"}) {
		t.Errorf("%+v", got.Components)
	}
	if !slices.ContainsFunc(got.Dependencies, func(d dependency) bool {
		return d.Ref == "module:nvidia" && slices.Equal(d.DependsOn, []string{got.Components[1].Ref})
	}) || !slices.Contains(got.Dependencies[0].DependsOn, "module:nvidia") {
		t.Errorf("%+v", got.Dependencies)
	}
}

func TestStrangerIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(file, []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Write(&bytes.Buffer{}, Image{Programs: map[string]string{"x": file}}); err == nil {
		t.Error("a file without a list of modules is in the bill")
	}
}
