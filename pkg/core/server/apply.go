package server

import (
	"context"
	"encoding/json"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/access"
)

type (
	applyInput struct {
		TenantQuery
		DryRun  bool   `query:"dryRun" doc:"Tell what would change, write nothing."`
		Hold    bool   `query:"hold" doc:"Give no device what is written: a Rollout does, later. What a Rollout of the same request gives is held without it."`
		RawBody []byte `contentType:"application/yaml"`
	}
	applyOutput struct {
		Body applyReply
	}
	applyReply struct {
		Results []ApplyResult `json:"results"`
	}
)

// ApplyResult is what became of one object of an apply.
type ApplyResult struct {
	Tenant   string        `json:"tenant"`
	Kind     string        `json:"kind"`
	Name     string        `json:"name"`
	Action   string        `json:"action" enum:"created,configured,unchanged,unknown" doc:"unknown: a Secret in a dry run of somebody who may not write it; what it holds is not compared."`
	Revision int64         `json:"revision"`
	Warnings []string      `json:"warnings,omitempty"`
	Changes  []FieldChange `json:"changes,omitempty"`
	Object   *api.Object   `json:"object,omitempty"`
}

// FieldChange is one field that differs; Old or New is absent where the field is.
type FieldChange struct {
	Path string `json:"path"`
	Old  any    `json:"old,omitempty"`
	New  any    `json:"new,omitempty"`
}

const applyPath = "/api/v1/apply"

func (s *Server) applyRoute() {
	op := huma.Operation{OperationID: "apply", Method: http.MethodPost, Path: applyPath, Summary: "Create or change many objects", Tags: []string{"apply"},
		Description:  "The body is a stream of YAML documents or JSON objects. When any of them is refused, none is written.",
		MaxBodyBytes: maxBody, BodyReadTimeout: readDeadline, SkipValidateBody: true, Middlewares: s.needs(access.Plan, Each),
		Responses: s.responses(http.StatusOK, s.schemaOf(new(applyReply)))}
	huma.Register(s.api, op, func(ctx context.Context, in *applyInput) (*applyOutput, error) {
		results, err := s.apply(ctx, in)
		if err != nil {
			return nil, s.fail(err)
		}
		return &applyOutput{Body: applyReply{Results: results}}, nil
	})
}

// apply first tries every document, so that a fault in the last does not leave the
// first half written; then writes them, what others refer to first.
func (s *Server) apply(ctx context.Context, in *applyInput) ([]ApplyResult, error) {
	docs, err := api.DecodeDocuments(in.RawBody)
	if err != nil {
		return nil, err
	}
	if len(docs) == 0 {
		return nil, &api.Error{Code: api.Invalid, Message: "there is no object in it", Remedy: "send at least one document with apiVersion, kind, metadata and spec"}
	}
	with, tried := map[api.Key]*api.Object{}, map[api.Key]*api.Object{}
	var faults []*api.Error
	for _, d := range docs {
		if in.Tenant != api.DefaultTenant && d.Object.Metadata.Tenant == api.DefaultTenant {
			d.Object.Metadata.Tenant = in.Tenant
		}
		key := d.Object.Key()
		if with[key] != nil {
			faults = append(faults, &api.Error{Code: api.Invalid, Field: "metadata.name", Line: lineOf(d, "metadata.name"), Message: d.Object.Kind + " " + key.Name + " is in the request twice", Remedy: "keep one of them"})
		}
		with[key] = d.Object
	}
	caller := CallerOf(ctx)
	blind := func(d api.Document) bool {
		return (d.Object.Kind == api.KindSecret || d.Object.Kind == api.KindExpectedDevice) && in.DryRun && !caller.May(access.Write, caller.Resource(d.Object)) &&
			caller.May(access.Plan, caller.Resource(d.Object))
	}
	for _, d := range docs {
		if blind(d) {
			continue
		}
		w, err := s.write(ctx, d.Object, writeOptions{dryRun: true, plan: in.DryRun, with: with})
		if err != nil {
			if api.CodeOf(err) == api.Internal {
				return nil, err
			}
			faults = append(faults, explain(d, err))
			continue
		}
		tried[d.Object.Key()] = w.object
	}
	if err := api.JoinErrors(faults, "apply"); err != nil {
		return nil, err
	}
	order, hold := orderOf(with), held(with, tried)
	slices.SortStableFunc(docs, func(a, b api.Document) int { return order(a.Object) - order(b.Object) })
	results := make([]ApplyResult, 0, len(docs))
	for _, d := range docs {
		if blind(d) {
			results = append(results, unknown(d.Object))
			continue
		}
		w, err := s.write(ctx, d.Object, writeOptions{dryRun: in.DryRun, plan: in.DryRun, hold: in.Hold || hold[d.Object.Key()], with: with})
		if err != nil {
			return nil, explain(d, err)
		}
		results = append(results, resultOf(w))
	}
	return results, nil
}

// explain names the object and, where it is known, the line of a fault. The error it
// is given may be shared; it works on a copy.
func explain(d api.Document, err error) *api.Error {
	e := *public(err)
	if e.Line == 0 {
		e.Line = lineOf(d, e.Field)
	}
	causes := e.Causes
	e.Causes = nil
	for _, c := range causes {
		e.Causes = append(e.Causes, explain(d, c))
	}
	return &e
}

// lineOf finds the line of a field, or of the nearest field around it.
func lineOf(d api.Document, field string) int {
	for {
		if line, ok := d.Lines[field]; ok {
			return line
		}
		cut := strings.LastIndexAny(field, ".[")
		if cut < 0 {
			return d.Line
		}
		field = field[:cut]
	}
}

// orderOf tells in which order objects are written, what others refer to first: kinds by
// their order, and a tenant after those above it.
func orderOf(with map[api.Key]*api.Object) func(*api.Object) int {
	tenants := api.TenantTree{}
	for key, o := range with {
		if key.Kind == api.KindTenant {
			tenants[key.Name] = parentOf(o)
		}
	}
	return func(o *api.Object) int {
		at, depth := slices.IndexFunc(api.Kinds, func(k api.Kind) bool { return k.Name == o.Kind }), 0
		if o.Kind == api.KindTenant {
			for name := o.Metadata.Name; tenants[name] != "" && depth < len(tenants); name = tenants[name] {
				depth++
			}
		}
		return at*(len(tenants)+1) + depth
	}
}

// unknown answers for what holds secrets to somebody who may not write it. Nothing in it depends on
// what is stored: else each dry run would tell whether a guess is right.
func unknown(o *api.Object) ApplyResult {
	return ApplyResult{Tenant: o.Metadata.Tenant, Kind: o.Kind, Name: o.Metadata.Name, Action: "unknown",
		Warnings: []string{"whether it would change is told only to those who may write " + o.Kind + "s"}}
}

func resultOf(w *written) ApplyResult {
	m := w.object.Metadata
	r := ApplyResult{Tenant: m.Tenant, Kind: w.object.Kind, Name: m.Name, Revision: m.Revision, Warnings: w.warnings, Object: w.object, Action: "configured"}
	switch {
	case w.old == nil:
		r.Action = "created"
	case w.old.Metadata.Revision == m.Revision:
		r.Action = "unchanged"
	}
	r.Changes = changesOf(w.old, w.object)
	return r
}

// changesOf compares what people own of two states of an object: labels, annotations
// and spec.
func changesOf(old, new *api.Object) []FieldChange {
	return compare(nil, "", owned(old), owned(new))
}

func owned(o *api.Object) map[string]any {
	if o == nil {
		return map[string]any{}
	}
	var spec any
	_ = json.Unmarshal(o.Spec, &spec) // absent spec compares as nothing
	out := map[string]any{}
	if spec != nil {
		out["spec"] = spec
	}
	for name, m := range map[string]map[string]string{"labels": o.Metadata.Labels, "annotations": o.Metadata.Annotations} {
		for k, v := range m {
			meta, _ := out["metadata"].(map[string]any)
			if meta == nil {
				meta = map[string]any{}
				out["metadata"] = meta
			}
			inner, _ := meta[name].(map[string]any)
			if inner == nil {
				inner = map[string]any{}
				meta[name] = inner
			}
			inner[k] = v
		}
	}
	return out
}

// compare appends the differing fields below path, ordered by path. Maps are entered,
// anything else is compared as a whole.
func compare(list []FieldChange, path string, old, new any) []FieldChange {
	a, aMap := old.(map[string]any)
	b, bMap := new.(map[string]any)
	if !aMap || !bMap {
		if !reflect.DeepEqual(old, new) {
			list = append(list, FieldChange{Path: path, Old: old, New: new})
		}
		return list
	}
	keys := map[string]bool{}
	for k := range a {
		keys[k] = true
	}
	for k := range b {
		keys[k] = true
	}
	sorted := make([]string, 0, len(keys))
	for k := range keys {
		sorted = append(sorted, k)
	}
	slices.Sort(sorted)
	for _, k := range sorted {
		at := k
		if path != "" {
			at = path + "." + k
		}
		list = compare(list, at, a[k], b[k])
	}
	return list
}
