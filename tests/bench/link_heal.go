package main

import (
	"context"
	"fmt"

	"tributary.dev/tributary/pkg/link/linksim"
)

// benchHeal heals a site of 1,000 devices, each with 100 objects of 128 bytes that it
// reports and 100 that it shall have; one of each has changed while the uplink was cut.
// All application bytes after CONNACK on the uplink count, MQTT packets included, against
// the keys and values that changed.
func benchHeal(context.Context) ([]Figure, error) {
	h, err := linksim.Heal(1000, 100, 128)
	if err != nil {
		return nil, err
	}
	ratio := func(name string, m linksim.Meter, limit float64) Figure {
		f := atMost(name, float64(m.Total())/float64(h.Useful), "x", limit, limit)
		f.Note = fmt.Sprintf("%d bytes up, %d down; %d of keys and values changed", m.Up, m.Down, h.Useful)
		return f
	}
	return []Figure{
		ratio("heal.changed", h.Changed, 1.5),
		ratio("heal.replaced", h.Replaced, 2),
		atMost("heal.unchanged", float64(h.Unchanged.Total()), "B", 100, 100),
	}, nil
}
