package main

import (
	"context"
	"fmt"

	"tributary.dev/tributary/pkg/link/linksim"
)

// benchIdleLink lets a relay with 100 devices rest for six hours of virtual time: health
// every minute, usage of ten containers each every 15 minutes. TLS, TCP and IP are added
// by rule (linksim.Meter.WithTransport).
func benchIdleLink(context.Context) ([]Figure, error) {
	const devices, hours = 100, 6
	m, took, err := linksim.Idle(devices, hours)
	if err != nil {
		return nil, err
	}
	perDay := func(bytes int) float64 { return float64(bytes) / devices / (took.Hours() / 24) / 1000 }
	f := atMost("idle.link", perDay(m.WithTransport()), "kB/device/day", 50, 50)
	f.Note = fmt.Sprintf("%.1f kB before TLS, TCP and IP; %d packets in %s of virtual time, extrapolated", perDay(m.Total()), m.Packets, took)
	return []Figure{f}, nil
}
