package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/access"
	"tributary.dev/tributary/pkg/core/rollout"
	"tributary.dev/tributary/pkg/core/store"
)

// Rollouts is the room of changes that are on their way to devices.
type Rollouts interface {
	Order(ctx context.Context, key api.Key, order string) error
	Devices(ctx context.Context, key api.Key) ([]api.RolloutDevice, error)
	// Plan says what a rollout would do; coming are revisions that the same request makes.
	Plan(ctx context.Context, tenant, name string, spec *api.RolloutSpec, coming map[api.Key]*store.Revision) (*api.RolloutPlan, error)
	History(ctx context.Context, key api.Key) (*api.RevisionHistory, error)
	// Behind says why devices do not have the newest revision of an object; empty when they do.
	Behind(ctx context.Context, key api.Key) (string, error)
	// Back gives the revision to go back to, by number or the one before, unless that must not be.
	Back(ctx context.Context, key api.Key, number int64) (*store.Revision, error)
	Settle(ctx context.Context, tenant string, refs []api.RevisionRef) ([]api.RolloutChange, error)
	Revision(ctx context.Context, key api.Key, number int64) (*store.Revision, error)
	Revoke(ctx context.Context, key api.Key, number int64) error
	PinDevice(ctx context.Context, gift store.Gift) error
}

type (
	rolloutDevicesOutput struct {
		Body struct {
			Rollout string              `json:"rollout"`
			Items   []api.RolloutDevice `json:"items"`
		}
	}
	planInput struct {
		TenantQuery
		RawBody []byte `contentType:"application/yaml"`
	}
	planOutput struct{ Body *api.RolloutPlan }
	// RevisionPath names an object that has revisions.
	RevisionPath struct {
		TenantQuery
		Kind string `path:"kind" maxLength:"63" doc:"A kind whose changes are rolled out: app, config, secret, release, fleet, …"`
		Name string `path:"name" maxLength:"63"`
	}
	historyOutput struct{ Body *api.RevisionHistory }
	undoInput     struct {
		RevisionPath
		To int64 `query:"to" minimum:"0" doc:"The revision to go back to; without it the one that all had before."`
	}
	revokeInput struct {
		RevisionPath
		Revision int64 `query:"revision" minimum:"1" required:"true" doc:"The revision that nobody is to get any more."`
	}
	pinInput struct {
		ObjectPath
		Body struct {
			Kind     string `json:"kind" maxLength:"63"`
			Object   string `json:"object" maxLength:"63" doc:"The object's name."`
			Revision int64  `json:"revision,omitempty" minimum:"0" doc:"Without it the newest."`
			Unpin    bool   `json:"unpin,omitempty" doc:"The device has what all have again."`
		}
	}
)

func (s *Server) rolloutRoutes() {
	if s.cfg.Rollouts == nil {
		return
	}
	op := func(id, method, path, summary string, needs access.Action, on On, status int, answer *huma.Schema) huma.Operation {
		return huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary, Tags: []string{"rollouts"}, MaxBodyBytes: maxBody, BodyReadTimeout: readDeadline,
			DefaultStatus: status, Middlewares: s.needs(needs, on), Responses: s.responses(status, answer)}
	}
	schema := &huma.Schema{Ref: "#/components/schemas/" + api.KindRollout}
	for order, summary := range map[string]string{rollout.Pause: "Give no more devices the change for now", rollout.Resume: "Go on; those that failed try again", rollout.Promote: "Take the wave under way for passed",
		rollout.Approve: "Let the next wave begin", rollout.Abort: "End it, and take back what was given", rollout.Keep: "End it, and leave what was given"} {
		huma.Register(s.api, op(order+"-rollout", http.MethodPost, "/api/v1/rollouts/{name}/"+order, summary, access.Write, Each, http.StatusOK, schema), func(ctx context.Context, in *ObjectPath) (*objectOutput, error) {
			obj, err := s.orderRollout(ctx, api.Key{Tenant: in.Tenant, Kind: api.KindRollout, Name: in.Name}, order)
			if err != nil {
				return nil, s.fail(err)
			}
			return s.output(ctx, obj), nil
		})
	}
	huma.Register(s.api, op("undo-rollout", http.MethodPost, "/api/v1/rollouts/{name}/undo", "Go back to what was before it, by a rollout of the same waves", access.Write, Each, http.StatusOK, schema), func(ctx context.Context, in *ObjectPath) (*objectOutput, error) {
		obj, err := s.undoRollout(ctx, api.Key{Tenant: in.Tenant, Kind: api.KindRollout, Name: in.Name})
		if err != nil {
			return nil, s.fail(err)
		}
		return s.output(ctx, obj), nil
	})
	huma.Register(s.api, op("rollout-devices", http.MethodGet, "/api/v1/rollouts/{name}/devices", "How far each device is", access.Read, Each, http.StatusOK, s.schemaOf(new(rolloutDevicesOutput))), func(ctx context.Context, in *ObjectPath) (*rolloutDevicesOutput, error) {
		key := api.Key{Tenant: in.Tenant, Kind: api.KindRollout, Name: in.Name}
		if _, err := s.get(ctx, access.Read, key); err != nil {
			return nil, s.fail(err)
		}
		list, err := s.cfg.Rollouts.Devices(ctx, key)
		out := &rolloutDevicesOutput{}
		out.Body.Rollout, out.Body.Items = in.Name, list
		return out, s.fail(err)
	})
	plan := op("plan-rollout", http.MethodPost, "/api/v1/rollout-plan", "What a Rollout would do: which devices, in which wave, what would wait or be refused, how many bytes over which links", access.Plan, Each, http.StatusOK, s.schemaOf(new(api.RolloutPlan)))
	plan.SkipValidateBody, plan.Description = true, "The body is one Rollout, with objects that it gives where these are not applied yet. Nothing is written."
	huma.Register(s.api, plan, func(ctx context.Context, in *planInput) (*planOutput, error) {
		p, err := s.planRollout(ctx, in)
		if err != nil {
			return nil, s.fail(err)
		}
		return &planOutput{p}, nil
	})
	s.revisionRoutes(op)
}

func (s *Server) revisionRoutes(op func(id, method, path, summary string, needs access.Action, on On, status int, answer *huma.Schema) huma.Operation) {
	const base = "/api/v1/revisions/{kind}/{name}"
	history := s.schemaOf(new(api.RevisionHistory))
	tell := func(ctx context.Context, key api.Key, err error) (*historyOutput, error) {
		if err != nil {
			return nil, s.fail(err)
		}
		h, err := s.cfg.Rollouts.History(ctx, key)
		if err != nil {
			return nil, s.fail(err)
		}
		return &historyOutput{h}, nil
	}
	huma.Register(s.api, op("history", http.MethodGet, base, "The revisions of an object, and when all devices were given which", access.Read, Each, http.StatusOK, history), func(ctx context.Context, in *RevisionPath) (*historyOutput, error) {
		key, err := s.revised(ctx, access.Read, in)
		return tell(ctx, key, err)
	})
	huma.Register(s.api, op("undo", http.MethodPost, base+"/undo", "Make an object what it was before, and give that to all devices", access.Write, Each, http.StatusOK, history), func(ctx context.Context, in *undoInput) (*historyOutput, error) {
		key, err := s.revised(ctx, access.Write, &in.RevisionPath)
		if err == nil {
			err = s.undo(ctx, key, in.To)
		}
		return tell(ctx, key, err)
	})
	huma.Register(s.api, op("revoke-revision", http.MethodPost, base+"/revoke", "Take a revision back for good: nobody is given it any more", access.Write, Each, http.StatusOK, history), func(ctx context.Context, in *revokeInput) (*historyOutput, error) {
		key, err := s.revised(ctx, access.Write, &in.RevisionPath)
		if err == nil {
			err = s.cfg.Rollouts.Revoke(ctx, key, in.Revision)
		}
		if err == nil {
			s.cfg.Log.Info("a revision is revoked", "object", key.String(), "revision", in.Revision, "actor", CallerOf(ctx).Name)
		}
		return tell(ctx, key, err)
	})
	huma.Register(s.api, op("pin-device", http.MethodPost, "/api/v1/devices/{name}/pin", "Give a device a revision that no rollout and no apply overrules", access.Write, Device, http.StatusNoContent, nil), func(ctx context.Context, in *pinInput) (*struct{}, error) {
		return nil, s.fail(s.pinDevice(ctx, in))
	})
}

// revised reads which object a path means.
func (s *Server) revised(ctx context.Context, action access.Action, in *RevisionPath) (api.Key, error) {
	k, err := api.LookupKind(in.Kind)
	if err != nil {
		return api.Key{}, err
	}
	if !api.HasRevisions(k.Name) {
		return api.Key{}, &api.Error{Code: api.Invalid, Field: "kind", Message: "a " + k.Name + " has no revisions", Remedy: "name an app, config, secret, release, fleet, flow policy or network policy"}
	}
	key := api.Key{Tenant: in.Tenant, Kind: k.Name, Name: in.Name}
	_, err = s.get(ctx, action, key)
	return key, err
}

func (s *Server) orderRollout(ctx context.Context, key api.Key, order string) (*api.Object, error) {
	if _, err := s.get(ctx, access.Write, key); err != nil {
		return nil, err
	}
	if err := s.cfg.Rollouts.Order(ctx, key, order); err != nil {
		return nil, err
	}
	s.cfg.Log.Info("rollout: "+order, "rollout", key.String(), "actor", CallerOf(ctx).Name)
	return s.cfg.Store.Get(ctx, key)
}

// undoRollout aborts a rollout that is under way, and makes one the other way of one that has ended.
func (s *Server) undoRollout(ctx context.Context, key api.Key) (*api.Object, error) {
	o, err := s.get(ctx, access.Write, key)
	if err != nil {
		return nil, err
	}
	var spec api.RolloutSpec
	var status api.RolloutStatus
	if err := json.Unmarshal(o.Spec, &spec); err != nil {
		return nil, err
	}
	if len(o.Status) > 0 {
		if err := json.Unmarshal(o.Status, &status); err != nil {
			return nil, err
		}
	}
	if !status.Phase.Ended() {
		return s.orderRollout(ctx, key, rollout.Abort)
	}
	var left []*api.Error
	spec.Change, spec.Expires = nil, nil
	for _, c := range status.Change {
		if c.Before == 0 || c.Before == c.Revision {
			continue
		}
		if _, err := s.cfg.Rollouts.Back(ctx, api.Key{Tenant: key.Tenant, Kind: c.Kind, Name: c.Name}, c.Before); err != nil {
			if api.CodeOf(err) == api.Internal {
				return nil, err
			}
			left = append(left, public(err))
			continue
		}
		spec.Change = append(spec.Change, api.RevisionRef{Kind: c.Kind, Name: c.Name, Revision: c.Before})
	}
	if len(spec.Change) == 0 {
		if err := api.JoinErrors(left, "undo"); err != nil {
			return nil, err
		}
		return nil, &api.Error{Code: api.Conflict, Message: "nothing stood before rollout " + key.Name, Remedy: "see `edgectl rollout status " + key.Name + "`"}
	}
	raw, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	for n := 1; ; n++ {
		name := clipName(key.Name) + "-undo"
		if n > 1 {
			name += fmt.Sprint("-", n)
		}
		w, err := s.write(ctx, &api.Object{APIVersion: api.Version, Kind: api.KindRollout, Metadata: api.Meta{Tenant: key.Tenant, Name: name}, Spec: raw}, writeOptions{create: true})
		if api.CodeOf(err) == api.Conflict && err != nil && n < 100 {
			continue
		}
		if err != nil {
			return nil, err
		}
		return w.object, nil
	}
}

// clipName leaves room for what is appended to a name.
func clipName(name string) string { return name[:min(len(name), 52)] }

// undo writes an object as a revision has it.
func (s *Server) undo(ctx context.Context, key api.Key, number int64) error {
	back, err := s.cfg.Rollouts.Back(ctx, key, number)
	if err != nil {
		return err
	}
	o, err := s.cfg.Store.Get(ctx, key)
	if err != nil {
		return err
	}
	if bytes.Equal(o.Spec, back.Spec) && (len(back.Status) == 0 || bytes.Equal(o.Status, back.Status)) {
		return &api.Error{Code: api.Conflict, Message: fmt.Sprintf("%s %s is as in revision %d", key.Kind, key.Name, back.Number), Remedy: "name another by --to; see `edgectl rollout history`"}
	}
	if err := s.mayWrite(ctx, o, &api.Object{APIVersion: o.APIVersion, Kind: o.Kind, Metadata: o.Metadata, Spec: back.Spec}, writeOptions{}); err != nil {
		return err
	}
	next := *o
	next.Spec = back.Spec
	opts := store.PutOptions{Update: true}
	if len(back.Status) > 0 {
		opts.Status = back.Status
	}
	if _, err := s.cfg.Store.Put(ctx, &next, opts); err != nil {
		return err
	}
	s.cfg.Log.Info("object goes back", "object", key.String(), "to", back.Number, "actor", CallerOf(ctx).Name)
	return nil
}

func (s *Server) pinDevice(ctx context.Context, in *pinInput) error {
	id, err := s.deviceID(ctx, access.Write, in.Tenant, in.Name)
	if err != nil {
		return err
	}
	key, err := s.revised(ctx, access.Read, &RevisionPath{TenantQuery: in.TenantQuery, Kind: in.Body.Kind, Name: in.Body.Object})
	if err != nil {
		return err
	}
	if err := s.cfg.Rollouts.PinDevice(ctx, store.Gift{Device: id, Key: key, OwnRevision: store.OwnRevision{Number: in.Body.Revision}, Follow: in.Body.Unpin}); err != nil {
		return err
	}
	s.cfg.Log.Info("a device is pinned", "device", in.Name, "object", key.String(), "revision", in.Body.Revision, "unpin", in.Body.Unpin, "actor", CallerOf(ctx).Name)
	return nil
}

// AdmitRollout settles which revisions a Rollout gives. Once it is made it does not change: what it
// gave it could not take back.
func AdmitRollout(rooms Rollouts) Admission {
	return func(ctx context.Context, c Change) (Decision, error) {
		if c.Old != nil {
			if !bytes.Equal(compactJSON(c.Old.Spec), compactJSON(c.New.Spec)) {
				return Decision{}, &api.Error{Code: api.Conflict, Field: "spec", Message: "Rollout " + c.New.Metadata.Name + " is made, and does not change any more", Remedy: "end it (`edgectl rollout abort`), and make another by another name"}
			}
			return Decision{}, nil
		}
		var spec api.RolloutSpec
		if err := json.Unmarshal(c.New.Spec, &spec); err != nil {
			return Decision{}, err
		}
		tenant := c.New.Metadata.Tenant
		if c.DryRun { // what comes along is no revision yet
			spec.Change = slices.DeleteFunc(spec.Change, func(r api.RevisionRef) bool {
				return r.Revision == 0 && c.With[api.Key{Tenant: tenant, Kind: r.Kind, Name: r.Name}] != nil
			})
		}
		change, err := rooms.Settle(ctx, tenant, spec.Change)
		if err != nil {
			return Decision{}, err
		}
		return Decision{Status: api.RolloutStatus{Phase: api.RolloutQueued, Change: change}}, nil
	}
}

func compactJSON(raw json.RawMessage) []byte {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return raw
	}
	return b.Bytes()
}

// held lists the objects of a request that are not for all devices at once: what a Rollout of the
// same request gives, and what that pins. tried are the objects as a dry run of each gave them.
func held(with map[api.Key]*api.Object, tried map[api.Key]*api.Object) map[api.Key]bool {
	out := map[api.Key]bool{}
	for key, o := range with {
		var spec api.RolloutSpec
		if key.Kind != api.KindRollout || json.Unmarshal(o.Spec, &spec) != nil {
			continue
		}
		for _, c := range spec.Change {
			named := api.Key{Tenant: key.Tenant, Kind: c.Kind, Name: c.Name}
			out[named] = true
			var app api.AppObjectStatus
			if t := tried[named]; t == nil || c.Kind != api.KindApp || json.Unmarshal(t.Status, &app) != nil {
				continue
			}
			for kind, names := range map[string][]string{api.KindConfig: app.Configs, api.KindSecret: app.Secrets} {
				for _, name := range names {
					out[api.Key{Tenant: key.Tenant, Kind: kind, Name: name}] = true
				}
			}
		}
	}
	return out
}

// planRollout tries what a request would write, and plans its Rollout with that.
func (s *Server) planRollout(ctx context.Context, in *planInput) (*api.RolloutPlan, error) {
	docs, err := api.DecodeDocuments(in.RawBody)
	if err != nil {
		return nil, err
	}
	with, tried := map[api.Key]*api.Object{}, map[api.Key]*api.Object{}
	var it *api.Object
	for _, d := range docs {
		if in.Tenant != api.DefaultTenant && d.Object.Metadata.Tenant == api.DefaultTenant {
			d.Object.Metadata.Tenant = in.Tenant
		}
		with[d.Object.Key()] = d.Object
		if d.Object.Kind == api.KindRollout {
			if it != nil {
				return nil, &api.Error{Code: api.Invalid, Line: d.Line, Message: "there are two Rollouts", Remedy: "plan one at a time"}
			}
			it = d.Object
		}
	}
	if it == nil {
		return nil, &api.Error{Code: api.Invalid, Message: "there is no Rollout in it", Remedy: "send one, with the objects that it gives or after they are applied with --hold"}
	}
	for _, d := range docs {
		w, err := s.write(ctx, d.Object, writeOptions{dryRun: true, plan: true, with: with})
		if err != nil {
			return nil, explain(d, err)
		}
		tried[d.Object.Key()] = w.object
	}
	if err := s.may(ctx, access.Plan, CallerOf(ctx).Resource(it)); err != nil {
		return nil, err
	}
	coming, err := s.comingRevisions(ctx, tried)
	if err != nil {
		return nil, err
	}
	var spec api.RolloutSpec
	if err := json.Unmarshal(it.Spec, &spec); err != nil {
		return nil, err
	}
	return s.cfg.Rollouts.Plan(ctx, it.Metadata.Tenant, it.Metadata.Name, &spec, coming)
}

// comingRevisions are those that a request would make.
func (s *Server) comingRevisions(ctx context.Context, tried map[api.Key]*api.Object) (map[api.Key]*store.Revision, error) {
	out := map[api.Key]*store.Revision{}
	for key, o := range tried {
		if !api.HasRevisions(key.Kind) || key.Kind == api.KindSecret { // a secret's spec is not shown, and fetches nothing
			continue
		}
		r := &store.Revision{Key: key, Number: 1, Spec: compactJSON(o.Spec)}
		if key.Kind == api.KindApp {
			r.Status = o.Status
		}
		last, err := s.cfg.Rollouts.Revision(ctx, key, 0)
		if err != nil && api.CodeOf(err) != api.NotFound {
			return nil, err
		}
		if last != nil {
			if bytes.Equal(last.Spec, r.Spec) && bytes.Equal(last.Status, r.Status) {
				continue
			}
			r.Number = last.Number + 1
		}
		out[key] = r
	}
	return out, nil
}
