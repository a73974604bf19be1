package api

import (
	"fmt"
	"slices"
	"strings"
)

// The operators of a Requirement.
const (
	OpIn           = "In"
	OpNotIn        = "NotIn"
	OpExists       = "Exists"
	OpDoesNotExist = "DoesNotExist"
)

// maxSelector bounds the text of a selector, in bytes.
const maxSelector = 4096

// Empty reports whether the selector has no condition; such a one picks nothing.
func (s Selector) Empty() bool { return len(s.MatchLabels) == 0 && len(s.MatchExpressions) == 0 }

// Matches reports whether labels meet every condition. An empty selector matches
// nothing; a Requirement with an unknown operator holds for nothing.
func (s Selector) Matches(labels map[string]string) bool {
	if s.Empty() {
		return false
	}
	for k, v := range s.MatchLabels {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	for _, r := range s.MatchExpressions {
		if !r.holds(labels) {
			return false
		}
	}
	return true
}

// holds follows Kubernetes: NotIn also holds for an object without the label.
func (r Requirement) holds(labels map[string]string) bool {
	got, present := labels[r.Key]
	switch r.Operator {
	case OpIn:
		return present && slices.Contains(r.Values, got)
	case OpNotIn:
		return !present || !slices.Contains(r.Values, got)
	case OpExists:
		return present
	case OpDoesNotExist:
		return !present
	}
	return false
}

// ParseSelector reads the text form used in queries: conditions joined by commas,
// each one of "k=v", "k==v", "k!=v", "k in (a,b)", "k notin (a,b)", "k", "!k".
// Text without a condition gives an empty selector. Errors have code Invalid.
func ParseSelector(text string) (Selector, error) {
	var s Selector
	if len(text) > maxSelector {
		return s, Errorf(TooLarge, "the selector is longer than %d bytes", maxSelector)
	}
	for _, part := range splitConditions(text) {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		r, err := parseCondition(part)
		if err != nil {
			return Selector{}, err
		}
		s.MatchExpressions = append(s.MatchExpressions, r)
	}
	return s, nil
}

// splitConditions splits at commas outside parentheses.
func splitConditions(text string) (parts []string) {
	depth, start := 0, 0
	for i, c := range text {
		switch c {
		case '(':
			depth++
		case ')':
			depth--
		case ',':
			if depth == 0 {
				parts = append(parts, text[start:i])
				start = i + 1
			}
		}
	}
	return append(parts, text[start:])
}

func parseCondition(part string) (Requirement, error) {
	bad := func() (Requirement, error) {
		return Requirement{}, &Error{Code: Invalid, Field: "selector", Message: fmt.Sprintf("%q is not a condition", part),
			Remedy: "write k=v, k!=v, k in (a,b), k notin (a,b), k or !k, joined by commas"}
	}
	if key, ok := strings.CutPrefix(part, "!"); ok {
		if key = strings.TrimSpace(key); !labelKey(key) {
			return bad()
		}
		return Requirement{Key: key, Operator: OpDoesNotExist}, nil
	}
	if open := strings.IndexByte(part, '('); open >= 0 {
		head, list := strings.Fields(part[:open]), part[open+1:]
		if len(head) != 2 || !labelKey(head[0]) || !strings.HasSuffix(list, ")") {
			return bad()
		}
		op, known := map[string]string{"in": OpIn, "notin": OpNotIn}[head[1]]
		values := strings.Split(strings.TrimSuffix(list, ")"), ",")
		for i := range values {
			values[i] = strings.TrimSpace(values[i])
			if strings.ContainsAny(values[i], "() ") {
				return bad()
			}
		}
		if !known {
			return bad()
		}
		return Requirement{Key: head[0], Operator: op, Values: values}, nil
	}
	for _, op := range []struct{ text, name string }{{"!=", OpNotIn}, {"==", OpIn}, {"=", OpIn}} {
		key, value, found := strings.Cut(part, op.text)
		if !found {
			continue
		}
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if !labelKey(key) || strings.ContainsAny(value, "=!() ") {
			return bad()
		}
		return Requirement{Key: key, Operator: op.name, Values: []string{value}}, nil
	}
	if !labelKey(part) {
		return bad()
	}
	return Requirement{Key: part, Operator: OpExists}, nil
}

// labelKey reports whether s can be the key of a label in a selector's text.
func labelKey(s string) bool { return s != "" && !strings.ContainsAny(s, "=!(), \t\n") }

// String writes the selector in the form that ParseSelector reads.
func (s Selector) String() string {
	var parts []string
	for k, v := range s.MatchLabels {
		parts = append(parts, k+"="+v)
	}
	slices.Sort(parts)
	for _, r := range s.MatchExpressions {
		switch r.Operator {
		case OpExists:
			parts = append(parts, r.Key)
		case OpDoesNotExist:
			parts = append(parts, "!"+r.Key)
		case OpIn:
			parts = append(parts, r.Key+" in ("+strings.Join(r.Values, ",")+")")
		case OpNotIn:
			parts = append(parts, r.Key+" notin ("+strings.Join(r.Values, ",")+")")
		}
	}
	return strings.Join(parts, ",")
}
