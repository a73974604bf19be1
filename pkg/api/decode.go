package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"sort"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"tributary.dev/tributary/pkg/pattern"
)

// Document is one object as it stood in a file.
type Document struct {
	Object *Object
	// Line is where the document starts, from 1.
	Line int
	// Lines maps the field paths of the document ("spec.selector.matchLabels") to
	// their lines, "" to Line.
	Lines map[string]int
}

// Decode reads the objects of a YAML stream (documents separated by "---") or of a
// stream of JSON objects, at most 1 MiB. Each is defaulted (SetDefaults) and
// validated (Validate); its spec comes back as the canonical JSON of its type.
// Unknown fields, duplicates and wrong types are refused. The error is an *Error
// naming field and line of every fault found; with an error, no object is returned.
// Documents that are empty or hold comments alone are skipped. A status is kept as
// it is; the core ignores it.
func Decode(b []byte) ([]*Object, error) {
	docs, err := DecodeDocuments(b)
	if err != nil {
		return nil, err
	}
	objects := make([]*Object, len(docs))
	for i := range docs {
		objects[i] = docs[i].Object
	}
	return objects, nil
}

// DecodeDocuments is Decode for callers who want the lines too.
func DecodeDocuments(b []byte) ([]Document, error) {
	if err := bounded(b); err != nil {
		return nil, err
	}
	r := &nodeReader{budget: maxNodes}
	nodes, err := parse(b)
	if err != nil {
		return nil, err
	}
	var docs []Document
	for _, n := range nodes {
		if isNull(n) {
			continue
		}
		if len(docs) == maxDocs {
			return nil, &Error{Code: TooLarge, Line: n.Line, Message: fmt.Sprintf("there are more than %d documents", maxDocs), Remedy: "apply the objects in several files"}
		}
		if d, ok := r.document(n); ok {
			docs = append(docs, d)
		}
	}
	sort.SliceStable(r.list, func(i, j int) bool { return r.list[i].Line < r.list[j].Line })
	if err := r.err("the input"); err != nil {
		return nil, err
	}
	return docs, nil
}

// bounded refuses what is too large to be parsed.
func bounded(b []byte) error {
	if len(b) > maxInput {
		return &Error{Code: TooLarge, Message: fmt.Sprintf("the input has %d bytes; the most is %d", len(b), maxInput), Remedy: "apply the objects in several files"}
	}
	// The YAML parser builds the whole tree, some 900 bytes a value, before anybody can
	// count it; what separates values is counted first. Text in blocks counts too, so the
	// bound is wide.
	separators := 0
	for _, c := range []string{",", "\n", "[", "{"} {
		separators += bytes.Count(b, []byte(c))
	}
	if separators > maxSeparators {
		return &Error{Code: TooLarge, Message: fmt.Sprintf("the input holds about %d values; the most is %d", separators, maxSeparators), Remedy: "apply the objects in several files"}
	}
	return nil
}

// parse splits the input into the trees of its documents.
func parse(b []byte) ([]*yaml.Node, error) {
	b = bytes.TrimPrefix(b, []byte("\xef\xbb\xbf"))
	if t := bytes.TrimLeft(b, " \t\r\n"); len(t) > 0 && t[0] == '{' {
		if nodes, err := parseJSON(b); err == nil || CodeOf(err) == Invalid {
			return nodes, err
		}
		// Else perhaps a YAML flow mapping; its parser has the better message.
	}
	return parseYAML(b)
}

func parseJSON(b []byte) ([]*yaml.Node, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	// Offsets only grow, so that one pass over the text finds all lines.
	var passed int64
	current := 1
	line := func(offset int64) int {
		current += bytes.Count(b[passed:offset], []byte("\n"))
		passed = offset
		return current
	}
	var nodes []*yaml.Node
	for {
		n, err := jsonNode(d, line, 0)
		if errors.Is(err, io.EOF) {
			return nodes, nil
		}
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, n)
	}
}

var yamlLine = pattern.New(`line (\d+)`)

func parseYAML(b []byte) (nodes []*yaml.Node, err error) {
	d := yaml.NewDecoder(bytes.NewReader(b))
	for {
		var n yaml.Node
		err := d.Decode(&n)
		if errors.Is(err, io.EOF) {
			return nodes, nil
		}
		if err != nil {
			return nil, yamlError(err)
		}
		root := &n
		if n.Kind == yaml.DocumentNode && len(n.Content) == 1 {
			root = n.Content[0]
		}
		nodes = append(nodes, root)
	}
}

func yamlError(err error) *Error {
	e := &Error{Code: Invalid, Message: "this is not valid YAML: " + strings.TrimPrefix(err.Error(), "yaml: "), Remedy: "check indentation and quotes on that line and the one before"}
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		e.Line, _ = strconv.Atoi(m[1])
	}
	return e
}

// envelope reads an object's frame; its spec is read by kind.
type envelope struct {
	APIVersion string          `json:"apiVersion"`
	Kind       string          `json:"kind"`
	Metadata   Meta            `json:"metadata"`
	Spec       json.RawMessage `json:"spec,omitempty"`
	Status     json.RawMessage `json:"status,omitempty"`
}

func (r *nodeReader) document(n *yaml.Node) (Document, bool) {
	before := len(r.list)
	r.seen = map[string]int{"": n.Line}
	defer func() { r.seen = nil }()
	if n.Kind != yaml.MappingNode {
		r.wrong(n, "", "an object with apiVersion, kind, metadata and spec", "see `edgectl schema` for the kinds")
		return Document{}, false
	}
	// The kind comes first, whatever its place, since it says what spec is.
	var kind *Kind
	var spec *yaml.Node
	rest := *n
	rest.Content = nil
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Value == "spec" && spec == nil {
			spec = v
			r.seen["spec"] = k.Line
			continue
		}
		rest.Content = append(rest.Content, k, v)
		if k.Value == "kind" && v.Kind == yaml.ScalarNode {
			found, err := LookupKind(v.Value)
			if err != nil || found.Name != v.Value {
				r.fault(v, "kind", "there is no kind "+quote(v.Value), kindRemedy(v.Value))
				return Document{}, false
			}
			kind = found
		}
	}
	if kind == nil {
		r.fault(n, "kind", "the document has no kind", "start it with apiVersion: "+Version+" and kind: "+KindNames()[0]+", or another kind")
		return Document{}, false
	}
	var env envelope
	r.read(&rest, reflect.ValueOf(&env).Elem(), "", 0)
	typedSpec := reflect.ValueOf(kind.NewSpec())
	if spec != nil {
		line := r.seen["spec"]
		r.read(spec, typedSpec.Elem(), "spec", 1)
		r.seen["spec"] = line
	}
	if len(r.list) > before || r.more {
		return Document{}, false
	}
	o := Object(env)
	raw, err := json.Marshal(typedSpec.Interface())
	if err != nil {
		r.fault(n, "spec", err.Error(), "write finite numbers")
		return Document{}, false
	}
	if o.Spec = raw; string(raw) == "{}" {
		o.Spec = nil
	}
	SetDefaults(&o)
	if err := validateAt(&o, r.seen); err != nil {
		r.take(err)
		return Document{}, false
	}
	if env.APIVersion == "" { // the least of faults: told when there is no other
		r.fault(n, "apiVersion", "the document has no apiVersion", "start it with apiVersion: "+Version)
		return Document{}, false
	}
	return Document{Object: &o, Line: n.Line, Lines: r.seen}, true
}

func kindRemedy(name string) string {
	if near := Nearest(name, KindNames()); near != "" {
		return "did you mean " + near + "?"
	}
	return "the kinds are " + fmt.Sprint(KindNames())
}

// take adds the findings of a validation.
func (r *nodeReader) take(err error) {
	var e *Error
	if !errors.As(err, &e) {
		return
	}
	list := e.Causes
	if len(list) == 0 {
		list = []*Error{e}
	}
	r.list = append(r.list, list...)
	if len(r.list) > maxFindings {
		r.list, r.more = r.list[:maxFindings], true
	}
}
