package mqtt

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"sync"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/link"
)

// sessionConfig is what one session with a broker needs.
type sessionConfig struct {
	addr      string
	tls       *tls.Config // nil: no TLS, for measurements
	clientID  string
	username  string
	password  string
	willTopic string // empty: no will; else farewell there, QoS 1
	subscribe []string
	keepAlive time.Duration
	maxQueue  int
	traffic   *Traffic
	log       *slog.Logger
	dial      func(ctx context.Context, network, addr string) (net.Conn, error)
}

// message is something that came in.
type message struct {
	topic   string
	payload []byte
}

// session is one life of a connection: it is opened, carries, ends, and is not used
// again.
type session struct {
	cfg    sessionConfig
	conn   net.Conn
	state  tls.ConnectionState // zero without TLS
	client paho.Client
	out    outbox
	events chan message
	done   chan struct{} // closed by end
	lost   chan struct{} // closed when paho has let go of the connection

	once sync.Once
	err  error
}

// inboundDepth is how many messages may wait for the handler before the connection is
// no longer read.
const inboundDepth = 32

// open dials, shakes hands, connects and subscribes.
func open(ctx context.Context, cfg sessionConfig) (*session, error) {
	s := &session{cfg: cfg, events: make(chan message, inboundDepth), done: make(chan struct{}), lost: make(chan struct{})}
	s.out.init(cfg.maxQueue)
	if err := s.dial(ctx); err != nil {
		return nil, err
	}
	s.client = paho.NewClient(s.options())
	// The token fails when the connection does: closing it ends the wait.
	stop := context.AfterFunc(ctx, func() { s.conn.Close() })
	defer stop()
	if err := s.wait(s.client.Connect()); err != nil {
		s.conn.Close()
		return nil, fmt.Errorf("connect: %w", err)
	}
	if err := s.subscribeAll(); err != nil {
		return nil, s.finish(err)
	}
	go s.pump()
	return s, nil
}

func (s *session) dial(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	raw, err := s.cfg.dial(ctx, "tcp", s.cfg.addr)
	if err != nil {
		return err
	}
	tune(raw)
	var conn net.Conn = &countingConn{raw, s.cfg.traffic}
	if s.cfg.tls != nil {
		t := tls.Client(conn, s.cfg.tls)
		if err := t.HandshakeContext(ctx); err != nil {
			raw.Close()
			return fmt.Errorf("TLS: %w", err)
		}
		s.state = t.ConnectionState()
		conn = t
	}
	s.conn = &guardedConn{Conn: conn}
	return nil
}

// tune turns off TCP's own keep-alive, whose probes every 15 s would cost more than all
// that an idle link sends, and has the kernel give up on bytes that stay unacknowledged.
func tune(c net.Conn) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	t.SetKeepAlive(false)
	if rc, err := t.SyscallConn(); err == nil {
		rc.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout/time.Millisecond))
		})
	}
}

func (s *session) options() *paho.ClientOptions {
	o := paho.NewClientOptions()
	o.AddBroker("tcp://" + s.cfg.addr)
	o.SetCustomOpenConnectionFn(func(*url.URL, paho.ClientOptions) (net.Conn, error) { return s.conn, nil })
	o.SetProtocolVersion(4)
	o.SetClientID(s.cfg.clientID)
	o.SetUsername(s.cfg.username)
	o.SetPassword(s.cfg.password)
	o.SetCleanSession(true)
	o.SetAutoReconnect(false)
	o.SetConnectRetry(false)
	o.SetConnectTimeout(handshakeTimeout)
	o.SetWriteTimeout(writeTimeout)
	o.SetKeepAlive(s.cfg.keepAlive)
	o.SetPingTimeout(handshakeTimeout)
	o.SetStore(forgetful{})
	o.SetOrderMatters(true)
	if s.cfg.willTopic != "" {
		o.SetBinaryWill(s.cfg.willTopic, farewell, 1, false)
	}
	o.SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) {
		select {
		case s.events <- message{m.Topic(), m.Payload()}:
		case <-s.done:
		}
	})
	o.SetConnectionLostHandler(func(_ paho.Client, err error) {
		s.end(err)
		close(s.lost)
	})
	return o
}

func (s *session) subscribeAll() error {
	want := map[string]byte{}
	for _, t := range s.cfg.subscribe {
		want[t] = 1
	}
	// The library blocks for long when the connection ends just now: do not wait for it.
	result := make(chan error, 1)
	go func() { result <- s.subscribed(s.client.SubscribeMultiple(want, nil)) }()
	select {
	case err := <-result:
		return err
	case <-s.done:
		return fmt.Errorf("subscribe: %w", s.err)
	}
}

// subscribed waits for a subscription and tells whether the broker took it.
func (s *session) subscribed(token paho.Token) error {
	if err := s.wait(token); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	for topic, granted := range token.(*paho.SubscribeToken).Result() {
		if granted > 1 {
			return fmt.Errorf("subscribe: the broker refuses %s", topic)
		}
	}
	return nil
}

// confirm ends the session when a later subscription fails.
func (s *session) confirm(token paho.Token) {
	if err := s.subscribed(token); err != nil {
		s.end(err)
	}
}

func (s *session) wait(t paho.Token) error {
	if !t.WaitTimeout(handshakeTimeout) {
		return errors.New("no answer in time")
	}
	return t.Error()
}

// end ends the session. The connection is closed without a DISCONNECT, so that any broker
// publishes the last will and the other side knows. It may be called from anywhere, also
// from within handlers.
func (s *session) end(err error) {
	s.once.Do(func() {
		s.err = err
		close(s.done)
		s.out.close()
		s.conn.Close()
	})
}

// finish ends the session and waits until the library has let go.
func (s *session) finish(err error) error {
	s.end(err)
	select {
	case <-s.lost:
	case <-time.After(handshakeTimeout):
		s.cfg.log.Warn("mqtt client does not let go of its connection", "addr", s.cfg.addr)
	}
	return s.err
}

// op is one thing to hand to the client library.
type op struct {
	topic       string
	payload     []byte
	qos         byte
	retain      bool
	subscribe   bool // to topic, nothing published
	unsubscribe bool
}

// push queues an op; it fails with link.ErrDown when the session has ended, and ends it
// when the queue has grown past its bound: the peer is too slow, and a frame left out in
// the middle would be missed for long.
func (s *session) push(o op) error {
	switch s.out.push(o) {
	case pushed:
		return nil
	case overflow:
		s.end(fmt.Errorf("more than %d bytes wait to be sent", s.cfg.maxQueue))
	}
	return link.ErrDown
}

// pump hands queued ops to the library, which blocks while the socket is full.
func (s *session) pump() {
	for {
		o, ok := s.out.pop()
		if !ok {
			return
		}
		switch {
		case o.subscribe:
			go s.confirm(s.client.Subscribe(o.topic, 1, nil))
		case o.unsubscribe:
			s.client.Unsubscribe(o.topic)
		default:
			s.client.Publish(o.topic, o.qos, o.retain, o.payload)
		}
	}
}

// outbox is a queue bounded in bytes.
type outbox struct {
	mu     sync.Mutex
	filled sync.Cond
	ops    []op
	bytes  int
	max    int
	closed bool
}

type pushResult int

const (
	pushed pushResult = iota
	overflow
	closed
)

// opOverhead is what a queued op costs beside its payload.
const opOverhead = 128

func (q *outbox) init(max int) {
	q.max = max
	q.filled.L = &q.mu
}

func (q *outbox) push(o op) pushResult {
	q.mu.Lock()
	defer q.mu.Unlock()
	size := len(o.payload) + opOverhead
	switch {
	case q.closed:
		return closed
	case q.bytes+size > q.max:
		return overflow
	}
	q.ops, q.bytes = append(q.ops, o), q.bytes+size
	q.filled.Signal()
	return pushed
}

// pop waits for an op; false when the outbox is closed.
func (q *outbox) pop() (op, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.ops) == 0 && !q.closed {
		q.filled.Wait()
	}
	if q.closed {
		return op{}, false
	}
	o := q.ops[0]
	q.ops[0] = op{}
	if q.ops = q.ops[1:]; len(q.ops) == 0 {
		q.ops = nil // let a burst's memory go
	}
	q.bytes -= len(o.payload) + opOverhead
	return o, true
}

func (q *outbox) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed, q.ops = true, nil
	q.filled.Broadcast()
}

// forgetful is paho's store: nothing is kept, since sessions are clean and the link's
// spool is the truth.
type forgetful struct{}

func (forgetful) Open()                             {}
func (forgetful) Put(string, packets.ControlPacket) {}
func (forgetful) Get(string) packets.ControlPacket  { return nil }
func (forgetful) All() []string                     { return nil }
func (forgetful) Del(string)                        {}
func (forgetful) Close()                            {}
func (forgetful) Reset()                            {}
