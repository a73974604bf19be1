package unlock

import (
	"errors"
	"fmt"
	"strings"
)

// alphabet is Crockford's: no letter that a person takes for another digit.
const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// checkPrime is below 1024, so that the remainder fits two characters. Since it is prime and
// 31 and 33 are no multiples of it, each single wrong character and each two neighbours that
// are exchanged change the remainder.
const checkPrime = 1021

// ErrTyped tells that what was typed cannot be what was read: no attempt is counted.
var ErrTyped = errors.New("mistyped")

// Text writes bytes for a person to type: five bits a character, two characters to check
// them, in groups.
func Text(b []byte, group int) string {
	digits := digitsOf(b)
	digits = append(digits, check(digits)...)
	var out strings.Builder
	for i, d := range digits {
		if i > 0 && i%group == 0 {
			out.WriteByte('-')
		}
		out.WriteByte(alphabet[d])
	}
	return out.String()
}

func digitsOf(b []byte) []byte {
	var out []byte
	bits, have := uint(0), 0
	for _, c := range b {
		bits, have = bits<<8|uint(c), have+8
		for have >= 5 {
			have -= 5
			out = append(out, byte(bits>>have&31))
		}
	}
	if have > 0 {
		out = append(out, byte(bits<<(5-have)&31))
	}
	return out
}

func check(digits []byte) []byte {
	v := 0
	for _, d := range digits {
		v = (v*32 + int(d)) % checkPrime
	}
	return []byte{byte(v >> 5), byte(v & 31)}
}

// maxTyped bounds what is looked at.
const maxTyped = 1 << 10

// Parse reads what Text wrote of n bytes. Case, spaces, dashes and line ends do not count, and O,
// I and L are the digits that they look like. It fails with ErrTyped (wrapped).
func Parse(text string, n int) ([]byte, error) {
	if len(text) > maxTyped {
		return nil, fmt.Errorf("%w: %d characters", ErrTyped, len(text))
	}
	var digits []byte
	for _, r := range strings.ToUpper(text) {
		switch r {
		case ' ', '\t', '\r', '\n', '-', '.', '_':
			continue
		case 'O':
			r = '0'
		case 'I', 'L':
			r = '1'
		}
		d := strings.IndexRune(alphabet, r)
		if d < 0 {
			return nil, fmt.Errorf("%w: %q is no character of it", ErrTyped, r)
		}
		digits = append(digits, byte(d))
	}
	want := (n*8+4)/5 + 2
	if len(digits) != want {
		return nil, fmt.Errorf("%w: it has %d characters, and should have %d", ErrTyped, len(digits), want)
	}
	body := digits[:want-2]
	if c := check(body); c[0] != digits[want-2] || c[1] != digits[want-1] {
		return nil, fmt.Errorf("%w: a character is wrong, or two have changed places", ErrTyped)
	}
	out := make([]byte, 0, n)
	bits, have := uint(0), 0
	for _, d := range body {
		bits, have = bits<<5|uint(d), have+5
		if have >= 8 {
			have -= 8
			out = append(out, byte(bits>>have))
		}
	}
	if bits&(1<<have-1) != 0 {
		return nil, fmt.Errorf("%w: its last character cannot be", ErrTyped)
	}
	return out, nil
}
