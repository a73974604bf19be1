package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fxamacker/cbor/v2"
	"go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/mqtt"
	"tributary.dev/tributary/pkg/link/spool"
	"tributary.dev/tributary/pkg/manifest"
	"tributary.dev/tributary/pkg/report"
)

// fleetTree is all boxes of the bench.
type fleetTree struct {
	boxes   []*fleetBox
	byID    map[api.DeviceID]*fleetBox // the devices alone
	devices int
	disks   []io.Closer
	group   errgroup.Group
}

// fleetBox is a relay or a device: the real link, and a stand-in for the runtime that
// reports every manifest as in force at once.
type fleetBox struct {
	relay bool
	link  *link.Endpoint
	// has is the generation of the manifest that was reported last, from the one that
	// the device is to leave behind.
	has  atomic.Uint64
	from uint64
}

// fleetTrust has all boxes share one copy of what they believe: the bench's memory is
// not what is measured.
type fleetTrust struct {
	mu  sync.Mutex
	one *identity.Trust
}

func (t *fleetTrust) share(id *identity.Identity) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.one == nil {
		t.one = id.Trust
	}
	id.Trust = t.one
}

// enrolWorkers is how many boxes enrol at the same time.
const enrolWorkers = 16

// enrolFleet enrols all boxes as edged does and puts them together.
func enrolFleet(ctx context.Context, core *fleetCore, plan fleetPlan) (*fleetTree, error) {
	tokens := map[string]identity.JoinToken{}
	for _, role := range []string{fleetRelay, fleetField} {
		text, err := core.joinToken(ctx, role)
		if err != nil {
			return nil, err
		}
		if tokens[role], err = identity.ParseJoinToken(text); err != nil {
			return nil, err
		}
	}
	// What is sent and believed is sealed and certified end to end, as for edged.
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: enrolWorkers,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	ids := make([]*identity.Identity, plan.relays+plan.devices)
	var trust fleetTrust
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(enrolWorkers)
	for i := range ids {
		role := fleetField
		if i < plan.relays {
			role = fleetRelay
		}
		g.Go(func() error {
			if gctx.Err() != nil {
				return gctx.Err()
			}
			id, err := enrolBox(gctx, client, "https://"+core.https, tokens[role], fmt.Sprintf("%s-%d", role, i), i < plan.relays)
			if err != nil {
				return fmt.Errorf("%s %d: %w", role, i, err)
			}
			trust.share(id)
			ids[i] = id
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return newFleetTree(ids, core, plan)
}

func enrolBox(ctx context.Context, client *http.Client, core string, token identity.JoinToken, name string, relay bool) (*identity.Identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	seal, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	id, _, err := identity.Enrol(ctx, identity.EnrolConfig{ParentURL: core, Token: token, Key: key, Seal: seal, Name: name, Relay: relay,
		Hardware: fleetHardware(name), HTTP: client})
	return id, err
}

func fleetHardware(serial string) api.Hardware {
	return api.Hardware{Arch: "amd64", Vendor: "Advantech", Product: "UNO-2271G", Serial: serial, CPUs: 4, CPUModel: "Intel(R) Atom(TM) CPU E3845 @ 1.91GHz",
		MemoryBytes: 8 << 30, DiskBytes: 64 << 30, Kernel: "6.1.0-32-amd64", OS: "Debian GNU/Linux 12 (bookworm)",
		NICs: []api.NIC{{Name: "enp1s0", MAC: "02:00:5e:10:00:01", Speed: 1000}, {Name: "enp2s0", MAC: "02:00:5e:10:00:02"}}}
}

// newFleetTree hangs the devices under the relays in turn.
func newFleetTree(ids []*identity.Identity, core *fleetCore, plan fleetPlan) (*fleetTree, error) {
	t := &fleetTree{byID: map[api.DeviceID]*fleetBox{}, devices: plan.devices}
	dir := filepath.Join(plan.dir, "relays")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	var wires []*fleetWire
	for i, id := range ids {
		live := identity.NewLive(id)
		cfg := link.EndpointConfig{RelayConfig: link.RelayConfig{Self: id.ID(), Cert: id.Cert[0].Raw, Keys: link.KeysOf(live),
			Config: link.Config{Rand: fleetRandom, Log: fleetLog()}}}
		if i < plan.relays {
			db, err := bbolt.Open(filepath.Join(dir, id.ID().String()+".db"), 0o600, nil)
			if err != nil {
				return nil, err
			}
			t.disks = append(t.disks, db)
			w := newFleetWire(id.ID())
			wires = append(wires, w)
			cfg.Store, cfg.Downlink = link.OpenBolt(db), w
			cfg.Uplink = mqtt.NewUplink(mqtt.UplinkConfig{Identity: live, Parents: []api.ParentRef{{Device: identity.CoreName, Address: core.mqtt}}, Log: fleetLog()})
		} else {
			cfg.Store = link.NewMemStore()
			cfg.Uplink = newFleetLine(wires[i%plan.relays], id.ID(), id.Cert[0].Raw)
		}
		if plan.spools && i >= plan.relays {
			s, err := t.openSpool(filepath.Join(plan.dir, "spools", id.ID().String()))
			if err != nil {
				return nil, err
			}
			cfg.Spool = s
		}
		e, err := link.NewEndpoint(cfg)
		if err != nil {
			return nil, err
		}
		b := &fleetBox{relay: i < plan.relays, link: e}
		if err := b.describe(id.ID().String()); err != nil {
			return nil, err
		}
		t.boxes = append(t.boxes, b)
		if !b.relay {
			t.byID[id.ID()] = b
		}
	}
	return t, nil
}

// openSpool makes a small append log. Its cursor is not kept: the box never starts again.
func (t *fleetTree) openSpool(dir string) (*spool.Spool, error) {
	s, err := spool.Open(spool.Config{Dir: dir, MaxBytes: spool.MinBytes, Now: time.Now, Rand: rand.Reader, Log: fleetLog()})
	if err == nil {
		t.disks = append(t.disks, s)
	}
	return s, err
}

func fleetRandom() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // it never fails
	return binary.BigEndian.Uint64(b[:])
}

func fleetLog() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
}

var fleetCBOR = func() cbor.EncMode {
	m, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(err) // constant options
	}
	return m
}()

func (b *fleetBox) report(key string, value any) error {
	raw, err := fleetCBOR.Marshal(value)
	if err != nil {
		return err
	}
	return b.link.Report(key, raw)
}

// reportApp reports an app as edged does: each service under a key of its own.
func (b *fleetBox) reportApp(s api.AppStatus) error {
	parts, err := report.Split(s)
	for key, value := range parts {
		err = errors.Join(err, b.link.Report(key, value))
	}
	return err
}

// describe reports what edged reports of a box that has nothing to run.
func (b *fleetBox) describe(serial string) error {
	return errors.Join(
		b.report("hardware", fleetHardware(serial)),
		b.report("labels", map[string]string{api.Reserved + "arch": "amd64", api.Reserved + "vendor": "advantech"}),
		b.report("addresses", []string{"10.20.30.40"}),
		b.report("version", "v0.1.0"),
		b.report("relay", b.relay),
		b.report("health", []api.Warning{}),
	)
}

// start runs all boxes until ctx ends. A box that fails gives stop its reason.
func (t *fleetTree) start(ctx context.Context, stop context.CancelCauseFunc) {
	for _, b := range t.boxes {
		run := func(f func(context.Context) error) {
			t.group.Go(func() error {
				err := f(ctx)
				if err != nil && ctx.Err() == nil {
					stop(err)
					return err
				}
				return nil
			})
		}
		run(b.link.Run)
		run(b.runtime)
	}
}

// wait ends the boxes, whose context is over.
func (t *fleetTree) wait() error {
	err := t.group.Wait()
	for _, db := range t.disks {
		err = errors.Join(err, db.Close())
	}
	return err
}

// runtime reports each manifest as in force: its apps run, whatever they are.
func (b *fleetBox) runtime(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-b.link.Changed():
		}
		s := b.link.Manifest()
		if s == nil {
			continue
		}
		m := &s.Manifest
		for key, item := range m.Items {
			app, ok := strings.CutPrefix(key, manifest.PrefixApp)
			if !ok {
				continue
			}
			status := api.AppStatus{Name: app, State: api.Running, Bundle: item.Refs[0].Digest,
				Services: []api.ServiceStatus{{Name: "web", State: api.Running, Container: app + "-web-1"}}}
			if err := b.reportApp(status); err != nil {
				return err
			}
		}
		if err := b.report("applied", []uint64{m.Epoch, m.Generation}); err != nil {
			return err
		}
		b.has.Store(m.Generation)
	}
}

// mark has settled wait for newer manifests than those in force now.
func (t *fleetTree) mark() {
	for _, b := range t.byID {
		b.from = b.has.Load()
	}
}

// lagging counts the devices that have no newer manifest than at mark.
func (t *fleetTree) lagging() (n int) {
	for _, b := range t.byID {
		if b.has.Load() <= b.from {
			n++
		}
	}
	return n
}

// current reports whether a status shows a newer manifest than at mark in force.
func (t *fleetTree) current(s *api.DeviceStatus) bool {
	b := t.byID[s.ID]
	return b != nil && s.Online && s.Desired > b.from && s.Applied == s.Desired
}

// settled waits until cored shows that every device has a newer manifest than at mark
// in force. delivered is when the devices had it, known when cored's fleet
// said so of all, both since began; what it said is then held against each device.
func (t *fleetTree) settled(ctx context.Context, core *fleetCore, began time.Time) (delivered, known time.Duration, err error) {
	for t.lagging() > 0 {
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return 0, 0, fmt.Errorf("%d devices have no new manifest: %w", t.lagging(), context.Cause(ctx))
		}
	}
	delivered = time.Since(began)
	var s api.FleetStatus
	behind := -1
	for {
		if s, err = core.fleet(ctx); err != nil {
			return 0, 0, errors.Join(err, context.Cause(ctx))
		}
		known = time.Since(began)
		if s.Devices == t.devices && s.Current == t.devices && s.Running == t.devices {
			if behind, err = core.behind(ctx, t); err != nil || behind == 0 {
				return delivered, known, err
			}
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return 0, 0, fmt.Errorf("cored's fleet is at %+v, %d devices are behind: %w", s, behind, context.Cause(ctx))
		}
	}
}
