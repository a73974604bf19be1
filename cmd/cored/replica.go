package main

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/lease"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link/stream"
)

// shared tells whether this core is one of several on its database.
func (c *core) shared() bool { return c.o.replica != "" }

// notes tells whether this core notes as events what was done by others: it is the one of several
// that renders.
func (c *core) notes() bool { return !c.shared() || c.fleet != nil && c.fleet.Rendering() }

// lockData takes the folder for this core, or its place among the cores of the folder. Until
// c.entered it is the only one that makes or brings up to date what is there.
func (c *core) lockData(ctx context.Context) error {
	c.entered = func() {}
	if !c.shared() {
		lock, err := c.o.data.lock()
		if err == nil {
			c.closers = append(c.closers, lock.Close)
		}
		return err
	}
	if err := lease.CheckName(c.o.replica); err != nil {
		return err
	}
	if c.o.broker == "" {
		return &api.Error{Code: api.Invalid, Field: "--mqtt-broker", Message: "replicas share a broker, and this one is told none", Remedy: "set a Mosquitto up by `cored mosquitto-config` and name it as --mqtt-broker"}
	}
	for _, l := range []struct {
		file string
		how  int
		busy *api.Error
	}{
		{"lock", syscall.LOCK_SH, &api.Error{Message: "a cored runs alone on " + string(c.o.data), Remedy: "stop it, and start it with --replica NAME, too"}},
		{"replica-" + c.o.replica + ".lock", syscall.LOCK_EX, &api.Error{Message: "a replica " + c.o.replica + " runs on " + string(c.o.data) + " already", Remedy: "give each --replica another name"}},
	} {
		f, err := c.o.data.flock(l.file, l.how)
		if err != nil {
			l.busy.Code, l.busy.Err = api.Unavailable, err
			return l.busy
		}
		c.closers = append(c.closers, f.Close)
	}
	entrance, err := c.o.data.enter(ctx)
	if err != nil {
		return err
	}
	c.closers = append(c.closers, func() error { c.entered(); return nil })
	c.entered = func() { _ = entrance.Close() } // closed again it only says so
	return nil
}

// flock locks a file of the folder, at once or not at all. The lock ends with the process.
func (d data) flock(name string, how int) (*os.File, error) {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(d.path(name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// enter waits until no other core starts on the folder.
func (d data) enter(ctx context.Context) (*os.File, error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		f, err := d.flock("entrance.lock", syscall.LOCK_EX)
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return f, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// mayShare refuses replicas whose database is files: two processes that write them would not
// hear of each other.
func (c *core) mayShare() error {
	place, err := c.o.data.database()
	if err != nil || place != "" || !c.shared() {
		return err
	}
	return &api.Error{Code: api.Invalid, Field: "--replica", Message: "replicas share a PostgreSQL, and the core of " + string(c.o.data) + " has its database in files",
		Remedy: "move it: `cored migrate-store --data " + string(c.o.data) + " --to postgres://…`; a new core takes it by --database"}
}

// openLeases divides the work. A core that is alone does all of it.
func (c *core) openLeases(context.Context) error {
	cfg := lease.Config{Log: c.log, Self: lease.Replica{Name: c.o.replica, Address: c.o.replicaAt}, Unique: newUID(), Schema: store.Schema}
	if c.shared() {
		cfg.DB = c.store.Database()
		if cfg.Self.Address == "" {
			_, port, err := net.SplitHostPort(c.https.Addr().String())
			if err != nil {
				return err
			}
			cfg.Self.Address = net.JoinHostPort(c.o.names[0], port)
		}
	}
	c.lease = lease.New(cfg)
	c.lease.Add(lease.Duty{Names: slotNames(), Spread: true, Run: c.serveDevices})
	c.lease.Add(lease.Duty{Names: []string{"tidy"}, Run: func(ctx context.Context, _ lease.Held) error { return c.tidy(ctx) }})
	c.lease.Add(lease.Duty{Names: []string{"collect"}, Run: func(ctx context.Context, _ lease.Held) error { return c.collect(ctx) }})
	c.lease.Add(lease.Duty{Names: []string{"train"}, Run: func(ctx context.Context, _ lease.Held) error { return c.runTrain(ctx) }})
	c.lease.Add(lease.Duty{Names: []string{"budgets"}, Run: func(ctx context.Context, _ lease.Held) error { return c.checkBudgets(ctx) }})
	c.lease.Add(lease.Duty{Names: []string{"insight"}, Run: func(ctx context.Context, _ lease.Held) error { return c.insight.Run(ctx) }})
	if c.shared() {
		c.lease.Add(lease.Duty{Names: []string{"render"}, Run: func(ctx context.Context, _ lease.Held) error { return c.fleet.Lead(ctx) }})
	}
	return nil
}

// brokerName is by which one of several cores is known to the broker that they share: two sessions
// of one name would end each other.
func (c *core) brokerName() string { return identity.CoreName + "-" + c.o.replica }

// renewMember makes the certificate anew by which one of several cores reaches the broker.
func (c *core) renewMember() error {
	if c.member == nil {
		return nil
	}
	id, err := c.ca.Replica(c.brokerName())
	if err == nil {
		c.member.Set(id)
	}
	return err
}

// mark is what sessions of this core's streams begin with; 0 when it is alone.
func (c *core) mark() uint32 {
	if !c.shared() {
		return 0
	}
	return markOf(c.o.replica)
}

// peer is the way to another core, for streams that it waits for.
func (c *core) peer(mark uint32) stream.Parent {
	for _, r := range c.lease.Live() {
		if markOf(r.Name) != mark {
			continue
		}
		return func() (*url.URL, *tls.Config, error) {
			conf := c.live.ClientTLS(identity.CoreName)
			conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }
			return &url.URL{Scheme: "https", Host: r.Address}, conf, nil
		}
	}
	return nil
}

// onlyOne refuses what may not be done while others run that keep keys in memory.
func (c *core) onlyOne() error {
	if live := c.lease.Live(); len(live) > 1 {
		return &api.Error{Code: api.Conflict, Message: "other replicas run, which read keys when they start", Remedy: "stop all replicas but one, rotate, and start them again"}
	}
	return nil
}

// controls of a folder: one socket for each core that runs on it.
func (d data) sockets() []string {
	found, _ := filepath.Glob(d.path("control*.sock")) // a constant pattern is not malformed
	names := make([]string, len(found))
	for i, path := range found {
		names[i] = filepath.Base(path)
	}
	return names
}

// socket is the name of this core's.
func (c *core) socket() string {
	if c.shared() {
		return "control-" + c.o.replica + ".sock"
	}
	return "control.sock"
}
