package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	// Missing tells what a fleet names and does not exist yet; nil when nobody knows.
	Missing func(tenant string, spec *api.FleetSpec) []string
}

// AdmitApp compiles an App and stores its bundle. Faults of the file come back with the
// line within the file.
func (a *Apps) AdmitApp(ctx context.Context, c Change) (Decision, error) {
	var spec api.AppSpec
	if err := json.Unmarshal(c.New.Spec, &spec); err != nil {
		return Decision{}, err
	}
	tenant, name := c.New.Metadata.Tenant, c.New.Metadata.Name
	var made *compiled
	var err error
	if spec.Artifact != "" {
		made, err = a.pushed(ctx, spec.Artifact)
	} else {
		made, err = a.compile(ctx, tenant, name, &spec)
	}
	if err != nil {
		return Decision{}, err
	}
	if err := a.clashes(ctx, tenant, name, made.bundle); err != nil {
		return Decision{}, err
	}
	if !c.DryRun && spec.Artifact == "" {
		if _, _, err := a.Artifacts.PutBundle(ctx, made.status.Repo, made.raw); err != nil {
			return Decision{}, err
		}
	}
	return Decision{Status: made.status, Warnings: made.status.Warnings}, nil
}

// compiled is an app ready for devices.
type compiled struct {
	bundle *api.Bundle
	raw    []byte
	status api.AppObjectStatus
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
	bundle, _, err := compose.Load(ctx, spec.Compose, compose.Options{AppName: name, Profiles: spec.Profiles, Variables: spec.Variables, Files: spec.Files, Resolve: resolve})
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

// pushed reads an app that was pushed as a bundle before.
func (a *Apps) pushed(ctx context.Context, artifact string) (*compiled, error) {
	repo, digest, err := oci.ParsePinned(artifact)
	if err != nil {
		return nil, within("spec.artifact", err)
	}
	raw, err := a.Artifacts.Bundle(ctx, repo, digest)
	if err != nil {
		return nil, within("spec.artifact", err)
	}
	bundle := &api.Bundle{}
	if err := json.Unmarshal(raw, bundle); err != nil || bundle.Version != 1 {
		return nil, &api.Error{Code: api.Invalid, Field: "spec.artifact", Message: artifact + " is not an app bundle that this core can read", Remedy: "push it again with this version of edgectl", Err: err}
	}
	sizes := map[string]int64{}
	for _, s := range bundle.Services {
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

// clashes refuses an app that wants a port which another app of one of its fleets has.
func (a *Apps) clashes(ctx context.Context, tenant, name string, b *api.Bundle) error {
	fleets, _, _, err := a.Store.List(ctx, store.Query{Tenant: tenant, Kind: api.KindFleet})
	if err != nil {
		return err
	}
	for _, f := range fleets {
		var spec api.FleetSpec
		if err := json.Unmarshal(f.Spec, &spec); err != nil {
			return err
		}
		if !slices.Contains(spec.Apps, name) {
			continue
		}
		bundles, err := a.bundles(ctx, tenant, spec.Apps, name)
		if err != nil {
			return err
		}
		if err := clashError("spec.compose", "fleet "+f.Metadata.Name, compose.Clashes(append(bundles, b))); err != nil {
			return err
		}
	}
	return nil
}

// AdmitFleet refuses apps that cannot run on one device together, and warns of what a
// fleet names and does not exist yet.
func (a *Apps) AdmitFleet(ctx context.Context, c Change) (Decision, error) {
	var spec api.FleetSpec
	if err := json.Unmarshal(c.New.Spec, &spec); err != nil {
		return Decision{}, err
	}
	bundles, err := a.bundles(ctx, c.New.Metadata.Tenant, spec.Apps, "")
	if err != nil {
		return Decision{}, err
	}
	if err := clashError("spec.apps", "the fleet", compose.Clashes(bundles)); err != nil {
		return Decision{}, err
	}
	var d Decision
	if a.Missing != nil {
		for _, m := range a.Missing(c.New.Metadata.Tenant, &spec) {
			d.Warnings = append(d.Warnings, m+" does not exist; devices get it as soon as it does")
		}
	}
	return d, nil
}

func clashError(field, where string, clashes []compose.Clash) error {
	var faults []*api.Error
	for _, c := range clashes {
		faults = append(faults, &api.Error{Code: api.Invalid, Field: field, Message: fmt.Sprintf("in %s: %s", where, c), Remedy: "publish another host port"})
	}
	if err := api.JoinErrors(faults, "ports clash"); err != nil {
		return err
	}
	return nil
}

// bundles reads the bundles of the named apps that exist, but one.
func (a *Apps) bundles(ctx context.Context, tenant string, names []string, but string) ([]*api.Bundle, error) {
	var out []*api.Bundle
	for _, name := range names {
		if name == but {
			continue
		}
		o, err := a.Store.Get(ctx, api.Key{Tenant: tenant, Kind: api.KindApp, Name: name})
		if err != nil {
			if api.CodeOf(err) == api.NotFound {
				continue
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
			continue
		}
		raw, err := a.Artifacts.Bundle(ctx, status.Repo, status.Bundle)
		if err != nil {
			return nil, err
		}
		b := &api.Bundle{}
		if err := json.Unmarshal(raw, b); err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}
