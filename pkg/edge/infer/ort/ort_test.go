package ort

import (
	"encoding/binary"
	"math"
	"os"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"tributary.dev/tributary/pkg/edge/infer"
)

// field and the like write protobuf, of which ONNX's models are (onnx.proto3).
func field(n protowire.Number, parts ...[]byte) []byte {
	var body []byte
	for _, p := range parts {
		body = append(body, p...)
	}
	return protowire.AppendBytes(protowire.AppendTag(nil, n, protowire.BytesType), body)
}

func varint(n protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, n, protowire.VarintType), v)
}

func text(n protowire.Number, s string) []byte { return field(n, []byte(s)) }

// line is a model of y = x·factor + 1, for any number of floats.
func line(factor float32) []byte {
	constant := func(name string, v float32) []byte { // TensorProto: dims, data_type FLOAT, name, raw_data
		return field(5, varint(1, 1), varint(2, 1), text(8, name), field(9, binary.LittleEndian.AppendUint32(nil, math.Float32bits(v))))
	}
	value := func(n protowire.Number, name string) []byte { // ValueInfoProto: name, type.tensor_type of FLOAT and one dimension n
		return field(n, text(1, name), field(2, field(1, varint(1, 1), field(2, field(1, text(2, "n"))))))
	}
	node := func(op string, in, with, out string) []byte {
		return field(1, text(1, in), text(1, with), text(2, out), text(4, op))
	}
	graph := field(7, node("Mul", "x", "a", "m"), node("Add", "m", "b", "y"), text(2, "line"), constant("a", factor), constant("b", 1), value(11, "x"), value(12, "y"))
	return append(append(varint(1, 7), graph...), field(8, varint(2, 13))...)
}

func engine(t *testing.T) *Engine {
	library := os.Getenv("TRIBUTARY_ONNXRUNTIME")
	if library == "" {
		t.Skip("TRIBUTARY_ONNXRUNTIME names no libonnxruntime.so: image/inference/fetch brings one")
	}
	e, err := Open(library, 1)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func floats(v ...float32) []infer.Tensor {
	return []infer.Tensor{{Info: infer.Info{Name: "x", Datatype: infer.FP32, Shape: []int64{int64(len(v))}}, F32: v}}
}

func TestOpenRefuses(t *testing.T) {
	if _, err := Open("/nonexistent/libonnxruntime.so", 1); err == nil {
		t.Error("a library that is not there was opened")
	}
}

func TestModel(t *testing.T) {
	e := engine(t)
	s, err := e.Load(line(2))
	if err != nil {
		t.Fatal(err)
	}
	if in, out := s.Inputs(), s.Outputs(); len(in) != 1 || in[0].Name != "x" || in[0].Datatype != infer.FP32 || len(in[0].Shape) != 1 || in[0].Shape[0] != -1 || len(out) != 1 || out[0].Name != "y" {
		t.Errorf("the model takes %+v and gives %+v", in, out)
	}
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			for k := range 200 {
				x := float32(n*1000 + k)
				got, err := s.Run(floats(x, -x, 0.5))
				if err != nil || len(got) != 1 || len(got[0].F32) != 3 || got[0].F32[0] != 2*x+1 || got[0].F32[1] != 1-2*x || got[0].F32[2] != 2 {
					t.Errorf("of %g the model makes %+v, %v", x, got, err)
					return
				}
			}
		})
	}
	wg.Wait()
	wrong := floats(1)
	wrong[0].Shape = []int64{1, 1}
	if _, err := s.Run(wrong); err == nil || !strings.Contains(err.Error(), "ONNX Runtime: ") {
		t.Errorf("a shape that the model does not take: %v", err)
	}
	s.Close()
	if _, err := s.Run(floats(1)); err == nil {
		t.Error("a model that was closed answers")
	}
	s.Close()
	for what, model := range map[string][]byte{"nothing": nil, "no model": []byte("hello"), "half of one": line(2)[:40]} {
		if _, err := e.Load(model); err == nil {
			t.Errorf("%s was loaded", what)
		}
	}
}
