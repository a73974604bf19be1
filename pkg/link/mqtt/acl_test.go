package mqtt

import (
	"context"
	"io"
	"log/slog"
	"net"
	"runtime/metrics"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/tests/mutation"
	"tributary.dev/tributary/tests/wait"
)

// client is a plain paho client with a device's certificate that may call itself
// anything and ask for anything.
func client(t testing.TB, addr string, id *identity.Identity, change func(*paho.ClientOptions)) paho.Client {
	t.Helper()
	o := paho.NewClientOptions().AddBroker("tls://" + addr).SetTLSConfig(identity.NewLive(id).ClientTLS("")).
		SetClientID(id.ID().String()).SetAutoReconnect(false).SetConnectTimeout(wait.Limit).SetProtocolVersion(4)
	if change != nil {
		change(o)
	}
	c := paho.NewClient(o)
	t.Cleanup(func() { c.Disconnect(0) })
	return c
}

func connects(c paho.Client) bool {
	tok := c.Connect()
	return tok.WaitTimeout(wait.Limit) && tok.Error() == nil && c.IsConnectionOpen()
}

// aclHolds has an admitted device try what it may not, against any broker.
func aclHolds(t *testing.T, pki *pki, addr string, me *identity.Identity, victim api.DeviceID) {
	t.Helper()
	for _, filter := range []string{"#", "u/#", "+/" + victim.String(), downTopic(victim), retainedTopic(victim), upTopic(me.ID()), "$SYS/#",
		"$share/g/" + downTopic(victim), "$share/g/" + downTopic(me.ID()), "d/+", "$CONTROL/#"} {
		c := client(t, addr, me, nil)
		if !connects(c) {
			t.Fatalf("an admitted device cannot connect")
		}
		heard := make(chan string, 10)
		tok := c.Subscribe(filter, 1, func(_ paho.Client, m paho.Message) { heard <- m.Topic() })
		tok.WaitTimeout(wait.Limit)
		if granted, ok := tok.(*paho.SubscribeToken).Result()[filter]; ok && granted <= 1 && tok.Error() == nil && c.IsConnectionOpen() {
			t.Errorf("subscribed to %s", filter)
		}
		c.Disconnect(0)
	}
	for _, topic := range []string{upTopic(victim), downTopic(victim), retainedTopic(victim), downTopic(me.ID()), retainedTopic(me.ID()), "$CONTROL/dynamic-security/v1"} {
		c := client(t, addr, me, nil)
		if !connects(c) {
			t.Fatalf("an admitted device cannot connect")
		}
		c.Publish(topic, 1, true, []byte("forged")).WaitTimeout(time.Second)
		c.Disconnect(0)
	}
}

func TestAccessList(t *testing.T) {
	pki := newPKI(t)
	relay, dev, other := pki.device(t), pki.device(t), pki.device(t)
	p := newParent(t, identity.NewLive(relay), nil)
	b := newBox(t, dev, p.ref(""))
	b.wait(t, "up "+relay.ID().String())
	aclHolds(t, pki, p.Addr().String(), other, dev.ID())
	b.FetchRetained()
	p.Send(dev.ID(), []byte("still mine"), true)
	b.wait(t, "down-frame still mine")
	for _, line := range append(b.all(), p.all()...) {
		if line == "down-frame forged" || line == "retained forged" || line == "frame "+dev.ID().String()+" forged" {
			t.Fatalf("heard %q", line)
		}
	}
}

// TestExpiredDevice: a device whose certificate has ended keeps its own topics at its own relay for 90 days. It has no
// others there, no place at another relay, and none after that time; a session that it has then ends.
func TestExpiredDevice(t *testing.T) {
	pki := newPKI(t)
	dev, other := pki.device(t), pki.device(t)
	ended := dev.Cert[0].NotAfter
	// relay is one whose clock stands.
	relay := func(own bool, now time.Time) *parent {
		id := pki.device(t)
		id.Now = func() time.Time { return now }
		live := identity.NewLive(id)
		live.Lapsed = func(d api.DeviceID) bool { return own && d == dev.ID() }
		return newParent(t, live, nil)
	}
	own := relay(true, ended.Add(identity.Grace-time.Hour))
	b := newBox(t, dev, own.ref(""))
	b.wait(t, "up "+own.id.Get().ID().String())
	if err := b.Send([]byte("mine"), true); err != nil {
		t.Fatal(err)
	}
	own.wait(t, "frame "+dev.ID().String()+" mine")
	if err := own.Retain(dev.ID(), []byte("manifest")); err != nil {
		t.Fatal(err)
	}
	b.FetchRetained()
	b.wait(t, "retained manifest")
	own.Send(dev.ID(), []byte("yours"), true)
	b.wait(t, "down-frame yours")
	// Its other sessions try what is not its own; b, which would come back and end them, is away.
	b.stop()
	own.wait(t, "down "+dev.ID().String())
	aclHolds(t, pki, own.Addr().String(), dev, other.ID())
	for _, line := range own.all() {
		if line == "frame "+other.ID().String()+" forged" {
			t.Fatalf("heard %q", line)
		}
	}
	if connects(client(t, own.Addr().String(), other, nil)) {
		t.Error("a device whose certificate has ended is let in at a relay that is not its own")
	}
	if connects(client(t, relay(false, ended.Add(time.Hour)).Addr().String(), dev, nil)) {
		t.Error("it is let in at another relay")
	}
	if connects(client(t, relay(true, ended.Add(identity.Grace+time.Second)).Addr().String(), dev, nil)) {
		t.Error("it is let in after 90 days")
	}
	last := newBox(t, dev, relay(true, ended.Add(identity.Grace-time.Second)).ref(""))
	last.until(t, "the session ends with the 90 days", func() bool { return last.count("down") > 0 })
}

// TestExpiredDeviceIsBound: without one of the checks an expired certificate would be worth more.
func TestExpiredDeviceIsBound(t *testing.T) {
	const test = "^TestExpiredDevice$"
	mutation.Prove(t,
		mutation.Check{Name: "the topic's device", Test: test, File: "broker.go", From: "	if id != cl.ID {\n		return false", To: "	if id != cl.ID && !GONE {\n		return false"},
		mutation.Check{Name: "its own relay", Test: test, File: "../../identity/tls.go", From: "!l.Refused(id)) && l.Lapsed(id)", To: "!l.Refused(id)) && (GONE || l.Lapsed(id))"},
		mutation.Check{Name: "ninety days", Test: test, File: "../../identity/tls.go", From: "l.Lasts(leaf) >= 0", To: "(GONE || l.Lasts(leaf) >= 0)"})
}

func TestConnectRefusals(t *testing.T) {
	pki := newPKI(t)
	relay, dev, other := pki.device(t), pki.device(t), pki.device(t)
	p := newParent(t, identity.NewLive(relay), nil)
	b := newBox(t, dev, p.ref(""))
	b.wait(t, "up "+relay.ID().String())
	for name, change := range map[string]func(*paho.ClientOptions){
		"another's name":    func(o *paho.ClientOptions) { o.SetClientID(dev.ID().String()) },
		"no name":           func(o *paho.ClientOptions) { o.SetClientID("") },
		"some name":         func(o *paho.ClientOptions) { o.SetClientID("inline") },
		"a kept session":    func(o *paho.ClientOptions) { o.SetCleanSession(false) },
		"no keep-alive":     func(o *paho.ClientOptions) { o.SetKeepAlive(0) },
		"a will elsewhere":  func(o *paho.ClientOptions) { o.SetWill(downTopic(dev.ID()), "forged", 1, false) },
		"a will with words": func(o *paho.ClientOptions) { o.SetWill(upTopic(other.ID()), "words", 1, false) },
		"a will to be kept": func(o *paho.ClientOptions) { o.SetBinaryWill(upTopic(other.ID()), farewell, 1, true) },
		"an old protocol":   func(o *paho.ClientOptions) { o.SetProtocolVersion(3) },
	} {
		if connects(client(t, p.Addr().String(), other, change)) {
			t.Errorf("%s: connected", name)
		}
	}
	if n := b.count("down"); n != 0 {
		t.Error("the rightful session was ended by a stranger")
	}
	if !connects(client(t, p.Addr().String(), other, nil)) {
		t.Error("a proper client is refused")
	}
}

// The kernel's queue and the handshake slots are all that a silent stranger gets.
func TestSilentStrangersDoNotBlock(t *testing.T) {
	pki := newPKI(t)
	relay, dev := pki.device(t), pki.device(t)
	p := newParent(t, identity.NewLive(relay), nil)
	for range 200 {
		c, err := net.Dial("tcp", p.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	b := newBox(t, dev, p.ref(""))
	b.wait(t, "up "+relay.ID().String())
	// One device may hold a few connections and no more.
	refused := 0
	for range maxPerDevice + 3 {
		c := client(t, p.Addr().String(), relay, nil)
		if !connects(c) {
			refused++
		}
	}
	if refused == maxPerDevice+3 {
		t.Error("every connection was refused")
	}
}

// A device that takes frames and never acknowledges them is dropped at the bound.
func TestNoAcknowledgement(t *testing.T) {
	pki := newPKI(t)
	relay, dev := pki.device(t), pki.device(t)
	p := newParent(t, identity.NewLive(relay), func(c *BrokerConfig) { c.MaxQueue = 64 << 10 })
	c := client(t, p.Addr().String(), dev, func(o *paho.ClientOptions) { o.SetAutoAckDisabled(true) })
	if !connects(c) {
		t.Fatal("cannot connect")
	}
	c.Subscribe(downTopic(dev.ID()), 1, func(paho.Client, paho.Message) {}).WaitTimeout(wait.Limit)
	p.wait(t, "up "+dev.ID().String()+" true")
	for range 200 {
		if p.Send(dev.ID(), make([]byte, 1<<10), true) != nil {
			break
		}
	}
	p.wait(t, "down "+dev.ID().String())
}

// Frames that are acknowledged or written are taken off the account.
func TestAccountIsKept(t *testing.T) {
	pki := newPKI(t)
	relay, dev := pki.device(t), pki.device(t)
	p := newParent(t, identity.NewLive(relay), nil)
	b := newBox(t, dev, p.ref(""))
	b.wait(t, "up "+relay.ID().String())
	for i := range 50 {
		if err := p.Send(dev.ID(), make([]byte, 1<<10), i%2 == 0); err != nil {
			t.Fatal(err)
		}
	}
	conn := peerOf(p.known(dev.ID()))
	b.until(t, "an even account", func() bool { return conn.queued.Load() == 0 && b.count("down-frame 1024 bytes") == 50 })
}

// heapCap is what the heap may hold while hostile input comes in.
const heapCap = 256 << 20

func checkHeap(t testing.TB) {
	t.Helper()
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	if n := sample[0].Value.Uint64(); n > heapCap {
		t.Fatalf("heap of %d bytes", n)
	}
}

// FuzzBroker sends arbitrary bytes, after the handshake, from a device that is let in.
// The broker must live on and serve another.
func FuzzBroker(f *testing.F) {
	connect := []byte{0x10, 0x19, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, 13, 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'm'}
	f.Add(connect)
	for _, tail := range [][]byte{
		{0x30, 0xff, 0xff, 0xff, 0x7f},           // a publish of 256 MiB
		{0x30, 0xff, 0xff, 0xff, 0xff, 0x7f},     // a length of 5 bytes
		{0x32, 0x05, 0, 1, 'x', 0, 0},            // QoS 1 with packet id 0
		{0x82, 0x06, 0, 1, 0, 1, '#', 1},         // subscribe to #
		{0x82, 0x02, 0, 1},                       // subscribe to nothing
		{0xa2, 0x02, 0, 1}, {0xc0, 0}, {0xe0, 0}, // unsubscribe, ping, disconnect
		{0x40, 0x02, 0, 9}, {0x50, 0x02, 0, 9}, {0x62, 0x02, 0, 9}, {0x70, 0x02, 0, 9}, {0xf0, 0}, {0x00, 0},
	} {
		f.Add(append(append([]byte(nil), connect...), tail...))
	}
	f.Add([]byte{0x10, 0x1a, 0, 4, 'M', 'Q', 'T', 'T', 5, 2, 0, 60, 0xff, 0xff, 0xff, 0x7f, 0, 0})
	b, err := NewBroker(BrokerConfig{Listener: listen(f), Log: slog.New(slog.DiscardHandler), MaxQueue: 1 << 20})
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { b.Run(ctx, newEvents()); close(done) }()
	f.Cleanup(func() { cancel(); <-done })
	f.Fuzz(func(t *testing.T, input []byte) {
		c, err := net.Dial("tcp", b.Addr().String())
		if err != nil {
			t.Fatalf("the broker is gone: %v", err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		c.Write(input)
		c.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, io.LimitReader(c, 1<<20))
		checkHeap(t)
	})
}

// FuzzParent plays a parent that sends arbitrary bytes after a proper CONNACK and SUBACK:
// the client library must not be brought to panic, nor to allocate what is announced.
func FuzzParent(f *testing.F) {
	f.Add([]byte{0x30, 0xff, 0xff, 0xff, 0x7f, 0, 1})
	f.Add([]byte{0x90, 0x04, 0, 1, 0, 0})
	f.Add([]byte{0x90, 0x03, 0, 1, 0})
	f.Add([]byte{0x90, 0x03, 0, 2, 0})
	f.Add([]byte{0x34, 0x05, 0, 1, 'x', 0, 1})
	f.Add([]byte{0x36, 0x03, 0, 9, 'x'})
	f.Add([]byte{0x30, 0x02, 0, 9})
	f.Add([]byte{0x62, 0x02, 0, 1})
	f.Add([]byte{0xd0, 0x00, 0x40, 0x02, 0, 1, 0x20, 0x02, 0, 0, 0xb0, 0x02, 0, 1})
	me := api.DeviceID{1}
	down := append([]byte{0x30, 0, 0, 15}, downTopic(me)...)
	down = append(down, "frame"...)
	down[1] = byte(len(down) - 2)
	f.Add(down)
	f.Fuzz(func(t *testing.T, input []byte) {
		a, b := net.Pipe()
		go func() {
			defer a.Close()
			a.SetDeadline(time.Now().Add(5 * time.Second))
			buf := make([]byte, 256)
			a.Read(buf) // CONNECT
			a.Write([]byte{0x20, 2, 0, 0})
			n, _ := a.Read(buf) // SUBSCRIBE
			if n < 4 {
				return
			}
			a.Write([]byte{0x90, 3, buf[2], buf[3], 1})
			a.Write(input)
		}()
		s, err := open(t.Context(), sessionConfig{addr: "x:1", clientID: me.String(), subscribe: []string{downTopic(me)}, keepAlive: time.Minute,
			maxQueue: 1 << 20, traffic: &Traffic{}, log: slog.New(slog.DiscardHandler),
			dial: func(context.Context, string, string) (net.Conn, error) { return b, nil }})
		if err != nil {
			return
		}
		for {
			select {
			case m := <-s.events:
				if len(m.payload) > maxPacket {
					t.Fatal("oversize")
				}
				continue
			case <-s.done:
			}
			break
		}
		s.finish(nil)
		checkHeap(t)
	})
}

func FuzzDynsecAnswer(f *testing.F) {
	f.Add([]byte(`{"responses":[{"command":"createRole","error":"Role already exists","correlationData":"1"}]}`))
	f.Add([]byte(`{"responses":null}`))
	f.Add([]byte(`{"responses":[{"command":"listClients","data":{"totalCount":2,"count":1,"clients":["core"]},"correlationData":"2"}]}`))
	f.Add([]byte(`{"responses":[{"command":"getClient","data":{"client":{"username":"core","roles":[{"rolename":"tributary-core"}]}}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) { decodeAnswer(b) })
}
