package compose

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"tributary.dev/tributary/pkg/api"
)

// Bounds of a file, aliases expanded.
const (
	maxText  = 512 << 10
	maxDepth = 24
	maxNodes = 20_000
	maxBytes = 2 << 20
	// maxSeparators bounds commas, lines and opening brackets, text in blocks included.
	maxSeparators = 60_000
)

// scanner copies the YAML tree into plain values, within bounds, notes where each
// field stands, and holds every key against the table of what is supported. What is
// refused or has no effect is left out of the copy, so that the rest is still checked.
type scanner struct {
	*findings
	nodes, bytes int
	stopped      bool
}

// scan returns the file's tree, or nil when nothing can be said about its content.
func scan(text string, f *findings) map[string]any {
	if len(text) > maxText {
		f.fatal(&api.Error{Code: api.TooLarge, Message: fmt.Sprintf("the Compose file has %d bytes; the most is %d", len(text), maxText), Remedy: "put large files into an image or a volume"})
		return nil
	}
	// The YAML parser builds the whole tree, some 900 bytes a value, before anybody can
	// count it; what separates values is counted first.
	separators := 0
	for _, c := range []string{",", "\n", "[", "{"} {
		separators += strings.Count(text, c)
	}
	if separators > maxSeparators {
		f.fatal(&api.Error{Code: api.TooLarge, Message: fmt.Sprintf("the Compose file holds about %d values; the most is %d", separators, maxSeparators), Remedy: "put large files into an image or a volume"})
		return nil
	}
	d := yaml.NewDecoder(strings.NewReader(text))
	var doc, more yaml.Node
	if err := d.Decode(&doc); errors.Is(err, io.EOF) {
		f.add("", "write at least a service with an image", "the Compose file is empty")
		return nil
	} else if err != nil {
		f.list = append(f.list, yamlError(err))
		return nil
	}
	f.lines = map[string]int{}
	if err := d.Decode(&more); err == nil {
		f.add("", "apply each as its own App", "the Compose file holds several YAML documents")
		return nil
	} else if !errors.Is(err, io.EOF) {
		f.list = append(f.list, yamlError(err))
		return nil
	}
	root := &doc
	if doc.Kind == yaml.DocumentNode && len(doc.Content) == 1 {
		root = doc.Content[0]
	}
	s := &scanner{findings: f, nodes: maxNodes, bytes: maxBytes}
	v := s.value(root, "", "", 0)
	dict, ok := v.(map[string]any)
	if s.stopped {
		return nil
	}
	if !ok {
		f.add("", "start with services:", "a Compose file is a mapping at its top")
		return nil
	}
	switch dict["services"].(type) {
	case map[string]any:
	case nil:
		f.add("services", "write at least a service with an image", "the Compose file has no services")
		return nil
	default:
		f.add("services", "write each service under its name, as NAME: and its fields below it", "services is no mapping of names")
		return nil
	}
	return dict
}

var yamlLine = regexp.MustCompile(`line (\d+)`)

func yamlError(err error) *api.Error {
	e := &api.Error{Code: api.Invalid, Message: "this is not valid YAML: " + clipLong(strings.TrimPrefix(err.Error(), "yaml: ")), Remedy: "check indentation and quotes on that line and the one before"}
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		e.Line, _ = strconv.Atoi(m[1])
	}
	return e
}

func (s *scanner) stop(n *yaml.Node, at, remedy, format string, args ...any) {
	if s.stopped {
		return
	}
	s.stopped = true
	if _, ok := s.lines[at]; !ok {
		s.lines[at] = n.Line
	}
	s.add(at, remedy, format, args...)
}

func (s *scanner) enter(n *yaml.Node, at string, depth int) *yaml.Node {
	for hops := 0; n.Kind == yaml.AliasNode; hops++ {
		if n.Alias == nil || hops > maxDepth {
			s.stop(n, at, "write the value out", "the alias leads nowhere")
			return nil
		}
		n = n.Alias
	}
	s.nodes--
	s.bytes -= len(n.Value)
	switch {
	case s.stopped:
		return nil
	case s.nodes < 0 || s.bytes < 0:
		s.stop(n, at, "split the app, or write fewer aliases", "the file holds more than %d values or %d MiB, what aliases repeat counted each time", maxNodes, maxBytes>>20)
		return nil
	case depth > maxDepth:
		s.stop(n, at, "flatten the file", "values are nested deeper than %d", maxDepth)
		return nil
	}
	return n
}

// value copies a node. at is its path, pattern the same with names as * and items as [].
func (s *scanner) value(n *yaml.Node, at, pattern string, depth int) any {
	n = s.enter(n, at, depth)
	if n == nil {
		return nil
	}
	switch n.Kind {
	case yaml.MappingNode:
		return s.mapping(n, at, pattern, depth)
	case yaml.SequenceNode:
		list := make([]any, 0, min(len(n.Content), maxNodes))
		for i, c := range n.Content {
			if s.stopped {
				return nil
			}
			item := index(at, i)
			s.lines[item] = c.Line
			list = append(list, s.value(c, item, pattern+"[]", depth+1))
		}
		return list
	}
	return s.scalar(n, at)
}

func (s *scanner) scalar(n *yaml.Node, at string) any {
	switch tag := n.ShortTag(); tag {
	case "!!null":
		return nil
	case "!!str", "!!timestamp":
		return n.Value
	case "!!bool", "!!int", "!!float":
		var v any
		if err := n.Decode(&v); err != nil {
			s.add(at, "put it in quotes, or write it in digits", "%s cannot be read", strconv.Quote(clip(n.Value)))
			return nil
		}
		switch v.(type) {
		case bool, int, float64:
			return v
		case time.Time:
			return n.Value
		}
		s.add(at, "write a smaller number", "%s is out of range", clip(n.Value))
		return nil
	default:
		s.add(at, "write the value without a tag", "the tag %s is not supported", clip(tag))
		return nil
	}
}

func (s *scanner) mapping(n *yaml.Node, at, pattern string, depth int) map[string]any {
	m := map[string]any{}
	own := map[string]int{}
	rules, checked := supported[pattern]
	var merged []*yaml.Node
	for i := 0; i+1 < len(n.Content) && !s.stopped; i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind == yaml.AliasNode && k.Alias != nil {
			k = k.Alias
		}
		if k.Kind != yaml.ScalarNode {
			s.stop(k, at, "write keys as text", "a key is not plain text")
			return nil
		}
		if k.ShortTag() == "!!merge" {
			merged = append(merged, v)
			continue
		}
		key := join(at, k.Value)
		if line, dup := own[k.Value]; dup {
			s.lines[key] = k.Line
			s.add(key, "remove one of them", "the field is given twice; first on line %d", line)
			continue
		}
		own[k.Value] = k.Line
		s.lines[key] = k.Line
		if checked && !s.allowed(rules, k.Value, v, key) {
			continue
		}
		faults := len(s.list)
		m[k.Value] = s.value(v, key, under(pattern, k.Value), depth+1)
		if pattern == "services.*" && k.Value == "extends" && len(s.list) > faults {
			delete(m, "extends") // half of it would name a service of another file
		}
	}
	for _, part := range s.mergeParts(merged, at, depth) {
		for k, v := range s.mapping(part, at, pattern, depth+1) {
			if _, mine := own[k]; !mine {
				if _, earlier := m[k]; !earlier {
					m[k] = v
				}
			}
		}
		for k, line := range own { // the merge noted the other's lines
			s.lines[join(at, k)] = line
		}
	}
	return m
}

func (s *scanner) mergeParts(merged []*yaml.Node, at string, depth int) (parts []*yaml.Node) {
	for _, m := range merged {
		m = s.enter(m, at, depth)
		if m == nil {
			return nil
		}
		list := []*yaml.Node{m}
		if m.Kind == yaml.SequenceNode {
			list = m.Content
		}
		for _, p := range list {
			if p = s.enter(p, at, depth+1); p == nil {
				return nil
			}
			if p.Kind != yaml.MappingNode {
				s.stop(p, at, "merge mappings only", "<< wants a mapping")
				return nil
			}
			parts = append(parts, p)
		}
	}
	return parts
}

// under names a key's place in the table of what is supported: the members of
// these mappings are named by people.
func under(pattern, key string) string {
	switch pattern {
	case "":
		return key
	case "services", "networks", "volumes", "configs", "secrets", "services.*.networks", "services.*.depends_on", "services.*.ulimits":
		return pattern + ".*"
	}
	return pattern + "." + key
}

// allowed holds a key against its mapping's rules; false leaves it out.
func (s *scanner) allowed(rules map[string]rule, key string, v *yaml.Node, at string) bool {
	if strings.HasPrefix(key, "x-") {
		// x- fields are for others, but for our own (see extension.go).
		return key == extensionKey && strings.HasPrefix(at, "services.")
	}
	r, known := rules[key]
	switch {
	case !known:
		remedy := "remove it, or prefix it with x- to have it ignored"
		if near := nearest(key, rules); near != "" {
			remedy = "did you mean " + near + "?"
		}
		s.add(at, remedy, "the field is not supported")
		return false
	case r.verdict == refuse && !isOff(v):
		s.add(at, r.note, "%s is not supported", key)
		return false
	case r.verdict == refuse:
		return false // privileged: false asks for nothing
	case r.verdict == ignore:
		s.warn(at, "", "has no effect: %s", r.note)
		return false
	}
	return true
}

// isOff: a value that asks for nothing.
func isOff(v *yaml.Node) bool {
	switch v.Kind {
	case yaml.ScalarNode:
		return v.ShortTag() == "!!null" || v.ShortTag() == "!!bool" && strings.EqualFold(v.Value, "false")
	case yaml.MappingNode, yaml.SequenceNode:
		return len(v.Content) == 0
	}
	return false
}
