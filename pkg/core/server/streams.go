package server

import (
	"context"
	"net/http"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link/stream"
)

// Streams opens streams into devices; stream.Hub is one.
type Streams interface {
	Open(ctx context.Context, dev api.DeviceID, c stream.Command) (*stream.Conn, error)
}

// streamVerbs maps the last part of the path to the verb of the command.
var streamVerbs = map[string]stream.Verb{"logs": stream.Logs, "exec": stream.Exec, "port-forward": stream.Forward, "top": stream.Top}

func (s *Server) streamRoutes() {
	if s.cfg.Streams == nil {
		return
	}
	for name, verb := range streamVerbs {
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.streamInto(w, r, verb) })
		s.mux.Handle("GET /api/v1/devices/{name}/"+name, s.guard(Admins, h))
	}
}

// streamInto joins a person's connection with one that the device opens in answer. The
// device's comes first, so that its failure is still answered in HTTP.
func (s *Server) streamInto(w http.ResponseWriter, r *http.Request, verb stream.Verb) {
	actor, _ := PrincipalOf(r.Context())
	device, err := s.DeviceOf(r)
	if err != nil {
		WriteError(w, err)
		return
	}
	command, err := stream.FromQuery(verb, r.URL.Query())
	if err == nil {
		err = stream.Requested(r)
	}
	if err != nil {
		WriteError(w, err)
		return
	}
	command.Actor = actor.Name
	log := s.cfg.Log.With("device", r.PathValue("name"), "verb", string(verb), "app", command.App, "service", command.Service, "actor", actor.Name)
	far, err := s.cfg.Streams.Open(r.Context(), device, command)
	if err != nil {
		log.Info("stream not opened", "err", err)
		WriteError(w, err)
		return
	}
	defer far.Close()
	near, err := stream.Accept(w, r)
	if err != nil {
		WriteError(w, err)
		return
	}
	log.Info("stream opened")
	up, down, err := stream.Join(near, far)
	log.Info("stream ended", "toDevice", up, "fromDevice", down, "err", err)
}
