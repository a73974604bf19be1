package linksim

import (
	"fmt"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link"
)

// Site is a relay under the core with devices under it, each with objects on both sides:
// keys that it reports, and items of its manifest.
type Site struct {
	*World
	Relay   *Box
	Devices []*Box
	objects int
	size    int
}

// NewSite makes a site and lets it settle.
func NewSite(seed uint64, cfg link.Config, devices, objects, size int) (*Site, error) {
	keys, err := NewKeyring()
	if err != nil {
		return nil, err
	}
	s := &Site{World: New(seed, keys, cfg), objects: objects, size: size}
	s.Relay = s.Add("relay", api.DeviceID{})
	s.Want(s.Relay.ID, map[string][]byte{"config/base": s.body()})
	for i := range devices {
		d := s.Add(fmt.Sprintf("device%d", i), s.Relay.ID)
		for k := range objects {
			d.Report(key(k), string(s.body()))
		}
		items := map[string][]byte{}
		for k := range objects {
			items["config/"+key(k)] = s.body()
		}
		s.Want(d.ID, items)
		s.Devices = append(s.Devices, d)
	}
	s.Run(10 * time.Minute)
	return s, s.agree()
}

func (s *Site) agree() error {
	if d := append(s.Failures, s.Differences()...); len(d) > 0 {
		return fmt.Errorf("the site does not agree: %d findings, the first: %s", len(d), d[0])
	}
	return nil
}

func key(k int) string { return fmt.Sprintf("object/%03d", k) }

// body is a random CBOR byte string of the site's object size.
func (s *Site) body() []byte {
	b := make([]byte, s.size)
	b[0], b[1] = 0x58, byte(s.size-2)
	for i := 2; i < len(b); i++ {
		b[i] = byte(s.Rand.Uint32())
	}
	return b
}

// Change changes n objects of each device on each side, and returns the bytes of changed
// keys and values.
func (s *Site) Change(n int) (useful int) {
	for i, d := range s.Devices {
		items := map[string][]byte{}
		for j := range n {
			k := key((i*7 + j*13) % s.objects)
			d.Report(k, string(s.body()))
			items["config/"+k] = s.body()
			useful += len(k) + s.size + len("config/"+k) + s.size
		}
		s.Want(d.ID, items)
	}
	return useful
}

// Cut cuts the site's uplink for a while.
func (s *Site) Cut(d time.Duration) {
	s.Relay.SetCut(true)
	s.Run(d)
}

// Heal mends the uplink and counts what crosses it until both sides agree; it fails when
// they do not within a minute and a half.
func (s *Site) Heal() (*Meter, error) {
	ms := s.Meters()
	s.Relay.SetCut(false)
	for range 90 {
		s.Run(time.Second)
		if m := ms[s.Relay.ID]; m != nil && m.Frames > 1 && len(s.Differences()) == 0 {
			s.Run(2 * time.Second)
			return m, s.agree()
		}
	}
	return ms[s.Relay.ID], s.agree()
}

// ReplaceRelay throws the relay away and puts a new, empty box in its place; the devices
// attach to it while its uplink is cut.
func (s *Site) ReplaceRelay() {
	old := s.Relay
	old.Crash()
	old.Gone = true
	delete(s.Boxes, old.ID)
	s.Ledgerless(old.ID)
	s.Relay = s.Add("relay'", api.DeviceID{})
	s.Relay.Cut = true
	for _, d := range s.Devices {
		d.Move(s.Relay.ID)
	}
	s.Want(s.Relay.ID, map[string][]byte{"config/base": s.body()})
	s.Run(3 * time.Minute)
}
