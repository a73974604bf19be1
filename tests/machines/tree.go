// Package machines answers: how does a tree of boxes stand on one computer, as real machines?
//
// The core is a process on the host's loopback. Each box is a QEMU machine that boots the
// image that `make image` built, from a disk of its own, and joins by what stands on its
// partition CONFIG: a token, or the certificate of its birth alone. A box under the core reaches it through a wire (wire.go), where bytes
// are counted and cables cut; boxes under a relay hang on a switch with it. Nobody reaches
// anybody else.
package machines

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/story"
	"tributary.dev/tributary/tests/vm"
)

// Spec tells what tree to build. Boxes come after their parents.
type Spec struct {
	// Bin holds cored and edgectl; Images holds <profile>/disk.raw.
	Bin, Images string
	// Dir is where disks, logs and the core's data are kept.
	Dir       string
	Boxes     []BoxSpec
	CoredArgs []string
	// Keys is the folder of the keys that came with the images. With it a box gets the
	// certificate of its birth, the core a voucher of its maker, and the box finds its owner by
	// itself (docs/onboarding.md); without it each has a join token. Vouchers bring all boxes to
	// the same place, so one alone may be under the core.
	Keys string
	// Accel is what vm.Probe says of the host's own architecture.
	Accel string
	// Say prints progress; nil says nothing.
	Say func(format string, args ...any)
}

// BoxSpec is one box. A relay serves its own children on one switch.
type BoxSpec struct {
	Name, Parent, Role string
	// Arch is the host's if empty.
	Arch  string
	Relay bool
	// Alone: CONFIG names neither a parent nor a token. Silent: nor does it name, to a box that
	// was born with a certificate, the core's bootstrap server.
	Alone, Silent bool
	// Bootstrap are further servers that CONFIG names to a box that looks for its owner.
	Bootstrap []string
	// Site is on the second card, with a server of DHCP, in place of a card that the host alone
	// reaches.
	Site *vm.Switch
	// MemoryMiB is 768 if zero.
	MemoryMiB int
	// Uplinks stand on CONFIG behind those of the tree's cards.
	Uplinks []string
	// VSock gives it a vsock card; Extra is added to QEMU's command line.
	VSock bool
	Extra []string
	// DiskLog is a file that receives every write and flush of the disk; empty: none.
	DiskLog string
	// Clock is what the clock on the board says at each power on; zero: the right time.
	Clock time.Time
	// Secure gives it a TPM, and firmware that starts what keys in vars.fd signed alone; the
	// file lies in its folder.
	Secure bool
}

// Profiles are the images that a machine of an architecture boots.
var Profiles = map[string]string{"amd64": "vm", "arm64": "vm-arm64"}

// Bear are the warnings that a box without a TPM has by nature.
var Bear = []string{"state-key-unsealed", "no-tpm"}

// Small is the tree of the demo: a relay and under it two field boxes, the second of the
// other architecture.
func Small() []BoxSpec {
	return []BoxSpec{
		{Name: "relay-1", Parent: "core", Role: "access", Relay: true},
		{Name: "field-1", Parent: "relay-1", Role: "field"},
		{Name: "field-2", Parent: "relay-1", Role: "field", Arch: Other()},
	}
}

// Other is the architecture that the host does not have.
func Other() string {
	if runtime.GOARCH == "arm64" {
		return "amd64"
	}
	return "arm64"
}

// Tree is a standing tree. It is a story.Tree.
type Tree struct {
	Spec
	lab.Admin
	cored *vm.Process
	boxes map[string]*Box
}

var _ story.Tree = (*Tree)(nil)

// Missing names the profiles whose images are not built.
func Missing(spec Spec) (list []string) {
	for _, b := range spec.Boxes {
		profile := Profiles[archOf(b)]
		if _, err := os.Stat(filepath.Join(spec.Images, profile, "disk.raw")); err != nil && !slices.Contains(list, profile) {
			list = append(list, profile)
		}
	}
	return list
}

func archOf(b BoxSpec) string {
	if b.Arch == "" {
		return runtime.GOARCH
	}
	return b.Arch
}

// New makes folders and cables; nothing runs yet.
func New(spec Spec) (*Tree, error) {
	if missing := Missing(spec); len(missing) > 0 {
		return nil, fmt.Errorf("no image of %s below %s: run make image PROFILE=%s", strings.Join(missing, ", "), spec.Images, missing[0])
	}
	if err := os.MkdirAll(spec.Dir, 0o755); err != nil {
		return nil, err
	}
	if spec.Say == nil {
		spec.Say = func(string, ...any) {}
	}
	t := &Tree{Spec: spec, boxes: map[string]*Box{}}
	t.Admin = lab.Admin{Program: filepath.Join(t.Bin, "edgectl"), Data: t.CoreDir(), Home: t.Dir}
	for i, b := range spec.Boxes {
		if err := t.add(i, b); err != nil {
			return nil, errors.Join(err, t.Close())
		}
	}
	return t, nil
}

// CoreDir is cored's folder.
func (t *Tree) CoreDir() string { return filepath.Join(t.Dir, "core") }

// coreRuns is what cored says once it listens, on ports that the system gave it.
var coreRuns = regexp.MustCompile(`(?m)msg="the core runs" .*\bhttps=(\S+) mqtt=(\S+) .*\bbootstrap="?([^" ]*)`)

// StartCore starts cored on the loopback and waits until it answers.
func (t *Tree) StartCore(ctx context.Context) error {
	if err := os.MkdirAll(t.CoreDir(), 0o700); err != nil {
		return err
	}
	logFile := filepath.Join(t.Dir, "cored.log")
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	before, err := log.Seek(0, io.SeekEnd) // by a core before this one
	if err != nil {
		return err
	}
	// 10.0.2.2 is the host, seen from a machine.
	args := []string{"run", "--data", t.CoreDir(), "--listen-https", loopback(0), "--listen-mqtt", loopback(0), "--names", "localhost,127.0.0.1,10.0.2.2"}
	if t.Keys != "" {
		args = append(args, "--listen-bootstrap", loopback(0), "--manufacturers", filepath.Join(t.Keys, "manufacturer.pem"))
		for _, b := range t.boxes {
			if b.wire != nil {
				args = append(args, "--attach", b.wire.ports())
			}
		}
	}
	cmd := exec.Command(filepath.Join(t.Bin, "cored"), append(args, t.CoredArgs...)...)
	cmd.Stdout, cmd.Stderr = log, log
	if t.cored, err = vm.StartProcess(cmd); err != nil {
		return err
	}
	return lab.Until(ctx, "cored answers", time.Minute, func(ctx context.Context) error {
		select {
		case <-t.cored.Done():
			return errors.New("cored ended; see " + logFile)
		default:
		}
		said, err := os.ReadFile(logFile)
		if err != nil {
			return err
		}
		where := coreRuns.FindSubmatch(said[before:])
		if where == nil {
			return errors.New("it does not listen yet")
		}
		t.Server = "https://" + string(where[1])
		for _, b := range t.boxes {
			if b.wire != nil {
				b.wire.lead(string(where[1]), string(where[2]), string(where[3]))
			}
		}
		_, err = t.Edgectl(ctx, "", "get", "devices")
		return err
	})
}

func loopback(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }

// Join makes each box's disk: the image, and on CONFIG its network and what it joins by.
func (t *Tree) Join(ctx context.Context) error {
	for _, spec := range t.Boxes {
		b := t.boxes[spec.Name]
		var token string
		var birth []byte
		var err error
		switch {
		case spec.Alone:
		case t.Keys != "":
			birth, err = t.born(ctx, b)
		default:
			token, err = t.JoinToken(ctx, spec.Name, spec.Role)
		}
		if err == nil {
			err = b.flash(token, birth)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", spec.Name, err)
		}
	}
	return nil
}

// born makes the certificate of a box's birth, as its manufacturer would, and has the core
// expect it by the manufacturer's voucher.
func (t *Tree) born(ctx context.Context, b *Box) ([]byte, error) {
	if err := os.MkdirAll(b.path(""), 0o755); err != nil {
		return nil, err
	}
	serial, key, birth := "DEMO-"+strings.ToUpper(b.Name), filepath.Join(t.Keys, "manufacturer.key"), b.path("idevid.pem")
	for _, args := range [][]string{
		{"voucher", "birth", serial, "--key", key, "--out", birth},
		{"voucher", "issue", serial, "--key", key, "--owner", filepath.Join(t.CoreDir(), "ca", "root.crt"), "--out", b.path("")},
		{"device", "expect", serial, "--voucher", b.path(serial + ".vcj"), "--name", b.Name, "--labels", "role=" + b.Role},
	} {
		if _, err := t.Edgectl(ctx, "", args...); err != nil {
			return nil, err
		}
	}
	t.Say("%s: born as %s, and the core has the voucher for that", b.Name, serial)
	return os.ReadFile(birth)
}

// StartBoxes powers all boxes up at once, and waits until each has come up.
func (t *Tree) StartBoxes(ctx context.Context) error {
	began := time.Now()
	for _, spec := range t.Boxes {
		if err := t.boxes[spec.Name].Start(ctx); err != nil {
			return err
		}
	}
	for _, spec := range t.Boxes {
		if err := t.boxes[spec.Name].Up(ctx); err != nil {
			return err
		}
		t.Say("%s (%s) is up, %.0f s after power on", spec.Name, archOf(spec), time.Since(began).Seconds())
	}
	return nil
}

// Names lists the boxes, parents first.
func (t *Tree) Names() (list []string) {
	for _, b := range t.Boxes {
		list = append(list, b.Name)
	}
	return list
}

// Box finds one by name.
func (t *Tree) Box(name string) story.Box { return t.boxes[name] }

// Machine is what a box is now; nil without power.
func (t *Tree) Machine(name string) *vm.Machine { return t.boxes[name].machine }

// Close takes everything down. Disks and logs stay in Dir.
func (t *Tree) Close() error {
	var errs []error
	for _, spec := range slices.Backward(t.Boxes) {
		if b := t.boxes[spec.Name]; b != nil {
			errs = append(errs, b.close())
		}
	}
	t.cored.Stop(10 * time.Second)
	return errors.Join(errs...)
}

// get asks a host port for the demo's app.
func get(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	return readAll(res)
}
