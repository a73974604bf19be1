package main

import (
	"fmt"
	"slices"

	"tributary.dev/tributary/pkg/link/linksim"
)

// changeSimulated counts the MQTT packets of the same change in virtual time, with a value
// of 17 bytes.
func changeSimulated() (Figure, error) {
	hops, err := linksim.Change()
	if err != nil {
		return Figure{}, err
	}
	f := plain("change.simulated", float64(slices.Max(hops)), "B/hop")
	f.Note = fmt.Sprintf("from the core down: %v", hops)
	return f, nil
}
