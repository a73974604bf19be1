package server

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/api"
)

// shelf holds one bundle and every image.
type shelf struct{ bundle api.Bundle }

func (shelf) ResolvePinned(_ context.Context, ref string) (string, int64, error) {
	repo, _, _ := strings.Cut(ref, ":")
	repo, _, _ = strings.Cut(repo, "@")
	return repo + "@sha256:" + strings.Repeat("a", 64), 1, nil
}

func (shelf) PutBundle(context.Context, string, []byte) (string, int64, error) { return "", 0, nil }

func (s shelf) Bundle(context.Context, string, string) ([]byte, error) { return json.Marshal(s.bundle) }

// An app takes images and bundles of its own tenant alone, whichever way it names them.
func TestAppsOfAnotherTenant(t *testing.T) {
	digest := "@sha256:" + strings.Repeat("a", 64)
	for name, c := range map[string]struct {
		spec  api.AppSpec
		image string
		want  string // part of the refusal
	}{
		"own image":         {spec: api.AppSpec{Compose: "services: {web: {image: web:1}}"}},
		"own, by name":      {spec: api.AppSpec{Compose: "services: {web: {image: acme/web:1}}"}},
		"another's image":   {spec: api.AppSpec{Compose: "services: {web: {image: default/web:1}}"}, want: "default/web:1"},
		"own bundle":        {spec: api.AppSpec{Artifact: "acme/apps/shop" + digest}, image: "acme/web" + digest},
		"another's bundle":  {spec: api.AppSpec{Artifact: "default/apps/shop" + digest}, image: "acme/web" + digest, want: "the bundle belongs to the tenant default"},
		"another's, within": {spec: api.AppSpec{Artifact: "acme/apps/shop" + digest}, image: "default/web" + digest, want: "service web belongs to the tenant default"},
	} {
		a := &Apps{Artifacts: shelf{api.Bundle{Version: 1, App: "shop", Services: []api.Service{{Name: "web", Image: c.image}}}}}
		_, err := a.make(t.Context(), "acme", "shop", &c.spec)
		var e *api.Error
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (!errors.As(err, &e) || e.Code != api.Invalid || !strings.Contains(e.Message, c.want) || e.Remedy == ""):
			t.Errorf("%s: %v", name, err)
		}
	}
}
