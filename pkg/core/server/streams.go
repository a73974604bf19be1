package server

import (
	"cmp"
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/access"
	"tributary.dev/tributary/pkg/link/stream"
)

// Streams opens streams into devices; stream.Hub is one.
type Streams interface {
	Open(ctx context.Context, dev api.DeviceID, c stream.Command) (*stream.Conn, error)
}

// streamVerb is one way into a device: what is served, refused and described follows
// from it alone.
type streamVerb struct {
	name    string // the last part of the path
	verb    stream.Verb
	summary string
	params  []*huma.Param // of the query, but the tenant
}

func param(name, kind, doc string, required bool) *huma.Param {
	return &huma.Param{Name: name, In: "query", Required: required, Description: doc, Schema: &huma.Schema{Type: kind}}
}

var (
	paramApp     = param("app", huma.TypeString, "The app.", true)
	paramService = param("service", huma.TypeString, "The service; needed when the app has several.", false)
)

var streamVerbs = []streamVerb{
	{"logs", stream.Logs, "Read the output of a service", []*huma.Param{paramApp, paramService,
		param("follow", huma.TypeBoolean, "Go on with what comes.", false), param("tail", huma.TypeInteger, "Begin so many lines before the end.", false)}},
	{"exec", stream.Exec, "Run a command in a container", []*huma.Param{paramApp, paramService,
		{Name: "argv", In: "query", Required: true, Description: "The command and its arguments, one parameter each, in order.", Schema: &huma.Schema{Type: huma.TypeArray, Items: &huma.Schema{Type: huma.TypeString}}},
		param("tty", huma.TypeBoolean, "Give it a terminal.", false), param("columns", huma.TypeInteger, "Width of the terminal.", false), param("rows", huma.TypeInteger, "Height of the terminal.", false)}},
	{"port-forward", stream.Forward, "Reach a port of a service", []*huma.Param{paramApp, paramService, param("port", huma.TypeInteger, "The port in the container.", true)}},
	{"console", stream.Console, "Use the recovery console", []*huma.Param{
		param("tty", huma.TypeBoolean, "There is a terminal that can draw.", false), param("columns", huma.TypeInteger, "Width of the terminal.", false), param("rows", huma.TypeInteger, "Height of the terminal.", false)}},
	{"line", stream.Line, "Use the console of a card in the box", []*huma.Param{param("line", huma.TypeString, "The card, such as rshim0.", true)}},
	{"top", stream.Top, "See what containers use now", []*huma.Param{param("follow", huma.TypeBoolean, "Go on, a sample at a time.", false)}},
}

const streamDoc = "An HTTP/1.1 upgrade (RFC 9110, section 7.8) to `" + stream.Protocol + "`: send `Connection: Upgrade` and `Upgrade: " + stream.Protocol + "`. " +
	"After 101 both sides send frames, as pkg/link/stream describes them. The device dials the other end itself; what it refuses is still answered in HTTP. " +
	"Browsers send `Upgrade: websocket` with the subprotocol `" + stream.Protocol + "`, and where they have a token, `bearer.TOKEN` beside it; messages carry the same frames, cut anywhere. For who may operate it; audited by the device."

func (s *Server) streamRoutes() {
	if s.cfg.Streams == nil {
		return
	}
	for _, v := range streamVerbs {
		path := "/api/v1/devices/{name}/" + v.name
		op := &huma.Operation{OperationID: v.name + "-device", Method: http.MethodGet, Path: path, Summary: v.summary, Description: streamDoc, Tags: []string{"streams"},
			Parameters: append([]*huma.Param{
				{Name: "name", In: "path", Required: true, Description: "The device's name.", Schema: &huma.Schema{Type: huma.TypeString}},
				{Name: "Upgrade", In: "header", Required: true, Schema: &huma.Schema{Type: huma.TypeString, Enum: []any{stream.Protocol, "websocket"}}},
				param("tenant", huma.TypeString, "The owner.", false),
			}, v.params...),
			Responses: s.responses(http.StatusSwitchingProtocols, nil)}
		s.api.OpenAPI().AddOperation(op)
		known := parametersOf(op)
		into := s.guard(Needs{access.Operate, Device}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.streamInto(w, r, v.verb) }))
		s.mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			if err := onlyKnown(r, known); err != nil {
				writeErrorAs(w, http.StatusBadRequest, err)
				return
			}
			into.ServeHTTP(w, r)
		})
	}
}

// streamInto joins a person's connection with one that the device opens in answer. The
// device's comes first, so that its failure is still answered in HTTP; a browser cannot read
// that of a WebSocket, and gets it as the last frame.
func (s *Server) streamInto(w http.ResponseWriter, r *http.Request, verb stream.Verb) {
	actor := CallerOf(r.Context())
	device, err := s.DeviceOf(r)
	if err != nil {
		WriteError(w, err)
		return
	}
	socket := isWebSocket(r)
	command, err := stream.FromQuery(verb, r.URL.Query())
	switch {
	case err != nil:
	case socket:
		err = sameOrigin(r)
	default:
		err = stream.Requested(r)
	}
	if err != nil {
		WriteError(w, err)
		return
	}
	command.Actor = actor.Name
	log := s.cfg.Log.With("device", r.PathValue("name"), "verb", string(verb), "app", command.App, "service", command.Service, "actor", actor.Name)
	note := api.AuditEntry{TenantName: cmp.Or(r.URL.Query().Get("tenant"), api.DefaultTenant), Action: string(verb), Kind: api.KindDevice, Object: r.PathValue("name"),
		Message: strings.TrimSpace(command.App + " " + command.Service + " " + strings.Join(command.Argv, " "))}
	if err := s.mustNote(r.Context(), note); err != nil {
		WriteError(w, err)
		return
	}
	var near *stream.Conn
	if socket {
		if near, err = acceptSocket(w, r); err != nil {
			log.Info("stream not opened", "err", err)
			return // it was answered
		}
		defer near.Close()
	}
	far, err := s.cfg.Streams.Open(r.Context(), device, command)
	if err != nil {
		log.Info("stream not opened", "err", err)
		if socket {
			_ = near.Finish(1, err, socketGrace)
			return
		}
		WriteError(w, err)
		return
	}
	defer far.Close()
	if !socket {
		if near, err = stream.Accept(w, r); err != nil {
			WriteError(w, err)
			return
		}
	}
	log.Info("stream opened")
	done := make(chan struct{})
	defer close(done)
	go s.endWhenRevoked(r, near, far, done)
	up, down, err := stream.Join(near, far)
	log.Info("stream ended", "toDevice", up, "fromDevice", down, "err", err)
}

// endWhenRevoked ends a stream once whoever opened it may not have it any more.
func (s *Server) endWhenRevoked(r *http.Request, near, far *stream.Conn, done <-chan struct{}) {
	tick := time.NewTicker(looksAgain)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		_, err := s.admit(Needs{access.Operate, Device}, r)
		if api.CodeOf(err) == api.Internal && err != nil {
			continue // the store cannot be read just now: nothing was taken away
		}
		if err != nil { // check: streams end with the right to them
			s.cfg.Log.Info("stream ended, for who opened it may not have it any more", "device", r.PathValue("name"), "err", err)
			_ = near.Fail(public(err))
			far.Close()
			near.Close()
			return
		}
	}
}
