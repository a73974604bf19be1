package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link/record"
)

// sampleEvery is how often counters are read between two records.
const sampleEvery = 10 * time.Second

// metering cuts usage into records.
//
// Reads: the meter (which reads the workload's targets), the interval of the settings.
// Writes: usage records, the totals.
func (a *Agent) metering(ctx context.Context) error {
	a.settlePending()
	for {
		interval := a.meterInterval()
		sample := time.NewTicker(max(min(sampleEvery, interval/2), 100*time.Millisecond))
		cut := time.NewTicker(interval)
		err := a.meterAt(ctx, sample.C, cut.C)
		sample.Stop()
		cut.Stop()
		if err != nil {
			return nil // ctx ended
		}
	}
}

func (a *Agent) meterInterval() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Duration(a.settings.MeterInterval)
}

// meterAt works at one cadence until that changes (nil) or ctx ends.
func (a *Agent) meterAt(ctx context.Context, sample, cut <-chan time.Time) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.newCadence:
			return nil
		case <-sample:
			if err := a.cfg.Meter.Sample(); err != nil {
				a.cfg.Log.Warn("not metered", "err", err)
			}
		case <-cut:
			if err := a.cutUsage(); err != nil {
				a.warn("usage-unwritten", api.Critical, "usage is kept in the meter, but cannot be recorded: "+err.Error())
			} else {
				a.clear("usage-unwritten")
			}
		}
	}
}

// settlePending finishes an interval that was cut before a crash: recorded already, it
// is only committed.
func (a *Agent) settlePending() {
	u, ok := a.cfg.Meter.Pending()
	if !ok {
		return
	}
	var err error
	if a.totals.covers(u.To) {
		err = a.cfg.Meter.Commit(u.To)
	} else {
		err = a.recordUsage(u)
	}
	if err != nil {
		a.cfg.Log.Warn("pending usage not recorded yet", "err", err)
	}
}

// cutUsage records the interval since the last one. It may be called again after any
// failure: the meter then gives the same interval.
func (a *Agent) cutUsage() error {
	u, err := a.cfg.Meter.Collect()
	if err != nil {
		return err
	}
	if a.totals.covers(u.To) {
		return a.cfg.Meter.Commit(u.To)
	}
	return a.recordUsage(u)
}

func (a *Agent) recordUsage(u api.Usage) error {
	if len(u.Uses) == 0 {
		return a.cfg.Meter.Commit(u.To)
	}
	payload, err := record.EncodeUsage(u)
	if err != nil {
		return err
	}
	seq, err := a.cfg.Link.Append(api.RecordUsage, payload)
	if seq == 0 {
		return fmt.Errorf("append usage: %w", err)
	}
	// The record is durable, whatever became of the link. A failure to save the totals is mended from the spool.
	return errors.Join(a.totals.appended(seq, u), a.cfg.Meter.Commit(u.To))
}

// recordEvents writes what happened.
//
// Reads: the queue of events. Writes: event records.
func (a *Agent) recordEvents(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-a.events:
			a.appendEvent(api.RecordEvent, e)
		}
		a.mu.Lock()
		lost := a.lost
		a.lost = 0
		a.mu.Unlock()
		if lost > 0 {
			a.appendEvent(api.RecordEvent, api.Event{Time: a.cfg.Clock.Now().UnixMilli(), Name: "events.lost", Message: fmt.Sprintf("%d events found no room", lost)})
		}
	}
}

// maxText bounds each text of an event.
const maxText = 4 << 10

func (a *Agent) appendEvent(kind api.RecordKind, e api.Event) {
	for _, s := range []*string{&e.Name, &e.Subject, &e.Message, &e.Actor} {
		*s = (*s)[:min(len(*s), maxText)]
	}
	payload, err := record.EncodeEvent(e)
	if err == nil {
		_, err = a.cfg.Link.Append(kind, payload)
	}
	if err != nil {
		a.cfg.Log.Warn("event not recorded", "name", e.Name, "subject", e.Subject, "err", err)
	}
}
