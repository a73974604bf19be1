package cli_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rogpeppe/go-internal/testscript"

	"tributary.dev/tributary/cmd/edgectl/cli"
	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/access"
	"tributary.dev/tributary/pkg/core/ca"
	"tributary.dev/tributary/pkg/core/people"
	"tributary.dev/tributary/pkg/core/registry"
	"tributary.dev/tributary/pkg/core/rescue"
	"tributary.dev/tributary/pkg/core/roster"
	"tributary.dev/tributary/pkg/core/server"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/identity/unlock"
	"tributary.dev/tributary/pkg/link/stream"
	"tributary.dev/tributary/pkg/release"
	"tributary.dev/tributary/tests/wait"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"edgectl": func() {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		defer stop()
		os.Exit(cli.Main(ctx, os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}, os.LookupEnv))
	}})
}

// Every script runs edgectl's real main against a core of its own: the real hall,
// store, registry, roster and CA over TLS. Only what lies below the core, devices and
// the ledger that they fill, is played by this file.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata", RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			c, err := startCore(env.WorkDir)
			if err != nil {
				return err
			}
			env.Defer(c.stop)
			env.Setenv("EDGECTL_SERVER", c.url)
			env.Setenv("EDGECTL_TOKEN", c.token)
			env.Setenv("EDGECTL_CA", c.caFile)
			env.Setenv("EDGECTL_CONFIG", filepath.Join(env.WorkDir, "config", "edgectl.yaml"))
			env.Setenv("CA_PIN", c.pin)
			env.Setenv("VIEWER", c.viewer)
			env.Setenv("RESCUER", c.rescuer)
			env.Setenv("ONCE", c.once)
			env.Setenv("CHALLENGE", c.challenge)
			env.Setenv("TZ", "UTC")
			env.Setenv("TRIBUTARY_WITHOUT_CHECK", os.Getenv("TRIBUTARY_WITHOUT_CHECK"))
			return writeImages(env.WorkDir)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"fetch": fetch, "await": await},
	})
}

type testCore struct {
	url, token, viewer, rescuer, caFile, pin string
	challenge                                string // of field-1's console
	once                                     string // makes the first administrator
	people                                   *people.Room
	stop                                     func()
}

// startPeople makes a room of people in which nobody is yet.
func startPeople(ctx context.Context, db *store.SQL) (*people.Room, string, error) {
	if err := people.Migrate(ctx, db.Database()); err != nil {
		return nil, "", err
	}
	var uid atomic.Int64
	room, err := people.New(people.Config{DB: db.Database(), Now: time.Now, NewUID: func() string { return fmt.Sprint("person-", uid.Add(1)) }, Random: rand.Reader, Epoch: 1, Cost: people.Cost{Memory: 64, Passes: 1, Lanes: 1},
		Seal: func(_ string, b []byte) []byte { return b }, Open: func(_ string, b []byte) ([]byte, error) { return b, nil }})
	if err != nil {
		return nil, "", err
	}
	token, err := room.AdminToken(ctx)
	return room, token, err
}

func startCore(dir string) (c *testCore, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	c = &testCore{stop: cancel, caFile: filepath.Join(dir, "root.crt")}
	onStop := func(f func()) {
		next := c.stop
		c.stop = func() { f(); next() }
	}
	defer func() {
		if err != nil {
			c.stop()
		}
	}()
	log := slog.New(slog.DiscardHandler)
	var uid atomic.Int64
	db, err := store.Open(ctx, store.Config{Now: time.Now, NewUID: func() string { return fmt.Sprint("uid-", uid.Add(1)) }})
	if err != nil {
		return nil, err
	}
	onStop(func() { db.Close() })
	for role, token := range map[store.Role]*string{store.Admin: &c.token, store.Viewer: &c.viewer, store.Rescuer: &c.rescuer} {
		if *token, err = db.CreateToken(ctx, "ann", role, time.Time{}, rand.Reader); err != nil {
			return nil, err
		}
	}
	if c.people, c.once, err = startPeople(ctx, db); err != nil {
		return nil, err
	}
	authority, err := ca.Open(filepath.Join(dir, "ca"), ca.Options{})
	if err != nil {
		return nil, err
	}
	fp := authority.Fingerprint()
	c.pin = hex.EncodeToString(fp[:])
	owner, _, err := authority.Unlock()
	if err != nil {
		return nil, err
	}
	c.challenge = unlock.Challenge{Device: deviceIDs["field-1"], Owner: unlock.OwnerID(owner.PublicKey()), Fresh: [32]byte(owner.PublicKey().Bytes())}.String()
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority.Trust().Root.Raw})
	if err := os.WriteFile(c.caFile, root, 0o600); err != nil {
		return nil, err
	}
	boxes, err := roster.Open(ctx, roster.Config{Store: db, Fingerprint: fp, Now: time.Now, Random: rand.Reader, Log: log})
	if err != nil {
		return nil, err
	}
	reg, err := registry.New(registry.Config{Dir: filepath.Join(dir, "registry"), Log: log, Authorize: func(r *http.Request, a registry.Access) error {
		token, _ := registry.Token(r)
		if _, err := db.CheckToken(r.Context(), token); err != nil || a.Action != registry.Push || a.Tenant() == api.DefaultTenant {
			return err
		}
		_, err := db.Get(r.Context(), api.Key{Tenant: api.DefaultTenant, Kind: api.KindTenant, Name: a.Tenant()})
		return err
	}})
	if err != nil {
		return nil, err
	}
	onStop(func() { reg.Close() })
	apps := &server.Apps{Store: db, Artifacts: reg}
	hall := server.New(server.Config{
		Store: db, Access: access.New(db), People: c.people, Devices: boxes, Unlocks: playedDesk{rescue.New(rescue.Config{
			Keys: func() ([]*ecdh.PrivateKey, error) { return []*ecdh.PrivateKey{owner}, nil }, Event: store.EventUnlock, Now: time.Now,
			Answered: func(ctx context.Context, id api.DeviceID, challenge string) (bool, error) {
				list, err := db.Events(ctx, []api.DeviceID{id}, 100)
				return slices.ContainsFunc(list, func(e store.DeviceEvent) bool { return e.Subject == challenge }), err
			},
			Note: func(ctx context.Context, id api.DeviceID, name string, e api.Event) error {
				return db.AppendEvents(ctx, []store.DeviceEvent{{Device: id, Label: name, Event: e}})
			},
		})}, Ledger: playedLedger{}, Streams: playedDevices{}, Metrics: prometheus.NewRegistry(), Log: log, Now: time.Now, Version: "1.2.3",
		Admission: map[string]server.Admission{api.KindRoleBinding: server.AdmitBinding(c.people), api.KindApp: apps.AdmitApp, api.KindFleet: apps.AdmitFleet, api.KindJoinToken: admitToken(boxes)},
		Removal:   map[string]server.Removal{api.KindApp: apps.MayRemove, api.KindConfig: apps.MayRemove, api.KindSecret: apps.MayRemove},
		Routes: []server.Route{
			{Pattern: "/v2/", Handler: reg},
			{Pattern: "GET " + identity.PathTrust, Handler: authority.Handler(nil, log)},
		},
	})
	if err := seedDevices(ctx, db); err != nil {
		return nil, err
	}
	id, err := authority.Identity([]string{"localhost", "127.0.0.1"})
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	web := &http.Server{Handler: hall, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), BaseContext: func(net.Listener) context.Context { return ctx }, ReadHeaderTimeout: 10 * time.Second}
	onStop(func() { cancel(); web.Close() })
	go web.Serve(tls.NewListener(l, id.ServerTLSOptional()))
	c.url = "https://" + l.Addr().String()
	return c, nil
}

func admitToken(boxes *roster.Roster) server.Admission {
	return func(_ context.Context, c server.Change) (server.Decision, error) {
		status, token, err := boxes.MintToken(c.Old, c.New)
		if err != nil || status == nil {
			return server.Decision{}, err
		}
		return server.Decision{Status: status, Reply: func(o *api.Object) {
			o.Status, _ = json.Marshal(api.JoinTokenStatus{Token: token(o.Metadata.UID)})
		}}, nil
	}
}

// playedDesk is the desk as cored wires it.
type playedDesk struct{ *rescue.Desk }

func (d playedDesk) Unlock(ctx context.Context, device api.DeviceID, name, challenge, actor string) (server.UnlockAnswer, error) {
	a, err := d.Answer(ctx, device, name, challenge, actor)
	return server.UnlockAnswer{Answer: a.Text, Challenge: a.Challenge, Proven: a.Proven}, err
}

var deviceIDs = map[string]api.DeviceID{"agg": {1}, "access": {2}, "field-1": {3}, "field-2": {4}}

// seedDevices puts a small tree into the store, as enrolment and reports would.
func seedDevices(ctx context.Context, db *store.SQL) error {
	seen := time.Now()
	add := func(name, parent string, tier int, approved bool, labels map[string]string, st api.DeviceStatus) error {
		spec, err := json.Marshal(api.DeviceSpec{Approved: approved, Site: "hill"})
		if err != nil {
			return err
		}
		o := &api.Object{APIVersion: api.Version, Kind: api.KindDevice, Metadata: api.Meta{Tenant: api.DefaultTenant, Name: name, Labels: labels}, Spec: spec}
		st.ID, st.Tier, st.Parent, st.LastSeen, st.Version = deviceIDs[name], tier, parent, &seen, "1.2.3"
		st.Hardware = &api.Hardware{Arch: "amd64", CPUs: 4, MemoryBytes: 8 << 30, Vendor: "ACME", Product: "Box 9", Profile: "generic-amd64", BetterProfile: "field-amd64"}
		if _, err := db.Put(ctx, o, store.PutOptions{Create: true}); err != nil {
			return err
		}
		return db.PutStatus(ctx, o.Key(), st)
	}
	id := func(name string) string { return deviceIDs[name].String() }
	apps := []api.AppStatus{{Name: "shop", State: api.Running, Services: []api.ServiceStatus{{Name: "web", State: api.Running, Address: "10.0.0.2"}}}, {Name: "bad", State: api.Backoff, Message: "exit 1"}}
	for _, err := range []error{
		add("agg", "core", 1, true, map[string]string{"role": "agg"}, api.DeviceStatus{Online: true, Relay: true, Applied: 3, Desired: 3}),
		add("access", id("agg"), 2, true, map[string]string{"role": "access"}, api.DeviceStatus{Online: true, Relay: true, Applied: 3, Desired: 4,
			Health: []api.Warning{{Name: "clock-skew", Severity: api.Info, Message: "2 s"}, {Name: "disk-full", Severity: api.Critical, Message: "no room", Since: seen.Unix()}}}),
		add("field-1", id("access"), 3, true, map[string]string{"role": "field"}, api.DeviceStatus{Online: true, Applied: 7, Desired: 7, Apps: apps}),
		add("field-2", id("access"), 3, false, map[string]string{"role": "field"}, api.DeviceStatus{}),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

// playedLedger answers for records that nobody sent.
type playedLedger struct{}

func (playedLedger) Usage(context.Context, api.DeviceID) (*server.UsageReport, error) {
	return &server.UsageReport{SpoolEpoch: 5, Acked: 42, Totals: []server.UsageTotal{{App: "shop", Service: "web", RunMillis: 60_000, CPUMicros: 1_500_000, MemoryByteSeconds: 60 << 20, RxBytes: 2048, TxBytes: 10}}}, nil
}

func (playedLedger) Records(_ context.Context, _ api.DeviceID, after uint64, limit int) (list []server.RecordEntry, err error) {
	for seq := after + 1; seq <= 42 && len(list) < limit; seq++ {
		list = append(list, server.RecordEntry{Seq: seq, Epoch: 5, Kind: "usage", Usage: &api.Usage{From: 0, To: 2000, Uses: make([]api.ContainerUse, 1)}})
	}
	return list, nil
}

func (playedLedger) Events(context.Context, server.EventScope, int) ([]server.EventEntry, error) {
	return []server.EventEntry{
		{Device: deviceIDs["field-1"].String(), Name: "field-1", Seq: 2, Audit: true, Event: api.Event{Time: 1_700_000_001_000, Name: "exec.opened", Subject: "shop/web", Actor: "ann", Message: "\x1b[31mls"}},
		{Device: deviceIDs["field-1"].String(), Name: "field-1", Seq: 1, Event: api.Event{Time: 1_700_000_000_000, Name: "app.started", Subject: "shop"}},
	}, nil
}

// playedDevices answers streams with the device's end of the real protocol; only
// field-1 does.
type playedDevices struct{}

func (d playedDevices) Open(ctx context.Context, dev api.DeviceID, cmd stream.Command) (*stream.Conn, error) {
	if dev != deviceIDs["field-1"] {
		return nil, &api.Error{Code: api.Unavailable, Message: "the device does not answer", Remedy: "see `edgectl get devices`"}
	}
	near, far := net.Pipe()
	conn := stream.NewConn(far, stream.Idle)
	go func() {
		code, err := d.do(conn, cmd)
		_ = conn.Finish(code, err, wait.Limit)
	}()
	return stream.NewConn(near, stream.Idle), nil
}

func (d playedDevices) do(conn *stream.Conn, cmd stream.Command) (int, error) {
	if cmd.App != "shop" && cmd.Verb != stream.Top {
		return 0, &api.Error{Code: api.NotFound, Message: "there is no app " + cmd.App + " on this device"}
	}
	out := conn.Writer(stream.Stdout)
	switch cmd.Verb {
	case stream.Logs:
		fmt.Fprintf(out, "tail %d follow %v\n", cmd.Tail, cmd.Follow)
		fmt.Fprintln(conn.Writer(stream.Stderr), "to standard error")
	case stream.Exec:
		in := conn.Input()
		switch cmd.Argv[0] {
		case "cat":
			io.Copy(out, in.Stdin)
		case "fail":
			return 7, nil
		case "sizes": // tells its terminal's size, then every new one, until told to end
			fmt.Fprintf(out, "tty %v %dx%d\r\n", cmd.TTY, cmd.Size.Columns, cmd.Size.Rows)
			ended := make(chan struct{})
			go func() { defer close(ended); io.ReadFull(in.Stdin, make([]byte, 1)) }()
			for {
				select {
				case size := <-in.Resize:
					fmt.Fprintf(out, "now %dx%d\r\n", size.Columns, size.Rows)
				case <-ended:
					return 3, nil
				}
			}
		default:
			fmt.Fprintln(out, strings.Join(cmd.Argv, " "))
		}
	case stream.Forward:
		in := conn.Input()
		line := make([]byte, 4)
		if _, err := io.ReadFull(in.Stdin, line); err != nil {
			return 1, nil
		}
		fmt.Fprintf(out, "%s to port %d\n", line, cmd.Port)
	case stream.Top:
		for i := range 3 {
			json.NewEncoder(out).Encode(stream.Sample{Load: 0.5, MemoryBytes: 8 << 30, MemoryUsed: 1 << 30, Uses: []stream.SampleUse{{App: "shop", Service: "web", State: "Running", CPUs: float64(i) / 4, MemoryBytes: 10 << 20}}})
		}
	}
	return 0, nil
}

// writeImages puts one image into every form that push takes.
func writeImages(dir string) error {
	img, err := random.Image(4096, 3)
	if err != nil {
		return err
	}
	img = mutate.MediaType(img, "application/vnd.oci.image.manifest.v1+json")
	p, err := layout.Write(filepath.Join(dir, "layout"), empty.Index)
	if err != nil {
		return err
	}
	if err := p.AppendImage(img); err != nil {
		return err
	}
	amd, arm := v1.Platform{OS: "linux", Architecture: "amd64"}, v1.Platform{OS: "linux", Architecture: "arm64"}
	other, err := random.Image(100, 1)
	if err != nil {
		return err
	}
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &amd}}, mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &arm}})
	if _, err := layout.Write(filepath.Join(dir, "multi"), index); err != nil {
		return err
	}
	tag, err := name.NewTag("web:1")
	if err != nil {
		return err
	}
	if err := tarball.WriteToFile(filepath.Join(dir, "docker.tar"), tag, img); err != nil {
		return err
	}
	if err := errors.Join(writeBundle(filepath.Join(dir, "update.tbu"), "vm", "amd64"), writeBundle(filepath.Join(dir, "other.tbu"), "generic-arm64", "arm64"), writeDamaged(dir)); err != nil {
		return err
	}
	return tarFolder(filepath.Join(dir, "layout"), filepath.Join(dir, "oci.tar"))
}

// writeBundle makes a release whose content nobody reads.
func writeBundle(file, profile, arch string) error {
	part := release.PartOf([]byte("part"))
	root := release.PartOf(make([]byte, 4096))
	d := release.Description{Format: release.Format, Version: "2", Arch: arch, Profile: profile, Counter: 1, RootHash: strings.Repeat("0", 64), PCR11: strings.Repeat("ab", 32), Root: root, UKI: part,
		Manager: part, UUID: strings.Repeat("0", 32), Content: release.Part{Size: root.Size + 2*part.Size, SHA256: part.SHA256}}
	b := &release.Bundle{Description: d.Encode(), Plain: []byte("content")}
	var err error
	if b.Targets, err = release.NewTargets(b.Description, 1, time.Now().Add(time.Hour)); err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(b.Write(f), f.Close())
}

// writeDamaged makes a bundle and an image of which a byte of content is another.
func writeDamaged(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "update.tbu"))
	if err != nil {
		return err
	}
	altered := bytes.Replace(b, []byte("content"), []byte("kontent"), 1)
	if err := os.WriteFile(filepath.Join(dir, "altered.tbu"), altered, 0o600); err != nil {
		return err
	}
	img, err := random.Image(4096, 1)
	if err != nil {
		return err
	}
	p, err := layout.Write(filepath.Join(dir, "damaged"), empty.Index)
	if err != nil {
		return err
	}
	if err := p.AppendImage(img); err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	digest, err := layers[0].Digest()
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "damaged", "blobs", digest.Algorithm, digest.Hex)
	if b, err = os.ReadFile(file); err != nil {
		return err
	}
	b[len(b)/2] ^= 1
	return os.WriteFile(file, b, 0o600)
}

func tarFolder(dir, to string) error {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	w := tar.NewWriter(f)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return f.Close()
}

// fetch waits until a background edgectl port-forward printed its address into FILE,
// sends TEXT there, and prints the answer: fetch FILE TEXT.
func fetch(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: fetch FILE TEXT")
	}
	address := ""
	for end := time.Now().Add(wait.Limit); address == "" && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if f := strings.Fields(readIf(ts.MkAbs(args[0]))); len(f) > 1 && f[0] == "forwarding" {
			address = f[1]
		}
	}
	conn, err := net.Dial("tcp", address)
	ts.Check(err)
	defer conn.Close()
	_, err = io.WriteString(conn, args[1])
	ts.Check(err)
	b, err := io.ReadAll(conn)
	ts.Check(err)
	fmt.Fprintf(ts.Stdout(), "%s", b)
}

func readIf(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(b)
}

// await waits until FILE holds TEXT: await FILE TEXT.
func await(ts *testscript.TestScript, neg bool, args []string) {
	for end := time.Now().Add(wait.Limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if strings.Contains(readIf(ts.MkAbs(args[0])), args[1]) {
			return
		}
	}
	ts.Fatalf("%s does not hold %q:\n%s", args[0], args[1], readIf(ts.MkAbs(args[0])))
}
