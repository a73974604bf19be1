package linksim

import (
	"fmt"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/record"
)

// Healed is what healing a site cost.
type Healed struct {
	// Unchanged is the cost when nothing had changed; Changed and Replaced (with a new,
	// empty relay) stand beside the bytes of changed keys and values, Useful.
	Unchanged, Changed, Replaced Meter
	Useful                       int
}

// Heal cuts a site's uplink, changes one object of each device on each side, mends the
// link, and counts application bytes on it after CONNACK.
func Heal(devices, objects, size int) (h Healed, err error) {
	s, err := NewSite(1, link.Config{}, devices, objects, size)
	if err != nil {
		return h, err
	}
	s.Cut(5 * time.Minute)
	m, err := s.Heal()
	if err != nil {
		return h, fmt.Errorf("nothing changed: %w", err)
	}
	h.Unchanged = *m

	s.Relay.SetCut(true)
	h.Useful = s.Change(1)
	s.Run(5 * time.Minute)
	if m, err = s.Heal(); err != nil {
		return h, fmt.Errorf("changed: %w", err)
	}
	h.Changed = *m

	s.Relay.SetCut(true)
	s.Change(1)
	s.ReplaceRelay()
	if m, err = s.Heal(); err != nil {
		return h, fmt.Errorf("replaced relay: %w", err)
	}
	h.Replaced = *m
	return h, nil
}

// Change changes one field of a device three hops from the core, all else at rest, and
// returns the bytes on each hop in both directions.
func Change() (hops []int, err error) {
	keys, err := NewKeyring()
	if err != nil {
		return nil, err
	}
	w := New(1, keys, link.Config{Health: time.Hour})
	aggregation := w.Add("aggregation", api.DeviceID{})
	access := w.Add("access", aggregation.ID)
	field := w.Add("field", access.ID)
	for i := range 20 {
		field.Report(fmt.Sprintf("app/demo%d", i), "\xa2\x01ddemo\x02gRunning")
	}
	w.Want(field.ID, map[string][]byte{"config/base": {1}})
	w.Run(5 * time.Minute)
	ms := w.Meters()
	field.Report("app/demo7", "\xa2\x01ddemo\x02gBackoff")
	w.Run(10 * time.Second)
	if d := w.Differences(); len(d) > 0 {
		return nil, fmt.Errorf("the ends do not agree: %s", d[0])
	}
	for _, b := range []*Box{aggregation, access, field} {
		hops = append(hops, ms[b.ID].Total())
	}
	return hops, nil
}

// Idle lets a relay with devices rest for some hours, health every minute and the usage
// of ten containers each every 15 minutes, and returns what its uplink carried.
func Idle(devices, hours int) (*Meter, time.Duration, error) {
	s, err := NewSite(1, link.Config{}, devices, 10, 64)
	if err != nil {
		return nil, 0, err
	}
	ms := map[api.DeviceID]*Meter{}
	began := s.Now
	for i := range 4*hours + 4 {
		if i == 4 { // the first hour settles the rhythm
			ms, began = s.Meters(), s.Now
		}
		from := s.Now
		if err := s.meter(from, from.Add(15*time.Minute)); err != nil {
			return nil, 0, err
		}
		s.Run(from.Add(15 * time.Minute).Sub(s.Now))
	}
	return ms[s.Relay.ID], s.Now.Sub(began), nil
}

// meter makes every device record the usage of ten containers, one after the other.
func (s *Site) meter(from, to time.Time) error {
	services := []string{"web", "cache", "broker", "db", "agent", "camera", "vision", "mqtt", "modbus", "logs"}
	for _, d := range s.Devices {
		u := api.Usage{From: from.UnixMilli(), To: to.UnixMilli()}
		for i, name := range services {
			u.Uses = append(u.Uses, api.ContainerUse{App: fmt.Sprintf("site-app%d", i/3), Service: name, RunMillis: uint64(to.Sub(from).Milliseconds()),
				CPUMicros: uint64(s.Rand.Int64N(20e6)), MemoryByteSeconds: uint64(s.Rand.Int64N(200e6)) * 900,
				RxBytes: uint64(s.Rand.Int64N(1e6)), TxBytes: uint64(s.Rand.Int64N(1e6))})
		}
		payload, err := record.EncodeUsage(u)
		if err != nil {
			return err
		}
		d.Append(api.RecordUsage, string(payload))
		s.Run(time.Duration(s.Rand.Int64N(int64(8 * time.Second))))
	}
	return nil
}
