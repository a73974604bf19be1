package deb

import (
	"fmt"
	"regexp"
	"strings"
)

// relation is one "name (>= version)"; op "" accepts every version (policy manual 7.1).
type relation struct{ name, op, version string }

// anyOf is satisfied by any of its alternatives.
type anyOf []relation

// provision is a name that a package also stands for; version "" satisfies unversioned relations only.
type provision struct{ name, version string }

var relationForm = regexp.MustCompile(`^([a-z0-9][a-z0-9+.-]*)(?::[a-z0-9-]+)?\s*(?:\(\s*(<<|<=|=|>=|>>)\s*([^\s)]+)\s*\))?\s*(?:\[[^\]]*\])?\s*(?:<[^>]*>)?$`)

// maxRelations bounds one dependency field; Debian's largest have some 500.
const maxRelations = 8192

// parseRelations reads a Depends field: alternatives parted by "|", groups parted by ",".
func parseRelations(field string) ([]anyOf, error) {
	var out []anyOf
	n := 0
	for group := range strings.SplitSeq(field, ",") {
		if group = strings.TrimSpace(group); group == "" {
			continue
		}
		var alternatives anyOf
		for alternative := range strings.SplitSeq(group, "|") {
			if n++; n > maxRelations {
				return nil, fmt.Errorf("more than %d relations in one field", maxRelations)
			}
			m := relationForm.FindStringSubmatch(strings.TrimSpace(alternative))
			if m == nil {
				return nil, fmt.Errorf("%.60q is not a relation", alternative)
			}
			alternatives = append(alternatives, relation{m[1], m[2], m[3]})
		}
		out = append(out, alternatives)
	}
	return out, nil
}

// accepts says whether the version v satisfies the relation.
func (r relation) accepts(v string) bool {
	c := 0
	if r.op != "" {
		c = Compare(v, r.version)
	}
	switch r.op {
	case "":
		return true
	case "<<":
		return c < 0
	case "<=":
		return c <= 0
	case "=":
		return c == 0
	case ">=":
		return c >= 0
	default: // ">>": relationForm allows no other
		return c > 0
	}
}

func (r relation) String() string {
	if r.op == "" {
		return r.name
	}
	return r.name + " (" + r.op + " " + r.version + ")"
}

func (a anyOf) String() string {
	s := make([]string, len(a))
	for i, r := range a {
		s[i] = r.String()
	}
	return strings.Join(s, " | ")
}
