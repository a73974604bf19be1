package server

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/compose"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/oci"
)

// Artifacts is what admission needs of the registry.
type Artifacts interface {
	// ResolvePinned pins "tenant/name[:tag|@digest]" and tells its bytes.
	ResolvePinned(ctx context.Context, ref string) (pinned string, size int64, err error)
	// PutBundle stores a bundle; it may be repeated.
	PutBundle(ctx context.Context, repo string, bundle []byte) (digest string, size int64, err error)
	// Bundle reads one back.
	Bundle(ctx context.Context, repo, digest string) ([]byte, error)
}

// Apps joins the rooms that make an App ready for devices: compose compiles it, the
// registry keeps the bundle. Its methods are Admissions.
type Apps struct {
	Store     store.Store
	Artifacts Artifacts
}

// AdmitApp compiles an App and stores its bundle. Faults of the file come back with the
// line within the file.
func (a *Apps) AdmitApp(ctx context.Context, c Change) (Decision, error) {
	var spec api.AppSpec
	if err := json.Unmarshal(c.New.Spec, &spec); err != nil {
		return Decision{}, err
	}
	tenant, name := c.New.Metadata.Tenant, c.New.Metadata.Name
	made, err := a.make(ctx, tenant, name, &spec)
	if err != nil {
		return Decision{}, err
	}
	if err := a.appClashes(ctx, c, made.bundle); err != nil {
		return Decision{}, err
	}
	if !c.DryRun && spec.Artifact == "" {
		if _, _, err := a.Artifacts.PutBundle(ctx, made.status.Repo, made.raw); err != nil {
			return Decision{}, err
		}
	}
	d := Decision{Status: made.status, Warnings: slices.Clone(made.status.Warnings)}
	for kind, names := range map[string][]string{api.KindConfig: made.status.Configs, api.KindSecret: made.status.Secrets} {
		missing, err := a.missing(ctx, c, kind, names)
		if err != nil {
			return Decision{}, err
		}
		d.Warnings = append(d.Warnings, missing...)
	}
	return d, nil
}

// compiled is an app ready for devices.
type compiled struct {
	bundle *api.Bundle
	raw    []byte
	status api.AppObjectStatus
}

func (a *Apps) make(ctx context.Context, tenant, name string, spec *api.AppSpec) (*compiled, error) {
	if spec.Artifact != "" {
		return a.pushed(ctx, tenant, spec.Artifact)
	}
	return a.compile(ctx, tenant, name, spec)
}

func (a *Apps) compile(ctx context.Context, tenant, name string, spec *api.AppSpec) (*compiled, error) {
	if spec.ComposeFile != "" {
		return nil, &api.Error{Code: api.Invalid, Field: "spec.composeFile", Message: "the core cannot read files of your machine", Remedy: "apply it with `edgectl apply`, which reads the file, or put its text into spec.compose"}
	}
	sizes := map[string]int64{}
	resolve := func(ref string) (string, int64, error) {
		pinned, size, err := a.Artifacts.ResolvePinned(ctx, qualify(tenant, ref))
		if err == nil {
			sizes[pinned] = size
		}
		return pinned, size, err
	}
	bundle, _, err := compose.Load(ctx, spec.Compose, compose.Options{AppName: name, Tenant: tenant, Profiles: spec.Profiles, Variables: spec.Variables, Files: spec.Files, Resolve: resolve})
	if err != nil {
		return nil, within("spec.compose", err)
	}
	raw, err := compose.Encode(bundle)
	if err != nil {
		return nil, err
	}
	return describe(bundle, raw, tenant+"/apps/"+name, sizes)
}

// qualify names the tenant's own repository where an image names no tenant.
func qualify(tenant, ref string) string {
	repo, _, _ := strings.Cut(ref, "@")
	if strings.Contains(repo, "/") {
		return ref
	}
	return tenant + "/" + ref
}

// within puts a field around the faults of a file that is a value in a larger one.
func within(field string, err error) error {
	var e *api.Error
	if !errors.As(err, &e) {
		return err
	}
	out := *e
	if out.Field = field; e.Field != "" {
		out.Field += ": " + e.Field
	}
	out.Causes = nil
	for _, c := range e.Causes {
		var inner *api.Error
		if errors.As(within(field, c), &inner) {
			out.Causes = append(out.Causes, inner)
		}
	}
	return &out
}

// ofTenant refuses what lies in the repository of another tenant than the app's.
func ofTenant(tenant, what, ref string) error {
	if owner, _, _ := strings.Cut(ref, "/"); owner != tenant {
		return &api.Error{Code: api.Invalid, Field: "spec.artifact", Message: what + " belongs to the tenant " + owner + ", and the app to " + tenant,
			Remedy: "push it to a repository of " + tenant + " and name that"}
	}
	return nil
}

// pushed reads an app that was pushed as a bundle before.
func (a *Apps) pushed(ctx context.Context, tenant, artifact string) (*compiled, error) {
	repo, digest, err := oci.ParsePinned(artifact)
	if err != nil {
		return nil, within("spec.artifact", err)
	}
	if err := ofTenant(tenant, "the bundle", repo); err != nil {
		return nil, err
	}
	raw, err := a.Artifacts.Bundle(ctx, repo, digest)
	if err != nil {
		return nil, within("spec.artifact", err)
	}
	bundle := &api.Bundle{}
	if err := json.Unmarshal(raw, bundle); err != nil || bundle.Version < 1 || bundle.Version > 2 {
		return nil, &api.Error{Code: api.Invalid, Field: "spec.artifact", Message: artifact + " is not an app bundle that this core can read", Remedy: "push it again with this version of edgectl", Err: err}
	}
	sizes := map[string]int64{}
	for _, s := range bundle.Services {
		if err := ofTenant(tenant, "the image of service "+s.Name, s.Image); err != nil {
			return nil, err
		}
		if _, size, err := a.Artifacts.ResolvePinned(ctx, s.Image); err != nil {
			return nil, within("spec.artifact", err)
		} else {
			sizes[s.Image] = size
		}
	}
	return describe(bundle, raw, repo, sizes)
}

func describe(b *api.Bundle, raw []byte, repo string, sizes map[string]int64) (*compiled, error) {
	_, digest := oci.BundleManifest(raw)
	refs := compose.Refs(b)
	status := api.AppObjectStatus{Repo: repo, Bundle: digest, Size: int64(len(raw)), Configs: refs.Configs, Secrets: refs.Secrets, Warnings: b.Warnings}
	for _, s := range b.Services {
		status.Services = append(status.Services, s.Name)
		if len(s.Claims) > 0 {
			if status.Claims == nil {
				status.Claims = map[string][]api.Claim{}
			}
			status.Claims[s.Name] = s.Claims
		}
	}
	for _, image := range slices.Sorted(maps.Keys(sizes)) {
		repo, digest, err := oci.ParsePinned(image)
		if err != nil {
			return nil, err
		}
		status.Images = append(status.Images, api.AppImage{Repo: repo, Digest: digest, Size: sizes[image]})
	}
	return &compiled{bundle: b, raw: raw, status: status}, nil
}

// AdmitFleet refuses apps that cannot run on one device together, and warns of what a
// fleet names and does not exist yet.
func (a *Apps) AdmitFleet(ctx context.Context, c Change) (Decision, error) {
	var spec api.FleetSpec
	if err := json.Unmarshal(c.New.Spec, &spec); err != nil {
		return Decision{}, err
	}
	if err := a.fleetClashes(ctx, c); err != nil {
		return Decision{}, err
	}
	var d Decision
	for kind, names := range map[string][]string{api.KindApp: spec.AllApps(), api.KindConfig: spec.Configs, api.KindSecret: spec.Secrets, api.KindFlowPolicy: spec.FlowPolicies} {
		missing, err := a.missing(ctx, c, kind, names)
		if err != nil {
			return Decision{}, err
		}
		d.Warnings = append(d.Warnings, missing...)
	}
	slices.Sort(d.Warnings)
	return d, nil
}

// missing warns of objects that are named and neither exist nor come with the same
// request.
func (a *Apps) missing(ctx context.Context, c Change, kind string, names []string) (warnings []string, err error) {
	for _, name := range names {
		key := api.Key{Tenant: c.New.Metadata.Tenant, Kind: kind, Name: name}
		if c.With[key] != nil {
			continue
		}
		_, err := a.Store.Get(ctx, key)
		if err != nil && api.CodeOf(err) != api.NotFound {
			return nil, err
		}
		if err != nil {
			warnings = append(warnings, kind+" "+name+" does not exist; devices get it as soon as it does")
		}
	}
	return warnings, nil
}

// bundles gives the bundles of the named apps that exist or come with the same request,
// but one.
func (a *Apps) bundles(ctx context.Context, c Change, names []string, but string) ([]*api.Bundle, error) {
	var out []*api.Bundle
	for _, name := range names {
		if name == but {
			continue
		}
		key := api.Key{Tenant: c.New.Metadata.Tenant, Kind: api.KindApp, Name: name}
		var b *api.Bundle
		var err error
		if o := c.With[key]; o != nil && c.DryRun {
			b, err = a.coming(ctx, o)
		} else {
			b, err = a.present(ctx, key)
		}
		if err != nil {
			return nil, err
		}
		if b != nil {
			out = append(out, b)
		}
	}
	return out, nil
}

// coming compiles an app of the same request. Its own faults are told where it stands.
func (a *Apps) coming(ctx context.Context, o *api.Object) (*api.Bundle, error) {
	var spec api.AppSpec
	if err := json.Unmarshal(o.Spec, &spec); err != nil {
		return nil, err
	}
	made, err := a.make(ctx, o.Metadata.Tenant, o.Metadata.Name, &spec)
	if err != nil && api.CodeOf(err) != api.Internal {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return made.bundle, nil
}

// present reads the bundle of an app that exists; nil when it does not.
func (a *Apps) present(ctx context.Context, key api.Key) (*api.Bundle, error) {
	o, err := a.Store.Get(ctx, key)
	if err != nil {
		if api.CodeOf(err) == api.NotFound {
			return nil, nil
		}
		return nil, err
	}
	var status api.AppObjectStatus
	if len(o.Status) > 0 {
		if err := json.Unmarshal(o.Status, &status); err != nil {
			return nil, err
		}
	}
	if status.Bundle == "" {
		return nil, nil
	}
	raw, err := a.Artifacts.Bundle(ctx, status.Repo, status.Bundle)
	if err != nil {
		return nil, err
	}
	b := &api.Bundle{}
	return b, json.Unmarshal(raw, b)
}
