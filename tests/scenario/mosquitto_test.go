package scenario

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/story"
	"tributary.dev/tributary/tests/wait"
)

// onMosquitto is a tree whose core has Mosquitto as its broker, set up by cored's command
// and run under Mosquitto's own user.
func onMosquitto(t *testing.T, boxes []lab.BoxSpec) *story.Story {
	t.Helper()
	if err := lab.NeedsMosquitto(); err != nil {
		t.Skip(err)
	}
	return raiseWith(t, lab.Spec{Boxes: boxes, Broker: lab.Mosquitto})
}

// TestStoryOnMosquitto plays the demo over Mosquitto.
func TestStoryOnMosquitto(t *testing.T) {
	s := onMosquitto(t, lab.Tree())
	must(t, s.Play(t.Context()))
}

// TestMosquittoBesideTheCore takes core and broker away one by one, and has a device try
// what it may not. field-2 hangs on the core itself.
func TestMosquittoBesideTheCore(t *testing.T) {
	s := onMosquitto(t, append(pair(), lab.BoxSpec{Name: "field-2", Parent: "core", Role: "spare"}))
	ctx := t.Context()
	must(t, s.Raise(ctx))

	// The core alone is killed. Its children stay connected and have nothing to say for a
	// minute; the core must find them long before.
	sessions := brokerSays(t, s, "New client connected")
	s.Lab.KillCore()
	must(t, s.Lab.StartCore(ctx))
	quick := *s
	quick.Wait = 15 * time.Second
	must(t, quick.Enrolled(ctx))
	if n := brokerSays(t, s, "New client connected") - sessions; n > 2 {
		t.Errorf("%d sessions were begun though only the core was away", n)
	}
	must(t, s.Deploy(ctx))

	// The broker alone is killed, and the app changes meanwhile.
	s.Lab.KillBroker()
	must(t, s.Apply(ctx, "v2.yaml"))
	must(t, s.Lab.StartBroker(ctx))
	must(t, s.AnswerEverywhere(ctx, "version 2"))
	must(t, s.RunningEverywhere(ctx))
	must(t, s.Enrolled(ctx))

	box := s.Lab.Boxes["field-2"]
	box.KillEdged() // its identity is used from here on
	me, err := identity.Load(filepath.Join(box.Data(), "identity"))
	must(t, err)
	relay, err := identity.Load(filepath.Join(s.Lab.Boxes["agg-1"].Data(), "identity"))
	must(t, err)
	trespass(ctx, t, s, box, me, relay.ID().String())

	// Retired, it does not come in again: neither now, nor when core and broker restart.
	_, err = s.Lab.Edgectl(ctx, "", "device", "retire", "field-2")
	must(t, err)
	must(t, lab.Until(ctx, "the retired device is refused", s.Wait, func(ctx context.Context) error { return refused(ctx, box, me) }))
	s.Lab.KillCore()
	s.Lab.KillBroker()
	must(t, s.Lab.StartCore(ctx))
	must(t, refused(ctx, box, me))
	denied := brokerSays(t, s, "Denied PUBLISH from "+me.ID().String())
	c, err := as(ctx, box, me)
	must(t, err)
	c.Publish("u/"+me.ID().String(), 1, false, []byte{0}).WaitTimeout(wait.Limit)
	c.Disconnect(0)
	if brokerSays(t, s, "Denied PUBLISH from "+me.ID().String()) == denied {
		t.Error("a retired device's publication is let through")
	}
	_, err = s.Counted(ctx, "field-1")
	must(t, err)
}

// brokerSays counts lines of the broker's log.
func brokerSays(t *testing.T, s *story.Story, what string) (n int) {
	t.Helper()
	b, err := os.ReadFile(s.Lab.BrokerLog())
	must(t, err)
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, what) {
			n++
		}
	}
	return n
}

// as is a client with a device's certificate in its box's network.
func as(ctx context.Context, box *lab.Box, me *identity.Identity) (paho.Client, error) {
	o := paho.NewClientOptions().AddBroker("tcp://core").SetClientID(me.ID().String()).SetAutoReconnect(false).SetConnectTimeout(wait.Limit).SetProtocolVersion(4)
	o.SetCustomOpenConnectionFn(func(*url.URL, paho.ClientOptions) (net.Conn, error) {
		conn, err := box.Dial(ctx, net.JoinHostPort(box.Uplink.ParentAddr, "8883"))
		if err != nil {
			return nil, err
		}
		return tls.Client(conn, identity.NewLive(me).ClientTLS(identity.CoreName)), nil
	})
	c := paho.NewClient(o)
	tok := c.Connect()
	if !tok.WaitTimeout(wait.Limit) {
		return c, errors.New("no answer to CONNECT")
	}
	return c, tok.Error()
}

// refused tells whether a device can neither hear nor say anything. Mosquitto does not ask
// its plugin about names that come from certificates, so an empty session is all it gets.
func refused(ctx context.Context, box *lab.Box, me *identity.Identity) error {
	c, err := as(ctx, box, me)
	if err != nil {
		return err
	}
	defer c.Disconnect(0)
	own := "d/" + me.ID().String()
	if tok := c.Subscribe(own, 1, nil); !tok.WaitTimeout(wait.Limit) || tok.(*paho.SubscribeToken).Result()[own] != 0x80 {
		return errors.New("it is let in")
	}
	return nil
}

// trespass has an admitted device ask for what is not its own.
func trespass(ctx context.Context, t *testing.T, s *story.Story, box *lab.Box, me *identity.Identity, other string) {
	t.Helper()
	c, err := as(ctx, box, me)
	must(t, err)
	defer c.Disconnect(0)
	for _, filter := range []string{"#", "u/#", "d/" + other, "m/" + other, "+/" + other, "m/+", "$SYS/#", "$CONTROL/#"} {
		tok := c.Subscribe(filter, 1, nil)
		if !tok.WaitTimeout(wait.Limit) || tok.(*paho.SubscribeToken).Result()[filter] != 0x80 {
			t.Errorf("subscribed to %s: %v", filter, tok.Error())
		}
	}
	for _, topic := range []string{"u/" + other, "d/" + other, "m/" + other, "m/" + me.ID().String(), "$CONTROL/dynamic-security/v1"} {
		if tok := c.Publish(topic, 1, false, []byte{0}); !tok.WaitTimeout(wait.Limit) { // MQTT 3.1.1 acknowledges what it denies
			t.Errorf("no answer to a publish on %s: %v", topic, tok.Error())
		}
	}
	if n := brokerSays(t, s, "Denied PUBLISH from "+me.ID().String()); n != 5 {
		t.Errorf("%d of 5 publications were denied", n)
	}
}
