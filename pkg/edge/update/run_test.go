package update

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/update/guard"
	"tributary.dev/tributary/pkg/efi"
	"tributary.dev/tributary/pkg/release"
	"tributary.dev/tributary/pkg/release/delta"
	"tributary.dev/tributary/pkg/release/frame"
)

// registry serves a bundle as a registry does.
type registry struct {
	blobs map[string][]byte
	sent  int
}

func (r *registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	b, ok := r.blobs[q.URL.Path[strings.LastIndex(q.URL.Path, "/")+1:]]
	if !ok {
		http.NotFound(w, q)
		return
	}
	r.sent += len(b)
	http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(b))
}

func (r *registry) add(b []byte) { r.blobs[release.PartOf(b).SHA256] = b }

type endpoint struct{ u *url.URL }

func (e endpoint) Endpoint() (*url.URL, *http.Client, error) { return e.u, http.DefaultClient, nil }

// box is a disk, a firmware and a registry in files, and the real Manager on them.
type box struct {
	t       *testing.T
	dir     string
	flash   *Flash
	vars    efi.Memory
	reg     *registry
	up      endpoint
	key     crypto.Signer
	boot    int
	uptime  time.Duration
	running Slot
	want    *Want
	health  Health
	record  *recording // nil: nothing is recorded
	open    func() bool
	past    func() time.Time
	fails   int // writes that are expected to fail
}

var errReboot = errors.New("the box starts anew")

func newBox(t *testing.T) (*box, release.Description, []byte) {
	flash, _ := newDisk(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b := &box{t: t, dir: t.TempDir(), flash: flash, key: key, running: "a", reg: &registry{blobs: map[string][]byte{}}}
	ok := Condition{OK: true}
	b.health = Health{Kernel: ok, Agent: ok, Parent: ok, Known: true, Wanted: []string{"web"}, Apps: []string{"web"}}
	b.vars, b.open = efi.Memory{}, func() bool { return true }
	b.past = func() time.Time { return time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC) }
	server := httptest.NewServer(b.reg)
	t.Cleanup(server.Close)
	if b.up.u, err = url.Parse(server.URL); err != nil {
		t.Fatal(err)
	}
	d, content := sample(t, 1)
	if err := flash.Write("a", d, 1, plain(content)); err != nil {
		t.Fatal(err)
	}
	b.bless("a")
	root, err := release.NewRoot(1, time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC), []crypto.PublicKey{key.Public()}, 1, []crypto.PublicKey{key.Public()}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if root, err = release.AddSignature(root, key); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.dir, "anchor.json"), root, 0o600); err != nil {
		t.Fatal(err)
	}
	b.boot, b.uptime = 1, 20*time.Minute
	return b, d, content
}

// bless does what a rename does, where nothing can be mounted: only the folder's sectors are written.
func (b *box) bless(s Slot) {
	e, err := b.flash.ReadESP(s)
	if err != nil {
		b.t.Fatal(err)
	}
	table, err := b.flash.table()
	if err != nil {
		b.t.Fatal(err)
	}
	esp, err := b.flash.section(table, "esp-"+string(s))
	if err != nil {
		b.t.Fatal(err)
	}
	after := make(memory, esp.size)
	if err := writeVolume(&after, esp.size, s, e.Install, fmt.Sprintf("tributary-%d.efi", e.Install), bytes.NewReader(e.UKI), managerFile("amd64"), e.Manager); err != nil {
		b.t.Fatal(err)
	}
	// As the kernel's FAT does it: first the new name without size and clusters, flushed with the folder; then both, and
	// no flush.
	before := make([]byte, 512)
	for _, whole := range []bool{false, true} {
		for at := int64(0); at < 4*mib; at += 512 { // tables and folders come first
			if _, err := esp.ReadAt(before, at); err != nil {
				b.t.Fatal(err)
			}
			now := bytes.Clone(after[at : at+512])
			if bytes.Equal(before, now) {
				continue
			}
			if entry := bytes.Index(now, []byte("EFI\x20")); !whole && entry >= 8 {
				clear(now[entry-8+20 : entry-8+22])
				clear(now[entry-8+26 : entry-8+32])
			}
			if _, err := esp.WriteAt(now, at); err != nil {
				b.t.Fatal(err)
			}
		}
		if !whole {
			if err := b.flash.Disk.Sync(); err != nil {
				b.t.Fatal(err)
			}
		}
	}
	if e, err := b.flash.ReadESP(s); err != nil || e.Counted {
		b.t.Fatalf("blessing: %+v %v", e, err)
	}
}

// push signs a release and puts it into the registry, with a delta from the content given.
func (b *box) push(d release.Description, content []byte, from release.Description, old []byte, by crypto.Signer) string {
	return b.pushDelta(d, content, content, from, old, old, by)
}

// pushDelta is push with a delta made from base, for boxes that run old. whole is the content with the kernel image packed.
func (b *box) pushDelta(d release.Description, content, whole []byte, from release.Description, old, base []byte, by crypto.Signer) string {
	targets, err := release.NewTargets(d.Encode(), 1, time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC))
	if err != nil {
		b.t.Fatal(err)
	}
	if targets, err = release.AddSignature(targets, by); err != nil {
		b.t.Fatal(err)
	}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		b.t.Fatal(err)
	}
	patch, err := delta.Make(base, content, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	uki := old[:from.UKI.Size]
	manager := old[from.UKI.Size : from.UKI.Size+from.Manager.Size]
	r := &release.Bundle{Description: d.Encode(), Targets: targets, Plain: z.EncodeAll(whole, nil), Deltas: map[string][]byte{release.Identity(from.RootHash, uki, manager): patch}}
	raw, digest, err := r.Manifest()
	if err != nil {
		b.t.Fatal(err)
	}
	for _, blob := range [][]byte{raw, r.Description, r.Targets, r.Plain, patch} {
		b.reg.add(blob)
	}
	b.reg.blobs[digest] = raw
	for _, blob := range [][]byte{r.Description, r.Targets, r.Plain, patch} {
		b.reg.blobs["sha256:"+release.PartOf(blob).SHA256] = blob
	}
	return digest
}

// run is one boot of the box: turns of the loop until it starts anew or nothing is done any more.
func (b *box) run(d release.Description) (rebooted bool) {
	b.t.Helper()
	m := b.manager(d, func() { rebooted = true })
	for quiet := 0; quiet < 50 && !rebooted; {
		do, err := m.turn(context.Background())
		if err != nil && do == Write && b.fails > 0 {
			b.fails--
			b.uptime += time.Hour
			continue
		}
		if err != nil && !errors.Is(err, errReboot) && do != Verify { // what does not read back is written again
			b.t.Fatalf("%s: %v", do, err)
		}
		b.record.keep()
		if do == Nothing {
			quiet++
			b.uptime += 30 * time.Second
		}
	}
	return rebooted
}

func (b *box) manager(d release.Description, reboots func()) *Manager {
	return New(Config{State: filepath.Join(b.dir, "update.json"), Work: filepath.Join(b.dir, "work"), Anchor: filepath.Join(b.dir, "anchor.json"), Kept: filepath.Join(b.dir, "kept.json"),
		Running: b.running, RootHash: d.RootHash, Version: d.Version, Counter: d.Counter, Arch: "amd64", Profile: "vm", BootID: fmt.Sprint(b.boot),
		Flash: b.flash, Firmware: b.firmware(), Artifacts: b.up, Bless: func(s Slot) error { b.bless(s); return nil },
		Want: func() (*Want, bool) { return b.want, true }, Health: func() Health { return b.health }, Floor: func() uint64 { return 1 }, Raise: func(uint64) error { return nil },
		Open: func(time.Time) bool { return b.open() }, Past: b.past, Reboot: func(context.Context, string) error { reboots(); return errReboot },
		Now: func() time.Time { return time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC) }, Uptime: func() time.Duration { return b.uptime }, Deadlines: Default,
		Log: slog.New(slog.DiscardHandler)})
}

// power starts the box anew: BootNext, used up, and then the order.
func (b *box) power() {
	b.t.Helper()
	fw := b.firmware()
	next, err1 := fw.Next()
	order, err2 := fw.Order()
	if err := errors.Join(err1, err2, fw.ClearNext()); err != nil || len(order) == 0 {
		b.t.Fatal(order, err)
	}
	b.running = order[0]
	if next != "" {
		b.running = next
	}
	b.boot++
	b.uptime = time.Minute
}

func (b *box) state() State {
	s, err := Load(filepath.Join(b.dir, "update.json"))
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// TestUpdate goes through a whole update on a disk, with the real signatures, downloads, delta and boot variables.
func TestUpdate(t *testing.T) {
	b, d1, c1 := newBox(t)
	d2, c2 := sample(t, 2)
	b.want = &Want{Repo: "os/vm", Digest: b.push(d2, c2, d1, c1, b.key)}
	if !b.run(d1) {
		t.Fatalf("no trial: %+v", b.state())
	}
	if b.reg.sent > 20_000 {
		t.Errorf("%d bytes travelled for a small change", b.reg.sent)
	}
	b.power()
	if b.running != "b" {
		t.Fatal("the trial is not in slot b")
	}
	if b.run(d2) {
		t.Fatalf("it left a healthy release: %+v", b.state())
	}
	b.power()
	s := b.state()
	if b.running != "b" || s.Good != "b" || s.Phase != Idle {
		t.Fatalf("not confirmed: slot %s, %+v", b.running, s)
	}
	if e, err := b.flash.ReadESP("b"); err != nil || e.Counted {
		t.Fatalf("not blessed: %+v %v", e, err)
	}
}

// TestWrongDelta: a delta that does not lead from what runs to the release costs one attempt; the release is then fetched whole.
func TestWrongDelta(t *testing.T) {
	b, d1, c1 := newBox(t)
	d2, c2 := sample(t, 2)
	_, c3 := sample(t, 3)
	b.want = &Want{Repo: "os/vm", Digest: b.pushDelta(d2, c2, c2, d1, c1, c3, b.key)}
	b.fails = 1
	if !b.run(d1) {
		t.Fatalf("no trial: %+v", b.state())
	}
	if b.fails != 0 || b.reg.sent < 20_000 {
		t.Errorf("the delta was applied, or %d bytes are the whole release", b.reg.sent)
	}
	if b.power(); b.running != "b" || b.run(d2) {
		t.Fatalf("slot %s: %+v", b.running, b.state())
	}
}

// TestPacked: a kernel image with a packed part comes by delta where this box has the encoder that packed it, and whole
// where it has not: at once where the release says so, else after one attempt.
func TestPacked(t *testing.T) {
	archive := bytes.Repeat([]byte("a program of the initramfs, and its brother\n"), 9000)
	ours, err := frame.Encode(archive)
	if err != nil {
		t.Fatal(err)
	}
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		packed []byte
		form   string
		fails  int
		whole  bool
	}{
		{"by this box's encoder", ours, release.FormZstd, 0, false},
		{"by another of the same name", z.EncodeAll(archive, nil), release.FormZstd, 1, true},
		{"by one of another name", ours, "zstd9", 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, d1, c1 := newBox(t)
			d2, c2 := sample(t, 2)
			uki, rest := c2[:d2.UKI.Size], c2[d2.UKI.Size:]
			d2.Packed = []release.Packed{{Offset: 512, Size: int64(len(c.packed)), Plain: int64(len(archive)), Form: c.form}}
			folded := slices.Concat(uki[:512], c.packed, uki[512:])
			content := slices.Concat(uki[:512], archive, uki[512:], rest)
			d2.UKI, d2.Content = release.PartOf(folded), release.PartOf(content)
			b.want = &Want{Repo: "os/vm", Digest: b.pushDelta(d2, content, slices.Concat(folded, rest), d1, c1, c1, b.key)}
			b.fails = c.fails
			if !b.run(d1) {
				t.Fatalf("no trial: %+v", b.state())
			}
			if whole := b.reg.sent > 100_000; b.fails != 0 || whole != c.whole {
				t.Errorf("%d bytes travelled, %d attempts were to fail", b.reg.sent, b.fails)
			}
			if b.power(); b.running != "b" || b.run(d2) {
				t.Fatalf("slot %s: %+v", b.running, b.state())
			}
			if e, err := b.flash.ReadESP("b"); err != nil || !bytes.Equal(e.UKI, folded) {
				t.Fatalf("the ESP has another kernel image: %v", err)
			}
		})
	}
}

// TestWrongRelease: a signed release whose content is not what its description says is fetched twice, since the disk may
// have lost it, and is then refused: the slot is not written again and again.
func TestWrongRelease(t *testing.T) {
	b, d1, c1 := newBox(t)
	d2, c2 := sample(t, 2)
	other := bytes.Clone(c2)
	other[len(other)-1] ^= 1
	b.want = &Want{Repo: "os/vm", Digest: b.pushDelta(d2, c2, other, d1, c1, other, b.key)}
	b.fails = 2 // the delta, which was made from another content, and the whole once
	if b.run(d1) {
		t.Fatalf("it is tried: %+v", b.state())
	}
	if r := b.state().Refusal(b.want, d1.RootHash); r == nil || r.Cause != CauseUnfit || b.fails != 0 {
		t.Fatalf("refusal %+v", r)
	}
	sent := b.reg.sent
	if b.uptime += 48 * time.Hour; b.run(d1) || b.reg.sent != sent {
		t.Fatal("it is fetched again")
	}
}

// TestNoContent: a signed release that has nothing to fetch is refused.
func TestNoContent(t *testing.T) {
	b, d1, c1 := newBox(t)
	d2, c2 := sample(t, 2)
	digest := b.push(d2, c2, d1, c1, b.key)
	raw := b.reg.blobs[digest]
	for _, kind := range []string{release.TypePlain, release.TypeDelta} {
		raw = bytes.ReplaceAll(raw, []byte(kind), []byte("application/other"))
	}
	digest = "sha256:" + release.PartOf(raw).SHA256
	b.reg.blobs[digest] = raw
	b.want = &Want{Repo: "os/vm", Digest: digest}
	if b.run(d1) {
		t.Fatalf("it is tried: %+v", b.state())
	}
	if r := b.state().Refusal(b.want, d1.RootHash); r == nil || r.Cause != CauseFetch {
		t.Fatalf("refusal %+v", r)
	}
}

// TestBackAgain: a release under which the agent is not well goes back to the old slot and stays refused.
func TestBackAgain(t *testing.T) {
	b, d1, c1 := newBox(t)
	d2, c2 := sample(t, 2)
	b.want = &Want{Repo: "os/vm", Digest: b.push(d2, c2, d1, c1, b.key)}
	b.run(d1)
	b.power()
	b.health.Agent = Condition{Detail: "it ended 4 times: exit status 2"}
	if !b.run(d2) {
		t.Fatalf("it stays with a release that is not well: %+v", b.state())
	}
	b.power()
	b.health.Agent = Condition{OK: true}
	if b.running != "a" || b.run(d1) {
		t.Fatalf("in slot %s, tried again: %+v", b.running, b.state())
	}
	if r := b.state().Refusal(b.want, d1.RootHash); r == nil || r.Cause != CauseAgent || !strings.Contains(r.Reason, "it ended 4 times") {
		t.Fatalf("refusal %+v", r)
	}
}

// TestForged: a release that strangers signed never gets further than the check.
func TestForged(t *testing.T) {
	b, d1, c1 := newBox(t)
	d2, c2 := sample(t, 2)
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b.want = &Want{Repo: "os/vm", Digest: b.push(d2, c2, d1, c1, stranger)}
	if b.run(d1) {
		t.Fatal("a forged release is tried")
	}
	if r := b.state().Refusal(b.want, d1.RootHash); r == nil || r.Cause != CauseUnsigned {
		t.Fatalf("refusal %+v", r)
	}
	if _, err := b.flash.ReadESP("b"); err == nil {
		t.Fatal("something was written")
	}
}

// TestEnded: once it is certain that the root's time is over, no release is begun under it; one that was begun goes on, and
// a box that knows no time takes any.
func TestEnded(t *testing.T) {
	over := time.Date(2041, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		past func(asked int) time.Time
		ok   bool
	}{
		"over":               {func(int) time.Time { return over }, false},
		"over once it began": {func(asked int) time.Time { return over.AddDate(min(0, asked-2)*5, 0, 0) }, true},
		"not known":          {func(int) time.Time { return time.Time{} }, true},
	} {
		t.Run(name, func(t *testing.T) {
			b, d1, c1 := newBox(t)
			asked := 0
			b.past = func() time.Time { asked++; return c.past(asked) }
			d2, c2 := sample(t, 2)
			b.want = &Want{Repo: "os/vm", Digest: b.push(d2, c2, d1, c1, b.key)}
			if tried := b.run(d1); tried != c.ok {
				t.Fatalf("tried: %v, %+v", tried, b.state())
			}
			if r := b.state().Refusal(b.want, d1.RootHash); (r == nil) != c.ok || r != nil && (r.Cause != CauseUnsigned || !strings.Contains(r.Reason, "root 1 of the release keys ended on 2040-01-01")) {
				t.Fatalf("refusal %+v", r)
			}
		})
	}
}

// TestRootEnds: people hear of a root's end in time to make the next one, not by a clock that may be ahead, and no more
// once the next one is here.
func TestRootEnds(t *testing.T) {
	b, d, _ := newBox(t) // under a root that ends with 2039
	at := func(year int, month time.Month, day int) time.Time {
		return time.Date(year, month, day, 0, 0, 0, 0, time.UTC)
	}
	for _, c := range []struct {
		past time.Time
		name string
		how  api.Severity
	}{{time.Time{}, "", ""}, {at(2039, 10, 2), "", ""}, {at(2039, 10, 4), "release-root-expiring", api.Degraded}, {at(2040, 1, 2), "release-root-expired", api.Critical}} {
		b.past = func() time.Time { return c.past }
		m := b.manager(d, nil)
		m.look()
		switch got := m.Warnings(); {
		case c.name == "" && len(got) > 0:
			t.Errorf("at %s: %+v", c.past, got)
		case c.name != "" && (len(got) != 1 || got[0].Name != c.name || got[0].Severity != c.how || !strings.Contains(got[0].Message, "root 1") || !strings.Contains(got[0].Message, "2040-01-01") || got[0].Remedy == ""):
			t.Errorf("at %s: %+v", c.past, got)
		}
	}
	next, err := release.NewRoot(2, at(2050, 1, 1), []crypto.PublicKey{b.key.Public()}, 1, []crypto.PublicKey{b.key.Public()}, 1)
	if err == nil {
		next, err = release.AddSignature(next, b.key)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(b.dir, "kept.json"), next, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	m := b.manager(d, nil)
	m.look()
	if got := m.Warnings(); len(got) > 0 {
		t.Errorf("under the next root: %+v", got)
	}
}

// TestBackByPerson: a person at the console goes back from a confirmed release. The old one is tried, confirmed and stays,
// though the manifest names the other; until that is named anew.
func TestBackByPerson(t *testing.T) {
	b, d1, c1 := newBox(t)
	d2, c2 := sample(t, 2)
	b.want = &Want{Repo: "os/vm", Digest: b.push(d2, c2, d1, c1, b.key)}
	b.run(d1)
	b.power()
	g := &guard.Guard{Path: filepath.Join(b.dir, "update.json"), Running: "b"}
	if b.run(d2); b.state().Good != "b" {
		t.Fatalf("not confirmed: %+v", b.state())
	}
	if _, err := g.Back("2", "a person", d1.Counter+1, time.Now()); err == nil || b.state().Phase != Idle {
		t.Fatalf("back below the floor: %v, %+v", err, b.state())
	}
	if version, err := g.Back("2", "a person", d1.Counter, time.Now()); err != nil || version != d1.Version {
		t.Fatal(version, err)
	}
	if err := guard.Next(b.vars, "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Back("2", "a person", 0, time.Now()); err == nil {
		t.Fatal("back twice")
	}
	b.power()
	if b.run(d1) || b.running != "a" || b.state().Good != "a" {
		t.Fatalf("in slot %s, %+v", b.running, b.state())
	}
	b.power()
	if b.run(d1) || b.running != "a" {
		t.Fatal("it does not stay")
	}
	if r := b.state().Refusal(b.want, d1.RootHash); r == nil || !strings.Contains(r.Reason, "a person went back to slot A") {
		t.Fatalf("%+v", b.state().Refused)
	}
	b.want.Attempt++
	if !b.run(d1) {
		t.Fatal("it is not tried when somebody asks for it again")
	}
}

// TestRefusedStays: a refused release is not asked for again, whatever starts and time pass, until something changes.
func TestRefusedStays(t *testing.T) {
	b, d1, c1 := newBox(t)
	d2, c2 := sample(t, 2)
	b.want = &Want{Repo: "os/vm", Digest: b.push(d2, c2, d1, c1, b.key)}
	b.run(d1)
	b.power()
	b.health.Agent = Condition{Detail: "it crashes"}
	b.run(d2)
	b.power()
	b.health.Agent = Condition{OK: true}
	b.run(d1)
	sent, history := b.reg.sent, len(b.state().History)
	for range 4 {
		b.power()
		if b.uptime += 48 * time.Hour; b.run(d1) || b.running != "a" {
			t.Fatalf("tried again: %+v", b.state())
		}
	}
	if s := b.state(); b.reg.sent != sent || len(s.History) != history || s.Refusal(b.want, d1.RootHash) == nil {
		t.Fatalf("%d bytes travelled for a refused release; %+v", b.reg.sent-sent, s)
	}
	if b.state().Refusal(b.want, d2.RootHash) != nil {
		t.Error("what runs has changed, and the refusal stands")
	}
	b.want.Attempt++
	if !b.run(d1) {
		t.Fatalf("not tried when somebody asks for it: %+v", b.state())
	}
}

// TestHours: a download that the hours cut off waits for the next ones, and nothing is to blame.
func TestHours(t *testing.T) {
	b, d1, c1 := newBox(t)
	d2, c2 := sample(t, 2)
	b.want = &Want{Repo: "os/vm", Digest: b.push(d2, c2, d1, c1, b.key)}
	night := false
	b.open = func() bool { return night || b.state().Phase != Fetching } // over as soon as the download begins
	if b.run(d1) {
		t.Fatalf("tried outside of the hours: %+v", b.state())
	}
	if s := b.state(); s.Phase != Fetching || len(s.Refused) > 0 {
		t.Fatalf("outside of the hours: %+v", s)
	}
	night = true
	if !b.run(d1) {
		t.Fatalf("not tried in the next hours: %+v", b.state())
	}
	b.power()
	night = false
	if b.run(d2) || b.state().Good != "b" { // a trial is judged at any hour
		t.Fatalf("not confirmed: %+v", b.state())
	}
}
