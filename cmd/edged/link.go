package main

import (
	"context"
	"encoding/binary"
	"net"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/agent"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/mqtt"
	"tributary.dev/tributary/pkg/link/names"
	"tributary.dev/tributary/pkg/link/proxy"
	"tributary.dev/tributary/pkg/manifest"
)

// makeLink joins state, spool and identity to the link, over MQTT to the parent and,
// on a relay, to the children.
func (b *box) makeLink(context.Context) error {
	live := b.member.Live
	b.parents = agent.NewParents(agent.ParentsConfig{
		Live: live, First: b.o.parents, Count: b.https.Wrap, Dial: b.dial(30 * time.Second), Log: b.log,
		Attach: func(list []api.ParentRef) { b.uplink.SetParents(list) },
		Current: func() (string, bool) {
			if b.link == nil {
				return "", false
			}
			return b.link.Parent()
		},
	})
	b.uplink = mqtt.NewUplink(mqtt.UplinkConfig{Identity: live, Parents: b.parents.List(), Leads: b.parents.Leads, Refused: b.member.TurnedAway, Dial: b.dial(-1), Log: b.log})
	var down link.Downlink
	if b.o.relay {
		broker, err := mqtt.NewBroker(mqtt.BrokerConfig{Listener: b.listen.mqtt, Identity: live, Log: b.log})
		if err != nil {
			return err
		}
		down = broker
	}
	if b.state.Origin().Rebuilt() { // numbers that were told to others must not be used again
		if err := link.Restored(b.state); err != nil {
			return err
		}
	}
	me := live.Get()
	var err error
	b.link, err = link.NewEndpoint(link.EndpointConfig{
		RelayConfig: link.RelayConfig{
			Config: link.Config{Rand: random, Log: b.log},
			Self:   me.ID(), Cert: me.Cert[0].Raw, Store: b.state, Spool: b.spool, Keys: link.KeysOf(live),
		},
		Uplink: parentWatch{b.uplink, b.parents}, Downlink: down, Below: b.prefetch, Now: b.clock.Now,
		CoreTime: func(unix int64) {
			if err := b.clock.Raise(time.Unix(unix, 0)); err != nil {
				b.log.Warn("the clock's floor is not written down", "err", err)
			}
		},
	})
	if err == nil {
		live.Refused, live.Lapsed = b.link.Revoked, b.link.Adopted // nobody is served before this
	}
	return err
}

// doubt has the box ask for its place when the core never answers, though relays say that
// there is a way to it, and ends its worry when the core does.
func (b *box) doubt(ctx context.Context) error {
	look := time.NewTicker(15 * time.Second)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
		}
		if slices.ContainsFunc(b.link.Warnings(), func(w api.Warning) bool { return w.Name == "core-silent" }) {
			b.member.TurnedAway()
		} else if _, attached := b.link.Parent(); attached {
			b.member.Welcome()
		}
	}
}

// dial reaches parents, by the proxy of the moment if there is one, and by names that some uplink's name servers know.
func (b *box) dial(keepAlive time.Duration) proxy.Dial {
	direct := names.Through(func() names.Networks { return names.Read(b.o.uplinks) }, (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: keepAlive}).DialContext)
	return proxy.Through(proxy.FromFile(b.o.proxyFile), direct, net.InterfaceAddrs)
}

// parentWatch tells Parents when a session begins, so that what failed is tried again.
type parentWatch struct {
	link.Uplink
	parents *agent.Parents
}

func (w parentWatch) Run(ctx context.Context, h link.UplinkHandler) error {
	return w.Uplink.Run(ctx, parentHandler{h, w.parents})
}

type parentHandler struct {
	link.UplinkHandler
	parents *agent.Parents
}

func (h parentHandler) ParentUp(parent api.DeviceID) {
	h.UplinkHandler.ParentUp(parent)
	h.parents.Moved()
}

// prefetch tells the relay's server what the devices below will ask for.
func (b *box) prefetch(list []*manifest.Signed) {
	if b.serve == nil {
		return
	}
	for _, s := range list {
		b.serve.Named(s.Manifest.Device, s.Manifest.Refs())
	}
}

// steadyBeats is how many health intervals a better parent must have answered before the
// box goes back to it: 3 min by default.
const steadyBeats = 3

func (b *box) linkSettings(s api.DeviceSettings) {
	b.link.SetHealth(time.Duration(s.HealthInterval))
	b.uplink.SetSteady(steadyBeats * time.Duration(s.HealthInterval))
}

// random names feeds and spreads attempts.
func random() uint64 {
	var b [8]byte
	if _, err := randReader.Read(b[:]); err != nil {
		return uint64(time.Now().UnixNano())
	}
	return binary.BigEndian.Uint64(b[:])
}

// linkBytes are the bytes of the uplink by class and direction: the link's own frames,
// and the rest of what crossed TCP (headers, TLS, pings) as "other".
func (b *box) linkBytes(count func(class, direction string, n uint64)) {
	stats := b.link.Stats()
	received, sent := b.uplink.Traffic().Wire()
	for _, side := range []struct {
		direction string
		wire      uint64
		frames    [4]uint64
	}{{"received", received, stats.UpIn}, {"sent", sent, stats.UpOut}} {
		rest := side.wire
		for class, n := range side.frames {
			if c := link.Class(class); c != link.ClassOther {
				count(c.String(), side.direction, n)
				rest -= min(n, rest)
			}
		}
		count(link.ClassOther.String(), side.direction, rest)
	}
}
