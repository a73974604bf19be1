package main

import (
	"fmt"

	"tributary.dev/tributary/pkg/link/linksim"
)

// idleSimulated lets a relay with 100 devices rest for six hours of virtual time: health
// every minute, usage of ten containers each every 15 minutes. TLS, TCP and IP are added
// by rule (linksim.Meter.WithTransport).
func idleSimulated() (Figure, error) {
	const devices, hours = 100, 6
	m, took, err := linksim.Idle(devices, hours)
	if err != nil {
		return Figure{}, err
	}
	perDay := func(bytes int) float64 { return float64(bytes) / devices / (took.Hours() / 24) / 1000 }
	f := plain("idle.simulated", perDay(m.WithTransport()), "kB/device/day")
	f.Note = fmt.Sprintf("%.1f kB before TLS, TCP and IP; %d packets in %s of virtual time", perDay(m.Total()), m.Packets, took)
	return f, nil
}
