package server

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"tributary.dev/tributary/pkg/api"
)

// public is what strangers may see of an error: everything of an api.Error but its
// Err, and of any other error nothing.
func public(err error) *api.Error {
	var e *api.Error
	if !errors.As(err, &e) {
		return &api.Error{Code: api.Internal, Message: "something went wrong inside the core", Remedy: "the core's log tells more, by the request id"}
	}
	return e
}

// wireError is an api.Error as huma wants one. It is the one place where errors
// become HTTP in the REST API.
type wireError struct {
	e *api.Error
	// status is the HTTP status when it is not that of the error's code.
	status int
}

func (e wireError) Error() string { return e.e.Error() }

// GetStatus implements huma.StatusError.
func (e wireError) GetStatus() int {
	if e.status != 0 {
		return e.status
	}
	return e.e.Code.HTTPStatus()
}

// MarshalJSON writes the bare api.Error.
func (e wireError) MarshalJSON() ([]byte, error) { return json.Marshal(e.e) }

// fail turns any error into what a handler of the REST API returns, and logs what
// is our fault.
func (s *Server) fail(err error) error {
	if err == nil {
		return nil
	}
	if api.CodeOf(err) == api.Internal {
		s.cfg.Log.Error("request failed", "err", err)
	}
	return wireError{e: public(err)}
}

// translate turns huma's own errors, about parameters and bodies, into api.Error.
func translate(_ huma.Context, _ string, v any) (any, error) {
	model, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	e := &api.Error{Code: codeOfStatus(model.Status), Message: model.Detail}
	for _, d := range model.Errors {
		e.Causes = append(e.Causes, &api.Error{Code: e.Code, Field: d.Location, Message: d.Message, Remedy: remedyOf(d.Location)})
	}
	if e.Remedy == "" && model.Status < 500 {
		e.Remedy = remedyOf("body")
	}
	if len(e.Causes) == 1 {
		e = e.Causes[0]
	}
	return e, nil
}

// remedyOf tells what to do about a part of a request that the description of the API does
// not allow.
func remedyOf(location string) string {
	where, name, _ := strings.Cut(location, ".")
	switch {
	case where == "query" && name == "limit":
		return "give a whole number from 1 to " + strconv.Itoa(maxPage) + ", or leave it out"
	case where == "body":
		return "send the object, or for " + applyPath + " a file of them, as the body; /openapi.json describes it"
	}
	return "see what it may be in /openapi.json"
}

func codeOfStatus(status int) api.Code {
	switch status {
	case http.StatusNotFound:
		return api.NotFound
	case http.StatusRequestEntityTooLarge:
		return api.TooLarge
	case http.StatusRequestTimeout, http.StatusServiceUnavailable:
		return api.Unavailable
	}
	if status >= 500 {
		return api.Internal
	}
	return api.Invalid
}

// WriteError answers a request outside the REST API with an error.
func WriteError(w http.ResponseWriter, err error) {
	writeErrorAs(w, public(err).Code.HTTPStatus(), err)
}

// writeErrorAs is WriteError with a status of its own.
func writeErrorAs(w http.ResponseWriter, status int, err error) {
	e := public(err)
	w.Header().Set("Content-Type", "application/json")
	if e.Code == api.Unauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="tributary"`)
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(e)
}
