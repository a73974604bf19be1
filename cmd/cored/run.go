package main

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/access"
	"tributary.dev/tributary/pkg/core/attest"
	"tributary.dev/tributary/pkg/core/audit"
	"tributary.dev/tributary/pkg/core/billing"
	"tributary.dev/tributary/pkg/core/ca"
	"tributary.dev/tributary/pkg/core/fleet"
	"tributary.dev/tributary/pkg/core/insight"
	"tributary.dev/tributary/pkg/core/intake"
	"tributary.dev/tributary/pkg/core/lease"
	"tributary.dev/tributary/pkg/core/onboard"
	"tributary.dev/tributary/pkg/core/people"
	"tributary.dev/tributary/pkg/core/registry"
	"tributary.dev/tributary/pkg/core/rollout"
	"tributary.dev/tributary/pkg/core/roster"
	"tributary.dev/tributary/pkg/core/server"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/core/train"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/mqtt"
	"tributary.dev/tributary/pkg/link/stream"
	"tributary.dev/tributary/web"
)

// options are the flags of run.
type options struct {
	data         data
	database     string // URL of a PostgreSQL; empty: as the folder knows, or files in it
	https, mqtt  string
	names        []string
	replica      string // this core's name among several on one database; empty: it is the only one
	replicaAt    string // where the others reach its HTTPS; empty: by its first name
	broker       string // of somebody else; empty: the embedded one
	keepUnbacked bool
	font         string // for invoices
	retention    intake.Retention
	deviceLife   time.Duration
	patience     time.Duration // with devices that are away
	train        trainOptions
	auditHeads   []string
	bootstrap    string // where boxes ask whose they are; empty: nowhere
	maxDisrupted int    // by rollouts, of all sites and tenants
	makers       string // file of manufacturers' certificates
	attach       []string
	mdns         bool
	logLevel     slog.Level
	logJSON      bool
}

func runCommand() *cobra.Command {
	var o options
	var dir, level string
	cmd := &cobra.Command{Use: "run", Short: "Run the core; the first time, make it", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		o.data = data(dir)
		if err := o.logLevel.UnmarshalText([]byte(level)); err != nil {
			return &api.Error{Code: api.Invalid, Field: "--log-level", Message: err.Error(), Remedy: "debug, info, warn or error"}
		}
		return run(cmd.Context(), &o)
	}}
	f := cmd.Flags()
	f.StringVar(&dir, "data", "/var/lib/cored", "folder for everything that the core keeps")
	f.StringVar(&o.database, "database", "", "postgres://… of the PostgreSQL (15 or newer) that keeps objects and ledger; the folder remembers it (default: files in the folder; see `cored migrate-store`)")
	f.StringVar(&o.https, "listen-https", ":8443", "address for people, artifacts, enrolment and streams")
	f.StringVar(&o.mqtt, "listen-mqtt", ":8883", "address for devices")
	f.StringVar(&o.broker, "mqtt-broker", "", "[mqtts://]host[:port] of a Mosquitto that devices reach instead of the embedded broker (see `cored mosquitto-config`)")
	f.StringSliceVar(&o.names, "names", nil, "host names and addresses in the core's certificate (default: this host's)")
	f.StringVar(&o.replica, "replica", "", "name of this core among several that share --data, a PostgreSQL and a broker (see docs/replicas.md)")
	f.StringVar(&o.replicaAt, "replica-address", "", "host:port at which the other replicas reach this one's HTTPS (default: the first of --names, with the port listened on)")
	f.BoolVar(&o.keepUnbacked, "keep-unbacked", false, "have devices keep records until a backup holds them, also while no backup was ever made")
	f.DurationVar(&o.retention.Intervals, "keep-intervals", 90*24*time.Hour, "after how long rows of usage are summed by day, exactly and never across a cut point (0: never)")
	f.DurationVar(&o.retention.Events, "keep-events", 400*24*time.Hour, "how long events are kept; audits stay (0: for ever)")
	f.IntVar(&o.maxDisrupted, "max-disrupted", 1000, "how many devices, of all sites and tenants, rollouts may interrupt at once")
	f.StringVar(&o.font, "invoice-font", "", "TrueType file for what invoices' own font lacks, such as Chinese (default: Debian's fonts-droid-fallback, if it is there)")
	f.DurationVar(&o.deviceLife, "device-cert-life", ca.DeviceLife, "how long the certificate of a device lives; it renews when two thirds have passed")
	f.DurationVar(&o.patience, "incident-after", 2*time.Minute, "how long a device that was there is away before that is an incident")
	f.StringVar(&o.bootstrap, "listen-bootstrap", "", "address at which new boxes find their owner (RFC 8572, RFC 7030), such as :8444; empty: none")
	f.StringVar(&o.makers, "manufacturers", "", "PEM file of the manufacturers whose devices are known by serial number (default: manufacturers.pem in the data folder, if it is there)")
	f.StringArrayVar(&o.attach, "attach", nil, "host:mqtt-port,https-port at which boxes that find their owner are told to attach, best first, may be repeated (default: the first name that another machine can use, with the ports listened on)")
	f.BoolVar(&o.mdns, "mdns", true, "answer boxes of this site that ask by multicast DNS where the bootstrap port is (UDP 5353), unless that listens on the loopback alone")
	f.StringArrayVar(&o.auditHeads, "audit-heads", nil, "file, on another disk best, that keeps the signed heads of the audit log beside heads.log in the data folder; may be repeated")
	o.train.flags(f)
	f.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	f.BoolVar(&o.logJSON, "log-json", false, "log JSON lines instead of text")
	return cmd
}

// core is a core that is put together and not yet running.
type core struct {
	o       *options
	log     *slog.Logger
	metrics *prometheus.Registry

	store    *store.SQL
	people   *people.Room
	epoch    uint64
	ca       *ca.CA
	live     *identity.Live
	roster   *roster.Roster
	registry *registry.Registry
	intake   *intake.Store
	billing  *billing.Room
	broker   carrier
	external *mqtt.External // the broker, when it is somebody else's
	orders   chan func(context.Context)
	member   *identity.Live // by which one of several cores reaches the broker
	end      *endpoint
	lease    *lease.Room
	entered  func() // ends what only one core may do at a time while it starts
	fleet    *fleet.Loop
	rollouts *rollout.Loop
	server   *server.Server
	https    net.Listener
	heads    *audit.Heads
	audited  *audit.Notes
	hub      *stream.Hub
	finder   *server.Finder

	insight   *insight.Room
	attest    *attest.Room // what devices' TPMs show
	questions chan question

	train           *train.Loop
	drivers         map[string]train.Driver // by name
	trainingChanged chan struct{}

	bootstrap net.Listener        // nil where boxes do not ask
	greeter   *onboard.Server     // what answers there
	claims    claims              // of boxes that are expected
	makers    []*x509.Certificate // manufacturers

	closers []func() error
}

// run puts a core together, runs it until ctx ends, and takes it apart.
func run(ctx context.Context, o *options) error {
	c := &core{o: o, log: newLog(o), metrics: prometheus.NewRegistry(), trainingChanged: make(chan struct{}, 1)}
	c.metrics.MustRegister(gauges{c}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	err := c.open(ctx)
	if err == nil {
		err = c.serve(ctx)
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil // told to stop
	}
	for i := len(c.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, c.closers[i]())
	}
	return err
}

func newLog(o *options) *slog.Logger {
	ho := &slog.HandlerOptions{Level: o.logLevel}
	if o.logJSON {
		return slog.New(slog.NewJSONHandler(os.Stderr, ho))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, ho))
}

// open makes the rooms, each from those before it.
func (c *core) open(ctx context.Context) error {
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"the data folder", c.openData},
		{"the certificate authority", c.openCA},
		{"the roster of devices", c.openRoster},
		{"the registry", c.openRegistry},
		{"the tree of devices", c.openTree},
		{"billing", c.openBilling},
		{"what TPMs showed", c.openAttest},
		{"the fleets", c.openFleet},
		{"the incidents", c.openInsight},
		{"the server", c.openServer},
		{"the training of models", c.openTrain},
		{"the bootstrap server", c.openBootstrap},
		{"the leases", c.openLeases},
	} {
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("open %s: %w", step.what, err)
		}
	}
	c.entered()
	return nil
}

func (c *core) openData(ctx context.Context) error {
	err := c.lockData(ctx)
	if err != nil {
		return err
	}
	if err := c.o.data.useDatabase(ctx, c.o.database); err != nil {
		return err
	}
	if err := c.mayShare(); err != nil {
		return err
	}
	if c.store, err = c.o.data.sealStore(ctx, c.log); err != nil {
		return err
	}
	c.closers = append(c.closers, c.store.Close)
	if err := c.openAudit(ctx); err != nil {
		return err
	}
	if c.epoch, err = c.store.Epoch(ctx); err != nil {
		return err
	}
	if err := c.store.MakeOwnAccounts(ctx); err != nil {
		return err
	}
	if err := c.store.AdoptRevisions(ctx); err != nil {
		return err
	}
	if c.people, err = c.o.data.openPeople(ctx, c.store); err != nil {
		return err
	}
	if err := c.o.data.inviteAdmin(ctx, c.people, c.log); err != nil {
		return err
	}
	return c.o.data.firstToken(ctx, c.store)
}

func (c *core) openCA(context.Context) (err error) {
	if c.ca, err = ca.Open(c.o.data.ca(), ca.Options{DeviceLife: c.o.deviceLife}); err != nil {
		return err
	}
	if len(c.o.names) == 0 {
		c.o.names = ownNames()
	}
	id, err := c.ca.Identity(c.o.names)
	if err != nil {
		return err
	}
	c.live = identity.NewLive(id)
	if c.ca.RootKeyPresent() {
		c.log.Info("the root key lies on this machine; move ca/root.key to a safe place when the core has started", "dir", c.o.data.ca())
	}
	return nil
}

// ownNames is how this host may be reached when nobody said.
func ownNames() []string {
	names := []string{"localhost", "127.0.0.1", "::1"}
	if host, err := os.Hostname(); err == nil {
		names = append(names, host)
	}
	addrs, _ := net.InterfaceAddrs() // a host without addresses has its name
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.IsGlobalUnicast() {
			names = append(names, ip.IP.String())
		}
	}
	return names
}

func (c *core) openRoster(ctx context.Context) (err error) {
	restored, err := c.store.Restored(ctx)
	if err != nil {
		return err
	}
	c.roster, err = roster.Open(ctx, roster.Config{Store: c.store, Fingerprint: c.ca.Fingerprint(), Restored: restored, Came: c.came, Gone: c.gone, Notes: c.notes, Actor: actorOf, Now: time.Now, Random: rand.Reader, Log: c.log})
	c.live.Refused = func(id api.DeviceID) bool { return c.roster.Refused(id) }
	return err
}

func (c *core) openRegistry(context.Context) (err error) {
	c.registry, err = registry.New(registry.Config{Dir: c.o.data.registry(), Log: c.log, Authorize: c.authorizeArtifacts})
	if err == nil {
		c.closers = append(c.closers, c.registry.Close)
	}
	return err
}

// actorOf names the person who makes a request.
func actorOf(ctx context.Context) string {
	return server.CallerOf(ctx).Name
}

// authorizeArtifacts lets devices pull by digest, and people by their tokens.
func (c *core) authorizeArtifacts(r *http.Request, a registry.Access) error {
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		id, _, err := identity.PeerID(*r.TLS)
		switch {
		case err != nil || !c.roster.Active(id):
			return &api.Error{Code: api.Forbidden, Message: "this device may not take part", Err: err}
		case a.Action == registry.Ping, a.Action == registry.Pull && a.ByDigest:
			return nil
		}
		return &api.Error{Code: api.Forbidden, Message: "a device may only pull, and by digest"}
	}
	on := access.Resource{Tenant: a.Tenant(), Kind: access.Artifact}
	switch a.Action {
	case registry.Ping:
		return c.server.Authorize(r, "", on)
	case registry.Push:
		if on.Tenant == "" {
			return cmp.Or(c.server.Authorize(r, "", on), error(&api.Error{Code: api.NotFound, Message: "a repository is named TENANT/NAME", Remedy: "push to " + api.DefaultTenant + "/NAME, or to NAME of another tenant"}))
		}
		return c.server.Authorize(r, access.Push, on)
	case registry.Delete:
		if err := c.server.Authorize(r, access.Unpublish, on); err != nil {
			return err
		}
		return c.mayRemove(r.Context(), path.Base(r.URL.Path))
	}
	return c.server.Authorize(r, access.Pull, on)
}

func (c *core) openTree(ctx context.Context) (err error) {
	// Once there is a backup, what it does not hold is kept by the devices: a core that
	// burns down is restored from it, and they send the rest again. Before, there is
	// nothing to restore, and devices need not keep what is counted.
	backed, err := c.store.BackedUp(ctx)
	if err != nil {
		return err
	}
	restored := c.epoch > 1
	c.intake, err = c.o.data.openLedger(ctx, intake.Config{Now: time.Now, Log: c.log, KeepUnbacked: c.o.keepUnbacked || backed || restored, Shared: c.shared(),
		Changed: func(id api.DeviceID) { c.fleet.Reported(id) }})
	if err != nil {
		return err
	}
	c.closers = append(c.closers, c.intake.Close)
	if err := c.openBroker(); err != nil {
		return err
	}
	c.end = newEndpoint(c)
	if c.shared() {
		c.end.set(nil, lease.Held{}) // where devices are it reads when it hears others
		return nil
	}
	end, err := c.end.make()
	c.end.set(end, nil)
	return err
}

func (c *core) openBilling(ctx context.Context) error {
	fonts, err := billing.LoadFonts(c.o.font)
	if err != nil {
		return err
	}
	room, end, err := c.o.data.openBilling(ctx, billing.Config{Store: c.store, Epoch: c.epoch, Fonts: fonts, Log: c.log}, c.intake, c.ca)
	if err != nil {
		return err
	}
	c.billing = room
	c.closers = append(c.closers, end)
	return nil
}

// randomNumber names feeds and spreads reconnections.
func randomNumber() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails
	return binary.LittleEndian.Uint64(b[:])
}

// presence notes which devices came and went.
func (c *core) presence(news []link.Presence) {
	for _, p := range news {
		if !p.Heard.IsZero() {
			c.intake.Seen(p.Device, p.Heard)
		}
		if p.Online && c.attest.Due(p.Device) {
			c.question(question{id: p.Device})
		}
		if c.shared() {
			c.end.note(intake.Presence{Device: p.Device, Online: p.Online, Heard: max(p.Heard.UnixMilli(), 0)})
		}
		c.fleet.Reported(p.Device)
	}
}

// alarm notes what the link finds wrong about devices.
func (c *core) alarm(list []link.Alarm) {
	for _, a := range list {
		c.raise(a.Device, api.Warning{Name: a.Name, Severity: a.Severity, Message: a.Message})
	}
}

func (c *core) openFleet(ctx context.Context) error {
	c.fleet = fleet.New(fleet.Config{
		Store: c.store, Epoch: c.epoch, SealKey: c.roster.SealKey,
		Signer:    func() (*ecdsa.PrivateKey, []byte) { return c.ca.Signer() },
		Unlock:    c.unlockStatement,
		Sealing:   c.ca.SealingName,
		Following: c.shared(),
		Publish:   c.end.Publish, Reports: reports{c.intake, c.end.Heard}, Attested: c.attest.Attested, Attestation: c.attest.Status, Booted: c.booted, Now: time.Now, Log: c.log,
	})
	c.rollouts = rollout.New(rollout.Config{Store: c.store, Most: c.o.maxDisrupted, Now: time.Now, Log: c.log})
	return c.fleet.Load(ctx)
}

func (c *core) openServer(context.Context) (err error) {
	signer, _ := c.ca.Signer()
	c.hub = stream.NewHub(stream.HubConfig{Identity: c.live, Signer: signer, Send: c.command, Mark: c.mark(), Peer: c.peer, Log: c.log})
	apps := &server.Apps{Store: c.store, Artifacts: c.registry}
	c.finder = server.NewFinder(c.store)
	rollouts := rollout.Room{Loop: c.rollouts, Blobs: c.registry.Blobs}
	cfg := server.Config{Rollouts: rollouts,
		Store: c.store, Access: access.New(c.store), People: c.people, Devices: c.roster, Inventories: inventories{c.intake, c.log}, Unlocks: c.rescueDesk(), Heard: c.end.Heard, Ledger: ledger{c.intake, c.store, c.roster}, Billing: c.billing, Audit: c.audited, Streams: c.hub, Finder: c.finder,
		Admission: map[string]server.Admission{api.KindApp: apps.AdmitApp, api.KindFleet: apps.AdmitFleet, api.KindJoinToken: c.admitToken, api.KindExpectedDevice: c.admitExpected, api.KindIncident: admitIncident, api.KindRollout: server.AdmitRollout(rollouts),
			api.KindRoleBinding: server.AdmitBinding(c.people)},
		Removal: map[string]server.Removal{api.KindDevice: func(_ context.Context, o *api.Object) error { return c.roster.MayDelete(o) },
			api.KindApp: apps.MayRemove, api.KindConfig: apps.MayRemove, api.KindFlowPolicy: apps.MayRemove, api.KindSecret: apps.MayRemove, api.KindPricePlan: c.billing.MayRemove},
		Routes: []server.Route{
			{Pattern: "/v2/", Handler: c.registry,
				Doc: "The OCI registry (distribution-spec 1.1): people by token as the password of Basic authentication, devices by certificate; repositories are TENANT/NAME."},
			{Pattern: identity.EnrolPrefix, Handler: c.ca.Handler(registrar{c}, c.log),
				Doc: "Enrolment and renewal of devices: trust, device and renew below it, by join token or certificate."},
			{Pattern: "POST " + identity.GreetPrefix, Handler: http.HandlerFunc(c.greetings),
				Doc: "What boxes that look for their owner ask by way of a relay, by the relay's certificate."},
			{Pattern: "GET /bootstrap/v1/data", Needs: server.Needs{Action: access.Onboard, On: server.Each}, Handler: http.HandlerFunc(c.stickData),
				Doc: "Signed data for the expected box of a serial number, for a USB stick."},
			{Pattern: "POST " + identity.PathRecover, Handler: c.ca.RecoverHandler(c.attest, c.log),
				Doc: "Boxes whose TPM does not give the key of their state ask for it here, by their TPM's word."},
			{Pattern: "POST /api/v1/devices/{name}/unlock-state", Needs: server.Needs{Action: access.Unlock, On: server.Device}, Handler: http.HandlerFunc(c.unlockState),
				Doc: "Approves a device's new firmware: a box that waits for the key of its state gets it, encrypted to its TPM."},
			{Pattern: "GET /api/v1/trainingjobs/{name}/logs", Needs: server.Needs{Action: access.Operate, On: server.Each}, Handler: http.HandlerFunc(c.trainingLogs),
				Doc: "The newest lines that a training's ranks wrote, as text; tenant and bytes (65536) may be given."},
			{Pattern: stream.PathPrefix, Handler: c.hub,
				Doc: "Streams that devices dial in answer to a command, by certificate."},
		},
		Metrics: c.metrics, Log: c.log, Now: time.Now, Version: version,
	}
	cfg.Console = web.New()
	c.server = server.New(cfg)
	c.https, err = net.Listen("tcp", c.o.https)
	return err
}

// command sends a signed command to a device that is there as far as is known: nobody
// shall wait for one that is known to be away.
func (c *core) command(id api.DeviceID, raw []byte) error {
	if !c.end.Reachable(id) {
		return &api.Error{Code: api.Unavailable, Message: "device " + id.String() + " is not reachable", Remedy: "see `edgectl get devices` for when it was last seen"}
	}
	return c.end.Command(id, raw)
}

// admitToken gives a new JoinToken its secret.
func (c *core) admitToken(_ context.Context, ch server.Change) (server.Decision, error) {
	status, token, err := c.roster.MintToken(ch.Old, ch.New)
	if err != nil || status == nil {
		return server.Decision{}, err
	}
	return server.Decision{Status: status, Reply: func(o *api.Object) {
		o.Status = fmt.Appendf(nil, `{"used":0,"token":%q}`, token(o.Metadata.UID))
	}}, nil
}

// serve runs all loops; the first to fail ends the others.
func (c *core) serve(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.roster.Run(ctx) })
	g.Go(func() error { return c.lease.Run(ctx) })
	if c.shared() {
		g.Go(func() error { return c.end.run(ctx) })
		g.Go(func() error { return c.hear(ctx) })
	}
	g.Go(func() error { return c.fleet.Run(ctx) })
	g.Go(func() error { return c.finder.Run(ctx) })
	g.Go(func() error { return c.rollouts.Run(ctx) })
	g.Go(func() error { return c.renew(ctx) })
	g.Go(func() error { return c.heads.Run(ctx, c.headFailed) })
	g.Go(func() error { return c.rememberUse(ctx) })
	g.Go(func() error { return c.runAttest(ctx) })
	g.Go(func() error { return c.order(ctx) })
	g.Go(func() error { return c.serveHTTPS(ctx) })
	g.Go(func() error { return c.serveControl(ctx) })
	g.Go(func() error { return c.serveBootstrap(ctx) })
	c.log.Info("the core runs", "version", version, "https", c.https.Addr().String(), "mqtt", c.mqttAddress(), "bootstrap", c.bootstrapAddress(), "epoch", c.epoch, "replica", c.o.replica, "devices", c.roster.Len(),
		"names", strings.Join(c.o.names, ","), "adminToken", c.o.data.adminToken(), "ca", c.o.data.ca()+"/root.crt")
	err := g.Wait()
	c.lastHeard()
	return err
}

// lastHeard keeps when devices were last heard, which else is kept only as they come and
// go: the next life of the core then tells it of those that do not come back.
func (c *core) lastHeard() {
	for _, id := range c.roster.AllActive() {
		if at, reachable := c.end.Heard(id); reachable && !at.IsZero() {
			c.intake.Seen(id, at)
		}
	}
}

// renew keeps the server certificate fresh.
func (c *core) renew(ctx context.Context) error {
	tick := time.NewTicker(24 * time.Hour)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			id, err := c.ca.Identity(c.o.names)
			if err != nil {
				c.log.Error("the server certificate cannot be renewed; tried again tomorrow", "err", err)
				continue
			}
			c.live.Set(id)
			if err := c.renewMember(); err != nil {
				c.log.Error("the certificate for the broker cannot be renewed; tried again tomorrow", "err", err)
			}
			c.checkBroker()
		}
	}
}

// stopGrace is how long requests may take to end once cored is told to stop.
const stopGrace = 5 * time.Second

func (c *core) serveHTTPS(ctx context.Context) error {
	srv := &http.Server{
		Handler:           c.server,
		BaseContext:       func(net.Listener) context.Context { return ctx }, // watches end with cored
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(c.log.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(tls.NewListener(c.https, c.live.ServerTLSOptional())) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		srv.Close()
	}
	return ctx.Err()
}
