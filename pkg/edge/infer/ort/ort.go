// Package ort answers: what does ONNX Runtime make of a model and its inputs?
//
// It speaks with the shared library through its C API, without C (purego).
package ort

import (
	"fmt"
	"runtime"
	"sync"
	"unsafe"

	"github.com/ebitengine/purego"

	"tributary.dev/tributary/pkg/edge/infer"
)

// version is that of the API (ORT_API_VERSION): every library since 1.8 has it. A table of functions only grows
// at its end.
const version = 8

// The places of functions in the table OrtApi (onnxruntime_c_api.h).
const (
	getErrorMessage          = 2
	createEnv                = 3
	createSessionFromArray   = 8
	run                      = 9
	createSessionOptions     = 10
	setGraphOptimization     = 23
	setIntraOpNumThreads     = 24
	sessionGetInputCount     = 30
	sessionGetOutputCount    = 31
	sessionGetInputTypeInfo  = 33
	sessionGetOutputTypeInfo = 34
	sessionGetInputName      = 36
	sessionGetOutputName     = 37
	createTensorWithData     = 49
	getTensorMutableData     = 51
	castTypeInfoToTensorInfo = 55
	getTensorElementType     = 60
	getDimensionsCount       = 61
	getDimensions            = 62
	getTensorTypeAndShape    = 65
	createCPUMemoryInfo      = 69
	allocatorFree            = 76
	getAllocator             = 78
	releaseStatus            = 93
	releaseSession           = 95
	releaseValue             = 96
	releaseTypeInfo          = 98
	releaseShape             = 99
	releaseSessionOptions    = 100
	functions                = 101
)

// Types of elements (ONNXTensorElementDataType) that models here may have.
var elements = map[int32]string{1: infer.FP32, 6: infer.INT32, 7: infer.INT64, 11: infer.FP64}

// Engine is a loaded library.
type Engine struct {
	api       *[functions]uintptr
	env       uintptr
	memory    uintptr
	allocator uintptr
	threads   int
}

// Open loads the library. Threads is how many work on one question; 0 is one for each processor.
func Open(library string, threads int) (*Engine, error) {
	handle, err := purego.Dlopen(library, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return nil, fmt.Errorf("load ONNX Runtime: %w", err)
	}
	base, err := purego.Dlsym(handle, "OrtGetApiBase")
	if err != nil {
		return nil, fmt.Errorf("%s is not ONNX Runtime: %w", library, err)
	}
	var getBase func() *[2]uintptr
	purego.RegisterFunc(&getBase, base)
	var getAPI func(uint32) *[functions]uintptr
	purego.RegisterFunc(&getAPI, getBase()[0])
	e := &Engine{api: getAPI(version), threads: threads}
	if e.api == nil {
		return nil, fmt.Errorf("%s has no API of version %d", library, version)
	}
	name := cString("inferd")
	if err := e.call(createEnv, 3, ptr(name), out(&e.env)); err != nil { // 3: errors alone are logged
		return nil, err
	}
	runtime.KeepAlive(name)
	if err := e.call(createCPUMemoryInfo, 1, 0, out(&e.memory)); err != nil {
		return nil, err
	}
	return e, e.call(getAllocator, out(&e.allocator))
}

func cString(s string) []byte { return append([]byte(s), 0) }

func ptr[T any](s []T) uintptr { return onHeap(unsafe.Pointer(unsafe.SliceData(s))) }

func out[T any](v *T) uintptr { return onHeap(unsafe.Pointer(v)) }

var heap struct {
	never bool
	to    unsafe.Pointer
}

// onHeap has what p points to be on the heap, where nothing is moved: a stack may be, while its address is
// on the way to C. The compiler does not know that it never happens.
func onHeap(p unsafe.Pointer) uintptr {
	if heap.never {
		heap.to = p
	}
	return uintptr(p)
}

// call calls a function that answers with a status. What its arguments point to has to be kept alive by the
// caller until then.
func (e *Engine) call(function int, args ...uintptr) error {
	status, _, _ := purego.SyscallN(e.api[function], args...)
	if status == 0 {
		return nil
	}
	var message func(uintptr) string
	purego.RegisterFunc(&message, e.api[getErrorMessage])
	err := fmt.Errorf("ONNX Runtime: %s", message(status))
	e.release(releaseStatus, status)
	return err
}

func (e *Engine) release(function int, thing uintptr) {
	if thing != 0 {
		purego.SyscallN(e.api[function], thing)
	}
}

// session is a model that is ready. The library takes questions from several threads; closing waits for them.
type session struct {
	e               *Engine
	handle          uintptr
	mu              sync.RWMutex
	inputs, outputs []infer.Info
	names           [2][][]byte // of inputs and outputs, ending with 0
}

// Load implements infer.Engine.
func (e *Engine) Load(model []byte) (infer.Session, error) {
	if len(model) == 0 {
		return nil, fmt.Errorf("the model is empty")
	}
	var options uintptr
	if err := e.call(createSessionOptions, out(&options)); err != nil {
		return nil, err
	}
	defer e.release(releaseSessionOptions, options)
	if err := e.call(setIntraOpNumThreads, options, uintptr(e.threads)); err != nil {
		return nil, err
	}
	if err := e.call(setGraphOptimization, options, 99); err != nil {
		return nil, err
	}
	s := &session{e: e}
	if err := e.call(createSessionFromArray, e.env, ptr(model), uintptr(len(model)), options, out(&s.handle)); err != nil {
		return nil, err
	}
	runtime.KeepAlive(model)
	var err error
	if s.inputs, s.names[0], err = s.describe(sessionGetInputCount, sessionGetInputName, sessionGetInputTypeInfo); err == nil {
		s.outputs, s.names[1], err = s.describe(sessionGetOutputCount, sessionGetOutputName, sessionGetOutputTypeInfo)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *session) describe(count, name, kind int) (list []infer.Info, names [][]byte, err error) {
	var n uintptr
	if err := s.e.call(count, s.handle, out(&n)); err != nil {
		return nil, nil, err
	}
	for i := range n {
		var text, info, shape uintptr
		if err := s.e.call(name, s.handle, i, s.e.allocator, out(&text)); err != nil {
			return nil, nil, err
		}
		of := infer.Info{Name: goString(text)}
		if err := s.e.call(allocatorFree, s.e.allocator, text); err != nil {
			return nil, nil, err
		}
		if err := s.e.call(kind, s.handle, i, out(&info)); err != nil {
			return nil, nil, err
		}
		err := s.e.call(castTypeInfoToTensorInfo, info, out(&shape))
		if err == nil && shape == 0 {
			err = fmt.Errorf("%q is no tensor", of.Name)
		}
		if err == nil {
			of.Datatype, of.Shape, err = s.e.shape(shape) // it belongs to info
		}
		s.e.release(releaseTypeInfo, info)
		if err != nil {
			return nil, nil, fmt.Errorf("%q: %w", of.Name, err)
		}
		list, names = append(list, of), append(names, cString(of.Name))
	}
	return list, names, nil
}

// goString copies a text of C's.
func goString(p uintptr) string {
	var b []byte
	for ; ; p++ {
		c := *(*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&p)))
		if c == 0 {
			return string(b)
		}
		b = append(b, c)
	}
}

func (e *Engine) shape(of uintptr) (datatype string, dims []int64, err error) {
	var element int32
	var n uintptr
	if err = e.call(getTensorElementType, of, out(&element)); err != nil {
		return "", nil, err
	}
	if err = e.call(getDimensionsCount, of, out(&n)); err != nil {
		return "", nil, err
	}
	if dims = make([]int64, n); n > 0 {
		if err = e.call(getDimensions, of, ptr(dims), n); err != nil {
			return "", nil, err
		}
	}
	var known bool
	if datatype, known = elements[element]; !known {
		return "", nil, fmt.Errorf("elements of ONNX's type %d are not taken: FP32, FP64, INT32 and INT64 are", element)
	}
	return datatype, dims, nil
}

// Inputs implements infer.Session.
func (s *session) Inputs() []infer.Info { return s.inputs }

// Outputs implements infer.Session.
func (s *session) Outputs() []infer.Info { return s.outputs }

// Run implements infer.Session.
func (s *session) Run(in []infer.Tensor) ([]infer.Tensor, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.handle == 0 {
		return nil, fmt.Errorf("the model was closed")
	}
	var pins runtime.Pinner
	defer pins.Unpin()
	values := make([]uintptr, len(in))
	results := make([]uintptr, len(s.outputs))
	defer func() {
		for _, v := range append(values, results...) {
			s.e.release(releaseValue, v)
		}
	}()
	for i, t := range in {
		data, size, element := t.Raw()
		if size > 0 {
			pins.Pin(data)
		}
		if err := s.e.call(createTensorWithData, s.e.memory, uintptr(data), uintptr(size), ptr(t.Shape), uintptr(len(t.Shape)), uintptr(element), out(&values[i])); err != nil {
			return nil, fmt.Errorf("input %q: %w", t.Name, err)
		}
	}
	names := [2][]uintptr{}
	for k := range s.names {
		for _, n := range s.names[k] {
			pins.Pin(unsafe.SliceData(n))
			names[k] = append(names[k], ptr(n))
		}
	}
	if err := s.e.call(run, s.handle, 0, ptr(names[0]), ptr(values), uintptr(len(values)), ptr(names[1]), uintptr(len(names[1])), ptr(results)); err != nil {
		return nil, err
	}
	runtime.KeepAlive(in)
	runtime.KeepAlive(names)
	return s.read(results)
}

func (s *session) read(results []uintptr) (list []infer.Tensor, err error) {
	for i, v := range results {
		var info, data uintptr
		if err := s.e.call(getTensorTypeAndShape, v, out(&info)); err != nil {
			return nil, err
		}
		t := infer.Tensor{Info: infer.Info{Name: s.outputs[i].Name}}
		t.Datatype, t.Shape, err = s.e.shape(info)
		s.e.release(releaseShape, info)
		if err == nil {
			err = s.e.call(getTensorMutableData, v, out(&data))
		}
		if err != nil {
			return nil, fmt.Errorf("output %q: %w", t.Name, err)
		}
		t.Copy(*(*unsafe.Pointer)(unsafe.Pointer(&data)))
		list = append(list, t)
	}
	return list, nil
}

// Close implements infer.Session.
func (s *session) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.e.release(releaseSession, s.handle)
	s.handle = 0
}
