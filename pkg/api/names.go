package api

import (
	"sort"
	"strings"
)

const (
	maxLabels          = 64
	maxAnnotationBytes = 64 << 10
)

// IsName reports whether s is a DNS label: 1 to 63 of a-z, 0-9 and '-', not
// starting or ending with '-' (RFC 1123 section 2.1).
func IsName(s string) bool {
	if len(s) == 0 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return false
		}
	}
	return true
}

func validateName(s, field string, f *findings) {
	if s == "" {
		f.add(field, "a name is required", "give 1 to 63 of a-z, 0-9 and '-'")
	} else if !IsName(s) {
		f.addf(field, "use 1 to 63 of a-z, 0-9 and '-', starting and ending with a letter or digit", "%s is not a valid name", quote(s))
	}
}

// isLabelPart is the rule of Kubernetes for label values and the last part of keys:
// up to 63 of letters, digits, '-', '_' and '.', starting and ending alphanumeric.
func isLabelPart(s string) bool {
	if len(s) == 0 || len(s) > 63 {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || i == len(s)-1 || c != '-' && c != '_' && c != '.') {
			return false
		}
	}
	return true
}

func isLabelKey(key string) bool {
	prefix, name, found := strings.Cut(key, "/")
	if !found {
		return isLabelPart(key)
	}
	if len(prefix) > 253 || !isLabelPart(name) {
		return false
	}
	for _, part := range strings.Split(prefix, ".") {
		if !IsName(part) {
			return false
		}
	}
	return true
}

func validateLabelKey(key, field string, f *findings) {
	if !isLabelKey(key) {
		f.addf(field, "use up to 63 letters, digits, '-', '_' and '.', with an optional prefix such as example.com/", "%s is not a valid label key", quote(key))
	}
}

func validateLabelValue(value, field string, f *findings) {
	if value != "" && !isLabelPart(value) {
		f.addf(field, "use up to 63 letters, digits, '-', '_' and '.', starting and ending with a letter or digit", "%s is not a valid label value", quote(value))
	}
}

func validateLabels(labels map[string]string, field string, f *findings) {
	if len(labels) > maxLabels {
		f.addf(field, "move what is not selected by to annotations", "there are %d labels; the most is %d", len(labels), maxLabels)
		return
	}
	for _, k := range sortedKeys(labels) {
		validateLabelKey(k, join(field, k), f)
		validateLabelValue(labels[k], join(field, k), f)
	}
}

// isEnvName is the portable form of a variable's name (POSIX.1-2017 section 8.1).
func isEnvName(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !(c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || i > 0 && c >= '0' && c <= '9') {
			return false
		}
	}
	return s != ""
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
