package onboarding

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/onboard"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/story"
)

// second is another owner's core, in the network of the first.
type second struct {
	s    *site
	data string
}

// newSecond starts it and waits until it answers.
func (s *site) newSecond() *second {
	s.t.Helper()
	o := &second{s, filepath.Join(s.Dir, "second")}
	argv := append(s.CorePrefix(), filepath.Join(s.Bin, "cored"), "run", "--data", o.data, "--listen-https", ":9543", "--listen-mqtt", ":9583", "--listen-bootstrap", ":9544",
		"--manufacturers", filepath.Join(s.Dir, "manufacturers.pem"), "--names", "10.77.0.1,127.0.0.1")
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.Create(filepath.Join(s.Dir, "second.log"))
	must(s.t, err)
	cmd.Stdout, cmd.Stderr = log, log
	must(s.t, cmd.Start())
	log.Close()
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	must(s.t, lab.Until(s.t.Context(), "the second core answers", patience, func(ctx context.Context) error {
		_, err := o.edgectl(ctx, "get", "devices")
		return err
	}))
	return o
}

func (o *second) edgectl(ctx context.Context, args ...string) (string, error) {
	token, err := os.ReadFile(filepath.Join(o.data, "admin.token"))
	if err != nil {
		return "", err
	}
	argv := append(o.s.CorePrefix(), filepath.Join(o.s.Bin, "edgectl"))
	cmd := exec.CommandContext(ctx, argv[0], append(argv[1:], args...)...)
	cmd.Env = append(os.Environ(), "EDGECTL_SERVER=https://127.0.0.1:9543", "EDGECTL_TOKEN="+strings.TrimSpace(string(token)), "EDGECTL_CA="+filepath.Join(o.data, "ca", "root.crt"), "HOME="+o.data)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (o *second) root() *x509.Certificate {
	b, err := os.ReadFile(filepath.Join(o.data, "ca", "root.crt"))
	must(o.s.t, err)
	certs, err := identity.ParseCerts(b)
	must(o.s.t, err)
	return certs[0]
}

// reset is a factory reset: the box's keys and all that it kept are gone, and what a
// manufacturer wrote on CONFIG is still there.
func (s *site) reset(name string) {
	s.t.Helper()
	box := s.Boxes[name]
	box.StopEdged()
	must(s.t, os.RemoveAll(box.Data()))
	must(s.t, box.StartEdged(s.t.Context()))
}

// TestResetAndSale takes a box with a birth certificate and one without through a factory
// reset, and the former to another owner.
func TestResetAndSale(t *testing.T) {
	quiet := []string{"--sticks", "none", "--ask-site", "off", "--bootstrap", "https://10.77.0.1:8444,https://10.77.0.1:9544"}
	s := newSite(t, alone("born", quiet...), alone("plain", quiet...))
	s.born("born", "EX-0001")
	s.expect("EX-0001", "born", s.maker.voucher(t, "EX-0001", s.root(), nil))
	s.start("born", "plain")
	code := func(old string) (code string) {
		t.Helper()
		must(t, lab.Until(t.Context(), "another code at the console", patience, func(context.Context) error {
			b, err := os.ReadFile(filepath.Join(s.dir("plain"), "pairing-code"))
			if code = strings.TrimSpace(string(b)); err == nil && code == old {
				return os.ErrExist
			}
			return err
		}))
		return code
	}
	approve := func(code, name string) {
		t.Helper()
		must(t, lab.Until(t.Context(), "the box has asked", patience, func(ctx context.Context) error {
			_, err := s.Edgectl(ctx, "", "device", "approve", code, "--name", name)
			return err
		}))
	}
	first := code("")
	approve(first, "plain")
	before := s.member("plain").ID
	born := s.member("born").ID

	// Reset: a box without a birth certificate is another box, with another code.
	s.edgectl("device", "retire", "plain")
	s.reset("plain")
	again := code(first)
	approve(again, "plain-2")
	if st := s.member("plain-2"); st.ID == before {
		t.Error("a reset box has its old key")
	}

	// One with a birth certificate is the same box with another key: its owner must say that
	// he means it.
	s.reset("born")
	s.warning("born", "declined:", "by another key", born.String())
	s.edgectl("device", "retire", "born")
	s.edgectl("device", "expect", "EX-0001", "--again", "--name", "born-2", "--voucher", filepath.Join(s.Dir, "voucher-born"))
	if st := s.member("born-2"); st.ID == born {
		t.Error("a reset box has its old key")
	}

	// Sold: the manufacturer vouches for the new owner. The old one's word still stands at his
	// core, which the box asks first.
	o := s.newSecond()
	s.edgectl("device", "retire", "born-2")
	file := filepath.Join(s.Dir, "voucher-sold")
	must(t, os.WriteFile(file, s.maker.voucher(t, "EX-0001", o.root(), nil), 0o644))
	if out, err := s.Edgectl(t.Context(), "", "device", "expect", "EX-0001", "--again", "--voucher", file); err == nil || !strings.Contains(err.Error(), "another owner") {
		t.Errorf("the old owner takes the new one's voucher: %s, %v", out, err)
	}
	if out, err := o.edgectl(t.Context(), "device", "expect", "EX-0001", "--voucher", file, "--name", "bought"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s.reset("born")
	must(t, lab.Until(t.Context(), "the new owner has it", patience, func(ctx context.Context) error {
		out, err := o.edgectl(ctx, "get", "devices", "-o", "json")
		if err == nil && !strings.Contains(out, `"online": true`) {
			return os.ErrNotExist
		}
		return err
	}))
}

// ahead is what a relay has fetched of the needs of a box that is expected.
func (s *site) ahead(relay, serial string) ([]identity.AheadRef, error) {
	files, err := filepath.Glob(filepath.Join(s.Boxes[relay].Data(), "greetings", "*.json"))
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		var box struct {
			Serial string
			Refs   []identity.AheadRef
		}
		if json.Unmarshal(text, &box) == nil && box.Serial == serial {
			return box.Refs, nil
		}
	}
	return nil, fmt.Errorf("%s is not among %d files", serial, len(files))
}

// TestSiteWithoutWayUp lets a box come to a relay that is cut off: by what the relay fetched
// before it knows its owner and runs the apps that he signed for it, also after a power cut.
// Once the core is there again it is a member, and its apps have not noticed.
func TestSiteWithoutWayUp(t *testing.T) {
	s := newSite(t,
		lab.BoxSpec{Name: "relay", Parent: "core", Role: "relay", Relay: true, EdgedArgs: []string{"--verbose"}},
		lab.BoxSpec{Name: "late", Parent: "relay", Alone: true, EdgedArgs: []string{"--sticks", "none"}})
	root, err := filepath.Abs("../..")
	must(t, err)
	must(t, (&story.Story{Lab: s.Lab, Root: root, Out: io.Discard, Wait: 2 * time.Minute}).PushImages(t.Context()))
	_, err = s.Edgectl(t.Context(), `apiVersion: tributary/v1
kind: App
metadata: {name: hello}
spec:
  compose: |
    services:
      cache: {image: "default/cache:latest"}
---
apiVersion: tributary/v1
kind: Fleet
metadata: {name: field}
spec:
  selector: {matchLabels: {role: field}}
  apps: [hello]
`, "apply", "-f", "-")
	must(t, err)
	s.born("late", "EX-0001")
	must(t, s.Join(t.Context()))
	s.start("relay")
	must(t, lab.Until(t.Context(), "the relay has asked whom to expect", patience, func(context.Context) error {
		_, err := os.Stat(filepath.Join(s.Boxes["relay"].Data(), "greetings", "makers.json"))
		return err
	}))
	// It asks again in six hours, or when it is told that there is something new.
	s.expect("EX-0001", "late", s.maker.voucher(t, "EX-0001", s.root(), nil))
	must(t, lab.Until(t.Context(), "the relay fetches ahead what the box is told, and what that names", patience, func(context.Context) error {
		refs, err := s.ahead("relay", "EX-0001")
		if err != nil {
			return err
		}
		if len(refs) < 2 {
			return fmt.Errorf("it names %+v", refs)
		}
		log, err := os.ReadFile(filepath.Join(s.Boxes["relay"].Dir(), "edged.log"))
		for _, r := range refs {
			if !regexp.MustCompile(`artifact ready for children.*` + r.Digest).Match(log) {
				return fmt.Errorf("%s is not there yet (%v)", r.Digest, err)
			}
		}
		return nil
	}))
	must(t, s.Boxes["relay"].Uplink.Cut(t.Context()))
	s.start("late")
	s.warning("late", "not-enrolled", "the owner is found (site https://", "until then it runs what its owner signed for it: hello")
	tasks := func() (out string, err error) {
		out, err = s.Boxes["late"].Ctr(t.Context(), "tasks", "ls")
		if err == nil && !strings.Contains(out, "RUNNING") {
			err = fmt.Errorf("containers: %s", out)
		}
		return out, err
	}
	var first string
	must(t, lab.Until(t.Context(), "the app runs without the core", patience, func(context.Context) (err error) {
		first, err = tasks()
		return err
	}))
	must(t, s.Boxes["late"].PowerCut())
	s.start("late")
	must(t, lab.Until(t.Context(), "the app runs again after a power cut", patience, func(context.Context) (err error) {
		first, err = tasks()
		return err
	}))
	s.warning("late", "not-enrolled", "hello")
	must(t, s.Boxes["relay"].Uplink.Heal(t.Context()))
	if st := s.member("late"); st.Parent == "core" || st.Parent == "" {
		t.Errorf("it hangs at %q, not at the relay", st.Parent)
	}
	must(t, lab.Until(t.Context(), "the core knows that the app runs", patience, func(context.Context) error {
		st := s.member("late")
		for _, a := range st.Apps {
			if a.Name == "hello" && a.State == api.Running {
				return nil
			}
		}
		return fmt.Errorf("its apps: %+v", st.Apps)
	}))
	if now, err := tasks(); err != nil || now != first {
		t.Errorf("the containers were made anew (%v):\n%s\nbefore:\n%s", err, now, first)
	}
	if _, err := os.Stat(filepath.Join(s.Boxes["late"].Data(), onboard.FirstFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what it ran at first is still there: %v", err)
	}
}
