package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link/record"
)

// Shape of the rest that benchIdle measures.
const (
	idleDevices    = 100
	idleContainers = 10
	roundsPerDay   = 24 * 4 // of metering, every 15 minutes
)

// idlePlan is for how long benchIdle looks.
type idlePlan struct {
	rest time.Duration // without records, in true time
	// Metering is compressed: one round of all devices takes round instead of 15 minutes,
	// so that a batch of four rounds, which a device sends once an hour, takes 4*round.
	round, warm, meter time.Duration
}

// benchIdle puts a relay with 100 devices on a veth pair below a cored in a network
// namespace of its own, mutual TLS between them, and has the kernel count what crosses.
//
// It looks twice. At rest: true minutes with all intervals as they are in life, so health,
// MQTT's keep-alive and TCP's acknowledgements are in. Metering: all devices go on to
// record the use of ten containers each, round after round, 240 times as fast; batches
// are cut, signed, forwarded one by one, committed and acknowledged as in life, for
// nothing on their way waits for others. With R bytes a second at rest, and M bytes for
// each record beyond that, a day of a device takes R*86400/100 + 96*M bytes.
func benchIdle(ctx context.Context) ([]Figure, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute)
	defer cancel()
	plan := idlePlan{rest: 100 * time.Second, round: 3750 * time.Millisecond, warm: 30 * time.Second, meter: 30 * time.Second}
	if os.Getenv("LONG") != "" {
		plan.rest, plan.meter = 10*time.Minute, 2*time.Minute
	}
	dir, err := os.MkdirTemp("", "tributary-idle-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	net, err := newIdleNet(ctx)
	if err != nil {
		return nil, err
	}
	figures, err := runIdle(ctx, plan, net, dir)
	if err = errors.Join(err, net.close()); err != nil {
		return nil, err
	}
	simulated, err := idleSimulated()
	return append(figures, simulated), err
}

// runIdle grows the relay's subtree, looks at it, and takes it down.
func runIdle(ctx context.Context, plan idlePlan, net *idleNet, dir string) (figures []Figure, err error) {
	grow := fleetPlan{devices: idleDevices, relays: 1, cored: filepath.Join("bin", "cored"), dir: dir, host: net.core, enter: net.enter, spools: true}
	core, err := startFleetCore(ctx, grow)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, core.stop()) }()
	if err := errors.Join(core.pushImage(ctx), core.apply(ctx, fleetObjects(1))); err != nil {
		return nil, err
	}
	tree, err := enrolFleet(ctx, core, grow)
	if err != nil {
		return nil, fmt.Errorf("enrol: %w", err)
	}
	ctx, stop := context.WithCancelCause(ctx)
	tree.start(ctx, stop)
	defer func() { stop(nil); err = errors.Join(err, tree.wait()) }()
	if _, _, err := tree.settled(ctx, core, time.Now()); err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	core.http.CloseIdleConnections() // the person's, who shares the wire
	rest, err := lookAtRest(ctx, plan, net, tree)
	if err != nil {
		return nil, fmt.Errorf("rest: %w", err)
	}
	metering, records, err := lookAtMetering(ctx, plan, net, tree)
	if err != nil {
		return nil, fmt.Errorf("metering: %w", err)
	}
	return idleFigures(rest, metering, records), nil
}

func idleFigures(rest, metering idleCount, records uint64) []Figure {
	restDay := rest.perSecond() * 86400 / idleDevices / 1000
	perRecord := (float64(metering.ip()) - rest.perSecond()*metering.over.Seconds()) / float64(records)
	meterDay := perRecord * roundsPerDay / 1000
	f := atMost("idle", restDay+meterDay, "kB/device/day", 50, 50)
	f.Note = fmt.Sprintf("extrapolated: %.1f B/s of the relay at rest *86400 s/%d devices + %.0f B a usage record of %d containers*%d a day; TLS, TCP and IP are in, Ethernet's 14 B a packet are not (%.1f more)",
		rest.perSecond(), idleDevices, perRecord, idleContainers, roundsPerDay, 14*(rest.packetsPerSecond()*86400/idleDevices+float64(metering.packets)/float64(records)*roundsPerDay)/1000)
	r := plain("idle.rest", restDay, "kB/device/day")
	r.Note = fmt.Sprintf("%d B in %d packets in %s", rest.ip(), rest.packets, rest.over.Round(time.Second))
	m := plain("idle.metering", meterDay, "kB/device/day")
	m.Note = fmt.Sprintf("%d B in %d packets for %d records that were acknowledged in %s", metering.ip(), metering.packets, records, metering.over.Round(time.Second))
	return []Figure{f, r, m}
}

// lookAtRest counts from the end of one heartbeat of the relay to the end of another.
func lookAtRest(ctx context.Context, plan idlePlan, net *idleNet, tree *fleetTree) (idleCount, error) {
	beat := func() error {
		relay := tree.boxes[0].link
		for before := relay.Stats().UpOut; relay.Stats().UpOut == before; {
			if err := pause(ctx, 50*time.Millisecond); err != nil {
				return err
			}
		}
		return pause(ctx, 300*time.Millisecond) // its acknowledgement by TCP
	}
	if err := beat(); err != nil {
		return idleCount{}, err
	}
	from, err := net.count()
	if err != nil {
		return idleCount{}, err
	}
	for time.Since(from.at) < plan.rest {
		if err := beat(); err != nil {
			return idleCount{}, err
		}
	}
	to, err := net.count()
	return to.since(from), err
}

// lookAtMetering has all devices record without pause, and counts once that has its
// rhythm. It returns how many records the core acknowledged meanwhile.
func lookAtMetering(ctx context.Context, plan idlePlan, net *idleNet, tree *fleetTree) (c idleCount, records uint64, err error) {
	acked := func() (n uint64) {
		for _, b := range tree.byID {
			n += b.link.Acked()
		}
		return n
	}
	metering, stop := context.WithCancel(ctx)
	g, metering := errgroup.WithContext(metering)
	for i, b := range tree.boxes {
		if !b.relay {
			g.Go(func() error { return b.meter(metering, plan.round, rand.New(rand.NewPCG(2, uint64(i)))) })
		}
	}
	err = func() error {
		if err := pause(metering, plan.warm); err != nil {
			return err
		}
		from, err := net.count()
		if err != nil {
			return err
		}
		before := acked()
		if err := pause(metering, plan.meter); err != nil {
			return err
		}
		to, err := net.count()
		c, records = to.since(from), acked()-before
		return err
	}()
	stop()
	if metered := g.Wait(); !errors.Is(metered, context.Canceled) {
		err = errors.Join(err, metered)
	}
	if want := float64(idleDevices) * float64(plan.meter/plan.round); err == nil && (float64(records) < 0.7*want || float64(records) > 1.3*want) {
		err = fmt.Errorf("%d records were acknowledged where about %.0f were made", records, want)
	}
	return c, records, err
}

// meter records the use of ten containers, an interval of 15 minutes every round.
func (b *fleetBox) meter(ctx context.Context, round time.Duration, r *rand.Rand) error {
	services := []string{"web", "cache", "broker", "db", "agent", "camera", "vision", "mqtt", "modbus", "logs"}
	const quarter = 15 * time.Minute
	if err := pause(ctx, time.Duration(r.Int64N(int64(round)))); err != nil {
		return err
	}
	for from := time.Now(); ; from = from.Add(quarter) {
		u := api.Usage{From: from.UnixMilli(), To: from.Add(quarter).UnixMilli()}
		for i := range idleContainers {
			u.Uses = append(u.Uses, api.ContainerUse{App: fmt.Sprintf("site-app%d", i/3), Service: services[i], RunMillis: uint64(quarter.Milliseconds()),
				CPUMicros: uint64(r.Int64N(20e6)), MemoryByteSeconds: uint64(r.Int64N(200e6)) * 900, RxBytes: uint64(r.Int64N(1e6)), TxBytes: uint64(r.Int64N(1e6))})
		}
		payload, err := record.EncodeUsage(u)
		if err != nil {
			return err
		}
		if _, err := b.link.Append(api.RecordUsage, payload); err != nil {
			return err
		}
		if err := pause(ctx, round); err != nil {
			return err
		}
	}
}

// idleNet is a veth pair from this network to a namespace of its own.
type idleNet struct {
	namespace, device, core string
	enter                   []string
}

func newIdleNet(ctx context.Context) (*idleNet, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("needs root: it makes a network namespace")
	}
	n := &idleNet{namespace: fmt.Sprintf("tb-idle-%d", os.Getpid()), device: fmt.Sprintf("tbi%d", os.Getpid()), core: "10.79.0.2"}
	n.enter = []string{"nsenter", "--net=/run/netns/" + n.namespace, "--"}
	const outerMAC, innerMAC = "02:54:42:00:00:01", "02:54:42:00:00:02"
	steps := []string{
		"ip netns add " + n.namespace,
		"ip -n " + n.namespace + " link set lo up",
		"ip link add " + n.device + " address " + outerMAC + " type veth peer name core netns " + n.namespace + " address " + innerMAC,
		"ip addr add 10.79.0.1/30 dev " + n.device,
		"ip -n " + n.namespace + " addr add " + n.core + "/30 dev core",
		// One segment a packet, or the counters would miss headers; no word of IPv6.
		"ip link set " + n.device + " gso_max_segs 1 addrgenmode none",
		"ip -n " + n.namespace + " link set core gso_max_segs 1 addrgenmode none",
		"ip link set " + n.device + " up",
		"ip -n " + n.namespace + " link set core up",
		// ARP is the Ethernet's own.
		"ip neigh replace " + n.core + " lladdr " + innerMAC + " dev " + n.device + " nud permanent",
		"ip -n " + n.namespace + " neigh replace 10.79.0.1 lladdr " + outerMAC + " dev core nud permanent",
	}
	for _, s := range steps {
		argv := strings.Fields(s)
		if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w: %s", s, err, out), n.close())
		}
	}
	return n, nil
}

// close removes the namespace, and the pair with it.
func (n *idleNet) close() error {
	out, err := exec.Command("ip", "netns", "del", n.namespace).CombinedOutput()
	if err != nil {
		return fmt.Errorf("remove namespace %s: %w: %s", n.namespace, err, out)
	}
	return nil
}

// idleCount is what crossed the pair, both ways, as the kernel counted it.
type idleCount struct {
	at             time.Time
	over           time.Duration
	bytes, packets uint64 // bytes with Ethernet's headers
}

func (n *idleNet) count() (c idleCount, err error) {
	for name, to := range map[string]*uint64{"rx_bytes": &c.bytes, "tx_bytes": &c.bytes, "rx_packets": &c.packets, "tx_packets": &c.packets} {
		b, err := os.ReadFile(filepath.Join("/sys/class/net", n.device, "statistics", name))
		if err != nil {
			return c, err
		}
		v, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
		if err != nil {
			return c, err
		}
		*to += v
	}
	c.at = time.Now()
	return c, nil
}

func (c idleCount) since(from idleCount) idleCount {
	return idleCount{at: c.at, over: c.at.Sub(from.at), bytes: c.bytes - from.bytes, packets: c.packets - from.packets}
}

// ip is without Ethernet's 14 bytes a packet.
func (c idleCount) ip() uint64 { return c.bytes - 14*c.packets }

func (c idleCount) perSecond() float64        { return float64(c.ip()) / c.over.Seconds() }
func (c idleCount) packetsPerSecond() float64 { return float64(c.packets) / c.over.Seconds() }
