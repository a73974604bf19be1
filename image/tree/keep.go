package tree

import (
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"tributary.dev/tributary/image/deb"
)

// keep is rootfs/keep.list: patterns (path.Match) of the packages' files that the root takes, ! leaves some out.
type keep struct {
	take, leave []pattern
}

type pattern struct {
	glob string
	used bool
}

func parseKeep(b []byte) (*keep, error) {
	k := &keep{}
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		to := &k.take
		if rest, ok := strings.CutPrefix(line, "!"); ok {
			to, line = &k.leave, rest
		}
		if _, err := path.Match(line, ""); err != nil || path.IsAbs(line) {
			return nil, fmt.Errorf("keep.list, line %d: %q is not a relative pattern", n, line)
		}
		*to = append(*to, pattern{glob: line})
	}
	return k, nil
}

func (k *keep) wants(p string) bool {
	hit := false
	for i := range k.take {
		if ok, _ := path.Match(k.take[i].glob, p); ok {
			k.take[i].used, hit = true, true
		}
	}
	for i := range k.leave {
		if ok, _ := path.Match(k.leave[i].glob, p); ok {
			k.leave[i].used, hit = true, false
		}
	}
	return hit
}

// unused names the first pattern that met nothing: a package has moved a file, or the pattern has a slip.
func (k *keep) unused() error {
	for _, p := range append(k.take, k.leave...) {
		if !p.used {
			return fmt.Errorf("keep.list: %q meets no file of any package", p.glob)
		}
	}
	return nil
}

// addPackages takes the kept files of the packages. It returns the texts of the CA certificates, which are not kept
// as files but joined into one.
func (t *Tree) addPackages(cache *deb.Cache, list []deb.Package, k *keep) (certificates map[string][]byte, err error) {
	certificates = map[string][]byte{}
	for _, p := range list {
		first := map[string]string{} // hard links: path to kept path
		err := cache.Walk(p, func(e deb.Entry, body io.Reader) error {
			if body != nil && path.Ext(e.Path) == ".crt" && strings.HasPrefix(e.Path, "usr/share/ca-certificates/") {
				certificates[e.Path], err = io.ReadAll(body)
				return err
			}
			at := merged(e.Path)
			if e.Mode.IsDir() || !k.wants(at) {
				return nil
			}
			f := File{Mode: e.Mode &^ (fs.ModeSetuid | fs.ModeSetgid), Link: e.Link, From: p.Name}
			switch {
			case e.Hard:
				f = t.files[first[e.Link]]
				if f.From == "" {
					return fmt.Errorf("%w: %s is a second name of %s, which is not kept", ErrTree, e.Path, e.Link)
				}
			case body != nil:
				if f.Data, err = io.ReadAll(body); err != nil {
					return err
				}
			case f.Mode&fs.ModeSymlink != 0:
				f.Mode = fs.ModeSymlink | 0o777
			}
			first[e.Path] = at
			return t.Put(at, f)
		})
		if err != nil {
			return nil, err
		}
	}
	return certificates, k.unused()
}
