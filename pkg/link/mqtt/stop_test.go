package mqtt

import (
	"context"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/tests/wait"
)

// Both sides end promptly at whatever moment of a connection's life they are told to.
func TestStopAtAnyMoment(t *testing.T) {
	pki := newPKI(t)
	relay, dev := pki.device(t), pki.device(t)
	rounds := 60
	if testing.Short() {
		rounds = 15
	}
	for i := range rounds {
		b, err := NewBroker(BrokerConfig{Listener: listen(t), Identity: identity.NewLive(relay), Log: logger(t)})
		if err != nil {
			t.Fatal(err)
		}
		u := NewUplink(UplinkConfig{Identity: identity.NewLive(dev), Backoff: quick, Log: logger(t)})
		ref := (&parent{Broker: b}).ref("")
		u.SetParents(append(u.ladder.parents, ref))
		ctx, cancel := context.WithCancel(t.Context())
		ends := make(chan string, 2)
		go func() { b.Run(ctx, newEvents()); ends <- "broker" }()
		go func() { u.Run(ctx, newEvents()); ends <- "uplink" }()
		time.AfterFunc(time.Duration(i)*150*time.Microsecond, cancel)
		first := wait.For(t, "the end of one side", ends)
		wait.For(t, "the end of the other side than the "+first, ends)
	}
}
