package api

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// Bounds of the decoder. They hold before anything is built from the input.
const (
	maxInput = 1 << 20 // bytes of one request
	maxDepth = 32      // nesting of one document
	maxNodes = 100_000 // values of one request, aliases counted each time they are used
	maxDocs  = 1000
	// maxSeparators bounds commas, lines and opening brackets of one request.
	maxSeparators = 150_000
)

// nodeReader turns a YAML tree into Go values, strictly: a field that is not known,
// is given twice, or has another type is a finding with path and line.
type nodeReader struct {
	findings
	budget int // values left
	seen   map[string]int
}

var (
	rawType      = reflect.TypeFor[json.RawMessage]()
	timeType     = reflect.TypeFor[time.Time]()
	durationType = reflect.TypeFor[Duration]()
	textType     = reflect.TypeFor[encoding.TextUnmarshaler]()
)

func (r *nodeReader) fault(n *yaml.Node, path, message, remedy string) {
	if len(r.list) >= maxFindings {
		r.more = true
		return
	}
	if path == "" {
		path = "document"
	}
	r.list = append(r.list, &Error{Code: Invalid, Field: path, Line: n.Line, Message: message, Remedy: remedy})
}

// enter resolves aliases and counts the value against the bounds.
func (r *nodeReader) enter(n *yaml.Node, path string, depth int) (*yaml.Node, bool) {
	at := n
	for hops := 0; n.Kind == yaml.AliasNode; hops++ {
		if n.Alias == nil || hops > maxDepth {
			r.fault(at, path, "the alias leads nowhere", "write the value out")
			return n, false
		}
		n = n.Alias
	}
	r.budget--
	if r.budget < 0 {
		if r.budget == -1 {
			r.fault(at, path, fmt.Sprintf("the file holds more than %d values once its aliases are followed", maxNodes), "write the values out, or split the file")
		}
		return n, false
	}
	if depth > maxDepth {
		r.fault(at, path, fmt.Sprintf("values are nested deeper than %d", maxDepth), "flatten the document")
		return n, false
	}
	return n, true
}

func isNull(n *yaml.Node) bool {
	for hops := 0; n.Kind == yaml.AliasNode && n.Alias != nil && hops < maxDepth; hops++ {
		n = n.Alias
	}
	return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

// read fills v, which is settable, from n.
func (r *nodeReader) read(n *yaml.Node, v reflect.Value, path string, depth int) {
	if r.seen != nil {
		if _, ok := r.seen[path]; !ok {
			r.seen[path] = n.Line
		}
	}
	n, ok := r.enter(n, path, depth)
	if !ok || isNull(n) {
		return // null is the same as leaving the field out
	}
	t := v.Type()
	switch {
	case t.Kind() == reflect.Pointer:
		e := reflect.New(t.Elem())
		r.budget++ // the same value, not a further one
		r.read(n, e.Elem(), path, depth)
		v.Set(e)
	case t == rawType:
		r.readRaw(n, v, path, depth)
	case t == timeType || t == durationType || reflect.PointerTo(t).Implements(textType):
		r.readText(n, v, path)
	case t.Kind() == reflect.Struct:
		r.readStruct(n, v, path, depth)
	case t.Kind() == reflect.Map:
		r.readMap(n, v, path, depth)
	case t.Kind() == reflect.Slice:
		r.readSlice(n, v, path, depth)
	default:
		r.readScalar(n, v, path)
	}
}

func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!int":
		return "the number " + quote(n.Value)
	case "!!float":
		return "the number " + quote(n.Value)
	case "!!bool":
		return "the truth value " + quote(n.Value)
	}
	return "the text " + quote(n.Value)
}

func (r *nodeReader) wrong(n *yaml.Node, path, want, remedy string) {
	r.fault(n, path, "this is "+kindOf(n)+"; "+want+" is wanted", remedy)
}

// pairs lists a mapping's keys and values, merge keys ("<<") applied, duplicates
// refused.
func (r *nodeReader) pairs(n *yaml.Node, path string, depth int) (keys, values []*yaml.Node) {
	at := map[string]int{}
	var merged []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, val := n.Content[i], n.Content[i+1]
		if k.Kind == yaml.AliasNode && k.Alias != nil {
			k = k.Alias
		}
		if k.Kind != yaml.ScalarNode {
			r.wrong(k, path, "a plain key", "write keys as text")
			continue
		}
		if k.ShortTag() == "!!merge" {
			merged = append(merged, val)
			continue
		}
		if line, dup := at[k.Value]; dup {
			r.fault(k, join(path, k.Value), fmt.Sprintf("the field is given twice; first on line %d", line), "remove one of them")
			continue
		}
		at[k.Value] = k.Line
		keys, values = append(keys, k), append(values, val)
	}
	for _, m := range merged {
		for _, part := range r.mergeParts(m, path, depth) {
			mk, mv := r.pairs(part, path, depth+1)
			for i, k := range mk {
				if _, own := at[k.Value]; !own {
					at[k.Value] = k.Line
					keys, values = append(keys, k), append(values, mv[i])
				}
			}
		}
	}
	return keys, values
}

func (r *nodeReader) mergeParts(m *yaml.Node, path string, depth int) []*yaml.Node {
	m, ok := r.enter(m, path, depth)
	if !ok {
		return nil
	}
	switch m.Kind {
	case yaml.MappingNode:
		return []*yaml.Node{m}
	case yaml.SequenceNode:
		var parts []*yaml.Node
		for _, c := range m.Content {
			c, ok := r.enter(c, path, depth+1)
			if !ok {
				return nil
			}
			if c.Kind != yaml.MappingNode {
				r.wrong(c, path, "a mapping to merge", "merge mappings only")
				return nil
			}
			parts = append(parts, c)
		}
		return parts
	}
	r.wrong(m, path, "a mapping to merge", "merge mappings only")
	return nil
}

func (r *nodeReader) readStruct(n *yaml.Node, v reflect.Value, path string, depth int) {
	if n.Kind != yaml.MappingNode {
		r.wrong(n, path, "a mapping", "write it as key: value lines")
		return
	}
	fields := fieldsOf(v.Type())
	keys, values := r.pairs(n, path, depth)
	for i, k := range keys {
		at, known := fields[k.Value]
		if !known {
			r.fault(k, join(path, k.Value), "there is no such field", fieldRemedy(k.Value, fields))
			continue
		}
		r.read(values[i], v.Field(at), join(path, k.Value), depth+1)
		r.note(k, join(path, k.Value))
	}
}

// note moves a field's line to its key, where a person looks for it.
func (r *nodeReader) note(k *yaml.Node, path string) {
	if r.seen != nil {
		r.seen[path] = k.Line
	}
}

// fieldsOf maps the JSON names of a struct's fields to their positions.
func fieldsOf(t reflect.Type) map[string]int {
	fields := make(map[string]int, t.NumField())
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name != "" && name != "-" {
			fields[name] = i
		}
	}
	return fields
}

func fieldRemedy(name string, fields map[string]int) string {
	names := sortedKeys(fields)
	if near := Nearest(name, names); near != "" {
		return "did you mean " + near + "?"
	}
	return "the fields are " + strings.Join(names, ", ")
}

func (r *nodeReader) readMap(n *yaml.Node, v reflect.Value, path string, depth int) {
	if n.Kind != yaml.MappingNode {
		r.wrong(n, path, "a mapping", "write it as key: value lines")
		return
	}
	keys, values := r.pairs(n, path, depth)
	m := reflect.MakeMapWithSize(v.Type(), len(keys))
	for i, k := range keys {
		e := reflect.New(v.Type().Elem()).Elem()
		r.read(values[i], e, join(path, k.Value), depth+1)
		r.note(k, join(path, k.Value))
		m.SetMapIndex(reflect.ValueOf(k.Value).Convert(v.Type().Key()), e)
	}
	if len(keys) > 0 {
		v.Set(m)
	}
}

func (r *nodeReader) readSlice(n *yaml.Node, v reflect.Value, path string, depth int) {
	if n.Kind != yaml.SequenceNode {
		r.wrong(n, path, "a list", "write it as lines that start with -")
		return
	}
	if len(n.Content) > r.budget {
		r.budget = 0
		r.enter(n, path, 0)
		return
	}
	s := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, c := range n.Content {
		if isNull(c) {
			r.fault(c, index(path, i), "the entry is empty", "fill it in or remove it")
			continue
		}
		r.read(c, s.Index(i), index(path, i), depth+1)
	}
	if len(n.Content) > 0 {
		v.Set(s)
	}
}

func (r *nodeReader) readScalar(n *yaml.Node, v reflect.Value, path string) {
	tag := n.ShortTag()
	plain := n.Kind == yaml.ScalarNode
	switch v.Kind() {
	case reflect.String:
		if !plain || tag != "!!str" && tag != "!!timestamp" {
			remedy := "write text"
			if plain {
				remedy = "put it in quotes"
			}
			r.wrong(n, path, "text", remedy)
			return
		}
		v.SetString(n.Value)
	case reflect.Bool:
		var b bool
		if !plain || tag != "!!bool" || n.Decode(&b) != nil {
			r.wrong(n, path, "true or false", "write true or false without quotes")
			return
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int64, reflect.Int32:
		var i int64
		if !plain || tag != "!!int" || n.Decode(&i) != nil || v.OverflowInt(i) {
			r.wrong(n, path, "a whole number", "write it in digits, without quotes or unit")
			return
		}
		v.SetInt(i)
	case reflect.Uint, reflect.Uint64, reflect.Uint32, reflect.Uint8:
		var u uint64
		if !plain || tag != "!!int" || n.Decode(&u) != nil || v.OverflowUint(u) {
			r.wrong(n, path, "a whole number from 0", "write it in digits, without quotes or unit")
			return
		}
		v.SetUint(u)
	case reflect.Float64:
		var x float64
		err := n.Decode(&x)
		if err != nil { // of -0 the YAML library makes nothing
			x, err = strconv.ParseFloat(n.Value, 64)
		}
		if !plain || tag != "!!int" && tag != "!!float" || err != nil || x-x != 0 {
			r.wrong(n, path, "a number", "write it in digits, without quotes or unit")
			return
		}
		v.SetFloat(x)
	default:
		r.fault(n, path, "the field cannot be read from a file", "remove it")
	}
}

// readText fills values that have a text form of their own.
func (r *nodeReader) readText(n *yaml.Node, v reflect.Value, path string) {
	tag := n.ShortTag()
	text := n.Kind == yaml.ScalarNode && (tag == "!!str" || tag == "!!timestamp")
	switch p := v.Addr().Interface().(type) {
	case *Duration:
		d, err := time.ParseDuration(n.Value)
		if !text || err != nil {
			r.wrong(n, path, "a duration", `write a number with its unit, such as 90s, 15m or 1h30m`)
			return
		}
		*p = Duration(d)
	case *time.Time:
		t, err := time.Parse(time.RFC3339Nano, n.Value)
		if !text || err != nil || t.Year() < 1 || t.Year() > 9999 {
			r.wrong(n, path, "a time", "write it as 2026-12-31T23:59:59Z (RFC 3339)")
			return
		}
		*p = t
	case encoding.TextUnmarshaler:
		err := errors.New("text is wanted")
		if text {
			err = p.UnmarshalText([]byte(n.Value))
		}
		var e *Error
		if errors.As(err, &e) {
			r.fault(n, path, e.Message, e.Remedy)
		} else if err != nil {
			r.wrong(n, path, "text", err.Error())
		}
	}
}

// readRaw keeps a value whose shape is not known here as JSON.
func (r *nodeReader) readRaw(n *yaml.Node, v reflect.Value, path string, depth int) {
	plain, ok := r.plain(n, path, depth)
	if !ok {
		return
	}
	b, err := json.Marshal(plain)
	if err != nil {
		r.fault(n, path, "the value has no JSON form", "write finite numbers and text")
		return
	}
	v.SetBytes(b)
}

func (r *nodeReader) plain(n *yaml.Node, path string, depth int) (any, bool) {
	switch n.Kind {
	case yaml.MappingNode:
		keys, values := r.pairs(n, path, depth)
		m := make(map[string]any, len(keys))
		for i, k := range keys {
			c, ok := r.enter(values[i], join(path, k.Value), depth+1)
			if !ok {
				return nil, false
			}
			if m[k.Value], ok = r.plain(c, join(path, k.Value), depth+1); !ok {
				return nil, false
			}
		}
		return m, true
	case yaml.SequenceNode:
		list := make([]any, 0, min(len(n.Content), r.budget+1))
		for i, c := range n.Content {
			c, ok := r.enter(c, index(path, i), depth+1)
			if !ok {
				return nil, false
			}
			e, ok := r.plain(c, index(path, i), depth+1)
			if !ok {
				return nil, false
			}
			list = append(list, e)
		}
		return list, true
	}
	switch n.ShortTag() {
	case "!!null":
		return nil, true
	case "!!bool":
		var b bool
		return b, n.Decode(&b) == nil || r.unreadable(n, path)
	case "!!int", "!!float":
		if json.Valid([]byte(n.Value)) {
			return json.Number(n.Value), true
		}
		var i int64
		if n.ShortTag() == "!!int" && n.Decode(&i) == nil {
			return i, true
		}
		var x float64
		return &x, n.Decode(&x) == nil && x-x == 0 || r.unreadable(n, path)
	}
	return n.Value, true
}

func (r *nodeReader) unreadable(n *yaml.Node, path string) bool {
	r.wrong(n, path, "a value with a JSON form", "write finite numbers and text")
	return false
}

// jsonNode reads one JSON value as a YAML tree, so that JSON and YAML share one
// strict path. Lines come from the decoder's offsets.
func jsonNode(d *json.Decoder, line func(int64) int, depth int) (*yaml.Node, error) {
	if depth > maxDepth+2 {
		return nil, &Error{Code: Invalid, Line: line(d.InputOffset()), Message: fmt.Sprintf("values are nested deeper than %d", maxDepth), Remedy: "flatten the document"}
	}
	tok, err := d.Token()
	if err != nil {
		return nil, err
	}
	n := &yaml.Node{Line: line(d.InputOffset())}
	switch t := tok.(type) {
	case json.Delim:
		n.Kind, n.Tag = yaml.MappingNode, "!!map"
		if t == '[' {
			n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
		}
		for d.More() {
			c, err := jsonNode(d, line, depth+1)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, c)
		}
		_, err = d.Token()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return n, err
	case string:
		n.Kind, n.Tag, n.Value = yaml.ScalarNode, "!!str", t
	case json.Number:
		n.Kind, n.Tag, n.Value = yaml.ScalarNode, "!!int", t.String()
		if strings.ContainsAny(n.Value, ".eE") {
			n.Tag = "!!float"
		}
	case bool:
		n.Kind, n.Tag, n.Value = yaml.ScalarNode, "!!bool", fmt.Sprint(t)
	case nil:
		n.Kind, n.Tag, n.Value = yaml.ScalarNode, "!!null", "null"
	}
	return n, nil
}
