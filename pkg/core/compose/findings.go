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
	f.add(at, "see https://compose-spec.io for what the field takes", "%s", clipLong(text))
}

func clipLong(s string) string {
	if len(s) > 400 {
		return strings.ToValidUTF8(s[:400], "") + "…"
	}
	return s
}
