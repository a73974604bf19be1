package main

import (
	"context"
	"fmt"
	"time"

	"tributary.dev/tributary/pkg/core/rollout"
	"tributary.dev/tributary/pkg/core/rollout/simfleet"
)

// benchRollout plays a rollout to 10,000 devices of which one in twenty has trouble, in virtual time.
func benchRollout(context.Context) ([]Figure, error) {
	cfg := simfleet.Large(1)
	began := time.Now()
	res, err := simfleet.Run(cfg)
	if err != nil {
		return nil, err
	}
	f := atMost("rollout.sim", time.Since(began).Seconds(), "s", 60, 60)
	f.Note = fmt.Sprintf("%d devices, %s of virtual time in %d looks: %s, %d healthy", cfg.Devices, res.Took, res.Looks, res.Phase, res.Counts[rollout.Healthy])
	return []Figure{f}, nil
}
