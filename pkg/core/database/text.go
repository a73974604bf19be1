package database

import (
	"strings"
	"unicode/utf8"
)

// Text tells whether a database can hold a text as it is. PostgreSQL takes neither what is
// not UTF-8 nor a byte 0, and fails the whole transaction; SQLite takes both, and for both
// databases to give the same answers nobody may.
func Text(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

// Legible makes a text that people only read one that a database can hold.
func Legible(s string) string {
	if Text(s) {
		return s
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}
