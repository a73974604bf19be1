package main

import (
	"context"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/rescue"
	"tributary.dev/tributary/pkg/core/server"
	"tributary.dev/tributary/pkg/core/store"
)

// unlockEvents is how far back a device's events are searched for a challenge. Boxes take
// an answer for a quarter of an hour.
const unlockEvents = 1000

// desk answers the challenges of boxes' consoles.
type desk struct{ *rescue.Desk }

func (c *core) rescueDesk() desk {
	return desk{rescue.New(rescue.Config{
		Keys: c.ca.UnlockKeys,
		Answered: func(ctx context.Context, id api.DeviceID, challenge string) (bool, error) {
			list, err := c.store.Events(ctx, []api.DeviceID{id}, unlockEvents)
			return slices.ContainsFunc(list, func(e store.DeviceEvent) bool { return e.Name == store.EventUnlock && e.Subject == challenge }), err
		},
		Note: func(ctx context.Context, id api.DeviceID, name string, e api.Event) error {
			return c.store.AppendEvents(ctx, []store.DeviceEvent{{Device: id, Label: name, Event: e}})
		},
		Event: store.EventUnlock, Now: time.Now,
	})}
}

// Unlock implements server.Unlocks.
func (d desk) Unlock(ctx context.Context, device api.DeviceID, name, challenge, actor string) (server.UnlockAnswer, error) {
	a, err := d.Answer(ctx, device, name, challenge, actor)
	return server.UnlockAnswer{Answer: a.Text, Challenge: a.Challenge, Proven: a.Proven}, err
}

// unlockStatement is what every manifest says of the owner's unlock key.
func (c *core) unlockStatement() []byte {
	_, said, err := c.ca.Unlock()
	if err != nil {
		c.log.Error("boxes are not told the owner's unlock key", "err", err)
		return nil
	}
	return said
}
