package infer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/mutation"
	"tributary.dev/tributary/tests/wait"
)

// factors is an engine whose models are a factor in text: y = x·factor.
type factors struct{ broken atomic.Bool }

type factor struct {
	by     float64
	of     *factors
	closed atomic.Bool
}

func (e *factors) Load(model []byte) (Session, error) {
	by, err := strconv.ParseFloat(string(model), 64)
	return &factor{by: by, of: e}, err
}

func (f *factor) Inputs() []Info  { return []Info{{Name: "x", Datatype: FP64, Shape: []int64{-1, 2}}} }
func (f *factor) Outputs() []Info { return []Info{{Name: "y", Datatype: FP64, Shape: []int64{-1, 2}}} }
func (f *factor) Close()          { f.closed.Store(true) }
func (f *factor) Run(in []Tensor) ([]Tensor, error) {
	if f.closed.Load() || f.of.broken.Load() && f.by == 3 {
		return nil, errors.New("it broke")
	}
	out := Tensor{Info: Info{Name: "y", Datatype: FP64, Shape: in[0].Shape}}
	for _, v := range in[0].F64 {
		out.F64 = append(out.F64, v*f.by)
	}
	return []Tensor{out}, nil
}

// put writes a version whose golden output for 1 and 10 is as given.
func put(t *testing.T, dir, version, model string, one float64) {
	t.Helper()
	golden := fmt.Sprintf(`{"tolerance":1e-6,"cases":[{"inputs":[{"name":"x","datatype":"FP64","shape":[1,2],"data":[1,10]}],"outputs":[{"name":"y","datatype":"FP64","shape":[1,2],"data":[%g,%g]}]}]}`, one, 10*one)
	for name, text := range map[string]string{"model.onnx": model, "golden.json": golden} {
		if err := os.MkdirAll(filepath.Join(dir, version), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, version, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func openAt(t *testing.T, e Engine, dir string) *Model {
	t.Helper()
	m, err := OpenModel(e, dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func ask(t *testing.T, m *Model, x float64) (string, float64, error) {
	t.Helper()
	version, out, err := m.Infer([]Tensor{{Info: Info{Name: "x", Datatype: FP64, Shape: []int64{1, 2}}, F64: []float64{x, 0}}})
	if err != nil {
		return version, 0, err
	}
	return version, out[0].F64[0], nil
}

func TestVersions(t *testing.T) {
	dir, e := filepath.Join(t.TempDir(), "line"), &factors{}
	put(t, dir, "1", "2", 2)
	put(t, dir, "2", "3", 3)
	put(t, dir, "bad", "4", 5)
	m := openAt(t, e, dir)
	if _, _, err := ask(t, m, 1); api.CodeOf(err) != api.Unavailable {
		t.Errorf("before any version is served: %v", err)
	}
	if err := m.Activate("1"); err != nil {
		t.Fatal(err)
	}
	if v, y, err := ask(t, m, 4); v != "1" || y != 8 || err != nil {
		t.Errorf("version %s says %g, %v", v, y, err)
	}
	err := m.Activate("bad")
	if err == nil || !strings.Contains(err.Error(), `output "y" is 4 at 0, want 5`) {
		t.Errorf("a model that gives other outputs: %v", err)
	}
	for _, name := range []string{"none", "", "..", "1/../1", ".", "a\x00"} {
		if m.Activate(name) == nil {
			t.Errorf("version %q is served", name)
		}
	}
	if v, y, err := ask(t, m, 4); v != "1" || y != 8 || err != nil {
		t.Errorf("after refusals version %s says %g, %v", v, y, err)
	}
	if err := m.Activate("2"); err != nil {
		t.Fatal(err)
	}
	m.Close()
	m = openAt(t, e, dir) // a restart
	if v, y, err := ask(t, m, 4); v != "2" || y != 12 || err != nil {
		t.Errorf("after a restart version %s says %g, %v", v, y, err)
	}
	if s := m.Status(); s.Refused["bad"] == "" || s.Inferences != 1 {
		t.Errorf("the status is %+v", s)
	}
	m.Close()
	if err := os.WriteFile(filepath.Join(dir, "2", "model.onnx"), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	m = openAt(t, e, dir)
	if v, y, err := ask(t, m, 4); v != "1" || y != 8 || err != nil {
		t.Errorf("with a torn file version %s says %g, %v", v, y, err)
	}
}

// A version that fails again and again gives way to the one before, and is remembered.
func TestGoesBack(t *testing.T) {
	dir, e := filepath.Join(t.TempDir(), "line"), &factors{}
	put(t, dir, "1", "2", 2)
	put(t, dir, "2", "3", 3)
	m := openAt(t, e, dir)
	for _, v := range []string{"1", "2"} {
		if err := m.Activate(v); err != nil {
			t.Fatal(err)
		}
	}
	e.broken.Store(true)
	for range failures - 1 {
		if _, _, err := ask(t, m, 1); api.CodeOf(err) != api.Internal {
			t.Fatalf("a broken model: %v", err)
		}
	}
	for range 10 { // faults of who asks count for nothing
		if _, _, err := m.Infer(nil); api.CodeOf(err) != api.Invalid {
			t.Fatalf("no input: %v", err)
		}
	}
	if v := m.Status().Version; v != "2" {
		t.Fatalf("version %s is served after %d failures", v, failures-1)
	}
	_, _, _ = ask(t, m, 1)
	wait.Seen(t, "the version before", func() (any, bool) { s := m.Status(); return s, s.Version == "1" && s.Refused["2"] != "" })
	if v, y, err := ask(t, m, 4); v != "1" || y != 8 || err != nil {
		t.Errorf("version %s says %g, %v", v, y, err)
	}
}

// TestVersionsNeedTheCheck proves that the refusal above is the golden outputs'.
func TestVersionsNeedTheCheck(t *testing.T) {
	mutation.Prove(t, mutation.Marked(t, "^TestVersions$", "infer.go")...)
}

// The protocol, as a client sees it (inference_rest.md).
func TestProtocol(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "line")
	put(t, dir, "1", "2", 2)
	m := openAt(t, &factors{}, dir)
	s := httptest.NewServer(Handler(map[string]*Model{"line": m}, true))
	defer s.Close()
	do := func(method, path, body string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	const x = `{"name":"x","datatype":"FP64","shape":[1,2],"data":[3,4]}`
	for _, c := range []struct {
		method, path, body string
		code               int
		says               string
	}{
		{"GET", "/v2/health/live", "", 200, `"live":true`},
		{"GET", "/v2/health/ready", "", 503, ``},
		{"GET", "/v2/models/line/ready", "", 503, `no version`},
		{"POST", "/manage/models/line/versions/9/activate", "", 400, `not served`},
		{"POST", "/manage/models/line/versions/1/activate", "", 200, `"version":"1"`},
		{"GET", "/v2/health/ready", "", 200, `"ready":true`},
		{"GET", "/v2", "", 200, `"name":"tributary-inferd"`},
		{"GET", "/v2/models/line", "", 200, `"inputs":[{"name":"x","datatype":"FP64","shape":[-1,2]}]`},
		{"GET", "/v2/models/other", "", 404, `"error":"there is no model other`},
		{"GET", "/v2/models/line/versions/2", "", 404, `not served`},
		{"POST", "/v2/models/line/infer", `{"id":"q1","inputs":[` + x + `]}`, 200, `{"model_name":"line","model_version":"1","id":"q1","outputs":[{"name":"y","datatype":"FP64","shape":[1,2],"data":[6,8]}]}`},
		{"POST", "/v2/models/line/versions/1/infer", `{"inputs":[` + x + `]}`, 200, `"data":[6,8]`},
		{"POST", "/v2/models/line/infer", `{"inputs":[]}`, 400, `input \"x\" is missing`},
		{"POST", "/v2/models/line/infer", `{"inputs":[` + x + `,` + x + `]}`, 400, `2 inputs, the model takes 1`},
		{"POST", "/v2/models/line/infer", `{"inputs":[` + strings.ReplaceAll(x, "[1,2]", "[2,1]") + `]}`, 400, `the model takes FP64 [-1 2]`},
		{"POST", "/v2/models/line/infer", `{"inputs":[` + strings.ReplaceAll(x, "FP64", "FP32") + `]}`, 400, `the model takes FP64`},
		{"POST", "/v2/models/line/infer", `{"inputs":[` + strings.ReplaceAll(x, "[3,4]", "[3]") + `]}`, 400, `1 values for a shape of 2`},
		{"POST", "/v2/models/line/infer", `{"inputs":[` + strings.ReplaceAll(x, "FP64", "BYTES") + `]}`, 400, `is not taken`},
		{"POST", "/v2/models/line/infer", `nonsense`, 400, `invalid`},
		{"GET", "/manage/models/line", "", 200, `"inferences":2`},
	} {
		if code, text := do(c.method, c.path, c.body); code != c.code || !strings.Contains(text, c.says) {
			t.Errorf("%s %s %s: %d %s, want %d and %q", c.method, c.path, c.body, code, text, c.code, c.says)
		}
	}
	apps := httptest.NewServer(Handler(map[string]*Model{"line": m}, false))
	defer apps.Close()
	s.URL = apps.URL
	if code, _ := do("POST", "/manage/models/line/versions/1/activate", ""); code != 404 {
		t.Errorf("an app activates a version: %d", code)
	}
}

// FuzzTensor: what is read is whole, and is written as it was read.
func FuzzTensor(f *testing.F) {
	f.Add([]byte(`{"name":"x","datatype":"FP32","shape":[2],"data":[1,2.5]}`))
	f.Add([]byte(`{"name":"x","datatype":"INT64","shape":[1,0,9999999],"data":[]}`))
	f.Add([]byte(`{"name":"x","datatype":"INT32","shape":[4294967296,4294967296],"data":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var one, two Tensor
		if json.Unmarshal(b, &one) != nil {
			return
		}
		n, err := Elements(one.Shape)
		if _, size, _ := one.Raw(); err != nil || size < 4*n || size > 8*n {
			t.Fatalf("%+v has %d bytes for %d elements, %v", one, size, n, err)
		}
		text, err := json.Marshal(one)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &two); err != nil || two.near(&one, 0) != nil {
			t.Fatalf("%s is read as %+v, %v", text, two, err)
		}
	})
}
