package main

import (
	"context"
	"errors"
	"net"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/mqtt"
)

// carrier is a broker between the core and its children.
type carrier interface {
	link.Downlink
	Traffic() *mqtt.Traffic
}

// openBroker makes the embedded broker, or the way to one that stands beside the core.
func (c *core) openBroker() error {
	c.orders = make(chan func(context.Context), 256)
	if c.o.broker != "" {
		cfg := mqtt.ExternalConfig{Address: strings.TrimPrefix(c.o.broker, "mqtts://"), TLS: c.live.ClientTLS(identity.CoreName), Log: c.log}
		if c.shared() {
			id, err := c.ca.Replica(c.brokerName())
			if err != nil {
				return err
			}
			c.member = identity.NewLive(id)
			cfg.Out = c.roster.TurnedAway
			cfg.Username, cfg.Introduce, cfg.TLS = c.brokerName(), cfg.TLS, c.member.ClientTLS(identity.CoreName)
		}
		c.external = mqtt.NewExternal(cfg)
		c.broker = c.external
		// Remembered till there is a session; then the broker learns of all.
		if err := c.admit(context.Background(), c.roster.AllActive()...); err != nil {
			return err
		}
		return nil
	}
	ln, err := net.Listen("tcp", c.o.mqtt)
	if err != nil {
		return err
	}
	c.broker, err = mqtt.NewBroker(mqtt.BrokerConfig{Listener: ln, Identity: c.live, Log: c.log})
	return err
}

// mqttAddress is where devices find the broker.
func (c *core) mqttAddress() string {
	if b, ok := c.broker.(*mqtt.Broker); ok {
		return b.Addr().String()
	}
	return c.o.broker
}

// orderLimit bounds one order to a broker that stands beside the core.
const orderLimit = 10 * time.Second

// admit has such a broker let devices in. While it is away that is made good later.
func (c *core) admit(ctx context.Context, ids ...api.DeviceID) error {
	if c.external == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, orderLimit)
	defer cancel()
	if err := c.external.Admit(ctx, ids...); err != nil && !errors.Is(err, link.ErrDown) {
		return &api.Error{Code: api.Unavailable, Message: "the broker does not let the device in just now", Remedy: "try again", Err: err}
	}
	return nil
}

// came is told by the roster of devices that may take part.
func (c *core) came(id api.DeviceID) {
	if c.external == nil {
		return // the embedded broker asks the roster; while that opens, there is none
	}
	c.orders <- func(ctx context.Context) {
		if err := c.admit(ctx, id); err != nil {
			c.log.Warn("a device is not let in", "device", id, "err", err)
		}
	}
}

// gone is told by the roster of devices that may take part no more.
func (c *core) gone(id api.DeviceID) {
	if c.end == nil {
		return // while the roster opens, there is no link to tell
	}
	c.end.Forget(id)
	if c.external == nil {
		return
	}
	c.orders <- func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, orderLimit)
		defer cancel()
		if err := c.external.Dismiss(ctx, id); err != nil && !errors.Is(err, link.ErrDown) { // that is made good
			c.log.Warn("the broker did not put a device out; its frames are not believed all the same", "device", id, "err", err)
		}
	}
}

// brokerWarning is how long before its end a certificate of the broker is spoken of: it
// lives 180 days and can be renewed from two thirds of that on.
const brokerWarning = 45 * 24 * time.Hour

// checkBroker reminds of a broker's certificate, which cored cannot renew itself.
func (c *core) checkBroker() {
	if c.external == nil {
		return
	}
	if end := c.external.Expires(); !end.IsZero() && time.Until(end) < brokerWarning {
		c.log.Warn("the broker's certificate ends soon; run `cored mosquitto-config` again and have the broker reload", "end", end)
	}
}

// order gives the broker its orders, one after the other.
func (c *core) order(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case do := <-c.orders:
			do(ctx)
		}
	}
}
