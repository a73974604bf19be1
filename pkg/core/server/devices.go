package server

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/access"
)

// Devices acts on single devices. Both acts may be repeated.
type Devices interface {
	// Approve lets a device receive manifests.
	Approve(ctx context.Context, key api.Key) (*api.Object, error)
	// Retire revokes a device for good.
	Retire(ctx context.Context, key api.Key) (*api.Object, error)
	// Uncordon notes that a card or slice is well, whatever was found of it until then.
	Uncordon(ctx context.Context, key api.Key, id string, until int64) (*api.Object, error)
}

// Inventories answers what devices are made of. It only reads.
type Inventories interface {
	// Inventory gives nil for a device that has not told.
	Inventory(ctx context.Context, device api.DeviceID) (*api.Inventory, error)
}

type inventoryOutput struct{ Body *api.Inventory }

func (s *Server) inventoryRoute() {
	if s.cfg.Inventories == nil {
		return
	}
	op := huma.Operation{OperationID: "inventory", Method: http.MethodGet, Path: "/api/v1/devices/{name}/inventory", Summary: "What a device is made of, as it told last", Tags: []string{"devices"},
		Middlewares: s.needs(access.Read, Device), Responses: s.responses(http.StatusOK, s.schemaOf(new(api.Inventory)))}
	huma.Register(s.api, op, func(ctx context.Context, in *ObjectPath) (*inventoryOutput, error) {
		id, err := s.deviceID(ctx, access.Read, in.Tenant, in.Name)
		if err != nil {
			return nil, s.fail(err)
		}
		i, err := s.cfg.Inventories.Inventory(ctx, id)
		if err == nil && i == nil {
			err = &api.Error{Code: api.NotFound, Message: "the device has not told what it is made of", Remedy: "look again when it is online; older versions never tell"}
		}
		if err != nil {
			return nil, s.fail(err)
		}
		return &inventoryOutput{i}, nil
	})
}

func (s *Server) deviceRoutes() {
	if s.cfg.Devices == nil {
		return
	}
	acts := []struct {
		verb, summary string
		do            func(context.Context, api.Key) (*api.Object, error)
	}{
		{"approve", "Let a device receive manifests", s.cfg.Devices.Approve},
		{"retire", "Revoke a device for good", s.cfg.Devices.Retire},
	}
	for _, act := range acts {
		op := huma.Operation{OperationID: act.verb + "-device", Method: http.MethodPost, Path: "/api/v1/devices/{name}/" + act.verb, Summary: act.summary, Tags: []string{"devices"},
			Middlewares: s.needs(access.Approve, Device), Responses: s.responses(http.StatusOK, &huma.Schema{Ref: "#/components/schemas/" + api.KindDevice})}
		huma.Register(s.api, op, func(ctx context.Context, in *ObjectPath) (*objectOutput, error) {
			key := api.Key{Tenant: in.Tenant, Kind: api.KindDevice, Name: in.Name}
			obj, err := act.do(ctx, key)
			if err != nil {
				return nil, s.fail(err)
			}
			s.cfg.Log.Info("device "+act.verb+"d", "device", key.String(), "actor", CallerOf(ctx).Name)
			return s.output(ctx, obj), nil
		})
	}
}

type uncordonInput struct {
	ObjectPath
	Body struct {
		ID string `json:"id" doc:"a card, with all of its slices, or a slice, as the inventory names it" maxLength:"64"`
	}
}

// uncordonRoute takes a person's word that a card or slice is well: what the device told of it
// so far is ended, by the device's manifest.
func (s *Server) uncordonRoute() {
	if s.cfg.Devices == nil || s.cfg.Inventories == nil {
		return
	}
	op := huma.Operation{OperationID: "uncordon-device", Method: http.MethodPost, Path: "/api/v1/devices/{name}/uncordon", Summary: "Say that a card or slice is well, so that it is given again", Tags: []string{"devices"},
		Middlewares: s.needs(access.Approve, Device), Responses: s.responses(http.StatusOK, &huma.Schema{Ref: "#/components/schemas/" + api.KindDevice})}
	huma.Register(s.api, op, func(ctx context.Context, in *uncordonInput) (*objectOutput, error) {
		obj, err := s.uncordon(ctx, api.Key{Tenant: in.Tenant, Kind: api.KindDevice, Name: in.Name}, in.Body.ID)
		if err != nil {
			return nil, s.fail(err)
		}
		s.cfg.Log.Info("a card or slice is uncordoned", "device", in.Name, "id", in.Body.ID, "actor", CallerOf(ctx).Name)
		return s.output(ctx, obj), nil
	})
}

func (s *Server) uncordon(ctx context.Context, key api.Key, id string) (*api.Object, error) {
	device, err := s.deviceID(ctx, access.Approve, key.Tenant, key.Name)
	if err != nil {
		return nil, err
	}
	i, err := s.cfg.Inventories.Inventory(ctx, device)
	if err != nil {
		return nil, err
	}
	var until int64
	cordoned := false
	if i != nil {
		until, cordoned = i.Newest(id)
	}
	if !cordoned { // check: it is cordoned
		return nil, &api.Error{Code: api.NotFound, Field: "id", Message: "the device tells of nothing that is wrong with " + id, Remedy: "name a card or slice as `edgectl device hardware " + key.Name + "` shows it, with the state cordoned"}
	}
	return s.cfg.Devices.Uncordon(ctx, key, id, until)
}

// deviceID finds the id of a device by its name, for a caller who wants to do something with it.
func (s *Server) deviceID(ctx context.Context, action access.Action, tenant, name string) (api.DeviceID, error) {
	if name == "" {
		return api.DeviceID{}, &api.Error{Code: api.Invalid, Field: "device", Message: "no device is named", Remedy: "add ?device=NAME"}
	}
	obj, err := s.get(ctx, action, api.Key{Tenant: tenant, Kind: api.KindDevice, Name: name})
	if err != nil {
		return api.DeviceID{}, err
	}
	var status api.DeviceStatus
	if err := json.Unmarshal(obj.Status, &status); err != nil {
		return api.DeviceID{}, err
	}
	return status.ID, nil
}

// DeviceOf finds the device that a person's request names in its path and query, for
// rooms that bring routes under /api/v1/devices/{name}/ and say there what they need.
func (s *Server) DeviceOf(r *http.Request) (api.DeviceID, error) {
	tenant := r.URL.Query().Get("tenant")
	if tenant == "" {
		tenant = api.DefaultTenant
	}
	return s.deviceID(r.Context(), access.Read, tenant, r.PathValue("name"))
}

type (
	whoOutput struct {
		Body struct {
			Name     string           `json:"name"`
			Role     string           `json:"role" doc:"The roles that its bindings give."`
			Account  string           `json:"account" doc:"Whose token it is: tenant/name of a service account; empty for a person."`
			Person   string           `json:"person,omitempty" doc:"Whose session it is: the uid of a person."`
			Bindings []access.Binding `json:"bindings"`
		}
	}
	versionOutput struct {
		Body struct {
			Version string `json:"version"`
		}
	}
)

func (s *Server) aboutRoutes() {
	op := func(id, path, summary string) huma.Operation {
		return huma.Operation{OperationID: id, Method: http.MethodGet, Path: path, Summary: summary, Tags: []string{"about"}, Middlewares: s.needs("", Everybody)}
	}
	huma.Register(s.api, op("whoami", "/api/v1/whoami", "Who you are, and what you are bound to"), func(ctx context.Context, _ *struct{}) (*whoOutput, error) {
		c := CallerOf(ctx)
		out := &whoOutput{}
		var roles []string
		for _, b := range c.Bindings {
			if !slices.Contains(roles, b.Role) {
				roles = append(roles, b.Role)
			}
		}
		out.Body.Name, out.Body.Role, out.Body.Account = c.Name, cmp.Or(strings.Join(roles, ", "), "no role"), ""
		if out.Body.Person = c.Person; c.Person == "" {
			out.Body.Account = c.Account.Tenant + "/" + c.Account.Name
		}
		out.Body.Bindings = append([]access.Binding{}, c.Bindings...)
		return out, nil
	})
	huma.Register(s.api, op("version", "/api/v1/version", "The version of the core"), func(context.Context, *struct{}) (*versionOutput, error) {
		out := &versionOutput{}
		out.Body.Version = s.cfg.Version
		return out, nil
	})
}
