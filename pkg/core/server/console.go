package server

import (
	"context"
	"net/http"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/web"
)

// NewConsole makes the web console over the same store and ledger as the REST API.
func NewConsole(cfg Config) (*web.Console, error) {
	return web.New(web.Config{
		Source: consoleSource{cfg.Store, cfg.Ledger, cfg.Heard},
		Inventory: func(ctx context.Context, tenant, name string) (*api.Inventory, error) {
			if cfg.Inventories == nil {
				return nil, nil
			}
			id, err := (&Server{cfg: cfg}).deviceID(ctx, tenant, name)
			if err != nil {
				return nil, err
			}
			return cfg.Inventories.Inventory(ctx, id)
		},
		Who: func(r *http.Request) (string, error) {
			c, err := r.Cookie(SessionCookie)
			if err != nil {
				return "", err
			}
			p, err := cfg.Tokens.CheckToken(r.Context(), c.Value)
			return p.Name, err
		},
		Check:  func(ctx context.Context, token string) error { _, err := cfg.Tokens.CheckToken(ctx, token); return err },
		Cookie: SessionCookie, Version: cfg.Version, Now: cfg.Now, Log: cfg.Log,
	})
}

type consoleSource struct {
	store  store.Store
	ledger Ledger
	heard  Heard
}

func (c consoleSource) List(ctx context.Context, kind string) ([]*api.Object, error) {
	items, _, _, err := c.store.List(ctx, store.Query{Kind: kind})
	for i := range items {
		items[i] = c.heard.show(items[i])
	}
	return items, err
}

func (c consoleSource) Events(ctx context.Context, limit int) ([]web.Event, error) {
	if c.ledger == nil {
		return nil, nil
	}
	entries, err := c.ledger.Events(ctx, EventScope{}, limit)
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
		events := c.store.Watch(ctx, store.WatchQuery{Kinds: []string{api.KindDevice, api.KindFleet}})
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

// Authorize says whether the person who makes a request may reach a room with a
// protocol of its own, such as the registry.
func (s *Server) Authorize(r *http.Request, write bool) error {
	p, err := s.Authenticate(r)
	if err != nil {
		return err
	}
	if write && p.Role != store.Admin {
		return &api.Error{Code: api.Forbidden, Message: "a " + string(p.Role) + " may only read", Remedy: "ask for a token of role admin"}
	}
	return nil
}
