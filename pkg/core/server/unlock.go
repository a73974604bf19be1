package server

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/access"
)

// Unlocks answers the challenges that boxes show (package identity/unlock). Each is
// answered once.
type Unlocks interface {
	Unlock(ctx context.Context, device api.DeviceID, name, challenge, actor string) (UnlockAnswer, error)
}

// UnlockAnswer opens a shell on the box that showed the challenge.
type UnlockAnswer struct {
	Answer string `json:"answer" doc:"What to type at the box: 18 characters in three groups."`
	// Challenge names the challenge in the events of core and box.
	Challenge string `json:"challenge" doc:"The name of the challenge in events."`
	Proven    bool   `json:"proven" doc:"The box could read who it is from its own state; else it may be another box of yours."`
}

type (
	unlockInput struct {
		ObjectPath
		Body struct {
			Challenge string `json:"challenge" minLength:"1" maxLength:"4096" doc:"As the box shows it; dashes, spaces and case do not count."`
		}
	}
	unlockOutput struct{ Body UnlockAnswer }
)

func (s *Server) unlockRoute() {
	if s.cfg.Unlocks == nil {
		return
	}
	op := huma.Operation{OperationID: "unlock-device", Method: http.MethodPost, Path: "/api/v1/devices/{name}/unlock", Summary: "Answer the challenge of a box's console",
		Description: "Whoever types the answer at the box gets a root shell there, once, within a quarter of an hour. For who may unlock; noted among the device's events before it is given.",
		Tags:        []string{"devices"},
		Middlewares: s.needs(access.Unlock, Device)}
	huma.Register(s.api, op, func(ctx context.Context, in *unlockInput) (*unlockOutput, error) {
		id, err := s.deviceID(ctx, access.Unlock, in.Tenant, in.Name)
		if err != nil {
			return nil, s.fail(err)
		}
		actor := CallerOf(ctx)
		note := api.AuditEntry{TenantName: in.Tenant, Action: "unlock", Kind: api.KindDevice, Object: in.Name, Message: "the answer to a challenge was asked for"}
		if err := s.mustNote(ctx, note); err != nil {
			return nil, s.fail(err)
		}
		a, err := s.cfg.Unlocks.Unlock(ctx, id, in.Name, in.Body.Challenge, actor.Name)
		if err != nil {
			s.cfg.Log.Warn("a challenge is not answered", "device", in.Name, "tenant", in.Tenant, "actor", actor.Name, "err", err)
			return nil, s.fail(err)
		}
		s.cfg.Log.Warn("a challenge is answered: its box opens a shell", "device", in.Name, "tenant", in.Tenant, "actor", actor.Name, "challenge", a.Challenge)
		return &unlockOutput{a}, nil
	})
}
