package agent

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/report"
)

// Keys of reported state, as the core's fleet room reads them; those of apps are
// pkg/report's. Values are deterministic CBOR.
const (
	keyHealth    = "health"    // []api.Warning
	keyHardware  = "hardware"  // api.Hardware
	keyLabels    = "labels"    // map[string]string, probed
	keyApplied   = "applied"   // [epoch, generation]
	keyVersion   = "version"   // text
	keyAddresses = "addresses" // []string
	keyRelay     = "relay"     // bool
	keyRelease   = "release"   // text: the digest of the release that runs and is confirmed
	keyBoot      = "boot"      // text: another at each start of a box whose TPM the core asks
)

var encMode = func() cbor.EncMode {
	m, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(err) // constant options: a fault in this file
	}
	return m
}()

// Pace of the report loop.
const (
	reportFold  = 50 * time.Millisecond // changes that come together are reported together
	healthEvery = 5 * time.Second       // warnings have no signal of their own
	probeEvery  = 10 * time.Minute
)

// report tells the core how the device stands.
//
// Reads: workload status, warnings of all rooms, hardware, inventory, claims, addresses, desired's
// outcome. Writes: the link's entries, and in state which apps and parts of the box have
// one, which manifest is applied, and the clock.
func (a *Agent) report(ctx context.Context) error {
	a.reportProbe()
	a.reportNow()
	health := time.NewTicker(healthEvery)
	defer health.Stop()
	probe := time.NewTicker(probeEvery)
	defer probe.Stop()
	fold := time.NewTimer(reportFold)
	defer fold.Stop()
	uses := time.NewTimer(reportFold) // also for what was held before this start
	defer uses.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-probe.C:
			a.reportProbe()
		case <-health.C:
			if err := a.cfg.Clock.Keep(); err != nil {
				a.cfg.Log.Warn("the clock cannot be kept", "err", err)
			}
			a.reportNow()
		case <-a.cfg.Workload.Changed():
			fold.Reset(reportFold)
		case <-a.nudge:
			fold.Reset(reportFold)
		case <-a.cfg.NewInventory:
			a.reportInventory()
			a.reportUses()
		case <-a.cfg.NewUses:
			uses.Reset(reportFold)
		case <-uses.C:
			a.reportUses()
		case <-fold.C:
			a.reportNow()
		}
	}
}

func (a *Agent) reportProbe() {
	h := a.cfg.Hardware()
	addresses := a.cfg.Addresses()
	if addresses == nil {
		addresses = []string{}
	}
	a.put(keyHardware, h)
	a.put(keyLabels, a.cfg.Labels(h))
	a.put(keyAddresses, addresses)
	a.put(keyVersion, a.cfg.Version)
	a.put(keyRelay, a.cfg.Relay)
	if a.cfg.Boot != "" {
		a.put(keyBoot, a.cfg.Boot)
	}
}

func (a *Agent) reportNow() {
	status := a.cfg.Workload.Status()
	a.mu.Lock()
	news := a.outcome.acted(status) && a.outcome.applied != a.outcome.of
	if news {
		a.outcome.applied = a.outcome.of
	}
	o := a.outcome
	a.mu.Unlock()
	if news {
		a.cfg.Log.Info("manifest applied", "epoch", o.applied.epoch, "generation", o.applied.gen)
		if err := a.saveApplied(o.applied); err != nil {
			a.cfg.Log.Warn("cannot note which manifest is applied", "err", err)
		}
	}
	if o.of != (version{}) { // before the first manifest is taken nothing is known to be gone
		a.reportApps(o.statuses(status))
	}
	a.put(keyHealth, a.Warnings())
	if a.cfg.Release != nil {
		if digest := a.cfg.Release(); digest != "" {
			a.put(keyRelease, digest)
		}
	}
	if o.applied != (version{}) {
		a.put(keyApplied, []uint64{o.applied.epoch, o.applied.gen})
	}
}

// appliedBlob keeps which manifest was applied last: it is also while edged starts again,
// as containers run on.
const appliedBlob = "applied"

func (a *Agent) saveApplied(v version) error {
	b, err := encMode.Marshal([]uint64{v.epoch, v.gen})
	if err != nil {
		return err
	}
	return a.cfg.State.Blob(appliedBlob).Save(b)
}

// loadApplied reads what saveApplied wrote. What cannot be read is not known: it is
// found out again when all apps were looked at.
func (a *Agent) loadApplied() (v version, err error) {
	raw, err := a.cfg.State.Blob(appliedBlob).Load()
	if err != nil {
		return v, err
	}
	var pair [2]uint64
	if raw != nil && bodyMode.Unmarshal(raw, &pair) == nil {
		v = version{pair[0], pair[1]}
	}
	return v, nil
}

// reportedBucket lists the entries that tell of apps: their keys without the prefix.
const reportedBucket = "reported"

func (a *Agent) reportApps(status []api.AppStatus) {
	entries := map[string][]byte{}
	for _, s := range status {
		parts, err := report.Split(s)
		if err != nil {
			a.cfg.Log.Warn("not reported", "app", s.Name, "err", err)
			continue
		}
		maps.Copy(entries, parts)
	}
	a.reportAll(reportedBucket, report.Prefix, entries)
}

// reportedParts lists the entries that tell of the box's hardware, in the same way.
const reportedParts = "reported-parts"

func (a *Agent) reportInventory() {
	i := a.cfg.Inventory()
	if i == nil {
		return
	}
	entries, err := report.SplitInventory(i)
	if err != nil {
		a.cfg.Log.Warn("a part of the hardware is not reported", "err", err)
	}
	a.reportAll(reportedParts, report.InventoryPrefix, entries)
}

// reportedUses lists the entries that tell of claims, in the same way.
const reportedUses = "reported-claims"

func (a *Agent) reportUses() {
	if a.cfg.Uses == nil {
		return
	}
	entries, err := report.SplitClaims(a.cfg.Uses())
	if err != nil {
		a.cfg.Log.Warn("not all that can be claimed is reported", "err", err)
	}
	a.reportAll(reportedUses, report.ClaimPrefix, entries)
}

// reportAll makes the entries under a prefix these. The bucket notes which there are, since
// who starts again must take back those of things that went meanwhile.
func (a *Agent) reportAll(bucket, prefix string, entries map[string][]byte) {
	gone := map[string]bool{}
	if err := a.cfg.State.Load(bucket, func(k, _ []byte) error { gone[prefix+string(k)] = true; return nil }); err != nil {
		a.cfg.Log.Warn("cannot tell what was reported", "of", prefix, "err", err)
	}
	note := func(key string, value []byte) link.Op {
		return link.Op{Bucket: bucket, Key: []byte(strings.TrimPrefix(key, prefix)), Value: value}
	}
	var ops []link.Op
	// Services before the head that names them, as the core sees them in this order.
	keys := slices.Sorted(maps.Keys(entries))
	slices.Reverse(keys)
	for _, key := range keys {
		if !gone[key] {
			ops = append(ops, note(key, []byte{1}))
		}
		delete(gone, key)
	}
	if len(ops) > 0 { // noted before it is reported: an entry without a note would stay for ever
		if err := a.cfg.State.Commit(ops, false); err != nil {
			a.cfg.Log.Warn("cannot note what is reported", "of", prefix, "err", err)
		}
	}
	for _, key := range keys {
		a.putRaw(key, entries[key])
	}
	ops = nil
	for _, key := range slices.Sorted(maps.Keys(gone)) { // heads before their services
		if err := a.cfg.Link.Report(key, nil); err == nil {
			ops = append(ops, note(key, nil))
		}
	}
	if err := a.cfg.State.Commit(ops, false); err != nil {
		a.cfg.Log.Warn("cannot forget what was reported", "of", prefix, "err", err)
	}
}

func (a *Agent) put(key string, value any) {
	b, err := encMode.Marshal(value)
	if err != nil {
		a.cfg.Log.Warn("not reported", "key", key, "err", err)
		return
	}
	a.putRaw(key, b)
}

func (a *Agent) putRaw(key string, value []byte) {
	if err := a.cfg.Link.Report(key, value); err != nil {
		a.cfg.Log.Warn("not reported", "key", strings.ToValidUTF8(key, "?"), "err", err)
	}
}
