package deb

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Bounds of a control file: Debian's longest line has some 20 kB, its largest stanza some 60 kB.
const (
	maxLine   = 1 << 20
	maxStanza = 4 << 20
)

// stanza is one paragraph of a control file, by field name in lower case; folded lines are joined by "\n".
type stanza map[string]string

// readStanzas reads a control file (deb822(5)) and hands over each paragraph. Fields that want does not name are
// skipped; a nil want keeps all. Lines that start with # are comments.
func readStanzas(r io.Reader, want map[string]bool, each func(stanza) error) error {
	in := bufio.NewReaderSize(r, 64<<10)
	s, size, last, number := stanza{}, 0, "", 0
	flush := func() error {
		if len(s) == 0 {
			return nil
		}
		err := each(s)
		s, size, last = stanza{}, 0, ""
		return err
	}
	for {
		line, err := readLine(in)
		if errors.Is(err, io.EOF) && line == "" {
			return flush()
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("control file, line %d: %w", number+1, err)
		}
		number++
		if size += len(line); size > maxStanza {
			return fmt.Errorf("control file, line %d: a paragraph of more than %d bytes", number, maxStanza)
		}
		switch {
		case strings.TrimRight(line, " \t") == "":
			if err := flush(); err != nil {
				return err
			}
		case line[0] == '#':
		case line[0] == ' ' || line[0] == '\t':
			if _, ok := s[last]; ok {
				s[last] += "\n" + strings.TrimSpace(line)
			}
		default:
			key, value, ok := strings.Cut(line, ":")
			if !ok || key == "" || strings.ContainsAny(key, " \t") {
				return fmt.Errorf("control file, line %d: %.40q is not a field", number, line)
			}
			last = strings.ToLower(key)
			if want != nil && !want[last] {
				continue
			}
			if _, twice := s[last]; twice {
				return fmt.Errorf("control file, line %d: field %s stands twice in one paragraph", number, key)
			}
			s[last] = strings.TrimSpace(value)
		}
	}
}

// readLine gives one line without its end; io.EOF comes with the last.
func readLine(in *bufio.Reader) (string, error) {
	part, err := in.ReadSlice('\n')
	if err == nil {
		return strings.TrimRight(string(part), "\r\n"), nil
	}
	line := append([]byte(nil), part...)
	for errors.Is(err, bufio.ErrBufferFull) {
		if len(line) > maxLine {
			return "", fmt.Errorf("longer than %d bytes", maxLine)
		}
		part, err = in.ReadSlice('\n')
		line = append(line, part...)
	}
	return strings.TrimRight(string(line), "\r\n"), err
}
