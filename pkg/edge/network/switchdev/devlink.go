package switchdev

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What vishvananda/netlink 1.3 has no names for: linux/devlink.h of Linux 6.12.
const (
	cmdHealthGet                                   = 52
	cmdRateGet, cmdRateSet, cmdRateNew, cmdRateDel = 74, 75, 76, 77
	attrReporter, attrReporterName                 = 114, 115
	attrReporterState, attrErrors, attrRecoveries  = 116, 117, 118
	attrPortPF, attrPortVF, attrPortSF             = 127, 128, 164
	attrReloadFailed                               = 136
	attrPortExternal, attrPortController           = 149, 150
	attrRateType, attrRateShare, attrRateMax       = 165, 166, 167
	attrRateNode, attrRateParent                   = 168, 169
	attrFunctionCan                                = 4 // of a port's function: DEVLINK_PORT_FN_ATTR_CAPS
)

var flavours = map[uint16]string{0: Physical, 3: PF, 4: VF, 7: SF}

var (
	inlines = map[string]uint8{"none": 0, "link": 1, "network": 2, "transport": 3}
	encaps  = map[string]uint8{"none": 0, "basic": 1}
	// abilities are bits of DEVLINK_PORT_FN_ATTR_CAPS.
	abilities = map[string]uint32{"roce": 1, "migratable": 2, "ipsecCrypto": 4, "ipsecPacket": 8}
)

// Devlink looks at cards and changes them, in the network namespace in which it was opened. Its
// methods are for one goroutine.
type Devlink struct {
	h       *netlink.Handle
	socket  *nl.NetlinkSocket
	sockets map[int]*nl.SocketHandle
	family  int
	group   int // of multicast: what changes
}

// Open opens devlink; the error tells of a kernel without.
func Open() (*Devlink, error) {
	h, err := netlink.NewHandle(unix.NETLINK_GENERIC)
	if err != nil {
		return nil, err
	}
	d := &Devlink{h: h}
	family, err := h.GenlFamilyGet(nl.GENL_DEVLINK_NAME)
	if err == nil {
		d.family = int(family.ID)
		for _, g := range family.Groups {
			if g.Name == "config" {
				d.group = int(g.ID)
			}
		}
		d.socket, err = nl.Subscribe(unix.NETLINK_GENERIC)
	}
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("switchdev: this kernel has no devlink: %w", err)
	}
	_ = d.socket.SetExtAck(true) // its words are a help, no need
	d.sockets = map[int]*nl.SocketHandle{unix.NETLINK_GENERIC: {Socket: d.socket}}
	return d, nil
}

// Close lets go of devlink.
func (d *Devlink) Close() {
	d.socket.Close()
	d.h.Close()
}

// Changes is told of after cards, ports, rates or their health changed, until ctx ends.
func (d *Devlink) Changes(ctx context.Context) (<-chan struct{}, error) {
	s, err := nl.Subscribe(unix.NETLINK_GENERIC)
	if err != nil {
		return nil, err
	}
	if err := unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, d.group); err != nil {
		s.Close()
		return nil, fmt.Errorf("switchdev: %w", err)
	}
	context.AfterFunc(ctx, s.Close)
	out := make(chan struct{}, 1)
	go func() {
		for {
			if _, _, err := s.Receive(); err != nil && (ctx.Err() != nil || !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN)) {
				return // what is not told is found by looking now and then
			}
			select {
			case out <- struct{}{}:
			default:
			}
		}
	}()
	return out, nil
}

func (d *Devlink) request(command uint8, flags int, device string) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(d.family, flags)
	r.Sockets = d.sockets
	r.AddData(&nl.Genlmsg{Command: command, Version: nl.GENL_DEVLINK_VERSION})
	if bus, name, ok := strings.Cut(device, "/"); ok {
		r.AddData(nl.NewRtAttr(nl.DEVLINK_ATTR_BUS_NAME, nl.ZeroTerminated(bus)))
		r.AddData(nl.NewRtAttr(nl.DEVLINK_ATTR_DEV_NAME, nl.ZeroTerminated(name)))
	}
	return r
}

// Look lists the cards with their ports and rates.
func (d *Devlink) Look() ([]Observed, error) {
	devices, err := d.h.DevLinkGetDeviceList()
	if err != nil {
		return nil, fmt.Errorf("list cards: %w", err)
	}
	var out []Observed
	for _, v := range devices {
		mode := v.Attrs.Eswitch.Mode
		if mode == "unknown" {
			mode = ""
		}
		inline := v.Attrs.Eswitch.InlineMode
		if _, known := inlines[inline]; !known {
			inline = ""
		}
		encap := map[string]string{"enable": "basic", "disable": "none"}[v.Attrs.Eswitch.EncapMode]
		out = append(out, Observed{Device: Device{Name: v.BusName + "/" + v.DeviceName, Mode: mode, Inline: inline, Encap: encap}})
	}
	for _, part := range []struct {
		command uint8
		take    func(*Observed, []byte)
	}{{nl.DEVLINK_CMD_GET, (*Observed).takeDevice}, {nl.DEVLINK_CMD_PORT_GET, (*Observed).takePort}, {cmdRateGet, (*Observed).takeRate}, {cmdHealthGet, (*Observed).takeReporter}} {
		messages, err := d.request(part.command, unix.NLM_F_DUMP, "").Execute(unix.NETLINK_GENERIC, 0)
		if err != nil {
			return nil, fmt.Errorf("look at cards: %w", err)
		}
		for _, m := range messages {
			if len(m) < nl.SizeofGenlmsg {
				continue
			}
			m = m[nl.SizeofGenlmsg:]
			name := deviceOf(m)
			for i := range out {
				if out[i].Device.Name == name {
					part.take(&out[i], m)
				}
			}
		}
	}
	return out, nil
}

func deviceOf(m []byte) string {
	bus, name := "", ""
	for t, v := range attributes(m) {
		switch t {
		case nl.DEVLINK_ATTR_BUS_NAME:
			bus = text(v)
		case nl.DEVLINK_ATTR_DEV_NAME:
			name = text(v)
		}
	}
	return bus + "/" + name
}

func (o *Observed) takeDevice(m []byte) {
	for t, v := range attributes(m) {
		if t == attrReloadFailed {
			o.Device.Unreloaded = number(v) != 0
		}
	}
}

func (o *Observed) takeReporter(m []byte) {
	r := Reporter{}
	for t, v := range attributes(m) {
		switch t {
		case nl.DEVLINK_ATTR_PORT_INDEX:
			index := uint32(number(v))
			if i := slices.IndexFunc(o.Ports, func(p Port) bool { return p.Index == index }); i >= 0 {
				r.Interface = o.Ports[i].Interface
			}
		case attrReporter:
			for t, v := range attributes(v) {
				switch t {
				case attrReporterName:
					r.Name = text(v)
				case attrReporterState:
					r.Failed = number(v) != 0
				case attrErrors:
					r.Errors = number(v)
				case attrRecoveries:
					r.Recoveries = number(v)
				}
			}
		}
	}
	o.Reporters = append(o.Reporters, r)
}

func (o *Observed) takePort(m []byte) {
	p := Port{}
	for t, v := range attributes(m) {
		switch t {
		case nl.DEVLINK_ATTR_PORT_INDEX:
			p.Index = uint32(number(v))
		case nl.DEVLINK_ATTR_PORT_FLAVOUR:
			p.Flavour = flavours[uint16(number(v))]
		case nl.DEVLINK_ATTR_PORT_NETDEV_NAME:
			p.Interface = text(v)
		case attrPortPF:
			p.PF = int(number(v))
		case attrPortVF, attrPortSF:
			p.Function = int(number(v))
		case attrPortExternal:
			p.External = number(v) != 0
		case attrPortController:
			p.Controller = int(number(v))
		case nl.DEVLINK_ATTR_PORT_FUNCTION:
			for t, v := range attributes(v) {
				switch t {
				case nl.DEVLINK_PORT_FUNCTION_ATTR_HW_ADDR:
					p.MAC = net.HardwareAddr(v).String()
				case nl.DEVLINK_PORT_FN_ATTR_STATE:
					p.Active = number(v) == nl.DEVLINK_PORT_FN_STATE_ACTIVE
				case nl.DEVLINK_PORT_FN_ATTR_OPSTATE:
					p.Attached = number(v) == nl.DEVLINK_PORT_FN_OPSTATE_ATTACHED
				case attrFunctionCan:
					p.Can = canOf(v)
				}
			}
		}
	}
	o.Ports = append(o.Ports, p)
}

// canOf reads a struct nla_bitfield32: what is on, of what the card knows.
func canOf(v []byte) map[string]bool {
	out := map[string]bool{}
	if len(v) == 8 {
		on, known := uint32(number(v[:4])), uint32(number(v[4:]))
		for name, bit := range abilities {
			if known&bit != 0 {
				out[name] = on&bit != 0
			}
		}
	}
	return out
}

func (o *Observed) takeRate(m []byte) {
	r := Rate{}
	for t, v := range attributes(m) {
		switch t {
		case attrRateNode:
			r.Group = text(v)
		case nl.DEVLINK_ATTR_PORT_INDEX:
			r.Port = uint32(number(v))
		case attrRateShare:
			r.Min = number(v)
		case attrRateMax:
			r.Max = number(v)
		case attrRateParent:
			r.Parent = text(v)
		}
	}
	o.Rates = append(o.Rates, r)
}

// Do makes one step at a card.
func (d *Devlink) Do(device string, s Step) error {
	r, err := d.step(device, s)
	if err == nil {
		_, err = r.Execute(unix.NETLINK_GENERIC, 0)
	}
	if err != nil {
		return fmt.Errorf("%s of %s: %w", s.Do, device, err)
	}
	return nil
}

func (d *Devlink) step(device string, s Step) (*nl.NetlinkRequest, error) {
	request := func(command uint8, attrs ...*nl.RtAttr) *nl.NetlinkRequest {
		r := d.request(command, unix.NLM_F_ACK, device)
		for _, a := range attrs {
			r.AddData(a)
		}
		return r
	}
	port := nl.NewRtAttr(nl.DEVLINK_ATTR_PORT_INDEX, nl.Uint32Attr(s.Port))
	function := func(attr int, value []byte) *nl.NetlinkRequest {
		f := nl.NewRtAttr(nl.DEVLINK_ATTR_PORT_FUNCTION|unix.NLA_F_NESTED, nil)
		f.AddRtAttr(attr, value)
		return request(nl.DEVLINK_CMD_PORT_SET, port, f)
	}
	switch s.Do {
	case SetMode:
		mode := uint16(nl.DEVLINK_ESWITCH_MODE_LEGACY)
		if s.Value == Switchdev {
			mode = nl.DEVLINK_ESWITCH_MODE_SWITCHDEV
		}
		return request(nl.DEVLINK_CMD_ESWITCH_SET, nl.NewRtAttr(nl.DEVLINK_ATTR_ESWITCH_MODE, nl.Uint16Attr(mode))), nil
	case SetInline:
		return request(nl.DEVLINK_CMD_ESWITCH_SET, nl.NewRtAttr(nl.DEVLINK_ATTR_ESWITCH_INLINE_MODE, []byte{inlines[s.Value]})), nil
	case SetEncap:
		return request(nl.DEVLINK_CMD_ESWITCH_SET, nl.NewRtAttr(nl.DEVLINK_ATTR_ESWITCH_ENCAP_MODE, []byte{encaps[s.Value]})), nil
	case AddPort:
		p, err := scalable(s.Name)
		attrs := []*nl.RtAttr{nl.NewRtAttr(nl.DEVLINK_ATTR_PORT_FLAVOUR, nl.Uint16Attr(nl.DEVLINK_PORT_FLAVOUR_PCI_SF)),
			nl.NewRtAttr(attrPortPF, nl.Uint16Attr(uint16(p.PF))), nl.NewRtAttr(attrPortSF, nl.Uint32Attr(uint32(p.Function)))}
		if p.External {
			attrs = append(attrs, nl.NewRtAttr(attrPortController, nl.Uint32Attr(uint32(p.Controller))))
		}
		return request(nl.DEVLINK_CMD_PORT_NEW, attrs...), err
	case RemovePort:
		return request(nl.DEVLINK_CMD_PORT_DEL, port), nil
	case SetMAC:
		mac, err := net.ParseMAC(s.Value)
		return function(nl.DEVLINK_PORT_FUNCTION_ATTR_HW_ADDR, mac), err
	case SetCan:
		on := uint32(0)
		if s.On {
			on = abilities[s.Value]
		}
		return function(attrFunctionCan, slices.Concat(nl.Uint32Attr(on), nl.Uint32Attr(abilities[s.Value]))), nil
	case Activate:
		return function(nl.DEVLINK_PORT_FN_ATTR_STATE, []byte{nl.DEVLINK_PORT_FN_STATE_ACTIVE}), nil
	case Deactivate:
		return function(nl.DEVLINK_PORT_FN_ATTR_STATE, []byte{nl.DEVLINK_PORT_FN_STATE_INACTIVE}), nil
	case AddGroup, SetRate, RemoveGroup:
		return request(map[Verb]uint8{AddGroup: cmdRateNew, SetRate: cmdRateSet, RemoveGroup: cmdRateDel}[s.Do], s.Rate.attributes(s)...), nil
	}
	return nil, fmt.Errorf("switchdev: there is no step %q", s.Do)
}

// scalable reads the name of a scalable function's port.
func scalable(name string) (p Port, err error) {
	p.Flavour, p.External = SF, strings.HasPrefix(name, "c")
	if p.External {
		_, err = fmt.Sscanf(name, "c%dpf%dsf%d", &p.Controller, &p.PF, &p.Function)
	} else {
		_, err = fmt.Sscanf(name, "pf%dsf%d", &p.PF, &p.Function)
	}
	if err != nil || p.Name() != name {
		return p, fmt.Errorf("switchdev: %q is no port of a scalable function", name)
	}
	return p, nil
}

func (r Rate) attributes(s Step) (out []*nl.RtAttr) {
	if r.Group != "" {
		out = append(out, nl.NewRtAttr(attrRateNode, nl.ZeroTerminated(r.Group)))
	} else {
		out = append(out, nl.NewRtAttr(nl.DEVLINK_ATTR_PORT_INDEX, nl.Uint32Attr(r.Port)))
	}
	if s.Do == RemoveGroup {
		return out
	}
	out = append(out, nl.NewRtAttr(attrRateShare, nl.Uint64Attr(r.Min)), nl.NewRtAttr(attrRateMax, nl.Uint64Attr(r.Max)))
	if s.Value == moved { // by its empty name a member leaves its group
		out = append(out, nl.NewRtAttr(attrRateParent, nl.ZeroTerminated(r.Parent)))
	}
	return out
}

// attributes lists the netlink attributes in b; it ends at one that is not whole.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			n := int(binary.NativeEndian.Uint16(b))
			if n < unix.SizeofRtAttr || n > len(b) || !yield(binary.NativeEndian.Uint16(b[2:])&nl.NLA_TYPE_MASK, b[unix.SizeofRtAttr:n]) {
				return
			}
			b = b[min((n+3)&^3, len(b)):]
		}
	}
}

// number reads an integer of the kernel's, of one to eight bytes.
func number(b []byte) uint64 {
	switch len(b) {
	case 1:
		return uint64(b[0])
	case 2:
		return uint64(binary.NativeEndian.Uint16(b))
	case 4:
		return uint64(binary.NativeEndian.Uint32(b))
	case 8:
		return binary.NativeEndian.Uint64(b)
	}
	return 0
}

func text(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}
