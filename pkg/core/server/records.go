package server

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/access"
	"tributary.dev/tributary/pkg/core/store"
)

// Ledger answers for what devices recorded. All methods only read.
type Ledger interface {
	// Usage sums up one device's usage; positions and totals are of one moment.
	Usage(ctx context.Context, device api.DeviceID) (*UsageReport, error)
	// Records lists one device's records with a number above after, oldest first.
	Records(ctx context.Context, device api.DeviceID, after uint64, limit int) ([]RecordEntry, error)
	// Events lists the newest events and audits, newest first.
	Events(ctx context.Context, of EventScope, limit int) ([]EventEntry, error)
}

// EventScope says whose events: everybody's, or those of devices and of all devices of tenants.
type EventScope struct {
	Everybody bool
	Devices   []api.DeviceID
	Tenants   []string
}

// eventScope reads the scope of a request, as far as the caller may read. A device that was
// deleted belongs to no tenant: its events are with everybody's.
func (s *Server) eventScope(ctx context.Context, tenant, device string) (of EventScope, err error) {
	if device != "" {
		id, err := s.deviceID(ctx, access.Read, tenant, device)
		return EventScope{Devices: []api.DeviceID{id}}, err
	}
	view := CallerOf(ctx).Of(access.Read, api.KindDevice)
	of.Everybody = tenant == "*"
	if !view.Everything { // check: scope of events
		of.Everybody = false
	}
	if of.Everybody {
		return of, nil
	}
	in := []string{tenant}
	if tenant == "*" {
		in = view.Reaches()
	} else if err := s.ownerOf(ctx, tenant, 0); err != nil {
		return of, err
	}
	for _, tenant := range in {
		part := false
		if !view.Whole(tenant) { // check: scope of the events of a tenant
			part = true
		}
		if !part {
			of.Tenants = append(of.Tenants, tenant)
			continue
		}
		devices, _, _, err := s.cfg.Store.List(ctx, store.Query{Kind: api.KindDevice, Tenant: tenant, Only: view.Has})
		if err != nil {
			return of, err
		}
		for _, o := range devices {
			var status api.DeviceStatus
			if err := json.Unmarshal(o.Status, &status); err != nil {
				return of, err
			}
			of.Devices = append(of.Devices, status.ID)
		}
	}
	return of, nil
}

// UsageReport is what the ledger counted of one device.
type UsageReport struct {
	Device string `json:"device"`
	// SpoolEpoch and Acked tell up to which record the totals count.
	SpoolEpoch uint64 `json:"spoolEpoch"`
	Acked      uint64 `json:"acked"`
	// Safe is the last record that devices may forget.
	Safe uint64 `json:"safe"`
	// Intervals counts usage records; Lost the records that the device gave up.
	Intervals uint64       `json:"intervals"`
	Lost      uint64       `json:"lost,omitempty"`
	Totals    []UsageTotal `json:"totals"`
}

// UsageTotal is the use of one service since its first record.
type UsageTotal api.ContainerUse

// RecordEntry is one record as the ledger holds it.
type RecordEntry struct {
	Seq   uint64     `json:"seq"`
	Last  uint64     `json:"last,omitempty" doc:"Above seq when several intervals were summed."`
	Epoch uint64     `json:"epoch" doc:"The device's spool epoch."`
	Kind  string     `json:"kind" enum:"usage,event,audit,telemetry,lost"`
	Time  int64      `json:"time,omitempty" doc:"When the core took it, Unix milliseconds."`
	Usage *api.Usage `json:"usage,omitempty"`
	Event *api.Event `json:"event,omitempty"`
	KPI   *api.KPI   `json:"kpi,omitempty" doc:"Of a telemetry record that sums up readings of one quantity."`
	Data  []byte     `json:"data,omitempty"`
	// Poison tells why a record could not be read.
	Poison string `json:"poison,omitempty"`
}

// EventEntry is one event with its origin.
type EventEntry struct {
	Device string    `json:"device"`
	Name   string    `json:"name,omitempty" doc:"The device's name."`
	Tenant string    `json:"tenant,omitempty" doc:"The device's owner; absent when the device is gone."`
	Seq    uint64    `json:"seq"`
	Audit  bool      `json:"audit,omitempty"`
	Core   bool      `json:"core,omitempty" doc:"Noted by the core, not told by the device; seq counts the core's events then."`
	Event  api.Event `json:"event"`
}

type (
	// DeviceQuery names one device.
	DeviceQuery struct {
		TenantQuery
		Device string `query:"device" maxLength:"63" doc:"The device's name."`
	}
	usageOutput   struct{ Body *UsageReport }
	recordsOutput struct{ Body recordList }
	recordList    struct {
		Items []RecordEntry `json:"items"`
		Next  uint64        `json:"next,omitempty" doc:"Pass as after for the next page; absent on the last."`
	}
	eventsOutput struct{ Body eventList }
	eventList    struct {
		Items []EventEntry `json:"items"`
	}
)

func (s *Server) recordRoutes() {
	if s.cfg.Ledger == nil {
		return
	}
	op := func(id, path, summary string, needs access.Action, answer any) huma.Operation {
		return huma.Operation{OperationID: id, Method: http.MethodGet, Path: path, Summary: summary, Tags: []string{"records"},
			Middlewares: s.needs(needs, Each), Responses: s.responses(http.StatusOK, s.schemaOf(answer))}
	}
	huma.Register(s.api, op("usage", "/api/v1/usage", "What one device's apps used, counted exactly once", access.Usage, new(UsageReport)), func(ctx context.Context, in *DeviceQuery) (*usageOutput, error) {
		id, err := s.deviceID(ctx, access.Usage, in.Tenant, in.Device)
		if err != nil {
			return nil, s.fail(err)
		}
		report, err := s.cfg.Ledger.Usage(ctx, id)
		if err != nil {
			return nil, s.fail(err)
		}
		report.Device = in.Device
		return &usageOutput{Body: report}, nil
	})
	type pageQuery struct {
		DeviceQuery
		After uint64 `query:"after" doc:"Records with a higher number."`
		Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"500"`
	}
	huma.Register(s.api, op("records", "/api/v1/records", "The records of one device, oldest first", access.Usage, new(recordList)), func(ctx context.Context, in *pageQuery) (*recordsOutput, error) {
		id, err := s.deviceID(ctx, access.Usage, in.Tenant, in.Device)
		if err != nil {
			return nil, s.fail(err)
		}
		items, err := s.cfg.Ledger.Records(ctx, id, in.After, in.Limit)
		if err != nil {
			return nil, s.fail(err)
		}
		veilRecords(ctx, in.Tenant, items)
		out := &recordsOutput{Body: recordList{Items: items}}
		if n := len(items); n > 0 && n == in.Limit {
			out.Body.Next = max(items[n-1].Seq, items[n-1].Last)
		}
		return out, nil
	})
	type eventQuery struct {
		DeviceQuery
		Limit int  `query:"limit" minimum:"1" maximum:"1000" default:"100"`
		Watch bool `query:"watch" doc:"Stream events as server-sent events instead: the newest first, the oldest of them leading, then those that come."`
	}
	events := op("events", "/api/v1/events", "The newest events, newest first", access.Read, new(eventList))
	events.Middlewares = append(events.Middlewares, s.watchEventsOr)
	events.Responses["200"].Content["text/event-stream"] = &huma.MediaType{Schema: &huma.Schema{OneOf: []*huma.Schema{s.schemaOf(new(EventEntry)), s.schemaOf(new(api.Error))},
		Description: "With watch=true, server-sent events without end. event: an entry, oldest first; synced: all that was there has come; error: the stream ends. Whoever connects again gets the newest again."}}
	huma.Register(s.api, events, func(ctx context.Context, in *eventQuery) (*eventsOutput, error) {
		of, err := s.eventScope(ctx, in.Tenant, in.Device)
		if err != nil {
			return nil, s.fail(err)
		}
		items, err := s.cfg.Ledger.Events(ctx, of, in.Limit)
		if err != nil {
			return nil, s.fail(err)
		}
		veilEvents(ctx, items)
		return &eventsOutput{Body: eventList{Items: items}}, nil
	})
}
