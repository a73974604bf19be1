// Package sbom answers: what is an image made of, in words that a scanner of vulnerabilities reads?
//
// It writes CycloneDX 1.6 (ECMA-424) as JSON: every Debian package of the image with its digest, every program of
// ours with its digest, and every Go module that each program says it holds. The programs are asked, not the build:
// the linker writes the list into them. Licences are what packages and modules say of themselves (licences.go). The same
// image gives the same bytes.
package sbom

import (
	"cmp"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"tributary.dev/tributary/image/deb"
)

// Image is what the bill is for.
type Image struct {
	Name     string // of the profile
	Version  string
	Time     time.Time // of the release
	Suite    string    // Debian's codename
	Packages []deb.Package
	Programs map[string]string // files by name
	Drivers  []Driver
	// Copyright gives a package's own word of its licences, or the package whose word counts for it. Module is the folder
	// of a Go module's source. Where one is nil the licences are said not to be known.
	Copyright func(deb.Package) (text []byte, see string, err error)
	Module    func(path, version string) (dir string, err error)
}

// Driver is a kernel module that was compiled for the image.
type Driver struct {
	Name    string
	Version string
	SHA256  string        // of the file in the image
	Kernel  string        // that it is for: uname -r
	Source  deb.Package   // that it was made of
	With    []deb.Package // compiler and headers, of which nothing is in the image
}

// The document, as far as we fill it in.
type bill struct {
	Format       string       `json:"bomFormat"`
	Spec         string       `json:"specVersion"`
	Serial       string       `json:"serialNumber"`
	Version      int          `json:"version"`
	Metadata     metadata     `json:"metadata"`
	Components   []component  `json:"components"`
	Dependencies []dependency `json:"dependencies"`
}

type metadata struct {
	Timestamp string        `json:"timestamp"`
	Tools     tools         `json:"tools"`
	Component component     `json:"component"`
	Supplier  *organisation `json:"supplier,omitempty"`
}

// tools made the bill.
type tools struct {
	Components []component `json:"components"`
}

type organisation struct {
	Name string `json:"name"`
}

type component struct {
	Ref        string        `json:"bom-ref,omitempty"`
	Type       string        `json:"type"`
	Supplier   *organisation `json:"supplier,omitempty"`
	Name       string        `json:"name"`
	Version    string        `json:"version,omitempty"`
	Hashes     []hash        `json:"hashes,omitempty"`
	Licenses   []choice      `json:"licenses,omitempty"`
	PURL       string        `json:"purl,omitempty"`
	Properties []property    `json:"properties,omitempty"`
}

type hash struct {
	Alg     string `json:"alg"`
	Content string `json:"content"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type dependency struct {
	Ref       string   `json:"ref"`
	DependsOn []string `json:"dependsOn"`
}

// Write writes the bill of an image.
func Write(w io.Writer, image Image) error {
	const root = "image"
	b := bill{Format: "CycloneDX", Spec: "1.6", Version: 1, Metadata: metadata{
		Timestamp: image.Time.UTC().Format(time.RFC3339),
		Tools:     tools{Components: []component{{Type: "application", Name: "tributary-image", Version: image.Version}}},
		Component: component{Ref: root, Type: "firmware", Name: "tributary-" + image.Name, Version: image.Version, Supplier: &organisation{"Tributary"}},
		Supplier:  &organisation{"Tributary"},
	}}
	top := dependency{Ref: root, DependsOn: []string{}}
	for _, p := range image.Packages {
		c := debian(p, image.Suite)
		var err error
		if c.Licenses, err = image.packageLicences(p); err != nil {
			return err
		}
		b.Components = append(b.Components, c)
		top.DependsOn = append(top.DependsOn, c.Ref)
	}
	seen := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(image.Programs)) {
		c, mods, err := program(name, image.Programs[name], image.Version)
		if err != nil {
			return err
		}
		b.Components = append(b.Components, c)
		top.DependsOn = append(top.DependsOn, c.Ref)
		needs := dependency{Ref: c.Ref, DependsOn: []string{}}
		for _, m := range mods {
			needs.DependsOn = append(needs.DependsOn, m.Ref)
			if !seen[m.Ref] {
				seen[m.Ref] = true
				if m.Licenses, err = image.moduleLicences(m.Name, m.Version); err != nil {
					return err
				}
				b.Components = append(b.Components, m)
			}
		}
		slices.Sort(needs.DependsOn)
		b.Dependencies = append(b.Dependencies, needs)
	}
	for _, d := range image.Drivers {
		c := driver(d)
		b.Components = append(b.Components, c)
		top.DependsOn = append(top.DependsOn, c.Ref)
		b.Dependencies = append(b.Dependencies, dependency{Ref: c.Ref, DependsOn: []string{debian(d.Source, image.Suite).Ref}})
	}
	slices.SortFunc(b.Components, func(x, y component) int { return cmp.Compare(x.Ref, y.Ref) })
	slices.Sort(top.DependsOn)
	b.Dependencies = append([]dependency{top}, b.Dependencies...)
	return b.encode(w)
}

// encode gives the bill a serial number made of its content, so that two bills share one only if they are equal.
func (b bill) encode(w io.Writer) error {
	plain, err := json.Marshal(b)
	if err != nil {
		return err
	}
	id := sha256.Sum256(plain)
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // RFC 9562, version 8
	b.Serial = fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", id[0:4], id[4:6], id[6:8], id[8:10], id[10:16])
	out := json.NewEncoder(w)
	out.SetIndent("", " ")
	out.SetEscapeHTML(false)
	return out.Encode(b)
}

// debian describes a package; the form of its address is of purl-spec's type deb.
func debian(p deb.Package, suite string) component {
	purl := "pkg:deb/debian/" + p.Name + "@" + url.QueryEscape(p.Version) + "?arch=" + p.Arch + "&distro=" + suite
	return component{Ref: purl, Type: "library", Supplier: &organisation{"Debian"}, Name: p.Name, Version: p.Version, PURL: purl,
		Hashes:     []hash{{"SHA-256", p.SHA256}},
		Properties: []property{{"debian:source", p.Source}, {"debian:path", p.Path}}}
}

// driver describes a compiled module, with what it was compiled by as properties: that is not in the image.
func driver(d Driver) component {
	c := component{Ref: "module:" + d.Name, Type: "device-driver", Name: d.Name, Version: d.Version, Hashes: []hash{{"SHA-256", d.SHA256}},
		Properties: []property{{"linux:release", d.Kernel}}}
	for _, p := range d.With {
		c.Properties = append(c.Properties, property{"build:with", p.String()})
	}
	return c
}

// program reads what a Go program says of itself. The image is built without Git's word, so a program of ours
// has no version of its own: it is the image's.
func program(name, file, version string) (component, []component, error) {
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return component{}, nil, fmt.Errorf("program %s does not say what it is made of: %w", name, err)
	}
	if v := info.Main.Version; v == "" || v == "(devel)" {
		info.Main.Version = version
	}
	sum, err := digest(file)
	if err != nil {
		return component{}, nil, err
	}
	c := component{Ref: "program:" + name, Type: "application", Name: name, Version: info.Main.Version,
		Hashes: []hash{{"SHA-256", sum}}, Properties: []property{{"go:package", info.Path}}}
	std := strings.TrimPrefix(strings.Fields(info.GoVersion + " ")[0], "go")
	mods := []component{golang(debug.Module{Path: "stdlib", Version: std})} // the name by which scanners know Go's library
	for _, m := range append([]*debug.Module{&info.Main}, info.Deps...) {
		for m.Replace != nil {
			m = m.Replace
		}
		if m.Path != "" {
			mods = append(mods, golang(*m))
		}
	}
	return c, mods, nil
}

func golang(m debug.Module) component {
	purl := "pkg:golang/" + m.Path
	if m.Version != "" {
		purl += "@" + url.QueryEscape(m.Version)
	}
	c := component{Ref: purl, Type: "library", Name: m.Path, Version: m.Version, PURL: purl}
	if m.Sum != "" {
		c.Properties = []property{{"go:sum", m.Sum}}
	}
	return c
}

func digest(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
