package sbom

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/google/licensecheck"

	"tributary.dev/tributary/image/deb"
)

// noAssertion is what SPDX says where nothing is known (SPDX 2.3, 7.13).
const noAssertion = "NOASSERTION"

// choice is a licence as CycloneDX has it: by SPDX's identifier, or by a name.
type choice struct {
	License licence `json:"license"`
}

type licence struct {
	ID   string `json:"id,omitempty"`
	Name string `json:"name,omitempty"`
}

// choices are the licences that hold together; none known is said so.
func choices(names []string) (out []choice) {
	for _, name := range names {
		if id, ok := spdx[strings.ToLower(name)]; ok {
			out = append(out, choice{licence{ID: id}})
		} else {
			out = append(out, choice{licence{Name: name}})
		}
	}
	if len(out) == 0 {
		return []choice{{licence{Name: noAssertion}}}
	}
	slices.SortFunc(out, func(a, b choice) int {
		return strings.Compare(a.License.ID+a.License.Name, b.License.ID+b.License.Name)
	})
	return slices.Compact(out)
}

// spdx gives the identifiers of SPDX for short names of Debian (copyright-format 1.0, 7.1) and for its own in small letters.
var spdx = func() map[string]string {
	m := map[string]string{"expat": "MIT", "apache-2": "Apache-2.0", "cc0": "CC0-1.0", "bsd-3-clauses": "BSD-3-Clause", "zlib/libpng": "Zlib"}
	for _, id := range []string{"0BSD", "Apache-2.0", "Artistic-2.0", "BSD-1-Clause", "BSD-2-Clause", "BSD-3-Clause", "BSD-4-Clause", "BSL-1.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC0-1.0",
		"curl", "FSFAP", "FSFULLR", "ISC", "MIT", "MIT-0", "MPL-1.1", "MPL-2.0", "NCSA", "OpenSSL", "PostgreSQL", "Unlicense", "X11", "Zlib"} {
		m[strings.ToLower(id)] = id
	}
	for name, versions := range map[string][]string{"GPL": {"1", "2", "3"}, "LGPL": {"2", "2.1", "3"}, "AGPL": {"3"}, "GFDL": {"1.1", "1.2", "1.3"}} {
		for _, v := range versions {
			id := name + "-" + v
			if !strings.Contains(v, ".") {
				id += ".0"
			}
			for _, short := range []string{name + "-" + v, id} {
				short = strings.ToLower(short)
				m[short], m[short+"-only"], m[short+"+"], m[short+"-or-later"] = id+"-only", id+"-only", id+"-or-later", id+"-or-later"
			}
		}
	}
	return m
}()

// ofDebian reads the licences in a machine-readable file of copyrights (copyright-format 1.0); nil for another file.
func ofDebian(text []byte) (names []string) {
	head, _, _ := strings.Cut(string(text[:min(len(text), 4096)]), "\n\n")
	if !strings.Contains(head, "Format:") || !strings.Contains(head, "copyright-format") && !strings.Contains(head, "dep5") {
		return nil
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, maxCopyright)
	for lines.Scan() {
		name, ok := strings.CutPrefix(lines.Text(), "License:")
		if !ok {
			continue
		}
		name = strings.Join(strings.FieldsFunc(name, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }), " ")
		if name != "" && len(name) <= 200 && !slices.Contains(names, name) && len(names) < maxLicences {
			names = append(names, name)
		}
	}
	return names
}

// Bounds of what is read of a file of copyrights.
const (
	maxCopyright = 4 << 20
	maxLicences  = 500
)

// Copyright reads what packages of a cache say of their licences. see names the package whose word it is, where a
// package's documentation is that one's.
func Copyright(cache *deb.Cache) func(deb.Package) (text []byte, see string, err error) {
	return func(p deb.Package) (text []byte, see string, err error) {
		found, folder := errors.New("found"), "usr/share/doc/"+p.Name
		err = cache.Walk(p, func(e deb.Entry, body io.Reader) (err error) {
			switch {
			case e.Path == folder && e.Mode.Type() == fs.ModeSymlink:
				see = path.Base(e.Link)
			case e.Path == folder+"/copyright" && e.Mode.Type() == fs.ModeSymlink:
				see = path.Base(path.Dir(e.Link))
			case e.Path == folder+"/copyright" && body != nil:
				text, err = io.ReadAll(io.LimitReader(body, maxCopyright))
			default:
				return nil
			}
			return errors.Join(err, found) // the rest need not be unpacked
		})
		if errors.Is(err, found) {
			err = nil
		}
		return text, see, err
	}
}

// packageLicences follows a package's word of its licences, which may be another package's.
func (image Image) packageLicences(p deb.Package) ([]choice, error) {
	if image.Copyright == nil {
		return choices(nil), nil
	}
	for range 4 {
		text, see, err := image.Copyright(p)
		if err != nil {
			return nil, fmt.Errorf("licences of %s: %w", p, err)
		}
		if see == "" {
			return choices(ofDebian(text)), nil
		}
		i := slices.IndexFunc(image.Packages, func(x deb.Package) bool { return x.Name == see })
		if i < 0 {
			break
		}
		p = image.Packages[i]
	}
	return choices(nil), nil
}

// sure is how much of a licence's file must be words of licences that are known, in per cent.
const sure = 75

// ofFolder tells the licences of a Go module by the files at its top.
func ofFolder(dir string) (names []string, err error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		name := strings.ToUpper(f.Name())
		if !f.Type().IsRegular() || !slices.ContainsFunc([]string{"LICENSE", "LICENCE", "COPYING", "UNLICENSE"}, func(p string) bool { return strings.HasPrefix(name, p) }) || strings.HasSuffix(name, ".GO") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return nil, err
		}
		cov := licensecheck.Scan(text[:min(len(text), maxCopyright)])
		if cov.Percent < sure {
			continue
		}
		for _, m := range cov.Match {
			if !m.IsURL && !slices.Contains(names, m.ID) {
				names = append(names, m.ID)
			}
		}
	}
	return names, nil
}

// moduleLicences asks the folder of a module's source, where it is at hand.
func (image Image) moduleLicences(modulePath, version string) ([]choice, error) {
	if image.Module == nil {
		return choices(nil), nil
	}
	dir, err := image.Module(modulePath, version)
	if err != nil || dir == "" {
		return choices(nil), err
	}
	names, err := ofFolder(dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // built from another folder of modules
	}
	return choices(names), err
}

// Modules finds the source of modules where the go command keeps it: cache is GOMODCACHE, goroot GOROOT, checkout the main
// module's, whose path is main.
func Modules(cache, goroot, main, checkout string) func(modulePath, version string) (dir string, err error) {
	return func(modulePath, version string) (string, error) {
		switch modulePath {
		case main:
			return checkout, nil
		case "stdlib":
			return goroot, nil
		}
		return filepath.Join(cache, escaped(modulePath)+"@"+escaped(version)), nil
	}
}

// escaped is how the go command writes paths and versions as files (golang.org/x/mod/module, EscapePath).
func escaped(s string) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.IsUpper(r) {
			b.WriteByte('!')
			r = unicode.ToLower(r)
		}
		b.WriteRune(r)
	}
	return b.String()
}
