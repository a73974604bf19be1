// Package compose answers: what does a Compose file ask of a device, and what of it
// cannot be had there?
//
// Load compiles the text of a file (compose-spec.io) into an api.Bundle. What the
// file asks for and Tributary does not do is refused by name, with field, line and
// remedy, all at once; what merely has no effect is a warning. Nothing is dropped in
// silence, no disk and no network is touched.
package compose

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/template"
	"github.com/compose-spec/compose-go/v2/types"

	"tributary.dev/tributary/pkg/api"
)

// Options say what surrounds the file.
type Options struct {
	// AppName is the name of the App object; it is also ${COMPOSE_PROJECT_NAME}.
	AppName string
	// Tenant owns the app; images of others are refused. Empty accepts any.
	Tenant string
	// Profiles are the Compose profiles to enable.
	Profiles []string
	// Variables fill ${NAME}; nothing else does, in particular not the environment of
	// this process.
	Variables map[string]string
	// Files holds what the file refers to by path (env_file, file: of configs), by the
	// path as it is written there.
	Files map[string]string
	// Resolve pins an image to "repository@sha256:…" and tells the bytes that a device
	// fetches when it has nothing. An error of code NotFound means that the registry has
	// no such image. Nil leaves images as they are written. It is called once for each
	// different image.
	Resolve func(ref string) (pinned string, size int64, err error)
}

// Load compiles a Compose file of at most 512 KiB. The error is an *api.Error: one
// finding, or several as its Causes, each with field ("services.web.build"), line of
// the text, and remedy. Warnings have the same shape. The bundle is the same, byte
// for byte once encoded, for the same text, options and answers of Resolve.
func Load(ctx context.Context, text string, opts Options) (*api.Bundle, []*api.Error, error) {
	f := &findings{}
	dict := scan(text, f)
	if dict == nil {
		return nil, f.warnings, f.err()
	}
	checkVariables(dict, variables(opts), f)
	if len(f.list) > 0 && f.unreadable {
		return nil, f.warnings, f.err()
	}
	project := parse(ctx, dict, opts, f)
	if project == nil {
		return nil, f.warnings, f.err()
	}
	c := &compiler{findings: f, project: project, opts: opts, vars: variables(opts), env: envBudget}
	b := c.bundle()
	c.pin(b)
	if err := f.err(); err != nil {
		return nil, f.warnings, err
	}
	for _, w := range f.warnings {
		b.Warnings = append(b.Warnings, warningText(w))
	}
	return b, f.warnings, nil
}

func warningText(w *api.Error) string { return w.Field + ": " + w.Message }

// Encode writes a bundle as the deterministic JSON that its digest is taken of.
func Encode(b *api.Bundle) ([]byte, error) { return json.Marshal(b) }

func variables(opts Options) map[string]string {
	vars := make(map[string]string, len(opts.Variables)+1)
	for k, v := range opts.Variables {
		vars[k] = v
	}
	vars["COMPOSE_PROJECT_NAME"] = opts.AppName
	return vars
}

// parse hands the scanned tree to compose-go, which interpolates, checks against the
// schema, brings short forms to long ones, follows extends and applies profiles.
func parse(ctx context.Context, dict map[string]any, opts Options, f *findings) (project *types.Project) {
	// compose-go asserts types that its schema does not promise (soft.(int) of ulimits),
	// so a hostile file can make it panic; for the caller that is one more bad file.
	defer func() {
		if p := recover(); p != nil {
			project = nil
			f.add("", "mend the values that the other findings name; compare with https://compose-spec.io", "the file cannot be read: %v", p)
		}
	}()
	nameDrives(dict)
	details := types.ConfigDetails{
		WorkingDir:  "/",
		ConfigFiles: []types.ConfigFile{{Filename: "compose.yaml", Config: dict}},
		Environment: variables(opts),
	}
	name := opts.AppName
	if name == "" {
		name = "app"
	}
	project, err := loader.LoadWithContext(ctx, details, func(o *loader.Options) {
		o.SetProjectName(name, true)
		o.ResolvePaths = false
		o.SkipInclude = true
		o.SkipNormalization = true    // it adds networks and names that belong to one host's Docker
		o.SkipConsistencyCheck = true // done here, for all findings at once
		o.SkipResolveEnvironment = true
		o.SkipResolveLabels = true
		o.Profiles = opts.Profiles
		o.Interpolate.Substitute = func(t string, m template.Mapping) (string, error) {
			return template.SubstituteWithOptions(t, m, template.WithoutLogging)
		}
	})
	if err != nil {
		f.fromLibrary(err)
		return nil
	}
	return project
}

// compiler turns a parsed project into a bundle.
type compiler struct {
	*findings
	project *types.Project
	opts    Options
	vars    map[string]string
	volumes map[string]bool
	nets    map[string]bool
	leads   bool // the service at hand is on a network of the app's own
	env     int  // bytes of env_file content left to expand
}

func (c *compiler) bundle() *api.Bundle {
	b := &api.Bundle{Version: 1, App: c.opts.AppName}
	c.volumes, c.nets = map[string]bool{}, map[string]bool{}
	names := make([]string, 0, len(c.project.Services))
	for name := range c.project.Services {
		names = append(names, name)
	}
	sort.Strings(names)
	if len(names) == 0 {
		remedy := "add a service with an image"
		if len(c.project.DisabledServices) > 0 {
			remedy = "name a profile in spec.profiles: every service of the file belongs to one"
		}
		c.add("services", remedy, "the app has no service to run")
		return b
	}
	services := make(map[string]*api.Service, len(names))
	for _, name := range names {
		services[name] = c.service(name, c.project.Services[name])
	}
	order, cycle := topological(services)
	if cycle != nil {
		c.add(join(place("services", cycle[0]), "depends_on"), "remove one of these dependencies", "the services wait for each other: %s", strings.Join(append(cycle, cycle[0]), " → "))
		order = names
	}
	for _, name := range order {
		b.Services = append(b.Services, *services[name])
		if len(services[name].Claims) > 0 {
			b.Version = 2
		}
	}
	b.Networks, b.Volumes = keys(c.nets), keys(c.volumes)
	for _, clash := range clashesWithin(b) {
		c.add(place("services", clash.B.Service, "ports"), "publish one of them on another host port", "%s is published by %s too", clash.Port, clash.A.Service)
	}
	return b
}

// pin asks the registry for the digests of all images.
func (c *compiler) pin(b *api.Bundle) {
	if c.opts.Resolve == nil {
		return
	}
	type answer struct {
		pinned string
		err    error
	}
	asked := map[string]answer{}
	for i := range b.Services {
		s := &b.Services[i]
		if s.Image == "" {
			continue
		}
		a, ok := asked[s.Image]
		if !ok {
			a.pinned, _, a.err = c.opts.Resolve(s.Image)
			asked[s.Image] = a
		}
		if a.err == nil {
			s.Image = a.pinned
			continue
		}
		at := place("services", s.Name, "image")
		if api.CodeOf(a.err) == api.NotFound {
			c.add(at, pushRemedy(s.Image), "the image %q of service %s is not in the core's registry", s.Image, s.Name)
			continue
		}
		if code := api.CodeOf(a.err); code == api.Invalid || code == api.TooLarge {
			c.add(at, "push the image again: "+pushRemedy(s.Image), "the image %q of service %s cannot be read: %s", s.Image, s.Name, reason(a.err))
			continue
		}
		// Not the file's fault: the whole request fails with the registry's own code.
		c.fatal(&api.Error{Code: api.CodeOf(a.err), Field: at, Message: fmt.Sprintf("the registry did not answer for %q", s.Image), Remedy: "try again", Err: a.err})
	}
}

// reason is what an error says, without its code.
func reason(err error) string {
	var e *api.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return err.Error()
}

// pushRemedy tells how an image gets into the registry. Nobody can push to a digest.
func pushRemedy(ref string) string {
	name, _, pinned := strings.Cut(ref, "@")
	if pinned {
		return fmt.Sprintf("compare the digest with what `edgectl app push IMAGE.tar %s:TAG` printed, or push that image", name)
	}
	return fmt.Sprintf("push it with `edgectl app push IMAGE.tar %s`, IMAGE.tar being an OCI layout or the output of `docker save`", ref)
}

func keys[V any](m map[string]V) []string {
	if len(m) == 0 {
		return nil
	}
	list := make([]string, 0, len(m))
	for k := range m {
		list = append(list, k)
	}
	sort.Strings(list)
	return list
}
