package server_test

import (
	"context"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/server"
	"tributary.dev/tributary/pkg/core/store"
)

// cardBox is a roster that notes what it is asked, and the inventory of a box whose card failed.
type cardBox struct {
	server.Devices
	id    string
	until int64
}

func (b *cardBox) Uncordon(_ context.Context, key api.Key, id string, until int64) (*api.Object, error) {
	b.id, b.until = id, until
	return &api.Object{APIVersion: api.Version, Kind: api.KindDevice, Metadata: api.Meta{Name: key.Name, Tenant: key.Tenant}, Spec: []byte(`{}`)}, nil
}

func (b *cardBox) Inventory(context.Context, api.DeviceID) (*api.Inventory, error) {
	return &api.Inventory{Accelerators: []api.Accelerator{{ID: "GPU-0", Findings: []api.AcceleratorFinding{{Warning: api.Warning{Name: "gpu-xid", Since: 77}, Action: "move"}}}, {ID: "GPU-1"}}}, nil
}

// TestUncordon: an admin says that a card is well, of which the box told that it is not. What
// it told until then is ended, nothing later.
func TestUncordon(t *testing.T) {
	b := &cardBox{}
	c := start(t, func(cfg *server.Config) { cfg.Devices, cfg.Inventories = b, b })
	o := &api.Object{APIVersion: api.Version, Kind: api.KindDevice, Metadata: api.Meta{Name: "box", Tenant: api.DefaultTenant}, Spec: []byte(`{}`)}
	if _, err := c.store.Put(t.Context(), o, store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.store.PutStatus(t.Context(), o.Key(), api.DeviceStatus{ID: api.DeviceID{5}}); err != nil {
		t.Fatal(err)
	}
	for _, ask := range []struct {
		token, device, body string
		want                int
	}{
		{c.viewer, "box", `{"id":"GPU-0"}`, 403},
		{"", "box", `{"id":"GPU-0"}`, 401},
		{c.admin, "other", `{"id":"GPU-0"}`, 404},
		{c.admin, "box", `{"id":"GPU-1"}`, 404},
		{c.admin, "box", `{"id":""}`, 404},
	} {
		if code, _ := c.callAs(ask.token, "POST", "/api/v1/devices/"+ask.device+"/uncordon", ask.body, nil); code != ask.want || b.id != "" {
			t.Errorf("%s of %s: %d, want %d; noted is %q", ask.body, ask.device, code, ask.want, b.id)
		}
	}
	if code, _ := c.callAs(c.admin, "POST", "/api/v1/devices/box/uncordon", `{"id":"GPU-0"}`, nil); code != 200 || b.id != "GPU-0" || b.until != 77 {
		t.Errorf("%d; noted is %q until %d", code, b.id, b.until)
	}
}
