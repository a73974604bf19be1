package main

import (
	"context"
	"fmt"
	"slices"

	"tributary.dev/tributary/pkg/link/linksim"
)

// benchChangeFrames counts the bytes of MQTT packets on each of three hops, both
// directions, for one changed field of a device's reported state, in virtual time.
func benchChangeFrames(context.Context) ([]Figure, error) {
	hops, err := linksim.Change()
	if err != nil {
		return nil, err
	}
	f := atMost("change.frames", float64(slices.Max(hops)), "B/hop", 120, 120)
	f.Note = fmt.Sprintf("from the core down: %v", hops)
	return []Figure{f}, nil
}
