package compose

import (
	"errors"
	"fmt"
	"regexp"
	"sort"
	"strconv"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

const maxFindings = 50

// findings collects what is wrong with a file and what has no effect.
type findings struct {
	lines      map[string]int // path → line of its key
	list       []*api.Error
	warnings   []*api.Error
	first      *api.Error // ends everything
	unreadable bool       // the tree is not fit for the library
}

func (f *findings) add(at, remedy, format string, args ...any) {
	if len(f.list) < maxFindings {
		f.list = append(f.list, f.finding(at, remedy, format, args...))
	}
}

func (f *findings) warn(at, remedy, format string, args ...any) {
	if len(f.warnings) < maxFindings {
		f.warnings = append(f.warnings, f.finding(at, remedy, format, args...))
	}
}

func (f *findings) fatal(e *api.Error) {
	if f.first == nil {
		e.Line = f.line(e.Field)
		f.first = e
	}
}

func (f *findings) finding(at, remedy, format string, args ...any) *api.Error {
	return &api.Error{Code: api.Invalid, Field: at, Line: f.line(at), Message: fmt.Sprintf(format, args...), Remedy: remedy}
}

// err folds everything into one error, in the order of the file.
func (f *findings) err() error {
	if f.first != nil {
		return f.first
	}
	sort.SliceStable(f.list, func(i, j int) bool { return f.list[i].Line < f.list[j].Line })
	if e := api.JoinErrors(f.list, "the Compose file"); e != nil {
		return e
	}
	return nil
}

// line finds the line of a field, or of what encloses it.
func (f *findings) line(at string) int {
	for at != "" {
		if n, ok := f.lines[at]; ok {
			return n
		}
		cut := strings.LastIndexAny(at, ".[")
		if cut < 0 {
			return 0
		}
		at = at[:cut]
	}
	return 0
}

// join extends a path; keys that are not plain words stand quoted in brackets.
func join(at, key string) string {
	if key == "" || strings.ContainsAny(key, ".[]\"' \n") {
		return at + "[" + strconv.Quote(clip(key)) + "]"
	}
	if at == "" {
		return clip(key)
	}
	return at + "." + clip(key)
}

func place(keys ...string) (at string) {
	for _, k := range keys {
		at = join(at, k)
	}
	return at
}

func index(at string, i int) string { return at + "[" + strconv.Itoa(i) + "]" }

// clip bounds what a message repeats of the file.
func clip(s string) string {
	if len(s) > 100 {
		return strings.ToValidUTF8(s[:100], "") + "…"
	}
	return s
}

// libraryPath finds the path that a message of compose-go names: "services.web.ports.0".
var libraryPath = regexp.MustCompile(`(services|networks|volumes|configs|secrets)(\.[A-Za-z0-9_-]+)+`)

var number = regexp.MustCompile(`\.(\d+)`)

// fromLibrary takes over compose-go's error: it names one fault at a time.
func (f *findings) fromLibrary(err error) {
	if errs, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range errs.Unwrap() {
			f.fromLibrary(e)
		}
		return
	}
	text := strings.TrimPrefix(err.Error(), "validating compose.yaml: ")
	if decoded := decodeFault.FindAllStringSubmatch(text, maxFindings); decoded != nil {
		for _, m := range decoded {
			message, remedy := plain(m[2])
			f.add(decodedPath(m[1]), remedy, "%s", message)
		}
		return
	}
	if m := badName.FindStringSubmatch(text); m != nil {
		f.add(place(m[1], m[2]), "use letters, digits, '-', '_' and '.' of ASCII", "%q cannot be a name here", clip(m[2]))
		return
	}
	at := ""
	if where := libraryPath.FindString(text); where != "" {
		at = number.ReplaceAllString(where, "[$1]")
		text = strings.TrimPrefix(strings.TrimLeft(strings.TrimPrefix(text, where), ": "), where+" ")
	}
	for _, known := range f.list {
		if at != "" && strings.HasPrefix(known.Field, at) {
			return // told already, with a better remedy
		}
	}
	var inner *api.Error
	if errors.As(err, &inner) {
		f.list = append(f.list, inner)
		return
	}
	message, remedy := plain(text)
	f.add(at, remedy, "%s", message)
}

var (
	// decodeFault is one line of what compose-go says of values of the wrong form:
	// 'services[web].mem_limit' invalid size: '-5M'.
	decodeFault = regexp.MustCompile(`(?m)^\s*(?:\* )?'((?:services|networks|volumes|configs|secrets)[\[.][^'\n]*)' (.+)$`)
	// badName is a key that the schema's pattern of names does not take.
	badName = regexp.MustCompile(`^(services|networks|volumes|configs|secrets):? additional properties '([^']*)'`)
	// keyIn is a key in brackets; numbers are places in lists.
	keyIn = regexp.MustCompile(`\[([^\]]*)\]`)

	notNumber   = regexp.MustCompile(`strconv\.\w+: parsing ("(?:[^"\\]|\\.)*"): invalid syntax`)
	outOfRange  = regexp.MustCompile(`(?:strconv\.\w+: parsing "([^"]*)": value out of range|(-?[0-9]+) overflows u?int)`)
	notSize     = regexp.MustCompile(`invalid (?:size|suffix): '([^']*)'`)
	notDuration = regexp.MustCompile(`time: (?:invalid|missing unit in|unknown unit \S+ in) duration "([^"]*)"`)
)

// decodedPath writes the path of compose-go's decoder as all others are written.
func decodedPath(text string) string {
	return keyIn.ReplaceAllStringFunc(text, func(in string) string {
		key := in[1 : len(in)-1]
		if _, err := strconv.Atoi(key); err == nil {
			return in
		}
		return strings.TrimPrefix(join("x", key), "x")
	})
}

// plain says what compose-go and the libraries below it say in words for people.
func plain(text string) (message, remedy string) {
	remedy = "see https://compose-spec.io for what the field takes"
	if m := notNumber.FindStringSubmatch(text); m != nil {
		return m[1] + " is not a number", "write a number in digits"
	}
	if m := outOfRange.FindStringSubmatch(text); m != nil {
		return m[1] + m[2] + " is out of range", "write a number that the field can hold"
	}
	if m := notSize.FindStringSubmatch(text); m != nil {
		return fmt.Sprintf("%q is not a size", m[1]), "write bytes, or a number with k, m or g, e.g. 64m"
	}
	if m := notDuration.FindStringSubmatch(text); m != nil {
		return fmt.Sprintf("%q is not a duration", m[1]), "write a number with its unit, e.g. 30s or 1m30s"
	}
	return clipLong(text), remedy
}

func clipLong(s string) string {
	if len(s) > 400 {
		return strings.ToValidUTF8(s[:400], "") + "…"
	}
	return s
}
