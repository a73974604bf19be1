// Package natural answers: in which order do people expect names that hold numbers? eth2
// before eth10, "Core 2" before "Core 10".
package natural

import (
	"cmp"
	"strings"
)

// Compare orders names by their text and by the values of the decimal numbers in it, of any
// length; of equal values the one with fewer leading zeros is first. Only equal names are equal.
func Compare(a, b string) int {
	for a != "" && b != "" {
		x, y := digits(a), digits(b)
		if x > 0 && y > 0 {
			m, n := strings.TrimLeft(a[:x], "0"), strings.TrimLeft(b[:y], "0")
			if c := cmp.Or(len(m)-len(n), strings.Compare(m, n), x-y); c != 0 {
				return c
			}
			a, b = a[x:], b[y:]
			continue
		}
		if a[0] != b[0] {
			return int(a[0]) - int(b[0])
		}
		a, b = a[1:], b[1:]
	}
	return len(a) - len(b)
}

// digits is how many of them s begins with.
func digits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}
