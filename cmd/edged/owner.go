package main

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/boot"
	"tributary.dev/tributary/pkg/edge/recovery/owner"
	"tributary.dev/tributary/pkg/link/record"
	"tributary.dev/tributary/pkg/manifest"
)

// consolePoll is how often the box looks at what its consoles noted, and at the owner's key
// in the manifest. Both change about never.
const consolePoll = 30 * time.Second

// tellOfConsole keeps the owner's unlock key where the console finds it on the day on which
// the state does not open, and records what happened at the consoles meanwhile. It has nothing
// to do on a machine that is no appliance.
//
// Reads: the manifest, the consoles' journals. Writes: CONFIG, a firmware variable, records.
func (b *box) tellOfConsole(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(boot.Dir, "slot")); err != nil {
		<-ctx.Done()
		return nil
	}
	var kept string // the statement that is known to be kept
	tick := time.NewTicker(consolePoll)
	defer tick.Stop()
	for {
		if m := b.link.Manifest(); m != nil {
			if body := m.Manifest.Items[manifest.KeyUnlock].Body; len(body) > 0 && string(body) != kept {
				kept = b.keepOwner(body)
			}
		}
		if err := owner.Take(b.recordConsole, "/state", boot.Dir); err != nil {
			b.log.Warn("what the consoles noted is not recorded yet", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// keepOwner writes the owner's key down, and gives back what need not be written again.
func (b *box) keepOwner(statement []byte) string {
	me := b.member.Live.Get()
	err := owner.Appliance(boot.Dir, filepath.Join(b.o.data, "identity")).Keep(me.Trust, me.ID(), statement)
	if err != nil {
		b.log.Warn("the owner's unlock key is not kept, or not whole: the console may open no shell while the state is closed", "err", err)
	}
	return string(statement) // a firmware that refuses is not asked twice a minute
}

// recordConsole makes a record of an entry.
func (b *box) recordConsole(e owner.Entry) error {
	payload, err := record.EncodeEvent(api.Event{Time: e.Time.UnixMilli(), Name: "console." + e.What, Subject: e.Challenge, Message: e.Message, Actor: e.Where})
	if err != nil {
		return err
	}
	_, err = b.link.Append(api.RecordAudit, payload)
	return err
}
