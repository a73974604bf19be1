package server

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/access"
	"tributary.dev/tributary/pkg/core/people"
)

type (
	// PersonPath names one person.
	PersonPath struct {
		UID string `path:"uid" maxLength:"63" doc:"The person's uid."`
	}
	personOutput struct{ Body *people.Person }
	peopleOutput struct {
		Body struct {
			Items []*people.Person `json:"items"`
		}
	}
	invitedOutput struct {
		Body struct {
			Person *people.Person `json:"person,omitempty"`
			Token  string         `json:"token" doc:"By which the person sets a password, once, within three days. It is shown now and never again."`
		}
	}
	createPersonInput struct{ Body people.Profile }
	updatePersonInput struct {
		PersonPath
		Body people.Change
	}
	resetInput struct {
		PersonPath
		Body struct {
			SecondFactor bool `json:"secondFactor,omitempty" doc:"Take the second factor and the recovery codes too."`
		}
	}
)

// keeperRoutes are for those who keep people: platform-admins alone.
func (s *Server) keeperRoutes() {
	op := func(id, method, path, summary string, action access.Action) huma.Operation {
		return s.personOp(id, method, path, summary, s.needs(action, People))
	}
	const base = "/api/v1/people"
	huma.Register(s.api, op("list-people", http.MethodGet, base, "Everybody", access.Read), func(ctx context.Context, _ *struct{}) (*peopleOutput, error) {
		out := &peopleOutput{}
		var err error
		out.Body.Items, err = s.cfg.People.List(ctx)
		return out, s.fail(err)
	})
	huma.Register(s.api, op("create-person", http.MethodPost, base, "Make a person with a local account", access.Govern), func(ctx context.Context, in *createPersonInput) (*invitedOutput, error) {
		out := &invitedOutput{}
		var err error
		if out.Body.Person, out.Body.Token, err = s.cfg.People.Create(ctx, in.Body); err == nil {
			s.cfg.Log.Info("a person is made", "person", out.Body.Person.UID, "login", in.Body.Login, "actor", CallerOf(ctx).Name)
		}
		return out, s.fail(err)
	})
	huma.Register(s.api, op("get-person", http.MethodGet, base+"/{uid}", "One person", access.Read), func(ctx context.Context, in *PersonPath) (*personOutput, error) {
		p, err := s.cfg.People.Get(ctx, in.UID)
		return &personOutput{p}, s.fail(err)
	})
	huma.Register(s.api, op("update-person", http.MethodPatch, base+"/{uid}", "Change a person; who is disabled is out at once", access.Govern), func(ctx context.Context, in *updatePersonInput) (*personOutput, error) {
		if in.Body.Disabled != nil && *in.Body.Disabled && in.UID == CallerOf(ctx).Person {
			return nil, s.fail(&api.Error{Code: api.Conflict, Field: "disabled", Message: "you would shut yourself out", Remedy: "have another administrator do it"})
		}
		p, err := s.cfg.People.Update(ctx, in.UID, in.Body)
		if err == nil {
			s.cfg.Log.Info("a person is changed", "person", in.UID, "disabled", p.Disabled, "actor", CallerOf(ctx).Name)
		}
		return &personOutput{p}, s.fail(err)
	})
	huma.Register(s.api, op("reset-person", http.MethodPost, base+"/{uid}/reset", "Take a person's password and sessions, and give a token to set another", access.Govern), func(ctx context.Context, in *resetInput) (*invitedOutput, error) {
		out := &invitedOutput{}
		var err error
		if out.Body.Token, err = s.cfg.People.Reset(ctx, in.UID, in.Body.SecondFactor); err == nil {
			s.cfg.Log.Info("a person is reset", "person", in.UID, "secondFactor", in.Body.SecondFactor, "actor", CallerOf(ctx).Name)
		}
		return out, s.fail(err)
	})
	huma.Register(s.api, op("end-sessions", http.MethodDelete, base+"/{uid}/sessions", "End all sessions of a person", access.Govern), func(ctx context.Context, in *PersonPath) (*struct{}, error) {
		_, err := s.cfg.People.Get(ctx, in.UID)
		if err == nil {
			err = s.cfg.People.End(ctx, in.UID, "")
		}
		return nil, s.fail(err)
	})
}
