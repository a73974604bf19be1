package infer

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"unsafe"
)

// The types of elements, in the words of the Open Inference Protocol.
const (
	FP32  = "FP32"
	FP64  = "FP64"
	INT32 = "INT32"
	INT64 = "INT64"
)

// Info tells of an input or output of a model; a dimension of -1 is any.
type Info struct {
	Name     string  `json:"name"`
	Datatype string  `json:"datatype"`
	Shape    []int64 `json:"shape"`
}

// Tensor is a value. Of the slices the one of its type is set.
type Tensor struct {
	Info
	F32 []float32
	F64 []float64
	I32 []int32
	I64 []int64
}

// maxElements bounds a tensor.
const maxElements = 16 << 20

// Elements is how many a shape has.
func Elements(shape []int64) (int, error) {
	n := int64(1)
	for _, d := range shape {
		if d < 0 || d > maxElements || n*d > maxElements {
			return 0, fmt.Errorf("shape %v: dimensions are not negative, and their product is at most %d", shape, maxElements)
		}
		n *= d
	}
	return int(n), nil
}

// Raw gives the elements as ONNX Runtime takes them: where they are, how many bytes, and ONNX's number of their type.
func (t *Tensor) Raw() (data unsafe.Pointer, size int, element int32) {
	switch t.Datatype {
	case FP32:
		return unsafe.Pointer(unsafe.SliceData(t.F32)), 4 * len(t.F32), 1
	case FP64:
		return unsafe.Pointer(unsafe.SliceData(t.F64)), 8 * len(t.F64), 11
	case INT32:
		return unsafe.Pointer(unsafe.SliceData(t.I32)), 4 * len(t.I32), 6
	}
	return unsafe.Pointer(unsafe.SliceData(t.I64)), 8 * len(t.I64), 7
}

// Copy takes as many elements as the shape has from memory that is not Go's.
func (t *Tensor) Copy(from unsafe.Pointer) {
	n, err := Elements(t.Shape)
	if err != nil || n == 0 {
		return
	}
	switch t.Datatype {
	case FP32:
		t.F32 = append([]float32(nil), unsafe.Slice((*float32)(from), n)...)
	case FP64:
		t.F64 = append([]float64(nil), unsafe.Slice((*float64)(from), n)...)
	case INT32:
		t.I32 = append([]int32(nil), unsafe.Slice((*int32)(from), n)...)
	case INT64:
		t.I64 = append([]int64(nil), unsafe.Slice((*int64)(from), n)...)
	}
}

type wireTensor struct {
	Info
	Data json.RawMessage `json:"data"`
}

// UnmarshalJSON reads a tensor of the protocol; its data is a flat list.
func (t *Tensor) UnmarshalJSON(b []byte) error {
	var w wireTensor
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	*t = Tensor{Info: w.Info}
	n, err := Elements(w.Shape)
	if err != nil {
		return fmt.Errorf("tensor %q: %w", w.Name, err)
	}
	var got int
	switch t.Datatype {
	case FP32:
		got, err = decode(w.Data, &t.F32)
	case FP64:
		got, err = decode(w.Data, &t.F64)
	case INT32:
		got, err = decode(w.Data, &t.I32)
	case INT64:
		got, err = decode(w.Data, &t.I64)
	default:
		return fmt.Errorf("tensor %q: datatype %q is not taken: FP32, FP64, INT32 and INT64 are", w.Name, w.Datatype)
	}
	if err != nil {
		return fmt.Errorf("tensor %q: data: %w", w.Name, err)
	}
	if got != n {
		return fmt.Errorf("tensor %q: %d values for a shape of %d", w.Name, got, n)
	}
	return nil
}

func decode[T any](b []byte, into *[]T) (int, error) {
	if len(b) == 0 {
		return 0, errors.New("there is none")
	}
	err := json.Unmarshal(b, into)
	return len(*into), err
}

// MarshalJSON writes a tensor of the protocol. JSON has no infinite numbers: a model that gives them has failed.
func (t Tensor) MarshalJSON() ([]byte, error) {
	w := wireTensor{Info: t.Info}
	var err error
	switch t.Datatype {
	case FP32:
		w.Data, err = json.Marshal(orEmpty(t.F32))
	case FP64:
		w.Data, err = json.Marshal(orEmpty(t.F64))
	case INT32:
		w.Data, err = json.Marshal(orEmpty(t.I32))
	default:
		w.Data, err = json.Marshal(orEmpty(t.I64))
	}
	if err != nil {
		return nil, fmt.Errorf("tensor %q: %w", t.Name, err)
	}
	return json.Marshal(w)
}

func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// at gives an element as a number; INT64 beyond 2^53 is compared by equal below.
func (t *Tensor) at(i int) float64 {
	switch t.Datatype {
	case FP32:
		return float64(t.F32[i])
	case FP64:
		return t.F64[i]
	case INT32:
		return float64(t.I32[i])
	}
	return float64(t.I64[i])
}

// near tells whether a tensor is another, within a part of the value and of 1.
func (t *Tensor) near(want *Tensor, tolerance float64) error {
	if t.Datatype != want.Datatype || fmt.Sprint(t.Shape) != fmt.Sprint(want.Shape) {
		return fmt.Errorf("output %q is %s %v, want %s %v", want.Name, t.Datatype, t.Shape, want.Datatype, want.Shape)
	}
	n, err := Elements(want.Shape)
	if err != nil {
		return err
	}
	for i := range n {
		is, should := t.at(i), want.at(i)
		if !(math.Abs(is-should) <= tolerance*max(1, math.Abs(should))) || t.Datatype == INT64 && t.I64[i] != want.I64[i] {
			return fmt.Errorf("output %q is %g at %d, want %g", want.Name, is, i, should)
		}
	}
	return nil
}
