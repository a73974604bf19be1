package build

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/pkg/edge/boot"
	"tributary.dev/tributary/pkg/edge/onboard/sztp"
	"tributary.dev/tributary/pkg/oci"
)

// maxPreload bounds what a root may carry besides the system; its partition is the harder bound.
const maxPreload = 4 << 30

const (
	preloaded    = "usr/share/tributary/preload/"
	settingsFile = "tributary.yaml"
	makersFile   = "manufacturers.pem" // whose vouchers count with the box's owner (edged-onboard)
	serversFile  = "bootstrap-servers" // whom a box asks at last for its owner
)

// preload reads a folder as files of the root, all of it below /usr/share/tributary/preload: apps/TENANT/NAME are OCI
// image layouts that the box takes artifacts from before it asks its parent, certificates of a private CA
// (ca/NAME.crt) are trusted by the whole system, and tributary.yaml goes to CONFIG. What a box could not use is refused
// here: nobody may be near it later.
func preload(dir, arch string) (map[string][]byte, error) {
	files := map[string][]byte{}
	if dir == "" {
		return files, nil
	}
	total, layouts := int64(0), map[string]bool{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path != dir && strings.HasPrefix(d.Name(), ".") { // what tools and desktops leave behind
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if d.IsDir() {
			return nil
		}
		if !d.Type().IsRegular() {
			return fmt.Errorf("%s is no plain file", path)
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		body, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if total += int64(len(body)); total > maxPreload {
			return fmt.Errorf("%s holds more than %d bytes", dir, int64(maxPreload))
		}
		name := filepath.ToSlash(rel)
		top, below, _ := strings.Cut(name, "/")
		switch {
		case name == settingsFile:
		case name == makersFile:
			if err := checkCertificate(body); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		case name == serversFile:
			if _, err := sztp.ParseServers(string(body)); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		case top == "ca" && !strings.Contains(below, "/") && strings.HasSuffix(below, ".crt"):
			if err := checkCertificate(body); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			files["etc/ssl/certs/preload-"+below] = body // every program of the system reads this folder besides the bundle
		case top == "apps":
			repo, _, ok := cutLayout(below)
			if !ok {
				return fmt.Errorf("%s is not of an OCI image layout: want apps/TENANT/NAME/{oci-layout,index.json,blobs/sha256/…}", path)
			}
			layouts[repo] = true
		default:
			return fmt.Errorf("%s has no place: a preload holds apps/, ca/NAME.crt, %s, %s and %s", path, settingsFile, makersFile, serversFile)
		}
		files[preloaded+name] = body
		return nil
	})
	if err != nil {
		return nil, err
	}
	for repo := range layouts {
		if err := oci.CheckRepo(repo); err != nil {
			return nil, err
		}
		if _, err := oci.CheckLayout(filepath.Join(dir, "apps", filepath.FromSlash(repo)), arch); err != nil {
			return nil, fmt.Errorf("apps/%s: %w", repo, err)
		}
	}
	return files, nil
}

// cutLayout tells the repository from the file within its layout.
func cutLayout(name string) (repo, file string, ok bool) {
	for _, end := range []string{"/oci-layout", "/index.json"} {
		if repo, ok = strings.CutSuffix(name, end); ok {
			return repo, end[1:], true
		}
	}
	repo, digest, ok := strings.Cut(name, "/blobs/sha256/")
	return repo, "blobs/sha256/" + digest, ok && oci.CheckDigest("sha256:"+digest) == nil
}

func checkCertificate(body []byte) error {
	for n, rest := 0, body; ; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if n == 0 {
				return fmt.Errorf("no certificate in PEM")
			}
			return nil
		}
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("holds a %s: certificates alone belong here", block.Type)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return err
		}
	}
}

// checkSettings refuses settings that the box would refuse, or could not follow.
func checkSettings(text []byte, p hwprofiles.Profile) error {
	if text == nil {
		return nil
	}
	s, err := boot.ParseSettings(text)
	if err != nil {
		return err
	}
	if s.Relay && !p.Relay.Capable {
		return fmt.Errorf("%s says relay: true; boxes of profile %s cannot relay", settingsFile, p.Name)
	}
	return nil
}
