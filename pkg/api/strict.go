package api

import (
	"fmt"
	"reflect"
	"sort"
)

// DecodeFile reads one YAML or JSON document into the struct that into points to, as
// strictly as objects are read: a field that is unknown, given twice or of another
// type is refused by its path and line. Fields are named by their json tags. What the
// document leaves out keeps its value; a list that it gives replaces the old one. It
// returns the lines of the paths given, for the findings of a validation after it.
//
// Input is bounded as by Decode. The error is an *Error that names what, and every
// fault found; into is then half filled.
func DecodeFile(b []byte, what string, into any) (lines map[string]int, err error) {
	if err := bounded(b); err != nil {
		return nil, err
	}
	nodes, err := parse(b)
	if err != nil {
		return nil, err
	}
	r := &nodeReader{budget: maxNodes, seen: map[string]int{}}
	switch {
	case len(nodes) == 0 || len(nodes) == 1 && isNull(nodes[0]):
		return r.seen, nil
	case len(nodes) > 1:
		return nil, &Error{Code: Invalid, Line: nodes[1].Line, Message: fmt.Sprintf("%s holds %d documents; one is wanted", what, len(nodes)), Remedy: "keep one, without ---"}
	}
	lines = r.seen
	r.read(nodes[0], reflect.ValueOf(into).Elem(), "", 0)
	sort.SliceStable(r.list, func(i, j int) bool { return r.list[i].Line < r.list[j].Line })
	if err := r.err(what); err != nil {
		return nil, err
	}
	return lines, nil
}
