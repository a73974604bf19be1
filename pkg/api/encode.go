package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"

	"go.yaml.in/yaml/v4"
)

// EncodeYAML writes objects as a YAML stream that Decode reads back to the same
// objects. Fields keep the order of their types; text of several lines is written
// as a block.
func EncodeYAML(objects ...*Object) ([]byte, error) {
	var out bytes.Buffer
	for i, o := range objects {
		if i > 0 {
			out.WriteString("---\n")
		}
		b, err := json.Marshal(o)
		if err != nil {
			return nil, err
		}
		y, err := YAML(b)
		if err != nil {
			return nil, err
		}
		out.Write(y)
	}
	return out.Bytes(), nil
}

// YAML turns one JSON value into YAML, keeping the order of its fields.
func YAML(jsonValue []byte) ([]byte, error) {
	d := json.NewDecoder(bytes.NewReader(jsonValue))
	d.UseNumber()
	n, err := jsonNode(d, func(int64) int { return 0 }, 0)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, Errorf(Invalid, "more than one JSON value")
	}
	style(n)
	var out bytes.Buffer
	e := yaml.NewEncoder(&out)
	e.SetIndent(2)
	if err := e.Encode(n); err != nil {
		return nil, err
	}
	if err := e.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// style chooses how scalars are written, so that each reads back as what it is.
func style(n *yaml.Node) {
	for _, c := range n.Content {
		style(c)
	}
	if n.Kind == yaml.MappingNode && len(n.Content) == 0 || n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		n.Style = yaml.FlowStyle
	}
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" {
		return
	}
	switch {
	case blockSafe(n.Value):
		n.Style = yaml.LiteralStyle
	case !plainSafe(n.Value):
		n.Style = yaml.DoubleQuotedStyle
	}
}

// blockSafe: several lines without anything that a literal block would lose.
func blockSafe(s string) bool {
	if !strings.Contains(s, "\n") || strings.HasPrefix(s, " ") || strings.HasPrefix(s, "\n") || strings.HasSuffix(s, "\n\n") {
		return false
	}
	for _, r := range s {
		if r != '\n' && r != '\t' && (r < ' ' || r == 0x7f || r >= 0x80 && !printable(r)) {
			return false
		}
	}
	return !strings.Contains(s, " \n") && !strings.Contains(s, "\t")
}

// printable leaves out what YAML escapes or takes for a line break.
func printable(r rune) bool {
	return r >= 0xa0 && r != 0xad && r != 0x2028 && r != 0x2029 && r != 0xfeff && r < 0xfff0
}

// plainSafe: words that no YAML version takes for anything but text.
func plainSafe(s string) bool {
	if s == "" || len(s) > 200 || s[0] == ' ' || s[len(s)-1] == ' ' {
		return false
	}
	letters := false
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
			letters = true
		case c >= '0' && c <= '9', c == ' ', c == '/' && i == 0:
		case i > 0 && strings.IndexByte("-_./@+,;()", c) >= 0:
		default:
			return false
		}
	}
	switch strings.ToLower(s) {
	case "y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf":
		return false
	}
	// 1e3, 0x1f and 2026-01-01 are no text; "1 Hill Road" and 1m30s are.
	return letters && (&yaml.Node{Kind: yaml.ScalarNode, Value: s}).ShortTag() == "!!str"
}
