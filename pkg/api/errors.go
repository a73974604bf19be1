package api

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// Code classes an error. Each maps to one HTTP status and one exit code.
type Code string

// The codes.
const (
	Invalid      Code = "invalid"      // the request can never succeed as written
	NotFound     Code = "not_found"    // the named thing does not exist
	Conflict     Code = "conflict"     // it exists already, or its revision moved on
	Gone         Code = "gone"         // the revision to go on from is not known any more, or not yet: list again
	Unauthorized Code = "unauthorized" // who you are is not known
	Forbidden    Code = "forbidden"    // you are known, and may not
	TooMany      Code = "too_many"     // it was tried too often: wait
	TooLarge     Code = "too_large"    // past a size bound
	Unavailable  Code = "unavailable"  // try again later
	Internal     Code = "internal"     // our fault
)

// Error is the one error type that crosses package and process borders.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	// Field is the path of the offending value, e.g. "spec.selector.matchLabels".
	Field string `json:"field,omitempty"`
	// Line is the 1-based line in the file that was read; 0 when unknown.
	Line int `json:"line,omitempty"`
	// Remedy tells the reader what to do next.
	Remedy string `json:"remedy,omitempty"`
	// Causes lists further findings of the same request.
	Causes []*Error `json:"causes,omitempty"`
	// Err is for operators; it is logged, never sent.
	Err error `json:"-"`
}

func (e *Error) Error() string {
	var b strings.Builder
	if e.Line > 0 {
		fmt.Fprintf(&b, "line %d: ", e.Line)
	}
	if e.Field != "" {
		fmt.Fprintf(&b, "%s: ", e.Field)
	}
	b.WriteString(e.Message)
	if e.Remedy != "" {
		fmt.Fprintf(&b, " (%s)", e.Remedy)
	}
	for _, c := range e.Causes {
		fmt.Fprintf(&b, "\n  %s", c.Error())
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an error of a code.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// CodeOf finds the code of any error; Internal when it carries none.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return Internal
}

var httpStatus = map[Code]int{
	Invalid: http.StatusUnprocessableEntity, NotFound: http.StatusNotFound, Conflict: http.StatusConflict, Gone: http.StatusGone,
	Unauthorized: http.StatusUnauthorized, Forbidden: http.StatusForbidden, TooLarge: http.StatusRequestEntityTooLarge, TooMany: http.StatusTooManyRequests,
	Unavailable: http.StatusServiceUnavailable, Internal: http.StatusInternalServerError,
}

// HTTPStatus maps a code to its status.
func (c Code) HTTPStatus() int {
	if s, ok := httpStatus[c]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// ExitCode maps a code to the exit status of edgectl (documented in docs/operations.md).
func (c Code) ExitCode() int {
	switch c {
	case Invalid, TooLarge:
		return 2
	case NotFound:
		return 3
	case Conflict, Gone:
		return 4
	case Unauthorized, Forbidden:
		return 5
	case Unavailable, TooMany:
		return 6
	}
	return 1
}
