package database

import (
	"strconv"
	"strings"
)

// Dialect is how a database wants its queries. Its methods are what cannot be said alike.
type Dialect int

// The dialects.
const (
	SQLite Dialect = iota
	Postgres
)

// String is the name of the folder of its migrations.
func (d Dialect) String() string {
	if d == Postgres {
		return "postgres"
	}
	return "sqlite"
}

// ForUpdate ends a SELECT of a row that is to be held until the transaction's end. A
// transaction that writes to SQLite holds everything from its beginning.
func (d Dialect) ForUpdate() string {
	if d == Postgres {
		return " FOR UPDATE"
	}
	return ""
}

// Hold ends a SELECT of rows whose key nobody shall change until the transaction's end; what
// else stands in them may change.
func (d Dialect) Hold() string {
	if d == Postgres {
		return " FOR KEY SHARE"
	}
	return ""
}

// Blobs is a subquery of the values of one parameter, a JSON list of texts in hexadecimal.
func (d Dialect) Blobs() string {
	if d == Postgres {
		return "(SELECT decode(value, 'hex') FROM json_array_elements_text(?::json))"
	}
	return "(SELECT unhex(value) FROM json_each(?))"
}

// Unindexed is a column by whose index no row shall be looked for. PostgreSQL knows the
// better way from its statistics.
func (d Dialect) Unindexed(column string) string {
	if d == Postgres {
		return column
	}
	return "+" + column
}

// bind writes the parameters of a query as the database wants them: "?" and "?2" become $1
// and $2 for PostgreSQL, but for those in quotes and comments.
func (d Dialect) bind(query string) string {
	if d != Postgres || !strings.Contains(query, "?") {
		return query
	}
	var b strings.Builder
	b.Grow(len(query) + len(query)/8)
	next := 1
	for i := 0; i < len(query); {
		end := i + 1
		switch c := query[i]; {
		case c == '\'' || c == '"':
			if n := strings.IndexByte(query[end:], c); n >= 0 {
				end += n + 1
			} else {
				end = len(query)
			}
		case strings.HasPrefix(query[i:], "--"):
			if n := strings.IndexByte(query[end:], '\n'); n >= 0 {
				end += n
			} else {
				end = len(query)
			}
		case c == '?':
			for end < len(query) && query[end] >= '0' && query[end] <= '9' {
				end++
			}
			number := query[i+1 : end]
			if number == "" {
				number = strconv.Itoa(next)
				next++
			}
			b.WriteByte('$')
			b.WriteString(number)
			i = end
			continue
		}
		b.WriteString(query[i:end])
		i = end
	}
	return b.String()
}
