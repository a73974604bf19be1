package compose

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParseEnvFile(t *testing.T) {
	got, err := ParseEnvFile("A=1\n\n # comment\nexport B = two words # tail\nC='$A ${X}'\nD=\"a\\nb\\\"$A\" # tail\nE=\"line one\nline two\"\nF=${X}-${Y:-y}\nPASSED\nG=a#b\nH=\r\n", map[string]string{"X": "x", "PASSED": "on"})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"A": "1", "B": "two words", "C": "$A ${X}", "D": "a\nb\"1", "E": "line one\nline two", "F": "x-y", "PASSED": "on", "G": "a#b", "H": ""} {
		if got[name] != want {
			t.Errorf("%s = %q, want %q", name, got[name], want)
		}
	}
	for in, says := range map[string]string{
		"A=1\n=2":          "line 2",
		"A='x":             "not closed",
		"A=\"x\" y":        "follows the closing quote",
		"A=1\n\nB=${NONE}": "line 3: the variable NONE has no value",
		"NONE":             "passed on",
		"A=${B":            "not closed",
	} {
		if _, err := ParseEnvFile(in, nil); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", in, err, says)
		}
	}
}

// Any value survives single quotes, or double quotes once it is escaped.
func TestEnvQuotes(t *testing.T) {
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`)
	rapid.Check(t, func(t *rapid.T) {
		v := rapid.StringMatching(`[a-z "#$\\{}=\n]{0,20}`).Draw(t, "value")
		got, err := ParseEnvFile("V=\""+escape.Replace(v)+"\"\nW='"+v+"'\n", nil)
		if err != nil {
			t.Fatal(err)
		}
		if got["V"] != v || got["W"] != v {
			t.Fatalf("%q came back as %q and %q", v, got["V"], got["W"])
		}
	})
}

func FuzzParseEnvFile(f *testing.F) {
	f.Add("A=1\nB=\"$A\\n\"\nC='x\ny'\n")
	f.Add("A=${B:-${C:-d}}\nexport X")
	f.Fuzz(func(t *testing.T, in string) {
		env, err := ParseEnvFile(in, map[string]string{"X": "x"})
		if err != nil {
			return
		}
		size := 0
		for _, v := range env {
			size += len(v)
		}
		if size > len(in)+4*envBudget {
			t.Fatalf("%d bytes became %d", len(in), size)
		}
	})
}
