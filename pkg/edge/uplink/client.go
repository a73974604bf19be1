package uplink

import (
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// client is a DHCP client (RFC 2131, figure 5) without clock, socket or randomness of its
// own: it is told the time and what came, and says what to send and when to wake it.
type client struct {
	mac    net.HardwareAddr
	host   string
	random func() uint32

	state  state
	xid    dhcpv4.TransactionID
	began  time.Time // of this exchange
	tries  int
	offer  *dhcpv4.DHCPv4
	lease  Lease
	leased time.Time
	wake   time.Time
}

type state string

const (
	selecting  state = "selecting"
	requesting state = "requesting"
	bound      state = "bound"
	renewing   state = "renewing"
	rebinding  state = "rebinding"
)

// effects are what the client wants done.
type effects struct {
	send   *dhcpv4.DHCPv4
	to     netip.Addr // broadcast when not valid
	got    *Lease     // put it in force
	lost   bool       // take it away
	listen bool       // packets are of interest until the next effects
}

func newClient(mac net.HardwareAddr, host string, random func() uint32) *client {
	return &client{mac: mac, host: host, random: random}
}

// restart begins anew: at the start, after a refusal, when the lease has run out, and when
// the cable was out.
func (c *client) restart(now time.Time) effects {
	lost := c.state == bound || c.state == renewing || c.state == rebinding
	c.state, c.tries, c.offer, c.began = selecting, 0, nil, now
	c.newExchange()
	e := c.sendAgain(now)
	e.lost = lost
	return e
}

func (c *client) newExchange() {
	n := c.random()
	c.xid = dhcpv4.TransactionID{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
}

// pause doubles from one second to 64, give or take a quarter, so that a street of boxes
// that lost power together does not speak in one voice.
func (c *client) pause() time.Duration {
	d := time.Second << min(c.tries, 6)
	return d*3/4 + time.Duration(c.random()%1024)*(d/2)/1024
}

// tick is to be called when the time of wake has come.
func (c *client) tick(now time.Time) effects {
	switch c.state {
	case "":
		return c.restart(now)
	case requesting:
		if c.tries >= 4 { // the server that offered does not answer
			return c.restart(now)
		}
	case bound, renewing, rebinding:
		age := now.Sub(c.leased)
		switch {
		case age >= c.lease.End:
			return c.restart(now)
		case age >= c.lease.Rebind && c.state != rebinding:
			c.state, c.began = rebinding, now
			c.newExchange()
		case age >= c.lease.Renew && c.state == bound:
			c.state, c.began = renewing, now
			c.newExchange()
		case c.state == bound:
			c.wake = c.leased.Add(c.lease.Renew)
			return effects{}
		}
	}
	return c.sendAgain(now)
}

func (c *client) sendAgain(now time.Time) effects {
	e := effects{listen: true, send: c.message()}
	c.wake = now.Add(c.pause())
	c.tries++
	age := now.Sub(c.leased)
	// RFC 2131, 4.4.5: half of what is left until the next stage, not less than a minute.
	switch c.state {
	case renewing:
		e.to = c.lease.Server
		c.wake = now.Add(max((c.lease.Rebind-age)/2, time.Minute))
	case rebinding:
		c.wake = now.Add(max((c.lease.End-age)/2, time.Minute))
	}
	if c.state == renewing || c.state == rebinding {
		next := c.leased.Add(c.lease.Rebind)
		if c.state == rebinding {
			next = c.leased.Add(c.lease.End)
		}
		if c.wake.After(next) {
			c.wake = next
		}
	}
	return e
}

// message is what this state sends.
func (c *client) message() *dhcpv4.DHCPv4 {
	mods := []dhcpv4.Modifier{
		dhcpv4.WithTransactionID(c.xid), dhcpv4.WithHwAddr(c.mac),
		dhcpv4.WithOption(dhcpv4.OptMaxMessageSize(1472)),
		dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer, dhcpv4.OptionDomainName,
			dhcpv4.OptionInterfaceMTU, dhcpv4.OptionNTPServers, dhcpv4.OptionDNSDomainSearchList, dhcpv4.OptionClasslessStaticRoute,
			dhcpv4.GenericOptionCode(optionSZTP)),
	}
	if c.host != "" {
		mods = append(mods, dhcpv4.WithOption(dhcpv4.OptHostName(c.host)))
	}
	switch c.state {
	case selecting:
		mods = append(mods, dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover))
	case requesting:
		mods = append(mods, dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest),
			dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(c.offer.YourIPAddr)), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(c.offer.ServerIdentifier())))
	default: // renewing, rebinding: by the address itself
		mods = append(mods, dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithClientIP(c.lease.Address.Addr().AsSlice()))
	}
	p, err := dhcpv4.New(mods...)
	if err != nil {
		return nil // only a broken source of transaction ids, which is not used here
	}
	p.TransactionID = c.xid
	return p
}

// receive takes a packet that came. What is not an answer to this exchange is left alone.
func (c *client) receive(now time.Time, p *dhcpv4.DHCPv4) effects {
	waiting := effects{listen: c.state != bound && c.state != ""}
	if p.OpCode != dhcpv4.OpcodeBootReply || p.TransactionID != c.xid || p.ClientHWAddr.String() != c.mac.String() {
		return waiting
	}
	switch kind := p.MessageType(); {
	case kind == dhcpv4.MessageTypeOffer && c.state == selecting:
		if _, ok := readLease(p); !ok || p.ServerIdentifier() == nil {
			return waiting
		}
		c.offer, c.state, c.tries = p, requesting, 0
		return c.sendAgain(now)
	case kind == dhcpv4.MessageTypeAck && (c.state == requesting || c.state == renewing || c.state == rebinding):
		l, ok := readLease(p)
		if !ok {
			return waiting
		}
		c.lease, c.leased, c.state, c.tries = l, now, bound, 0
		c.wake = now.Add(l.Renew)
		return effects{got: &l}
	case kind == dhcpv4.MessageTypeNak && (c.state == requesting || c.state == renewing || c.state == rebinding):
		e := c.restart(now)
		// Not at once: a server that refuses everything would be asked without end.
		e.send, c.wake = nil, now.Add(c.pause())
		return e
	}
	return waiting
}
