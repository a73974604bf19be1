package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"log/slog"
	"slices"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/fleet"
	"tributary.dev/tributary/pkg/core/intake"
	"tributary.dev/tributary/pkg/core/roster"
	"tributary.dev/tributary/pkg/core/server"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link/record"
	"tributary.dev/tributary/pkg/report"
)

// keys answers the link's questions about keys from the roster and the authority.
type keys struct {
	c *core

	// State keys cost a curve multiplication each and are asked for with every report.
	mu    sync.Mutex
	state map[api.DeviceID]stateKeys
	of    []*ecdsa.PrivateKey // the core's sealing keys of which they were made
}

type stateKeys struct {
	seal *ecdsa.PublicKey // of which they were made
	keys [][32]byte
}

// Device implements link.CoreKeys.
func (k *keys) Device(id api.DeviceID) (crypto.PublicKey, bool) {
	pub, ok := k.c.roster.PublicKey(id)
	return pub, ok
}

// StateKeys implements link.CoreKeys.
func (k *keys) StateKeys(id api.DeviceID) [][32]byte {
	seal, ok := k.c.roster.SealKey(id)
	if !ok {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if of := k.c.ca.SealingKeys(); !slices.Equal(of, k.of) {
		k.of = of
		clear(k.state)
	}
	if known, ok := k.state[id]; ok && known.seal.Equal(seal) {
		return known.keys
	}
	out := stateKeys{seal: seal}
	for _, own := range k.of {
		key, err := identity.StateKey(own, seal, id)
		if err != nil {
			k.c.log.Error("no state key for a device", "device", id, "err", err)
			return nil
		}
		out.keys = append(out.keys, key)
	}
	k.state[id] = out
	return out.keys
}

// Verify implements link.CoreKeys.
func (k *keys) Verify(pub crypto.PublicKey, cose, aad []byte) ([]byte, error) {
	return identity.Verify(pub, cose, aad)
}

// Sign implements link.CoreKeys.
func (k *keys) Sign(aad, payload []byte) ([]byte, error) {
	key, kid := k.c.ca.Signer()
	return identity.SignKID(key, kid, aad, payload)
}

// reports tells fleet what intake knows and whom the link reaches.
type reports struct {
	intake *intake.Store
	heard  func(api.DeviceID) (at time.Time, reachable bool)
}

// Reports implements fleet.Reports.
func (r reports) Reports(ctx context.Context, ids []api.DeviceID) (map[api.DeviceID]*fleet.Report, error) {
	known, err := r.intake.Reports(ctx, ids)
	if err != nil {
		return nil, err
	}
	all := make(map[api.DeviceID]*fleet.Report, len(known))
	for id, in := range known {
		out := &fleet.Report{Entries: in.Entries, LastSeen: in.Seen}
		var heard time.Time
		if heard, out.Online = r.heard(id); out.Online && heard.After(in.Seen) {
			out.LastSeen = heard
		}
		switch {
		case !in.Attached:
		case in.Parent.IsZero():
			out.Parent = identity.CoreName
		default:
			out.Parent = in.Parent.String()
		}
		all[id] = out
	}
	return all, nil
}

// inventories answers what devices are made of from what they reported.
type inventories struct {
	intake *intake.Store
	log    *slog.Logger
}

// Inventory implements server.Inventories.
func (i inventories) Inventory(ctx context.Context, id api.DeviceID) (*api.Inventory, error) {
	entries, err := i.intake.Parts(ctx, id, report.InventoryPrefix)
	if err != nil {
		return nil, err
	}
	out, bad := report.JoinInventory(entries)
	if out == nil {
		return nil, nil
	}
	if entries, err = i.intake.Parts(ctx, id, report.ClaimPrefix); err != nil {
		return nil, err
	}
	var unread []string
	out.Claims, unread = report.JoinClaims(entries)
	bad = append(bad, unread...)
	if len(bad) > 0 {
		i.log.Warn("a device reported hardware that cannot be read", "device", id, "keys", bad)
	}
	return out, nil
}

// ledger answers the server's questions about records from intake.
type ledger struct {
	intake *intake.Store
	store  store.Events
	roster *roster.Roster
}

// Usage implements server.Ledger.
func (l ledger) Usage(ctx context.Context, id api.DeviceID) (*server.UsageReport, error) {
	u, err := l.intake.Usage(ctx, id, time.Time{}, time.Time{})
	if err != nil {
		return nil, err
	}
	out := &server.UsageReport{SpoolEpoch: u.SpoolEpoch, Acked: u.Acked, Safe: u.Safe, Intervals: u.Intervals, Lost: u.Lost, Totals: []server.UsageTotal{}}
	for _, t := range u.Totals {
		out.Totals = append(out.Totals, server.UsageTotal(t.ContainerUse))
	}
	return out, nil
}

var kindNames = map[api.RecordKind]string{api.RecordUsage: "usage", api.RecordEvent: "event", api.RecordAudit: "audit", api.RecordTelemetry: "telemetry"}

// Records implements server.Ledger.
func (l ledger) Records(ctx context.Context, id api.DeviceID, after uint64, limit int) ([]server.RecordEntry, error) {
	in, err := l.intake.Records(ctx, id, after, limit)
	if err != nil {
		return nil, err
	}
	out := make([]server.RecordEntry, len(in))
	for i, e := range in {
		kind := kindNames[e.Kind]
		if kind == "" {
			kind = "lost" // numbers that the device gave up
		}
		out[i] = server.RecordEntry{Seq: e.Seq, Last: e.Last, Epoch: e.Epoch, Kind: kind, Usage: e.Usage, Event: e.Event, Data: e.Payload, Poison: e.Poison}
		if k, err := record.DecodeKPI(e.Payload); e.Kind == api.RecordTelemetry && err == nil {
			out[i].KPI, out[i].Data = &k, nil
		}
		if !e.Taken.IsZero() {
			out[i].Time = e.Taken.UnixMilli()
		}
	}
	return out, nil
}

// Events implements server.Ledger.
func (l ledger) Events(ctx context.Context, scope server.EventScope, limit int) ([]server.EventEntry, error) {
	var of []api.DeviceID
	if !scope.Everybody {
		of = append([]api.DeviceID{}, scope.Devices...)
		for _, tenant := range scope.Tenants {
			of = append(of, l.roster.OfTenant(tenant)...)
		}
	}
	in, err := l.intake.Events(ctx, of, limit)
	if err != nil {
		return nil, err
	}
	own, err := l.store.Events(ctx, of, limit)
	if err != nil {
		return nil, err
	}
	// Each list is in the order in which its events came; only between them the clocks
	// decide, which may differ.
	out := make([]server.EventEntry, 0, min(limit, len(in)+len(own)))
	for len(out) < limit && len(in)+len(own) > 0 {
		if len(in) == 0 || len(own) > 0 && own[0].Time >= in[0].Event.Time {
			out = append(out, server.EventEntry{Device: own[0].Device.String(), Name: own[0].Label, Seq: uint64(own[0].ID), Core: true, Event: own[0].Event})
			own = own[1:]
			continue
		}
		out = append(out, server.EventEntry{Device: in[0].Device.String(), Seq: in[0].Seq, Audit: in[0].Kind == api.RecordAudit, Event: *in[0].Event})
		in = in[1:]
	}
	for i := range out {
		if device, err := api.ParseDeviceID(out[i].Device); err == nil {
			if key, ok := l.roster.ObjectOf(device); ok {
				out[i].Name, out[i].Tenant = key.Name, key.Tenant
			}
		}
	}
	return out, nil
}
