package hardware

import (
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// What would change again and again is held still, so that it is not reported anew all the
// time: a sensor near its limit, a link that comes and goes, a guest whose memory breathes.
const (
	// sensorSlack is how far below its limit a temperature must be, in thousandths of a
	// degree, before it is well again. Other sensors: a thirty-second of their limit.
	sensorSlack = 3000
	// memorySlack is the part of a node's memory whose coming or going is not told.
	memorySlack = 64
	// A link that changed more than maxFlips times within flipTime is flapping until it
	// was still for as long.
	maxFlips = 6
	flipTime = 5 * time.Minute
)

// LinkFlapping is a link that comes and goes.
const LinkFlapping = "flapping"

// settler remembers what was told before.
type settler struct {
	before api.Inventory
	links  map[string]*flips
}

type flips struct {
	last api.Link
	at   []time.Time // of the changes, the newest maxFlips+1
}

// settle makes what was seen now into what is told. It changes now's lists.
func (s *settler) settle(now api.Inventory, at time.Time) api.Inventory {
	for i := range now.NetDevices {
		d := &now.NetDevices[i]
		d.Link = s.link(d.Name, d.Link, at)
	}
	for name := range s.links {
		if !slices.ContainsFunc(now.NetDevices, func(d api.NetDevice) bool { return d.Name == name }) {
			delete(s.links, name)
		}
	}
	for i := range now.Nodes {
		n := &now.Nodes[i]
		j := slices.IndexFunc(s.before.Nodes, func(b api.Node) bool { return b.ID == n.ID })
		if j < 0 {
			continue
		}
		if b := s.before.Nodes[j].MemoryMiB; max(b-n.MemoryMiB, n.MemoryMiB-b) <= b/memorySlack {
			n.MemoryMiB = b
		}
	}
	for i := range now.Sensors {
		c := &now.Sensors[i]
		j := slices.IndexFunc(s.before.Sensors, func(b api.SensorChip) bool { return b.ID == c.ID })
		if j < 0 {
			continue
		}
		for k := range c.Sensors {
			if b := s.before.Sensors[j].Sensors; k < len(b) && b[k].Label == c.Sensors[k].Label && b[k].Kind == c.Sensors[k].Kind {
				c.Sensors[k].State = settleSensor(b[k].State, c.Sensors[k])
			}
		}
	}
	s.before = now
	return now
}

// settleSensor is the state of a sensor that was in another before.
func settleSensor(before string, now api.Sensor) string {
	limit := map[string]int64{"critical": now.Critical, "high": now.High}[before]
	if limit == 0 || now.State == before || now.State == "critical" || now.State == "fault" || now.Value == nil {
		return now.State
	}
	slack := int64(sensorSlack)
	if now.Kind != "temperature" {
		slack = limit / 32
	}
	if *now.Value > limit-slack {
		return before
	}
	return now.State
}

func (s *settler) link(name string, now api.Link, at time.Time) api.Link {
	if s.links == nil {
		s.links = map[string]*flips{}
	}
	f := s.links[name]
	if f == nil {
		f = &flips{last: now}
		s.links[name] = f
	}
	if f.last != now {
		f.last = now
		f.at = append(f.at, at)
		f.at = f.at[max(0, len(f.at)-maxFlips-1):]
	}
	if n := len(f.at); n > maxFlips && at.Sub(f.at[n-1]) < flipTime && f.at[n-1].Sub(f.at[0]) < flipTime {
		return api.Link{State: LinkFlapping}
	}
	return now
}
