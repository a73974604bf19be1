package main

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/boot"
	"tributary.dev/tributary/pkg/edge/recovery/owner"
	"tributary.dev/tributary/pkg/edge/recovery/usb"
	"tributary.dev/tributary/pkg/edge/update"
	"tributary.dev/tributary/pkg/link/record"
	"tributary.dev/tributary/pkg/manifest"
	"tributary.dev/tributary/pkg/oci"
)

// consolePoll is how often the box looks at what its consoles noted, and at the owner's key
// in the manifest. Both change about never.
const consolePoll = 30 * time.Second

// keepAgain is the pause after the owner's key could not be kept.
const keepAgain = time.Hour

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
	var again time.Time
	tick := time.NewTicker(consolePoll)
	defer tick.Stop()
	for {
		if m := b.link.Manifest(); m != nil {
			if body := m.Manifest.Items[manifest.KeyUnlock].Body; len(body) > 0 && string(body) != kept && time.Now().After(again) {
				if b.keepOwner(body) {
					kept = string(body)
				} else {
					again = time.Now().Add(keepAgain) // flash memory wears out
				}
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

// keepOwner writes the owner's key down, and tells whether all of it was.
func (b *box) keepOwner(statement []byte) bool {
	me := b.member.Live.Get()
	err := owner.Appliance(boot.Dir, filepath.Join(b.o.data, "identity")).Keep(me.Trust, me.ID(), statement)
	if err != nil {
		b.log.Warn("the owner's unlock key is not kept, or not whole: the console may open no shell while the state is closed", "err", err)
	}
	return err == nil
}

// fromUSB looks into what a person brought before the parent is asked.
func (b *box) fromUSB(next oci.Upstream) oci.Upstream {
	home := usb.In(b.o.data)
	if err := home.Make(); err != nil {
		b.log.Warn("updates from USB cannot be taken", "err", err)
		return next
	}
	return oci.Preload(string(home), next)
}

// broughtRelease is the release that a person brought, while the manifest's item for one is
// what it was then.
func (b *box) broughtRelease(item manifest.Item) *update.Want {
	named := ""
	if len(item.Refs) > 0 {
		named = item.Refs[0].Digest
	}
	digest, err := usb.In(b.o.data).Wanted(named)
	if err != nil {
		b.log.Warn("an update from USB is not wanted any more", "err", err)
	}
	if digest == "" {
		return nil
	}
	return &update.Want{Repo: usb.Repo, Digest: digest}
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
