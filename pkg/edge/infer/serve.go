package infer

import (
	"encoding/json"
	"errors"
	"net/http"

	"tributary.dev/tributary/pkg/api"
)

// maxQuestion bounds the body of a request.
const maxQuestion = 32 << 20

// Handler answers by the Open Inference Protocol, version 2, over HTTP
// (github.com/kserve/open-inference-protocol, inference_rest.md): health, metadata, infer. Activating a
// version and reading counters are ours, and for who runs the program alone (manage).
func Handler(models map[string]*Model, manage bool) http.Handler {
	mux := http.NewServeMux()
	h := handler{models}
	mux.HandleFunc("GET /v2", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, map[string]any{"name": "tributary-inferd", "version": "2", "extensions": []string{}})
	})
	mux.HandleFunc("GET /v2/health/live", func(w http.ResponseWriter, _ *http.Request) { reply(w, map[string]bool{"live": true}) })
	mux.HandleFunc("GET /v2/health/ready", func(w http.ResponseWriter, _ *http.Request) {
		for _, m := range models {
			if m.Status().Version == "" {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
		}
		reply(w, map[string]bool{"ready": true})
	})
	for _, at := range []string{"/v2/models/{name}", "/v2/models/{name}/versions/{version}"} {
		mux.HandleFunc("GET "+at, h.of(h.metadata))
		mux.HandleFunc("GET "+at+"/ready", h.of(func(w http.ResponseWriter, _ *http.Request, m *Model) error {
			reply(w, map[string]any{"name": m.name, "ready": true})
			return nil
		}))
		mux.HandleFunc("POST "+at+"/infer", h.of(h.infer))
	}
	if manage {
		mux.HandleFunc("POST /manage/models/{name}/versions/{version}/activate", h.known(func(w http.ResponseWriter, r *http.Request, m *Model) error {
			if err := m.Activate(r.PathValue("version")); err != nil {
				return err
			}
			reply(w, statusOf(m))
			return nil
		}))
		mux.HandleFunc("GET /manage/models/{name}", h.known(func(w http.ResponseWriter, _ *http.Request, m *Model) error {
			reply(w, statusOf(m))
			return nil
		}))
	}
	return mux
}

type handler struct{ models map[string]*Model }

type answer func(http.ResponseWriter, *http.Request, *Model) error

// known finds the model that is asked for.
func (h handler) known(do answer) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		m, ok := h.models[r.PathValue("name")]
		if !ok {
			fail(w, &api.Error{Code: api.NotFound, Message: "there is no model " + r.PathValue("name")})
			return
		}
		if err := do(w, r, m); err != nil {
			fail(w, err)
		}
	}
}

// of is known, for the version that is served.
func (h handler) of(do answer) http.HandlerFunc {
	return h.known(func(w http.ResponseWriter, r *http.Request, m *Model) error {
		switch serves, asked := m.Status().Version, r.PathValue("version"); {
		case serves == "":
			return &api.Error{Code: api.Unavailable, Message: "no version of model " + m.name + " is served"}
		case asked != "" && asked != serves:
			return &api.Error{Code: api.NotFound, Message: "version " + asked + " of model " + m.name + " is not served", Remedy: "ask for " + serves + ", or name no version"}
		}
		return do(w, r, m)
	})
}

func (h handler) metadata(w http.ResponseWriter, _ *http.Request, m *Model) error {
	s := m.Status()
	reply(w, map[string]any{"name": s.Name, "versions": []string{s.Version}, "platform": "onnx", "inputs": s.Inputs, "outputs": s.Outputs})
	return nil
}

func (h handler) infer(w http.ResponseWriter, r *http.Request, m *Model) error {
	var q struct {
		ID     string   `json:"id"`
		Inputs []Tensor `json:"inputs"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxQuestion)).Decode(&q); err != nil {
		return &api.Error{Code: api.Invalid, Field: "inputs", Message: err.Error(), Remedy: "send {\"inputs\":[{\"name\":…,\"shape\":[…],\"datatype\":…,\"data\":[…]}]}"}
	}
	version, outputs, err := m.Infer(q.Inputs)
	if err != nil {
		return err
	}
	reply(w, struct {
		Name    string   `json:"model_name"`
		Version string   `json:"model_version"`
		ID      string   `json:"id,omitempty"`
		Outputs []Tensor `json:"outputs"`
	}{m.name, version, q.ID, outputs})
	return nil
}

func statusOf(m *Model) any {
	s := m.Status()
	return map[string]any{"name": s.Name, "version": s.Version, "inferences": s.Inferences, "failures": s.Failures, "refused": s.Refused}
}

func reply(w http.ResponseWriter, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		fail(w, &api.Error{Code: api.Internal, Message: "the model's answer cannot be written: " + err.Error()})
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(text) // who asked has gone
}

// fail answers with the protocol's error: {"error": text}.
func fail(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	switch api.CodeOf(err) {
	case api.Invalid:
		code = http.StatusBadRequest
	case api.NotFound:
		code = http.StatusNotFound
	case api.Unavailable:
		code = http.StatusServiceUnavailable
	}
	var e *api.Error
	text := err.Error()
	if errors.As(err, &e) && e.Remedy != "" {
		text += " → " + e.Remedy
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": text}) // who asked has gone
}
