package main

import (
	"cmp"
	"context"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/insight"
	"tributary.dev/tributary/pkg/core/server"
)

// openInsight makes the room of incidents.
func (c *core) openInsight(context.Context) error {
	c.insight = insight.New(insight.Config{Store: c.store, Now: time.Now, Log: c.log,
		Rules: insight.Rules{Patience: cmp.Or(c.o.patience, 2*time.Minute), Quiet: 24 * time.Hour, Keep: 30 * 24 * time.Hour},
		Findings: func(ctx context.Context, after int64, limit int) ([]insight.Finding, int64, error) {
			in, last, err := c.intake.EventsNamed(ctx, api.EventAnomaly, after, limit)
			out := make([]insight.Finding, len(in))
			for i, e := range in {
				out[i] = insight.Finding{Device: e.Device, At: api.RecordPosition{Epoch: e.Epoch, Seq: e.Seq}, Time: time.UnixMilli(e.Event.Time), Subject: e.Event.Subject, Message: e.Event.Message}
			}
			return out, last, err
		}})
	return nil
}

// admitIncident has people change incidents, not make them.
func admitIncident(_ context.Context, ch server.Change) (server.Decision, error) {
	if ch.Old == nil {
		return server.Decision{}, &api.Error{Code: api.NotFound, Field: "metadata.name", Message: "there is no Incident " + ch.New.Metadata.Name, Remedy: "incidents are raised by the core; see `edgectl get incidents`"}
	}
	return server.Decision{}, nil
}
