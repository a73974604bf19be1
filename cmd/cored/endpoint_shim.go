package main

import (
	"context"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/manifest"
)

type endpoint struct{}

func newEndpoint(*core) (*endpoint, error)                         { return &endpoint{}, nil }
func (endpoint) Publish(*manifest.Signed, map[string]uint64) error { return nil }
func (endpoint) Command(api.DeviceID, []byte) error                { return nil }
func (endpoint) Reachable(api.DeviceID) bool                       { return true }
func (endpoint) Run(ctx context.Context) error                     { <-ctx.Done(); return ctx.Err() }
