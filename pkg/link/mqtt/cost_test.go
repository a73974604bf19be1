package mqtt

import (
	"context"
	"fmt"
	"testing"

	"tributary.dev/tributary/pkg/api"
)

// What MQTT adds is part of the link's budgets: 27 bytes to take up a session after its
// CONNACK, 19 bytes for a frame. Measured without TLS, which is also the mode for
// measurements.
func TestCost(t *testing.T) {
	p := newParent(t, nil, nil)
	me := api.DeviceID{1, 2, 3}
	b := &box{events: newEvents(), me: me}
	b.Uplink = NewUplink(UplinkConfig{ID: me, Parents: []api.ParentRef{p.ref("core")}, Backoff: quick, Log: logger(t)})
	running(t, func(ctx context.Context) error { return b.Uplink.Run(ctx, b.events) })
	b.wait(t, "up aaaaaaaaaaaaa")
	p.wait(t, fmt.Sprintf("up %s false", me))
	const (
		connect = 47 + 4 // CONNECT with client id and will, CONNACK
		begin   = 22 + 5 // SUBSCRIBE to d/<id>, SUBACK
		publish = 2 + 2 + 15
	)
	total := func() uint64 { r, s := p.Broker.Traffic().Wire(); return r + s }
	p.until(t, "the cost of a session", func() bool { return total() == connect+begin })
	if err := b.Send(make([]byte, 40), false); err != nil {
		t.Fatal(err)
	}
	p.until(t, "the cost of a frame", func() bool { return total() == connect+begin+publish+40 })
	if err := b.Send(make([]byte, 40), true); err != nil { // and 2 of packet id, 4 of PUBACK
		t.Fatal(err)
	}
	p.until(t, "the cost of a reliable frame", func() bool { return total() == connect+begin+2*(publish+40)+6 })
}
