package linksim

import (
	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link"
)

// Meter counts what crosses one child's link to its parent, as MQTT 3.1.1 carries it.
type Meter struct {
	// Frames are packets of the application in either direction. Up and Down are bytes of
	// MQTT packets after CONNACK: SUBSCRIBE, SUBACK, PUBLISH and PUBACK.
	Frames, Up, Down int
	// Packets counts TCP segments with payload, one for each MQTT packet.
	Packets int
}

// Total is all bytes.
func (m *Meter) Total() int { return m.Up + m.Down }

// WithTransport adds to Total what TLS 1.3 (22 bytes a record), TCP and IPv4 (52 bytes a
// segment with time stamps) and their acknowledgements (one each) take.
func (m *Meter) WithTransport() int { return m.Total() + m.Packets*(22+52+52) }

const topicSize = 2 + 13 // "u/" or "d/" and a device id

func packet(remaining int) int {
	n := 1 + remaining
	for first := true; first || remaining > 0; first = false {
		n++
		remaining >>= 7
	}
	return n
}

func (m *Meter) frame(up bool, f link.Frame) {
	body := 2 + topicSize + len(f.Bytes)
	out, back := &m.Up, &m.Down
	if !up {
		out, back = back, out
	}
	m.Frames++
	m.Packets++
	if f.Reliable {
		*out += packet(body + 2)
		*back += packet(2)
		m.Packets++
		return
	}
	*out += packet(body)
}

func (m *Meter) session() {
	m.Up += packet(2 + 2 + topicSize + 1) // SUBSCRIBE d/<id>
	m.Down += packet(2 + 1)               // SUBACK
	m.Packets += 2
}

// Meters watches all links of a world.
func (w *World) Meters() map[api.DeviceID]*Meter {
	ms := map[api.DeviceID]*Meter{}
	at := func(id api.DeviceID) *Meter {
		m := ms[id]
		if m == nil {
			m = &Meter{}
			ms[id] = m
		}
		return m
	}
	w.OnFrame = func(id api.DeviceID, up bool, f link.Frame) { at(id).frame(up, f) }
	w.OnSession = func(id api.DeviceID) { at(id).session() }
	return ms
}
