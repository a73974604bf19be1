package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/intake"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/linksim"
	"tributary.dev/tributary/pkg/link/mqtt"
)

// benchChange measures what one changed field of a device's reported state takes on each
// of three hops (device, relay, relay, core): TCP payload both ways, as proxies between
// the boxes count it. The link's endpoints, brokers, clients and stores are the real
// ones; TLS is off, and heartbeats, which `idle` counts, are an hour apart.
func benchChange(ctx context.Context) ([]Figure, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "tributary-change-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	chain, err := newChain(ctx, dir)
	if err != nil {
		return nil, err
	}
	figures, err := chain.measure(ctx)
	return figures, errors.Join(err, chain.close())
}

// chainHops is the length of the chain below the core.
const chainHops = 3

// chain is a core, two relays and a field device in a row, a counting proxy on each hop.
type chain struct {
	dir     string
	store   *intake.Store
	core    *link.CoreEndpoint
	boxes   []*link.Endpoint // from the core down
	ids     []api.DeviceID
	proxies []*countingProxy
	disks   []*bbolt.DB
	group   errgroup.Group
	stop    context.CancelFunc
}

func newChain(ctx context.Context, dir string) (*chain, error) {
	c := &chain{dir: dir}
	ctx, c.stop = context.WithCancel(ctx)
	if err := c.build(ctx); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

func (c *chain) run(ctx context.Context, f func(context.Context) error) {
	c.group.Go(func() error {
		if err := f(ctx); err != nil && ctx.Err() == nil {
			c.stop()
			return err
		}
		return nil
	})
}

func (c *chain) build(ctx context.Context) (err error) {
	keys, err := linksim.NewKeyring()
	if err != nil {
		return err
	}
	if c.store, err = intake.Open(ctx, intake.Config{Place: filepath.Join(c.dir, "ledger.db"), Now: time.Now, Log: fleetLog()}); err != nil {
		return err
	}
	config := link.Config{Health: time.Hour, Log: fleetLog()}
	broker, err := c.listen(ctx)
	if err != nil {
		return err
	}
	if c.core, err = link.NewCoreEndpoint(link.CoreEndpointConfig{CoreConfig: link.CoreConfig{Config: config, Epoch: 1, Store: c.store, Keys: keys.Core()}, Downlink: broker}); err != nil {
		return err
	}
	c.run(ctx, c.core.Run)
	parent := api.ParentRef{Device: "core"}
	for hop := range chainHops {
		id := api.DeviceID{1, byte(hop)}
		db, err := bbolt.Open(filepath.Join(c.dir, id.String()+".db"), 0o600, nil)
		if err != nil {
			return err
		}
		c.disks = append(c.disks, db)
		parent.Address = c.proxies[hop].Addr().String()
		cfg := link.EndpointConfig{RelayConfig: link.RelayConfig{Config: config, Self: id, Cert: linksim.Cert(id), Store: link.OpenBolt(db), Keys: keys.Device(id)},
			Uplink: mqtt.NewUplink(mqtt.UplinkConfig{ID: id, Parents: []api.ParentRef{parent}, KeepAlive: time.Hour, Log: fleetLog()})}
		if hop < chainHops-1 {
			if cfg.Downlink, err = c.listen(ctx); err != nil {
				return err
			}
		}
		box, err := link.NewEndpoint(cfg)
		if err != nil {
			return err
		}
		c.boxes, c.ids = append(c.boxes, box), append(c.ids, id)
		c.run(ctx, box.Run)
		want := linksim.NewDesired(1)
		if err := want.Set(keys, id, 1, time.Now().Unix(), map[string][]byte{"config/base": {1}}); err != nil {
			return err
		}
		if err := c.core.Publish(want.Signed, want.Tombs); err != nil {
			return err
		}
		parent = api.ParentRef{Device: id.String()}
	}
	return nil
}

// listen makes a broker without TLS, and the proxy in front of it.
func (c *chain) listen(ctx context.Context) (*mqtt.Broker, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p, err := newCountingProxy(ln.Addr().String())
	if err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	c.proxies = append(c.proxies, p)
	c.run(ctx, p.run)
	return mqtt.NewBroker(mqtt.BrokerConfig{Listener: ln, Log: fleetLog()})
}

func (c *chain) close() error {
	c.stop()
	err := c.group.Wait()
	for _, db := range c.disks {
		err = errors.Join(err, db.Close())
	}
	if c.store != nil {
		err = errors.Join(err, c.store.Close())
	}
	return err
}

// changeRounds is how often each change is made; the costliest counts.
const changeRounds = 5

// measure reports what edged does, and changes one field again and again.
func (c *chain) measure(ctx context.Context) ([]Figure, error) {
	field := &fleetBox{link: c.boxes[chainHops-1]}
	app := api.AppStatus{Name: "demo", State: api.Running, Bundle: "sha256:" + fmt.Sprintf("%064x", 0x5eed),
		Services: []api.ServiceStatus{{Name: "web", State: api.Running, Container: "demo-web-5f0c61d2ab", Restarts: 100, Address: "10.213.0.112"}, {Name: "cache", State: api.Running, Container: "demo-cache-97ab0e44c1", Address: "10.213.0.113"}}}
	generation := uint64(1000) // of a device that has lived a while
	changeApp := func() error { app.Services[0].Restarts++; return field.reportApp(app) }
	changeField := func() error { generation++; return field.report("applied", []uint64{1, generation}) }
	if err := errors.Join(field.describe("bench"), changeApp(), changeField()); err != nil {
		return nil, err
	}
	for range 300 { // so that the numbers are not those of a newborn
		if err := changeField(); err != nil {
			return nil, err
		}
	}
	if err := c.settle(ctx, generation); err != nil {
		return nil, fmt.Errorf("before any change: %w", err)
	}
	one, err := c.cost(ctx, changeField)
	if err != nil {
		return nil, err
	}
	if err := c.settle(ctx, generation); err != nil {
		return nil, fmt.Errorf("the core has not what the device reported last: %w", err)
	}
	whole, err := c.cost(ctx, changeApp)
	if err != nil {
		return nil, err
	}
	f := atMost("change", float64(slices.Max(one)), "B/hop", 120, 120)
	f.Note = fmt.Sprintf("the key \"applied\" of a device three hops down, TLS off; %v from the core's hop down, worst of %d", one, changeRounds)
	status := atMost("change.app", float64(slices.Max(whole)), "B/hop", 120, 120)
	status.Note = "one field of one of an app's two services: the entry of that service is sent"
	back, err := c.reconnect(ctx)
	if err != nil {
		return nil, fmt.Errorf("reconnect: %w", err)
	}
	reconnect := plain("change.none", float64(back), "B")
	reconnect.Note = "a relay's new session with the core when nothing changed, after CONNACK; heal.unchanged is the same in virtual time"
	simulated, err := changeSimulated()
	return []Figure{f, status, reconnect, simulated}, err
}

// settle waits until the core's store has the device's newest generation in force and
// all hops are silent.
func (c *chain) settle(ctx context.Context, generation uint64) error {
	want, err := fleetCBOR.Marshal([]uint64{1, generation})
	if err != nil {
		return err
	}
	field := c.ids[chainHops-1]
	for {
		r, err := c.store.Report(ctx, field)
		if err != nil {
			return err
		}
		if slices.Equal(r.Entries["applied"], want) {
			break
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
	_, err = c.silent(ctx, time.Second)
	return err
}

// silent waits until no hop has carried anything for a while, and gives the counts.
func (c *chain) silent(ctx context.Context, quiet time.Duration) (counts [chainHops]int64, err error) {
	for since := time.Now(); time.Since(since) < quiet; {
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return counts, err
		}
		for i, p := range c.proxies {
			if n := p.bytes.Load(); n != counts[i] {
				counts[i], since = n, time.Now()
			}
		}
	}
	return counts, nil
}

// cost makes a change several times and gives the most that each hop carried for one.
func (c *chain) cost(ctx context.Context, change func() error) ([]int64, error) {
	worst := make([]int64, chainHops)
	for range changeRounds {
		before, err := c.silent(ctx, 300*time.Millisecond)
		if err != nil {
			return nil, err
		}
		if err := change(); err != nil {
			return nil, err
		}
		// Folding takes 50 ms a hop.
		after, err := c.silent(ctx, 500*time.Millisecond)
		if err != nil {
			return nil, err
		}
		for i := range worst {
			if after[i] == before[i] {
				return nil, fmt.Errorf("a change did not cross hop %d", i)
			}
			worst[i] = max(worst[i], after[i]-before[i])
		}
	}
	return worst, nil
}

// connectBytes is what MQTT's CONNECT and CONNACK take (pkg/link/mqtt, TestCost).
const connectBytes = 51

// reconnect breaks the topmost hop and gives what it carries until both ends agree that
// nothing has changed, after CONNACK.
func (c *chain) reconnect(ctx context.Context) (int64, error) {
	before, err := c.silent(ctx, time.Second)
	if err != nil {
		return 0, err
	}
	c.proxies[0].hangUp()
	for c.proxies[0].bytes.Load() == before[0] {
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return 0, err
		}
	}
	after, err := c.silent(ctx, 2*time.Second)
	if _, connected := c.boxes[0].Parent(); err == nil && !connected {
		err = errors.New("the relay does not come back")
	}
	return after[0] - before[0] - connectBytes, err
}

// countingProxy passes TCP connections on to one address and counts payload both ways.
type countingProxy struct {
	net.Listener
	to    string
	bytes atomic.Int64

	mu   sync.Mutex
	open map[net.Conn]bool
}

func newCountingProxy(to string) (*countingProxy, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	return &countingProxy{Listener: ln, to: to, open: map[net.Conn]bool{}}, err
}

// hangUp ends all connections; new ones are welcome.
func (p *countingProxy) hangUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		c.Close()
	}
}

func (p *countingProxy) note(c net.Conn, open bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if open {
		p.open[c] = true
	} else {
		delete(p.open, c)
	}
}

func (p *countingProxy) run(ctx context.Context) error {
	var pipes sync.WaitGroup
	defer pipes.Wait()
	stop := context.AfterFunc(ctx, func() { p.Close() })
	defer stop()
	for {
		in, err := p.Accept()
		if err != nil {
			return err
		}
		pipes.Go(func() { p.pipe(ctx, in) })
	}
}

func (p *countingProxy) pipe(ctx context.Context, in net.Conn) {
	p.note(in, true)
	defer func() { p.note(in, false); in.Close() }()
	out, err := new(net.Dialer).DialContext(ctx, "tcp", p.to)
	if err != nil {
		return // the client comes again
	}
	defer out.Close()
	stop := context.AfterFunc(ctx, func() { in.Close(); out.Close() })
	defer stop()
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(counted{in, p}, out) // either end closing is the end of both
		in.Close()
	})
	_, _ = io.Copy(counted{out, p}, in)
	out.Close()
	back.Wait()
}

// counted is a connection whose written bytes are counted.
type counted struct {
	net.Conn
	p *countingProxy
}

func (c counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.p.bytes.Add(int64(n))
	return n, err
}
