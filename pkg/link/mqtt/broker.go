package mqtt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link"
)

// BrokerConfig is what Broker needs. Zero values mean the defaults.
type BrokerConfig struct {
	// Listener accepts TCP; TLS is the broker's own. Run closes it.
	Listener net.Listener
	// Identity is the parent's own; its Refused turns retired devices away. nil means no
	// TLS, and any client id is believed: for measurements on one machine.
	Identity *identity.Live
	// MaxQueue bounds the bytes on their way to one child; past it the child is dropped.
	// Default 16 MiB.
	MaxQueue int
	Traffic  *Traffic
	Log      *slog.Logger
}

// Bounds of the embedded broker.
const (
	pendingWrites = 2048  // packets that wait for one child, 8 bytes each beforehand
	maxInflight   = 16384 // packets of QoS 1 that one child has not acknowledged
	maxClients    = 16384
	sysInterval   = 24 * 3600 // seconds; each round of $SYS stops the world for a moment
)

// Broker is a parent's way to its children; it implements link.Downlink over the
// embedded mochi broker.
type Broker struct {
	cfg    BrokerConfig
	gate   *gate
	server *mochi.Server

	refused  refusals
	mu       sync.Mutex
	handler  link.DownlinkHandler
	children map[api.DeviceID]*child
}

var _ link.Downlink = (*Broker)(nil)

// child serialises what the handler hears of one device: of two connections that
// overlap, each has its own goroutine in the broker.
type child struct {
	id api.DeviceID
	mu sync.Mutex

	cur     sync.Mutex // guards session; never held while the handler runs
	session *mochi.Client
}

func (c *child) current() *mochi.Client {
	c.cur.Lock()
	defer c.cur.Unlock()
	return c.session
}

func (c *child) set(cl *mochi.Client) {
	c.cur.Lock()
	defer c.cur.Unlock()
	c.session = cl
}

// NewBroker makes a broker. Retain may be called before Run.
func NewBroker(cfg BrokerConfig) (*Broker, error) {
	if cfg.MaxQueue <= 0 {
		cfg.MaxQueue = defaultQueue
	}
	if cfg.Traffic == nil {
		cfg.Traffic = &Traffic{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	caps := mochi.NewDefaultServerCapabilities()
	caps.MaximumClients = maxClients
	caps.MaximumClientWritesPending = pendingWrites
	caps.MaximumPacketSize = maxPacket
	caps.MaximumInflight = maxInflight
	caps.MaximumQos = 1
	caps.MaximumMessageExpiryInterval = 0 // else retained manifests would go after a day
	caps.MaximumSessionExpiryInterval = 0
	caps.MinimumProtocolVersion = 4
	caps.SharedSubAvailable, caps.WildcardSubAvailable, caps.SubIDAvailable = 0, 0, 0
	b := &Broker{cfg: cfg, children: map[api.DeviceID]*child{}}
	b.server = mochi.New(&mochi.Options{
		Capabilities: caps, InlineClient: true, SysTopicResendInterval: sysInterval,
		// Its warnings carry whole packets, which a hostile child may send at will.
		Logger: slog.New(onlyErrors{cfg.Log.Handler()}),
	})
	if err := b.server.AddHook(&hook{b: b}, nil); err != nil {
		return nil, err
	}
	b.gate = newGate(cfg.Listener, cfg.Identity, cfg.Traffic, cfg.Log)
	return b, nil
}

// Traffic is what crossed the ways to all children.
func (b *Broker) Traffic() *Traffic { return b.cfg.Traffic }

// Addr is where the broker listens.
func (b *Broker) Addr() net.Addr { return b.cfg.Listener.Addr() }

// Run implements link.Downlink.
func (b *Broker) Run(ctx context.Context, h link.DownlinkHandler) error {
	b.mu.Lock()
	b.handler = h
	b.mu.Unlock()
	if err := b.server.AddListener(b.gate); err != nil {
		return err
	}
	if err := b.server.Serve(); err != nil {
		return err
	}
	<-ctx.Done()
	b.gate.shut()
	return errors.Join(b.server.Close(), ctx.Err())
}

func (b *Broker) child(id api.DeviceID) *child {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.children[id]
	if c == nil {
		c = &child{id: id}
		b.children[id] = c
	}
	return c
}

// known is child without making one.
func (b *Broker) known(id api.DeviceID) *mochi.Client {
	b.mu.Lock()
	c := b.children[id]
	b.mu.Unlock()
	if c == nil {
		return nil
	}
	return c.current()
}

// Send implements link.Downlink.
func (b *Broker) Send(id api.DeviceID, frame []byte, reliable bool) error {
	cl := b.known(id)
	if cl == nil || cl.Closed() {
		return link.ErrDown
	}
	conn := peerOf(cl)
	if n := conn.queued.Add(int64(len(frame))); n > int64(b.cfg.MaxQueue) || reliable && cl.State.Inflight.Len() >= maxInflight-1 {
		b.drop(cl, fmt.Errorf("child is too slow: %d bytes wait for it", n))
		return link.ErrDown
	}
	return b.server.Publish(downTopic(id), bytes.Clone(frame), false, qos(reliable))
}

// Retain implements link.Downlink.
func (b *Broker) Retain(id api.DeviceID, raw []byte) error {
	return b.server.Publish(retainedTopic(id), bytes.Clone(raw), true, 1)
}

// Kick implements link.Downlink.
func (b *Broker) Kick(id api.DeviceID, reason string) {
	if cl := b.known(id); cl != nil {
		b.drop(cl, errors.New(reason))
	}
}

// drop closes a child's connection; its goroutine in the broker tells the handler.
func (b *Broker) drop(cl *mochi.Client, why error) {
	if !cl.Closed() {
		b.cfg.Log.Warn("child dropped", "device", cl.ID, "err", why)
	}
	cl.Stop(why)
}

func (b *Broker) up(cl *mochi.Client) {
	id, err := api.ParseDeviceID(cl.ID)
	if err != nil {
		return
	}
	c := b.child(id)
	c.mu.Lock()
	defer c.mu.Unlock()
	if cl.Closed() || c.current() == cl {
		return
	}
	c.set(cl)
	b.handler.ChildUp(id, peerOf(cl).cert)
}

func (b *Broker) down(cl *mochi.Client) {
	id, err := api.ParseDeviceID(cl.ID)
	if err != nil {
		return
	}
	c := b.child(id)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current() == cl { // else another connection of the device has taken over
		c.set(nil)
		b.handler.ChildDown(id)
	}
}

func (b *Broker) receive(cl *mochi.Client, frame []byte) {
	id, err := api.ParseDeviceID(cl.ID)
	if err != nil || isFarewell(frame) || len(frame) > link.MaxFrame {
		return
	}
	c := b.child(id)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current() == cl {
		b.handler.FromChild(id, frame)
	}
}

func peerOf(cl *mochi.Client) *peerConn {
	c, ok := cl.Net.Conn.(*peerConn)
	if !ok { // the inline client, which has no connection
		return &peerConn{}
	}
	return c
}

// hook is the broker's side of mochi's events: who may connect, publish and subscribe,
// and what becomes of what they publish.
type hook struct {
	mochi.HookBase
	b *Broker
}

func (*hook) ID() string { return "tributary" }

func (*hook) Provides(what byte) bool {
	switch what {
	case mochi.OnConnect, mochi.OnConnectAuthenticate, mochi.OnSessionEstablish, mochi.OnACLCheck, mochi.OnSubscribed, mochi.OnPublish,
		mochi.OnDisconnect, mochi.OnPacketRead, mochi.OnPacketSent, mochi.OnPublishDropped, mochi.OnWill:
		return true
	}
	return false
}

// OnConnect refuses what no device of ours asks for, before it costs anything: other
// protocol versions, sessions to be kept, no keep-alive (a dead peer would be kept for
// ever), and wills elsewhere (the broker would publish them unchecked).
func (h *hook) OnConnect(cl *mochi.Client, pk packets.Packet) error {
	err := admissible(cl, pk)
	if err != nil {
		h.refuse(cl, "connect", cl.ID, err)
	}
	return err
}

func admissible(cl *mochi.Client, pk packets.Packet) error {
	switch {
	case pk.ProtocolVersion != 4:
		return packets.ErrUnsupportedProtocolVersion
	case !pk.Connect.Clean, pk.Connect.Keepalive == 0:
		return packets.ErrImplementationSpecificError
	case pk.Connect.WillFlag && (pk.Connect.WillTopic != upPrefix+cl.ID || !isFarewell(pk.Connect.WillPayload) || pk.Connect.WillRetain):
		return packets.ErrNotAuthorized
	}
	return nil
}

// OnConnectAuthenticate holds the client id against the certificate.
func (h *hook) OnConnectAuthenticate(cl *mochi.Client, _ packets.Packet) bool {
	id, err := api.ParseDeviceID(cl.ID)
	ok := err == nil && !id.IsZero() && (h.b.cfg.Identity == nil || id == peerOf(cl).id)
	if !ok {
		h.refuse(cl, "connect", cl.ID, errors.New("the client id is not that of the certificate"))
	}
	return ok
}

// OnSessionEstablish runs before the broker looks for an older session of the client.
func (h *hook) OnSessionEstablish(cl *mochi.Client, _ packets.Packet) {
	if c := peerOf(cl); c.raw != nil {
		h.b.gate.turn(cl.ID, c)
	}
}

// OnACLCheck is the whole of the access list. Filters are compared as text, so no
// wildcard and no shared subscription passes.
func (h *hook) OnACLCheck(cl *mochi.Client, topic string, write bool) bool {
	ok := allowed(cl, topic, write)
	if !ok {
		what := "subscribe"
		if write {
			what = "publish"
		}
		h.refuse(cl, what, topic, errors.New("the topic is not this device's"))
	}
	return ok
}

func allowed(cl *mochi.Client, topic string, write bool) bool {
	prefix, id := "", ""
	if len(topic) > 2 {
		prefix, id = topic[:2], topic[2:]
	}
	if id != cl.ID {
		return false
	}
	if write {
		return prefix == upPrefix
	}
	return prefix == downPrefix || prefix == retainedPrefix
}

// OnSubscribed begins the session: from here on what is sent down arrives.
func (h *hook) OnSubscribed(cl *mochi.Client, pk packets.Packet, codes []byte) {
	for i, f := range pk.Filters {
		if f.Filter == downPrefix+cl.ID && codes[i] <= 1 {
			h.b.up(cl)
		}
	}
}

func (h *hook) OnDisconnect(cl *mochi.Client, _ error, _ bool) { h.b.down(cl) }

// OnPublish hands the frame to the link. Nobody subscribes to u/, and nothing of a child
// is retained: to the broker the packet ends here.
func (h *hook) OnPublish(cl *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	if cl.Net.Inline {
		return pk, nil
	}
	h.b.receive(cl, pk.Payload)
	return pk, packets.CodeSuccessIgnore
}

// OnWill keeps the broker from publishing wills: the link hears of the end by itself.
func (*hook) OnWill(*mochi.Client, mochi.Will) (mochi.Will, error) {
	return mochi.Will{TopicName: "void"}, nil
}

// OnPacketRead sees acknowledgements before the broker forgets what they are of.
func (*hook) OnPacketRead(cl *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	if pk.FixedHeader.Type == packets.Puback {
		if of, ok := cl.State.Inflight.Get(pk.PacketID); ok && of.FixedHeader.Type == packets.Publish {
			uncharge(cl, of)
		}
	}
	return pk, nil
}

func (*hook) OnPacketSent(cl *mochi.Client, pk packets.Packet, _ []byte) {
	if pk.FixedHeader.Type == packets.Publish && pk.FixedHeader.Qos == 0 {
		uncharge(cl, pk)
	}
}

// OnPublishDropped meets a child whose queue of packets is full. A frame left out in the
// middle would be missed for long; a new session starts with what is missing.
func (h *hook) OnPublishDropped(cl *mochi.Client, _ packets.Packet) {
	h.b.drop(cl, errors.New("child is too slow: its queue is full"))
}

// uncharge takes a frame off the bytes on their way. Retained manifests are never charged.
func uncharge(cl *mochi.Client, pk packets.Packet) {
	if len(pk.TopicName) > 2 && pk.TopicName[:2] == downPrefix {
		peerOf(cl).queued.Add(-int64(len(pk.Payload)))
	}
}

// onlyErrors passes errors on.
type onlyErrors struct{ slog.Handler }

func (h onlyErrors) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelError && h.Handler.Enabled(ctx, l)
}
func (h onlyErrors) WithAttrs(a []slog.Attr) slog.Handler { return onlyErrors{h.Handler.WithAttrs(a)} }
func (h onlyErrors) WithGroup(g string) slog.Handler      { return onlyErrors{h.Handler.WithGroup(g)} }
