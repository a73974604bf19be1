package server

import (
	"context"
	"net/http"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/access"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/web"
)

// NewConsole makes the web console over the same store and ledger as the REST API.
func NewConsole(cfg Config) (*web.Console, error) {
	s := &Server{cfg: cfg}
	return web.New(web.Config{
		Source: consoleSource{s},
		Inventory: func(ctx context.Context, tenant, name string) (*api.Inventory, error) {
			if cfg.Inventories == nil {
				return nil, nil
			}
			id, err := s.deviceID(ctx, access.Read, tenant, name)
			if err != nil {
				return nil, err
			}
			return cfg.Inventories.Inventory(ctx, id)
		},
		Who: func(r *http.Request) (context.Context, string, error) {
			r, err := s.admit(Needs{access.Read, Each}, r)
			return r.Context(), CallerOf(r.Context()).Name, err
		},
		Check:  func(ctx context.Context, token string) error { _, err := cfg.Access.ByToken(ctx, token); return err },
		Cookie: SessionCookie, Version: cfg.Version, Now: cfg.Now, Log: cfg.Log,
	})
}

type consoleSource struct{ s *Server }

func (c consoleSource) List(ctx context.Context, kind string) ([]*api.Object, error) {
	items, _, _, err := c.s.cfg.Store.List(ctx, store.Query{Kind: kind, Only: c.s.only(ctx, kind)})
	for i := range items {
		items[i] = c.s.cfg.Heard.show(items[i])
	}
	return items, err
}

func (c consoleSource) Events(ctx context.Context, limit int) ([]web.Event, error) {
	if c.s.cfg.Ledger == nil {
		return nil, nil
	}
	of, err := c.s.eventScope(ctx, "*", "")
	if err != nil {
		return nil, err
	}
	entries, err := c.s.cfg.Ledger.Events(ctx, of, limit)
	if err != nil {
		return nil, err
	}
	out := make([]web.Event, len(entries))
	for i, e := range entries {
		out[i] = web.Event{Device: e.Name, Event: veiled(e.Event)} // viewers look here too
		if e.Name == "" {
			out[i].Device = e.Device
		}
	}
	return out, nil
}

// eventsEvery is how often somebody who looks sees new events: they are no objects, so
// no watch tells of them.
const eventsEvery = 5 * time.Second

func (c consoleSource) Changes(ctx context.Context) <-chan struct{} {
	out := make(chan struct{}, 1)
	go func() {
		defer close(out)
		tick := time.NewTicker(eventsEvery)
		defer tick.Stop()
		events := c.s.cfg.Store.Watch(ctx, store.WatchQuery{Kinds: []string{api.KindDevice, api.KindFleet}})
		for {
			select {
			case e, ok := <-events:
				if !ok || e.Err != nil {
					return
				}
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			select {
			case out <- struct{}{}:
			default: // one is waiting to be looked at
			}
		}
	}()
	return out
}
