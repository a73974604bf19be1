package scenario

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/story"
	"tributary.dev/tributary/tests/wait"
)

// hostile is a tree whose relay is played by tests/hostile, under the real relay's
// identity.
type hostile struct {
	*story.Story
	t      *testing.T
	relay  *lab.Box
	seen   string            // file of everything that the relay saw in clear
	wire   string            // file of every packet on the relay's links
	before map[string]string // the processes that nothing here may restart
	shown  string            // the greeting that the app shows now
	also   string            // what the relay does besides, whatever else it does
}

// canary is a secret that no relay may ever hold. The open one is a config, which is
// signed and not sealed: the same search must find it. The third is sent in clear.
const (
	canary      = "canary-7d1f3c55-never-in-a-relay"
	openCanary  = "canary-91ab02ee-may-be-read"
	plainCanary = "canary-5500c3d1-sent-in-clear"
)

// TestHostileRelay puts a relay between core and devices that alters, replays, drops,
// mixes and forges. Whatever it does the devices keep running what they had, somebody
// is told by name, records are counted exactly once, and when it stops all is as it
// should be. A secret is found neither in its memory, nor on its disk, nor on its links,
// nor in anything that it saw.
func TestHostileRelay(t *testing.T) {
	boxes := append(pair(), lab.BoxSpec{Name: "field-2", Parent: "agg-1", Role: "field"})
	s := raise(t, boxes)
	ctx := t.Context()
	h := &hostile{Story: s, t: t, relay: s.Lab.Boxes["agg-1"], seen: filepath.Join(s.Lab.Dir, "seen"), wire: filepath.Join(s.Lab.Dir, "wire")}
	capture, err := h.relay.Capture(h.wire)
	must(t, err)
	t.Cleanup(func() { _ = capture.Close() }) // again, if the test ends early
	began := time.Now()
	h.takeOver(ctx)
	t.Logf("%-10s %5.1f s", "take over", time.Since(began).Seconds())
	h.deploy(ctx)
	h.secrecy(ctx)
	t.Logf("%-10s %5.1f s", "deploy", time.Since(began).Seconds())
	for _, part := range []struct {
		name string
		run  func(context.Context)
	}{
		{"drop", h.drop}, {"alter", h.alter}, {"forge", h.forge}, {"replay", h.replay}, {"mix", h.mix}, {"state", h.state},
		{"mute", h.mute}, {"artifacts", h.artifacts},
	} {
		began := time.Now()
		part.run(ctx)
		h.unharmed(ctx)
		t.Logf("%-10s %5.1f s", part.name, time.Since(began).Seconds())
	}
	h.secrecy(ctx)
	h.honestAgain(ctx)
	h.overheard(ctx, capture)
}

// takeOver lets the real relay enrol, and then plays it; the devices below come later
// and enrol through the impostor.
func (h *hostile) takeOver(ctx context.Context) {
	program := builtHostile(ctx, h.t, h.Root)
	must(h.t, h.Lab.StartCore(ctx))
	must(h.t, h.Lab.Join(ctx))
	must(h.t, h.relay.Start(ctx))
	must(h.t, lab.Until(ctx, "the relay is enrolled", h.Wait, func(ctx context.Context) error {
		devices, err := h.Devices(ctx)
		if err == nil && !devices["agg-1"].Status.Online {
			err = errors.New("not online")
		}
		return err
	}))
	h.relay.KillEdged()
	h.relay.Program, h.relay.EdgedArgs = program, []string{"--seen", h.seen}
	must(h.t, h.relay.StartEdged(ctx))
	must(h.t, h.Lab.Boxes["field-1"].Start(ctx))
	must(h.t, h.Lab.Boxes["field-2"].Start(ctx))
	must(h.t, h.Enrolled(ctx))
}

// builtHostile builds tests/hostile.
func builtHostile(ctx context.Context, t *testing.T, root string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "hostile")
	build := exec.CommandContext(ctx, "go", "build", "-o", program, "./tests/hostile")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the hostile relay: %v\n%s", err, out)
	}
	return program
}

// deploy brings the demo's app with the canaries in it.
func (h *hostile) deploy(ctx context.Context) {
	must(h.t, h.PushImages(ctx))
	v1, err := os.ReadFile(filepath.Join(h.Root, "tests", "demo", "app", "v1.yaml"))
	must(h.t, err)
	text := strings.NewReplacer("open-sesame", canary, "hello from the core", openCanary).Replace(string(v1))
	if strings.Count(text, canary) != 1 || strings.Count(text, openCanary) != 1 {
		h.t.Fatal("the demo's app no longer has the texts that the canaries replace")
	}
	_, err = h.Lab.Edgectl(ctx, text, "apply", "-f", "-")
	must(h.t, err)
	h.shown = openCanary
	must(h.t, h.RunningEverywhere(ctx))
	h.showing(ctx, openCanary)
	h.before = cachePIDs(ctx, h.t, h.Story)
}

// evil tells the relay what to do from now on; with nothing it is honest.
func (h *hostile) evil(ctx context.Context, do ...string) {
	h.t.Helper()
	_, err := h.control(ctx, http.MethodPost, "/evil?"+url.Values{"do": {strings.Join(append(do, h.also), ",")}}.Encode())
	must(h.t, err)
}

// did waits until the relay did something so often since the test began.
func (h *hostile) did(ctx context.Context, what string, times int) {
	h.t.Helper()
	must(h.t, lab.Until(ctx, "the relay does "+what, h.Wait, func(ctx context.Context) error {
		if n := h.done(ctx)[what]; n < times {
			return fmt.Errorf("%d times of %d", n, times)
		}
		return nil
	}))
}

func (h *hostile) done(ctx context.Context) map[string]int {
	h.t.Helper()
	out := map[string]int{}
	must(h.t, lab.Until(ctx, "the relay answers its tester", h.Wait, func(ctx context.Context) error {
		text, err := h.control(ctx, http.MethodGet, "/done")
		for line := range strings.Lines(text) {
			name, n, _ := strings.Cut(strings.TrimSpace(line), " ")
			out[name], _ = strconv.Atoi(n)
		}
		return err
	}))
	return out
}

func (h *hostile) control(ctx context.Context, method, path string) (string, error) {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(h.relay.Run(), "hostile.sock"))
		}}}
	req, err := http.NewRequestWithContext(ctx, method, "http://hostile"+path, nil)
	if err != nil {
		return "", err
	}
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, body)
	}
	return string(body), err
}

// greet changes the app's greeting at the core: a new manifest for every field device.
func (h *hostile) greet(ctx context.Context, text string) {
	h.t.Helper()
	o := api.Object{APIVersion: api.Version, Kind: api.KindConfig, Metadata: api.Meta{Name: "greeting"}}
	o.Spec, _ = json.Marshal(map[string]any{"files": map[string]string{"text": text + "\n"}})
	b, err := json.Marshal(o)
	must(h.t, err)
	_, err = h.Lab.Edgectl(ctx, string(b), "apply", "-f", "-")
	must(h.t, err)
}

// showing waits until the app shows a text on every field device.
func (h *hostile) showing(ctx context.Context, text string) {
	h.t.Helper()
	must(h.t, h.AnswerEverywhere(ctx, text))
	h.shown = text
}

// unharmed fails when any field device does other than it did, or had anything restarted.
func (h *hostile) unharmed(ctx context.Context) {
	h.t.Helper()
	must(h.t, h.AnswerEverywhere(ctx, h.shown))
	if after := cachePIDs(ctx, h.t, h.Story); fmt.Sprint(after) != fmt.Sprint(h.before) {
		h.t.Fatalf("a container was restarted: processes were %v, are %v", h.before, after)
	}
}

// toldLocally waits until a field device itself names a warning whose message holds text.
func (h *hostile) toldLocally(ctx context.Context, box, warning, text string) {
	h.t.Helper()
	must(h.t, lab.Until(ctx, box+" names "+warning, h.Wait, func(ctx context.Context) error {
		b, err := h.Lab.Boxes[box].Local(ctx, "/status")
		if err != nil {
			return err
		}
		var status struct{ Warnings []api.Warning }
		if err := json.Unmarshal(b, &status); err != nil {
			return err
		}
		for _, w := range status.Warnings {
			if w.Name == warning && strings.Contains(w.Message, text) {
				return nil
			}
		}
		return fmt.Errorf("its warnings are %v", status.Warnings)
	}))
}

// alarmed waits until the core's own metrics name a warning.
func (h *hostile) alarmed(ctx context.Context, warning string) {
	h.t.Helper()
	must(h.t, lab.Until(ctx, "the core names "+warning, h.Wait, func(ctx context.Context) error {
		env, err := h.Lab.EdgectlEnv()
		if err != nil {
			return err
		}
		token := ""
		for _, e := range env {
			if v, ok := strings.CutPrefix(e, "EDGECTL_TOKEN="); ok {
				token = v
			}
		}
		out, err := h.Lab.CoreCommand(ctx, "curl", "-sfk", "-H", "Authorization: Bearer "+token, "https://127.0.0.1:8443/metrics")
		if err == nil && !strings.Contains(out, `tributary_warning{name="`+warning+`"`) {
			err = errors.New("it does not")
		}
		return err
	}))
}

// streams: a session is tampered with, and answered by who was not asked.
func (h *hostile) streams(ctx context.Context) {
	shell := func(ctx context.Context, script string) (string, error) {
		return h.Lab.Edgectl(ctx, "", "exec", "field-1", "demo/web", "--", "/bin/busybox", "sh", "-c", script)
	}
	whole, err := shell(ctx, "seq 1 20000")
	must(h.t, err)
	if !strings.HasSuffix(whole, "\n20000\n") {
		h.t.Fatalf("an honest session ends in %q", whole[max(0, len(whole)-20):])
	}
	h.evil(ctx, "alter-streams")
	if out, err := shell(ctx, "seq 1 20000"); err == nil || !strings.HasPrefix(whole, out) {
		h.t.Errorf("a session that was tampered with: %v, %d bytes", err, len(out))
	}
	h.did(ctx, "alter-streams", 1)
	h.evil(ctx, "steal-streams")
	stolen, cancel := context.WithTimeout(ctx, 5*time.Second) // who was asked never answers
	defer cancel()
	if out, err := shell(stolen, "echo mine"); err == nil || out != "" {
		h.t.Errorf("a stolen session: %v %q", err, out)
	}
	h.did(ctx, "steal-streams", 1)
	h.evil(ctx)
	if out, err := shell(ctx, "echo mine"); err != nil || out != "mine\n" {
		h.t.Errorf("an honest session afterwards: %v %q", err, out)
	}
}

// alter: bits of manifests.
func (h *hostile) alter(ctx context.Context) {
	h.evil(ctx, "alter")
	h.greet(ctx, "greeting-altered-on-its-way")
	h.did(ctx, "alter", 2)
	h.toldLocally(ctx, "field-1", "manifest-forged", "")
	must(h.t, hasWarning(ctx, h.Story, "field-1", "manifest-forged"))
	h.unharmed(ctx)
	h.evil(ctx)
	h.showing(ctx, "greeting-altered-on-its-way")
}

// forge: well-formed manifests under the relay's own key, and acknowledgements.
func (h *hostile) forge(ctx context.Context) {
	h.evil(ctx, "forge", "forge-acks")
	h.did(ctx, "forge", 8)
	h.did(ctx, "forge-acks", 8)
	h.toldLocally(ctx, "field-1", "manifest-forged", "signature")
	h.toldLocally(ctx, "field-1", "bad-ack", "")
	h.unharmed(ctx)
	h.evil(ctx)
}

// replay: whatever was signed once.
func (h *hostile) replay(ctx context.Context) {
	h.greet(ctx, "greeting-before-the-replay")
	h.showing(ctx, "greeting-before-the-replay")
	h.evil(ctx, "replay")
	h.did(ctx, "replay", 20)
	h.toldLocally(ctx, "field-1", "manifest-old", "")
	h.toldByEvent(ctx, "field-1", "command.refused")
	h.unharmed(ctx)
	h.evil(ctx)
}

// toldByEvent waits until the core's ledger holds an event of a device.
func (h *hostile) toldByEvent(ctx context.Context, box, event string) {
	h.t.Helper()
	must(h.t, lab.Until(ctx, box+" recorded "+event, h.Wait, func(ctx context.Context) error {
		out, err := h.Lab.Edgectl(ctx, "", "events", box, "-o", "json")
		if err == nil && !strings.Contains(out, event) {
			err = errors.New("it did not")
		}
		return err
	}))
}

// mix: what belongs to another device. Meanwhile every batch of records goes up again
// and again.
func (h *hostile) mix(ctx context.Context) {
	h.evil(ctx, "mix", "repeat-records")
	h.did(ctx, "mix", 8)
	h.did(ctx, "repeat-records", 1)
	h.toldLocally(ctx, "field-1", "foreign-manifest", "")
	h.toldLocally(ctx, "field-2", "foreign-manifest", "")
	h.unharmed(ctx)
	h.evil(ctx)
}

// state: what devices report is altered, taken back, said to be newer than it is, and
// devices are attached elsewhere. Meanwhile every batch of records is altered.
func (h *hostile) state(ctx context.Context) {
	h.evil(ctx, "alter-state", "alter-records")
	h.greet(ctx, "greeting-while-state-is-altered")
	h.showing(ctx, "greeting-while-state-is-altered")
	h.did(ctx, "alter-state", 2)
	h.alarmed(ctx, "bad-mac")
	h.evil(ctx, "alter-records")
	must(h.t, h.RunningEverywhere(ctx))
	for _, lie := range []string{"wipe-state", "ahead-state"} {
		h.evil(ctx, lie, "alter-records")
		h.did(ctx, lie, 4)
		h.evil(ctx, "alter-records")
		h.greet(ctx, "greeting-after-"+lie)
		h.showing(ctx, "greeting-after-"+lie)
		must(h.t, h.RunningEverywhere(ctx))
	}
	h.evil(ctx, "forge-attachments", "alter-records")
	h.did(ctx, "forge-attachments", 4)
	h.alarmed(ctx, "bad-frame")
	h.alarmed(ctx, "bad-batch")
	h.evil(ctx)
}

// counted holds the core's ledger against every device's own log.
func (h *hostile) counted(ctx context.Context) {
	h.t.Helper()
	for _, f := range h.Fields {
		_, err := h.Counted(ctx, f)
		must(h.t, err)
	}
}

// drop: a newer manifest is kept back. The core's signed acknowledgement names it all
// the same; until it does, streams are tampered with too.
func (h *hostile) drop(ctx context.Context) {
	h.also = "drop"
	h.evil(ctx)
	h.greet(ctx, "greeting-kept-back")
	h.streams(ctx)
	h.toldLocally(ctx, "field-1", "manifest-withheld", "")
	must(h.t, hasWarning(ctx, h.Story, "field-1", "manifest-withheld"))
	h.unharmed(ctx)
	h.also = ""
	h.evil(ctx)
	h.showing(ctx, "greeting-kept-back")
	must(h.t, noWarning(ctx, h.Story, "field-1", "manifest-withheld"))
}

// mute: nothing that the core signed comes through, so nothing names what is kept back;
// the device misses the core's word itself. Until it does, the relay plays its children.
func (h *hostile) mute(ctx context.Context) {
	h.also = "mute"
	h.evil(ctx)
	h.greet(ctx, "greeting-that-nobody-hears-of")
	h.impostor(ctx)
	h.toldLocally(ctx, "field-1", "core-silent", "")
	h.unharmed(ctx)
	h.also = ""
	h.evil(ctx)
	h.showing(ctx, "greeting-that-nobody-hears-of")
}

// artifacts: the relay's cache answers digests with something else. Meanwhile no record
// goes up.
func (h *hostile) artifacts(ctx context.Context) {
	h.evil(ctx, "wrong-blobs", "drop-records")
	must(h.t, h.Apply(ctx, "v2.yaml"))
	h.did(ctx, "wrong-blobs", 2)
	h.toldLocally(ctx, "field-1", "manifest-incomplete", "digest")
	must(h.t, h.AnswerEverywhere(ctx, "version 1"))
	h.evil(ctx, "short-blobs", "drop-records")
	h.did(ctx, "short-blobs", 2)
	h.did(ctx, "drop-records", 1)
	h.unharmed(ctx)
	must(h.t, h.AnswerEverywhere(ctx, "version 1"))
	h.evil(ctx)
	must(h.t, h.AnswerEverywhere(ctx, "version 2"))
	must(h.t, h.RunningEverywhere(ctx))
}

// impostor: the relay logs in as a child, and sends enrolments that it overheard again.
func (h *hostile) impostor(ctx context.Context) {
	h.evil(ctx, "impersonate", "replay-enrolments")
	h.did(ctx, "impersonate.refused", 2)
	h.did(ctx, "replay-enrolments", 2)
	h.evil(ctx)
	if done := h.done(ctx); done["impersonate.accepted"] > 0 {
		h.t.Errorf("the core let the relay in as its child: %v", done)
	}
	devices, err := h.Devices(ctx)
	must(h.t, err)
	if len(devices) != 3 {
		h.t.Errorf("there are %d devices now, not 3", len(devices))
	}
}

// honestAgain puts the real relay back.
func (h *hostile) honestAgain(ctx context.Context) {
	h.relay.KillEdged()
	h.relay.Program, h.relay.EdgedArgs = "", nil
	must(h.t, h.relay.StartEdged(ctx))
	h.greet(ctx, "greeting-by-an-honest-relay")
	h.showing(ctx, "greeting-by-an-honest-relay")
	must(h.t, h.RunningEverywhere(ctx))
	h.counted(ctx)
	h.unharmed(ctx)
}

// place is where the relay could have a secret, and what the search must find there to
// be believed.
type place struct {
	name    string
	control string
	search  func(text string) (string, error)
}

// secrecy searches for the canaries wherever the relay could have them by now.
func (h *hostile) secrecy(ctx context.Context) {
	h.greet(ctx, openCanary)
	h.showing(ctx, openCanary)
	h.search(ctx, place{"memory", openCanary, func(text string) (string, error) { return findInProcess(h.relay.EdgedPID(), text) }})
	h.search(ctx, place{"disk", openCanary, func(text string) (string, error) { return findBelow(h.relay.Dir(), text) }})
	h.search(ctx, place{"sight", openCanary, func(text string) (string, error) { return findInFile(h.seen, text) }})
}

// overheard searches what crossed the relay's links, where even the open canary must
// not be: TLS. What is sent in clear is found.
func (h *hostile) overheard(ctx context.Context, capture *lab.Capture) {
	box := h.Lab.Boxes["field-1"]
	_, err := box.Command(ctx, "bash", "-c", "echo "+plainCanary+" > /dev/udp/"+box.Uplink.ParentAddr+"/9")
	must(h.t, err)
	must(h.t, capture.Close())
	wire := place{"wire", plainCanary, func(text string) (string, error) { return findInFile(h.wire, text) }}
	h.search(ctx, wire)
	if where, err := wire.search(openCanary); err != nil || where != "" {
		h.t.Errorf("the links are not encrypted: %s %v", where, err)
	}
}

func (h *hostile) search(ctx context.Context, p place) {
	h.t.Helper()
	must(h.t, lab.Until(ctx, "the search of the relay's "+p.name+" finds what is there in clear", wait.Limit, func(context.Context) error {
		where, err := p.search(p.control)
		if err == nil && where == "" {
			err = errors.New("it is blind")
		}
		return err
	}))
	if where, err := p.search(canary); err != nil || where != "" {
		h.t.Errorf("the secret is in the relay's %s: %s %v", p.name, where, err)
	}
}

// findInProcess looks for text in every readable mapping of a process.
func findInProcess(pid int, text string) (string, error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return "", err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return "", err
	}
	defer mem.Close()
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var perm string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &perm); err != nil || perm[0] != 'r' || strings.Contains(line, "[v") {
			continue
		}
		found, err := contains(io.NewSectionReader(mem, from, to-from), text)
		if err != nil && !errors.Is(err, fs.ErrInvalid) {
			continue // a page that cannot be read cannot be searched by anybody
		}
		if found {
			return strings.TrimSpace(line), nil
		}
	}
	return "", nil
}

// findBelow looks for text in every regular file below a folder.
func findBelow(dir, text string) (where string, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // gone meanwhile
			return nil
		case err != nil:
			return err
		case !d.Type().IsRegular():
			return nil
		}
		if where, err = findInFile(path, text); err == nil && where != "" {
			err = fs.SkipAll
		}
		return err
	})
	return where, err
}

func findInFile(path, text string) (string, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	found, err := contains(f, text)
	if !found {
		path = ""
	}
	return path, err
}

// contains searches what r gives, across the borders of reads.
func contains(r io.Reader, text string) (bool, error) {
	buf := make([]byte, 0, 1<<20)
	for {
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if bytes.Contains(buf, []byte(text)) {
			return true, nil
		}
		if err == io.EOF {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if len(buf) > cap(buf)/2 {
			buf = slices.Delete(buf, 0, len(buf)-len(text))
		}
	}
}
