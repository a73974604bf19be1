package dhcp6

import (
	"bytes"
	"encoding/binary"
	"time"
)

// Times of retransmission (RFC 8415 section 7.6), and how long what was said is good where
// the server does not say.
const (
	first       = time.Second
	longest     = time.Hour
	mostInTurn  = 120 * time.Second // while an address is asked for
	requests    = 5                 // of one server, before all are asked again
	shortestAge = 10 * time.Minute
)

// Client asks for an address where routers say that the network has a server for that
// (flag M), else for what there is to know.
type Client struct {
	duid     []byte
	identity uint32
	random   func() uint32

	managed bool
	offer   *Message // that is being asked for
	xid     [3]byte
	begun   time.Time
	sent    int
	pause   time.Duration
	// Wake is when Tick wants to be called.
	Wake time.Time
}

// New makes a client of the card with a MAC: its DUID is of the kind DUID-LL (RFC 8415
// section 11.4), which needs nothing to be kept.
func New(mac []byte, random func() uint32) *Client {
	c := &Client{duid: append([]byte{0, 3, 0, 1}, mac...), random: random}
	if len(mac) >= 4 {
		c.identity = binary.BigEndian.Uint32(mac[len(mac)-4:])
	}
	return c
}

// Restart begins anew: the cable came in, or what was said is old. managed is the flag M of
// the router's advertisement.
func (c *Client) Restart(now time.Time, managed bool) {
	c.managed, c.offer = managed, nil
	c.ask(now)
	c.Wake = now.Add(time.Duration(c.random()%1000) * time.Millisecond) // RFC 8415 section 18.2.6
}

// ask begins another exchange.
func (c *Client) ask(now time.Time) {
	n := c.random()
	c.xid, c.begun, c.sent, c.pause, c.Wake = [3]byte{byte(n >> 16), byte(n >> 8), byte(n)}, now, 0, 0, now
}

// Managed tells whether the client asks for an address.
func (c *Client) Managed() bool { return c.managed }

// Tick is called at Wake; it returns what to send to all servers of the link.
func (c *Client) Tick(now time.Time) *Message {
	if now.Before(c.Wake) {
		return nil
	}
	if c.offer != nil && c.sent == requests {
		c.offer = nil // that server does not answer: whoever else there is
		c.ask(now)
	}
	m := &Message{Type: InfoRequest, XID: c.xid, Client: c.duid, asked: []uint16{optSZTP, optDNS, optRefresh}, elapsed: now.Sub(c.begun)}
	most := longest
	if c.managed {
		m.Type, m.identity, m.wants, most = Solicit, c.identity, true, mostInTurn
		m.asked = m.asked[:2]
		if c.offer != nil {
			m.Type, m.Server, m.Address = Request, c.offer.Server, c.offer.Address
		}
	}
	if c.pause = min(2*c.pause, most); c.sent == 0 {
		c.pause, m.elapsed = first, 0
	}
	c.sent++
	// A tenth more or less, so that boxes of one power cut do not stay in step (section 15).
	c.Wake = now.Add(c.pause + time.Duration(int64(c.pause/5)*int64(c.random()%1000)/1000) - c.pause/10)
	return m
}

// Again takes back that the last message was sent: it could not be, and is due at a time.
func (c *Client) Again(at time.Time) {
	c.sent, c.pause, c.Wake = c.sent-1, c.pause/2, at
}

// Receive takes a server's packet. It returns what was said, once it is said: the client
// then sleeps until it is old.
func (c *Client) Receive(now time.Time, packet []byte) *Message {
	m, err := Parse(packet, c.identity)
	if err != nil || m.XID != c.xid || !bytes.Equal(m.Client, c.duid) || len(m.Server) == 0 || c.sent == 0 {
		return nil
	}
	switch {
	case m.Type == Advertise && c.managed && c.offer == nil && !m.Refused && m.Address.IP.IsValid():
		c.offer = &m // the first is as good as another
		c.ask(now)
		return nil
	case m.Type == Reply && c.managed && c.offer != nil && bytes.Equal(m.Server, c.offer.Server):
		if m.Refused || !m.Address.IP.IsValid() {
			c.offer = nil
			c.ask(now)
			c.Wake = now.Add(first)
			return nil
		}
		old := m.Address.Renew
		if old <= 0 || old > m.Address.Valid/2 {
			old = m.Address.Valid / 2
		}
		c.sleep(now, max(old, 30*time.Second))
	case m.Type == Reply && !c.managed:
		age := m.Refresh
		if age <= 0 {
			age = forEver
		}
		c.sleep(now, max(age, shortestAge))
	default:
		return nil
	}
	return &m
}

// sleep ends an exchange; the next begins when what was said is old.
func (c *Client) sleep(now time.Time, d time.Duration) {
	c.offer = nil
	c.ask(now)
	c.Wake = now.Add(d)
}
