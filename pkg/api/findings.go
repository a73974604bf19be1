package api

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxFindings bounds how many faults one request reports.
const maxFindings = 50

// findings collects every fault of a document, so that a person mends them in one
// go. Its lines map, when there is one, turns field paths into line numbers.
type findings struct {
	list  []*Error
	lines map[string]int
	more  bool
}

func (f *findings) add(field, message, remedy string) {
	if len(f.list) >= maxFindings {
		f.more = true
		return
	}
	f.list = append(f.list, &Error{Code: Invalid, Field: field, Line: lineOf(f.lines, field), Message: message, Remedy: remedy})
}

func (f *findings) addf(field, remedy, format string, args ...any) {
	f.add(field, fmt.Sprintf(format, args...), remedy)
}

// err folds the findings into one error; nil when there are none.
func (f *findings) err(what string) error {
	if e := JoinErrors(f.list, what); e != nil {
		if f.more {
			e.Remedy = "more faults follow; mend these first"
		}
		return e
	}
	return nil
}

// JoinErrors folds several findings into one error: the finding itself when it is
// alone, else an error with the findings as causes. It returns nil for none.
func JoinErrors(list []*Error, what string) *Error {
	switch len(list) {
	case 0:
		return nil
	case 1:
		return list[0]
	}
	return &Error{Code: list[0].Code, Message: fmt.Sprintf("%s has %d faults", what, len(list)), Causes: list}
}

// lineOf finds the line of a field, or of the nearest enclosing field that was
// written in the file.
func lineOf(lines map[string]int, field string) int {
	for field != "" {
		if n, ok := lines[field]; ok {
			return n
		}
		cut := strings.LastIndexAny(field, ".[")
		if cut < 0 {
			break
		}
		field = field[:cut]
	}
	return lines[""]
}

// join extends a field path by a key; a key that is not a plain word is quoted in
// brackets, so that every path reads one way only.
func join(path, key string) string {
	if key == "" || strings.ContainsAny(key, ".[]\"' \n") {
		return path + "[" + quote(key) + "]"
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// quote shows a value from outside in a message: bounded and printable.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		cut := most
		for cut > 0 && !utf8.RuneStart(s[cut]) {
			cut--
		}
		s = s[:cut] + "…"
	}
	return strconv.Quote(s)
}
