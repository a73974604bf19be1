package deb

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path"
	"slices"
	"strings"
)

// Source is one entry of the machine's apt sources (sources.list(5)).
type Source struct {
	URIs       []string
	Suites     []string
	Components []string
	SignedBy   string // a keyring's path; "" when apt's default counts
}

// maxSources bounds one file of apt sources.
const maxSources = 1 << 20

// ReadSources reads etc/apt/sources.list and sources.list.d of the file system whose root is given, deb822 and
// one-line form. Entries for source packages and disabled ones are left out.
func ReadSources(root fs.FS) ([]Source, error) {
	var out []Source
	names := []string{"etc/apt/sources.list"}
	for _, ext := range []string{"list", "sources"} {
		more, err := fs.Glob(root, "etc/apt/sources.list.d/*."+ext)
		if err != nil {
			return nil, err
		}
		names = append(names, more...)
	}
	for _, name := range names {
		b, err := fs.ReadFile(root, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		parse := parseOneLine
		if path.Ext(name) == ".sources" {
			parse = parseDeb822
		}
		more, err := parse(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out = append(out, more...)
	}
	return out, nil
}

func parseDeb822(b []byte) ([]Source, error) {
	if len(b) > maxSources {
		return nil, fmt.Errorf("larger than %d bytes", maxSources)
	}
	var out []Source
	err := readStanzas(bytes.NewReader(b), nil, func(s stanza) error {
		if strings.EqualFold(s["enabled"], "no") || !slices.Contains(strings.Fields(s["types"]), "deb") {
			return nil
		}
		src := Source{URIs: strings.Fields(s["uris"]), Suites: strings.Fields(s["suites"]), Components: strings.Fields(s["components"])}
		if key := s["signed-by"]; strings.HasPrefix(key, "/") {
			src.SignedBy = strings.Fields(key)[0]
		}
		out = append(out, src)
		return nil
	})
	return out, err
}

func parseOneLine(b []byte) ([]Source, error) {
	if len(b) > maxSources {
		return nil, fmt.Errorf("larger than %d bytes", maxSources)
	}
	var out []Source
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, maxSources+1)
	for n := 1; lines.Scan(); n++ {
		line, _, _ := strings.Cut(lines.Text(), "#")
		kind, rest, _ := strings.Cut(strings.TrimSpace(strings.ReplaceAll(line, "\t", " ")), " ")
		if kind != "deb" {
			continue
		}
		var src Source
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			options, after, ok := strings.Cut(rest[1:], "]")
			if !ok {
				return nil, fmt.Errorf("line %d: the options have no end", n)
			}
			for _, o := range strings.Fields(options) {
				if key, ok := strings.CutPrefix(o, "signed-by="); ok && strings.HasPrefix(key, "/") {
					src.SignedBy, _, _ = strings.Cut(key, ",")
				}
			}
			rest = after
		}
		f := strings.Fields(rest)
		if len(f) < 2 {
			return nil, fmt.Errorf("line %d: an address and a suite are needed", n)
		}
		src.URIs, src.Suites, src.Components = f[:1], f[1:2], f[2:]
		out = append(out, src)
	}
	return out, lines.Err()
}

// Mirror is where Debian's archives are, as this machine knows them.
type Mirror struct {
	Main     string // address of the archive
	Security string // address of the security archive; "" when the machine has none
	Keyring  string // file of Debian's archive keys
}

// DefaultKeyring is where Debian's package debian-archive-keyring puts its keys.
const DefaultKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// ErrNoMirror says that the machine's apt sources name no Debian archive.
var ErrNoMirror = errors.New("the apt sources of this machine name no Debian archive")

// FindMirror picks Debian's own archives among the sources of a machine that runs the release codename. Vendors'
// repositories often use the same suite name, so entries signed by Debian's keys, or that have the updates too,
// come first; a wrong pick is caught when the index's signature is checked.
func FindMirror(sources []Source, codename string) (Mirror, error) {
	m, best := Mirror{Keyring: DefaultKeyring}, -1
	for _, s := range sources {
		if len(s.URIs) == 0 || !slices.Contains(s.Components, "main") || !fetchable(s.URIs[0]) {
			continue
		}
		uri := strings.TrimRight(s.URIs[0], "/")
		debian := s.SignedBy == "" || strings.Contains(s.SignedBy, "debian-archive")
		if debian && m.Security == "" && slices.Contains(s.Suites, codename+"-security") {
			m.Security = uri
		}
		score := 0
		if strings.Contains(s.SignedBy, "debian-archive") {
			score += 4
		} else if s.SignedBy == "" {
			score += 2
		}
		if slices.Contains(s.Suites, codename+"-updates") {
			score++
		}
		if slices.Contains(s.Suites, codename) && score > best {
			best, m.Main = score, uri
			if strings.Contains(s.SignedBy, "debian-archive") {
				m.Keyring = s.SignedBy
			}
		}
	}
	if m.Main == "" {
		return Mirror{}, fmt.Errorf("%w (suite %s, component main); add one to /etc/apt/sources.list.d", ErrNoMirror, codename)
	}
	return m, nil
}

// fetchable tells addresses that single files can be fetched from; lists of mirrors and discs can't.
func fetchable(uri string) bool {
	u, err := url.Parse(uri)
	return err == nil && slices.Contains([]string{"http", "https", "ftp", "file", "copy", "tor+http", "tor+https"}, u.Scheme)
}

// Codename reads VERSION_CODENAME from etc/os-release.
func Codename(root fs.FS) (string, error) {
	b, err := fs.ReadFile(root, "etc/os-release")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "VERSION_CODENAME="); ok {
			return strings.Trim(v, `"'`), nil
		}
	}
	return "", errors.New("etc/os-release has no VERSION_CODENAME: is this Debian?")
}

// MachineMirror reads the apt sources of the machine whose root is given.
func MachineMirror(root fs.FS) (Mirror, error) {
	code, err := Codename(root)
	if err != nil {
		return Mirror{}, err
	}
	sources, err := ReadSources(root)
	if err != nil {
		return Mirror{}, err
	}
	return FindMirror(sources, code)
}

func hasDotDot(p string) bool { return slices.Contains(strings.Split(p, "/"), "..") }
