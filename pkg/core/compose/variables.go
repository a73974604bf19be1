package compose

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/template"
	"github.com/compose-spec/compose-go/v2/types"
)

// maxExpanded bounds the file once its variables are filled in.
const maxExpanded = 4 << 20

// maxPortRange bounds "8000-8099:80-179" and its like.
const maxPortRange = 256

// maxPorts bounds what an app publishes in all.
const maxPorts = 2048

// maxCommand bounds a command given as one line: splitting it into words takes time by
// the square of its length.
const maxCommand = 16 << 10

// checkVariables finds, before compose-go interpolates, every ${NAME} without value
// and without default. Compose itself would fill in nothing and warn; on an appliance
// that nobody watches a half-filled file is refused instead.
func checkVariables(dict map[string]any, vars map[string]string, f *findings) {
	c := &variableCheck{findings: f, vars: vars, left: maxExpanded}
	for _, v := range vars {
		c.longest = max(c.longest, len(v))
	}
	for _, k := range keys(dict) {
		c.walk(dict[k], join("", k))
	}
}

type variableCheck struct {
	*findings
	vars    map[string]string
	longest int // bytes of the longest variable
	left    int
	ports   int
}

func (c *variableCheck) walk(v any, at string) {
	if c.left < 0 {
		return
	}
	switch v := v.(type) {
	case map[string]any:
		for _, k := range keys(v) {
			c.walk(v[k], join(at, k))
		}
	case []any:
		for i, e := range v {
			c.walk(e, index(at, i))
		}
	case string:
		c.text(v, at)
	}
}

func (c *variableCheck) text(s, at string) {
	c.left -= len(s) + strings.Count(s, "$")*c.longest
	refs, ok := references(s)
	if !ok {
		c.unreadable = true
		c.add(at, "nest fewer defaults", "${…} is nested deeper than %d, or not closed", maxNested)
		return
	}
	for _, ref := range refs {
		value, set := c.vars[ref.name]
		switch {
		case ref.op == "-" && !set, ref.op == ":-" && value == "":
			c.text(ref.rest, at)
		case ref.op == "+" && set, ref.op == ":+" && value != "":
			c.text(ref.rest, at)
		case ref.needed(value, set):
			note := ""
			if ref.op != "" && ref.rest != "" {
				note = ": " + clip(ref.rest)
			}
			c.unreadable = true
			c.add(at, "set it in spec.variables (`edgectl apply --set "+ref.name+"=…`), or give a default: ${"+ref.name+":-value}", "the variable %s has no value%s", clip(ref.name), note)
		}
	}
	if c.left < 0 {
		c.unreadable = true
		c.add(at, "shorten the variables", "the file is too large once its variables are filled in")
		return
	}
	if commandLine.MatchString(at) && len(s)+strings.Count(s, "$")*c.longest > maxCommand {
		c.unreadable = true
		c.add(at, "write it as a list of words, or put it into a script in the image", "a command line is at most %d bytes", maxCommand)
		return
	}
	if portEntry.MatchString(at) {
		filled, err := template.SubstituteWithOptions(s, func(name string) (string, bool) { v, ok := c.vars[name]; return v, ok }, template.WithoutLogging)
		switch {
		case err != nil: // compose-go will say
		case rangeWidth(filled) > maxPortRange:
			c.unreadable = true
			c.add(at, "publish fewer ports, or use network_mode: host", "the range is wider than %d ports", maxPortRange)
		case c.ports+rangeWidth(filled) > maxPorts:
			c.unreadable = true
			c.add(at, "publish fewer ports, or use network_mode: host", "the app publishes more than %d ports", maxPorts)
		case !strings.HasSuffix(at, ".published"):
			c.ports += rangeWidth(filled)
			// compose-go's own complaint would not say which port it means.
			if _, err := types.ParsePortConfig(filled); err != nil {
				c.unreadable = true
				c.add(at, `write "HOST:CONTAINER", "ADDRESS:HOST:CONTAINER" or a range, with /udp where it is not TCP`, "%q is not a port: %v", clip(filled), err)
			}
		}
	}
}

func (ref varRef) needed(value string, set bool) bool {
	switch ref.op {
	case "", "?":
		return !set
	case ":?":
		return value == ""
	}
	return false
}

var portEntry = regexp.MustCompile(`^services.*\.ports\[\d+\](\.published)?$`)

var commandLine = regexp.MustCompile(`^services.*\.(command|entrypoint)$`)

var portRange = regexp.MustCompile(`(\d+)-(\d+)`)

// rangeWidth counts the ports of an entry; what cannot be read is as wide as can be.
func rangeWidth(s string) int {
	width := 1
	for _, m := range portRange.FindAllStringSubmatch(s, -1) {
		low, err1 := strconv.ParseUint(m[1], 10, 16)
		high, err2 := strconv.ParseUint(m[2], 10, 16)
		if err1 != nil || err2 != nil {
			return maxPortRange + 1
		}
		if high > low {
			width = max(width, int(high-low)+1)
		}
	}
	return width
}

// maxNested bounds defaults within defaults.
const maxNested = 8

// varRef is one ${NAME…} of a text.
type varRef struct {
	name string
	op   string // "", "-", ":-", "+", ":+", "?", ":?"
	rest string // what follows the operator, up to the closing brace
}

var variableName = regexp.MustCompile(`^[_a-zA-Z][_a-zA-Z0-9]*`)

// references lists the variables of a text (compose-spec, 12-interpolation), those in
// defaults left inside their rest. It is not ok when braces do not match.
func references(s string) (refs []varRef, ok bool) {
	for {
		i := strings.IndexByte(s, '$')
		if i < 0 || i+1 >= len(s) {
			return refs, true
		}
		s = s[i+1:]
		switch {
		case s[0] == '$':
			s = s[1:]
		case s[0] == '{':
			end := closing(s)
			if end < 0 {
				return refs, false
			}
			if ref := braced(s[1:end]); ref.name != "" {
				refs = append(refs, ref)
			}
			s = s[end+1:]
		default:
			if name := variableName.FindString(s); name != "" {
				refs = append(refs, varRef{name: name})
				s = s[len(name):]
			}
		}
	}
}

// braced reads what stands between ${ and }.
func braced(s string) varRef {
	name := variableName.FindString(s)
	rest := s[len(name):]
	for _, op := range []string{":-", ":+", ":?", "-", "+", "?"} {
		if after, found := strings.CutPrefix(rest, op); found {
			return varRef{name, op, after}
		}
	}
	return varRef{name: name}
}

// closing finds the brace that matches the one s starts with; -1 when there is none
// within maxNested.
func closing(s string) int {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '{':
			if depth++; depth > maxNested {
				return -1
			}
		case '}':
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return -1
}
