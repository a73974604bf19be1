// Package infer answers: which models answer on this box, and are they the ones that were trained?
//
// A version of a model is a folder with model.onnx and golden.json: inputs, and the outputs that
// training saw for them. It is put in the place of the one before when it gives those outputs, and
// gives way to the one before when it fails later.
package infer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/boundedfile"
	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// Engine runs models.
type Engine interface {
	// Load makes a model ready.
	Load(model []byte) (Session, error)
}

// Session is a model that is ready. Run may be called from several goroutines, in the order of Inputs.
type Session interface {
	Inputs() []Info
	Outputs() []Info
	Run(in []Tensor) ([]Tensor, error)
	Close()
}

// Golden is what a model must give.
type Golden struct {
	// Tolerance is how far an output may be off, as a part of its value (of 1 for smaller ones).
	Tolerance float64 `json:"tolerance"`
	Cases     []struct {
		Inputs  []Tensor `json:"inputs"`
		Outputs []Tensor `json:"outputs"`
	} `json:"cases"`
}

const (
	maxModel  = 512 << 20
	maxGolden = 16 << 20
	// failures in a row are how many errors of the engine a version is allowed before it gives way.
	failures = 5
)

// Check holds a session against what it must give.
func (g *Golden) Check(s Session) error {
	if len(g.Cases) == 0 {
		return errors.New("there are no golden cases: nothing shows that it is the model that was trained")
	}
	for n, c := range g.Cases {
		in, err := arrange(s.Inputs(), c.Inputs)
		if err != nil {
			return fmt.Errorf("golden case %d: %w", n, err)
		}
		got, err := s.Run(in)
		if err != nil {
			return fmt.Errorf("golden case %d: %w", n, err)
		}
		if len(c.Outputs) == 0 {
			return fmt.Errorf("golden case %d has no outputs", n)
		}
		for _, want := range c.Outputs {
			i := slices.IndexFunc(got, func(t Tensor) bool { return t.Name == want.Name })
			if i < 0 {
				return fmt.Errorf("golden case %d: there is no output %q", n, want.Name)
			}
			if err := got[i].near(&want, g.Tolerance); err != nil { // check: golden outputs
				return fmt.Errorf("golden case %d: %w", n, err)
			}
		}
	}
	return nil
}

// arrange brings inputs into a model's order, and refuses what is not its.
func arrange(want []Info, in []Tensor) ([]Tensor, error) {
	out := make([]Tensor, len(want))
	for k, w := range want {
		i := slices.IndexFunc(in, func(t Tensor) bool { return t.Name == w.Name })
		if i < 0 {
			return nil, fmt.Errorf("input %q is missing", w.Name)
		}
		fits := in[i].Datatype == w.Datatype && len(in[i].Shape) == len(w.Shape)
		for d := 0; fits && d < len(w.Shape); d++ {
			fits = w.Shape[d] < 0 || w.Shape[d] == in[i].Shape[d]
		}
		if !fits {
			return nil, fmt.Errorf("input %q is %s %v, the model takes %s %v", w.Name, in[i].Datatype, in[i].Shape, w.Datatype, w.Shape)
		}
		out[k] = in[i]
	}
	if len(in) != len(want) {
		return nil, fmt.Errorf("%d inputs, the model takes %d", len(in), len(want))
	}
	return out, nil
}

// Model serves the versions of one model.
type Model struct {
	name   string
	dir    string
	engine Engine
	log    *slog.Logger

	changing sync.Mutex // one activation at a time

	mu      sync.Mutex
	note    note
	serving Session
	version string
	inRow   int
	count   uint64
	failed  uint64
}

// note is what is kept in the model's folder.
type note struct {
	Active   string `json:"active,omitempty"`
	Previous string `json:"previous,omitempty"`
	// Refused tells why versions are not served.
	Refused map[string]string `json:"refused,omitempty"`
}

func (m *Model) notePath() string { return filepath.Join(m.dir, "active.json") }

// OpenModel serves again what was served, or the version before where that fails.
func OpenModel(engine Engine, dir string, log *slog.Logger) (*Model, error) {
	m := &Model{name: filepath.Base(dir), dir: dir, engine: engine, log: log}
	text, err := boundedfile.Read(m.notePath(), 1<<20)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if len(text) > 0 {
		if err := json.Unmarshal(text, &m.note); err != nil {
			return nil, fmt.Errorf("%s: %w", m.notePath(), err)
		}
	}
	for _, v := range []string{m.note.Active, m.note.Previous} {
		if v == "" {
			continue
		}
		s, err := m.ready(v)
		if err == nil {
			m.serving, m.version = s, v
			return m, nil
		}
		log.Error("a model is not served", "model", m.name, "version", v, "err", err)
	}
	return m, nil
}

// ready loads a version and holds it against its golden cases.
func (m *Model) ready(version string) (Session, error) {
	if version == "" || strings.ContainsAny(version, "/\x00") || version[0] == '.' {
		return nil, &api.Error{Code: api.Invalid, Field: "version", Message: fmt.Sprintf("%q is no name of a version", version), Remedy: "name a folder below the model's"}
	}
	var g Golden
	text, err := boundedfile.Read(filepath.Join(m.dir, version, "golden.json"), maxGolden)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &g); err != nil {
		return nil, fmt.Errorf("golden.json: %w", err)
	}
	model, err := boundedfile.Read(filepath.Join(m.dir, version, "model.onnx"), maxModel)
	if err != nil {
		return nil, err
	}
	s, err := m.engine.Load(model)
	if err != nil {
		return nil, err
	}
	if err := g.Check(s); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Activate serves a version in the place of the one before, which is kept. A version that fails is
// refused, and the one before goes on.
func (m *Model) Activate(version string) error {
	m.changing.Lock()
	defer m.changing.Unlock()
	m.mu.Lock()
	same := version == m.version && m.serving != nil
	m.mu.Unlock()
	if same {
		return nil
	}
	s, err := m.ready(version)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		m.refuse(version, err.Error())
		return &api.Error{Code: api.Invalid, Message: "version " + version + " of model " + m.name + " is not served: " + err.Error(), Remedy: "the version before goes on; push one whose golden cases hold"}
	}
	before, n := m.serving, m.note
	n.Previous, n.Active = m.version, version
	delete(n.Refused, version)
	if err := m.keep(n); err != nil {
		s.Close()
		return err
	}
	m.serving, m.version, m.inRow = s, version, 0
	if before != nil {
		go before.Close() // it waits for those who ask it still
	}
	return nil
}

func (m *Model) keep(n note) error {
	text, err := json.Marshal(n)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(m.notePath(), text, 0o600); err != nil {
		return err
	}
	m.note = n
	return nil
}

func (m *Model) refuse(version, why string) {
	n := m.note
	refused := map[string]string{version: why}
	for v, old := range n.Refused {
		if len(refused) < 20 && v != version {
			refused[v] = old
		}
	}
	n.Refused = refused
	if err := m.keep(n); err != nil {
		m.log.Error("why a version is refused is not kept", "model", m.name, "version", version, "err", err)
	}
}

// Infer asks the version that is served.
func (m *Model) Infer(in []Tensor) (version string, out []Tensor, err error) {
	m.mu.Lock()
	s := m.serving
	version = m.version
	m.mu.Unlock()
	if s == nil {
		return "", nil, &api.Error{Code: api.Unavailable, Message: "no version of model " + m.name + " is served", Remedy: "see what its active.json says of versions that were refused"}
	}
	arranged, err := arrange(s.Inputs(), in)
	if err != nil {
		return version, nil, &api.Error{Code: api.Invalid, Field: "inputs", Message: err.Error(), Remedy: "see GET /v2/models/" + m.name}
	}
	out, err = s.Run(arranged)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		m.count++
		m.inRow = 0
		return version, out, nil
	}
	m.failed++
	if version != m.version {
		return version, nil, &api.Error{Code: api.Unavailable, Message: "the model was changed meanwhile", Remedy: "ask again", Err: err}
	}
	if m.inRow++; m.inRow >= failures && m.note.Previous != "" {
		go m.goBack(version, err)
	}
	return version, nil, &api.Error{Code: api.Internal, Message: "model " + m.name + " failed: " + err.Error()}
}

// goBack returns to the version before one that fails.
func (m *Model) goBack(from string, why error) {
	m.mu.Lock()
	to, still := m.note.Previous, m.version == from
	m.mu.Unlock()
	if !still || to == "" {
		return
	}
	if err := m.Activate(to); err != nil {
		m.log.Error("a model fails, and so does the version before", "model", m.name, "version", from, "before", to, "err", err)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refuse(from, fmt.Sprintf("it failed %d times in a row: %v", failures, why))
	m.log.Warn("a model failed; the version before is served again", "model", m.name, "version", from, "before", to)
}

// Status is what is served.
type Status struct {
	Name, Version   string
	Inputs, Outputs []Info
	Inferences      uint64
	Failures        uint64
	Refused         map[string]string
}

// Status tells how the model stands; Version is empty where none is served.
func (m *Model) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := Status{Name: m.name, Inferences: m.count, Failures: m.failed, Refused: m.note.Refused}
	if m.serving != nil {
		s.Version, s.Inputs, s.Outputs = m.version, m.serving.Inputs(), m.serving.Outputs()
	}
	return s
}

// Close ends serving.
func (m *Model) Close() {
	m.mu.Lock()
	s := m.serving
	m.serving, m.version = nil, ""
	m.mu.Unlock()
	if s != nil {
		s.Close()
	}
}
