package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"

	"tributary.dev/tributary/pkg/boundedfile"
	"tributary.dev/tributary/pkg/edge/boot"
	"tributary.dev/tributary/pkg/edge/timesync"
)

// askTime has the time servers that DHCP names set the appliance's clock, from before the
// box has an owner on: nobody else there does. Elsewhere the machine has its own way.
func (b *box) askTime(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(boot.Dir, "slot")); err != nil {
		return nil
	}
	uplinks := filepath.Join(boot.Dir, "uplinks.json")
	go func() {
		_ = timesync.Keep(ctx, timesync.Config{Servers: func() []string { return timeServers(uplinks) }, Floor: b.clock.Floor, Held: b.realtime.holdsClock, Log: b.log}) // ends with ctx
	}()
	return nil
}

// timeServers reads what the network tells of itself (option 42 of DHCP, RFC 2132).
func timeServers(file string) (out []string) {
	text, err := boundedfile.Read(file, 256<<10)
	if err != nil {
		return nil
	}
	var uplinks []struct {
		NTP []string `json:"ntp"`
	}
	if json.Unmarshal(text, &uplinks) != nil {
		return nil
	}
	for _, u := range uplinks {
		out = append(out, u.NTP...)
	}
	return out
}
